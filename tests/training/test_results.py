from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import TINY, coloured_data
from thumbnet.batches.prepare import prepare
from thumbnet.classifiers.logits import collect_logits, collect_views
from thumbnet.evaluation import Evaluation
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.training import results
from thumbnet.training.listener import Listener
from thumbnet.training.results import Findings, Measured, RepeatTeller, measure, summary_of
from thumbnet.training.state import build_state

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
