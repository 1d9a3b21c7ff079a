"""Lists that are safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import thumbnet
from thumbnet.data.listings import (
    as_csv,
    csv_text,
    guarded_name,
    guarded_text,
    safe_name,
    safe_text,
    unguarded_name,
    unguarded_text,
)

FORMULAS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "  =1+1",
    "＝1+1",
    "＠SUM(A1)",
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_name_that_looks_like_a_formula_becomes_a_path_to_the_same_file(formula: str) -> None:
    safe = guarded_name(formula)
    assert safe == f"./{formula}"
    assert os.path.normpath(safe) == os.path.normpath(formula)


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_text_that_looks_like_a_formula_begins_with_an_apostrophe(formula: str) -> None:
    assert guarded_text(formula) == f"'{formula}"


@pytest.mark.parametrize("text", ["cats/=1.png", "train[3]", "-", "a=b", "", "'quoted'", "dog; =1+1"])
def test_other_cells_stay_as_they_are(text: str) -> None:
    assert safe_name(text) == safe_text(text) == text


@pytest.mark.parametrize("number", ["-1", "+1", "-0.5", "7"])
def test_a_class_that_is_a_number_keeps_its_sign(number: str) -> None:
    assert safe_text(number) == number


@given(st.text("=+-@'./ \t\n\r＝1a\x1b", max_size=8))
def test_every_guard_can_be_taken_off_again(text: str) -> None:
    assert unguarded_name(guarded_name(text)) == text
    assert unguarded_text(guarded_text(text)) == text


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("\x1b]0;PWNED\x07\x1b[2J.png", r"\x1b]0;PWNED\x07\x1b[2J.png"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\nb", r"a\nb"),
        ("\udcff.png", r"\udcff.png"),
        ("Screenshot 3.00\u202fPM.png", "Screenshot 3.00\u202fPM.png"),
        ("鲸\u3000👩‍🚀.png", "鲸\u3000👩‍🚀.png"),
    ],
)
def test_a_list_for_people_escapes_what_a_terminal_obeys_and_nothing_else(name: str, cell: str) -> None:
    assert safe_name(name) == safe_text(name) == cell


def test_cells_with_commas_quotes_and_line_breaks_are_read_back() -> None:
    rows: list[list[str | float]] = [['a "b", c\nd;=1+1', "red", 0.25], ["<b>", "", 1.0]]
    text = as_csv(["picture", "label", "doubt"], rows)
    assert list(csv.reader(io.StringIO(text))) == [
        ["picture", "label", "doubt"],
        ['a "b", c\nd;=1+1', "red", "0.25"],
        ["<b>", "", "1.0"],
    ]
    assert ';"' not in text  # a spreadsheet that divides cells at semicolons finds none outside quotes
    assert text.startswith('"picture","label","doubt"\n')


def test_a_row_with_a_carriage_return_is_quoted_and_others_keep_their_bytes() -> None:
    rows: list[list[object]] = [["a,b", "c", 0.5, None], ["d\re", "f", 0.5, None], ["g\nh", 'i"']]
    text = csv_text(rows)
    assert text == '"a,b",c,0.5,\n"d\re","f","0.5",""\n"g\nh","i"""\n'
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read == [["a,b", "c", "0.5", ""], ["d\re", "f", "0.5", ""], ["g\nh", 'i"']]


def test_every_csv_file_is_formatted_by_this_module() -> None:
    root = Path(thumbnet.__file__).parent
    writes = {path.name for path in root.rglob("*.py") if "csv.writer(" in path.read_text("utf-8")}
    assert writes == {"listings.py"}
    assert not [path for path in root.rglob("*.py") if "DictWriter(" in path.read_text("utf-8")]
