"""References for lp sensitivities that share nothing with the library but the definition.

By exact fractions for p = 1, where the best query is a vertex; in long double by nested
golden sections for at most three columns; by linear and conic solvers for more.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import scipy.optimize
from oracles import fractions

# Golden sections narrow a convex function's minimiser to the root of the unit roundoff; the
# minimum itself is then off by a few units.
GOLDEN = float((np.sqrt(5) - 1) / 2)


def exact_l1(K):
    """Return the sensitivities of rows of ``K`` (n, d), d <= 3, of full rank, for p = 1.

    ``||K q||_1`` over ``<q, k_j> = 1`` is piecewise linear: some minimiser is orthogonal to
    d - 1 independent rows. Fractions, all choices of rows.
    """
    rows = fractions(K)
    best = [Fraction(0)] * len(rows)
    for chosen in combinations(rows, len(rows[0]) - 1):
        q = _orthogonal(chosen)
        products = [abs(sum(a * b for a, b in zip(q, row, strict=True))) for row in rows]
        total = sum(products)
        if total:
            best = [max(b, x / total) for b, x in zip(best, products, strict=True)]
    return best


def _orthogonal(rows):
    if not rows:
        return [Fraction(1)]
    if len(rows) == 1:
        return [-rows[0][1], rows[0][0]]
    (a, b, c), (d, e, f) = rows
    return [b * f - c * e, c * d - a * f, a * e - b * d]


def golden(K, j, p, steps=110):
    """Return the sensitivity of row j of ``K`` (n, d), d <= 3, in long double, as a lower bound.

    Every query gives a lower bound; at most a few units of roundoff are missing.
    """
    A = np.asarray(K, np.longdouble)
    pivot = int(np.argmax(np.abs(A[j])))
    if not A[j, pivot]:
        return np.longdouble(0)
    # q = e_pivot / k_pivot + x, x orthogonal to k_j in the other coordinates
    others = np.delete(A, pivot, axis=1) - np.outer(
        A[:, pivot], np.delete(A[j], pivot) / A[j, pivot]
    )
    others[j] = 0
    lengths = np.sqrt((others * others).sum(axis=0))
    return 1 / _least(A[:, pivot] / A[j, pivot], others / np.where(lengths, lengths, 1), p, steps)


def _least(s, X, p, steps):
    """Return the minimum of ``sum |s + X x|^p`` for x with at most two entries."""
    if not X.shape[1]:
        return (np.abs(s) ** np.longdouble(p)).sum()

    def value(t):
        return _least(s + t * X[:, 0], X[:, 1:], p, steps)

    # |t| ||X_0|| is at most twice the norm of s at the minimum over the line; X_1 stretches that
    reach = 4 * np.sqrt((s * s).sum()) * np.sqrt(len(s)) * _stretch(X)
    low, high = -reach, reach
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_a, at_b = value(a), value(b)
    for _ in range(steps):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - GOLDEN * (high - low)
            at_a = value(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + GOLDEN * (high - low)
            at_b = value(b)
    return min(at_a, at_b)


def _stretch(X):
    """Return 1 / the sine between columns of unit norm, the most that one can undo the other."""
    if X.shape[1] < 2:
        return np.longdouble(1)
    cosine = X[:, 0] @ X[:, 1]
    return 1 / np.sqrt(np.maximum(1 - cosine * cosine, np.longdouble(1e-12)))


def linear_program(K, j):
    """Return the sensitivity of row j for p = 1, by HiGHS: right to about 1e-7."""
    n, d = K.shape
    upper = np.block([[K, -np.eye(n)], [-K, -np.eye(n)]])
    found = scipy.optimize.linprog(
        np.concatenate([np.zeros(d), np.ones(n)]),
        A_ub=upper,
        b_ub=np.zeros(2 * n),
        A_eq=np.concatenate([K[j], np.zeros(n)])[None],
        b_eq=[1.0],
        bounds=[(None, None)] * d + [(0, None)] * n,
        method="highs",
    )
    return 1 / found.fun


def cone_program(K, j, p):
    """Return the sensitivity of row j by cvxpy and Clarabel: right to about 1e-6."""
    import cvxpy

    q = cvxpy.Variable(K.shape[1])
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.pnorm(K @ q, p)), [K[j] @ q == 1])
    problem.solve(solver=cvxpy.CLARABEL)
    return float(problem.value) ** -p


def ratio(K, q, p):
    """Return the shares ``|<q, k_j>|^p / sum_l`` (n,) of one query, in long double."""
    products = np.abs(np.asarray(K, np.longdouble) @ np.asarray(q, np.longdouble))
    top = products.max()
    powers = (products / (top if top else 1)) ** np.longdouble(p)
    return powers / np.maximum(powers.sum(), np.longdouble(1e-300))


def ascent(K, j, p, rng, starts=4, steps=60):
    """Return the largest share of row j that random moves find, an adversary for upper bounds."""
    best = np.longdouble(0)
    for _ in range(starts):
        q = rng.standard_normal(K.shape[1])
        here, size = ratio(K, q, p)[j], 1.0
        for _ in range(steps):
            move = q + size * np.linalg.norm(q) * rng.standard_normal(len(q))
            there = ratio(K, move, p)[j]
            q, here, size = (move, there, size * 1.5) if there > here else (q, here, size * 0.85)
        best = max(best, here)
    return best
