from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from thumbnet.models import ResNet
from thumbnet.recipes.settings import OptimizerSettings
from thumbnet.training.muon import ITERATIONS, QUINTIC, Muon, orthogonalise
from thumbnet.training.optimizers import build_optimizer


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
    muon = Muon([group], lr=1.0, momentum=0.0)
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
    muon = Muon([{"params": [torch.ones(2, 2, 3, 3, requires_grad=True)]}], lr=0.1, momentum=0.5)
    muon.zero_grad()
    muon.step()
    after = methods()
    assert {name for name in before.keys() & after.keys() if before[name] is not after[name]} == set()


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    still, moved = torch.ones(3, 2, 3, 3, requires_grad=True), torch.ones(3, 2, 3, 3, requires_grad=True)
    moved.grad = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [still, moved]}], lr=0.1, momentum=0.5).step()
    assert torch.equal(still, torch.ones_like(still))
    assert not torch.equal(moved, torch.ones_like(moved))
