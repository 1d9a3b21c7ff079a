"""Find the columns of a table that hold pictures, labels and splits, and turn labels into classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from thumbnet.errors import DataError, nearest, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.tables import Table

_PATHS = [
    "path",
    "filepath",
    "filename",
    "file",
    "image",
    "imagepath",
    "imgpath",
    "imagefile",
    "imagefilename",
    "imagename",
    "imageid",
    "img",
    "images",
    "imgname",
    "imgid",
    "picture",
    "photo",
    "fname",
    "fileid",
    "filepaths",
    "idcode",
    "id",
    "name",
]
_LABELS = [
    "label",
    "labels",
    "class",
    "classid",
    "classname",
    "classes",
    "category",
    "categories",
    "categoryid",
    "target",
    "celltype",
    "diagnosis",
    "species",
    "dx",
    "breed",
    "emotion",
    "level",
    "labelid",
    "labelname",
    "finelabel",
    "landmarkid",
    "y",
    "tag",
    "tags",
    "type",
    "findinglabels",
    "choice",
]
_SPLITS = ["split", "set", "subset", "usage", "partition", "phase", "dataset", "datasplit"]
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "publictest"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "privatetest"), "test"),
}
EMPTY = frozenset(("", "nan", "NaN"))
_NUMBER = re.compile(r"[+-]?(?=.{1,40}$)(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns, empty where there is no such column.

    Labels are either in the column ``label`` or in the columns ``one_hot``, one per class.
    """

    path: str
    label: str = ""
    split: str = ""
    one_hot: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether the table has labels."""
        return bool(self.label or self.one_hot)


def split_word(text: str) -> str:
    """``train``, ``val`` or ``test`` if the text is a common name for it, else an empty string."""
    return _SPLIT_WORDS.get(text.strip().casefold(), "")


def split_of_name(stem: str) -> str:
    """The split that a file's name mentions, such as ``train`` for ``sign_mnist_train``.

    Empty if it mentions no split, or more than one.
    """
    words = re.findall(r"[A-Za-z]+", stem)
    found = {split_word(word) for word in words} - {""}
    return found.pop() if len(found) == 1 else ""


def named(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """The ``names`` that are in ``known``, ignoring case and punctuation, in the order of ``known``."""
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    return [name for wanted in known for name, key in plain.items() if key == wanted]


def label_candidates(names: Iterable[str]) -> list[str]:
    """The columns whose names suggest labels, most likely first."""
    return named(names, _LABELS)


def find_columns(table: Table, settings: DataSettings) -> Columns:
    """Find a manifest's columns: by the recipe's settings, then by name, then by content.

    Raises:
        DataError: the table lacks a column that a setting names, or it is unclear which column has the
            pictures or the labels.
    """
    for key in ("path_column", "label_column"):
        chosen = getattr(settings, key)
        if chosen and chosen not in table.names:
            raise DataError(
                f"{printable(table.path.name)} has no column {chosen!r} (data.{key}). "
                f"{nearest(chosen, table.names)}"
            )
    sample = {name: table.column(name)[:2000] for name in table.names}
    path = settings.path_column or _path_column(sample)
    if not path:
        raise DataError(
            f"{printable(table.path.name)}: no column appears to name pictures. "
            f"The columns are {_listing(table.names)}. "
            "Name the right one: --path-column NAME"
        )
    rest = [name for name in table.names if name != path]
    varied = [name for name in rest if len(set(sample[name]) - EMPTY) > 1]
    split = next((c for c in (*named(rest, _SPLITS), *varied) if _has_splits(table.column(c))), "")
    rest = [name for name in rest if name not in (split, settings.group_by)]
    if settings.label_column:
        return Columns(path, settings.label_column, split)
    by_name = [name for name in label_candidates(rest) if any(cell not in EMPTY for cell in sample[name])]
    if by_name:
        return Columns(path, by_name[0], split)
    binary = tuple(name for name in rest if _is_binary(sample[name]))
    if len(binary) >= 2:
        return Columns(path, "", split, binary)
    by_content = [name for name in rest if _repeats(sample[name])]
    if len(by_content) > 1:
        raise DataError(
            f"{printable(table.path.name)}: which column has the labels: {_listing(by_content)}? "
            "Name it: --label-column NAME"
        )
    return Columns(path, by_content[0] if by_content else "", split)


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(printable(name) for name in names[:12]) + more


def _path_column(sample: dict[str, list[str]]) -> str:
    def pictures(name: str) -> int:
        return sum(is_picture_name(re.split(r"[/\\]", cell)[-1]) for cell in sample[name])

    by_content = {name: pictures(name) for name in sample}
    likely = named(sample, _PATHS)
    best = max(by_content, key=lambda name: (by_content[name], name in likely), default="")
    if best and by_content[best]:
        return best
    distinct = [name for name in likely if len(set(sample[name])) > len(sample[name]) // 2]
    return (distinct or likely or [""])[0]


def _has_splits(cells: list[str]) -> bool:
    found = {cell for cell in cells if cell not in EMPTY}
    return bool(found) and all(split_word(cell) for cell in found)


def _is_binary(cells: list[str]) -> bool:
    return bool(cells) and all(cell in ("0", "1", "0.0", "1.0", "-1") for cell in cells)


def _repeats(cells: list[str]) -> bool:
    found = [cell for cell in cells if cell not in EMPTY]
    return len(set(found)) >= 2 and len(set(found)) <= max(2, len(found) // 2)


def labels_of(table: Table, columns: Columns) -> list[str]:
    """Each row's class as text, or an empty string for a row without a label.

    A cell is one class, whatever is in it. :mod:`thumbnet.sources.label_lists` reads several labels.

    Raises:
        DataError: a row has ones in several columns.
    """
    if columns.label:
        return ["" if cell in EMPTY else cell for cell in table.column(columns.label)]
    labels = []
    for line, ones in zip(table.lines, ones_of(table, columns), strict=True):
        if len(ones) > 1:
            raise DataError(
                f"{printable(table.path.name)}, line {line}: {len(ones)} labels ({_listing(ones)}), but one "
                "class per picture was asked for (data.multilabel = false). If a single column has the "
                "labels, name it: --label-column NAME"
            )
        labels.append(ones[0] if ones else "")
    return labels


def ones_of(table: Table, columns: Columns) -> list[tuple[str, ...]]:
    """For each row, which of the columns ``one_hot`` have a one."""
    places = [(name, table.names.index(name)) for name in columns.one_hot]
    return [tuple(name for name, at in places if row[at] in ("1", "1.0")) for row in table.rows]


def class_names(labels: Iterable[str]) -> dict[str, str]:
    """Map each label to the name of its class, in class order.

    Whole numbers are ordered by value, and ``2`` and ``2.0`` are one class. If any label is not a number or
    has leading zeros, all labels are ordered as text.

    Raises:
        DataError: the labels are numbers with fractions, which are quantities rather than classes.
    """
    found = sorted(set(labels) - {""})
    if not all(_NUMBER.fullmatch(label) for label in found) or any(
        re.match(r"-?0\d", label) for label in found
    ):
        return {label: label for label in found}
    # A float would make one class of two long identifiers that differ in their last digits.
    numbers = {label: Decimal(label) for label in found}
    odd = [label for label, number in numbers.items() if number != number.to_integral_value()]
    if odd:
        raise DataError(
            f"the labels are numbers with fractions, such as {odd[0]}: "
            "thumbnet learns classes, not quantities"
        )
    return {label: str(int(numbers[label])) for label in sorted(found, key=lambda label: numbers[label])}


def in_class_order(names: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """The class names in order, and each label's position in them, from the result of :func:`class_names`."""
    order = list(dict.fromkeys(names.values()))
    at = {name: position for position, name in enumerate(order)}
    return order, {label: at[name] for label, name in names.items()}
