from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from thumbnet.errors import RecipeError
from thumbnet.models import ResidualBlock, ResNet, build_model, narrow_resnet, resnet18, resnet34
from thumbnet.recipes.networks import MODEL_NAMES
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import ModelSettings

# --- an independent computation in NumPy: loops over taps, in float64, without torch --------------------


def plain_conv(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """Convolve x [B, C, H, W] with weight [O, C, k, k], padded by k // 2."""
    size = weight.shape[2]
    pad = size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height = (x.shape[2] + 2 * pad - size) // stride + 1
    width = (x.shape[3] + 2 * pad - size) // stride + 1
    out = np.zeros((len(x), len(weight), height, width))
    for dy in range(size):
        for dx in range(size):
            window = padded[:, :, dy : dy + stride * height : stride, dx : dx + stride * width : stride]
            out += np.einsum("bchw,oc->bohw", window[:, :, :height, :width], weight[:, :, dy, dx])
    return out


def plain_norm(x: np.ndarray, norm: nn.BatchNorm2d, training: bool) -> np.ndarray:
    if training:
        mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = norm.running_mean.numpy(), norm.running_var.numpy()
    shape = (1, -1, 1, 1)
    x = (x - mean.reshape(shape)) / np.sqrt(variance + norm.eps).reshape(shape)
    return x * array(norm.weight).reshape(shape) + array(norm.bias).reshape(shape)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def plain_block(x: np.ndarray, block: ResidualBlock, training: bool) -> np.ndarray:
    stride = int(block.conv1.stride[0])
    out = np.maximum(plain_norm(plain_conv(x, array(block.conv1.weight), stride), block.norm1, training), 0)
    out = plain_norm(plain_conv(out, array(block.conv2.weight), 1), block.norm2, training)
    shortcut = x
    if isinstance(block.shortcut, nn.Sequential):
        conv, norm = block.shortcut
        assert isinstance(norm, nn.BatchNorm2d)
        shortcut = plain_norm(plain_conv(x, array(conv.weight), stride), norm, training)  # type: ignore[arg-type]
    return np.maximum(out + shortcut, 0)


def plain_resnet(x: np.ndarray, model: ResNet, training: bool) -> np.ndarray:
    x = np.maximum(plain_norm(plain_conv(x, array(model.stem.weight), 1), model.norm, training), 0)
    for stage in model.stages:
        assert isinstance(stage, nn.Sequential)
        for block in stage:
            assert isinstance(block, ResidualBlock)
            x = plain_block(x, block, training)
    return x.mean(axis=(2, 3)) @ array(model.head.weight).T + array(model.head.bias)


def randomised(model: nn.Module) -> nn.Module:
    """``model`` in float64, with random statistics, scales and biases instead of the trivial initial ones."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.double()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "out", "stride"), [(8, 8, 1), (8, 16, 2), (8, 16, 1), (8, 8, 2)])
def test_a_residual_block_equals_the_plain_computation(
    channels: int, out: int, stride: int, training: bool
) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(channels, out, stride)
    randomised(block).train(training)
    x = torch.randn(3, channels, 9, 7, dtype=torch.float64)
    expected = plain_block(x.numpy(), block, training)
    assert np.allclose(block(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)
    assert isinstance(block.shortcut, nn.Identity) == (stride == 1 and channels == out)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_resnets_equal_the_plain_computation(size: tuple[int, int], training: bool) -> None:
    torch.manual_seed(0)
    for model in (resnet18(7, width=0.125), narrow_resnet(20, 7)):
        randomised(model).train(training)
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        expected = plain_resnet(x.numpy(), model, training)
        assert np.allclose(model(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    assert parameters(resnet18()) == 11_173_962
    assert parameters(resnet34()) == 21_282_122
    # He et al., table 6, give 0.27M, 0.46M, 0.66M and 0.85M; projections (option B) add a little.
    counts = [parameters(narrow_resnet(depth)) for depth in (20, 32, 44, 56)]
    assert counts == [272_474, 466_906, 661_338, 855_770]


def test_the_stages_have_the_shapes_of_the_tutorial() -> None:
    model = resnet18()
    x = model.stem(torch.zeros(1, 3, 32, 32))
    shapes = []
    for stage in model.stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 33), (96, 64)])
def test_networks_work_with_any_size_classes_and_channels(name: str, height: int, width: int) -> None:
    model = build_model(ModelSettings(name, width=0.25), num_classes=3, in_channels=4).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 4, height, width)).shape == (2, 3)


def test_gradients_reach_every_parameter() -> None:
    for name in ("resnet18", "resnet20", "fastnet"):
        model = build_model(ModelSettings(name, width=0.25), num_classes=5)
        model(torch.randn(4, 3, 16, 16)).square().sum().backward()
        learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        assert learned
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in learned), name


def test_a_wrong_depth_or_name_is_refused() -> None:
    with pytest.raises(ValueError, match="6n"):
        narrow_resnet(21)
    with pytest.raises(RecipeError, match="Did you mean 'resnet18'"):
        load_recipe("fast", ["model.name=resnet-18"])
    with pytest.raises(RecipeError, match="Known: fastnet, resnet18"):
        ModelSettings("resnet 18")


# --- what others do with a network -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_networks_can_be_traced_symbolically(name: str, gradients: bool, bf16: bool) -> None:
    model, x = build_model(ModelSettings(name, width=0.25), num_classes=5).eval(), torch.randn(2, 3, 16, 16)
    with torch.set_grad_enabled(gradients):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            traced = torch.fx.symbolic_trace(model)
        assert torch.equal(traced(x), model(x))


@pytest.fixture
def evaluated() -> tuple[ResNet, torch.Tensor]:
    """A network in evaluation mode, and pictures for it; both channels last."""
    torch.manual_seed(0)
    model = narrow_resnet(20).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)


def test_the_gradient_of_a_gradient_exists(evaluated: tuple[ResNet, torch.Tensor]) -> None:
    model, x = evaluated
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (gradient,) = torch.autograd.grad(model(x).float().square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("how", ["func", "batched"])
def test_gradients_of_functions_and_batches_of_gradients_are_the_usual_ones(
    how: str, evaluated: tuple[ResNet, torch.Tensor]
) -> None:
    model, x = evaluated
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (usual,) = torch.autograd.grad(model(x).float().sum(), x)
        if how == "func":
            found = torch.func.grad(lambda images: model(images).float().sum())(x)
        else:
            y = model(x).float()
            (found,) = torch.autograd.grad(y, x, torch.ones(1, *y.shape), is_grads_batched=True)
    assert (found - usual).norm() < 0.05 * usual.norm()


def test_modules_of_a_projection_can_be_taken_and_added() -> None:
    torch.manual_seed(0)
    shortcut, x = ResidualBlock(8, 16, 2).shortcut, torch.randn(2, 8, 6, 6)
    assert isinstance(shortcut, nn.Sequential)
    conv, norm = shortcut
    assert list(shortcut.state_dict())[:2] == ["0.weight", "1.weight"]
    assert torch.equal(shortcut[:1](x), conv(x))
    assert torch.equal(shortcut(x), norm(conv(x)))
    pickled = pickle.loads(pickle.dumps(shortcut))  # noqa: S301
    for copied in (copy.deepcopy(shortcut), pickled):
        assert torch.equal(copied(x), shortcut(x))
        copied.append(nn.Hardtanh(0, 0.25))
        assert torch.equal(copied(x), shortcut(x).clamp(0, 0.25))
