from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import TINY, coloured_data
from thumbnet.batches.prepare import prepare
from thumbnet.classifiers.logits import collect_logits, collect_views
from thumbnet.classifiers.temperature import fit_temperature
from thumbnet.evaluation import Evaluation
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.summaries import check_summary
from thumbnet.training import results
from thumbnet.training.build import build_state
from thumbnet.training.epochs import EpochResult, Score
from thumbnet.training.listener import Listener
from thumbnet.training.results import (
    Findings,
    Measured,
    RepeatTeller,
    measure,
    summary_of,
    with_choices,
)
from thumbnet.training.state import TrainingState

CPU = torch.device("cpu")
NAMES = ("red", "green", "blue")


def made(*overrides: str, splits: tuple[str, ...] = ("train", "val", "test")) -> Any:
    recipe = load_recipe("one-cycle", [*TINY, *overrides])
    prepared = prepare(coloured_data(splits=splits), recipe, CPU)
    return build_state(recipe, prepared, NAMES, CPU), prepared


def test_the_network_is_calibrated_on_val_and_measured_on_test() -> None:
    state, prepared = made()
    measured = measure(state.model, state, prepared, NAMES, None)
    assert (measured.split, measured.calibrated_on, measured.calibration_pictures) == ("test", "val", 60)
    assert isinstance(measured.headline, Evaluation)
    assert measured.headline.pictures == 60
    assert measured.temperature != 1.0
    assert measured.thresholds is not None
    assert (measured.thresholds.split, measured.thresholds.pictures) == ("val", 60)
    assert measured.unlike is not None
    assert (measured.unlike.pictures, measured.unlike.passed) == (60, 1.0)
    summary = summary_of(state, measured, Findings(), 0.0, 0)
    assert summary["thresholds"]["pictures"] == summary["unlike"]["pictures"] == 60
    assert summary["balanced_accuracy"] == measured.headline.balanced_accuracy
    json.dumps(summary)


def test_the_accuracy_and_the_thresholds_allow_for_groups() -> None:
    state, prepared = made()
    plain = measure(state.model, state, prepared, NAMES, None)
    of_test, of_val = (np.array([f"p{n // each}" for n in range(60)], dtype=object) for each in (20, 10))
    grouped = measure(
        state.model, state, replace(prepared, groups={"test": of_test, "val": of_val}), NAMES, None
    )
    assert isinstance(plain.headline, Evaluation)
    assert isinstance(grouped.headline, Evaluation)
    assert (plain.headline.groups, grouped.headline.groups) == (None, 3)
    assert replace(grouped.headline, groups=None, interval=plain.headline.interval) == plain.headline
    assert plain.thresholds is not None
    assert grouped.thresholds is not None
    assert (plain.thresholds.groups, grouped.thresholds.groups) == (None, 6)
    summaries = [summary_of(state, one, Findings(), 0.0, 0) for one in (plain, grouped)]
    assert not {"measured_pictures", "measured_groups"} & summaries[0].keys()
    assert "groups" not in summaries[0]["thresholds"]
    assert (summaries[1]["measured_pictures"], summaries[1]["measured_groups"]) == (60, 3)
    assert summaries[1]["accuracy_interval"] == list(grouped.headline.interval)
    assert isinstance(grouped.val, Evaluation)
    assert "measured_groups" not in summaries[0]["val"]
    assert (summaries[1]["val"]["measured_pictures"], summaries[1]["val"]["measured_groups"]) == (60, 6)
    assert summaries[1]["val"]["accuracy_interval"] == list(grouped.val.interval)
    for summary in summaries:
        check_summary(json.loads(json.dumps(summary)))


def test_the_summary_has_the_results_on_val_too_if_test_is_reported() -> None:
    for settings in ((), ("data.calibration_pictures=0",)):
        state, prepared = made(*settings)
        measured = measure(state.model, state, prepared, NAMES, None)
        assert isinstance(measured.val, Evaluation)
        assert measured.headline is not None
        assert measured.val.pictures == 60
        summary = summary_of(state, measured, Findings(), 0.0, 0)
        expected = (measured.val.accuracy, measured.val.balanced_accuracy, list(measured.val.interval))
        found = summary["val"]
        assert (found["accuracy"], found["balanced_accuracy"], found["accuracy_interval"]) == expected
        assert summary["split"] == "test"
        assert summary["accuracy"] == measured.headline.accuracy
        state, prepared = made(*settings, splits=("train", "val"))
        only = measure(state.model, state, prepared, NAMES, None)
        assert (only.split, only.val) == ("val", None)
        assert only.headline == measured.val, "the same network, pictures and temperature"
        assert summary_of(state, only, Findings(), 0.0, 0)["val"] is None


def test_pictures_that_the_first_network_knows_calibrate_nothing() -> None:
    state, prepared = made("evaluation.tta=none")
    unknown = np.arange(60) >= 25
    measured = measure(state.model, state, replace(prepared, known={"val": ~unknown}), NAMES, None)
    assert (measured.calibrated_on, measured.calibration_pictures) == ("val", 35)
    assert measured.thresholds is not None
    assert measured.unlike is not None
    assert (measured.thresholds.pictures, measured.unlike.pictures) == (35, 35)
    val = prepared.evaluation["val"]
    logits, labels = collect_logits(state.model, val, dtype=state.dtype)
    assert measured.temperature == fit_temperature(logits.numpy()[unknown], labels.numpy()[unknown])
    groups = {"val": np.array([f"p{n // 5}" for n in range(60)], dtype=object)}
    grouped = measure(
        state.model, state, replace(prepared, known={"val": ~unknown}, groups=groups), NAMES, None
    )
    assert grouped.thresholds is not None
    assert (grouped.thresholds.pictures, grouped.thresholds.groups) == (35, 7)
    assert isinstance(grouped.val, Evaluation)
    assert (grouped.val.pictures, grouped.val.groups) == (60, 12)
    few = measure(state.model, state, replace(prepared, known={"val": np.arange(60) < 41}), NAMES, None)
    assert (few.calibrated_on, few.calibration_pictures, few.temperature) == (None, 19, 1.0)
    assert few.headline is not None
    assert few.headline.pictures == 60


def test_a_network_that_answers_with_nan_is_not_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    state, prepared = made("evaluation.tta=none")

    def broken(*given: Any, **options: Any) -> Any:
        logits, plain, labels = collect_views(*given, **options)
        logits = logits.clone()
        logits[3] = torch.nan
        return logits, plain, labels

    monkeypatch.setattr(results, "collect_views", broken)
    measured = measure(state.model, state, prepared, NAMES, None)
    assert (measured.calibrated_on, measured.temperature, measured.thresholds) == (None, 1.0, None)
    assert (measured.calibration_pictures, measured.calibration_not_finite) == (60, 1)


@pytest.fixture(scope="module")
def measured_state() -> tuple[TrainingState, Measured]:
    """A state, of which tests may change what chose its weights, and the measurement of its network."""
    state, prepared = made()
    return state, measure(state.model, state, prepared, NAMES, None)


@pytest.mark.parametrize(
    ("kept", "judged_on", "chose"),
    [
        ("last", None, None), ("last", "train", None), ("epoch", None, "the epoch"), ("L2", None, "L2"),
        ("last", "val", "the settings"), ("epoch", "val", "the epoch and the settings"),
    ],
)  # fmt: skip
def test_thresholds_say_what_else_their_pictures_chose(
    kept: str, judged_on: str | None, chose: str | None, measured_state: tuple[TrainingState, Measured]
) -> None:
    state, measured = measured_state
    state.best_weights = {}
    looks = 2 if kept == "epoch" else 1  # of a single one, none was chosen
    score = Score("val", 0.9, 0.1, 60)
    state.history = [EpochResult(epoch, epoch, 0.1, 0.1, 1.0, 60.0, score) for epoch in range(1, looks + 1)]
    state.l2_chosen_on = "val" if kept == "L2" else ""
    found = with_choices(measured, state, judged_on)
    assert found.thresholds is not None
    assert found.thresholds.also_chose == chose
    summary = summary_of(state, found, Findings(), 0.0, 0)
    assert summary["thresholds"].get("also_chose") == chose
    other = replace(measured, thresholds=replace(found.thresholds, split="calibration", also_chose=None))
    assert with_choices(other, state, judged_on) == other
    assert with_choices(Measured(), state, judged_on) == Measured()


def test_calibration_can_be_turned_off() -> None:
    state, prepared = made("data.calibration_pictures=0")
    measured = measure(state.model, state, prepared, NAMES, None)
    assert (measured.temperature, measured.calibrated_on) == (1.0, None)
    assert (measured.thresholds, measured.unlike) == (None, None)
    assert measured.headline is not None
    assert measured.headline.calibration_error == measured.uncalibrated_error


@pytest.mark.parametrize("tta", ["none", "mirror"])
@pytest.mark.parametrize("splits", [("train", "test"), ("train", "val"), ("train", "val", "test")])
def test_known_logits_are_used_and_no_split_passes_twice(
    splits: tuple[str, ...], tta: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, prepared = made(f"evaluation.tta={tta}", splits=splits)
    expected = measure(state.model, state, prepared, NAMES, None)
    watched = prepared.evaluation[prepared.watched]
    logits, _ = collect_logits(state.model, watched, dtype=state.dtype)
    asked: dict[int, object] = {}

    def counting(model: object, batches: Any, **options: Any) -> Any:
        assert id(batches) not in asked
        asked[id(batches)] = options["plain"]
        return collect_views(state.model, batches, **options)

    monkeypatch.setattr(results, "collect_views", counting)
    assert measure(state.model, state, prepared, NAMES, (prepared.watched, logits)) == expected
    plain = {id(batches): logits if batches is watched else None for batches in prepared.evaluation.values()}
    assert asked == plain


def test_without_anything_held_out_the_summary_says_so() -> None:
    state, prepared = made("data.calibration_pictures=0", splits=("train",))
    assert measure(state.model, state, prepared, NAMES, None) == Measured()
    summary = summary_of(state, Measured(), Findings(warnings=["careful"]), 0.0, 4)
    assert (summary["split"], summary["accuracy"], summary["loss"]) == (None, None, None)
    assert summary["balanced_accuracy"] is None
    assert (summary["skipped_pictures"], summary["warnings"]) == (4, ["careful"])
    assert summary["kept_by"] == "last"


def test_what_repeats_is_reported_once(tmp_path: Path) -> None:
    notes: list[str] = []

    class Hearing(Listener):
        def on_note(self, text: str) -> None:
            notes.append(text)

    data = coloured_data()
    train = data.splits["train"]
    leaking = {**data.splits, "test": train.subset(torch.arange(6).numpy())}
    data = type(data)(data.source, data.layout, data.class_names, leaking)
    prepared = prepare(data, load_recipe("one-cycle", TINY), CPU)
    teller = RepeatTeller(Run(tmp_path), prepared, NAMES, Hearing())
    found = teller.tell()
    assert teller.tell() is found
    teller.tell_if_known()
    assert found["leaks"] == 6
    assert len(notes) == len(found["lines"]) == 1
    assert "6 of the 6 test pictures are also in train" in notes[0]
