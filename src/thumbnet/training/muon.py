"""Muon: steps for convolution filters whose singular values are all about one.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. A filter bank [O, I, k, k] is taken as a
matrix [O, I k k]. Its momentum is replaced by the nearest matrix with orthonormal rows (or columns), found
by a Newton-Schulz iteration: matrix products only. Before each step a bank is scaled back to the norm
sqrt(O): the normalisation that follows it makes its scale meaningless, but not the step's size beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thumbnet.hardware import has_fast_bf16

# Of the quintic a x + b x^3 + c x^5: chosen by Jordan for the steepest rise from 0. It ends between
# 0.7 and 1.2 rather than at 1, which costs no accuracy.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3


class Muon(torch.optim.Optimizer):
    """Muon for parameters with four dimensions, SGD with Nesterov's momentum for all others.

    Args:
        params: parameter groups, each with ``lr``, ``momentum`` and ``weight_decay``; decay is of the
            SGD kind, and filters, whose norm is held, have none.
        lr, momentum: of groups that name none.
    """

    def __init__(self, params: list[dict[str, Any]], lr: float, momentum: float) -> None:
        _leave_compiler_out()
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient; ``closure`` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, is_filter = parameter.grad, parameter.ndim == 4
        assert gradient is not None
        if group["weight_decay"] and not is_filter:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(gradient)
        update = gradient.add(buffer, alpha=group["momentum"])
        if is_filter:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp(min=1e-12))
            # Columns in the order in which channels-last filters lie in memory: none has to be moved.
            rows = update.permute(0, 2, 3, 1)
            update = orthogonalise(rows.flatten(1)).view_as(rows).permute(0, 3, 1, 2)
        parameter.add_(update, alpha=-group["lr"])


def orthogonalise(matrix: Tensor) -> Tensor:
    """About the nearest matrix to ``matrix`` ([M, N], float32) with orthonormal rows or columns.

    In bfloat16 where that is fast: the iteration forgives the rounding.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-12)  # so that no singular value is above 1
    if has_fast_bf16(matrix.device):
        x = x.bfloat16()
    # Each iteration multiplies x by a polynomial of x x^T: so the product of all of them can be had from that
    # small matrix alone, and x is multiplied once. That takes half the time for [256, 2304].
    gram = x @ x.T
    factor = product = _quintic(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _quintic(gram)
        product = factor @ product
    orthogonal: Tensor = (product @ x).to(matrix.dtype)
    return orthogonal.T if tall else orthogonal


def _quintic(gram: Tensor) -> Tensor:
    """By what the quintic multiplies x: a + b gram + c gram^2, where gram is x x^T, [M, M]."""
    a, b, c = QUINTIC
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


def _leave_compiler_out() -> None:
    """Optimizers tell ``torch.compile`` to keep away from some of their methods, and import it for that, in a
    second. Nothing here compiles an optimizer, so these methods may do without. (PyTorch's own import it once
    more in their steps.)

    Their wrappers, ``torch._disable_dynamo``, look up in this attribute whom to call; where another version's
    do not, they work as ever.
    """
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            setattr(plain, "__dynamo_disable", plain)
