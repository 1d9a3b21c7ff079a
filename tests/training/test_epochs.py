"""An epoch's result as a row of metrics.jsonl and in a checkpoint; which of two scores is better."""

from __future__ import annotations

import math
from dataclasses import asdict

from thumbnet.training.epochs import EpochResult, Score


def result_of(epoch: int, score: Score | None = None, sample: Score | None = None) -> EpochResult:
    return EpochResult(epoch, 5 * epoch, 1.0, 0.1, 2.0, 30.0, score, 0.5, sample)


def test_a_results_row_names_the_split_of_its_score_or_of_its_sample() -> None:
    row = result_of(1, Score("val", 0.75, 0.3, 40)).row()
    assert (row["val_accuracy"], row["val_loss"], row["val_pictures"]) == (0.75, 0.3, 40)
    assert not {"score", "sample"} & row.keys()
    sampled = result_of(1, None, Score("test", 0.5, 0.9, 10)).row()
    assert sampled["test_accuracy"] == 0.5
    assert not [key for key in result_of(1).row() if key.endswith("_pictures")]


def test_equal_scores_are_told_apart_by_the_loss_and_equal_losses_by_the_accuracy() -> None:
    a, b = Score("val", 0.9, 0.4, balanced_accuracy=0.7), Score("val", 0.9, 0.5, balanced_accuracy=0.7)
    for choose_by in ("accuracy", "balanced-accuracy", "loss"):
        assert a.rank(choose_by) > b.rank(choose_by)
    assert Score("val", 0.9, 0.4).rank("loss") > Score("val", 0.8, 0.4).rank("loss")


def test_a_score_with_a_loss_of_nan_is_below_all_others() -> None:
    unknown = Score("val", 0.9, math.nan, balanced_accuracy=0.9)
    worst = Score("val", 0.0, math.inf, balanced_accuracy=0.0)
    for choose_by in ("accuracy", "balanced-accuracy", "loss"):
        assert unknown.rank(choose_by) < worst.rank(choose_by)
        assert not unknown.rank(choose_by) > unknown.rank(choose_by)


def test_a_score_of_an_earlier_version_has_no_balanced_accuracy() -> None:
    result = result_of(1, Score("val", 0.9, 0.1, 4))
    saved = asdict(result)
    del saved["score"]["balanced_accuracy"]
    again = EpochResult.from_dict(saved)
    assert again == result
    assert "val_balanced_accuracy" not in again.row()
    balanced = Score("val", 0.9, 0.4, 8, balanced_accuracy=0.6)
    assert result_of(1, balanced).row()["val_balanced_accuracy"] == 0.6


def test_a_result_survives_being_a_dictionary() -> None:
    for result in (result_of(1, Score("val", 0.9, 0.1, 4)), result_of(2, None, Score("val", 0.8, 0.2, 2))):
        assert EpochResult.from_dict(asdict(result)) == result
