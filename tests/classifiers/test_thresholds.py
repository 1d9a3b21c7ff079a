"""Thresholds for wanted precisions, chosen on held-out pictures."""

from __future__ import annotations

import numpy as np
import pytest

from thumbnet.classifiers.thresholds import (
    DEFAULT_PRECISION,
    PRECISIONS,
    choose_thresholds,
    describe_threshold,
    threshold_for,
    wilson_bound,
)
from thumbnet.errors import RunError
from thumbnet.evaluation import log_softmax, wilson_interval
from thumbnet.runs.certainty import Threshold, Thresholds


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of five classes, and labels drawn from their softmax, so the probabilities are true."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 5)) * 4
    shares = np.exp(log_softmax(logits)).cumsum(axis=1)
    return logits.astype(np.float32), (random.random((count, 1)) > shares).sum(axis=1)


def measured(logits: np.ndarray, labels: np.ndarray, probability: float) -> tuple[float, float]:
    """The precision among accepted pictures, and the share of accepted ones."""
    taken = np.exp(log_softmax(logits).max(axis=1)) >= probability
    return float((logits.argmax(axis=1) == labels)[taken].mean()), float(taken.mean())


def test_each_threshold_gives_its_precision_on_other_pictures() -> None:
    found = choose_thresholds(*drawn(4000), "val")
    assert found is not None
    assert (found.split, found.pictures) == ("val", 4000)
    assert [row.precision for row in found.table] == list(PRECISIONS)
    shares = []
    for row in found.table:
        precision, share = measured(*drawn(40_000, seed=1), row.probability)
        assert precision >= row.precision - 0.005  # the same pictures choose a threshold and support it
        shares.append(share)
    assert shares == sorted(shares, reverse=True)
    assert 0.1 < shares[-1] < shares[0] < 1


def test_the_counts_are_those_of_the_held_out_pictures() -> None:
    logits, labels = drawn(3000)
    found = choose_thresholds(logits, labels, "calibration")
    assert found is not None
    for row in found.table:
        precision, share = measured(logits, labels, row.probability)
        assert row.accepted == round(share * 3000)
        assert row.right / row.accepted == pytest.approx(precision)
        assert wilson_bound(np.array(row.right), np.array(row.accepted)) >= row.precision


def test_the_wanted_precision_is_reached_in_most_draws() -> None:
    """The threshold is chosen by the same pictures that support it, so the 95 % do not hold exactly."""
    wide, labels = drawn(20_000, seed=9)
    reached = []
    for seed in range(60):
        found = choose_thresholds(*drawn(500, seed=10 + seed), "val")
        assert found is not None
        row = threshold_for(found, 0.9)
        reached.append(measured(wide, labels, row.probability)[0] >= 0.9)
    assert np.mean(reached) >= 0.85


def test_few_pictures_support_only_low_precisions() -> None:
    logits, labels = 5 * np.eye(3)[np.arange(60) % 3], np.arange(60) % 3  # 60 pictures, all right
    found = choose_thresholds(logits, labels, "val")
    assert found is not None
    assert [row.precision for row in found.table] == [0.9, 0.95]
    assert found.highest == pytest.approx(60 / (60 + 1.645**2), abs=1e-3)
    assert [row.accepted for row in found.table] == [60, 60]
    with pytest.raises(RunError, match=r"at most 95\.7 %.*ask for less \(--precision 0\.95\)"):
        threshold_for(found, 0.99)


def test_268_pictures_without_a_mistake_support_99_percent() -> None:
    for count, supported in ((267, False), (268, True)):
        found = choose_thresholds(5 * np.eye(3)[np.arange(count) % 3], np.arange(count) % 3, "val")
        assert found is not None
        assert (0.99 in [row.precision for row in found.table]) is supported


def test_pictures_of_equal_probability_are_accepted_together() -> None:
    logits = np.tile([[2.0, 0.0]], (400, 1))
    labels = (np.arange(400) < 8).astype(int)  # the first 8 are wrong
    found = choose_thresholds(logits, labels, "val")
    assert found is not None
    assert [(row.accepted, row.right) for row in found.table] == [(400, 392)] * 2
    assert choose_thresholds(logits, 1 - labels, "val") == Thresholds("val", 400, 0.0113, ())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_chosen_from_too_few_pictures_or_broken_logits(value: float) -> None:
    logits, labels = drawn(30)
    assert choose_thresholds(logits[:19], labels[:19], "val") is None
    logits[3, 1] = value
    assert choose_thresholds(logits, labels, "val") is None


def test_the_bound_is_the_lower_end_of_wilsons_interval_at_another_level() -> None:
    found = wilson_bound(np.array([0, 5, 90, 100]), np.array([10, 10, 100, 100]))
    two_sided = [wilson_interval(*pair)[0] for pair in ((0, 10), (5, 10), (90, 100), (100, 100))]
    assert found[0] == 0
    assert (found[1:] > two_sided[1:]).all()  # one-sided 95 % lies closer
    assert found[3] == pytest.approx(100 / (100 + 1.6448536**2))


TABLE = Thresholds("val", 500, 0.9712, (Threshold(0.9, 0.5, 400, 370), Threshold(0.95, 0.7, 300, 291)))


def test_a_precision_between_two_rows_gets_the_higher_one() -> None:
    assert threshold_for(TABLE, 0.93).precision == 0.95
    assert threshold_for(TABLE, 0.2).precision == 0.9
    assert threshold_for(TABLE).precision == DEFAULT_PRECISION == 0.95


def test_without_a_wish_the_highest_supported_precision_below_the_default_is_taken() -> None:
    assert threshold_for(Thresholds("val", 500, 0.92, TABLE.table[:1])).precision == 0.9
    with pytest.raises(RunError, match="95 % is not supported: the 500 held-out"):
        threshold_for(Thresholds("val", 500, 0.61))
    for thresholds in (None, Thresholds("val", 500, 0.61)):
        with pytest.raises(RunError, match="--threshold"):
            threshold_for(thresholds, 0.9)


@pytest.mark.parametrize("precision", [0.0, 1.0, -1.0, float("nan")])
def test_an_impossible_precision_is_refused(precision: float) -> None:
    with pytest.raises(RunError, match="expected a number between 0 and 1"):
        threshold_for(TABLE, precision)


def test_the_description_says_how_many_pictures_a_threshold_rests_on() -> None:
    text = describe_threshold(TABLE.table[1], TABLE)
    assert "for a precision of 95 %" in text
    assert "of the 500 held-out pictures (val), 300 reach it, and 291 of these are right, 97.0 %" in text
    assert "at least 94.9 %" in text
