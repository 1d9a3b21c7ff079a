"""Scores for pictures unlike the training pictures."""

from __future__ import annotations

import numpy as np
import pytest

from thumbnet.classifiers.unlike import SCORES, fit_unlikeness, unlikeness
from thumbnet.runs.certainty import SCORE_NAMES, Unlikeness


def test_the_scores_are_those_of_their_papers() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert SCORES["energy"](logits) == pytest.approx([-np.log(np.exp([1, 2, 3]).sum()), -np.log(3)])
    assert SCORES["probability"](logits) == pytest.approx([1 - np.exp(3) / np.exp([1, 2, 3]).sum(), 2 / 3])
    assert SCORES["logit"](logits).tolist() == [-3.0, 0.0]
    assert tuple(SCORES) == SCORE_NAMES


@pytest.mark.parametrize("score", SCORES)
def test_a_picture_of_no_class_has_a_higher_score_and_large_logits_do_not_overflow(score: str) -> None:
    found = SCORES[score](np.array([[900.0, 0, 0], [8.0, 0, 0], [0.1, 0, 0]], dtype=np.float32))
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all() or score == "probability"
    assert found[2] > found[1]


@pytest.mark.parametrize("score", SCORES)
def test_the_temperature_does_not_change_a_score(score: str) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert unlikeness(logits / 0.4, 0.4, score) == pytest.approx(SCORES[score](logits), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("score", SCORES)
def test_the_threshold_lets_99_percent_of_the_held_out_pictures_pass(score: str) -> None:
    logits = np.random.default_rng(0).normal(size=(1000, 5)) * 3
    found = fit_unlikeness(logits, score)
    assert found is not None
    assert (found.score, found.pictures) == (score, 1000)
    assert found.passed == pytest.approx(0.99, abs=0.001)
    above = SCORES[score](logits) > found.threshold
    assert 9 <= above.sum() <= 10


def test_with_few_pictures_all_of_them_pass() -> None:
    logits = np.random.default_rng(0).normal(size=(60, 5))
    found = fit_unlikeness(logits)
    assert found is not None
    assert found.passed == 1
    assert fit_unlikeness(logits[:19]) is None
    logits[0, 0] = np.nan
    assert fit_unlikeness(logits) is None


def test_equal_scores_all_pass() -> None:
    assert fit_unlikeness(np.zeros((500, 2)), "logit") == Unlikeness("logit", 0.0, 1.0, 500)
