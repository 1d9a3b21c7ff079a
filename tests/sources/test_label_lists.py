from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured, coloured_labels, write_label_table, write_picture
from thumbnet.data.splits import Data
from thumbnet.errors import DataError
from thumbnet.sources.columns import Columns
from thumbnet.sources.label_lists import RowLabels, read_labels, separator_in
from thumbnet.sources.load import load_data
from thumbnet.sources.tables import Table

COUNT = 12
LABELS = [("cat", "dog"), ("cat",), (), ("dog", "hat"), ("hat",), ("cat", "dog", "hat")]


def write_table(folder: Path, head: str, row: Callable[[int, tuple[str, ...]], str]) -> Path:
    for number in range(COUNT):
        write_picture(folder / f"{number}.png", coloured(number, number))
    lines = [row(n, LABELS[n % len(LABELS)]) for n in range(COUNT)]
    path = folder / "labels.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def check_read(data: Data) -> None:
    assert data.class_names == ("cat", "dog", "hat")
    train = data.splits["train"]
    assert data.multilabel
    for index in range(len(train)):
        number = int(Path(train.name(index)).stem)
        expected = [name in LABELS[number % len(LABELS)] for name in data.class_names]
        assert train.targets[index].tolist() == expected, train.name(index)


@pytest.mark.parametrize("separator", ["|", ";", " "])
def test_labels_in_one_cell_are_several(separator: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,labels", lambda n, labels: f"{n}.png,{separator.join(labels)}")
    data = load_data(path, test_fraction=0)
    check_read(data)
    assert len(data.splits["train"]) == COUNT
    notes = "\n".join(data.notes)
    assert "several labels per picture (separated by" in notes
    assert "1.50 on average, 2 picture(s) without a label" in notes
    assert "labels in 'labels'" in data.layout


def test_commas_in_a_quoted_cell_separate_labels(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,labels", lambda n, labels: f'{n}.png,"{", ".join(labels)}"')
    check_read(load_data(path, test_fraction=0))


@pytest.mark.parametrize("write", [json.dumps, lambda labels: str(list(labels))], ids=["JSON", "Python"])
def test_a_cell_may_hold_a_list(write: Callable[[tuple[str, ...]], str], tmp_path: Path) -> None:
    def row(n: int, labels: tuple[str, ...]) -> str:
        text = write(labels).replace('"', '""')
        return f'{n}.png,"{text}"'

    check_read(load_data(write_table(tmp_path, "path,labels", row), test_fraction=0))


def test_json_lines_may_hold_lists(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,labels", lambda n, labels: "")
    path.unlink()
    rows = [{"file_name": f"{n}.png", "labels": LABELS[n % len(LABELS)]} for n in range(COUNT)]
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    check_read(load_data(path, test_fraction=0))
    check_read(load_data(tmp_path, test_fraction=0))


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1.0", "0.0"), ("1", "-1")])
def test_several_ones_in_a_row_are_several_labels(yes: str, no: str, tmp_path: Path) -> None:
    def row(n: int, labels: tuple[str, ...]) -> str:
        return f"{n}.png," + ",".join(yes if name in labels else no for name in ("hat", "cat", "dog"))

    data = load_data(write_table(tmp_path, "path,hat,cat,dog", row), test_fraction=0)
    check_read(data)
    assert "one column per label (3)" in data.layout


def test_rows_that_repeat_a_picture_give_it_all_their_labels(tmp_path: Path) -> None:
    def rows(n: int, labels: tuple[str, ...]) -> str:
        return "\n".join(f"{n}.png,{label}" for label in labels or ("",))

    data = load_data(write_table(tmp_path, "path,label", rows), test_fraction=0)
    check_read(data)
    assert len(data.splits["train"]) == COUNT


def test_a_few_second_labels_are_slips_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,label", lambda n, labels: f"{n}.png,{'cat' if n % 2 else 'dog'}")
    path.write_text(path.read_text() + "0.png,cat\n")
    data = load_data(path, test_fraction=0)
    assert not data.multilabel
    assert any("data.multilabel=true" in note for note in data.notes)
    several = load_data(path, test_fraction=0, multilabel=True)
    assert several.splits["train"].targets[0].tolist() == [True, True]
    assert several.splits["train"].class_counts(2).tolist() == [7, 6]


def test_a_cell_is_one_class_if_the_user_says_so(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,labels", lambda n, labels: f"{n}.png,{' '.join(labels)}")
    data = load_data(path, test_fraction=0, multilabel=False)
    assert not data.multilabel
    assert "cat dog" in data.class_names


def test_tables_with_one_label_in_each_row_can_be_read_as_several(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,label", lambda n, labels: f"{n}.png,{'cat' if n % 2 else 'dog'}")
    data = load_data(path, test_fraction=0, multilabel=True)
    assert data.splits["train"].targets.sum(axis=1).tolist() == [1] * COUNT


def test_folders_of_classes_cannot_be_read_as_several(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(3):
            write_picture(tmp_path / name / f"{number}.png", coloured(number, number))
    with pytest.raises(DataError, match="one class per picture"):
        load_data(tmp_path, multilabel=True)


def test_a_split_without_any_label_is_left_out(tmp_path: Path) -> None:
    def row(n: int, labels: tuple[str, ...]) -> str:
        return f"{n}.png,{';'.join(labels) if n < 9 else ''},{'train' if n < 9 else 'test'}"

    data = load_data(write_table(tmp_path, "path,labels,split", row), test_fraction=0)
    assert list(data.splits) == ["train"]
    assert any("skipped 3 picture(s) of test: none of them has a label" in note for note in data.notes)


def test_a_label_that_train_lacks_is_refused_by_name(tmp_path: Path) -> None:
    def row(n: int, labels: tuple[str, ...]) -> str:
        return f"{n}.png,{';'.join(labels) if n else 'bat;cat'},{'test' if n < 2 else 'train'}"

    with pytest.raises(
        DataError, match=r"test has classes that train lacks: bat\. Move pictures of them to train, or remove"
    ):
        load_data(write_table(tmp_path, "path,labels,split", row))


def test_one_separator_is_used_for_all_tables() -> None:
    def table(cells: list[str]) -> tuple[Table, Columns]:
        rows = [[f"{n}.png", cell] for n, cell in enumerate(cells)]
        return Table(Path("x.csv"), ["path", "label"], rows, list(range(len(rows))), True), Columns(
            "path", "label"
        )

    found = read_labels([table(["a;b", "a", "b", "b;a"]), table(["a", "b"])], "auto")
    assert found.several
    assert found.rows == [[("a", "b"), ("a",), ("b",), ("b", "a")], [("a",), ("b",)]]


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        ({"a|b", "a", "b"}, "|"),
        ({"haze water", "haze road", "water road", "haze"}, " "),
        ({"Canis lupus", "Canis aureus", "Vulpes vulpes"}, ""),
        ({"fresh apple", "rotten apple", "fresh banana", "rotten banana"}, ""),
        ({"apple, ripe", "apple, unripe", "tomato, ripe", "tomato, unripe"}, ""),
        ({"fresh apple", "rotten apple", "apple fresh", "fresh banana", "rotten banana"}, " "),
        ({"fresh apple", "rotten apple", "fresh", "rotten banana", "fresh banana"}, " "),
        ({"apple;ripe", "apple;unripe", "tomato;ripe", "tomato;unripe"}, ";"),
        ({"cat;outdoor", "cat;indoor", "dog;indoor", "dog;outdoor", "cat;rare"}, ";"),
        ({"cat|x1", "cat|x2", "dog|x3"}, ""),
        ({"cat, indoor", "indoor, dog", "dog, cat", "cat, rare"}, ""),
        ({"cat", "dog"}, ""),
        ({"Smith, John", "Miller, Ann"}, ""),
        (set(), ""),
    ],
)
def test_a_separator_is_one_whose_parts_occur_elsewhere(cells: set[str], separator: str) -> None:
    assert separator_in(cells) == separator


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        ({"cat;outdoor", "dog"}, ";"),
        ({"polar bear|white", "cat", "cat, dog"}, "|"),
        ({"cat, rare", "dog"}, ","),
        ({"polar bear", "dog"}, ""),
    ],
)
def test_a_mark_that_occurs_separates_if_there_are_several_labels(cells: set[str], separator: str) -> None:
    assert separator_in(cells, sure=True) == separator


@pytest.mark.parametrize("separator", ["|", ";"])
def test_a_rare_label_does_not_make_other_cells_classes(separator: str, tmp_path: Path) -> None:
    cells = [separator.join(pair) for pair in (("cat", "out"), ("dog", "out"), ("dog", "in"))] * 4
    cells[-1] += f"{separator}night"
    path = write_table(tmp_path, "path,labels", lambda n, _: f"{n}.png,{cells[n]}")
    assert load_data(path, test_fraction=0).class_names == ("cat", "dog", "in", "night", "out")


def test_a_single_cell_with_a_semicolon_is_noted_and_separated_on_demand(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,labels", lambda n, _: f"{n}.png,{'cat;night' if n == 3 else 'ant'}")
    data = load_data(path, test_fraction=0)
    assert data.class_names == ("ant", "cat;night")
    assert any("such as 'cat;night' are one class each" in note for note in data.notes)
    data = load_data(path, test_fraction=0, multilabel=True)
    assert data.class_names == ("ant", "cat", "night")
    assert not any("one class each" in note for note in data.notes)


def test_what_auto_reads_as_several_labels_true_reads_in_the_same_way(tmp_path: Path) -> None:
    names = ("left lung", "right lung", "left arm", "right arm")
    path = write_table(
        tmp_path, "path,label", lambda n, _: f"{n}.png,{names[n % 4]}\n{n}.png,{names[(n + 1) % 4]}"
    )
    auto, true = (load_data(path, test_fraction=0, multilabel=one) for one in ("auto", True))
    assert auto.class_names == true.class_names == tuple(sorted(names))
    assert auto.fingerprint() == true.fingerprint()
    assert auto.layout == true.layout


def test_names_of_two_words_are_classes_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    names = [f"{state} {fruit}" for state in ("fresh", "rotten") for fruit in ("apple", "banana")]
    path = write_table(tmp_path, "path,label", lambda n, _: f"{n}.png,{names[n % 4]}")
    data = load_data(path)
    assert data.class_names == tuple(names)
    assert any("such as 'fresh apple' are one class each" in note for note in data.notes)
    assert load_data(path, multilabel=True).class_names == ("apple", "banana", "fresh", "rotten")


def labels_of_cells(*cells: str, multilabel: bool | str = "auto") -> RowLabels:
    rows = [[f"{n}.png", cell] for n, cell in enumerate(cells)]
    table = Table(Path("x.csv"), ["path", "label"], rows, list(range(2, len(rows) + 2)), True)
    return read_labels([(table, Columns("path", "label"))], multilabel)


@pytest.mark.parametrize(
    "cell",
    [
        "[1, [2]]",
        "[open('x')]",
        "[" * 5000 + "]" * 5000,
        "[{}]",
        "['a' + 'b']",
        "['cat' 'dog', 'hat']",
        "['cat' 'dog' ... 'hat']",
        "['cat''dog']",
        "['\\x']",
        "['" + "\\'" * 4900 + "]",
    ],
)
def test_a_list_that_cannot_be_read_is_refused_next_to_others(cell: str) -> None:
    with pytest.raises(DataError, match='x.csv, line 3: .*Write the labels .*: \\["cat", "dog"\\]'):
        labels_of_cells('["a"]', cell)
    assert labels_of_cells('["a"]', cell, multilabel=False).rows[0][1] == (cell,)


def test_a_plain_cell_next_to_lists_is_a_single_label() -> None:
    found = labels_of_cells('["cat", "dog"]', "cat", "golden retriever", '["a"', "(unknown)", "")
    assert found.several
    assert found.rows[0][1:] == [("cat",), ("golden retriever",), ('["a"',), ("(unknown)",), ()]


@pytest.mark.parametrize(
    "cells",
    [
        ("['cat' 'dog']", "['cat']", "[]", "['golden retriever']"),
        ("['cat'\n 'dog']", "['cat']", "[]", "['golden retriever']"),
        ("('cat', 'dog')", "('cat',)", "()", "('golden retriever',)"),
        ("{'cat', 'dog'}", "{'cat'}", "{}", "{'golden retriever'}"),
        ("{cat,dog}", "{cat}", "{}", '{"golden retriever"}'),
        ("[cat, dog]", "[cat]", "[]", "[golden retriever]"),
    ],
)
def test_lists_of_other_programs_are_read(cells: tuple[str, ...]) -> None:
    found = labels_of_cells(*cells)
    assert (found.several, found.how) == (True, "as lists")
    assert found.rows == [[("cat", "dog"), ("cat",), (), ("golden retriever",)]]


@pytest.mark.parametrize("cells", ["[0 16]/[16]", "[0. 16.]/[16.]", "[0, 16]/[16]", "{0,16}/{16}"])
def test_lists_may_hold_numbers(cells: str) -> None:
    assert labels_of_cells(*cells.split("/")).rows == [[("0", "16"), ("16",)]]


@pytest.mark.parametrize(
    "cells", ["(0, 10)/(10, 20)", "[cat]/[dog]", "{cat}/{dog}", "(cat)/(dog)", "(0, 10]/(10, 20]"]
)
def test_brackets_alone_make_no_lists(cells: str) -> None:
    found = labels_of_cells(*cells.split("/"))
    assert not found.several
    assert found.rows == [[(cell,) for cell in cells.split("/")]]


def test_punctuation_between_spaces_is_no_label() -> None:
    found = labels_of_cells("cat", "dog", "cat & dog", "dog & hat", "hat - cat", "hat")
    assert found.rows[0][2:] == [("cat", "dog"), ("dog", "hat"), ("hat", "cat"), ("hat",)]
    assert labels_of_cells("C++ C#", "C++ D", "C# D", "D").rows[0][0] == ("C++", "C#")


@pytest.mark.parametrize("mark", ["/", "+", "&"])
@pytest.mark.parametrize("multilabel", ["auto", True])
def test_classes_whose_parts_are_classes_are_noted(multilabel: bool | str, mark: str) -> None:
    (note,) = labels_of_cells("cat", "dog", f"cat{mark}dog", multilabel=multilabel).notes
    assert note.startswith(f"labels such as {f'cat{mark}dog'!r} are one class each.")
    assert note.endswith(f"write ; in place of {mark}")
    assert labels_of_cells("cat", f"cat{mark}rare", "dog", multilabel=multilabel).notes == ()


def test_a_table_that_thumbnet_predicts_reads_back_the_same(tmp_path: Path) -> None:
    data = coloured_labels(20)
    again = load_data(write_label_table(tmp_path, data))
    assert again.class_names == ("blue", "green", "red")
    for name, split in data.splits.items():
        order = [int(Path(again.splits[name].name(i)).stem.rpartition("-")[2]) for i in range(20)]
        assert np.array_equal(again.splits[name].targets, split.targets[order][:, ::-1])


def test_parquet_tables_may_have_a_column_of_lists(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'formats' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(tmp_path, "", lambda n, labels: "").unlink()
    for kind, name in (
        (pyarrow.string(), lambda label: label),
        (pyarrow.int64(), ("cat", "dog", "hat").index),
    ):
        cells = [[name(label) for label in LABELS[n % len(LABELS)]] for n in range(COUNT)]
        columns = {
            "path": [f"{n}.png" for n in range(COUNT)],
            "labels": pyarrow.array(cells, pyarrow.list_(kind)),
        }
        parquet.write_table(pyarrow.table(columns), tmp_path / "labels.parquet")
        data = load_data(tmp_path / "labels.parquet", test_fraction=0)
        assert data.multilabel
        assert data.splits["train"].class_counts(3).tolist() == [6, 6, 6]


def test_parquet_files_with_pictures_may_have_lists_of_labels(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'formats' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(tmp_path, "", lambda n, labels: "").unlink()
    names = ("cat", "dog", "hat")
    table = pyarrow.table(
        {
            "image": [
                {"bytes": (tmp_path / f"{n}.png").read_bytes(), "path": f"{n}.png"} for n in range(COUNT)
            ],
            "labels": [[names.index(label) for label in LABELS[n % len(LABELS)]] for n in range(COUNT)],
        }
    )
    features = {"labels": {"feature": {"names": list(names), "_type": "ClassLabel"}, "_type": "Sequence"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "train.parquet")
    data = load_data(tmp_path / "train.parquet", test_fraction=0)
    assert data.multilabel
    assert data.class_names == names
    assert data.splits["train"].targets[0].tolist() == [True, True, False]
    assert data.splits["train"].targets[2].tolist() == [False, False, False]


def test_empty_cells_next_to_zeros_are_no_and_columns_without_a_one_are_noted(tmp_path: Path) -> None:
    def row(n: int, labels: tuple[str, ...]) -> str:
        cells = ["1.0" if name in labels else "0.0" for name in ("cat", "dog", "hat")]
        if n == 1:
            cells[1] = ""  # it is no dog
        return f"{n}.png,{','.join(cells)},-1.0"

    data = load_data(write_table(tmp_path, "path,cat,dog,hat,owl", row), test_fraction=0)
    check_read(data)
    assert "labels.csv: empty cells are read as no: dog (1)" in data.notes
    assert "left out 1 column(s) in which no row has a 1: owl" in data.notes


def test_minus_one_next_to_zero_may_mean_uncertain(tmp_path: Path) -> None:
    def row(n: int, labels: tuple[str, ...]) -> str:
        cells = ["1.0" if name in labels else "0.0" for name in ("cat", "dog")]
        if n in (2, 3):  # neither is a cat
            cells[0] = "-1.0"
        return f"{n}.png,{','.join(cells)},{1 if 'hat' in labels else -1}"

    data = load_data(write_table(tmp_path, "path,cat,dog,hat", row), test_fraction=0)
    check_read(data)
    (note,) = [one for one in data.notes if "-1 is read as no" in one]
    assert note.startswith("warning: labels.csv: -1 is read as no, like the 0 next to it: cat (2). ")


def test_empty_cells_in_columns_of_marks_only_are_not_noted(tmp_path: Path) -> None:
    def row(n: int, labels: tuple[str, ...]) -> str:
        return f"{n}.png," + ",".join("x" if name in labels else "" for name in ("cat", "dog", "hat"))

    data = load_data(write_table(tmp_path, "path,cat,dog,hat", row), test_fraction=0)
    check_read(data)
    assert not any("empty cells" in note or "left out" in note for note in data.notes)


def test_rows_without_a_one_are_skipped_with_the_way_to_keep_them(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,cat,dog", lambda n, _: f"{n}.png,{int(n % 3 == 1)},{int(n % 3 == 2)}")
    data = load_data(path, test_fraction=0)
    (note,) = [one for one in data.notes if "skipped 4 row(s) of train without a label" in one]
    assert note.endswith("If a picture may have no label: --set data.multilabel=true")
    assert len(load_data(path, test_fraction=0, multilabel=True).splits["train"]) == COUNT


def test_columns_of_yes_and_no_next_to_a_column_called_like_labels(tmp_path: Path) -> None:
    def row(n: int, labels: tuple[str, ...]) -> str:
        ones = ",".join(str(int(name in labels)) for name in ("cat", "dog", "hat"))
        return f"{n}.png,{('photo', 'drawing')[n % 2]},{ones}"

    path = write_table(tmp_path, "path,type,cat,dog,hat", row)
    data = load_data(path, test_fraction=0)
    assert data.class_names == ("drawing", "photo")
    (note,) = [one for one in data.notes if "the classes are in 'type'" in one]
    assert "(cat, dog, hat): --set data.multilabel=true" in note
    again = load_data(path, test_fraction=0, multilabel=True)
    check_read(again)
    assert not any("columns of yes and no" in one for one in again.notes)
    assert not any("columns of yes" in one for one in load_data(path, label_column="type").notes)
