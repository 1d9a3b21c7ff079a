from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from thumbnet.hardware import can_compile
from thumbnet.models.fastnet import FastBlock, FastNet, fastnet


def correlated_images(count: int = 400) -> torch.Tensor:
    """Pictures whose neighbouring pixels are correlated, as in real pictures."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 3, 20, 20, generator=generator)
    return F.avg_pool2d(noise, 5, stride=1) * 5 + noise[:, :1, 2:18, 2:18]


def test_the_first_layer_whitens_the_patches_that_it_was_computed_from() -> None:
    images = correlated_images()
    model = FastNet([8, 8, 8])
    model.initialise_from(images)
    with torch.no_grad():
        out = model.whiten(images)
    half = out.shape[1] // 2
    assert torch.equal(out[:, :half], -out[:, half:])
    flat = out[:, :half].transpose(0, 1).reshape(half, -1)
    second_moments = flat @ flat.T / flat.shape[1]
    assert torch.allclose(second_moments, torch.eye(half), atol=0.02)


def test_the_first_layer_is_not_learned() -> None:
    model = fastnet()
    assert not model.whiten.weight.requires_grad
    assert model.whiten.bias is not None
    assert not model.whiten.bias.requires_grad


def test_whitening_is_the_same_every_time() -> None:
    first, second = FastNet([8, 8, 8]), FastNet([8, 8, 8])
    first.initialise_from(correlated_images())
    second.initialise_from(correlated_images())
    assert torch.equal(first.whiten.weight, second.whiten.weight)


def test_convolutions_start_as_the_identity_on_their_input_channels() -> None:
    block = FastBlock(4, 6)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(block.conv1(x)[:, :4], x)


def test_gradients_on_grey_pictures_are_similar_in_bfloat16_and_float32() -> None:
    """Patches of grey pictures are constant along 8 of their 12 axes."""
    images = correlated_images(64)[:, :1].repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    model = FastNet([32, 32, 32]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.initialise_from(images)
    with torch.no_grad():
        assert model.whiten(images).std(dim=(0, 2, 3)).min() > 0.5

    def gradient(bf16: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        F.cross_entropy(logits.float(), torch.arange(64) % 10).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, rounded = gradient(False), gradient(True)
    assert (rounded - exact).norm() < exact.norm()


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="torch.compile needs a C++ compiler")
def test_the_gradient_compiled_in_bfloat16_is_close_to_the_plain_one() -> None:
    """A compiled amax would have the gradient 0 / 0, because it compares values before and after rounding.

    One block is enough for that, and compiles in a third of the time of three.
    """
    torch.manual_seed(0)
    model, images = FastNet([16]), torch.randn(16, 3, 6, 6)
    labels = torch.arange(16) % 10
    gradients = []
    for forward, bf16 in ((model, False), (model, True), (torch.compile(model), True)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = forward(images)
        F.cross_entropy(logits.float(), labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    exact, *rounded = gradients
    plain, compiled = (F.cosine_similarity(exact, gradient, dim=0) for gradient in rounded)
    assert compiled > plain - 0.02
    assert plain > 0.95


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("bf16", [False, True])
def test_an_exported_network_takes_pictures_of_any_number_and_size(bf16: bool) -> None:
    torch.manual_seed(0)
    model = FastNet([32, 8], num_classes=3).eval()
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        exported = torch.export.export(model, (images,), dynamic_shapes=(sizes,)).module()
        for shape in ((2, 3, 32, 32), (3, 3, 40, 48)):
            x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
            assert torch.allclose(exported(x).float(), model(x).float(), atol=0.02 if bf16 else 1e-6)
