"""What the kernels compute when four threads are requested. As a program, it takes the path of their library."""

from __future__ import annotations

import ctypes
import json
import sys

import torch

from thumbnet.kernels import library
from thumbnet.kernels.strided import strided, strided_weight_gradient
from thumbnet.kernels.tiles import conv3x3, weight_gradient
from thumbnet.kernels.winograd import winograd, winograd_weight_gradient


def sums() -> list[list[float]]:
    """The sum and the norm of the result of each kernel that divides its work among threads."""
    values = torch.randn(2, 40, 64, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    x, dy = (v.contiguous(memory_format=torch.channels_last) for v in values)
    weight = dy[:, :, :3, :3].float()
    half = dy[:, :, :4, :4].contiguous(memory_format=torch.channels_last)
    results = (
        weight_gradient(x, dy),
        winograd_weight_gradient(x, dy),
        winograd(x, weight),
        strided_weight_gradient(x, half),
        strided(x, weight),
        conv3x3(x, weight.bfloat16().contiguous(memory_format=torch.channels_last)),
    )
    return [[float(result.double().sum()), float(result.double().norm())] for result in results]


if __name__ == "__main__":
    library._loaded.update(dict.fromkeys([False, True], library._Kernels(ctypes.CDLL(sys.argv[1]))))
    torch.set_num_threads(4)
    print(json.dumps(sums()))
