"""What a block of rows leaves behind: a Gram matrix where that is harmless, else an R factor."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from levsketch._typing import BoolArray, FloatArray, IntArray, Rows
from levsketch.backends import Backend
from levsketch.linalg import (
    NO_EXPONENT,
    Factor,
    Whitening,
    column_exponents,
    factor_blocks,
    scale_columns,
)

from .preconditioned import PRODUCT_BUDGET, Whitened, whitened_factors
from .rank import RowSpace

# The rounding of all Gram matrices together may move a score by this much,
# relatively, as a proved bound; what is seen is thousands of times less.
GRAM_BUDGET = 1e-4


class Leaves(NamedTuple):
    """What a run of blocks adds to a factor: per block a Gram matrix or an R factor.

    ``grew`` says which rows raised the rank, ``rising`` which blocks have such rows; ``prefix``
    is the whitening that they were measured by, which may be the first block's own.
    """

    grams: FloatArray
    factors: list[Factor | None]
    growth: FloatArray
    products: FloatArray
    spaces: list[RowSpace]
    grew: list[BoolArray]
    rising: list[bool]
    prefix: Whitening | None


def factors_where_needed(
    backend: Backend,
    rows: Rows,
    scale: FloatArray | None,
    growth: FloatArray,
    prefix: Whitening | None,
    diagonals: FloatArray,
    *,
    spent: tuple[float, float],
) -> tuple[list[Factor | None], FloatArray, FloatArray]:
    """Return R factors for blocks whose Gram matrix will not do, and what all of them cost.

    Block by block, in order, the first that both budgets allow: the Gram matrix, that of
    whitened rows, Householder QR. So it does not matter which blocks came together. ``growth``
    (k,) is what the Gram matrices add to the error, ``diagonals`` (k, d) theirs, NaN where these
    are out of range, and ``spent`` what there is of both errors.
    """
    block, count = len(rows) // len(growth), len(growth)
    total, products = spent[0], np.zeros(count)
    for one in growth.tolist():
        total += one
    if total <= GRAM_BUDGET:  # as nearly always
        return [None] * count, growth, products
    factors: list[Factor | None] = [None] * count
    after = np.full(count, np.inf)
    other = Whitened(list(factors), np.full(count, np.inf), np.full(count, np.inf))
    known, by_qr = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    while True:
        total, square = spent
        for b in range(count):
            by_qr[b], products[b], factors[b] = False, 0.0, None
            if total + growth[b] <= GRAM_BUDGET:
                after[b] = growth[b]
            elif (
                total + other.growth[b] <= GRAM_BUDGET
                and square + other.products[b] <= PRODUCT_BUDGET**2
            ):
                after[b], products[b], factors[b] = (
                    other.growth[b],
                    other.products[b],
                    other.factors[b],
                )
            else:
                by_qr[b], after[b] = True, np.inf
                continue
            total, square = total + after[b], square + products[b]
        new = np.flatnonzero(by_qr & ~known & np.isfinite(diagonals).all(axis=1))
        if prefix is None or not len(new):
            break
        known[new] = True
        parts = _parts(rows, scale, block, new)
        found = whitened_factors(backend, *parts, block, prefix, diagonals[new])
        other.growth[new], other.products[new] = found.growth, found.products
        for b, factor in zip(new.tolist(), found.factors, strict=True):
            other.factors[b] = factor
    late = np.flatnonzero(by_qr)
    if len(late):
        found_late = _qr_factors(backend, rows, scale, block, late)
        for b, factor in zip(late.tolist(), found_late, strict=True):
            factors[b] = factor
    return factors, after, products


def _parts(
    rows: Rows, scale: FloatArray | None, block: int, which: IntArray
) -> tuple[Rows, FloatArray | None]:
    """Return the rows and weights of some blocks; views, if these follow on one another."""
    first, last = int(which[0]), int(which[-1]) + 1
    if last - first == len(which):
        taken: Any = slice(first * block, last * block)
    else:
        taken = (which[:, None] * block + np.arange(block)).ravel()
    return rows[taken], None if scale is None else scale[taken]


def _qr_factors(
    backend: Backend, rows: Rows, scale: FloatArray | None, block: int, which: IntArray
) -> list[Factor]:
    """Return the Householder factors of some blocks."""
    taken = [slice(b * block, (b + 1) * block) for b in which]
    parts = [scaled_rows(rows[i], None if scale is None else scale[i]) for i in taken]
    found = factor_blocks(backend, np.concatenate([part for part, _ in parts]), block)
    return [factor_times(f, power) for f, (_, power) in zip(found, parts, strict=True)]


def scaled_rows(rows: Rows, scale: FloatArray | None) -> tuple[Rows, IntArray | int]:
    """Return rows times their factors, over powers of two by column, and these powers.

    Columns are near one before factors meet them: products neither overflow nor lose digits
    to underflow.
    """
    if scale is None:
        return rows, 0
    e = column_exponents(rows)
    e = np.where(e > NO_EXPONENT, e, 0)
    power = int(np.frexp(scale.max(initial=0.0))[1])
    with np.errstate(under="ignore"):
        return scale_columns(rows, -e) * np.ldexp(scale, -power)[:, None], e + power


def factor_times(factor: Factor, powers: IntArray | int) -> Factor:
    """Return the factor with its columns multiplied by ``2**powers``, exactly."""
    e = factor.exponents
    return factor._replace(exponents=np.where(e > NO_EXPONENT, e + powers, e))
