"""The fields of a stranger's description are checked, and errors name the field in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from thumbnet.runs.fields import flag, items, number, numbers, shown, table, text, whole


def test_values_of_the_right_kind_are_returned() -> None:
    assert table({"a": 1, "c": 2}, "x", ("a",), ("b", "c")) == {"a": 1, "c": 2}
    assert (text("", "x"), number(1, "x", 1, 1), whole(3, "x", 3, 3)) == ("", 1.0, 3)
    assert (flag(True, "x"), flag(False, "x")) == (True, False)
    assert (items((1, "a"), "x"), numbers([0, 0.5], "x", 2, 0, 1)) == ([1, "a"], (0.0, 0.5))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: table([], "x", ()), r"x is \[\]: expected a JSON object"),
        (lambda: table({"b": 1}, "x", ("a",)), "x has an unknown entry 'b'"),
        (lambda: table({}, "x", ("a",)), "x lacks the entry 'a'"),
        (lambda: text(3, "x"), "x is 3: expected text"),
        (lambda: number(True, "x"), "x is True: expected a finite number"),
        (lambda: number(math.inf, "x"), "x is inf"),
        (lambda: number(10**400, "x"), "expected a finite number"),
        (lambda: number(2, "x", 0, 1), "x is 2: expected a finite number from 0 to 1"),
        (lambda: whole(1.0, "x", 0, 3), "x is 1.0: expected a whole number from 0 to 3"),
        (lambda: whole(4, "x", 0, 3), "x is 4"),
        (lambda: flag(1, "x"), "x is 1: expected true or false"),
        (lambda: items("ab", "x"), "x is 'ab': expected a list"),
        (lambda: numbers([1], "x", 2), r"x is \[1\]: expected a list of 2"),
    ],
)
def test_any_other_value_is_refused_by_the_name_of_its_field(check: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check()


def test_a_long_value_is_cut_short() -> None:
    assert len(shown("x" * 10_000)) < 100
    assert shown(10**5000) == "a huge number"
