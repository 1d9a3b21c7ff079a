"""Muon: an optimizer whose updates of convolution filters have singular values of about 1.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Muon views a filter bank [O, I, k, k] as a
matrix [O, I k k]. It replaces the momentum by the nearest matrix with orthonormal rows (or columns), which a
Newton-Schulz iteration finds with matrix products only. Before each step it rescales the bank to the norm
sqrt(O). The network's output does not depend on that norm, because a normalisation follows the convolution,
but the relative size of the step does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from thumbnet.hardware import has_fast_bf16
from thumbnet.kernels.muon import add_momentum, descend, plain_momentum, rescale_and_step

# Coefficients of the quintic a x + b x^3 + c x^5. Jordan chose them for the steepest slope at 0. Singular
# values end between 0.7 and 1.2 instead of at 1, which costs no accuracy.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3


class Muon(torch.optim.Optimizer):
    """Muon for the filters of convolutions, SGD with Nesterov momentum for all other parameters.

    Args:
        params: parameter groups with ``lr``, ``momentum`` and ``weight_decay``. The decay is added to the
            gradient, as in SGD. Filters have no decay, because their norm is fixed. A group's ``lr`` may be
            a tensor on the device of its parameters, float32 [].
        lr, momentum: defaults for groups without their own.
        filters: the parameters [O, I, k, k] whose norm does not matter, because a normalisation follows.
    """

    def __init__(
        self, params: list[dict[str, Any]], lr: float, momentum: float, filters: Iterable[Tensor]
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self._filters = set(filters)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` is not used."""
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            filters = [parameter for parameter in learning if parameter in self._filters]
            others = [parameter for parameter in learning if parameter not in self._filters]
            if filters:
                add = add_momentum if has_fast_bf16(filters[0].device) else plain_momentum
                updates = add(_gradients(filters), self._buffers(filters), group["momentum"])
                # Columns in the memory order of channels-last filters, so that nothing has to be copied.
                rows = [update.permute(0, 2, 3, 1) for update in updates]
                steps = orthogonalise([row.flatten(1) for row in rows])
                steps = [s.view_as(row).permute(0, 3, 1, 2) for s, row in zip(steps, rows, strict=True)]
                rescale_and_step(filters, steps, group["lr"])
            if others:
                gradients = _gradients(others)
                if group["weight_decay"]:
                    gradients = list(torch._foreach_add(gradients, others, alpha=group["weight_decay"]))
                updates = plain_momentum(gradients, self._buffers(others), group["momentum"])
                descend(others, updates, group["lr"])

    def _buffers(self, parameters: list[Tensor]) -> list[Tensor]:
        """The momentum of each parameter, 0 before its first step."""
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(state["momentum_buffer"])
        return buffers


# torch.optim.Optimizer wraps some methods for torch.compile, and the wrappers import it, which takes a
# second. Nothing here compiles an optimizer, so Muon uses the unwrapped methods. PyTorch's own classes do not
# change.
for _name, _method in vars(torch.optim.Optimizer).items():
    if inspect.isfunction(_method) and hasattr(_method, "__wrapped__"):
        setattr(Muon, _name, _method.__wrapped__)


def orthogonalise(matrices: list[Tensor]) -> list[Tensor]:
    """For each of ``matrices`` [M, N], roughly the nearest with orthonormal rows or columns.

    It computes in bfloat16 on devices where that is fast. The iteration tolerates the rounding errors.
    """
    precision = torch.bfloat16 if has_fast_bf16(matrices[0].device) else matrices[0].dtype
    wide = [(x.T if len(x) > x.shape[1] else x).to(precision) for x in matrices]
    orthogonal = list(wide)
    # Each iteration multiplies x by a polynomial of x x^T. So the product of all these factors follows from
    # the small matrix x x^T alone, and x is multiplied only once. That takes half the time for [256, 2304],
    # and matrices of different lengths can share a batch.
    for side in {len(x) for x in wide}:
        members = [number for number, x in enumerate(wide) if len(x) == side]
        gram = torch.stack([wide[number] @ wide[number].T for number in members])
        # The iteration is for x divided by its norm, which leaves no singular value above 1.
        squares = gram.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float32)[:, None, None].clamp(min=1e-24)
        products = (_iterate((gram / squares).to(precision)) / squares.sqrt()).to(precision)
        for number, product in zip(members, products, strict=True):
            orthogonal[number] = product @ wide[number]
    pairs = zip(orthogonal, matrices, strict=True)
    return [(x if x.shape == matrix.shape else x.T.contiguous()).to(matrix.dtype) for x, matrix in pairs]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _iterate(gram: Tensor) -> Tensor:
    """The matrix by which all iterations together multiply x, from the Gram matrix x x^T; both [K, M, M]."""
    factor = product = _quintic(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _quintic(gram)
        product = factor @ product
    return product


def _quintic(gram: Tensor) -> Tensor:
    """The matrix by which one iteration multiplies x: a + b gram + c gram^2; gram is x x^T, [K, M, M]."""
    a, b, c = QUINTIC
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
