"""The optimizer's step after a backward pass in float16, whose range is small.

Small gradients would become zero in float16, so :class:`torch.amp.GradScaler` multiplies the loss by a large
scale and divides the gradients by it again. If a gradient overflows nevertheless, the step must not be taken,
and the scale is halved. ``GradScaler`` reads a flag from the GPU to decide, and the GPU is idle until the
next step's calls arrive. Here the GPU decides: the step is taken, and undone if a gradient overflowed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEAST_SCALE = 1.0  # gradients that overflow at this scale are too large without any scaling


def scaled_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Take the optimizer's step, unless a gradient is not finite, and update the scale. Waits for nothing.

    Args:
        optimizer: its parameters have the gradients of the scaled loss.
        scaler: its scale is halved if a gradient is not finite, and doubled after 2,000 steps without that.
    """
    undoable = _Undoable(optimizer)
    scaler.unscale_(undoable)  # type: ignore[arg-type]
    scaler.step(undoable)  # type: ignore[arg-type]
    scaler.update()


class _Undoable:
    """What ``GradScaler`` needs of an optimizer; ``step`` undoes itself unless ``found_inf`` is 0."""

    _step_supports_amp_scaling = True  # GradScaler then sets `found_inf` and always calls `step`
    found_inf: Tensor
    grad_scale: Tensor | None

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def step(self) -> None:
        before = {key: tensor.detach().clone() for key, tensor in self._tensors().items()}
        self._optimizer.step()
        undo = self.found_inf.bool()
        for key, tensor in self._tensors().items():
            # An optimizer's tensors that are new in this step begin as zeros.
            old = before[key] if key in before else torch.zeros_like(tensor)
            torch.where(undo.to(tensor.device), old, tensor, out=tensor)

    def _tensors(self) -> dict[tuple[int, str], Tensor]:
        """Everything that a step changes: the parameters, and what the optimizer keeps for each of them."""
        found: dict[tuple[int, str], Tensor] = {}
        learning = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for number, parameter in enumerate(learning):
            found[number, ""] = parameter.data
            kept: dict[str, Any] = self._optimizer.state.get(parameter, {})
            found |= {(number, name): one for name, one in kept.items() if isinstance(one, Tensor)}
        return found
