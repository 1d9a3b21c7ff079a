"""Scores for pictures unlike the training pictures."""

from __future__ import annotations

import numpy as np
import pytest

from sorting_helpers import unlike_above
from thumbnet.classifiers.unlike import SCORES, distances, fit_unlikeness, looks, unlikeness
from thumbnet.runs.certainty import LOOKS, SCORE_NAMES


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
    assert found[2] > found[1] > found[0]


@pytest.mark.parametrize("score", SCORES)
def test_the_temperature_does_not_change_the_result(score: str) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    how, seen = unlike_above(0.5, score), np.zeros((20, LOOKS))
    ours = unlikeness(logits, seen, 1.0, how)
    assert unlikeness(logits / np.float32(0.4), seen, 0.4, how) == pytest.approx(ours, rel=1e-4, abs=1e-4)
    assert ours == pytest.approx(SCORES[score](logits) + 0.5, abs=1e-5)
    assert ((ours > 1) == (SCORES[score](logits) > 0.5)).all()


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Soft pictures of moderate contrast: uint8 [count, 16, 16, 3]."""
    random = np.random.default_rng(seed)
    coarse = random.normal(128, 30, (count, 4, 4, 3)) + random.normal(0, 30, (count, 1, 1, 1))
    fine = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2) + random.normal(0, 5, (count, 16, 16, 3))
    return np.clip(fine, 0, 255).astype(np.uint8)


def test_looks_describe_colour_contrast_and_edges() -> None:
    red = np.zeros((1, 6, 5, 3), np.uint8)
    red[..., 0] = 255
    stripes = np.zeros((1, 6, 5, 3), np.uint8)
    stripes[:, :, ::2] = 255
    plain, striped = looks(np.concatenate([red, stripes]))
    assert plain.shape == (LOOKS,)
    assert plain[:3] == pytest.approx([1, 0, 0])
    assert plain[3] < striped[3]  # contrast
    assert plain[4] < striped[4]  # edges
    assert plain[6] > striped[6]  # saturation
    assert striped[8] > 2  # upright edges
    assert looks(stripes.transpose(0, 2, 1, 3))[0, 8] == pytest.approx(-striped[8])
    assert np.isfinite(looks(np.zeros((2, 1, 1, 3), np.uint8))).all()


def test_noise_plain_colours_and_other_contrasts_look_unlike() -> None:
    known, held_out, others = (looks(pictures(600, seed)) for seed in (0, 1, 2))
    logits = np.random.default_rng(0).normal(size=(600, 5)) * 3
    found = fit_unlikeness(logits, held_out, known)
    assert found is not None
    usual = np.tile(logits[SCORES["logit"](logits).argsort()[300]], (600, 1))  # says nothing about the looks
    assert np.mean(unlikeness(usual, others, 1.0, found) > 1) < 0.03
    random = np.random.default_rng(3)
    noise = random.integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)
    plain = np.broadcast_to(random.integers(0, 256, (100, 1, 1, 3), dtype=np.uint8), noise.shape)
    for odd in (noise, plain, pictures(100) // 8):
        assert np.mean(unlikeness(usual[:100], looks(odd), 1.0, found) > 1) > 0.95


@pytest.mark.parametrize("score", SCORES)
def test_99_percent_of_the_held_out_pictures_pass_both_thresholds(score: str) -> None:
    seen = looks(pictures(1000))
    logits = np.random.default_rng(0).normal(size=(1000, 5)) * 3
    found = fit_unlikeness(logits, seen, looks(pictures(500, 1)), score)
    assert found is not None
    assert (found.score, found.pictures) == (score, 1000)
    above = [
        SCORES[score](logits) > found.threshold,
        distances(seen, np.array(found.mean), np.array(found.inverse)) > found.distance_threshold,
    ]
    assert found.passed == 1 - np.mean(above[0] | above[1]) >= 0.99
    assert 8 <= np.sum(above[0] | above[1]) <= 10
    assert abs(above[0].sum() - above[1].sum()) <= 2  # the same quantile
    result = unlikeness(logits, seen, 1.0, found)
    assert ((result > 1) == (above[0] | above[1])).all()
    assert 0 < np.median(result) < 1


def test_with_few_pictures_all_of_them_pass() -> None:
    logits, seen = np.random.default_rng(0).normal(size=(60, 5)), looks(pictures(60))
    found = fit_unlikeness(logits, seen, seen)
    assert found is not None
    assert found.passed == 1
    assert fit_unlikeness(logits[:19], seen[:19], seen) is None
    assert fit_unlikeness(logits, seen, seen[:19]) is None
    logits[0, 0] = np.nan
    assert fit_unlikeness(logits, seen, seen) is None


def test_training_pictures_that_all_look_the_same_are_no_problem() -> None:
    same = looks(np.full((50, 8, 8, 3), 100, np.uint8))
    found = fit_unlikeness(np.zeros((50, 2)), same, same)
    assert found is not None
    assert found.passed == 1
    faint = looks(np.full((1, 8, 8, 3), 101, np.uint8))
    assert unlikeness(np.zeros((1, 2)), same[:1], 1.0, found) <= 1
    assert unlikeness(np.zeros((1, 2)), looks(np.full((1, 8, 8, 3), 200, np.uint8)), 1.0, found) > 1
    assert np.isfinite(unlikeness(np.zeros((1, 2)), faint, 1.0, found)).all()
