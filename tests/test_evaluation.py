from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm, t
from sklearn import metrics

from thumbnet.evaluation import (
    Z95,
    Curve,
    at_precision,
    best_f1,
    curve_of,
    evaluate_logits,
    group_scores,
    grouped_bounds,
    grouped_interval,
    log_softmax,
    micro_average,
    one_against_rest,
    student_quantiles,
    wilson_bounds,
    wilson_interval,
)

NAMES = tuple("abcdefgh")


@pytest.fixture(scope="module")
def sample() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (500,), generator=generator)  # no picture of class h
    logits = torch.randn(500, 8, generator=generator)
    logits[torch.arange(500), labels] += 1.5
    logits[:, 6] = -10  # class g is never predicted
    return logits, labels


def test_measures_agree_with_scikit_learn(sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = sample
    result = evaluate_logits(logits.numpy(), labels.numpy(), NAMES)
    predicted = logits.argmax(1)
    assert result.accuracy == metrics.accuracy_score(labels, predicted)
    assert result.confusion == metrics.confusion_matrix(labels, predicted, labels=range(8)).tolist()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(8), zero_division=0.0
    )
    assert np.allclose([c.precision for c in result.classes], precision)
    assert np.allclose([c.recall for c in result.classes], recall)
    assert np.allclose([c.f1 for c in result.classes], f1)
    assert [c.pictures for c in result.classes] == support.tolist()
    assert [c.predicted for c in result.classes] == np.bincount(predicted.numpy(), minlength=8).tolist()
    unknown = [[value is None for value in one.defined] for one in result.classes]
    assert unknown[:6] == [[False] * 3] * 6
    assert unknown[6:] == [[True, False, False], [False, True, True]]
    assert result.loss == pytest.approx(
        metrics.log_loss(labels, logits.double().softmax(1), labels=range(8)), rel=1e-6
    )
    assert result.top5 == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(8)))


def test_the_interval_agrees_with_scipys_wilson_interval() -> None:
    for correct, count in ((0, 10), (10, 10), (7, 10), (9321, 10_000)):
        expected = binomtest(correct, count).proportion_ci(method="wilson")
        assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("z", [Z95, 1.6448536269514722])
def test_quantiles_of_students_distribution_agree_with_scipys(z: float) -> None:
    degrees = np.array([1, 2, 3, 4, 7, 30, 99, 100, 101, 500, 100_000])
    expected = t.ppf(norm.cdf(z), degrees)
    np.testing.assert_allclose(student_quantiles(z, degrees), expected, rtol=1e-6)


def in_groups(
    groups: int, pictures: int, alike: float, seed: int = 0, accuracy: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Whether pictures are right, with ``accuracy`` on average, and their groups.

    ``alike`` is the correlation of two pictures of a group, 0 to 1.
    """
    generator = np.random.default_rng(seed)
    shares = np.full(groups, accuracy)
    if alike == 1:
        shares = (generator.random(groups) < accuracy).astype(np.float64)
    elif alike:
        both = 1 / alike - 1
        shares = generator.beta(accuracy * both, (1 - accuracy) * both, groups)
    names = np.repeat([f"p{number}" for number in range(groups)], pictures).astype(object)
    return generator.random(len(names)) < np.repeat(shares, pictures), names


def test_pictures_of_a_group_that_are_all_alike_count_as_one() -> None:
    right, groups = in_groups(200, 10, alike=1)
    ones = right.reshape(200, 10)[:, 0]
    found, expected = grouped_interval(right, groups), wilson_interval(int(ones.sum()), 200)
    assert found == pytest.approx(expected, abs=0.003)  # Student's quantile is a little larger than 1.96
    assert found[1] - found[0] > expected[1] - expected[0]
    independent = wilson_interval(int(right.sum()), 2000)
    assert found[1] - found[0] > 3 * (independent[1] - independent[0])


def test_pictures_that_are_independent_in_spite_of_groups_have_nearly_the_interval_without_groups() -> None:
    right, groups = in_groups(300, 10, alike=0)
    found, expected = grouped_interval(right, groups), wilson_interval(int(right.sum()), 3000)
    assert found[0] <= expected[0]
    assert found[1] >= expected[1]
    assert found == pytest.approx(expected, abs=0.004)
    alone = np.array([f"p{number}" for number in range(3000)], dtype=object)
    assert grouped_interval(right, alone) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("groups", "pictures", "accuracy"), [(40, 10, 0.9), (30, 20, 0.98)])
def test_intervals_with_groups_hold_the_true_accuracy_about_as_often_as_they_say(
    groups: int, pictures: int, accuracy: float
) -> None:
    held, held_without = 0, 0
    for seed in range(400):
        right, names = in_groups(groups, pictures, 0.3, seed, accuracy)
        low, high = grouped_interval(right, names)
        held += low <= accuracy <= high
        low, high = wilson_interval(int(right.sum()), len(right))
        held_without += low <= accuracy <= high
    assert held >= 360
    assert held_without < 320


def test_without_mistakes_an_interval_is_that_of_as_many_pictures_as_groups() -> None:
    groups = np.repeat(np.arange(30), 20)
    low, high = grouped_interval(np.ones(600, dtype=bool), groups)
    assert (low, high) == pytest.approx((1 / (1 + t.ppf(0.975, 29) ** 2 / 30), 1.0))
    assert grouped_interval(np.zeros(600, dtype=bool), groups) == pytest.approx((0.0, 1 - low), abs=1e-12)


def test_a_single_group_gives_no_interval_and_two_give_a_wide_one() -> None:
    right = np.arange(100) % 10 > 0
    assert grouped_interval(right, np.zeros(100, dtype=int)) == (0.0, 1.0)
    low, high = grouped_interval(right, np.arange(100) // 50)
    assert 0 < low < 0.6 < 0.95 < high < 1


def test_a_group_that_has_most_of_the_pictures_makes_the_interval_wide() -> None:
    right, numbers = np.arange(150) % 10 > 0, np.arange(150)
    even, uneven = numbers // 10, np.maximum(numbers - 99, 0)  # 15 groups of 10; one of 100, and 50 of one
    low, high = grouped_interval(right, even)
    assert high - low < 0.15
    # The group of 100 has its share of mistakes. Of the others, 45 are 0.1 above theirs, and 5 are 0.9 below.
    effect = ((45 * 0.1**2 + 5 * 0.9**2) * 51 / 50 + (100**2 + 50) / 150) / (150 * 0.9 * 0.1 + 1)
    effective = np.array(150 / effect)
    expected = [float(end) for end in wilson_bounds(0.9 * effective, effective, float(t.ppf(0.975, 1)))]
    assert list(grouped_interval(right, uneven)) == pytest.approx(expected)
    assert expected[1] - expected[0] > 0.5


def test_the_bounds_of_the_first_pictures_are_those_of_these_pictures_alone() -> None:
    right, groups = in_groups(12, 5, alike=0.3)
    order = np.random.default_rng(1).permutation(60)
    right, groups = right[order], groups[order]
    low, high = grouped_bounds(right, groups, Z95)
    for count in (1, 2, 7, 30, 60):
        found = grouped_interval(right[:count], groups[:count])
        assert found == pytest.approx((low[count - 1], high[count - 1]), abs=1e-12)
    assert grouped_interval(right[::-1], groups[::-1]) == pytest.approx((low[-1], high[-1]), abs=1e-12)


def test_only_the_interval_of_an_evaluation_depends_on_groups(
    sample: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = (one.numpy() for one in sample)
    plain = evaluate_logits(logits, labels, NAMES)
    groups = np.array([f"p{number}" for number in labels], dtype=object)
    grouped = evaluate_logits(logits, labels, NAMES, groups)
    assert (plain.groups, grouped.groups) == (None, 7)
    assert plain.interval == wilson_interval(round(500 * plain.accuracy), 500)
    assert grouped.interval[0] < plain.interval[0] < plain.interval[1] < grouped.interval[1]
    assert replace(grouped, groups=None, interval=plain.interval) == plain


def test_the_groups_with_the_most_mistakes_beyond_their_share_come_first() -> None:
    groups = np.array(["many"] * 20 + ["alone"] + ["good"] * 20, dtype=object)
    right = np.array([True] * 10 + [False] * 10 + [False] + [True] * 20)
    first, second, third = group_scores(right, groups)
    assert (first.name, first.pictures, first.right, first.accuracy) == ("many", 20, 10, 0.5)
    assert (second.name, second.accuracy) == ("alone", 0.0)
    assert (third.name, third.accuracy) == ("good", 1.0)


def test_the_calibration_error_agrees_with_one_computed_by_hand() -> None:
    # Two pictures at 0.9, one of them right: |0.9 - 0.5|. Two at 0.6, both right: |0.6 - 1|. The mean is 0.4.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], dtype=torch.float64)
    result = evaluate_logits(probabilities.log().numpy(), np.array([0, 1, 0, 0]), ("a", "b"))
    assert result.calibration_error == pytest.approx(0.4)
    sure = evaluate_logits(np.array([[50.0, 0.0], [0.0, 50.0]]), np.array([0, 1]), ("a", "b"))
    assert sure.calibration_error == pytest.approx(0, abs=1e-9)


def test_a_picture_that_gets_nan_is_wrong_whatever_its_class(
    sample: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = (part.numpy() for part in sample)
    silent = evaluate_logits(np.full_like(logits, np.nan), labels, NAMES)
    assert (silent.accuracy, silent.balanced_accuracy, silent.top5) == (0.0, 0.0, 0.0)
    assert np.sum(silent.confusion) == 0
    assert np.isnan([silent.loss, silent.calibration_error]).all()
    broken = labels == 0  # argmax would put NaN into this class
    for wrong in (np.nan, np.inf):
        partly = logits.copy()
        partly[broken, 3] = wrong
        found = evaluate_logits(partly, labels, NAMES)
        rest = evaluate_logits(logits[~broken], labels[~broken], NAMES)
        assert found.pictures == 500
        assert found.accuracy == pytest.approx(rest.accuracy * (~broken).mean())
        assert found.classes[0].recall == 0.0
        assert [one.pictures for one in found.classes] == np.bincount(labels, minlength=8).tolist()
        assert found.confusion == rest.confusion
        assert found.top5 == pytest.approx(rest.top5 * (~broken).mean())


def test_top5_needs_more_than_five_classes(sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = sample
    assert evaluate_logits(logits[:, :5].numpy(), labels.clamp(max=4).numpy(), NAMES[:5]).top5 is None


def with_ties(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Scores, many of them equal, that are higher for pictures of the class; and which pictures those are."""
    rng = np.random.default_rng(5)
    truth = rng.random(count) < 0.3
    return np.round(np.clip(rng.normal(0.4 + 0.25 * truth, 0.2), 0, 1), 2), truth


def test_curves_and_their_areas_agree_with_scikit_learn() -> None:
    scores, truth = with_ties()
    curve = curve_of(scores, truth)
    assert (curve.positives, curve.negatives) == (truth.sum(), (~truth).sum())
    assert len(curve.thresholds) == len(np.unique(scores)) < len(scores) / 3
    assert curve.auroc == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    assert curve.average_precision == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-12)
    x, y, thresholds = metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert np.allclose(curve.thresholds, thresholds[1:])  # the first of scikit-learn's is infinite
    assert np.allclose((curve.false_positive_rate, curve.recall), (x[1:], y[1:]))
    precision, recall, _ = metrics.precision_recall_curve(truth, scores)
    assert np.allclose(curve.precision, precision[-2::-1])
    assert np.allclose(curve.recall, recall[-2::-1])


def test_averages_over_classes_agree_with_scikit_learn(sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = (one.numpy() for one in sample)
    probabilities = np.exp(log_softmax(logits))
    curves = one_against_rest(probabilities, labels)
    one_hot = labels[:, None] == np.arange(8)
    each = metrics.roc_auc_score(one_hot[:, :7], probabilities[:, :7], average=None)
    assert np.allclose([curve.auroc for curve in curves[:7]], each)
    micro = micro_average(probabilities, labels)
    assert micro.auroc == pytest.approx(metrics.roc_auc_score(one_hot, probabilities, average="micro"))
    assert micro.average_precision == pytest.approx(
        metrics.average_precision_score(one_hot, probabilities, average="micro")
    )


def test_a_class_without_pictures_has_no_areas_and_no_thresholds() -> None:
    nobody = curve_of(np.array([0.2, 0.9]), np.array([False, False]))
    assert np.isnan([nobody.auroc, nobody.average_precision]).all()
    assert best_f1(nobody) is None
    assert at_precision(nobody, 0.0) is None
    everybody = curve_of(np.array([0.2, 0.9]), np.array([True, True]))
    assert np.isnan(everybody.auroc)
    assert everybody.average_precision == 1


def measured_at(scores: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[float, float, float]:
    found = scores >= threshold
    return (
        metrics.precision_score(truth, found),
        metrics.recall_score(truth, found),
        metrics.f1_score(truth, found),
    )


def test_the_threshold_for_the_best_f1_is_the_best_of_all() -> None:
    scores, truth = with_ties()
    best = best_f1(curve_of(scores, truth))
    assert best is not None
    assert (best.precision, best.recall, best.f1) == pytest.approx(measured_at(scores, truth, best.threshold))
    assert best.f1 == pytest.approx(max(measured_at(scores, truth, one)[2] for one in np.unique(scores)))


@pytest.mark.parametrize("wanted", [0.6, 0.8, 0.95])
def test_the_threshold_for_a_precision_gives_it_with_the_most_recall(wanted: float) -> None:
    scores, truth = with_ties()
    point = at_precision(curve_of(scores, truth), wanted)
    assert point is not None
    precision, recall, _ = measured_at(scores, truth, point.threshold)
    assert (point.precision, point.recall) == pytest.approx((precision, recall))
    assert precision >= wanted
    others = [measured_at(scores, truth, one) for one in np.unique(scores)]
    assert recall == pytest.approx(max(recall for precision, recall, _ in others if precision >= wanted))


def test_a_precision_that_no_threshold_reaches_has_no_threshold() -> None:
    upside_down: Curve = curve_of(np.array([0.9, 0.8, 0.1]), np.array([False, True, False]))
    assert at_precision(upside_down, 0.6) is None
    half = at_precision(upside_down, 0.5)
    assert half is not None
    assert (half.threshold, half.recall) == (0.8, 1.0)
