from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from thumbnet.models import ResNet, build_model
from thumbnet.recipes.networks import MODEL_NAMES
from thumbnet.recipes.settings import ModelSettings, OptimizerSettings
from thumbnet.training.muon import ITERATIONS, QUINTIC, Muon, orthogonalise
from thumbnet.training.optimizers import (
    build_optimizer,
    normalised_filters,
    note_on_filters,
    set_learning_rate,
)


def small() -> ResNet:
    return ResNet([1, 1], [8, 8], num_classes=3)


def test_muon_orthogonalises_the_steps_of_filters_only() -> None:
    torch.manual_seed(0)
    model = small()
    settings = OptimizerSettings("muon", lr=0.1, momentum=0.0, weight_decay=0.0)
    optimizer = build_optimizer(settings, model)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        if parameter.ndim == 4:
            scaled = before[name] * (len(parameter) ** 0.5 / before[name].norm())
            step = (scaled - parameter.detach()).flatten(1) / 0.1
            values = torch.linalg.svdvals(step)
            directions = torch.linalg.svdvals(parameter.grad.flatten(1))
            strong = values[: int((directions > 0.05 * directions[0]).sum())]
            assert strong.min() > 0.4, name
            assert values.max() < 1.35, name
        else:
            assert torch.allclose(parameter, before[name] - 0.1 * parameter.grad), name


class SqueezeExcite(nn.Module):
    """What other networks have besides normalised convolutions: gates, patches, biases, filters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.own = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.patches(x)))
        return self.head(nn.functional.conv2d(x * self.gate(x), self.own).relu().mean(dim=(2, 3)))


def test_a_step_at_rate_0_changes_no_answer_whatever_the_network() -> None:
    torch.manual_seed(0)
    model, images = SqueezeExcite(), torch.randn(16, 3, 16, 16)
    optimizer = build_optimizer(OptimizerSettings("muon", lr=0.1, momentum=0.0), model)
    set_learning_rate(optimizer, 0)
    before, norm = model(images), float(model.conv.weight.detach().norm())
    before.square().sum().backward()
    optimizer.step()
    assert float(model.conv.weight.detach().norm()) == pytest.approx(8**0.5, rel=1e-3) != norm, "it is Muon's"
    assert torch.allclose(model(images), before, rtol=1e-3, atol=1e-4)
    (note,) = note_on_filters(OptimizerSettings("muon"), model)
    assert "leaves own, patches.weight, gate.1.weight to SGD" in note
    assert note_on_filters(OptimizerSettings("sgd"), model) == []


@pytest.mark.parametrize("width", [1.0, 0.25])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_of_thumbnets_networks_muon_steps_every_filter(name: str, width: float) -> None:
    model = build_model(ModelSettings(name, width=width), 3)
    learning = [p for p in model.parameters() if p.requires_grad and p.ndim == 4]
    assert learning
    assert {id(p) for p in learning} <= {id(p) for p in normalised_filters(model)}
    assert note_on_filters(OptimizerSettings("muon"), model) == []


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    for shape in ((6, 20), (20, 6)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        in_its_axes = u.T @ orthogonalise([matrix])[0] @ v.T
        off_diagonal = in_its_axes - in_its_axes.diag().diag()
        assert off_diagonal.abs().max() < 0.05
        assert 0.5 < in_its_axes.diag().min() <= in_its_axes.diag().max() < 1.35


@pytest.mark.parametrize(("bf16", "tolerance"), [(True, 0.04), (False, 2e-4)])
def test_orthogonalising_by_the_small_matrix_is_the_iteration_of_the_large_one(
    bf16: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with the plain iteration in float64; the tolerance is for the root mean square."""
    monkeypatch.setattr("thumbnet.training.muon.has_fast_bf16", lambda device: bf16)
    for shape in ((256, 2304), (256, 288), (32, 216), (64, 27)):
        sizes = torch.logspace(0, -3, shape[0])[:, None]
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * sizes
        x = (matrix if shape[0] <= shape[1] else matrix.T).double()
        x = x / x.norm()
        for _ in range(ITERATIONS):
            a, b, c = QUINTIC
            gram = x @ x.T
            x = a * x + b * gram @ x + c * gram @ gram @ x
        expected = x if shape[0] <= shape[1] else x.T
        off = (orthogonalise([matrix])[0] - expected).norm() / expected.norm()
        assert off < tolerance, shape


def test_orthogonalising_several_is_orthogonalising_each() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = ((32, 216), (64, 27), (64, 576), (32, 288), (6, 6))
    matrices = [torch.randn(*shape, generator=generator) for shape in shapes]
    for together, matrix in zip(orthogonalise(matrices), matrices, strict=True):
        assert torch.allclose(together, orthogonalise([matrix])[0], atol=0.02)
        assert together.shape == matrix.shape


def test_muons_other_parameters_step_as_torchs_sgd_does() -> None:
    mine, torchs = torch.ones(5, requires_grad=True), torch.ones(5, requires_grad=True)
    group = {"params": [mine], "lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}
    muon = Muon([group], lr=1.0, momentum=0.0, filters=[])
    sgd = torch.optim.SGD([torchs], lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01)
    for step in range(5):
        for parameter, optimizer in ((mine, muon), (torchs, sgd)):
            parameter.grad = torch.arange(5.0) - step
            optimizer.step()
        assert torch.allclose(mine, torchs)


def test_muon_does_not_import_the_compiler() -> None:
    """It takes a second, and ``fast`` starts in two."""
    program = """
import sys, torch
from thumbnet.models import fastnet
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.optimizers import build_optimizer
model = fastnet()
optimizer = build_optimizer(load_recipe("fast").optimizer, model)
model(torch.zeros(2, 3, 32, 32)).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def test_making_a_muon_changes_no_class_of_pytorch() -> None:
    def methods() -> dict[str, object]:
        classes = (torch.optim.Optimizer, torch.optim.SGD, torch.optim.AdamW)
        return {f"{one.__name__}.{name}": value for one in classes for name, value in vars(one).items()}

    before = methods()
    filters = [torch.ones(2, 2, 3, 3, requires_grad=True)]
    muon = Muon([{"params": filters}], lr=0.1, momentum=0.5, filters=filters)
    muon.zero_grad()
    muon.step()
    after = methods()
    assert {name for name in before.keys() & after.keys() if before[name] is not after[name]} == set()


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    still, moved = torch.ones(3, 2, 3, 3, requires_grad=True), torch.ones(3, 2, 3, 3, requires_grad=True)
    moved.grad = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [still, moved]}], lr=0.1, momentum=0.5, filters=[still, moved]).step()
    assert torch.equal(still, torch.ones_like(still))
    assert not torch.equal(moved, torch.ones_like(moved))
