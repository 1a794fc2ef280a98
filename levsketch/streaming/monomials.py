"""Monomials of columns, a group at a time, and polynomials in them under a shift of the keys.

Monomials of degree r stand in the order of ``SymmetricPower``: by their variables,
ascending. Those whose first variable is a are column a times the monomials of degree r - 1
in variables from a on, which stand at the end of that list: every function here follows
that recursion, so none needs a table of variables.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from math import comb

import numpy as np

from levsketch._typing import FloatArray, IntArray

# Monomials of the highest degree that are made at a time; with 512 rows 2 MB. Matrix products
# of such groups run at nine tenths of what BLAS does for large matrices, and all monomials at
# once, out of the cache, at half of that.
_GROUP = 512


def monomial_count(d: int, degree: int) -> int:
    """Return the number of monomials of one degree in d variables."""
    return comb(d + degree - 1, degree)


def monomial_groups(
    columns: FloatArray, degrees: Sequence[int]
) -> Iterator[tuple[int, slice, FloatArray]]:
    """Return an iterator over groups of monomials (degree, places, values) of rows.

    Parameters
    ----------
    columns : (d, n) array
        The rows, transposed: products of contiguous columns are twice as fast as those
        inside each row.
    degrees : ascending ints >= 1

    Yields
    ------
    degree : int
    places : slice
        Of the monomials of that degree.
    values : (count, n) array
        Without coefficients; valid until the next step, for it may be overwritten.

    Notes
    -----
    Memory for all monomials of the degrees below the highest one, and a group of those.
    """
    d, n = columns.shape
    lower = columns
    for degree in range(1, max(degrees, default=0) + 1):
        if degree == 1:
            if 1 in degrees:
                yield 1, slice(0, d), columns
            continue
        size, last = monomial_count(d, degree), degree == max(degrees)
        room = np.empty((min(size, _GROUP) if last else size, n))
        start = filled = 0
        for a in range(d):
            at = len(lower) - monomial_count(d - a, degree - 1)
            while at < len(lower):
                if filled == len(room):
                    yield degree, slice(start, start + filled), room
                    start, filled = start + filled, 0
                count = min(len(lower) - at, len(room) - filled)
                np.multiply(columns[a], lower[at : at + count], out=room[filled : filled + count])
                at, filled = at + count, filled + count
        if degree in degrees:
            yield degree, slice(start, start + filled), room[:filled]
        lower = room


@functools.lru_cache(maxsize=16)
def multinomials(d: int, degree: int) -> FloatArray:
    """Return how often each monomial is in the power of a sum, ``degree! / prod alpha!``.

    ``<q, k>^degree = sum_alpha multinomial_alpha q^alpha k^alpha``. Shape (size,), read-only.
    Whole numbers, exact below 2**53.
    """
    found, repeats = np.ones(d), np.ones(d)
    for r in range(2, degree + 1):
        sizes = [monomial_count(d - a, r - 1) for a in range(d)]
        lower, run = found, repeats
        found = np.empty(sum(sizes))
        repeats = np.ones(sum(sizes))
        at = 0
        for a, count in enumerate(sizes):
            tail = len(lower) - count
            # those that begin with column a once more come first
            same = monomial_count(d - a, r - 2) if r > 2 else 1
            repeats[at : at + same] += run[tail : tail + same]
            found[at : at + count] = lower[tail:] * r / repeats[at : at + count]
            at += count
    found.flags.writeable = False
    return found


def monomial_exponents(exponents: IntArray, degree: int) -> IntArray:
    """Return by which powers of two monomials change when columns (d,) do: (size,)."""
    d, found = len(exponents), exponents
    for r in range(2, degree + 1):
        counts = [monomial_count(d - a, r - 1) for a in range(d)]
        found = np.concatenate(
            [exponents[a] + found[len(found) - count :] for a, count in enumerate(counts)]
        )
    return found


def translated(moments: Sequence[FloatArray], shift: FloatArray) -> list[FloatArray]:
    """Return the moments of keys ``k + shift`` from those of keys k.

    Parameters
    ----------
    moments : list of (size_r, c) arrays
        ``sum_l k_l^alpha v_l`` for |alpha| = r = 0, 1, ..., g, without gaps.
    shift : (d,) array

    Returns
    -------
    list of (size_r, c) arrays

    Notes
    -----
    As polynomials in q, ``P_r(q) = sum_l <q, k_l>^r v_l`` has the coefficients multinomial *
    moment, and ``sum_l <q, k_l + t>^r v_l = sum_j C(r, j) <q, t>^(r-j) P_j(q)``: the
    polynomials are multiplied by the linear form <q, t>, one factor at a time. An algebraic
    identity; each term of a result takes at most ``(d + 3) g + 3`` roundings. O(g^2 d c size_g)
    time.
    """
    d, top = len(shift), len(moments) - 1
    scales = [np.ones(1), *(multinomials(d, r) for r in range(1, top + 1))]
    tables = list(_successors(d, top))
    out = [P * scale[:, None] for P, scale in zip(moments, scales, strict=True)]
    for j, (P, scale) in enumerate(zip(moments, scales, strict=True)):
        term = P * scale[:, None]
        for r in range(j + 1, top + 1):
            product = np.zeros_like(out[r])
            for a in np.flatnonzero(shift):
                # for one variable all successors differ
                product[tables[r - 1][:, a]] += shift[a] * term
            term = product
            out[r] += comb(r, j) * term
    return [P / scale[:, None] for P, scale in zip(out, scales, strict=True)]


def _successors(d: int, top: int) -> Iterator[IntArray]:
    """Return an iterator over tables (size_r, d), r = 0 ... top - 1: place of monomial * x_a."""
    table = np.arange(d)[None, :]
    if top > 0:
        yield table
    for r in range(1, top):
        # where, in the lists of degree r - 1, r and r + 1, variables from a on begin
        first = [
            np.array([monomial_count(d, s) - monomial_count(d - a, s) for a in range(d)])
            if s
            else np.zeros(d, np.int64)
            for s in (r - 1, r, r + 1)
        ]
        lower, blocks = table, []
        for f in range(d):
            behind = lower[first[0][f] :]
            own = first[1][f] + np.arange(len(behind))
            block = first[2][f] - first[1][f] + behind
            # a variable before the first one stands in front of the whole monomial
            block[:, :f] = (first[2] - first[1])[:f] + own[:, None]
            blocks.append(block)
        table = np.concatenate(blocks)
        yield table
