"""Thresholds for wanted precisions, chosen on held-out pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from thumbnet.classifiers.thresholds import (
    DEFAULT_PRECISION,
    PRECISIONS,
    binomial_tail,
    choose_thresholds,
    describe_threshold,
    exact_bound,
    fewest_for,
    threshold_for,
)
from thumbnet.errors import RunError
from thumbnet.evaluation import log_softmax
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
    found = choose_thresholds(*drawn(40_000), "val")
    assert found is not None
    assert (found.split, found.pictures, found.confidence) == ("val", 40_000, 0.95)
    assert [row.precision for row in found.table] == list(PRECISIONS)
    shares = []
    for row in found.table:
        precision, share = measured(*drawn(40_000, seed=1), row.probability)
        assert precision >= row.precision - 0.005  # these pictures are a sample, too
        shares.append(share)
    assert shares == sorted(shares, reverse=True)
    assert 0.04 < shares[-1] < shares[0] < 1


def test_the_counts_are_those_of_the_held_out_pictures() -> None:
    logits, labels = drawn(3000)
    found = choose_thresholds(logits, labels, "calibration")
    assert found is not None
    assert found.table
    for row in found.table:
        precision, share = measured(logits, labels, row.probability)
        assert row.accepted == round(share * 3000)
        assert row.right / row.accepted == pytest.approx(precision)
        assert binomial_tail(row.right, row.accepted, row.precision) <= 0.05


def test_only_thresholds_that_accept_a_twentieth_more_each_time_are_tested() -> None:
    found = choose_thresholds(*drawn(3000), "val")
    assert found is not None
    assert found.table
    steps = {row.accepted / 150 for row in found.table}
    assert max(abs(step - round(step)) for step in steps) < 0.05  # equal probabilities stay together


def test_a_threshold_below_its_precision_is_chosen_in_at_most_5_percent_of_all_draws() -> None:
    wide, labels = drawn(20_000, seed=9)
    confidence, right = np.exp(log_softmax(wide).max(axis=1)), wide.argmax(axis=1) == labels
    draws, chosen, missed = 200, dict.fromkeys(PRECISIONS, 0), dict.fromkeys(PRECISIONS, 0)
    for seed in range(draws):
        found = choose_thresholds(*drawn(500, seed=10 + seed), "val")
        assert found is not None
        for row in found.table:
            chosen[row.precision] += 1
            missed[row.precision] += bool(right[confidence >= row.probability].mean() < row.precision)
    assert chosen[0.9] > 0.9 * draws
    assert max(missed.values()) <= 0.08 * draws  # 5 %, and twice the standard error


def test_a_precision_that_no_threshold_reaches_is_seldom_supported() -> None:
    """The lowest of all thresholds that pass a test of a single one would be found far more often."""
    random, seldom = np.random.default_rng(3), []
    for _ in range(400):
        certainty, wrong = random.uniform(1, 6, 500), random.random(500) < 0.1
        logits = np.stack([certainty, np.zeros(500)], axis=1)
        found = choose_thresholds(logits, wrong.astype(int), "val")
        assert found is not None
        seldom.append(any(row.precision == 0.9 for row in found.table))
    assert 0 < np.mean(seldom) <= 0.08


def test_few_pictures_support_only_low_precisions() -> None:
    logits, labels = 5 * np.eye(3)[np.arange(60) % 3], np.arange(60) % 3  # 60 pictures, all right
    found = choose_thresholds(logits, labels, "val")
    assert found is not None
    assert [row.precision for row in found.table] == [0.9, 0.95]
    assert found.highest == pytest.approx(0.05 ** (1 / 60), abs=1e-4)
    assert [row.accepted for row in found.table] == [60, 60]
    with pytest.raises(RunError, match=r"at most 95\.1 %.*ask for less \(--precision 0\.95\)"):
        threshold_for(found, 0.99)


@pytest.mark.parametrize(("precision", "needed"), zip(PRECISIONS, (29, 59, 149, 299, 598), strict=True))
def test_how_many_pictures_without_a_mistake_support_a_precision(precision: float, needed: int) -> None:
    assert fewest_for(precision) == needed
    for count, supported in ((needed - 1, False), (needed, True)):
        found = choose_thresholds(5 * np.eye(3)[np.arange(count) % 3], np.arange(count) % 3, "val")
        assert found is not None
        assert (precision in [row.precision for row in found.table]) is supported


def test_a_mistake_among_the_surest_pictures_does_not_hide_the_others_if_there_are_enough() -> None:
    certainty = np.linspace(8, 4, 1000)
    logits, labels = np.stack([certainty, np.zeros(1000)], axis=1), np.zeros(1000, dtype=int)
    labels[0] = 1
    found = choose_thresholds(logits, labels, "val")
    assert found is not None
    assert threshold_for(found, 0.95).accepted == 1000


def test_pictures_of_equal_probability_are_accepted_together() -> None:
    logits = np.tile([[2.0, 0.0]], (400, 1))
    labels = (np.arange(400) < 8).astype(int)  # the first 8 are wrong
    found = choose_thresholds(logits, labels, "val")
    assert found is not None
    assert [(row.accepted, row.right) for row in found.table] == [(400, 392)] * 2
    none = choose_thresholds(logits, 1 - labels, "val")
    assert none is not None
    assert none.table == ()
    assert binomial_tail(8, 400, none.highest) <= 0.05 < binomial_tail(8, 400, none.highest + 1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_chosen_from_too_few_pictures_or_broken_logits(value: float) -> None:
    logits, labels = drawn(30)
    assert choose_thresholds(logits[:19], labels[:19], "val") is None
    logits[3, 1] = value
    assert choose_thresholds(logits, labels, "val") is None


@pytest.mark.parametrize(("right", "count"), [(0, 10), (5, 10), (90, 100), (100, 100), (4870, 5000)])
@pytest.mark.parametrize("precision", [0.001, 0.5, 0.9, 0.995])
def test_the_chance_of_so_many_right_answers_is_the_binomial_one(
    right: int, count: int, precision: float
) -> None:
    binomial = pytest.importorskip("scipy.stats").binom
    assert binomial_tail(right, count, precision) == pytest.approx(binomial.sf(right - 1, count, precision))


@pytest.mark.parametrize(("right", "count"), [(1, 10), (90, 100), (100, 100), (4870, 5000)])
def test_the_bound_is_the_highest_precision_that_passes_the_binomial_test(right: int, count: int) -> None:
    bound = exact_bound(right, count)
    assert binomial_tail(right, count, bound) <= 0.05 + 1e-12 < binomial_tail(right, count, bound + 1e-6)


TABLE = Thresholds("val", 500, 0.9712, (Threshold(0.9, 0.5, 400, 370), Threshold(0.95, 0.7, 300, 291)))


def test_a_precision_between_two_rows_gets_the_higher_one() -> None:
    assert threshold_for(TABLE, 0.93).precision == 0.95
    assert threshold_for(TABLE, 0.2).precision == 0.9
    assert threshold_for(TABLE).precision == DEFAULT_PRECISION == 0.95


def test_a_lower_precision_never_accepts_fewer_pictures() -> None:
    rows = (Threshold(0.9, 0.8, 200, 190), Threshold(0.95, 0.6, 350, 342), Threshold(0.98, 0.95, 100, 100))
    table = Thresholds("val", 500, 0.981, rows)
    assert [threshold_for(table, one) for one in (0.8, 0.9, 0.95, 0.98)] == [
        rows[1],
        rows[1],
        rows[1],
        rows[2],
    ]
    assert threshold_for(table) == rows[1]


def test_without_a_wish_the_highest_supported_precision_below_the_default_is_taken() -> None:
    assert threshold_for(Thresholds("val", 500, 0.92, TABLE.table[:1])).precision == 0.9
    with pytest.raises(
        RunError, match="90 % is not supported: the 500 held-out.*takes at least 29 without a mistake"
    ):
        threshold_for(Thresholds("val", 500, 0.61))
    for thresholds in (None, Thresholds("val", 500, 0.61)):
        with pytest.raises(RunError, match="--threshold"):
            threshold_for(thresholds, 0.9)


@pytest.mark.parametrize("precision", [0.0, 1.0, -1.0, float("nan")])
def test_an_impossible_precision_is_refused(precision: float) -> None:
    with pytest.raises(RunError, match="expected a number between 0 and 1"):
        threshold_for(TABLE, precision)


def test_the_description_says_how_many_pictures_a_threshold_rests_on() -> None:
    text = describe_threshold(TABLE.table[1], replace(TABLE, confidence=0.95))
    assert "for a precision of 95 %" in text
    assert "of the 500 held-out pictures (val), 300 reach it, and 291 of these are right, 97.0 %" in text
    assert "(so 95 % or more of such pictures are right, with 95 % confidence)" in text


def test_thresholds_count_groups_of_pictures_that_are_alike_as_few() -> None:
    logits, labels = drawn(100)
    copies = np.repeat(np.arange(100), 20)
    logits, labels = logits[copies], labels[copies]
    plain = choose_thresholds(logits, labels, "val")
    grouped = choose_thresholds(logits, labels, "val", np.array([f"p{n}" for n in copies], dtype=object))
    alone = choose_thresholds(logits[::20], labels[::20], "val")
    assert plain is not None
    assert grouped is not None
    assert alone is not None
    assert (plain.groups, grouped.groups) == (None, 100)
    assert grouped.highest == pytest.approx(alone.highest, abs=0.03)
    assert grouped.highest < plain.highest
    assert len(grouped.table) < len(plain.table)


def test_with_groups_the_same_thresholds_are_tested_until_one_fails() -> None:
    certainty = np.linspace(8, 4, 1000)
    logits, labels = np.stack([certainty, np.zeros(1000)], axis=1), np.zeros(1000, dtype=int)
    labels[700:710] = 1  # all pictures of one of a hundred groups
    found = choose_thresholds(logits, labels, "val", np.arange(1000) // 10)
    assert found is not None
    assert (found.groups, found.confidence) == (100, 0.95)
    rows = [(row.precision, row.accepted, row.right) for row in found.table]
    assert rows == [(0.9, 1000, 990), (0.95, 700, 700)]  # a mistake after 750 pictures is too many for 95 %


def test_the_description_of_a_threshold_names_the_groups_and_promises_the_precision() -> None:
    table = replace(TABLE, groups=40, confidence=0.95)
    text = describe_threshold(table.table[1], table)
    assert "of the 500 held-out pictures (val, in 40 groups), 300 reach it" in text
    assert "(so 95 % or more of such pictures are right, with 95 % confidence)" in text
    with pytest.raises(RunError, match=r"500 held-out pictures \(val, in 40 groups\).* more held-out groups"):
        threshold_for(table, 0.999)


def test_the_description_of_a_threshold_says_what_else_its_pictures_chose() -> None:
    text = describe_threshold(TABLE.table[1], replace(TABLE, confidence=0.95, also_chose="the epoch"))
    assert text.endswith("with 95 % confidence; these pictures also chose the epoch, so this is optimistic)")


def test_a_threshold_of_an_earlier_version_is_not_given_a_confidence() -> None:
    text = describe_threshold(TABLE.table[1], TABLE)
    assert "291 of these are right, 97.0 % (chosen by an earlier version of thumbnet" in text
    assert "with 95 % confidence" not in text
