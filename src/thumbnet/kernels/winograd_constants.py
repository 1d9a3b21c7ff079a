r"""Derive the matrices of Winograd's convolutions exactly; winograd.c and strided.c have them as constants.

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

With stride 2, a side has two parts: odd pixels, which two of the weights multiply by F(4, 2), and even ones,
which the third weight multiplies directly. :func:`strided_transforms` has both parts in one set of matrices.

>>> for row in strided_transforms().B[:5]:
...     print(*row)
-75/128 0 -25/16 0 3/8 0 1 0 0
75/128 0 -25/16 0 -3/8 0 1 0 0
-45/256 0 -9/64 0 5/4 0 1 0 0
45/256 0 -9/64 0 -5/4 0 1 0 0
225/1024 0 0 0 -109/64 0 0 0 1

``python -m doctest -v winograd_constants.py`` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

# bfloat16 can represent these fractions exactly. With bfloat16 factors, the error of the convolution is less
# than half of that with the usual points 0, 1, -1, 2, -2.
POINTS = (Fraction(0), Fraction(11, 16), Fraction(-11, 16), Fraction(3, 2), Fraction(-3, 2))
# For stride 2. By the formula for independent roundings, no point at 0 and these values round best.
STRIDED_POINTS = (Fraction(3, 8), Fraction(-3, 8), Fraction(5, 4), Fraction(-5, 4))

Matrix = list[list[Fraction]]


@dataclass(frozen=True)
class Transforms:
    """The matrices of one tile size m and a number of weights r, usually 3.

    Attributes:
        A: A^T, [m, m + r - 1].
        G: [m + r - 1, r].
        B: B^T, [m + r - 1, m + r - 1].
    """

    A: Matrix
    G: Matrix
    B: Matrix


def transforms(size: int, points: tuple[Fraction, ...] = POINTS, taps: int = 3) -> Transforms:
    """The matrices for ``size`` results and ``taps`` weights per side; that of infinity is last."""
    used, left_out = points[: size + taps - 2], points[size + taps - 2 :]
    zero, one = Fraction(0), Fraction(1)
    powers = [[point**row for point in used] for row in range(size)]
    a = [[*row, one if number == size - 1 else zero] for number, row in enumerate(powers)]
    g = [[point**k / _distances(point, points) for k in range(taps)] for point in used]
    b = [[_distances(point, left_out) * c for c in _product(_others(point, used))] for point in used]
    return Transforms(a, [*g, [*[zero] * (taps - 1), one]], [*([*row, zero] for row in b), _product(used)])


def strided_transforms() -> Transforms:
    """The matrices for four results with stride 2, from nine pixels by nine products: A, G and B as above.

    The first pixel is an odd one. The first five products are those of the odd pixels, and the last four are
    the even pixels, each multiplied by the middle weight.
    """
    odd = transforms(4, STRIDED_POINTS, taps=2)
    a = [[*row, *_unit(4, number)] for number, row in enumerate(odd.A)]
    g = [[first, Fraction(0), last] for first, last in odd.G] + [_unit(3, 1)] * 4
    spread = [[value for pixel in row for value in (pixel, Fraction(0))][:-1] for row in odd.B]
    return Transforms(a, g, spread + [_unit(9, 2 * number + 1) for number in range(4)])


def _unit(length: int, place: int) -> list[Fraction]:
    """Zeros, and a 1 at ``place``."""
    return [Fraction(int(number == place)) for number in range(length)]


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
