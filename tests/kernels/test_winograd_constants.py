from __future__ import annotations

import ctypes
import random
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernel_helpers import gcc, needs_kernels
from thumbnet.kernels.library import FLAGS, SOURCES
from thumbnet.kernels.winograd_constants import (
    POINTS,
    STRIDED_POINTS,
    Matrix,
    strided_transforms,
    transforms,
)

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


def test_the_matrices_compute_a_convolution_with_stride_2_exactly() -> None:
    chance = random.Random(0)
    weights = [Fraction(chance.randint(-99, 99), 7) for _ in range(3)]
    inputs = [Fraction(chance.randint(-99, 99), 5) for _ in range(9)]
    made = strided_transforms()
    products = [a * b for a, b in zip(times(made.G, weights), times(made.B, inputs), strict=True)]
    direct = [sum(weights[k] * inputs[2 * i + k] for k in range(3)) for i in range(4)]
    assert times(made.A, products) == direct


@pytest.mark.parametrize(
    ("source", "points"), [("winograd.c", POINTS[1:]), ("strided.c", STRIDED_POINTS)], ids=["1", "2"]
)
def test_the_c_source_and_the_script_have_the_same_points(source: str, points: tuple[Fraction, ...]) -> None:
    text = (FOLDER / source).read_text()
    a, b = (Fraction(re.findall(rf"#define {name}1 ([0-9.]+)f", text)[0]) for name in "AB")
    assert points == (a, -a, b, -b)


def compiled_from(source: str, folder: Path) -> ctypes.CDLL:
    target = folder / "transforms.so"
    command = [gcc(), *FLAGS, "-shared", "-I", str(FOLDER), "-o", str(target), str(HERE / source)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled_from("winograd_transforms.c", tmp_path_factory.mktemp("transforms"))


def matrix_of(
    compiled: ctypes.CDLL, which: int, size: int, columns: list[int], rows: list[int], length: int = 6
) -> Tensor:
    """The matrix of a transform in C, from the images of unit vectors."""
    found = torch.zeros(length, length)
    for column, unit in enumerate(torch.eye(length)):
        to = torch.full((length,), torch.nan)
        compiled.transform(which, size, ctypes.c_void_p(unit.data_ptr()), ctypes.c_void_p(to.data_ptr()))
        found[:, column] = to
    return found[rows][:, columns]


def transposed(matrix: Matrix) -> Matrix:
    return [list(row) for row in zip(*matrix, strict=True)]


@needs_kernels
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_compiled_transforms_are_the_derived_matrices(compiled: ctypes.CDLL, size: int) -> None:
    made, points, all_points = transforms(size), PLACES[size], PLACES[4]
    inputs, results, weights = list(range(size + 2)), list(range(size)), list(range(3))
    large = transforms(4).G
    for which, columns, rows, derived in (
        (INPUT_POINTS, inputs, points, made.B),
        (RESULTS_OF_POINTS, points, results, made.A),
        (RESULT_POINTS, results, points, transposed(made.A)),
        (WEIGHT_POINTS, weights, all_points, large),
        (WEIGHT_GRADIENTS, all_points, weights, transposed(large)),
    ):
        exact = torch.tensor([[float(value) for value in row] for row in derived])
        ours = matrix_of(compiled, which, size, columns, rows)
        assert torch.allclose(ours, exact, rtol=1e-6, atol=0), which


@needs_kernels
def test_the_compiled_transforms_for_stride_2_are_the_derived_matrices(tmp_path: Path) -> None:
    """The gradient of x: five gradients of results give nine values, and products of these give eight pixels."""
    compiled = compiled_from("strided_transforms.c", tmp_path)
    made, odd = strided_transforms(), transforms(4, STRIDED_POINTS, taps=2)
    zero = Fraction(0)
    values = [*odd.B, *([Fraction(int(i == j)) for j in range(5)] for i in range(4))]
    pixels = []
    for i in range(4):
        pixels += [[zero] * 5 + [Fraction(int(i == j)) for j in range(4)], odd.A[i] + [zero] * 4]
    weights = made.G[:6]  # the last three rows repeat the sixth
    for which, derived in enumerate(
        (made.B, made.A, values, pixels, transposed(made.A), weights, transposed(weights))
    ):
        exact = torch.tensor([[float(value) for value in row] for row in derived])
        rows, columns = (list(range(length)) for length in exact.shape)
        ours = matrix_of(compiled, which, 0, columns, rows, length=9)
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
