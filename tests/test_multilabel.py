"""Measures of several labels per picture, compared with their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.evaluation import calibration_error, evaluate_logits, wilson_interval
from thumbnet.multilabel import (
    FEWEST_POSITIVES,
    average_precisions,
    binary_cross_entropy,
    bootstrap_interval,
    choose_label_thresholds,
    evaluate_labels,
    log_sigmoid,
    sigmoid,
)

NAMES = ("cat", "dog", "hat")


def average_precision(scores: list[float], truth: list[bool]) -> float:
    """The definition: sum over thresholds of precision times the gain in recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        given_label = [score >= threshold for score in scores]
        hits = sum(a and b for a, b in zip(given_label, truth, strict=True))
        recall = hits / sum(truth)
        total += hits / sum(given_label) * (recall - before)
        before = recall
    return total


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_that_of_the_definition_also_with_ties(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = [float(score) for score, _ in pairs], [positive for _, positive in pairs]
    (found,) = average_precisions(np.array(scores)[:, None], np.array(truth)[:, None])
    if any(truth):
        assert found == pytest.approx(average_precision(scores, truth), abs=1e-12)
    else:
        assert math.isnan(found)


def test_average_precision_is_scikit_learns_in_its_own_example() -> None:
    """The example of sklearn.metrics.average_precision_score, whose documentation says 0.83."""
    scores, truth = np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[False], [False], [True], [True]])
    assert average_precisions(scores, truth)[0] == pytest.approx(0.8333333333)


def example() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    targets = generator.random((200, 3)) < (0.5, 0.2, 0.05)
    logits = 2.0 * targets - 1 + generator.normal(size=targets.shape)
    return logits.astype(np.float32), targets


def test_every_measure_is_that_of_its_definition() -> None:
    logits, targets = example()
    thresholds = (0.3, 0.5, 0.7)
    found = evaluate_labels(logits, targets, NAMES, thresholds)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    decisions = {"half": probabilities >= 0.5, "own": probabilities >= thresholds}
    for given_labels, measured in (
        (decisions["half"], found.at_half),
        (decisions["own"], found.at_thresholds),
    ):
        hits = (given_labels & targets).sum()
        assert measured.precision == pytest.approx(hits / given_labels.sum())
        assert measured.recall == pytest.approx(hits / targets.sum())
        assert measured.micro_f1 == pytest.approx(2 * hits / (given_labels.sum() + targets.sum()))
        each = 2 * (given_labels & targets).sum(0) / (given_labels.sum(0) + targets.sum(0))
        assert measured.macro_f1 == pytest.approx(each.mean())
        assert measured.exact_match == (given_labels == targets).all(axis=1).mean()
        assert measured.hamming_loss == (given_labels != targets).mean()
    surprise = -np.where(targets, np.log(probabilities), np.log(1 - probabilities))
    assert found.loss == pytest.approx(surprise.sum(axis=1).mean())
    assert found.map == pytest.approx(np.mean([one.average_precision for one in found.labels]))
    assert [one.pictures for one in found.labels] == targets.sum(axis=0).tolist()
    assert [one.threshold for one in found.labels] == list(thresholds)
    assert [one.predicted for one in found.labels] == decisions["own"].sum(axis=0).tolist()
    both = int((targets[:, 0] & targets[:, 1]).sum())
    assert found.together[0][1] == found.together[1][0] == both
    assert found.together[2][2] == targets[:, 2].sum()
    assert (both, *NAMES[:2]) in found.pairs()
    assert found.pairs() == sorted(found.pairs(), reverse=True)
    assert found.accuracy == found.at_thresholds.exact_match
    assert found.interval[0] < found.accuracy < found.interval[1]


def test_labels_that_no_picture_has_do_not_count_towards_the_means() -> None:
    logits, targets = example()
    targets[:, 1] = False
    found = evaluate_labels(logits, targets, NAMES)
    known = [found.labels[0], found.labels[2]]
    assert found.labels[1].average_precision is None
    assert found.labels[1].defined[1:] == (None, None, None)
    assert None not in (*found.labels[0].defined, found.labels[1].defined[0])
    never = evaluate_labels(logits, targets, NAMES, (1.0, 0.5, 0.5)).labels[0]
    assert (never.precision, never.defined[:2]) == (0.0, (None, 0.0))
    assert found.map == pytest.approx(np.mean([one.average_precision for one in known]))
    assert found.at_half.macro_f1 == pytest.approx(np.mean([one.f1_at_half for one in known]))
    nothing = evaluate_labels(logits, np.zeros_like(targets), NAMES)
    assert math.isnan(nothing.map)
    assert nothing.map_interval is None
    assert json.loads(json.dumps(nothing.to_dict(), allow_nan=False))["map"] is None


def test_the_interval_of_map_holds_the_value_and_narrows_with_more_pictures() -> None:
    logits, targets = example()
    few, many = (evaluate_labels(logits[:n], targets[:n], NAMES).map_interval for n in (60, 200))
    assert few is not None
    assert many is not None
    quick = evaluate_labels(logits, targets, NAMES, quick=True)
    assert many[0] <= quick.map <= many[1]
    assert (quick.map_interval, quick.together) == (None, [])
    assert many[1] - many[0] < few[1] - few[0]
    assert bootstrap_interval(logits, targets) == bootstrap_interval(logits, targets)


def test_the_intervals_allow_for_groups_of_pictures() -> None:
    logits, targets = example()
    copies = np.repeat(np.arange(50), 4)  # fifty pictures, each four times
    logits, targets = logits[copies, :2], targets[copies, :2]  # the third label is rare
    groups = np.array([f"p{number}" for number in copies], dtype=object)
    plain, grouped = (evaluate_labels(logits, targets, NAMES[:2], groups=one) for one in (None, groups))
    assert (plain.groups, grouped.groups) == (None, 50)
    assert plain.map == grouped.map
    assert plain.interval == wilson_interval(round(200 * plain.accuracy), 200)
    for one, other in ((plain.map_interval, grouped.map_interval), (plain.interval, grouped.interval)):
        assert one is not None
        assert other is not None
        assert other[1] - other[0] > 1.5 * (one[1] - one[0])
    single = evaluate_labels(logits, targets, NAMES[:2], groups=np.full(200, "p", dtype=object))
    assert (single.map_interval, single.interval, single.groups) == ((0.0, 1.0), (0.0, 1.0), 1)


def test_the_interval_of_map_is_as_wide_as_that_of_new_pictures() -> None:
    """Half the width is 1.96 standard deviations of mAP over independent sets of as many pictures."""
    generator = np.random.default_rng(1)
    values, widths = [], []
    for number in range(60):
        targets = generator.random((300, 2)) < 0.3
        logits = 1.5 * targets + generator.normal(size=targets.shape)
        found = evaluate_labels(logits, targets, NAMES[:2], quick=number >= 4)
        values.append(found.map)
        if found.map_interval is not None:
            widths.append((found.map_interval[1] - found.map_interval[0]) / 2)
    assert np.mean(widths) == pytest.approx(1.96 * np.std(values), rel=0.3)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_perfect_ranking_of_few_pictures_is_not_certain(grouped: bool) -> None:
    lows = []
    for count in (1, 10, 200):
        numbers = np.arange(2 * count)
        targets = numbers[:, None] % 2 == np.arange(2)
        groups = numbers // 2 if grouped and count > 1 else None
        found = evaluate_labels(np.where(targets, 3.0, -3.0), targets, NAMES[:2], groups=groups)
        assert (found.map, found.map_interval is None) == (1, False)
        low, high = found.map_interval or (0.0, 0.0)
        assert high == 1
        lows.append(low)
    assert 0 < lows[0] < lows[1] < lows[2] < 1
    if not grouped:
        assert lows == pytest.approx([wilson_interval(n, n)[0] for n in (2, 20, 400)])


def test_a_label_of_few_pictures_makes_the_interval_of_map_wide() -> None:
    """One of 200 pictures has the second label. Both labels weigh the same, so they are like four pictures."""
    targets = np.arange(200)[:, None] >= [1, 199]
    targets[199, 0] = False
    found = bootstrap_interval(np.where(targets, 3.0, -3.0), targets)
    assert found is not None
    assert found[0] == pytest.approx(wilson_interval(4, 4)[0], abs=0.01)


def best_f1(probabilities: np.ndarray, truth: np.ndarray) -> float:
    cuts = [0.0, *probabilities.tolist()]
    return max(
        2 * ((probabilities >= c) & truth).sum() / ((probabilities >= c).sum() + truth.sum()) for c in cuts
    )


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_no_threshold_has_a_higher_f1_than_the_chosen_one(seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities, targets = generator.random((40, 2)).round(1), generator.random((40, 2)) < 0.4
    assert_best(probabilities, targets)


@pytest.mark.parametrize(
    "probabilities",
    [
        1 - np.arange(2, 42) / 1e8,  # all of their cuts are 1 with six digits
        1 - np.arange(40) / 2**53,  # next to each other: halfway is a neighbour
        np.arange(40) / 1e12,
        np.zeros(40),
        np.ones(40),
    ],
)
def test_no_threshold_has_a_higher_f1_however_close_the_probabilities_are(probabilities: np.ndarray) -> None:
    for positives in (6, 7, 20, 40):
        order = np.argsort(-probabilities, kind="stable")
        targets = np.isin(np.arange(40), order[:positives])
        assert_best(probabilities[:, None], targets[:, None])
        assert_best(np.stack([probabilities] * 2, axis=1), np.stack([targets, targets & False], axis=1))


def assert_best(probabilities: np.ndarray, targets: np.ndarray) -> None:
    """Check the F1 of each label that has enough pictures."""
    for label, threshold in enumerate(choose_label_thresholds(probabilities, targets)):
        own, truth = probabilities[:, label], targets[:, label]
        assert 0 <= threshold <= 1
        if truth.sum() >= FEWEST_POSITIVES:
            hits = ((own >= threshold) & truth).sum()
            assert 2 * hits / ((own >= threshold).sum() + truth.sum()) == pytest.approx(best_f1(own, truth))


def test_a_label_with_few_pictures_takes_the_threshold_of_all_labels_together() -> None:
    frequent, rare = np.linspace(0.01, 0.99, 50), np.full(50, 0.01)
    probabilities = np.stack([frequent, rare], axis=1)
    targets = np.stack([frequent > 0.3, np.arange(50) < 2], axis=1)
    first, second = choose_label_thresholds(probabilities, targets)
    assert first == second == pytest.approx(0.3, abs=0.02)
    few = choose_label_thresholds(probabilities[:4], targets[-4:] & False)
    assert few == (0.5, 0.5)


def test_without_finite_probabilities_no_threshold_is_chosen() -> None:
    probabilities = np.linspace(0.01, 0.99, 40).reshape(20, 2)
    targets = probabilities > 0.7
    assert choose_label_thresholds(probabilities, targets) != (0.5, 0.5)
    probabilities[3, 1] = np.nan
    assert choose_label_thresholds(probabilities, targets) == (0.5, 0.5)


def test_a_logit_of_nan_gives_no_label_and_is_a_wrong_decision() -> None:
    logits, targets = example()
    silent = evaluate_labels(np.full_like(logits, np.nan), targets, NAMES)
    for decisions in (silent.at_half, silent.at_thresholds):
        assert (decisions.exact_match, decisions.micro_f1, decisions.hamming_loss) == (0.0, 0.0, 1.0)
    assert silent.accuracy == 0.0
    assert silent.map == pytest.approx(targets.mean(axis=0)[targets.any(axis=0)].mean()), "no ranking"
    assert np.isnan(silent.loss)
    one = logits.copy()
    one[0, 0] = np.nan
    before, after = (evaluate_labels(values, targets, NAMES) for values in (logits, one))
    assert after.accuracy <= before.accuracy
    assert after.at_half.hamming_loss >= before.at_half.hamming_loss
    assert after.interval[0] <= before.interval[0]


def test_extreme_logits_give_finite_numbers() -> None:
    logits = np.array([[1e4, -1e4]], dtype=np.float32)
    assert sigmoid(logits).tolist() == [[1.0, 0.0]]
    assert log_sigmoid(logits)[0].tolist() == [0.0, -1e4]
    assert binary_cross_entropy(logits, np.array([[False, True]]))[0].tolist() == [1e4, 1e4]
    assert evaluate_labels(logits, np.array([[True, False]]), NAMES[:2]).loss == 0


def test_the_calibration_error_is_the_gap_between_probability_and_frequency() -> None:
    truth = np.arange(1000) % 10 < 3
    assert calibration_error(np.full(1000, 0.3), truth) == pytest.approx(0, abs=1e-9)
    assert calibration_error(np.full(1000, 0.5), truth) == pytest.approx(0.2)


def test_the_loss_of_one_label_agrees_with_two_classes() -> None:
    """A sigmoid of x is a softmax of (0, x), so the binary cross-entropies are the same."""
    logits, targets = example()
    one = evaluate_labels(logits[:, :1], targets[:, :1], NAMES[:1])
    two = np.stack([np.zeros(len(logits), dtype=np.float32), logits[:, 0]], axis=1)
    assert one.loss == pytest.approx(evaluate_logits(two, targets[:, 0].astype(np.int64), ("no", "cat")).loss)
