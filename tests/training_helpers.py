"""Helpers for tests of trainings: requests to stop, gradients that are not finite, seeds that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thumbnet.training.fit import StepResult
from thumbnet.training.listener import Listener


class StopAfter(Listener):
    """Asks the training to stop after ``steps`` steps.

    Attributes:
        step: the newest step, counted from 1; 0 before it.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.step = steps, 0

    def on_step(self, step: StepResult) -> None:
        self.step = step.step

    def should_stop(self) -> bool:
        return self.step >= self.steps


class Noting(StopAfter):
    """Stops like :class:`StopAfter`, and keeps the notes."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


class _Explode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.inf


class Explosive(nn.Module):
    """Returns its input; the gradient is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return _Explode.apply(x)  # type: ignore[no-untyped-call]


def refuse_seeds(patch: pytest.MonkeyPatch) -> None:
    """Let ``torch.manual_seed`` fail: it would seed every device, and only some of them are ours."""

    def refuse(seed: int) -> None:
        raise AssertionError("the caller's generators are seeded")

    patch.setattr(torch.cuda, "manual_seed_all", refuse)
    patch.setattr(torch.mps, "manual_seed", refuse)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
