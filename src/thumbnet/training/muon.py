"""Muon: an optimizer whose updates of convolution filters have singular values of about 1.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Muon views a filter bank [O, I, k, k] as a
matrix [O, I k k]. It replaces the momentum by the nearest matrix with orthonormal rows (or columns), which a
Newton-Schulz iteration finds with matrix products only. Before each step it rescales the bank to the norm
sqrt(O). The network's output does not depend on that norm, because a normalisation follows the convolution,
but the relative size of the step does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thumbnet.hardware import has_fast_bf16

# Coefficients of the quintic a x + b x^3 + c x^5. Jordan chose them for the steepest slope at 0. Singular
# values end between 0.7 and 1.2 instead of at 1, which costs no accuracy.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3


class Muon(torch.optim.Optimizer):
    """Muon for parameters with four dimensions, SGD with Nesterov momentum for all others.

    Args:
        params: parameter groups with ``lr``, ``momentum`` and ``weight_decay``. The decay is added to the
            gradient, as in SGD. Filters have no decay, because their norm is fixed. A group's ``lr`` may be
            a tensor on the device of its parameters, float32 [].
        lr, momentum: defaults for groups without their own.
    """

    def __init__(self, params: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` is not used."""
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            filters = [parameter for parameter in learning if parameter.ndim == 4]
            others = [parameter for parameter in learning if parameter.ndim != 4]
            if filters:
                updates = self._updates(filters, group["momentum"])
                # Columns in the memory order of channels-last filters, so that nothing has to be copied.
                rows = [update.permute(0, 2, 3, 1) for update in updates]
                steps = orthogonalise([row.flatten(1) for row in rows])
                sizes = _norms(filters)
                torch._foreach_div_(sizes, [len(bank) ** 0.5 for bank in filters])
                torch._foreach_div_(filters, sizes)
                updates = [s.view_as(row).permute(0, 3, 1, 2) for s, row in zip(steps, rows, strict=True)]
                _descend(filters, updates, group["lr"])
            if others:
                updates = self._updates(others, group["momentum"], group["weight_decay"])
                _descend(others, updates, group["lr"])

    def _updates(self, parameters: list[Tensor], momentum: float, decay: float = 0.0) -> list[Tensor]:
        """Updates by Nesterov momentum, for all parameters at once because each call costs a GPU time."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(state["momentum_buffer"])
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=momentum))


# torch.optim.Optimizer wraps some methods for torch.compile, and the wrappers import it, which takes a
# second. Nothing here compiles an optimizer, so Muon uses the unwrapped methods. PyTorch's own classes do not
# change.
for _name, _method in vars(torch.optim.Optimizer).items():
    if inspect.isfunction(_method) and hasattr(_method, "__wrapped__"):
        setattr(Muon, _name, _method.__wrapped__)


def orthogonalise(matrices: list[Tensor]) -> list[Tensor]:
    """For each of ``matrices`` ([M, N], float32), roughly the nearest with orthonormal rows or columns.

    It computes in bfloat16 on devices where that is fast. The iteration tolerates the rounding errors.
    """
    scaled = torch._foreach_div(matrices, _norms(matrices))  # no singular value above 1
    precision = torch.bfloat16 if has_fast_bf16(matrices[0].device) else matrices[0].dtype
    wide = [(x.T if len(x) > x.shape[1] else x).to(precision) for x in scaled]
    orthogonal = list(wide)
    # Each iteration multiplies x by a polynomial of x x^T. So the product of all these factors follows from
    # the small matrix x x^T alone, and x is multiplied only once. That takes half the time for [256, 2304],
    # and matrices of different lengths can share a batch.
    for side in {len(x) for x in wide}:
        members = [number for number, x in enumerate(wide) if len(x) == side]
        products = _iterate(torch.stack([wide[number] @ wide[number].T for number in members]))
        for number, product in zip(members, products, strict=True):
            orthogonal[number] = product @ wide[number]
    pairs = zip(orthogonal, matrices, strict=True)
    return [(x if x.shape == matrix.shape else x.T).to(matrix.dtype) for x, matrix in pairs]


def _descend(parameters: list[Tensor], updates: list[Tensor], lr: float | Tensor) -> None:
    """Subtract ``lr`` times ``updates`` from ``parameters``, in place in both."""
    if isinstance(lr, Tensor):  # on the device; ``alpha`` would have to be a number on the host
        torch._foreach_mul_(updates, -lr)
        torch._foreach_add_(parameters, updates)
    else:
        torch._foreach_add_(parameters, updates, alpha=-lr)


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    norms = list(torch._foreach_norm(tensors))
    torch._foreach_clamp_min_(norms, 1e-12)
    return norms


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
