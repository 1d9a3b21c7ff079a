"""Computing logits with torch."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from helpers import coloured_data
from simulated_device import CUDA, simulated_gpu
from thumbnet.batches.batches import EvalBatches
from thumbnet.batches.prepare import prepare
from thumbnet.classifiers.logits import Tensors, collect_logits, collect_views, predict_logits
from thumbnet.recipes.recipe import load_recipe

CPU = torch.device("cpu")


class Position(nn.Module):
    """Its two logits are the column and the row of the brightest pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = x[:, 0].flatten(1).argmax(1)
        return torch.stack([index % x.shape[3], index // x.shape[3]], 1).float()


def test_test_time_augmentation_is_the_mean_over_its_views() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[0, :, 5, 3] = 1
    model = Position()
    assert predict_logits(model, image, dtype=torch.float32).tolist() == [[3, 5]]
    assert predict_logits(model, image, dtype=torch.float32, tta="mirror").tolist() == [
        [7.5, 5]
    ]  # (3 + 12) / 2
    # The two shifts, by one pixel in opposite directions, cancel out.
    assert predict_logits(model, image, dtype=torch.float32, tta="mirror-shift").tolist() == [[7.5, 5]]
    assert [len(Tensors(CPU).of(image, tta)) for tta in ("none", "mirror", "mirror-shift")] == [1, 2, 6]
    both = torch.cat([image, image.roll(2, 3)])  # leads of 2 and 0, so the second is uncertain
    assert predict_logits(model, both, dtype=torch.float32, tta="adaptive").tolist() == [[3, 5], [7.5, 5]]
    shifted = Tensors(CPU).of(image, "mirror-shift")[1]
    assert shifted.shape == image.shape
    assert model(shifted).tolist() == [[4, 6]]


def test_collecting_logits_sets_eval_mode_and_keeps_no_gradients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.Dropout(0.9))
    recipe = load_recipe("tutorial", ["evaluation.batch_size=7"])
    batches = prepare(coloured_data(), recipe, torch.device("cpu")).evaluation["test"]
    first, labels = collect_logits(model, batches, dtype=torch.float32)
    second, _ = collect_logits(model, batches, dtype=torch.float32)
    assert not model.training
    assert first.shape == (60, 3)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert labels.tolist() == [0, 1, 2] * 20


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror-shift", "adaptive"])
def test_known_logits_are_not_computed_again(tta: str) -> None:
    recipe = load_recipe("tutorial", ["evaluation.batch_size=7"])
    batches = prepare(coloured_data(), recipe, torch.device("cpu")).evaluation["test"]
    model, pictures = nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal pictures
        pictures += len(inputs[0])

    plain, _ = collect_logits(model, batches, dtype=torch.float32)
    kept = plain.clone()
    model.register_forward_pre_hook(count)
    fresh, _ = collect_logits(model, batches, dtype=torch.float32, tta=tta)
    without, pictures = pictures, 0
    known = collect_views(model, batches, dtype=torch.float32, tta=tta, plain=plain)[0]
    assert torch.equal(known, fresh)
    assert torch.equal(plain, kept)
    assert pictures == without - 60


def eval_batches() -> EvalBatches:
    recipe = load_recipe("tutorial", ["evaluation.batch_size=7"])
    return prepare(coloured_data(), recipe, CPU).evaluation["test"]


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror-shift", "adaptive"])
def test_collecting_both_logits_at_once_equals_collecting_them_separately(tta: str) -> None:
    batches, model = eval_batches(), nn.Sequential(nn.Flatten(), nn.Linear(768, 3)).train()
    logits, plain, labels = collect_views(model, batches, dtype=torch.float32, tta=tta)
    assert not model.training
    assert torch.equal(plain, collect_logits(model, batches, dtype=torch.float32)[0])
    assert torch.equal(logits, collect_logits(model, batches, dtype=torch.float32, tta=tta)[0])
    assert (logits is plain) is (tta == "none")
    assert (logits.dtype, labels.dtype, labels.tolist()) == (torch.float32, torch.int64, [0, 1, 2] * 20)


@pytest.mark.parametrize("simulated", [False, True])
def test_adaptive_computes_no_view_of_a_split_whose_pictures_are_all_certain(simulated: bool) -> None:
    linear, seen = nn.Linear(768, 3), 0
    model = nn.Sequential(nn.Flatten(), linear)
    with torch.no_grad():
        linear.bias.copy_(torch.tensor([1000.0, 0, 0]))

    def count(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    model.register_forward_pre_hook(count)
    with simulated_gpu() if simulated else contextlib.nullcontext():
        device = CUDA if simulated else CPU
        recipe = load_recipe("tutorial", ["evaluation.batch_size=7"])
        batches = prepare(coloured_data(), recipe, device).evaluation["test"]
        logits, plain, _ = collect_views(model.to(device), batches, dtype=torch.float32, tta="adaptive")
    assert seen == 60
    assert torch.equal(logits, plain)


def test_known_logits_are_not_changed() -> None:
    image, model = torch.rand(2, 3, 16, 16), nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    plain = predict_logits(model, image, dtype=torch.float32)
    kept = plain.clone()
    assert not torch.equal(
        predict_logits(model, image, dtype=torch.float32, tta="mirror", plain=plain), plain
    )
    assert torch.equal(plain, kept)


def test_logits_are_float32_even_if_the_network_computes_in_bfloat16() -> None:
    image, model = torch.rand(2, 3, 16, 16), nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    exact, rough = (
        predict_logits(model, image, dtype=dtype, tta="mirror") for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact.dtype == rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.allclose(exact, rough, atol=0.05)
