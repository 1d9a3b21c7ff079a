from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from thumbnet.recipes.settings import GroupSettings
from thumbnet.reports.comparison import group_runs
from thumbnet.reports.repetitions import description, differing, recipe_difference
from thumbnet.runs.folder import Run

Make = Callable[..., Run]


def test_runs_that_the_user_ended_early_are_no_repetitions_of_whole_ones(make: Make) -> None:
    runs = [make(0.9, seed) for seed in range(4)]
    for run, step in zip(runs[1:], (5, 5, 6), strict=True):
        stop = {
            "epoch": 2, "planned_epochs": 3, "step": step, "planned_steps": 9, "watched": None, "patience": 0,
            "why": "ended on request",
        }  # fmt: skip
        (run.path / "summary.json").write_text(json.dumps({**run.summary, "stopped_early": stop}))
    groups = group_runs(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [
        ("one-cycle", 1), ("one-cycle, ended early", 2), ("one-cycle, ended early (2)", 1),
    ]  # fmt: skip


def timed(run: Run, minutes: float | None, steps: int, **plan: Any) -> Run:
    """Turn a run into one of ``--minutes``, whose clock allowed this many steps."""
    recipe = run.recipe
    training = replace(recipe.training, steps=steps, epochs=2)
    run.write_recipe(replace(recipe, training=training, schedule=replace(recipe.schedule, **plan)))
    settings = run.settings if minutes is None else {**run.settings, "minutes": minutes}
    (run.path / "run.json").write_text(json.dumps(settings))
    return run


def test_repeated_seeds_of_the_same_time_form_one_group_however_many_steps_the_clock_allowed(
    make: Make,
) -> None:
    first = timed(make(0.9, 0), 2, 40)
    second = timed(make(0.92, 1), 2, 30, planned_at=(0, 10), planned_steps=(40, 30))
    longer, counted = timed(make(0.94, 2), 3, 40), timed(make(0.96, 3), None, 40)
    groups = group_runs([first, second, longer, counted])
    assert [group.runs for group in groups] == [(first, second), (longer,), (counted,)]


def test_repeated_seeds_of_the_same_time_form_one_group_if_the_clock_chose_other_batches(make: Make) -> None:
    runs = [timed(make(0.9, seed, lr), 2, 40) for seed, lr in ((0, 0.05), (1, 0.05), (2, 0.1))]
    for run, size, every in zip(runs, (61, 63, 61), (2, 3, 2), strict=True):
        recipe = run.recipe.with_batch_size(size)
        run.write_recipe(replace(recipe, evaluation=replace(recipe.evaluation, every=every)))
    assert [len(group.runs) for group in group_runs(runs)] == [2, 1]


def test_settings_that_change_no_result_do_not_separate_repetitions(make: Make) -> None:
    runs = [make(0.9, seed) for seed in range(3)]
    settings = ["data.workers=3", "data.engine=workers", "data.images=/another/place"]  # of the same pictures
    runs[1].write_recipe(runs[1].recipe.override(settings))
    # The batches have their final size, so no more of `min_steps` is left to do.
    more = ["checkpoint.minutes=3", "checkpoint.steps=7", "training.min_steps=7"]
    runs[2].write_recipe(runs[2].recipe.override(more))
    assert [len(group.runs) for group in group_runs(runs)] == [3]


def continuing(run: Run, seed: int, name: str) -> Run:
    """A copy of a run that says that it continues ``run``, as ``--more-epochs`` makes it."""
    copied = Run(Path(shutil.copytree(run.path, run.path.parent / name)))
    settings = [f"training.init={run.path}", f"seed={seed}", f"data.subset_seed={run.recipe.seed}"]
    copied.write_recipe(run.recipe.override([*settings, "data.subset_size=30"]))
    record = {"run": str(run.path), "epochs": 3}
    (copied.path / "run.json").write_text(json.dumps({**run.settings, "continues": record}))
    return copied


def test_runs_that_continue_repetitions_are_repetitions(make: Make) -> None:
    more = [continuing(make(0.9, seed), 10 + seed, f"more-{seed}") for seed in range(3)]
    assert [len(group.runs) for group in group_runs(more)] == [3]
    again = [continuing(run, 20 + run.recipe.seed, f"again-{run.recipe.seed}") for run in more]
    for run in again:  # the pictures are those of the first run
        run.write_recipe(run.recipe.override([f"data.subset_seed={run.recipe.seed - 30}"]))
    assert [len(group.runs) for group in group_runs(again)] == [3]
    other = continuing(make(0.9, 0, lr=0.2), 13, "other")
    other.write_recipe(replace(other.recipe, optimizer=more[0].recipe.optimizer))
    found = group_runs([*more, other])
    assert [len(group.runs) for group in found] == [3, 1], "it continues a run of another recipe"
    assert [list(group.settings) for group in found] == [["training.init"]] * 2
    assert found[1].settings["training.init"].endswith("0.2-0")


def test_a_continued_run_that_is_gone_or_damaged_or_goes_round_in_a_circle_stands_for_itself(
    make: Make,
) -> None:
    runs = [make(0.9, seed) for seed in range(3)]
    more = [continuing(run, 10, f"more-{run.recipe.seed}") for run in runs]
    (runs[2].path / "recipe.toml").write_text("no recipe")
    shutil.rmtree(runs[0].path)
    assert [len(group.runs) for group in group_runs(more)] == [1, 1, 1]
    record = {"continues": {"run": str(more[1].path), "epochs": 3}}
    (runs[1].path / "run.json").write_text(json.dumps({**runs[1].settings, **record}))
    assert len(group_runs([more[1]])) == 1


def test_a_group_has_the_settings_in_which_the_groups_differ(make: Make) -> None:
    runs = [make(0.9, 0), make(0.91, 1), make(0.8, 2, lr=0.1)]
    wide = make(0.95, 3, name="wide")
    wide.write_recipe(replace(wide.recipe, name="wide", model=replace(wide.recipe.model, width=2.0)))
    groups = group_runs([*runs, wide])
    found = [dict(group.settings) for group in groups]
    width = runs[0].recipe.model.width
    assert found == [
        {"optimizer.lr": 0.05, "model.width": width},
        {"optimizer.lr": 0.1, "model.width": width},
        {"optimizer.lr": 0.05, "model.width": 2.0},
    ]
    assert list(found[0]) == ["optimizer.lr", "model.width"]  # first what differs under one name
    assert group_runs(runs[:2])[0].settings == {}


def test_what_the_clock_decided_is_not_a_setting_that_differs(make: Make) -> None:
    first = timed(make(0.9, 0), 2, 40)
    second = timed(make(0.92, 1), 3, 60, planned_at=(0, 10), planned_steps=(40, 60))
    second.write_recipe(second.recipe.with_batch_size(63))
    assert [dict(group.settings) for group in group_runs([first, second])] == [{"minutes": 2}, {"minutes": 3}]


def test_runs_of_the_same_recipe_on_other_training_pictures_differ_in_the_fingerprint(make: Make) -> None:
    groups = group_runs([make(0.9, measured="m"), make(0.9, 1, fingerprint="more", measured="m")])
    assert [dict(group.settings) for group in groups] == [{"fingerprint": "same"}, {"fingerprint": "more"}]


def test_the_settings_of_groups_of_parameters_are_named_by_their_patterns(make: Make) -> None:
    runs = []
    for seed, lr in enumerate((0.1, 0.2)):
        run = make(0.9, seed)
        groups = (GroupSettings(match="*.bias", lr=lr),)
        run.write_recipe(replace(run.recipe, optimizer=replace(run.recipe.optimizer, groups=groups)))
        runs.append(run)
    assert [dict(group.settings) for group in group_runs(runs)] == [
        {"optimizer.groups *.bias lr": 0.1},
        {"optimizer.groups *.bias lr": 0.2},
    ]


def test_folds_of_one_recipe_differ_only_in_what_a_fold_has_of_its_own(make: Make) -> None:
    numbers = itertools.count()

    def fold(number: int, asked: dict[str, Any] | None, *settings: str, **given: Any) -> Run:
        run = make(0.9, name=f"run-{next(numbers)}", fingerprint=str(number), **given)
        run.write_recipe(run.recipe.override(["data.folds=2", f"data.fold={number}", *settings]))
        record = {key: value for key, value in run.settings.items() if key != "asked"}
        (run.path / "run.json").write_text(
            json.dumps(record if asked is None else {**record, "asked": asked})
        )
        return run

    def asked(number: int, **settings: Any) -> dict[str, Any]:
        return {"recipe": "one-cycle", "settings": {"data.folds": 2, "data.fold": number, **settings}}

    init = {"training.init": "/a.pt"}
    # Runs without a record of what was asked are compared by their whole recipes.
    assert recipe_difference(fold(1, None), fold(2, None, "seed=3")) is None
    assert (
        recipe_difference(fold(1, None, "data.workers=2"), fold(2, None, "training.epochs=4"))
        == "training.epochs"
    )
    # What thumbnet fitted to the pictures of a fold is not what was asked.
    one, other = (
        fold(1, asked(1), "training.batch_size=8"),
        fold(2, asked(2, seed=3), "training.batch_size=4"),
    )
    assert recipe_difference(one, other) is None
    assert recipe_difference(one, fold(2, asked(2, **{"optimizer.lr": 1.0}), lr=1.0)) == "optimizer.lr"
    started = [
        fold(1, asked(1, **init), "training.init='/a.pt'"),
        fold(2, asked(2, **init), "training.init='/b.pt'"),
    ]
    assert recipe_difference(*started) is None
    assert recipe_difference(one, started[1]) in ("training.init", "training.batch_size")


def test_runs_are_repetitions_if_their_descriptions_agree(make: Make) -> None:
    first, again, faster = make(0.9), make(0.8, 1), make(0.9, lr=0.1)
    assert description(first) == description(again) != description(faster)
    assert differing([first, again], [None, None]) == [{}, {}]
    assert differing([first, faster], [None, None]) == [{"optimizer.lr": 0.05}, {"optimizer.lr": 0.1}]
