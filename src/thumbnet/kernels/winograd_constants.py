r"""Derive the matrices of Winograd's F(m x m, 3 x 3) exactly; winograd.c has them as constants.

A convolution of m + 2 inputs with 3 weights gives m results. The algorithm of Cook and Toom computes it as

    results = A^T [(G weights) * (B^T inputs)]

where * multiplies element by element. Each of the m + 2 products belongs to an interpolation point: the m + 1
finite points p_i, and infinity.

- A^T: column i has the powers p_i^0 ... p_i^(m-1). The column of infinity is 0 except for a 1 at the end.
- G: row i has the powers p_i^0, p_i^1, p_i^2, divided by the product of the distances of p_i to all other
  finite points. The row of infinity is [0, 0, 1].
- B^T: row i has the coefficients of the product of (x - p_k) over all finite points except p_i. The row of
  infinity omits no point.

In two dimensions, the matrices are applied first to the columns and then to the rows (Lavin & Gray 2016,
https://arxiv.org/abs/1509.09308).

Tiles at the end of a side have m = 3 or m = 2. They use fewer of the points, but the same transformed
weights: G is always that of m = 4. It divides by the distances to the points that a smaller tile omits, so
each row of B^T is multiplied by these distances.

>>> for row in transforms(4).B:
...     print(*row)
1089/1024 0 -697/256 0 1 0
0 -99/64 -9/4 11/16 1 0
0 99/64 -9/4 -11/16 1 0
0 -363/512 -121/256 3/2 1 0
0 363/512 -121/256 -3/2 1 0
0 1089/1024 0 -697/256 0 1

``python -m doctest -v winograd_constants.py`` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

# bfloat16 can represent these fractions exactly. With bfloat16 factors, the error of the convolution is less
# than half of that with the usual points 0, 1, -1, 2, -2.
POINTS = (Fraction(0), Fraction(11, 16), Fraction(-11, 16), Fraction(3, 2), Fraction(-3, 2))

Matrix = list[list[Fraction]]


@dataclass(frozen=True)
class Transforms:
    """The matrices of one tile size m.

    Attributes:
        A: A^T, [m, m + 2].
        G: [m + 2, 3].
        B: B^T, [m + 2, m + 2].
    """

    A: Matrix
    G: Matrix
    B: Matrix


def transforms(size: int, points: tuple[Fraction, ...] = POINTS) -> Transforms:
    """The matrices for ``size`` results per side: 4, 3 or 2. The row or column of infinity is last."""
    used, left_out = points[: size + 1], points[size + 1 :]
    zero, one = Fraction(0), Fraction(1)
    powers = [[point**row for point in used] for row in range(size)]
    a = [[*row, one if number == size - 1 else zero] for number, row in enumerate(powers)]
    g = [[point**k / _distances(point, points) for k in range(3)] for point in used]
    b = [[_distances(point, left_out) * c for c in _product(_others(point, used))] for point in used]
    return Transforms(a, [*g, [zero, zero, one]], [*([*row, zero] for row in b), _product(used)])


def _others(point: Fraction, points: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """``points`` without ``point``."""
    return tuple(other for other in points if other != point)


def _distances(point: Fraction, points: tuple[Fraction, ...]) -> Fraction:
    """The product of the signed distances of ``point`` to the other ``points``."""
    return prod((point - other for other in _others(point, points)), start=Fraction(1))


def _product(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """The coefficients of the product of (x - root), lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, same = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
        coefficients = [high - root * low for high, low in zip(shifted, same, strict=True)]
    return coefficients
