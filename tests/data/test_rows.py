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
