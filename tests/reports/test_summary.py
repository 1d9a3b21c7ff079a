"""Sentences about a run's summary."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import coloured_data
from thumbnet.reports.summary import (
    are_own_data,
    describe_calibration,
    describe_continued,
    describe_stop,
    ended_early,
    epochs_before,
    headline_key,
    headline_name,
    interval_of,
    is_optimistic,
    own_epochs,
    percent,
    short_epochs,
)
from thumbnet.runs.folder import Run


@pytest.mark.parametrize(
    ("share", "text"), [(0.9312, "93.12 %"), (0, "0.00 %"), (1, "100.00 %"), (0.99999, "100.00 %")]
)
def test_a_share_is_shown_in_per_cent_with_two_decimals(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("split", "kept_by", "optimistic"),
    [("val", "best on val", True), ("val", "last epoch", False), ("test", "best on val", False)],
)
def test_an_accuracy_is_optimistic_only_if_the_same_pictures_chose_the_epoch(
    split: str, kept_by: str, optimistic: bool
) -> None:
    assert is_optimistic({"split": split, "kept_by": kept_by}) is optimistic


def test_a_runs_own_data_are_known_by_their_place_or_by_the_measured_pictures(
    tiny_run: Run, tmp_path: Path
) -> None:
    assert are_own_data(tiny_run, coloured_data())
    other = coloured_data(30)
    assert not are_own_data(tiny_run, other)
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    place = tmp_path / "pictures"
    place.mkdir()
    (run.path / "run.json").write_text(json.dumps({**run.settings, "data": str(place)}))
    assert are_own_data(run, replace(other, source=str(place)))
    assert not are_own_data(run, replace(other, source=str(tmp_path)))


def test_the_main_measure_is_map_for_several_labels_and_otherwise_accuracy() -> None:
    one = {"accuracy": 0.9, "accuracy_interval": [0.8, 0.95]}
    several = {**one, "multilabel": True, "map": 0.7, "map_interval": [0.6, 0.75]}
    assert (headline_key(one), headline_name(one), interval_of(one)) == ("accuracy", "accuracy", (0.8, 0.95))
    assert (headline_key(several), headline_name(several), interval_of(several)) == (
        "map",
        "mAP",
        (0.6, 0.75),
    )
    assert interval_of({"accuracy_interval": None}) is None


def calibrated(**changes: Any) -> dict[str, Any]:
    return {
        "split": "test", "temperature": 1.2345, "calibrated_on": "calibration", "calibration_pictures": 2500,
        "calibration_error_before": 0.0512, "calibration_error": 0.0123, **changes,
    }  # fmt: skip


def test_a_calibration_names_its_pictures_and_its_effect() -> None:
    assert describe_calibration(calibrated()) == (
        "calibrated on 2,500 pictures (set aside from train): temperature 1.23, "
        "test calibration error 5.12 % before, 1.23 % after"
    )
    assert "2,500 pictures (val): " in str(describe_calibration(calibrated(calibrated_on="val")))


def test_a_calibration_without_a_measured_error_claims_no_error() -> None:
    text = describe_calibration(calibrated(calibration_error=None, calibration_error_before=None))
    assert text == "calibrated on 2,500 pictures (set aside from train): temperature 1.23"


@pytest.mark.parametrize(
    ("pictures", "why"), [(12, "12 pictures are too few"), (0, "no pictures were set aside")]
)
def test_without_calibration_the_reason_is_given(pictures: int, why: str) -> None:
    text = describe_calibration(calibrated(calibrated_on=None, calibration_pictures=pictures))
    assert text is not None
    assert text.startswith(f"probabilities are not calibrated: {why}")


def test_runs_of_older_versions_say_nothing_about_calibration() -> None:
    assert describe_calibration({"split": "test"}) is None


def continued(run: Run, folder: Path, epochs: int = 30) -> Run:
    """A copy of a run that says that it continues one of ``epochs`` epochs."""
    copy = Run(Path(shutil.copytree(run.path, folder)))
    settings = {**run.settings, "continues": {"run": "/home/me/old", "epochs": epochs}}
    (copy.path / "run.json").write_text(json.dumps(settings))
    return copy


def test_the_epochs_of_a_run_that_continues_another_are_those_of_both(tiny_run: Run, tmp_path: Path) -> None:
    more = continued(tiny_run, tmp_path / "run")
    assert (epochs_before(tiny_run), epochs_before(more)) == (0, 30)
    assert (short_epochs(tiny_run), short_epochs(more)) == ("3", "30+3")
    assert describe_continued(tiny_run) is None
    assert "for 30 epoch(s)" in str(describe_continued(more))


def test_a_stop_by_the_measured_pictures_makes_their_accuracy_optimistic_too() -> None:
    stop = {"epoch": 8, "planned_epochs": 12, "patience": 2, "why": "no better val accuracy since epoch 6"}
    summary = {"split": "val", "kept_by": "last", "stopped_early": stop}
    assert is_optimistic(summary)
    assert not is_optimistic({**summary, "split": "test"})
    told = "stopped after epoch 8 of 12: no better val accuracy since epoch 6 (patience 2)"
    assert describe_stop(summary) == told
    assert describe_stop({"split": "val"}) is None


def test_a_training_that_the_user_ended_says_how_much_was_planned(tiny_run: Run, tmp_path: Path) -> None:
    stop = {
        "epoch": 3, "planned_epochs": 12, "step": 2500, "planned_steps": 10000, "watched": None, "patience": 0,
        "why": "ended on request",
    }  # fmt: skip
    summary = {**tiny_run.summary, "split": "val", "kept_by": "last", "stopped_early": stop}
    assert not is_optimistic(summary), "val chose nothing"
    told = "ended on request at step 2,500 of 10,000 (epoch 3 of 12), without the last part of its schedule"
    assert describe_stop(summary) == told
    more = continued(tiny_run, tmp_path / "run")
    (more.path / "summary.json").write_text(json.dumps(summary))
    assert (own_epochs(summary), short_epochs(more)) == ("3 of 12", "30+3 of 12")
    by_val = {**stop, "watched": "val"}
    assert ended_early({**summary, "stopped_early": by_val}) is None
