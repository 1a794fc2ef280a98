"""References to compare with: rational arithmetic for tiny sizes, 80-bit QR for others.

The exact ones take floats at face value: a float is a fraction, so scores, ranks
and attention of given float matrices have one right answer. The 80-bit one is a
Householder QR without any rank cut and a triangular solve row by row, so its error
is relative for every row, however small its score.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np

U = 2.0**-53
# What the 80-bit oracle itself may be off by, in units of the condition number; on
# platforms whose long double is a double the tolerances widen by themselves.
WIDE = float(np.finfo(np.longdouble).eps)

Matrix = list[list[Fraction]]


def fractions(K) -> Matrix:
    """Return a float matrix as exact fractions."""
    return [[Fraction(float(x)) for x in row] for row in np.asarray(K, dtype=np.float64)]


def exact_rank(K) -> int:
    """Return the rank of a float matrix, by elimination over the rationals."""
    return len(_pivots(fractions(K)))


def exact_leverage(K, ridge: float = 0.0, intercept: bool = False) -> list[Fraction]:
    """Return the leverage score of every row of a small float matrix, exactly."""
    rows = fractions(K)
    d = len(rows[0])
    weights = [Fraction(float(ridge))] * d
    if intercept:
        rows, weights = [[Fraction(1), *row] for row in rows], [Fraction(0), *weights]
    # ridge rows sqrt(ridge) e_c enter through the Gram matrix only: their squares are rational
    G = _gram(rows)
    for c, w in enumerate(weights):
        G[c][c] += w
    kept = _pivots(G)  # independent columns span the column space; scores need no more
    small = [[G[a][b] for b in kept] for a in kept]
    return [_quadratic(small, [row[c] for c in kept]) for row in rows]


def exact_attention(q, K, ridge: float = 0.0) -> list[Fraction]:
    """Return ``<q, k_j>^2 / (sum_l <q, k_l>^2 + ridge ||q||^2)`` exactly; zeros for 0/0."""
    (query,) = fractions([q])
    products = [sum(a * b for a, b in zip(query, row, strict=True)) ** 2 for row in fractions(K)]
    total = sum(products) + Fraction(float(ridge)) * sum(a * a for a in query)
    return [p / total if total else Fraction(0) for p in products]


def in_row_space(x, K) -> bool:
    """Return whether ``x`` is a combination of the rows of ``K``, exactly."""
    rows = fractions(K)
    return len(_pivots(rows)) == len(_pivots(rows + fractions([x])))


def leverage(K, ridge: float = 0.0):
    """Return leverage scores (n,) of rows ``K`` (n, d) of full column rank, in long double.

    Columns of zeros count for nothing. Relative error about ``WIDE`` times the condition
    number after column scaling, for every row.
    """
    A = np.asarray(K, np.longdouble)
    n, d = A.shape
    if ridge:
        A = np.concatenate([A, np.sqrt(np.longdouble(ridge)) * np.eye(d, dtype=np.longdouble)])
    A = A[:, np.abs(A).max(axis=0, initial=0) > 0]
    if not A.shape[1]:
        return np.zeros(n, np.longdouble)
    A = np.ldexp(A, -np.frexp(np.abs(A).max(axis=0))[1])
    A = A / np.sqrt((A * A).sum(axis=0))
    R = _triangle(A)
    Z = np.zeros_like(A)
    for j in range(A.shape[1]):
        Z[:, j] = (A[:, j] - Z[:, :j] @ R[:j, j]) / R[j, j]
    return (Z * Z).sum(axis=1)[:n]


def condition(K) -> float:
    """Return ``||K D||_F ||(K D)^+||_F / sqrt(d)``, columns K D of unit norm, K of full rank."""
    A = np.asarray(K, np.longdouble)
    A = A[:, np.abs(A).max(axis=0, initial=0) > 0]
    if not A.shape[1]:
        return 1.0
    A = np.ldexp(A, -np.frexp(np.abs(A).max(axis=0))[1])
    R = _triangle(A / np.sqrt((A * A).sum(axis=0)))
    d = len(R)
    W = np.zeros_like(R)
    identity = np.eye(d, dtype=np.longdouble)
    for j in range(d):
        W[:, j] = (identity[:, j] - W[:, :j] @ R[:j, j]) / R[j, j]
    return float(np.sqrt((W * W).sum()))


def slack(K) -> float:
    """Return by how much, relatively, ``leverage(K)`` and a comparison with it may be off."""
    return 64 * WIDE * np.sqrt(np.shape(K)[1]) * condition(K) + 4 * U


def attention(Q, K):
    """Return attention scores (m, n) for f = x^2 in long double, zeros for the zero query."""
    products = np.asarray(Q, np.longdouble) @ np.asarray(K, np.longdouble).T
    products *= products
    total = products.sum(axis=1, keepdims=True)
    return products / np.where(total > 0, total, 1)


def _triangle(A):
    R = A.copy()
    for j in range(min(R.shape)):
        v = R[j:, j].copy()
        size = np.sqrt((v * v).sum())
        v[0] += size if v[0] >= 0 else -size
        square = (v * v).sum()
        if square > 0:
            R[j:, j:] -= np.outer(v, 2 * (v @ R[j:, j:]) / square)
    return R[: R.shape[1]]


def _gram(rows: Matrix) -> Matrix:
    d = len(rows[0])
    return [
        [sum((row[a] * row[b] for row in rows), Fraction(0)) for b in range(d)] for a in range(d)
    ]


def _pivots(rows: Matrix) -> list[int]:
    """Return the pivot columns of an echelon form; the argument is not changed."""
    rows = [list(row) for row in rows]
    pivots: list[int] = []
    for c in range(len(rows[0])):
        top = len(pivots)
        found = next((i for i in range(top, len(rows)) if rows[i][c]), None)
        if found is None:
            continue
        rows[top], rows[found] = rows[found], rows[top]
        for i in range(top + 1, len(rows)):
            if rows[i][c]:
                factor = rows[i][c] / rows[top][c]
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[top], strict=True)]
        pivots.append(c)
    assert all(a < b for a, b in pairwise(pivots))
    return pivots


def _quadratic(G: Matrix, x: list[Fraction]) -> Fraction:
    """Return ``x^T G^-1 x`` for an invertible symmetric G."""
    m = len(x)
    system = [[*row, value] for row, value in zip(G, x, strict=True)]
    for c in range(m):
        found = next(i for i in range(c, m) if system[i][c])
        system[c], system[found] = system[found], system[c]
        for i in range(m):
            if i != c and system[i][c]:
                factor = system[i][c] / system[c][c]
                system[i] = [a - factor * b for a, b in zip(system[i], system[c], strict=True)]
    return sum((x[c] * system[c][m] / system[c][c] for c in range(m)), Fraction(0))
