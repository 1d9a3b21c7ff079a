from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kernel_helpers import BF16, FP32, assert_close, needs_kernels, on_threads
from thumbnet.kernels import library
from thumbnet.kernels.muon import add_momentum, plain_momentum, plain_step, rescale_and_step
from thumbnet.training.muon import Muon

# Filters [O, I, k, k]: with and without a rest of 16 values, and one value.
SHAPES = [(64, 32, 3, 3), (24, 3, 3, 3), (10, 5, 1, 1), (1, 1, 1, 1), (7, 9, 2, 2)]


def filters(seed: int, *, dtype: torch.dtype = torch.float32, room: int = 0) -> list[Tensor]:
    """Random filters, channels last. Each is followed in memory by ``room`` values of 7."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for outputs, inputs, height, width in SHAPES:
        values = torch.randn(outputs * height * width * inputs, generator=generator)
        whole = torch.cat([values, torch.full((room,), 7.0)]).to(dtype)
        bank = whole[: len(values)].view(outputs, height, width, inputs)
        made.append(bank.permute(0, 3, 1, 2))
    return made


def after(tensor: Tensor, room: int) -> Tensor:
    """What follows a tensor of :func:`filters` in memory."""
    return torch.as_strided(tensor, (room,), (1,), tensor.storage_offset() + tensor.numel())


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_momentum_equals_its_reference(threads: int) -> None:
    gradients, buffers = filters(0), filters(1, room=64)
    exact = [buffer.double() for buffer in buffers]
    expected = plain_momentum([gradient.double() for gradient in gradients], exact, 0.6)
    with on_threads(threads):
        updates = add_momentum(gradients, buffers, 0.6)
    for update, buffer, wanted, whole in zip(updates, buffers, expected, exact, strict=True):
        assert update.dtype == torch.bfloat16
        assert_close(update, wanted, BF16)
        assert_close(buffer, whole, FP32)
        assert torch.equal(after(buffer, 64), torch.full((64,), 7.0))


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_step_equals_its_reference(threads: int) -> None:
    banks, steps = filters(0, room=64), filters(1, dtype=torch.bfloat16)
    expected = [bank.double() for bank in banks]
    plain_step(expected, [step.double() for step in steps], 0.3)
    with on_threads(threads):
        rescale_and_step(banks, steps, 0.3)
    for bank, wanted in zip(banks, expected, strict=True):
        assert_close(bank, wanted, FP32)
        assert torch.equal(after(bank, 64), torch.full((64,), 7.0))


@needs_kernels
def test_the_number_of_threads_changes_no_bit() -> None:
    """So that all processes of a training keep the same filters, whatever their computers."""
    results = []
    for threads in (1, 2, 3):
        banks, gradients = filters(0), filters(1)
        with on_threads(threads):
            rescale_and_step(banks, add_momentum(gradients, filters(2), 0.9), 0.1)
        results.append(torch.cat([bank.flatten() for bank in banks]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_kernels
def test_filters_of_zeros_and_without_a_gradient_stay_zero() -> None:
    bank = torch.zeros(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    rescale_and_step([bank], [bank.bfloat16()], 0.1)
    assert torch.equal(bank, torch.zeros_like(bank))


@needs_kernels
@pytest.mark.parametrize("other", ["contiguous", "double"])
def test_filters_stored_in_another_way_step_in_pytorch(other: str) -> None:
    """The result is float32 to float64's accuracy: the kernel would have rounded the updates."""
    convert = {"contiguous": Tensor.contiguous, "double": Tensor.double}[other]
    gradients, buffers = ([convert(bank) for bank in filters(seed)[:2]] for seed in (0, 1))
    expected = plain_momentum(
        [gradient.double() for gradient in gradients], [buffer.double().clone() for buffer in buffers], 0.6
    )
    for update, wanted in zip(add_momentum(gradients, buffers, 0.6), expected, strict=True):
        assert_close(update, wanted, FP32)


@needs_kernels
def test_muon_steps_alike_with_and_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.Conv2d(32, 16, 3, bias=False))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 8, 8)

    def trained() -> list[Tensor]:
        one = copy.deepcopy(model)
        muon = Muon([{"params": list(one.parameters())}], lr=0.1, momentum=0.6)
        for _ in range(3):
            muon.zero_grad()
            one(images).square().mean().backward()
            muon.step()
        return [parameter.detach() for parameter in one.parameters()]

    with_kernels = trained()
    monkeypatch.setattr(library, "_loaded", dict(library._loaded))
    library.switch_off("for a test")
    for ours, plain in zip(with_kernels, trained(), strict=True):
        assert (ours - plain).norm() < 0.02 * plain.norm()
        assert not torch.equal(ours, plain)
