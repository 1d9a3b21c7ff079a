from __future__ import annotations

import ctypes
import doctest
import random
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernel_helpers import gcc, needs_kernels
from thumbnet.kernels import winograd_constants
from thumbnet.kernels.library import FLAGS, SOURCES
from thumbnet.kernels.winograd_constants import POINTS, Matrix, transforms

HERE = Path(__file__).parent
FOLDER = SOURCES[0].parent
PLACES = {
    4: [0, 1, 2, 3, 4, 5],
    3: [0, 1, 2, 3, 5],
    2: [0, 1, 2, 5],
}  # the places of the points in winograd.c
INPUT_POINTS, RESULTS_OF_POINTS, RESULT_POINTS, WEIGHT_POINTS, WEIGHT_GRADIENTS = range(5)


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_matrices_compute_a_convolution_exactly(size: int) -> None:
    chance = random.Random(size)
    weights = [Fraction(chance.randint(-99, 99), 7) for _ in range(3)]
    inputs = [Fraction(chance.randint(-99, 99), 5) for _ in range(size + 2)]
    made = transforms(size)
    products = [a * b for a, b in zip(times(made.G, weights), times(made.B, inputs), strict=True)]
    direct = [sum(weights[k] * inputs[i + k] for k in range(3)) for i in range(size)]
    assert times(made.A, products) == direct


@pytest.mark.parametrize("size", [2, 3])
def test_smaller_tiles_share_the_weights_of_the_large_one(size: int) -> None:
    large = transforms(4).G
    assert transforms(size).G == [large[place] for place in PLACES[size]]


def test_the_c_source_and_the_script_have_the_same_points() -> None:
    text = (FOLDER / "winograd.c").read_text()
    a, b = (Fraction(re.findall(rf"#define {name}1 ([0-9.]+)f", text)[0]) for name in "AB")
    assert POINTS == (Fraction(0), a, -a, b, -b)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("transforms") / "transforms.so"
    source = str(HERE / "winograd_transforms.c")
    subprocess.run([gcc(), *FLAGS, "-I", str(FOLDER), "-o", str(target), source], check=True)
    return ctypes.CDLL(str(target))


def matrix_of(compiled: ctypes.CDLL, which: int, size: int, columns: list[int], rows: list[int]) -> Tensor:
    """The matrix of a transform in C, from the images of unit vectors."""
    found = torch.zeros(6, 6)
    for column, unit in enumerate(torch.eye(6)):
        to = torch.full((6,), torch.nan)
        compiled.transform(which, size, ctypes.c_void_p(unit.data_ptr()), ctypes.c_void_p(to.data_ptr()))
        found[:, column] = to
    return found[rows][:, columns]


@needs_kernels
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_compiled_transforms_are_the_derived_matrices(compiled: ctypes.CDLL, size: int) -> None:
    made, points, all_points = transforms(size), PLACES[size], PLACES[4]
    inputs, results, weights = list(range(size + 2)), list(range(size)), list(range(3))
    large = transforms(4).G
    for which, columns, rows, derived in (
        (INPUT_POINTS, inputs, points, made.B),
        (RESULTS_OF_POINTS, points, results, made.A),
        (RESULT_POINTS, results, points, [list(row) for row in zip(*made.A, strict=True)]),
        (WEIGHT_POINTS, weights, all_points, large),
        (WEIGHT_GRADIENTS, all_points, weights, [list(row) for row in zip(*large, strict=True)]),
    ):
        exact = torch.tensor([[float(value) for value in row] for row in derived])
        ours = matrix_of(compiled, which, size, columns, rows)
        assert torch.allclose(ours, exact, rtol=1e-6, atol=0), which


def test_the_error_is_less_than_half_of_that_with_the_usual_points() -> None:
    """The factors are rounded to bfloat16, and the results summed over 64 channels."""
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(200, 64, 6, 6, generator=generator).bfloat16().double()
    w = torch.randn(64, 3, 3, generator=generator).double()
    exact = torch.einsum("ncijkl,ckl->nij", d.unfold(2, 3, 1).unfold(3, 3, 1), w)

    def error(points: tuple[Fraction, ...]) -> float:
        made = transforms(4, points)
        a, g, b = (
            torch.tensor([[float(v) for v in row] for row in m]).double() for m in (made.A, made.G, made.B)
        )
        u, v = (g @ w @ g.T).bfloat16().double(), (b @ d @ b.T).bfloat16().double()
        return float((a @ (u * v).sum(1) @ a.T - exact).norm() / exact.norm())

    usual = tuple(Fraction(point) for point in (0, 1, -1, 2, -2))
    assert 0.008 < error(POINTS) < 0.015
    assert error(POINTS) < error(usual) / 2


def test_the_examples_in_the_docstring_are_correct() -> None:
    done = doctest.testmod(winograd_constants)
    assert done.attempted > 0
    assert done.failed == 0
