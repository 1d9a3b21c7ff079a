from __future__ import annotations

import numpy as np
import pytest
import torch

from thumbnet.classifiers.logits import Tensors
from thumbnet.classifiers.tta import SURE_LEAD, WEIGHTS, Arrays, unsure

CPU = torch.device("cpu")
PICTURES = np.random.default_rng(0).integers(0, 256, (9, 12, 16, 3), dtype=np.uint8)
WEIGHT = np.random.default_rng(1).normal(size=(12 * 16 * 3, 4)).astype(np.float32) / 2000


def of_arrays(pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures).reshape(len(pictures), -1).astype(np.float32) @ WEIGHT


def of_tensors(pictures: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(of_arrays(pictures.permute(0, 2, 3, 1).to(torch.uint8).numpy()))


@pytest.mark.parametrize("tta", WEIGHTS)
def test_tensors_and_arrays_have_the_same_views(tta: str) -> None:
    tensors = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float()
    both = zip(Arrays().of(PICTURES, tta), Tensors(CPU).of(tensors, tta), strict=True)
    for array, tensor in both:
        assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert len(Arrays().of(PICTURES, tta)) == len(WEIGHTS[tta])
    assert sum(WEIGHTS[tta]) == 1


def test_views_are_mirrored_and_shifted_by_one_pixel() -> None:
    plain, down_right, up_left, mirrored, *_ = Arrays().of(PICTURES, "mirror-shift")
    assert np.array_equal(plain, PICTURES)
    assert np.array_equal(down_right[:, 1:, 1:], PICTURES[:, :-1, :-1])
    assert np.array_equal(up_left[:, :-1, :-1], PICTURES[:, 1:, 1:])
    assert np.array_equal(mirrored, PICTURES[:, :, ::-1])
    assert np.array_equal(
        down_right[:, 0, 1:], PICTURES[:, 1, :-1]
    )  # the border is a reflection, not a repetition


@pytest.mark.parametrize("tta", [*WEIGHTS, "adaptive"])
def test_tensors_and_arrays_give_the_same_logits_and_keep_the_plain_ones(tta: str) -> None:
    plain = of_arrays(PICTURES)
    kept = plain.copy()
    array = Arrays().logits(of_arrays, PICTURES, plain, tta)
    tensors = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float()
    tensor = Tensors(CPU).logits(of_tensors, tensors, torch.from_numpy(plain), tta)
    assert np.allclose(array, tensor.numpy(), atol=1e-6)
    assert np.array_equal(plain, kept)
    assert (tta == "none") == np.array_equal(array, plain)


def test_adaptive_uses_all_views_of_uncertain_pictures_and_one_of_the_others() -> None:
    plain = of_arrays(PICTURES)
    asked = unsure(plain)
    assert 0 < asked.sum() < len(plain)  # there are pictures of both kinds
    adaptive = Arrays().logits(of_arrays, PICTURES, plain, "adaptive")
    whole = Arrays().logits(of_arrays, PICTURES, plain, "mirror-shift")
    assert np.array_equal(adaptive[~asked], plain[~asked])
    assert np.allclose(adaptive[asked], whole[asked], atol=1e-6)


def test_the_lead_is_that_of_the_logits_before_they_were_divided_by_the_temperature() -> None:
    logits = np.array([[0.0, SURE_LEAD], [0.0, 0.99 * SURE_LEAD]], dtype=np.float32)
    assert unsure(logits).tolist() == [False, True]
    assert unsure(logits / 4, temperature=4.0).tolist() == [False, True]


def test_the_lead_is_that_over_the_second_class() -> None:
    logits = np.array([[0.0, 9.0, 9.5], [9.5, 0.0, 5.0]], dtype=np.float32)
    assert unsure(logits).tolist() == [True, False]


def test_no_view_is_computed_if_no_picture_is_uncertain() -> None:
    def fail(pictures: np.ndarray) -> np.ndarray:
        raise AssertionError("a view was computed")

    plain = np.array([[0.0, 5.0], [7.0, 0.0]], dtype=np.float32)
    assert np.array_equal(Arrays().logits(fail, PICTURES[:2], plain, "adaptive"), plain)
