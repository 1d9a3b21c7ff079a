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
    count_pictures,
    describe_calibration,
    describe_continued,
    describe_groups,
    describe_measured_groups,
    describe_stop,
    ended_early,
    epochs_before,
    interval_of,
    of_split,
    optimism,
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


def changed(run: Run, folder: Path, settings: dict[str, Any] | None = None, **summary: Any) -> Run:
    """A copy of a run with other entries in its summary and in ``run.json``."""
    copy = Run(Path(shutil.copytree(run.path, folder)))
    (copy.path / "summary.json").write_text(json.dumps({**run.summary, **summary}))
    (copy.path / "run.json").write_text(json.dumps({**run.settings, **(settings or {})}))
    return copy


EPOCH = "optimistic, because the same pictures chose the epoch"


@pytest.mark.parametrize(
    ("split", "kept_by", "optimistic"),
    [("val", "best on val", True), ("val", "last", False), ("test", "best on val", False)],
)
def test_an_accuracy_is_optimistic_only_if_the_same_pictures_chose_the_epoch(
    tiny_run: Run, tmp_path: Path, split: str, kept_by: str, optimistic: bool
) -> None:
    run = changed(tiny_run, tmp_path / "run", split=split, kept_by=kept_by)
    assert optimism(run) == ({"accuracy": EPOCH} if optimistic else {})
    assert optimism(run, "test") == {}
    assert optimism(run, "val") == ({"accuracy": EPOCH} if kept_by == "best on val" else {})


def test_pictures_that_were_calibrated_on_or_that_judged_a_search_make_their_results_optimistic_too(
    tiny_run: Run, label_run: Run, tmp_path: Path
) -> None:
    both: dict[str, Any] = {"split": "val", "calibrated_on": "val"}
    searched = {"search": {"judged_on": "val"}}
    run = changed(tiny_run, tmp_path / "one", searched, **both, kept_by="last")
    assert optimism(run) == {
        "accuracy": "optimistic, because the same pictures chose the settings",
        "calibration error": "optimistic, because the same pictures chose the temperature",
    }
    run = changed(tiny_run, tmp_path / "two", searched, **both, kept_by="best on val")
    assert optimism(run)["accuracy"] == f"{EPOCH} and the settings"
    run = changed(
        tiny_run, tmp_path / "three", {"search": {"judged_on": "train"}}, split="val", kept_by="last"
    )
    assert optimism(run) == {}
    run = changed(label_run, tmp_path / "four", **both, kept_by="last")
    assert optimism(run) == {
        "F1": "optimistic, because the same pictures chose the thresholds",
        "calibration error": "optimistic, because the same pictures chose the temperature",
    }
    assert label_run.summary["split"] == "test"
    assert optimism(label_run) == {}
    run = changed(tiny_run, tmp_path / "none", split=None, accuracy=None, calibrated_on=None)
    assert optimism(run) == {}


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


def test_the_interval_is_that_of_the_main_measure() -> None:
    one = {"accuracy": 0.9, "accuracy_interval": [0.8, 0.95]}
    several = {**one, "multilabel": True, "map": 0.7, "map_interval": [0.6, 0.75]}
    assert interval_of(one) == (0.8, 0.95)
    assert interval_of(several) == (0.6, 0.75)
    assert interval_of({"accuracy_interval": None}) is None


def test_an_interval_that_allows_for_groups_says_so() -> None:
    assert count_pictures(1200, None) == "1,200 pictures"
    assert count_pictures(1200, 40) == "1,200 pictures in 40 groups"
    assert describe_groups(1200, None) is None
    assert describe_measured_groups({"accuracy": 0.9}) is None
    text = describe_measured_groups({"measured_pictures": 1200, "measured_groups": 40})
    assert text == (
        "the interval allows for 1,200 pictures in 40 groups, because pictures of one group are not independent"
    )
    assert str(describe_groups(1200, 7)).endswith("; with so few groups it is rough")
    assert describe_groups(50, 1) == "all 50 pictures are in one group, which says nothing about other groups"


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


def test_a_calibration_measured_on_its_own_pictures_says_so() -> None:
    text = str(describe_calibration(calibrated(calibrated_on="val", split="val")))
    assert text.endswith(
        "val calibration error 5.12 % before, 1.23 % after (on the same pictures, so it is optimistic)"
    )
    assert "same pictures" not in str(describe_calibration(calibrated(calibrated_on="val")))


def test_the_summary_of_another_split_has_its_measures() -> None:
    summary = {"split": "test", "accuracy": 0.9, "epochs": 3, "val": {"accuracy": 0.8}}
    assert of_split(summary, None) is of_split(summary, "test") is summary
    val = of_split(summary, "val")
    assert val is not None
    assert (val["split"], val["accuracy"], val["epochs"]) == ("val", 0.8, 3)
    grouped = of_split({**summary, "measured_pictures": 60, "measured_groups": 30}, "val")
    assert describe_measured_groups(grouped or {}) is None, "the groups are those of test"
    assert of_split({"split": "test", "val": None}, "val") is None
    assert of_split({"split": "test"}, "val") is None, "a run of an earlier version"
    assert of_split({"split": None, "accuracy": None}, "val") is None
    assert of_split({"split": "val", "accuracy": 0.7}, "test") is None


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


def test_pictures_that_the_initial_weights_know_are_the_reason_if_there_are_any() -> None:
    text = describe_calibration(calibrated(calibrated_on=None, calibration_pictures=4, calibration_known=26))
    assert text == (
        "probabilities are not calibrated: the initial weights were trained on 26 of the 30 pictures for it"
    )


def test_copies_of_training_pictures_are_a_reason_too_and_so_is_doubt() -> None:
    none = {"calibrated_on": None, "calibration_pictures": 4}
    assert describe_calibration(calibrated(**none, calibration_copied=26)) == (
        "probabilities are not calibrated: 26 of the 30 pictures for it are copies of training pictures or in their "
        "groups"
    )
    both = str(describe_calibration(calibrated(**none, calibration_known=6, calibration_copied=20)))
    assert both.endswith(
        "6 of the 30 pictures for it and 20 of the 30 pictures for it are copies of training "
        "pictures or in their groups"
    )
    unsure = str(describe_calibration(calibrated(**none, calibration_unsure=True)))
    assert unsure.endswith("the initial weights may have been trained on some of the pictures for it")


def test_answers_that_are_not_finite_are_the_reason_if_there_are_any() -> None:
    text = describe_calibration(
        calibrated(calibrated_on=None, calibration_pictures=500, calibration_not_finite=3)
    )
    assert text == (
        "probabilities are not calibrated: the network answers 3 of the 500 pictures for it with nan or infinity"
    )


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


def test_a_stop_by_the_measured_pictures_makes_their_accuracy_optimistic_too(
    tiny_run: Run, tmp_path: Path
) -> None:
    stop = {"epoch": 8, "planned_epochs": 12, "patience": 2, "why": "no better val accuracy since epoch 6"}
    run = changed(tiny_run, tmp_path / "run", split="val", kept_by="last", stopped_early=stop)
    assert optimism(run) == {"accuracy": EPOCH}
    assert optimism(run, "test") == {}
    told = "stopped after epoch 8 of 12: no better val accuracy since epoch 6 (patience 2)"
    assert describe_stop(run.summary) == told
    assert describe_stop({"split": "val"}) is None


def test_a_training_that_the_user_ended_says_how_much_was_planned(tiny_run: Run, tmp_path: Path) -> None:
    stop = {
        "epoch": 3, "planned_epochs": 12, "step": 2500, "planned_steps": 10000, "watched": None, "patience": 0,
        "why": "ended on request",
    }  # fmt: skip
    ended = changed(tiny_run, tmp_path / "ended", split="val", kept_by="last", stopped_early=stop)
    summary = ended.summary
    assert optimism(ended) == {}, "val chose nothing"
    told = "ended on request at step 2,500 of 10,000 (epoch 3 of 12), without the last part of its schedule"
    assert describe_stop(summary) == told
    more = continued(tiny_run, tmp_path / "run")
    (more.path / "summary.json").write_text(json.dumps(summary))
    assert (own_epochs(summary), short_epochs(more)) == ("3 of 12", "30+3 of 12")
    by_val = {**stop, "watched": "val"}
    assert ended_early({**summary, "stopped_early": by_val}) is None
