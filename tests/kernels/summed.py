"""What the kernels compute when four threads are requested.

As a program, it takes the path of their library and PyTorch's default device.
"""

from __future__ import annotations

import ctypes
import json
import sys

import torch
from torch import Tensor, nn

from thumbnet.kernels import library
from thumbnet.kernels.augment import mirror_and_translate
from thumbnet.kernels.muon import add_momentum, rescale_and_step
from thumbnet.kernels.norm import for_two, norm_act
from thumbnet.kernels.strided import strided, strided_weight_gradient
from thumbnet.kernels.tiles import conv3x3, conv3x3_pooled, weight_gradient
from thumbnet.kernels.whiten import whiten_act
from thumbnet.kernels.winograd import winograd, winograd_pooled, winograd_weight_gradient

GENERATOR = torch.Generator().manual_seed(0)
X, DY = (
    torch.randn(40, 64, 8, 8, generator=GENERATOR).bfloat16().contiguous(memory_format=torch.channels_last)
    for _ in range(2)
)
HALF = DY[:, :, :4, :4].contiguous(memory_format=torch.channels_last)
NARROW = DY[:, :, :3, :3].contiguous(memory_format=torch.channels_last)
FILTERS = NARROW.float()
NORM = nn.BatchNorm2d(64)
WHITEN = nn.Conv2d(3, 24, 2).requires_grad_(False)
nn.init.normal_(WHITEN.weight, generator=GENERATOR)
nn.init.zeros_(WHITEN.bias)  # type: ignore[arg-type]
COLOURS = X[:, :3].float().contiguous(memory_format=torch.channels_last)
PICTURES = torch.randint(256, (40, 8, 8, 3), generator=GENERATOR, dtype=torch.uint8).permute(0, 3, 1, 2)
FLIP, SHIFT = torch.arange(40) % 2 == 0, torch.arange(80).view(40, 2) % 5 - 2


def sums() -> list[list[float]]:
    """The sum and the norm of the result of each kernel that divides its work among threads."""
    results = (
        weight_gradient(X, DY),
        winograd_weight_gradient(X, DY),
        winograd(X, FILTERS),
        *winograd_pooled(X, FILTERS),
        strided_weight_gradient(X, HALF),
        strided(X, FILTERS),
        conv3x3(X, NARROW),
        *conv3x3_pooled(X, NARROW),
        *normalised(),
        *stepped(),
        mirror_and_translate(PICTURES, FLIP, SHIFT, reflect=True),
    )
    return [[float(result.double().sum()), float(result.double().norm())] for result in results]


def normalised() -> list[Tensor]:
    """Results and gradients of a normalisation with each activation, and whitened pictures."""
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for act, pool in (("none", 1), ("relu", 1), ("silu", 2)):
            x = X.clone().requires_grad_()
            one, other = for_two(x, NORM)
            y = norm_act(one, NORM, act, pool=pool, add=other if act == "relu" else None)  # type: ignore[arg-type]
            found += [y.detach(), *torch.autograd.grad(y, [x, *NORM.parameters()], HALF if pool == 2 else DY)]
        found.append(whiten_act(COLOURS, WHITEN))
    return found


def stepped() -> list[Tensor]:
    """Muon's momentum, and filters after a step."""
    buffer, bank = FILTERS.clone(), FILTERS.clone()
    (update,) = add_momentum([FILTERS], [buffer], 0.6)
    rescale_and_step([bank], [update], 0.1)
    return [buffer, update, bank]


if __name__ == "__main__":
    library._loaded.update(dict.fromkeys([False, True], library._Kernels(ctypes.CDLL(sys.argv[1]))))
    torch.set_num_threads(4)
    with torch.device(sys.argv[2]):
        print(json.dumps(sums()))
