"""Helpers for tests of trainings: a request to stop, and gradients that are not finite."""

from __future__ import annotations

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
