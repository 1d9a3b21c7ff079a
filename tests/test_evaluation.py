from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn import metrics

from thumbnet.evaluation import (
    Curve,
    at_precision,
    best_f1,
    curve_of,
    evaluate_logits,
    log_softmax,
    micro_average,
    one_against_rest,
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
    assert result.loss == pytest.approx(
        metrics.log_loss(labels, logits.double().softmax(1), labels=range(8)), rel=1e-6
    )
    assert result.top5 == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(8)))


def test_the_interval_agrees_with_scipys_wilson_interval() -> None:
    for correct, count in ((0, 10), (10, 10), (7, 10), (9321, 10_000)):
        expected = binomtest(correct, count).proportion_ci(method="wilson")
        assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_calibration_error_agrees_with_one_computed_by_hand() -> None:
    # Two pictures at 0.9, one of them right: |0.9 - 0.5|. Two at 0.6, both right: |0.6 - 1|. The mean is 0.4.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], dtype=torch.float64)
    result = evaluate_logits(probabilities.log().numpy(), np.array([0, 1, 0, 0]), ("a", "b"))
    assert result.calibration_error == pytest.approx(0.4)
    sure = evaluate_logits(np.array([[50.0, 0.0], [0.0, 50.0]]), np.array([0, 1]), ("a", "b"))
    assert sure.calibration_error == pytest.approx(0, abs=1e-9)


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
