"""Find the columns of a table that hold pictures, labels and splits, and turn labels into classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from thumbnet.errors import DataError, nearest, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.split_names import SPLITS, split_name
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
SPLIT_COLUMNS = [
    "split",
    "set",
    "subset",
    "usage",
    "partition",
    "phase",
    "dataset",
    "datasplit",
    "traintestsplit",
    "splitset",
    "evaluationstatus",
]
# Columns of yes and no: the split of the rows with yes.
_FLAGS = {
    **dict.fromkeys(("istrain", "istraining", "intrain", "train", "training"), "train"),
    **dict.fromkeys(("isval", "isvalidation"), "val"),
    **dict.fromkeys(("istest", "istesting", "intest", "test", "testing"), "test"),
}
_ALSO_CLASSES = ("train", "training", "test", "testing")  # a train may be what the pictures show
_UNCLEAR = ("isvalid", "valid")  # validation, or in order?
_FER = {"publictest": "val", "privatetest": "test"}
EMPTY = frozenset(("", "nan", "NaN"))
_ONES = frozenset(("1", "1.0", "true", "yes"))
_ZEROS = frozenset(("0", "0.0", "-1", "false", "no"))
_MARKS = frozenset(("1", "1.0", "x"))  # in columns whose other cells are empty
_YES = frozenset(("1", "1.0", "true", "yes", "t", "y"))
_NO = frozenset(("0", "0.0", "false", "no", "f", "n"))
_SAMPLE = 2000  # rows in which pictures' names are looked for
_MOST_UNNAMED = 4  # columns of a table without a header whose first column may name pictures
_MOST_SPLITS = 12  # different values of a column that tells splits
_NUMBER = re.compile(r"[+-]?(?=.{1,40}$)(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)
_MARK = re.compile(r"-?(0(\.\d{1,20})?|1(\.0{1,20})?)", re.ASCII)  # a number from 0 to 1, or -1
_MOST_LARGE = 0.1  # share of the columns of a table of labels that may hold numbers above 1


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
    word = text.strip()
    found = split_name(word)
    known = found.split if found is not None and found.rank < 2 else ""
    return _FER.get(word.casefold(), known)


def split_of_name(stem: str) -> str:
    """The split that a file's name mentions, such as ``train`` for ``sign_mnist_train``.

    Empty if it mentions no split, or more than one. ``train_val`` is train.
    """
    found = split_name(stem)
    return _FER.get(stem.casefold(), found.split if found is not None else "")


def named(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """The ``names`` that are in ``known``, ignoring case and punctuation, in the order of ``known``."""
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    return [name for wanted in known for name, key in plain.items() if key == wanted]


def label_candidates(names: Iterable[str]) -> list[str]:
    """The columns whose names suggest labels, most likely first."""
    return named(names, _LABELS)


def find_columns(table: Table, settings: DataSettings, labels: bool = True) -> Columns:
    """Find a manifest's columns: by the recipe's settings, then by name, then by content.

    Args:
        table: all of its rows decide which columns have labels and splits, because tables are often sorted by
            class or split. The first rows decide which column names the pictures.
        settings: ``path_column``, ``label_column``, ``group_by`` and ``multilabel`` are used.
        labels: whether to look for labels; otherwise only for pictures and splits.

    Raises:
        DataError: the table lacks a column that a setting names, or it is unclear which column has the
            pictures or the labels.
    """
    for key in ("path_column", "label_column") if labels else ("path_column",):
        chosen = getattr(settings, key)
        if chosen and chosen not in table.names:
            raise DataError(
                f"{printable(table.path.name)} has no column {chosen!r} (data.{key}). "
                f"{nearest(chosen, table.names)}"
            )
    path = settings.path_column or _path_column(table)
    if not path:
        raise DataError(
            f"{printable(table.path.name)}: no column appears to name pictures. "
            f"The columns are {_listing(table.names)}. "
            "Name the right one: --path-column NAME"
        )
    values = {name: set(table.column(name)) for name in table.names if name != path}
    varied = [name for name in values if len(values[name] - EMPTY) > 1]
    split = _split_column(table, [name for name in values if name != settings.label_column], varied)
    if not labels:
        return Columns(path, "", split)
    if settings.label_column:
        return Columns(path, settings.label_column, split)
    rest = [name for name in values if name not in (split, settings.group_by)]
    by_name = [name for name in label_candidates(rest) if values[name] - EMPTY]
    several = [name for name in by_name if name in varied]
    if several:
        return Columns(path, several[0], split)
    binary = tuple(name for name in rest if _is_binary(values[name]))
    by_content = [*by_name[:1], *(name for name in rest if _repeats(table, name, values[name] - EMPTY))]
    if len(binary) >= 2:
        found = Columns(path, "", split, binary)
        words = [name for name in by_content if name not in binary and _has_words(values[name])]
        if by_name or (settings.multilabel is not True and _may_be_classes(words, values, found, table)):
            raise DataError(
                f"{printable(table.path.name)}: which column has the labels: {_listing([*words, *binary])}? "
                "Name it: --label-column NAME. If the columns of yes and no are the labels: "
                "--set data.multilabel=true"
            )
        return found
    if len(by_content) > 1:  # quantities are no classes
        by_content = [name for name in by_content if not _are_quantities(values[name])] or by_content
    if len(by_content) > 1:
        raise DataError(
            f"{printable(table.path.name)}: which column has the labels: {_listing(by_content)}? "
            "Name it: --label-column NAME"
        )
    return Columns(path, by_content[0] if by_content else "", split)


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(printable(name) for name in names[:12]) + more


def _path_column(table: Table) -> str:
    """The column that names pictures, by its first cells and its name; empty if there is none."""
    sample = {name: [row[at] for row in table.rows[:_SAMPLE]] for at, name in enumerate(table.names)}

    def pictures(name: str) -> int:
        return sum(is_picture_name(re.split(r"[/\\]", cell)[-1]) for cell in sample[name])

    by_content = {name: count for name in sample if (count := pictures(name))}
    likely = named(sample, _PATHS)
    most = [name for name in by_content if by_content[name] == max(by_content.values())]
    # Of a column of paths and one of bare names, which several folders may have, the paths differ more.
    different = {name: len(set(table.column(name))) for name in most} if len(most) > 1 else {}
    ranked = sorted(
        by_content, key=lambda name: (-by_content[name], name not in likely, -different.get(name, 0))
    )
    # Pictures from the web may be called as in their addresses, but a column of numbers is likelier.
    addresses = [name for name in sample if any("://" in cell for cell in sample[name])]
    files = [name for name in ranked if name not in addresses]
    distinct = [name for name in likely if len(set(sample[name])) > len(sample[name]) // 2]
    distinct = [name for name in distinct if name not in addresses]
    found = next(iter((*files, *distinct, *ranked, *likely)), "")
    return found or ("" if table.header else _different(sample))


def _different(sample: dict[str, list[str]]) -> str:
    """The first column whose cells all differ, which may name pictures in a small table without a header."""
    if len(sample) > _MOST_UNNAMED or not any(map(_has_words, sample.values())):
        return ""
    return next((name for name, cells in sample.items() if len(set(cells)) == len(cells) > 2), "")


def marks_pictures(table: Table) -> bool:
    """Whether a table of many columns names pictures, and marks their labels rather than lists their pixels.

    Pixels are larger than 1 in many columns.
    """
    rows = table.rows[:3]
    if not any(is_picture_name(re.split(r"[/\\]", cell)[-1]) for row in rows for cell in row):
        return False
    large = sum(
        any(_NUMBER.fullmatch(cell) and not _MARK.fullmatch(cell) for cell in cells)
        for cells in zip(*rows, strict=True)
    )
    return large <= _MOST_LARGE * len(table.names)


def _split_column(table: Table, names: Sequence[str], varied: Sequence[str]) -> str:
    """The column that says which split each row belongs to, or an empty string."""
    binary = [name for name in names if _yes_or_no(table.column(name))]
    flags = [name for name in named(names, list(_FLAGS)) if name in binary]
    flags = [name for name in flags if len(binary) == 1 or not named([name], _ALSO_CLASSES)]
    others = [name for name in varied if name in names and not named([name], list(_FLAGS))]
    for name in (*named(names, SPLIT_COLUMNS), *flags, *others):
        if split_values(name, table.column(name)):
            return name
    return ""


def split_values(name: str, cells: Iterable[str]) -> dict[str, str]:
    """The split that each value of a column stands for; an empty string for a value that is not known.

    The result is empty if the column does not tell splits. In a column whose name says that it does, some
    values may be unknown.
    """
    values = sorted({cell for cell in cells if cell not in EMPTY})
    if not values or len(values) > _MOST_SPLITS:
        return {}
    if named([name], list(_FLAGS)) and _yes_or_no(values):
        yes = next(_FLAGS[key] for key in _FLAGS if named([name], [key]))
        no = "test" if yes == "train" else "train"
        return {value: yes if value.casefold() in _YES else no for value in values}
    if re.search("partition|split", name, re.I) and values == ["0", "1", "2"]:  # as in CelebA
        return dict(zip(values, SPLITS, strict=True))
    found = {value: split_word(value) for value in values}
    either = [value for value in values if (word := split_name(value)) is not None and word.either]
    if "val" not in found.values() and any(
        split == "test" and value not in either for value, split in found.items()
    ):
        found |= dict.fromkeys(either, "val")
    known = [split for split in found.values() if split]
    return found if known and (len(known) == len(found) or named([name], SPLIT_COLUMNS)) else {}


def split_meanings(name: str, cells: Sequence[str], where: str) -> tuple[dict[str, str], list[str]]:
    """The split that each cell of a column of splits stands for, and a note if empty cells are train's.

    They are if cells tell other splits, but none says train.

    Args:
        name: the column's name.
        cells: its cells.
        where: what the note calls the column, printable.
    """
    of = split_values(name, cells)
    empty = sum(cell in EMPTY for cell in cells)
    if not of or not empty or "train" in of.values():
        return of, []
    return of | dict.fromkeys(EMPTY, "train"), [f"{where} is empty in {empty:,} row(s), which are train's"]


def unused_splits(table: Table, columns: Columns) -> list[str]:
    """Notes about columns that seem to tell splits, but whose values do not say which."""
    notes = []
    others = [name for name in table.names if name not in (columns.path, columns.label, columns.split)]
    for name in named(
        [name for name in others if name not in columns.one_hot], [*SPLIT_COLUMNS, *_FLAGS, *_UNCLEAR]
    ):
        values = sorted(set(table.column(name)) - EMPTY)
        if len(values) > 1:
            notes.append(
                f"{printable(table.path.name)}: the column {printable(name)!r} ({_some(values)}) is not "
                "used. If it tells splits, write train, val and test into a column called split"
            )
    return notes


def splits_of(table: Table, columns: Columns) -> tuple[list[str], list[str]]:
    """Each row's split by the table's split column, empty where it is unknown, and notes about it.

    Raises:
        DataError: some values are unknown and none is train.
    """
    cells = table.column(columns.split)
    where = f"{printable(table.path.name)}: the column {printable(columns.split)!r}"
    of, notes = split_meanings(columns.split, cells, where)
    unknown = [value for value, split in of.items() if not split]
    if unknown and "train" not in of.values():
        raise DataError(f"{where} has {_some(list(of))}: which of them is train? Write train, val and test")
    splits = [of.get(cell, "") for cell in cells]
    if any(split and not _says(value, split) for value, split in of.items() if value not in EMPTY):
        meaning = (
            f"{printable(value)} is {split}" for value, split in of.items() if value not in EMPTY and split
        )
        notes.append(f"{where} tells splits: {', '.join(meaning)}")
    left_out = splits.count("")
    if left_out:
        what = f"unknown: {_some(unknown)}" if unknown else "empty"
        notes.append(f"{where} leaves out {left_out:,} row(s), whose split is {what}")
    return splits, notes


def _says(value: str, split: str) -> bool:
    """Whether a value is a plain name for its split."""
    name = split_name(value)
    return name is not None and name.split == split


def _some(values: Sequence[str]) -> str:
    return ", ".join(printable(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")


def _yes_or_no(cells: Iterable[str]) -> bool:
    found = {cell.casefold() for cell in cells if cell not in EMPTY}
    return bool(found) and found <= _YES | _NO


def _is_binary(cells: Iterable[str]) -> bool:
    """Whether a column tells yes or no for each row: 0 and 1, True and False, x and nothing, ..."""
    values = set(cells)
    found = {value.casefold() for value in values - EMPTY}
    return bool(found) and found <= (_MARKS if values & EMPTY else _ONES | _ZEROS)


def _has_words(cells: Iterable[str]) -> bool:
    return any(not _NUMBER.fullmatch(cell) and re.search(r"[^\W\d_]", cell) for cell in cells)


def _may_be_classes(
    words: Sequence[str], values: Mapping[str, set[str]], found: Columns, table: Table
) -> bool:
    """Whether a column of words may hold the classes, rather than the columns of yes and no.

    It has more different values than there are such columns, and these do not name one class per row.
    """
    most = max((len(values[name] - EMPTY) for name in words), default=0)
    return most > len(found.one_hot) and any(len(ones) != 1 for ones in ones_of(table, found))


def _repeats(table: Table, name: str, found: set[str]) -> bool:
    """Whether the cells of a column repeat as classes do; ``found`` are its different values."""
    if len(found) <= 2:
        return len(found) == 2
    return len(found) <= sum(cell not in EMPTY for cell in table.column(name)) // 2


def _are_quantities(cells: Iterable[str]) -> bool:
    """Whether a column has numbers, and some with fractions, such as weights and angles."""
    found = set(cells) - EMPTY
    return all(map(_NUMBER.fullmatch, found)) and any(map(_has_fraction, found))


def _has_fraction(number: str) -> bool:
    exact = Decimal(number)
    return exact != exact.to_integral_value()


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
    ones = _ONES | _MARKS
    return [tuple(name for name, at in places if row[at].casefold() in ones) for row in table.rows]


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
    odd = [label for label in found if _has_fraction(label)]
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


def check_in_train(labels: Mapping[str, Iterable[str]], names: Mapping[str, str], source: str) -> None:
    """Refuse classes of other splits that train lacks.

    Args:
        labels: the labels of each split.
        names: the class of each label, from :func:`class_names`.
        source: what the user named.

    Raises:
        DataError: a split has such classes. The message names them.
    """
    classes = {split: {names[label] for label in found} for split, found in labels.items()}
    in_train = classes.get("train", set())
    for split, found in classes.items():
        stray = sorted(found - in_train)
        if stray and in_train:
            raise DataError(
                f"{source}: {split} has classes that train lacks: {', '.join(map(printable, stray[:20]))}"
            )
