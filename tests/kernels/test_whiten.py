from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_helpers import BF16, assert_close, needs_kernels, on_threads, pictures, watched
from thumbnet.kernels import whiten
from thumbnet.kernels.whiten import plain_whiten_act, whiten_act


def layer(channels: int, outputs: int, *, learns: bool = False) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, outputs, 2).requires_grad_(learns)


def runs(x: Tensor, conv: nn.Conv2d, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernel takes this layer; the result is compared with the reference in any case."""
    with monkeypatch.context() as changed, torch.autocast("cpu", torch.bfloat16):
        calls = watched(changed, whiten)
        y = whiten_act(x, conv)
    assert_close(y, plain_whiten_act(x.detach().double(), copy_in_double(conv)), 2 * BF16)
    return calls == ["whiten_and_activate"]


def copy_in_double(conv: nn.Conv2d) -> nn.Conv2d:
    """The layer with filters that are rounded to bfloat16, as autocast does."""
    other = nn.Conv2d(conv.in_channels, conv.out_channels, 2, bias=conv.bias is not None).double()
    other.weight.data.copy_(conv.weight.detach().bfloat16())
    if conv.bias is not None and other.bias is not None:
        other.bias.data.copy_(conv.bias.detach())
    return other


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((5, 3, 32, 32), 24), ((2, 1, 7, 9), 8), ((3, 4, 2, 2), 32), ((2, 2, 5, 20), 16)],
    ids=str,
)
def test_whitening_equals_its_reference(
    shape: tuple[int, int, int, int], outputs: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_threads(threads):
        assert runs(pictures(*shape, scale=2).float(), layer(shape[1], outputs), monkeypatch)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
def test_a_single_column_has_no_patch_and_pytorch_says_so(threads: int) -> None:
    with pytest.raises(RuntimeError), on_threads(threads), torch.autocast("cpu", torch.bfloat16):
        whiten_act(pictures(1, 3, 16, 1).float(), layer(3, 24))


@needs_kernels
def test_nothing_is_written_after_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last patch has 24 values, and a vector 32."""
    room = torch.full((4 * 15 * 15 * 24 + 64,), 7.0, dtype=torch.bfloat16)

    def empty(*shape: int) -> Tensor:
        return room[:-64].view(4, 15, 15, 24).permute(0, 3, 1, 2)

    monkeypatch.setattr(whiten, "empty", empty)
    assert runs(pictures(4, 3, 16, 16).float(), layer(3, 24), monkeypatch)
    assert torch.equal(room[-64:], torch.full((64,), 7.0, dtype=torch.bfloat16))


@needs_kernels
def test_filters_that_learn_and_pictures_with_a_gradient_get_it_from_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = pictures(4, 3, 8, 8).float()
    learning = layer(3, 24, learns=True)
    assert not runs(x, learning, monkeypatch)
    with torch.no_grad():
        assert runs(x, learning, monkeypatch)
    assert not runs(x.clone().requires_grad_(), layer(3, 24), monkeypatch)


@needs_kernels
def test_what_the_kernel_was_not_made_for_runs_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not runs(pictures(2, 5, 8, 8).float(), layer(5, 16), monkeypatch)
    assert not runs(pictures(2, 3, 8, 8).float(), layer(3, 40), monkeypatch)
    assert not runs(pictures(2, 4, 2, 1100).float(), layer(4, 32), monkeypatch)  # a row of 4,400 values
    without = nn.Conv2d(3, 24, 2, bias=False).requires_grad_(False)
    assert not runs(pictures(2, 3, 8, 8).float(), without, monkeypatch)
    assert runs(pictures(2, 4, 2, 1024).float(), layer(4, 32), monkeypatch)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_pictures_of_every_type_that_autocast_converts_are_whitened(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = pictures(2, 3, 8, 8).to(dtype)
    assert runs(x, layer(3, 24), monkeypatch)
    assert not runs(x.contiguous(), layer(3, 24), monkeypatch)


@needs_kernels
def test_a_bias_may_be_a_view_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = layer(3, 24)
    conv.bias = nn.Parameter(torch.arange(48.0)[::2], requires_grad=False)
    assert runs(pictures(2, 3, 8, 8).float(), conv, monkeypatch)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_pictures_of_another_type_raise_the_error_of_pytorch(dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError), torch.autocast("cpu", torch.bfloat16):
        whiten_act(pictures(2, 3, 8, 8).to(dtype), layer(3, 24))


@needs_kernels
@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 24, 3),
        nn.Conv2d(4, 24, 1),
        nn.Conv2d(4, 24, 2, stride=2),
        nn.Conv2d(4, 24, 2, stride=(1, 2)),
        nn.Conv2d(4, 24, 2, padding=1),
        nn.Conv2d(4, 24, 2, padding=(0, 1)),
        nn.Conv2d(4, 24, 2, padding="valid"),
        nn.Conv2d(4, 24, 2, dilation=2),
        nn.Conv2d(4, 24, 2, groups=2),
        nn.Sequential(nn.Conv2d(4, 24, 2)),
        nn.Identity(),
    ],
    ids=str,
)
def test_any_other_module_is_called(other: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x, names = pictures(2, 4, 8, 8), watched(monkeypatch, whiten)
    kept = x.clone()
    with torch.autocast("cpu", torch.bfloat16):
        y = whiten_act(x, other.requires_grad_(False))  # type: ignore[arg-type]
        assert torch.equal(y, F.silu(other(x)))
    assert names == []
    assert torch.equal(x, kept)


@needs_kernels
@pytest.mark.parametrize("bf16", [False, True])
def test_a_hook_sees_the_result_of_the_convolution(bf16: bool) -> None:
    conv, x, seen = layer(3, 24), pictures(2, 3, 8, 8).float(), list[Tensor]()
    conv.register_forward_hook(lambda module, inputs, result: seen.append(result))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        whiten_act(x, conv)
        assert torch.equal(seen[0], nn.Conv2d.forward(conv, x))


@needs_kernels
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("bias", torch.zeros(16)),
        ("bias", torch.zeros(24, dtype=torch.float64)),
        ("weight", torch.zeros(24, 2, 2, 2)),
        ("weight", torch.zeros(24, 3, 2, 2, dtype=torch.float64)),
    ],
    ids=["short bias", "wide bias", "short filters", "wide filters"],
)
def test_parameters_of_another_shape_or_type_raise_the_error_of_pytorch(name: str, other: Tensor) -> None:
    conv = layer(3, 24)
    setattr(conv, name, nn.Parameter(other, requires_grad=False))
    with pytest.raises(RuntimeError), torch.autocast("cpu", torch.bfloat16):
        whiten_act(pictures(2, 3, 8, 8).float(), conv)
