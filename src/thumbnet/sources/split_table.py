"""Write which picture is in which split into a table, so that the splits stay as they are.

A split that thumbnet sets aside depends on all pictures of a class: a new picture can move another one. A
table with a column of splits is read as it stands (:mod:`thumbnet.sources.manifest`). A later call adds rows
for new pictures, and leaves those that are there byte for byte.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thumbnet.data.held_out import share
from thumbnet.data.listings import as_csv, guarded_name, guarded_text
from thumbnet.data.reading import is_file
from thumbnet.data.splits import Data, Split, group_name
from thumbnet.errors import DataError, RunError, printable
from thumbnet.files import check_output, read_whole, reason, user_path, write_file
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.load import load_data
from thumbnet.sources.split_names import SPLITS
from thumbnet.sources.tables import EMPTY, read_table

GROUP = "group"
"""The column that says which pictures belong together: ``--group-by group`` reads it."""
_LABEL_HEADS = ("label", "class", "category", "target")  # a header that is also a class is taken for a row
_LABELS_HEAD = "labels"  # of a column with several labels per picture


class Written(NamedTuple):
    """What :func:`write_split_table` did.

    Attributes:
        added: how many rows it wrote; 0 if no picture was new, so the file is as it was.
        options: the words with which a command reads the table, such as ``("--group-by", "group")``.
        notes: what the user should know about a table that was there before.
    """

    added: int
    options: tuple[str, ...]
    notes: tuple[str, ...] = ()


class _Row(NamedTuple):
    """A row of the table.

    Attributes:
        path: the picture's path from the table's folder.
        split: its split.
        labels: its labels.
        group: the cell of its group; empty if it is a group of its own or there are no groups.
    """

    path: str
    split: str
    labels: frozenset[str]
    group: str


class _Picture(NamedTuple):
    """A picture of the data.

    Attributes:
        row: its row, with the split that it has in the data.
        key: what is hashed to choose its split: its group, or its own name.
        free: whether its split is thumbnet's choice, and not the user's.
    """

    row: _Row
    key: str
    free: bool


def check_split_table(path: Path) -> None:
    """Check that a table can be written at ``path``, or extended. Call this before long work.

    Raises:
        RunError: the name does not end in ``.csv``, the folder is missing or not writable, or there is a file
            of that name that :func:`write_split_table` did not write.
    """
    if path.suffix.lower() != ".csv":
        raise RunError(f"--splits {path}: the name must end in .csv")
    check_output(path)
    if is_file(path):
        _read_file(path)


def write_split_table(data: Data, path: Path) -> Written:
    """Write the path, the label, the split and, if there are groups, the group of each picture as CSV.

    Paths start from the table's folder. Several labels are a list, such as ``["cat", "dog"]``. The table is
    read again before it is kept, and has to give the same pictures, labels, splits and groups.

    If there is such a table already, it is extended. Its rows stay byte for byte, also those of pictures that
    are gone and of those that have another label by now; notes count them. A new picture gets the split that
    the data's own folders or tables give it. Where thumbnet sets splits aside, it joins the split of its
    group. If no picture of its group has one, a hash decides, with the fractions in ``data.settings``; a
    label that train does not have yet stays in train once.

    Args:
        data: pictures in files. For a new table they must be in more than one split.
        path: the file to write, or to extend.

    Raises:
        DataError: some pictures are no files, all pictures are in ``train``, a table cannot hold their names
            or classes, the data were read from the table itself, or it does not fit them: only one has groups
            or several labels per picture, or the table lacks one of the splits.
        RunError: the table cannot be written; see :func:`check_split_table`.
    """
    check_split_table(path)
    nothing = [name for name in data.class_names if name in EMPTY and not data.multilabel]
    if nothing:
        raise DataError(
            f"{printable(data.source)}: the class {nothing[0]!r} cannot be written into a table, where it "
            "means that a picture has no label. Rename it"
        )
    place = _places_from(path.parent)
    pictures = _pictures(data, place)
    grouped = "train" in data.groups
    if is_file(path):
        return _extend(data, pictures, path, place)
    if set(data.splits) == {"train"}:
        raise DataError(
            f"{printable(data.source)}: all pictures are in train, so there are no splits to write"
        )
    rows = [picture.row for picture in pictures]
    label = next((one for one in _LABEL_HEADS if one not in data.class_names), _LABEL_HEADS[0])
    head = ("path", _LABELS_HEAD if data.multilabel else label, "split", *([GROUP] if grouped else []))
    _write(path, b"", head, rows, rows, data.multilabel)
    return Written(len(rows), _options(grouped, False))


def _options(grouped: bool, skip: bool) -> tuple[str, ...]:
    return (*(["--group-by", GROUP] if grouped else []), *(["--on-bad-image", "skip"] if skip else []))


def _places_from(folder: Path) -> Callable[[str | Path], str]:
    """A function from a file to its path from ``folder``, the same for all links to the folders between."""

    @functools.cache
    def real(folder: str) -> str:  # there are few folders
        return os.path.realpath(folder)

    start = real(str(folder))

    def place(file: str | Path) -> str:
        above, base = os.path.split(os.path.join(start, file))
        path = os.path.join(real(above), base)
        with suppress(ValueError):  # it is on another drive
            path = os.path.relpath(path, start)
        return path.replace(os.sep, "/")

    return place


def _pictures(data: Data, place: Callable[[str | Path], str]) -> list[_Picture]:
    """The pictures of the data in the order of their splits.

    Raises:
        DataError: as for :func:`write_split_table`.
    """
    source = printable(data.source)
    formulas = [name for name in data.class_names if guarded_text(name) != name]
    if formulas and not data.multilabel:
        raise DataError(
            f"{source}: a spreadsheet would take the class {printable(formulas[0])!r} for a formula. Rename "
            "it"
        )
    added = data.corrected.added if data.corrected is not None else 0  # the last ones of train
    pictures, here = [], os.getcwd()
    for name in (one for one in SPLITS if one in data.splits):
        split, groups = data.splits[name], data.groups.get(name)
        ours = name == "train" or name in data.set_aside
        for index in range(len(split)):
            file = split.file(index)
            if file is None:
                raise DataError(
                    f"{source}: {printable(split.name(index))} is not a file of its own, and a table names "
                    "files. If it is in an archive, unpack that first"
                )
            group = "" if groups is None else str(groups[index])
            row = _Row(
                place(os.path.join(here, file)), name, _labels(split, index, data.class_names), _cell(group)
            )
            free = ours and not (name == "train" and index >= len(split) - added)
            pictures.append(_Picture(row, group or split.key(index), free))
    return pictures


def _cell(group: str) -> str:
    """A group as a cell: empty for a picture that is a group of its own."""
    return guarded_text(group_name(group))


def _labels(split: Split, index: int, names: tuple[str, ...]) -> frozenset[str]:
    if split.multilabel:
        return frozenset(names[one] for one in np.flatnonzero(split.targets[index]).tolist())
    return frozenset((names[int(split.labels[index])],))


def _extend(data: Data, pictures: list[_Picture], path: Path, place: Callable[[str | Path], str]) -> Written:
    """Add the rows of new pictures to the table at ``path``.

    Raises:
        DataError, RunError: as for :func:`write_split_table`.
    """
    content, head = _read_file(path)
    if _is_read_from(data, path):
        raise DataError(
            f"{printable(data.source)} is read from {path} itself, which lists no new pictures. Name the "
            "folder of the pictures as DATA. If that is the folder of the table, --classes-from leaf or "
            "--label-pattern REGEX reads the names in it instead"
        )
    grouped = GROUP in head
    table = read_table(path)
    if not table.header:
        raise DataError(
            f"{path}: its first line is not taken for a header, because a cell below one of the names is the "
            "same word. Rename that class or group"
        )
    cells = table.column("path")
    gone = [cell for cell in cells if not is_file(path.parent / cell)]
    earlier = _load(path, path, grouped, skip=bool(gone))
    _check_fits(data, earlier, path, grouped)
    rows = [row._replace(path=place(row.path)) for row in _rows_of(earlier)]
    known = {row.path: row for row in rows}
    listed = known.keys() | {place(cell) for cell in cells}  # also rows that the reader leaves out
    new = _with_splits([one for one in pictures if one.row.path not in listed], rows, data)
    if new:
        _write(path, content, head, _rows_of(earlier) + new, new, data.multilabel, skip=bool(gone))
    counts = Counter(row.split for row in new)
    where = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if counts[split])
    told = f"{len(new):,} picture(s) were added ({where})" if new else "no picture is new"
    notes = [f"{path.name}: {told}, and the {len(cells):,} earlier row(s) stay as they are"]
    lacking = [one for one in earlier.splits if one not in data.splits and not counts[one]]
    if new and lacking:
        notes.append(
            f"warning: {path.name} has {' and '.join(lacking)}, which no new picture joins. "
            f"{' and '.join(f'--{split}-fraction F' for split in lacking)} would set a part of them aside"
        )
    if gone:
        notes.append(
            f"warning: {len(gone):,} row(s) of {path.name} name pictures that are gone, such as {gone[0]}. "
            "Remove these rows, or train with --on-bad-image skip"
        )
    others = [one.row for one in pictures if _differs(one.row, known.get(one.row.path))]
    if others:
        notes.append(
            f"warning: {len(others):,} picture(s) have another label or group in the data than in "
            f"{path.name}, such as {others[0].path}. To change that, edit or remove their rows"
        )
    return Written(len(new), _options(grouped, bool(gone)), tuple(notes))


def _is_read_from(data: Data, table: Path) -> bool:
    """Whether ``data`` are the ``table`` or its folder, and were read from the table."""
    place = os.path.realpath(user_path(data.source))
    named = any(
        part.startswith(f"{printable(table.name)}: pictures in ") for part in data.layout.split(" + ")
    )
    return named and place in (os.path.realpath(table), os.path.realpath(table.parent))


def _differs(row: _Row, known: _Row | None) -> bool:
    return known is not None and (row.labels, row.group) != (known.labels, known.group)


def _check_fits(data: Data, earlier: Data, path: Path, grouped: bool) -> None:
    """Check that pictures of ``data`` can be added to the table at ``path``, which gives ``earlier``.

    Raises:
        DataError: they cannot.
    """
    if data.multilabel != earlier.multilabel:
        one, several = (path, data.source) if data.multilabel else (data.source, path)
        raise DataError(f"{one} has one label per picture, and {several} has several: name another file")
    if grouped and "train" not in data.groups:
        raise DataError(
            f"{path} has a column {GROUP!r}, so new pictures need their groups: repeat the --group-by with "
            "which the table was written"
        )
    if not grouped and "train" in data.groups:
        raise DataError(
            f"{path} has no column {GROUP!r}, so new pictures cannot join the groups of earlier ones: leave "
            "out --group-by, or name another file for a new table"
        )
    more = [split for split in data.splits if split not in earlier.splits]
    if more:
        raise DataError(
            f"{path} has no {more[0]} pictures, so {more[0]} would be made of new ones only. Repeat the "
            "fractions with which the table was written, or name another file for a new table"
        )


def _with_splits(new: list[_Picture], rows: list[_Row], data: Data) -> list[_Row]:
    """The rows of ``new`` pictures with their splits; ``rows`` are those that the table has."""
    settings = data.settings or DataSettings()
    fractions = {"test": settings.test_fraction, "val": settings.val_fraction}
    own = set(data.splits) - {"train", *data.set_aside}  # the user decides what is in these
    of_group: dict[str, str] = {}
    for row in rows:
        if row.group and row.split not in own:
            of_group.setdefault(row.group, row.split)
    together: dict[str, list[_Row]] = {}
    for picture in new:
        if picture.free:
            together.setdefault(picture.key, []).append(picture.row)

    def chosen(key: str) -> str:
        joined = of_group.get(together[key][0].group)
        if joined is not None:
            return joined
        for number, split in enumerate(("test", "val")):  # as in `with_held_out`
            if split in data.set_aside and share(key, settings.split_seed + number) < fractions[split]:
                return split
        return "train"

    splits = {key: chosen(key) for key in together}
    learned = {label for row in rows if row.split == "train" for label in row.labels}
    for picture in new:
        if (splits[picture.key] if picture.free else picture.row.split) == "train":
            learned |= picture.row.labels
    # A label that train lacks could not be learned. The pictures that were nearest to staying in train do.
    for key in sorted(splits, key=lambda key: share(key, settings.split_seed), reverse=True):
        labels = {label for row in together[key] for label in row.labels}
        if together[key][0].group not in of_group and not labels <= learned:
            splits[key] = "train"
            learned |= labels
    return [one.row._replace(split=splits[one.key]) if one.free else one.row for one in new]


def _read_file(path: Path) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of a table at ``path`` and the names of its columns.

    Raises:
        RunError: it cannot be read, or :func:`write_split_table` did not write it.
    """
    try:
        content = read_whole(path)
        first = content.decode("utf-8-sig").partition("\n")[0]
        head = tuple(name.strip() for name in next(csv.reader([first]), []))
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from None
    except (UnicodeError, csv.Error):
        head = ()
    label = head[1:2] if head[1:2] and head[1] in (*_LABEL_HEADS, _LABELS_HEAD) else ("label",)
    if head not in (("path", *label, "split"), ("path", *label, "split", GROUP)):
        raise RunError(
            f"{path} already exists, and is not a table in UTF-8 that begins with path,label,split or "
            "path,label,split,group, as --splits writes it: name another file"
        )
    return content, head


def _write(
    path: Path,
    before: bytes,
    head: Sequence[str],
    expected: list[_Row],
    new: list[_Row],
    multilabel: bool,
    skip: bool = False,
) -> None:
    """Write a table whole or not at all, if it is read as it is meant.

    Args:
        path: the file.
        before: what the table has already; empty for a new one.
        head: the names of its columns.
        expected: the rows that reading it has to give.
        new: the rows to add.
        multilabel: whether the pictures have several labels each.
        skip: whether some of the earlier rows name pictures that are gone.

    Raises:
        DataError: no table can hold these rows.
        RunError: it cannot be written, or it is no longer as it was ``before``.
    """
    lines = []
    for row in new:
        label = json.dumps(sorted(row.labels), ensure_ascii=False) if multilabel else next(iter(row.labels))
        lines.append((guarded_name(row.path), label, row.split, row.group)[: len(head)])
    text = as_csv(head, lines)
    if before:
        text = ("" if before.endswith(b"\n") else "\n") + text.partition("\n")[2]
    try:
        content = before + text.encode()
    except UnicodeEncodeError:
        odd = next((row.path for row in new if not _is_text(row.path)), "a picture's group")
        raise DataError(
            f"the name of {printable(odd)} is not UTF-8, so no table can hold it. Rename it"
        ) from None
    with _draft(path, content) as draft:
        again = _load(draft, path, GROUP in head, skip)
        _check_same(expected, _rows_of(again), again.multilabel == multilabel)
        try:
            now = read_whole(path) if is_file(path) else b""
        except OSError as error:
            raise RunError(f"cannot read {path}: {reason(error)}") from None
        if now != before:
            raise RunError(f"another program has changed {path} in the meantime: repeat the command")
        write_file(path, content)


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


@contextmanager
def _draft(path: Path, content: bytes) -> Iterator[Path]:
    """A file with this content next to ``path``, which is removed at the end of the block.

    Raises:
        RunError: it cannot be written.
    """
    draft = None
    try:
        try:
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.stem}.", suffix=".csv", delete=False
            ) as file:
                draft = Path(file.name)
                file.write(content)
        except OSError as error:
            raise RunError(f"cannot write {path}: {reason(error)}") from None
        yield draft
    finally:
        if draft is not None:
            with suppress(OSError):
                draft.unlink()


def _load(table: Path, path: Path, grouped: bool, skip: bool) -> Data:
    """Load a ``table`` that is, or is meant for, the one at ``path``; ``skip`` leaves out missing pictures.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return load_data(
            table,
            test_fraction=0.0,
            group_by=GROUP if grouped else "",
            on_bad_image="skip" if skip else "stop",
        )
    except DataError as error:
        told = str(error).replace(str(table), str(path)).replace(table.name, path.name)
        raise DataError(f"a table of these splits could not be read: {told}") from None


def _rows_of(data: Data) -> list[_Row]:
    """The rows that gave the data of a table."""
    rows = []
    for name in (one for one in SPLITS if one in data.splits):
        split, groups = data.splits[name], data.groups.get(name)
        for index in range(len(split)):
            group = "" if groups is None else group_name(str(groups[index]))
            path = split.name(index).replace(os.sep, "/")
            rows.append(_Row(path, name, _labels(split, index, data.class_names), group))
    return rows


def _check_same(rows: list[_Row], found: list[_Row], same_kind: bool) -> None:
    """Check that reading a table has ``found`` the rows that it is meant to have.

    Raises:
        DataError: it has not, or, if not ``same_kind``, it takes a list of labels for a class or vice versa.
    """
    lost = set(rows) - set(found)
    if lost or len(found) != len(rows) or not same_kind:
        odd = min(lost or rows, key=lambda row: (row.path, row.split))
        raise DataError(
            f"a table of these splits would be read in another way than it is meant, for example "
            f"{printable(odd.path)} ({printable(', '.join(sorted(odd.labels)))}). Give plainer names to the "
            "classes, groups and files: no spaces at their ends, no lists of words, no numbers with fractions"
        )
