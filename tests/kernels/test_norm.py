from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from kernel_helpers import BF16, FP32, NAN_BITS, assert_close, needs_kernels, on_threads, pictures, watched
from thumbnet.distributed import SyncBatchNorm2d
from thumbnet.kernels import norm as norm_kernels
from thumbnet.kernels.calls import call
from thumbnet.kernels.norm import Activation, for_two, norm_act, plain_norm_act

TRAINING = nn.BatchNorm2d(32)
CASES = [
    (act, pool, adds)
    for act, pool, adds in itertools.product(["none", "relu", "silu"], [1, 2], [False, True])
    if not (act == "silu" and adds)
]


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "act", "pool", "adds"),
    [
        (shape, act, pool, adds)
        for shape in [(6, 64, 9, 7), (3, 32, 8, 8), (2, 96, 2, 3), (3, 16, 6, 5), (3, 8, 4, 6)]
        for act, pool, adds in CASES
        if shape[1] % 32 == 0 or pool == 1
    ],
    ids=str,
)
def test_a_fused_normalisation_equals_its_reference(
    act: Activation, pool: int, adds: bool, shape: tuple[int, int, int, int]
) -> None:
    count, channels, height, width = shape
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    nn.init.normal_(norm.weight, 1, 0.2)
    nn.init.normal_(norm.bias)
    reference = copy.deepcopy(norm).double()
    x = pictures(*shape, scale=2, shift=1).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    smaller = (count, channels, height // pool, width // pool)
    add = pictures(*smaller, seed=2).requires_grad_() if adds else None
    add64 = None if add is None else add.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_act(x, norm, act, pool=pool, add=add)
    y64 = plain_norm_act(x64, reference, act, pool=pool, add=add64)
    dy = pictures(*smaller, seed=1)
    y.backward(dy)
    y64.backward(dy.double())
    assert y.dtype == torch.bfloat16
    assert_close(y, y64, BF16)
    if height * width > 8:  # with fewer, rounding may change the sign before a ReLU
        assert_close(x.grad, x64.grad, 1.5 * BF16)  # rounded twice: before and after the normalisation
        assert_close(norm.weight.grad, reference.weight.grad, FP32 if act == "none" else BF16)
        assert_close(norm.bias.grad, reference.bias.grad, FP32 if act == "none" else BF16)
    assert_close(norm.running_mean, reference.running_mean, FP32)
    assert_close(norm.running_var, reference.running_var, FP32)
    if add is not None and add64 is not None:
        assert_close(add.grad, add64.grad, BF16)
    norm.eval()
    reference.eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        evaluated = norm_act(x, norm, act, pool=pool, add=add)
    assert_close(evaluated, plain_norm_act(x64, reference, act, pool=pool, add=add64), BF16)


@needs_kernels
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("act", ["none", "relu", "silu"])
def test_the_gradient_that_is_given_stays_as_it_is(act: Activation, adds: bool) -> None:
    """The kernel may write one gradient over another, but only over its own."""
    norm = nn.BatchNorm2d(32)
    x = pictures(5, 32, 6, 4).requires_grad_()
    add = pictures(5, 32, 6, 4, seed=2).requires_grad_() if adds else None
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_act(x, norm, act, add=add)
    dy = pictures(5, 32, 6, 4, seed=1)
    before = dy.clone()
    inputs = [x] if add is None else [x, add]
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(y, inputs, dy)
    assert torch.equal(dy, before)
    for one, again, copied in zip(first, second, kept, strict=True):
        assert torch.equal(one, copied)
        assert torch.equal(again, copied)


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "pool", "runs"),
    [
        ((3, 16, 6, 5), 1, True),
        ((3, 8, 2, 2), 1, True),
        ((3, 16, 5, 5), 1, False),  # 25 positions are no whole number of pairs
        ((3, 16, 6, 6), 2, False),  # a line would be of two windows
        ((3, 48, 4, 4), 1, False),
    ],
    ids=str,
)
def test_fewer_channels_than_a_line_share_it(
    shape: tuple[int, int, int, int], pool: int, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def note(name: str, *arguments: Tensor | int | None) -> None:
        called.append(name)
        call(name, *arguments)

    monkeypatch.setattr(norm_kernels, "call", note)
    x = pictures(*shape).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_act(x, nn.BatchNorm2d(shape[1]), "relu", pool=pool)
    y.float().sum().backward()
    kernels = ["pool_and_sum", "scale_and_activate", "backward_sums", "backward"]
    assert called == (kernels if runs else [])


@needs_kernels
@pytest.mark.parametrize("value", [-1e4, -88.0, -1e-3, 0.0, 1e-3, 88.0, 1e4])
def test_silu_is_correct_for_extreme_values(value: float) -> None:
    norm = nn.BatchNorm2d(32).eval()
    x = torch.full((1, 32, 2, 2), value, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y = norm_act(x, norm, "silu")
    expected = plain_norm_act(x.double(), copy.deepcopy(norm).double(), "silu")
    assert torch.allclose(y.double(), expected, rtol=BF16, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("bits", NAN_BITS)
@pytest.mark.parametrize(("act", "pool", "adds"), CASES)
def test_nan_stays_nan(act: Activation, pool: int, adds: bool, bits: int) -> None:
    x, norm = pictures(2, 32, 4, 4), nn.BatchNorm2d(32).eval()
    x.view(torch.int16)[1, 5, 2, 3] = bits
    add = pictures(2, 32, 4 // pool, 4 // pool, seed=1) if adds else None
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y = norm_act(x, norm, act, pool=pool, add=add)
        trained = norm_act(x, norm.train(), act, pool=pool, add=add)
    assert y.isnan().sum() == 1
    assert y[1, 5, 2 // pool, 3 // pool].isnan()
    assert trained[:, 5].isnan().all()
    assert trained.isnan().sum() == trained[:, 5].numel()


@needs_kernels
@pytest.mark.parametrize("learns", ["x", "weight", "bias", "add"])
def test_gradients_reach_all_that_learns_where_the_statistics_stay(learns: str) -> None:
    x, add, norm = pictures(2, 32, 4, 4), pictures(2, 32, 4, 4, seed=1), nn.BatchNorm2d(32).eval()
    tensors = {"x": x, "weight": norm.weight, "bias": norm.bias, "add": add}
    for name, one in tensors.items():
        one.requires_grad_(name == learns)
    with torch.autocast("cpu", torch.bfloat16):
        norm_act(x, norm, "relu", add=add).float().sum().backward()
    found = tensors[learns].grad
    assert found is not None
    assert found.abs().sum() > 0


@needs_kernels
def test_shapes_that_do_not_match_raise_the_error_of_pytorch() -> None:
    x = pictures(4, 64, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="running_mean should contain 64 elements not 32"):
            norm_act(x, nn.BatchNorm2d(32))
        with pytest.raises(RuntimeError, match="must match the size"):
            norm_act(x, nn.BatchNorm2d(64), add=pictures(4, 32, 8, 8))


@needs_kernels
def test_pictures_in_float64_are_added_in_float64() -> None:
    x = pictures(4, 64, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm_act(x, nn.BatchNorm2d(64), add=x.double()).dtype == torch.float64


@needs_kernels
@pytest.mark.parametrize(
    "settings", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_unusual_norms_run_in_pytorch(settings: dict[str, bool | None]) -> None:
    x, norm = pictures(4, 64, 8, 8), nn.BatchNorm2d(64, **settings)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_act(x, norm, "relu")
    assert_close(y, plain_norm_act(x.double(), nn.BatchNorm2d(64).double(), "relu"), BF16)


@needs_kernels
def test_another_class_of_normalisation_runs_as_it_is() -> None:
    x, norm = pictures(4, 64, 8, 8), nn.InstanceNorm2d(64, affine=True, track_running_stats=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_act(x, norm, "relu")  # type: ignore[arg-type]
    assert_close(y, F.relu(F.instance_norm(x.double())), BF16)


@needs_kernels
@pytest.mark.parametrize(
    "register",
    [
        lambda norm: norm.register_forward_pre_hook,
        lambda norm: norm.register_forward_hook,
        lambda norm: norm.register_full_backward_pre_hook,
        lambda norm: norm.register_full_backward_hook,
        lambda norm: register_module_forward_pre_hook,
        lambda norm: register_module_forward_hook,
        lambda norm: register_module_full_backward_pre_hook,
        lambda norm: register_module_full_backward_hook,
    ],
    ids=[f"{scope} {kind}" for scope in ("own", "global") for kind in ("before", "after", "dy", "dx")],
)
@pytest.mark.parametrize("adds", [False, True])
def test_hooks_of_a_normalisation_run(
    register: Callable[[nn.Module], Callable[[Callable[..., None]], RemovableHandle]], adds: bool
) -> None:
    norm, x = nn.BatchNorm2d(64), pictures(4, 64, 8, 8).requires_grad_()
    called: list[nn.Module] = []
    with register(norm)(lambda module, *arguments: called.append(module)):
        with torch.autocast("cpu", torch.bfloat16):
            y = norm_act(x, norm, "relu", add=pictures(4, 64, 8, 8) if adds else None)
        y.sum().backward()
    assert called == [norm]


@needs_kernels
def test_a_forward_method_of_its_own_is_called() -> None:
    norm, x = nn.BatchNorm2d(64), pictures(4, 64, 8, 8)
    norm.forward = torch.zeros_like  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        assert norm_act(x, norm, "none").count_nonzero() == 0


@needs_kernels
def test_statistics_without_a_count_of_batches_or_of_another_length_are_left_to_pytorch() -> None:
    x = pictures(4, 64, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        norm = nn.BatchNorm2d(64)
        norm.num_batches_tracked = None
        assert_close(norm_act(x, norm, "none"), F.batch_norm(x.double(), None, None, training=True), BF16)
        norm.running_mean = torch.zeros(32)
        with torch.no_grad(), pytest.raises(RuntimeError, match="running_mean should contain 64 elements"):
            norm_act(x, norm.eval())


@needs_kernels
def test_a_norm_without_biases_runs_in_pytorch() -> None:
    x, norm = pictures(4, 64, 8, 8), nn.BatchNorm2d(64)
    norm.register_parameter("bias", None)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_act(x, norm, "relu")
    assert_close(y, plain_norm_act(x.double(), nn.BatchNorm2d(64).double(), "relu"), BF16)


def test_a_single_value_per_channel_raises_the_error_of_pytorch() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="more than 1 value"):
        norm_kernels.norm_act(pictures(1, 32, 1, 1), nn.BatchNorm2d(32))


@needs_kernels
@pytest.mark.timeout(60)
def test_a_process_with_a_single_value_sends_the_same_sums_as_one_with_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The processes are threads. Three pictures of 1x1 pixels are shared by two of them."""
    barrier, sent = threading.Barrier(2), dict[int, Tensor]()

    def all_reduce(sums: Tensor) -> None:
        sent[threading.get_ident()] = sums.clone()
        barrier.wait(20)
        one, other = sent.values()
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        total = one + other
        barrier.wait(20)
        sums.copy_(total)

    def learn(norm: nn.BatchNorm2d, x: Tensor, dy: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = norm_act(x, norm)
        y.backward(dy)
        found = [y.detach(), x.grad, norm.weight.grad, norm.running_var]
        return [one for one in found if one is not None]

    x, dy = pictures(3, 32, 1, 1, scale=2, shift=1), pictures(3, 32, 1, 1, seed=1)
    expected = learn(nn.BatchNorm2d(32), x, dy)
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    norms = [SyncBatchNorm2d(32), SyncBatchNorm2d(32)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(learn, norms, x.tensor_split(2), dy.tensor_split(2))
    found = [
        torch.cat([first[0], second[0]]),
        torch.cat([first[1], second[1]]),
        first[2] + second[2],
        first[3],
    ]
    for ours, whole in zip(found, expected, strict=True):
        assert_close(ours, whole, BF16)
    assert torch.equal(first[3], second[3])


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(6, 64, 9, 7), (2, 96, 2, 3), (3, 16, 6, 5), (3, 8, 4, 6)], ids=str)
def test_the_gradients_of_two_uses_are_added_as_pytorch_adds_them(
    shape: tuple[int, int, int, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = pictures(*shape).requires_grad_()
    first, second = pictures(*shape, seed=1, scale=100), pictures(*shape, seed=2)
    kept = first.clone(), second.clone()
    names = watched(monkeypatch, norm_kernels)
    with on_threads(threads), torch.autocast("cpu", torch.bfloat16):
        one, other = for_two(x, TRAINING)
        assert torch.equal(one, x)
        assert torch.equal(other, x)
        torch.autograd.backward([one, other], [first, second])
    assert names == ["scale_and_activate"]
    assert x.grad is not None
    assert torch.equal(x.grad, first + second)
    assert torch.equal(first, kept[0])
    assert torch.equal(second, kept[1])


@needs_kernels
def test_gradients_of_two_uses_may_have_another_type_and_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures(3, 32, 4, 4).requires_grad_()
    first, second = pictures(3, 32, 4, 4, seed=1), pictures(3, 32, 4, 4, seed=2)
    names = watched(monkeypatch, norm_kernels)
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.backward(for_two(x, TRAINING), [first.float(), second.float().contiguous()])
    assert names == ["scale_and_activate"]
    assert x.grad is not None
    assert torch.equal(x.grad, first + second)


@needs_kernels
def test_one_of_two_uses_may_have_no_gradient_and_a_second_pass_gives_the_same() -> None:
    x = pictures(3, 32, 4, 4).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        one, other = for_two(x, TRAINING)
    one.backward(pictures(3, 32, 4, 4, seed=1))
    assert x.grad is not None
    assert torch.equal(x.grad, pictures(3, 32, 4, 4, seed=1))
    again = pictures(3, 32, 4, 4).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        one, other = for_two(again, TRAINING)
    for _ in range(2):
        other.backward(pictures(3, 32, 4, 4, seed=2), retain_graph=True)
    assert again.grad is not None
    assert torch.equal(again.grad, 2 * pictures(3, 32, 4, 4, seed=2))


@needs_kernels
def test_pictures_without_a_gradient_or_in_float32_are_used_twice_as_they_are() -> None:
    plain = pictures(3, 32, 4, 4)
    exact = plain.float().requires_grad_()
    learning = pictures(3, 32, 4, 4).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(one is plain for one in for_two(plain, TRAINING))
        assert all(one is exact for one in for_two(exact, TRAINING))
        with torch.no_grad():
            assert all(one is learning for one in for_two(learning, TRAINING))
    assert all(one is learning for one in for_two(learning, TRAINING))


@needs_kernels
def test_pictures_are_used_twice_as_they_are_where_the_normalisation_runs_in_pytorch() -> None:
    """Then PyTorch may want a gradient of the gradient, or several gradients at once."""
    x = pictures(3, 32, 4, 4).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        for norm in (nn.BatchNorm2d(32).eval(), nn.GroupNorm(2, 32)):
            assert all(one is x for one in for_two(x, norm))  # type: ignore[arg-type]
