"""Collect the rows of tables with their pictures, and say which are missing or repeated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from thumbnet.data.corrections import is_corrections
from thumbnet.data.spelling import name_key, nfc
from thumbnet.data.splits import group_name
from thumbnet.errors import printable
from thumbnet.invocation import command
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.labels import MAY_MEAN_NOTHING
from thumbnet.sources.lookup import Pictures, Wanted
from thumbnet.sources.split_names import is_train_and_val
from thumbnet.sources.table_splits import Manifest, splits_by_folder
from thumbnet.sources.tables import EMPTY

_MAX_SHOWN = 5  # missing pictures that an error lists
_WHOLE = re.compile(r"(-?\d+)\.0*", re.ASCII)
_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


class Missing(NamedTuple):
    """A row without a picture, for a message, and whether several pictures have its name."""

    line: str
    several: bool


@dataclass
class Rows:
    """The rows collected so far for one split; a row has one label, or any number if ``several``."""

    several: bool
    paths: list[str] = field(default_factory=list)
    labels: list[tuple[str, ...]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def respell(self, respelt: Mapping[str, str]) -> None:
        """Spell labels as in ``respelt``."""
        self.labels = [tuple(dict.fromkeys(respelt.get(one, one) for one in row)) for row in self.labels]

    def merged(self) -> Rows:
        """A row per picture, with the labels of all rows that name it."""
        rows = Rows(self.several)
        at: dict[str, int] = {}
        for path, labels, group in zip(self.paths, self.labels, self.groups, strict=True):
            if path in at:
                rows.labels[at[path]] = tuple(dict.fromkeys((*rows.labels[at[path]], *labels)))
                continue
            at[path] = len(rows.paths)
            rows.paths.append(path)
            rows.labels.append(labels)
            rows.groups.append(group)
        return rows


def collect(
    manifest: Manifest,
    labels: list[tuple[str, ...]],
    pictures: Pictures,
    splits: dict[str, Rows],
    several: bool,
    settings: DataSettings,
) -> tuple[list[Missing], list[str]]:
    """Add a table's rows to the splits, and return those without a picture and notes."""
    table, columns = manifest.table, manifest.columns
    folder = f"{manifest.base}/" if manifest.base else ""
    notes = [*table.notes, f"{printable(folder + table.path.name)}: {len(table.rows):,} rows"]
    cells = table.column(columns.path)
    known = manifest.splits or (manifest.split,) * len(cells)
    used = [row for row in range(len(cells)) if known[row] or manifest.splits is None]
    unlabelled = Counter(known[row] or "train" for row in used if not labels[row] and not several)
    way_on = ". If a picture may have no label: --set data.multilabel=true" if columns.one_hot else ""
    notes += [
        f"{printable(table.path.name)}: skipped {count:,} row(s) of {split} without a label{way_on}"
        for split, count in unlabelled.items()
    ]
    used = [row for row in used if labels[row] or several]
    found = pictures.find_all(
        [Wanted(cells[row], known[row], labels[row][0] if len(labels[row]) == 1 else "") for row in used],
        manifest.base,
    )
    of = [known[row] for row in used]
    if manifest.splits is None:  # a single table
        classes = {label for row in labels for label in row}
        # A table called trainval.csv may name pictures in train/ and in val/. All of train.csv is for train.
        by_folder = not manifest.split or any(map(is_train_and_val, (table.path.stem, manifest.base)))
        told = splits_by_folder([one.path for one in found], classes) if by_folder else None
        of = told[0] if told else ["train"] * len(used)
        notes += told[1] if told else []
    groups = table.column(settings.group_by) if settings.group_by in table.names else []
    missing, ungrouped = [], 0
    for row, one, split in zip(used, found, of, strict=True):
        if one.path is None:
            cell = printable(cells[row]) or "no path"
            why = f" ({one.why})" if one.why else ""
            line = f"{printable(table.path.name)}, line {table.lines[row]}: {cell}{why}"
            missing.append(Missing(line, one.several))
        elif split:
            splits[split].paths.append(one.path)
            splits[split].labels.append(labels[row])
            group = groups[row] if groups else ""
            if groups and group in EMPTY:
                group = f"\0{one.path}"  # a group of its own, by a name that no cell can hold
                ungrouped += 1
            splits[split].groups.append(group)
    notes += [
        f"warning: {printable(table.path.name)}: {count:,} row(s) have the group {word}. If it means that "
        f"nothing is known, leave these cells of {printable(settings.group_by)!r} empty: each row then forms "
        "its own group"
        for word, count in Counter(group for group in groups if group in MAY_MEAN_NOTHING).items()
    ]
    if ungrouped:
        notes.append(
            f"{printable(table.path.name)}: the column {printable(settings.group_by)!r} is empty in "
            f"{ungrouped:,} row(s), each of which forms its own group"
        )
    return missing, notes


def one_name_per_group(splits: dict[str, Rows], column: str) -> list[str]:
    """Name groups alike that are only written differently: ``7`` and pandas' ``7.0``, or both Unicode forms.

    Returns:
        A warning if groups differ only in case or in leading zeros: they may be the same, too.
    """
    found = sorted({group for rows in splits.values() for group in rows.groups if group_name(group)})
    same: dict[str, list[str]] = {}
    for group in found:
        whole = _WHOLE.fullmatch(group)
        same.setdefault(whole[1] if whole else nfc(group), []).append(group)
    names = {group: name for name, several in same.items() if len(several) > 1 for group in several}
    for rows in splits.values() if names else ():
        rows.groups = [names.get(group, group) for group in rows.groups]
    alike: dict[str, list[str]] = {}
    for group in dict.fromkeys(names.get(group, group) for group in found):
        alike.setdefault(_LEADING_ZEROS.sub("", name_key(group)), []).append(group)
    unclear = [several for several in alike.values() if len(several) > 1]
    if not unclear:
        return []
    example = " and ".join(printable(group) for group in unclear[0][:2])
    return [
        f"warning: the column {printable(column)!r} has groups that differ only in case or leading zeros, "
        f"such as {example}. They count as different groups. If they are the same, write them alike"
    ]


def several_notes(splits: dict[str, Rows], how: str) -> list[str]:
    """Say that pictures have several labels, how they are written, and which splits have none."""
    rows = [row for one in splits.values() for row in one.labels]
    without = sum(not row for row in rows)
    mean = sum(map(len, rows)) / max(1, len(rows))
    notes = [
        f"several labels per picture ({printable(how)}): {mean:.2f} on average, {without:,} picture(s) "
        "without a label. To read each cell as one class: --set data.multilabel=false"
    ]
    return notes + [
        f"skipped {len(one.paths):,} picture(s) of {split}: none of them has a label"
        for split, one in splits.items()
        if one.paths and not any(one.labels)
    ]


def duplicate_notes(splits: dict[str, Rows]) -> list[str]:
    """Warnings about pictures that several rows name, with the same label or with different ones."""
    seen: dict[str, str] = {}
    conflicts = []
    for rows in splits.values():
        for path, (label,) in zip(rows.paths, rows.labels, strict=True):
            before = seen.setdefault(path, label)
            if before != label:
                conflicts.append(f"{printable(path)} ({printable(before)} and {printable(label)})")
    repeats = sum(len(rows.paths) for rows in splits.values()) - len(seen) - len(conflicts)
    notes = []
    if conflicts:
        notes.append(
            f"warning: {len(conflicts)} row(s) give a picture a second label, such as {conflicts[0]}. If "
            "pictures may have several labels: --set data.multilabel=true"
        )
    if repeats:
        notes.append(f"warning: {repeats} row(s) name a picture that an earlier row already names")
    return notes


def what_is_missing(missing: list[Missing], root: str) -> str:
    """How many rows have no picture in the folder ``root``, and why."""
    if all(one.several for one in missing):
        return f"{len(missing):,} row(s) each name several pictures in {root}"
    return f"{len(missing):,} row(s) name pictures that are not in {root}"


def missing_help(missing: list[Missing], manifests: list[Manifest], source: str) -> str:
    """The rows without a picture, and what to do about them."""
    shown = "\n".join(f"  {one.line}" for one in missing[:_MAX_SHOWN])
    more = f"\n  and {len(missing) - _MAX_SHOWN:,} more" if len(missing) > _MAX_SHOWN else ""
    if all(one.several for one in missing):
        return (
            f":\n{shown}{more}\nRemove or move the copies, write the paths of the pictures into the table, "
            "or name their folder with --images FOLDER"
        )
    corrections = any(is_corrections(manifest.table.names) for manifest in manifests)
    correct = command("train", "DATA", "--labels", source)
    other = f"\nTo correct the labels of other data by this file: {correct}" if corrections else ""
    if all("://" in one.line for one in missing):
        return (
            f":\n{shown}{more}\nThese are addresses: download the pictures first. If they are downloaded, "
            "name the column with the names of their files: --path-column NAME"
        )
    return (
        f" (searched by path, by file name, and without the suffix):\n{shown}{more}\n"
        "Name the folder of the pictures with --images FOLDER, "
        f"or skip these rows with --on-bad-image skip (the setting data.on_bad_image){other}"
    )
