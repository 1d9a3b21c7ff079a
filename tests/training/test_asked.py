from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thumbnet.errors import RunError
from thumbnet.files import write_json
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.runs.folder import Run
from thumbnet.training.asked import DEFAULT, OWN, check_same_asked, what_was_asked

Asked = tuple[str | Recipe | None, list[str]]


def begun(folder: Path, recipe: str | Path | Recipe | None, overrides: list[str], **more: Any) -> Run:
    """A run that began with this call."""
    write_json(folder / "run.json", {"asked": what_was_asked(recipe, overrides), **more})
    return Run(folder)


def test_the_record_has_the_recipes_name_and_what_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = what_was_asked(None, ["seed=3", "checkpoint.steps=5", "optimizer.lr=0.10", "seed=4"])
    assert asked == {"recipe": DEFAULT, "settings": {"optimizer.lr": 0.1, "seed": 4}}
    monkeypatch.chdir(tmp_path)
    init = what_was_asked("fast", ["training.init=weights.pt"])["settings"]
    assert init == {"training.init": str(tmp_path.resolve() / "weights.pt")}


def test_a_recipe_of_ones_own_is_recorded_by_what_differs_from_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "one-cycle"\n[optimizer]\nlr = 0.07\n')
    asked = what_was_asked(file, ["seed=2"])
    assert (asked["recipe"], asked["settings"]["optimizer.lr"], asked["settings"]["seed"]) == (OWN, 0.07, 2)
    assert not {"name", "description"} & asked["settings"].keys()
    assert asked == what_was_asked(load_recipe(str(file)), ["seed=2"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("fast", ["seed=1", "training.epochs=4"]), ("fast", ["training.epochs=4", "seed=1"])),
        (("fast", ["optimizer.lr=0.1"]), ("fast", ["optimizer.lr=0.10"])),
        ((None, []), (None, ["checkpoint.minutes=1", "data.workers=4", "data.engine=workers"])),
        ((Recipe(), []), (Recipe(name="x"), ["seed=0"])),
    ],
)
def test_a_call_that_asks_the_same_may_be_written_in_another_way(
    first: Asked, second: Asked, tmp_path: Path
) -> None:
    check_same_asked(begun(tmp_path, *first), what_was_asked(*second), None)


CHANGED: list[tuple[Asked, Asked, list[str]]] = [
    (("fast", ["seed=0"]), ("fast", ["seed=1"]), ["seed: was 0, now 1"]),
    (("fast", ["training.epochs=9"]), ("fast", []), ["training.epochs: was 9, now not set"]),
    ((None, []), ("fast", []), ["recipe: was chosen by the data, now fast"]),
    (("fast", []), (Recipe(), ["seed=1"]), ["recipe: was fast, now one of your own"]),
    ((Recipe(), []), (Recipe(seed=5), []), ["seed: was 0, now 5"]),
    (
        ("fast", ["data.fit=pad", "seed=1"]),
        ("small", ["data.fit=crop"]),
        ["recipe: was fast, now small", "data.fit: was 'pad', now 'crop'", "seed: was 1, now not set"],
    ),
]


@pytest.mark.parametrize(("first", "second", "lines"), CHANGED)
def test_a_call_that_asks_for_something_else_is_an_error_that_names_it(
    first: Asked, second: Asked, lines: list[str], tmp_path: Path
) -> None:
    run = begun(tmp_path, *first)
    with pytest.raises(RunError, match="was begun with other settings") as caught:
        check_same_asked(run, what_was_asked(*second), None)
    _, *shown, advice = str(caught.value).split("\n")
    assert [line.strip() for line in shown] == lines
    assert "--out" in advice
    assert f"train --resume {tmp_path}" in advice
    for name in ("summary.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(RunError) as caught:
        check_same_asked(run, what_was_asked(*second), None)
    assert "--resume" not in str(caught.value)


LOSS = "mine.own:focal"


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ({"training.loss": "a"}, {"training.loss": "a"}, True),
        ({"training.loss": "a"}, {"training.loss": "b"}, False),
        ({"training.loss": "a"}, {}, True),  # its file cannot be read now
        (None, {"training.loss": "b"}, True),  # an earlier version kept no record
    ],
)
def test_other_code_of_the_users_own_is_another_call(
    before: dict[str, str] | None,
    now: dict[str, str],
    same: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("thumbnet.training.asked.code_digests", lambda recipe: now)
    overrides = [f"training.loss={LOSS}", "training.label_smoothing=0"]
    run = begun(tmp_path, "fast", overrides, **({} if before is None else {"code": before}))
    run.write_recipe(load_recipe("fast", overrides))
    asked = what_was_asked("fast", overrides)
    check_same_asked(run, asked, None)  # nothing has been trained with that code
    (tmp_path / "checkpoint.pt").touch()
    if same:
        check_same_asked(run, asked, None)
        return
    with pytest.raises(RunError, match="was begun with other code") as caught:
        check_same_asked(run, asked, None)
    assert f"training.loss: the file with {LOSS} has changed" in str(caught.value)
    assert "with the code as it is now: " in str(caught.value)


def test_code_is_compared_once_something_that_it_has_trained_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = {"model.name": "b"}
    monkeypatch.setattr("thumbnet.training.asked.code_digests", lambda recipe: digest)
    run = begun(tmp_path, "linear", [], code={"model.name": "a"})
    run.write_recipe(load_recipe("linear", []))
    asked = what_was_asked("linear", [])
    (tmp_path / "checkpoint.pt").touch()
    check_same_asked(run, asked, None)  # a run whose last layer is fitted as a whole begins again
    for name in ("summary.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(RunError, match="was begun with other code"):
        check_same_asked(run, asked, None)


def test_another_time_is_another_call_also_for_runs_without_a_record(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"minutes": 2.0})
    run, asked = Run(tmp_path), what_was_asked("fast", ["seed=1"])
    check_same_asked(run, asked, 2)
    with pytest.raises(RunError, match=r"minutes: was 2\.0, now not set"):
        check_same_asked(run, asked, None)


def test_a_record_that_newer_defaults_do_not_change(tmp_path: Path) -> None:
    """An earlier version recorded what was no default then, and is one now."""
    assert what_was_asked(Recipe(), []) == {"recipe": OWN, "settings": {}}
    record = {"recipe": OWN, "settings": {"training.keep": Recipe().training.keep}}
    write_json(tmp_path / "run.json", {"asked": record})
    run = Run(tmp_path)
    check_same_asked(run, what_was_asked(Recipe(), []), None)
    with pytest.raises(RunError, match=r"training\.keep: was 'auto', now 'last'"):
        check_same_asked(run, what_was_asked(Recipe(), ["training.keep=last"]), None)


@pytest.mark.parametrize("record", [3, {}, {"recipe": 1, "settings": {}}, {"recipe": "fast", "settings": []}])
def test_a_damaged_record_is_an_error(record: object, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"asked": record}))
    with pytest.raises(RunError, match=r"run\.json: asked"):
        check_same_asked(Run(tmp_path), what_was_asked(None, []), None)
