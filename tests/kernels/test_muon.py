from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from kernel_helpers import BF16, FP32, assert_close, needs_kernels, on_threads, watched
from thumbnet.kernels import library, muon
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


def kept(bank: Tensor) -> Tensor:
    return bank.clone()


def in_double(bank: Tensor) -> Tensor:
    return bank.double()


def in_rows(bank: Tensor) -> Tensor:
    return bank.contiguous()


def marked(bank: Tensor) -> Tensor:
    return bank.clone().as_subclass(Marked)


class Marked(Tensor):
    """A subclass may keep its values elsewhere."""


OTHERS = [
    (one, other)
    for one, other in itertools.product((kept, in_double, in_rows, marked), repeat=2)
    if {one, other} != {kept}
]


@needs_kernels
@pytest.mark.parametrize(("stored", "buffered"), OTHERS)
def test_the_momentum_of_filters_stored_in_another_way_is_added_in_pytorch(
    stored: Callable[[Tensor], Tensor], buffered: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients, buffers = list(map(stored, filters(0)[:2])), list(map(buffered, filters(1)[:2]))
    exact = [buffer.double().clone() for buffer in buffers]
    expected = plain_momentum([gradient.double() for gradient in gradients], exact, 0.6)
    names = watched(monkeypatch, muon)
    for update, wanted in zip(add_momentum(gradients, buffers, 0.6), expected, strict=True):
        assert_close(update, wanted, FP32)
    for buffer, wanted in zip(buffers, exact, strict=True):
        assert_close(buffer, wanted, FP32)
    assert names == []


@needs_kernels
@pytest.mark.parametrize("rate", [0.3, torch.tensor(0.3)], ids=["number", "tensor"])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(("stored", "stepped"), [(kept, kept), *OTHERS])
def test_filters_stored_in_another_way_step_in_pytorch(
    stored: Callable[[Tensor], Tensor],
    stepped: Callable[[Tensor], Tensor],
    narrow: bool,
    rate: float | Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So do filters whose steps are not bfloat16, or whose rate is a tensor."""
    banks = list(map(stored, filters(0)[:2]))
    steps = [step.bfloat16() if narrow else step for step in map(stepped, filters(1)[:2])]
    expected = [bank.double() for bank in map(kept, banks)]
    plain_step(expected, [step.double() for step in steps], 0.3)
    names = watched(monkeypatch, muon)
    rescale_and_step(banks, steps, rate)
    for bank, wanted in zip(banks, expected, strict=True):
        assert_close(bank, wanted, FP32)
    as_the_kernel = (stored, stepped, narrow) in {(kept, kept, True), (kept, in_double, True)}
    assert bool(names) == (as_the_kernel and not isinstance(rate, Tensor))


@needs_kernels
@pytest.mark.parametrize(("inputs", "loaded"), [(1, 3), (3, 1)])
def test_a_state_of_filters_of_another_shape_raises_the_error_of_pytorch(inputs: int, loaded: int) -> None:
    """PyTorch's ``load_state_dict`` does not compare shapes."""

    def stepping(channels: int) -> Muon:
        bank = nn.Parameter(torch.ones(4, channels, 3, 3).contiguous(memory_format=torch.channels_last))
        bank.grad = torch.ones_like(bank)
        return Muon([{"params": [bank]}], lr=0.1, momentum=0.6, filters=[bank])

    one, other = stepping(inputs), stepping(loaded)
    other.step()
    one.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError):
        one.step()


@needs_kernels
def test_a_momentum_of_another_shape_writes_nothing_past_its_memory() -> None:
    room = torch.full((4 * 3 * 3 * 3,), 7.0)
    buffer = room[:36].view(4, 3, 3, 1).permute(0, 3, 1, 2)
    gradient = torch.ones(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError):
        add_momentum([gradient], [buffer], 0.6)
    assert torch.equal(room[36:], torch.full((72,), 7.0))


@needs_kernels
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_autograd_notices_that_filters_and_momentum_have_changed(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    """Otherwise a backward pass through the filters before the step would silently use those after it."""
    bank, x = filters(0)[0].requires_grad_(), torch.randn(2, 32, 4, 4, requires_grad=True)
    buffer, gradient = filters(1)[0], filters(2)[0]
    y, z = nn.functional.conv2d(x, bank).sum(), (x[:, :, :3, :3] * buffer[:2]).sum()
    with mode():
        updates = add_momentum([gradient], [buffer], 0.6)
        rescale_and_step([bank.detach()], updates, 0.1)
    for result in (y, z):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


@needs_kernels
def test_filters_without_a_count_of_changes_step() -> None:
    """Tensors that are made in inference mode have none."""
    with torch.inference_mode():
        banks = filters(0)
        rescale_and_step(banks, add_momentum(filters(1), filters(2), 0.6), 0.1)
    others = filters(0)
    rescale_and_step(others, add_momentum(filters(1), filters(2), 0.6), 0.1)
    assert all(torch.equal(bank, other) for bank, other in zip(banks, others, strict=True))


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["filters", "step"])
def test_what_is_not_finite_becomes_what_the_reference_makes_of_it(value: float, where: str) -> None:
    bank, step = filters(0)[0], filters(1, dtype=torch.bfloat16)[0]
    (bank if where == "filters" else step)[3, 2, 1, 1] = value
    expected = [bank.clone()]
    plain_step(expected, [step], 0.1)
    rescale_and_step([bank], [step], 0.1)
    assert torch.equal(bank.isnan(), expected[0].isnan())
    assert torch.equal(bank.isinf(), expected[0].isinf())
    assert not bank.isfinite().all()


@needs_kernels
def test_muon_steps_alike_with_and_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.Conv2d(32, 16, 3, bias=False))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 8, 8)

    def trained() -> list[Tensor]:
        one = copy.deepcopy(model)
        filters = list(one.parameters())
        muon = Muon([{"params": filters}], lr=0.1, momentum=0.6, filters=filters)
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
