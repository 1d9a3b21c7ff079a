"""Lists that are safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import os

import pytest

from thumbnet.reports.listings import as_csv, safe_name, safe_text

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
    safe = safe_name(formula)
    assert safe == f"./{formula}"
    assert os.path.normpath(safe) == os.path.normpath(formula)


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_text_that_looks_like_a_formula_begins_with_an_apostrophe(formula: str) -> None:
    assert safe_text(formula) == f"'{formula}"


@pytest.mark.parametrize("text", ["cats/=1.png", "train[3]", "-", "a=b", "", "'quoted'", "dog; =1+1"])
def test_other_cells_stay_as_they_are(text: str) -> None:
    assert safe_name(text) == safe_text(text) == text


@pytest.mark.parametrize("number", ["-1", "+1", "-0.5", "7"])
def test_a_class_that_is_a_number_keeps_its_sign(number: str) -> None:
    assert safe_text(number) == number


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
