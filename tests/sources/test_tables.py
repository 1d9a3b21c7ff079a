from __future__ import annotations

from pathlib import Path

import pytest

from thumbnet.errors import DataError
from thumbnet.sources.tables import read_table


def table(tmp_path: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_header_rows_and_line_numbers_are_read_with_any_separator(separator: str, tmp_path: Path) -> None:
    text = "\n".join(separator.join(row) for row in (["file", "label"], ["a.png", "cat"], ["b.png", "dog"]))
    found = read_table(table(tmp_path, text))
    assert (found.header, found.names) == (True, ["file", "label"])
    assert found.rows == [["a.png", "cat"], ["b.png", "dog"]]
    assert found.lines == [2, 3]
    assert found.column("label") == ["cat", "dog"]


def test_without_a_header_columns_are_numbered(tmp_path: Path) -> None:
    found = read_table(table(tmp_path, "a.png,3\nb.png,4\n"))
    assert (found.header, found.names) == (False, ["column 1", "column 2"])
    assert len(found.rows) == 2


def test_a_quoted_cell_may_span_lines(tmp_path: Path) -> None:
    found = read_table(table(tmp_path, 'file,label\na.png,"two\nlines"\nb.png,x\n'))
    assert found.column("label") == ["two\nlines", "x"]
    assert found.lines == [2, 4]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_the_encoding_is_detected(encoding: str, tmp_path: Path) -> None:
    found = read_table(table(tmp_path, "file,label\na.png,caf\xe9\n".encode(encoding)))
    assert found.names == ["file", "label"]
    assert found.column("label") == ["caf\xe9"]
    assert len(found.notes) == (encoding == "cp1252")


def test_json_lines_are_read_as_a_table(tmp_path: Path) -> None:
    lines = '{"file": "a.png", "label": 3}\n{"file": "b.png", "label": null}\n'
    found = read_table(table(tmp_path, lines, "x.jsonl"))
    assert found.names == ["file", "label"]
    assert found.rows[0] == ["a.png", "3"]


def test_a_limit_reads_only_the_first_rows(tmp_path: Path) -> None:
    path = table(tmp_path, "file,label\n" + "a.png,cat\n" * 100)
    assert len(read_table(path, limit=3).rows) == 3


@pytest.mark.parametrize("content", [b"\x00\x01\x02" * 50, b"a,b\n1,2,3\n", b'{"a": 1'])
def test_errors_about_files_that_are_not_tables_name_the_file(content: bytes, tmp_path: Path) -> None:
    name = "x.jsonl" if content.startswith(b"{") else "x.csv"
    with pytest.raises(DataError, match=name):
        read_table(table(tmp_path, content, name))


@pytest.mark.parametrize("header", ["Male Young", "image_id Male Young"])
def test_a_table_may_begin_with_its_number_of_rows(header: str, tmp_path: Path) -> None:
    text = f"2\n{header}\na.jpg -1  1\nb.jpg  1 -1\n"
    for limit in (None, 2):
        found = read_table(table(tmp_path, text, "list_attr_celeba.txt"), limit)
        assert found.names[1:] == ["Male", "Young"]
        assert found.rows == [["a.jpg", "-1", "1"], ["b.jpg", "1", "-1"]]
        assert found.lines == [3, 4]
    with pytest.raises(DataError, match=r"line 5: 2 cell\(s\), but line 3 has 3"):
        read_table(table(tmp_path, text + "c.jpg 1\n"))


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"'])
def test_excels_line_about_the_separator_is_no_row(first: str, tmp_path: Path) -> None:
    found = read_table(table(tmp_path, f"{first}\nimage;label\na.png;x, y\n"))
    assert (found.names, found.rows, found.lines) == (["image", "label"], [["a.png", "x, y"]], [3])


def test_a_quote_may_follow_a_space(tmp_path: Path) -> None:
    path = table(tmp_path, 'image, label\n0.png, "cat"\n1.png, "dog, brown"\n')
    assert read_table(path).rows == [["0.png", "cat"], ["1.png", "dog, brown"]]
