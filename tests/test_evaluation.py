from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn import metrics

from thumbnet.evaluation import evaluate_logits, wilson_interval

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
