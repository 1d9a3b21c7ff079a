from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from correction_helpers import HEADER, drop, relabel, unsure
from thumbnet.data.corrections import (
    Correction,
    corrections_csv,
    corrections_of,
    parse_corrections,
    read_corrections,
    write_corrections,
)
from thumbnet.errors import DataError, RunError


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    corrections = [
        relabel("cat/1.png", "dog", "cat"),
        Correction("dog/2.png", "test", "dog", "dog", "confirm"),
        drop('odd, "name"\n.png', "cat"),
        unsure("val/\udcff.png", "dog", "val"),
        Correction("/new/3.png", "train", "", "cat", "relabel"),
    ]
    path = tmp_path / "labels.csv"
    write_corrections(path, corrections)
    assert read_corrections(path) == corrections
    assert path.read_text("utf-8", "surrogateescape").startswith(HEADER + "cat/1.png,dog,train,cat,relabel\n")
    write_corrections(path, [])
    assert path.read_text() == HEADER
    assert read_corrections(path) == []


@example("a\rb.png", False)
@example("\rb.png", True)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12),
    st.booleans(),
)
def test_any_name_survives_the_file(name: str, added: bool) -> None:
    if name.strip():
        one = Correction(name, "train", "" if added else "a", "b", "relabel")
        assert parse_corrections(corrections_csv([one]), "labels.csv") == [one]


def test_the_last_decision_about_a_picture_counts_with_the_class_it_had_at_first() -> None:
    rows = [
        relabel("1.png", "b", "a"),
        relabel("2.png", "b", "a"),
        relabel("1.png", "c", "a", split="test"),  # another picture
        drop("2.png", "b"),
        Correction("1.png", "train", "b", "b", "confirm"),  # a later review of the corrected data
    ]
    found = parse_corrections(corrections_csv(rows), "x")
    assert found == [relabel("1.png", "c", "a", split="test"), drop("2.png", "a"), relabel("1.png", "b", "a")]
    back = [relabel("1.png", "b", "a"), relabel("1.png", "a", "b")]
    assert parse_corrections(corrections_csv(back), "x") == [
        Correction("1.png", "train", "a", "a", "confirm")
    ]


def test_what_spreadsheets_and_people_write_is_read() -> None:
    text = (
        "\ufeffdecision;picture;was;label;Split;remark\r\n"
        " Relabel ;1.png;a;b;;mine\r\n\r\nDROP;2.png;a;b;all;\r\nconfirm;3.png;a;;calibration;\r\n"
    )
    found = parse_corrections(text.encode(), "labels.csv")
    assert found == [
        relabel("1.png", "b", "a"),
        drop("2.png", "a"),
        Correction("3.png", "train", "a", "a", "confirm"),
    ]
    assert [one.line for one in found] == [2, 4, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: there is no column 'picture'"),
        (b"image,label\n1.png,a\n", "line 1: there is no column 'picture'.*picture,label,split,was,decision"),
        (b"picture,label,split,was,decision,was\n", "two columns are called 'was'"),
        (HEADER.encode() + b"1.png,b,train,a\n", "line 2: 4 cells, but the header has 5"),
        (
            HEADER.encode() + b"\n1.png,b,train,a,relable\n",
            "line 3: there is no decision 'relable'. Did you mean",
        ),
        (
            HEADER.encode() + b"1.png,b,tests,a,relabel\n",
            "line 2: there is no split 'tests'. Did you mean 'test'",
        ),
        (
            HEADER.encode() + b"1.png,,train,a,relabel\n",
            "line 2: the decision is relabel, but the row has no",
        ),
        (HEADER.encode() + b"1.png,,train,,confirm\n", "line 2: the decision is confirm, but the row has no"),
        (HEADER.encode() + b"1.png,b,train,a,confirm\n", "line 2: confirms the class 'b', but .* was in 'a'"),
        (HEADER.encode() + b" ,b,train,a,relabel\n", "line 2: the row names no picture"),
        (HEADER.encode() + b"1.png,K\xe4se,train,a,relabel\n", "line 2: the class .* is not UTF-8"),
        (HEADER.encode() + b'"1.png,b,train,a,relabel\n', "line 2: unexpected end of data"),
        ((HEADER + "1.png,b,train,a,relabel\n").encode("utf-16"), "not a text file in UTF-8"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_corrections(tmp_path / "labels.csv")


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_are_corrections_that_survive_writing_or_an_error(content: bytes, header: bool) -> None:
    try:
        found = parse_corrections(HEADER.encode() * header + content, "labels.csv")
    except DataError:
        return
    assert parse_corrections(corrections_csv(found), "labels.csv") == found


def test_a_file_that_cannot_be_read_or_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the corrections in .*none\.csv: No such file"):
        read_corrections(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"labels\.csv: No such file"):
        read_corrections(tmp_path)  # a folder: its labels.csv
    with pytest.raises(RunError, match="cannot write"):
        write_corrections(tmp_path / "none" / "labels.csv", [])


def test_of_several_files_the_later_decisions_win(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_corrections(tmp_path / "a" / "labels.csv", [relabel("1.png", "dog", "cat"), drop("2.png", "cat")])
    write_corrections(tmp_path / "b.csv", [relabel("2.png", "bird", "dog")])
    first, second = relabel("1.png", "dog", "cat"), relabel("2.png", "bird", "cat")
    assert corrections_of([tmp_path / "a", str(tmp_path / "b.csv")]) == [first, second]
    assert corrections_of([str(tmp_path / "b.csv"), drop("1.png", "cat")]) == [
        relabel("2.png", "bird", "dog"),
        drop("1.png", "cat"),
    ]
    assert corrections_of([tmp_path / "b.csv", tmp_path / "a"])[-1] == drop("2.png", "dog")


def test_paths_in_several_files_start_from_the_folder_of_each(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
        new = [Correction("1.png", "train", "", "cat", "relabel")]
        write_corrections(tmp_path / folder / "labels.csv", new)
    found = corrections_of([tmp_path / "a", tmp_path / "b"])
    assert [one.name for one in found] == [str(tmp_path / folder / "1.png") for folder in ("a", "b")]
