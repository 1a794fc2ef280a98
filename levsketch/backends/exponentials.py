"""Exponentials of host matrices in place, and fused passes of them, on the kernels' level."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import levsketch._kernels.blocks as blocks
import levsketch._kernels.exponentials as exponentials
from levsketch._typing import FloatArray, IntArray

from .cpu import thread_count

# An exponential costs about as much as this many multiplications of `thread_count`.
_EXP = 8
# Rows that `pursue` takes in at most: LEV_PURSUE_ROWS of exps.h.
MOST_AT_ONCE = 16


def exp(A: FloatArray) -> FloatArray:
    """Return ``exp(A)``, written over ``A`` (C-contiguous float64); within 2 ulp, NaN stays.

    Without floating-point warnings: 0 and infinity where float64 ends.
    """
    exponentials.exp(A.reshape(-1), blocks.tiles_name(), thread_count(_EXP * A.size))
    return A


def softmax_weights(
    A: FloatArray, scale: float = 1.0, threads: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return the largest of each row of ``scale A`` (m,), and ``exp(scale A - largest)``.

    ``A`` (m, n), C-contiguous float64, n > 0, is overwritten. A row with a NaN becomes NaN.
    ``threads`` is for callers that have threads of their own.
    """
    top = np.empty(len(A))
    if len(A):
        count = thread_count(_EXP * A.size) if threads is None else threads
        exponentials.softmax(A, scale, top, blocks.tiles_name(), count)
    return top, A


def exp_remainder(A: FloatArray, order: int, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Return ``rows_i columns_j (exp(a_ij) - 1 - order a_ij)``, written over ``A`` (m, n).

    ``order`` is 0 or 1. Small arguments lose no digits: the polynomial that exp is made of begins
    with what is left.
    """
    if A.size:
        count = thread_count(_EXP * A.size)
        exponentials.remainder(A, order, rows, columns, blocks.tiles_name(), count)
    return A


class Taken(NamedTuple):
    """Rows taken by `take`: which, and their factor and values as `absorb` reads them."""

    which: IntArray
    lower: FloatArray
    known: FloatArray

    @classmethod
    def none(cls, c: int) -> Taken:
        """Return no rows, of c values each."""
        return cls(np.empty(0, np.intp), np.empty((0, 0)), np.empty((0, c)))


def take(inner: FloatArray, rest: FloatArray, floor: float, count: int) -> Taken:
    """Return which of few rows, at most ``count``, lower what is left most, one after another.

    ``inner`` (n, n) are the inner products of their functions and ``rest`` (c, n) those with what
    is left of others; both are overwritten. No row is taken whose square is ``floor`` or less.
    """
    n, c = len(inner), len(rest)
    count = min(count, n, MOST_AT_ONCE)
    which = np.empty(count, np.intp)
    lower, known = np.zeros((count, count)), np.empty((count, c))
    work = np.empty(n * (2 + count))
    found = exponentials.take(inner, rest, floor, work, which, lower, known, blocks.tiles_name())
    return Taken(which[:found], lower[:found, :found].copy(), known[:found])


def absorb(
    root: FloatArray,
    seen: FloatArray,
    taken: Taken,
    rest: FloatArray,
    left: FloatArray,
    floor: float,
    gain: FloatArray,
) -> None:
    """Take in up to 16 rows: one step of a block Cholesky factorisation, over all n columns.

    ``root`` (k + b, n), C-contiguous, has k rows of the factor and b of the matrix; these become
    rows of the factor, given ``seen`` (k, b), the columns of the first k for the new rows. They are
    taken off ``rest`` (c, n) and their squares off ``left`` (n,). ``gain`` (n,) is then how
    much each column would lower the rest, 0 where no more than ``floor`` is left of it. With no
    rows only the gain is found.
    """
    if not len(left):
        return
    count = thread_count(len(left) * (len(taken.which) + 1) * (len(root) + len(rest)))
    exponentials.pursue(
        root,
        seen,
        taken.lower,
        taken.known,
        rest,
        left,
        floor,
        gain,
        blocks.tiles_name(),
        count,
    )
