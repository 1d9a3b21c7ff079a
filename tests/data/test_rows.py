from __future__ import annotations

import pytest

from thumbnet.data.rows import numbered_rows
from thumbnet.errors import DataError


def test_rows_have_the_number_of_their_first_line_and_blank_ones_are_left_out() -> None:
    lines = ["a;b\n", "\n", " ; \n", '"two\n', 'lines";c\n', "d;e\n"]
    assert list(numbered_rows(lines, ";", "x.csv")) == [
        (1, ["a", "b"]),
        (4, ["two\nlines", "c"]),
        (6, ["d", "e"]),
    ]


def test_the_error_names_the_file_and_the_line() -> None:
    with pytest.raises(DataError, match=r"^x\.csv, line 2: "):
        list(numbered_rows(["a,b\n", '"a"b,c\n'], ",", "x.csv"))


def test_spaces_before_a_cell_are_kept_unless_they_are_to_be_skipped() -> None:
    assert list(numbered_rows(["a, b\n"], ",", "x.csv")) == [(1, ["a", " b"])]
    assert list(numbered_rows(['a, "b"\n'], ",", "x.csv", skip_spaces=True)) == [(1, ["a", "b"])]
