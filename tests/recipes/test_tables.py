from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from thumbnet.errors import RecipeError
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.tables import build, differences, known_keys, plain, unknown_key


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()
    size: str | tuple[float, ...] = "auto"
    limit: float | None = None


@dataclass(frozen=True)
class Outer:
    required: int
    on: bool = False
    inner: Inner = field(default_factory=Inner)


def test_missing_keys_get_their_defaults_and_integers_become_floats() -> None:
    built = build(Outer, {"required": 1, "inner": {"rate": 2, "names": ["a"]}})
    assert built == Outer(1, inner=Inner(2.0, ("a",)))
    assert type(built.inner.rate) is float


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "recipe key 'required' is missing"),
        ({"required": 1.5}, "recipe key 'required' is 1.5: expected a whole number"),
        ({"required": True}, "recipe key 'required' is True: expected a whole number"),
        ({"required": 1, "on": 1}, "recipe key 'on' is 1: expected true or false"),
        ({"required": 1, "inner": 3}, "recipe key 'inner' is 3: expected a table"),
        ({"required": 1, "inner": {"rate": True}}, "recipe key 'inner.rate' is True: expected a number"),
        ({"required": 1, "inner": {"names": "a"}}, "recipe key 'inner.names' is 'a': expected a list"),
        ({"required": 1, "inner": {"names": [1]}}, "recipe key 'inner.names' is 1: expected a string"),
        ({"required": 1, "inner": {"size": 3}}, "'inner.size' is 3: expected a string or a list of numbers"),
        ({"required": 1, "inner": {"limit": "x"}}, "recipe key 'inner.limit' is 'x': expected a number"),
        ({"required": 1, "inner": {"rat": 1}}, "unknown recipe key 'inner.rat': did you mean 'inner.rate'"),
        ({"required": 1, "rate": 1}, "unknown recipe key 'rate': did you mean 'inner.rate'"),
    ],
)
def test_the_error_names_the_wrong_key(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(Outer, settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [10**30, -(10**400), 2**63, 1e39, -1e308])
def test_numbers_that_pytorch_does_not_take_are_refused(value: float) -> None:
    whole = isinstance(value, int)
    for key in ("training.max_skips", "optimizer.lr") if whole else ("optimizer.lr",):
        section, _, name = key.partition(".")
        with pytest.raises(RecipeError, match=rf"recipe key '{key}' (has \d+ digits|is .*32 bits)"):
            build(Recipe, {section: {name: value}})
    build(Recipe, {"training": {"max_skips": 2**63 - 1}, "optimizer": {"lr": 3e38}})


def test_the_error_for_an_unknown_key_lists_its_siblings_and_suggests_only_similar_keys() -> None:
    error = str(unknown_key("inner.qqqq", known_keys(Outer)))
    assert error.endswith("Known keys here: inner.rate, inner.names, inner.size, inner.limit.")
    assert str(unknown_key("qqqq", ["a", "b.c"])) == "unknown recipe key 'qqqq'. Known keys here: a."


def test_known_keys_are_dotted() -> None:
    assert known_keys(Outer) == ["required", "on", "inner.rate", "inner.names", "inner.size", "inner.limit"]


def test_plain_tables_have_lists_instead_of_tuples_and_no_none() -> None:
    assert plain({"a": (1, {"b": None, "c": 2}), "d": None}) == {"a": [1, {"c": 2}]}


def test_only_differences_are_left() -> None:
    base = {"a": 1, "b": {"c": 1, "d": [1]}, "e": {"f": 2}}
    assert differences({"a": 1, "b": {"c": 2, "d": [1]}, "e": {"f": 2}}, base) == {"b": {"c": 2}}
    assert differences({"a": 1, "b": {"c": 1, "d": [1, 2]}, "e": {"f": 2}}, base) == {"b": {"d": [1, 2]}}
    assert differences(base, base) == {}
    assert differences({"new": 1}, base) == {"new": 1}
