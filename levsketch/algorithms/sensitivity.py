"""Sensitivities for f(x) = |x|^p, p >= 1: intervals that are proved, one convex problem a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from levsketch._checks import check_count, check_real, warn_caller
from levsketch._typing import ArrayLike, FloatArray, IntArray, Rows
from levsketch.backends import Backend, backend_for
from levsketch.backends.cpu import serial_blas
from levsketch.backends.interchange import like
from levsketch.linalg import UNIT_ROUNDOFF, Whitening, scale_columns, unscaled_queries

from .inputs import stacked, warn_uncertified
from .leverage import whitening_of
from .lp_descent import level_set, minimise

# Entries of a temporary that is as long as the rows are many.
_ENTRIES = 1 << 20
# Stands for a positive number that underflowed.
_LEAST = 2.0**-1022
# Iterations without a tenth off the gap after which rounding is what is left.
_PATIENCE = 20


class WhitenedRows(NamedTuple):
    """Well-conditioned rows ``Z`` (n, r), off by at most ``slack`` (n,) each; 0 for zero rows."""

    Z: FloatArray
    slack: FloatArray


class Intervals(NamedTuple):
    """Bounds (m,), their relative gaps (m,), and queries (m, r) to Z that attain ``lower``."""

    lower: FloatArray
    upper: FloatArray
    gaps: FloatArray
    queries: FloatArray


def sensitivities(
    K: ArrayLike,
    p: float,
    indices: ArrayLike | None = None,
    *,
    tol: float = 1e-6,
    max_iter: int = 200,
) -> Any:
    """Return intervals that hold ``sup_q |<q, k_j>|^p / sum_l |<q, k_l>|^p``, the sensitivity.

    That is the largest share of the total that row j takes for any query q: 1 for a
    row that is independent of all others, however small; 0 for a zero row; the
    leverage score for p = 2.

    Parameters
    ----------
    K : array (..., n, d)
        Rows; leading axes are independent problems (batch, heads).
    p : float >= 1
        Exponent.
    indices : int array (m,), optional
        Rows asked for, as in ``numpy.take``; all by default.
    tol : float > 0
        An interval is narrow enough when ``upper - lower <= tol * upper``.
    max_iter : int >= 1
        Iterations for one row.

    Returns
    -------
    float64 array (..., m, 2)
        Lower and upper bounds, in the library of ``K``. They hold whether or not
        ``tol`` is reached, the rounding of this computation included.

    Raises
    ------
    ValueError
        For p < 1, where the problem is not convex; NaN or infinity (with row and
        column); fewer than two axes; no rows.
    IndexError
        For a row number outside [-n, n).

    Warns
    -----
    ConvergenceWarning
        If an interval stays wider than ``tol``, once, with the widest.
    CertificationWarning
        If the rows are too ill-conditioned to be whitened with a proof.

    Notes
    -----
    ``sigma^(-1/p) = min ||K q||_p`` over ``<q, k_j> = 1`` is convex. Any q gives a
    lower bound; any y with ``K^T y = k_j`` gives ``sigma <= ||y||_p*^p`` by Hoelder,
    p* = p / (p - 1). Both come from one method: for p < 2 a primal-dual interior
    point, for p > 2 Newton's, the exponent growing from 2. 3 to 20 iterations of
    O(n r^2) for each row, r the rank; memory O(n r).

    Examples
    --------
    >>> import levsketch as lv
    >>> from levsketch.algorithms.sensitivity import sensitivities
    >>> K = [[1.0, 0.0], [1.0, 0.0], [0.0, 1e-12], [1.0, 1e-12]]
    >>> sensitivities(K, p=1).mean(axis=-1).round(4)
    array([0.3333, 0.3333, 0.5   , 0.5   ])
    >>> sensitivities(K, p=4, indices=[-1]).round(4)
    array([[0.8523, 0.8523]])
    """
    p = check_real("p", p, low=0.0, open_low=True)
    if p < 1.0:
        raise ValueError(
            f"p must be at least 1, got {p!r}: below 1 the problem is not convex; "
            "use sensitivity_bounds instead."
        )
    tol = check_real("tol", tol, low=0.0, open_low=True)
    max_iter = check_count("max_iter", max_iter)
    keys = stacked("K", K)
    targets = _row_numbers(indices, keys.shape[-2])
    out = np.empty((*keys.shape[:-2], len(targets), 2))
    gaps = np.zeros(out.shape[:-1])
    backend = backend_for(keys)
    for i in np.ndindex(keys.shape[:-2]):
        with serial_blas():
            whitening = whitening_of(backend, keys[i], 0.0, False)
            out[i], gaps[i] = _one(backend, whitening, keys[i], targets, p, tol, max_iter)
        if not whitening.certified:
            warn_uncertified(whitening)
    if (gaps > tol).any():
        warn_caller(
            f"{int((gaps > tol).sum())} sensitivities have wider intervals than tol={tol:g}, the "
            f"widest {gaps.max():.1e} of its upper end, after max_iter={max_iter} iterations or "
            "at the limit of float64; the intervals hold all the same.",
            ConvergenceWarning,
        )
    return like(out, K)


def _row_numbers(indices: ArrayLike | None, n: int) -> IntArray:
    """Return ``indices`` as row numbers in [0, n)."""
    if indices is None:
        return np.arange(n)
    found = np.asarray(indices)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ValueError(
            f"indices must be integers (m,), got shape {found.shape} and dtype {found.dtype}."
        )
    outside = np.flatnonzero((found < -n) | (found >= n))
    if outside.size:
        raise IndexError(
            f"indices must be in [-{n}, {n}), got {found[outside[0]]} at position {outside[0]}."
        )
    return found.astype(np.int64) % n


def _one(
    backend: Backend,
    whitening: Whitening,
    K: Rows,
    targets: IntArray,
    p: float,
    tol: float,
    max_iter: int,
) -> tuple[FloatArray, FloatArray]:
    """Return the intervals (m, 2) and relative gaps (m,) of rows ``targets`` of K (n, d)."""
    bounds = np.tile([0.0, 1.0], (len(targets), 1))
    gaps = np.ones(len(targets))
    if p == 2.0 and whitening.certified:  # these cost next to nothing
        scores = whitening.scores(backend, backend.rows(K[targets]))
        bounds[:, 0] = whitening.lower_bounds(scores)
        bounds[:, 1] = whitening.upper_bounds(scores)
        bounds[:, 1] = np.minimum(bounds[:, 1] + _LEAST * (K[targets] != 0).any(axis=1), 1.0)
        gaps = 1.0 - bounds[:, 0] / np.where(scores > 0, bounds[:, 1], 1.0)
        gaps[scores == 0] = 0.0
    wide = np.flatnonzero(gaps > tol)
    if not wide.size:
        return bounds, gaps
    rows = whitened_rows(backend, whitening, K)
    found = refined_intervals(rows, targets[wide], p, tol=tol, max_iter=max_iter)
    bounds[wide, 0], bounds[wide, 1], gaps[wide] = found.lower, found.upper, found.gaps
    if rows.Z.shape[1] < whitening.rank:  # a direction is lost: what Z shows is a lower bound
        some = rows.slack[targets] > 0
        bounds[some, 1], gaps[some] = 1.0, 1.0 - bounds[some, 0]
    return bounds, gaps


def whitened_rows(backend: Backend, whitening: Whitening, K: Rows) -> WhitenedRows:
    """Return Z (n, r), the rows of ``K`` (n, d) times the whitener, with their rounding errors.

    The columns of K and of the exact product span the same space, so sensitivities
    are the same. Of the product, leading bits times leading bits are exact; what is
    rounded is 2**-bits of it, so that ill-conditioned rows lose nothing. Three
    products of O(n d r).
    """
    active, W = whitening.active, whitening.matrix
    W = W[:, active] if whitening.triangular else W
    e = np.where(active, whitening.factor.exponents, 0)
    (n, d), r = K.shape, W.shape[1]
    bits = (53 - d.bit_length()) // 2  # so that sums of d products have at most 53
    head, tops = _leading_bits(W, 0, bits)
    size = float(np.linalg.norm(np.ldexp(1.0, tops)))
    Z, slack = np.empty((n, r)), np.empty(n)
    step = max(1, _ENTRIES // d)
    for start in range(0, n, step):
        part = slice(start, start + step)
        X = scale_columns(backend.rows(K[part]), -e)
        lead, top = _leading_bits(X, 1, bits)
        Z[part] = lead @ head + (lead @ (W - head) + (X - lead) @ W)
        # both rounded products have d terms of up to 2**(top + tops - bits - 1); the smallest
        # number stands for entries that the scaling made subnormal
        least = np.where((K[part] != 0).any(axis=1), d * 2.0**-1060, 0.0)
        rounded = (d + 2) * d * UNIT_ROUNDOFF * np.ldexp(1.0, top[:, 0] - bits)
        slack[part] = np.where(least > 0, rounded, 0.0) * size + least * (1.0 + size)
    # one more rounding of each entry, and r of each product with a query
    return WhitenedRows(Z, slack + (r + 4) * UNIT_ROUNDOFF * np.linalg.norm(Z, axis=1))


def _leading_bits(A: FloatArray, axis: int, bits: int) -> tuple[FloatArray, IntArray]:
    """Return A to ``bits`` bits below 2**top, and top: the exponents along ``axis``."""
    top = np.frexp(np.abs(A).max(axis=axis, keepdims=True, initial=0.0))[1]
    shift = 1.5 * np.ldexp(1.0, top + 52 - bits)  # its last place is 2**(top - bits)
    return (A + shift) - shift, top


def original_queries(whitening: Whitening, queries: FloatArray) -> FloatArray:
    """Return the queries (m, d) to K that are ``queries`` (m, r) to its whitened rows.

    Halved as often as needed where an entry would overflow: scores do not change.
    """
    W = whitening.matrix
    W = W[:, whitening.active] if whitening.triangular else W
    e = np.where(whitening.active, whitening.factor.exponents, 0)
    return unscaled_queries(queries @ W.T, e)


def refined_intervals(
    rows: WhitenedRows,
    targets: IntArray,
    p: float,
    *,
    tol: float,
    max_iter: int,
    decide: float | None = None,
) -> Intervals:
    """Return intervals (m,) that hold the sensitivities of rows ``targets`` (m,), and witnesses.

    A row is done when ``upper - lower <= tol * upper`` or, with ``decide``, as soon as
    ``lower >= decide`` or ``upper < decide``. All rows begin with the query of their
    leverage score, many at a time. O(n r) each for that, O(n r^2) for an iteration.
    """
    bounds = _Bounds.of(rows, p)
    m, (n, r) = len(targets), rows.Z.shape
    low, high, queries = np.zeros(m), np.zeros(m), np.zeros((m, r))  # of sigma**(1/p)
    for part in np.array_split(np.arange(m), max(1, min(m, m * n // _ENTRIES))):
        target = _targets(rows, targets[part])
        queries[part] = q = target.row  # of any length
        s = q @ rows.Z.T
        with np.errstate(divide="ignore", invalid="ignore"):  # zero rows, replaced below
            low[part] = np.ldexp(bounds.lower(target, q, s), target.exponent)
            high[part] = np.minimum(np.ldexp(bounds.upper(target, s), target.exponent), 1.0)
    absent = rows.slack[targets] == 0
    low[absent] = high[absent] = 0.0
    for i in range(m):
        if not _done(low[i], high[i], p, tol, decide):
            best = low[i], high[i], queries[i]
            low[i], high[i], queries[i] = _refined(bounds, targets[i], best, tol, max_iter, decide)
    return Intervals(*_powers(low, high, p), _gap(low, high, p), queries)


def _powers(low: Any, high: Any, p: float) -> tuple[Any, Any]:
    """Return the p-th powers, outwards: they round, too, and may underflow."""
    lower, upper = low**p * (1.0 - 4 * UNIT_ROUNDOFF), high**p * (1.0 + 4 * UNIT_ROUNDOFF)
    return lower, np.minimum(upper + _LEAST * (high > 0), 1.0)


def _gap(low: Any, high: Any, p: float) -> Any:
    """Return ``1 - lower / upper`` of the p-th powers, 0 for two zeros."""
    return 1.0 - (low / np.where(high > 0, high, 1.0)) ** p * (high > 0) - (high == 0)


def _done(low: float, high: float, p: float, tol: float, decide: float | None) -> bool:
    lower, upper = _powers(low, high, p)
    decided = decide is not None and (lower >= decide or upper < decide)
    return bool(decided or _gap(low, high, p) <= tol)


def _targets(rows: WhitenedRows, index: Any) -> _Target:
    a = rows.Z[index]
    top = np.frexp(np.abs(a).max(axis=-1, initial=0.0))[1].astype(np.int64)
    return _Target(np.ldexp(a, -top[..., None]), np.ldexp(rows.slack[index], -top), top)


def _refined(
    bounds: _Bounds,
    index: Any,
    best: tuple[float, float, FloatArray],
    tol: float,
    max_iter: int,
    decide: float | None,
) -> tuple[float, float, FloatArray]:
    """Return bounds and query of one row, improved until they are done or do not improve."""
    low, high, query = best
    rows = bounds.rows
    target = _targets(rows, index)
    length = float(np.linalg.norm(target.row))
    if length == 0:  # it underflowed: all that is known is its slack
        return 0.0, min(1.0, bounds.embedding * rows.slack[index]), query
    unit = target.row / length
    X, v = level_set(rows.Z, unit)
    X[index] = 0.0
    last, record = 0, _gap(low, high, bounds.p)
    iterates = minimise(X, rows.Z @ unit, bounds.p)
    with np.errstate(all="ignore"):
        for step, (x, y) in zip(range(max_iter), iterates, strict=False):
            q = unit - 2.0 * (x @ v[1:]) * v
            q[1:] += x
            proved = float(np.ldexp(bounds.lower(target, q, rows.Z @ q), target.exponent))
            if proved > low:
                low, query = proved, q
            high = min(high, float(np.ldexp(bounds.upper(target, y), target.exponent)))
            gap = _gap(low, high, bounds.p)
            if gap < 0.9 * record:
                last, record = step, gap
            if step - last >= _PATIENCE or _done(low, high, bounds.p, tol, decide):
                break
    return low, high, query


class _Target(NamedTuple):
    """Rows (..., r) times 2**-exponent, near one so that squares do not underflow."""

    row: FloatArray
    slack: FloatArray
    exponent: IntArray


@dataclass(frozen=True, eq=False)
class _Bounds:
    """Rigorous bounds on ``sup_q |<q, a>| / ||Z q||_p`` for targets a, from any q and any y.

    Z is off by E, with ``||E_l q|| <= slack_l ||q||``. By Minkowski, the exact
    ``||Z q||_p`` is at most the computed one plus ``||slack||_p ||q||``. With
    ``r = Z^T y - lam a``, ``lam <q, a> = <y, Z q> - <r, q>``, so that Hoelder gives
    ``lam |<q, a>| <= (||y||_p* + ||r|| C) ||Z q||_p`` where ``||q|| <= C ||Z q||_p``.
    The exact r is the computed one up to ``n u ||Z||_F ||y||`` from the products,
    ``||slack||_p ||y||_p*`` (Hoelder again) and ``lam`` times the slack of a.
    """

    rows: WhitenedRows
    p: float
    conjugate: float
    slack: float
    embedding: float
    roundoff: float
    size: float

    @classmethod
    def of(cls, rows: WhitenedRows, p: float) -> _Bounds:
        Z, (n, r) = rows.Z, rows.Z.shape
        roundoff = (n + 64) * UNIT_ROUNDOFF  # relative, of a norm of n numbers in any p
        size = float(np.linalg.norm(Z)) * (1 + roundoff)
        least = np.linalg.eigvalsh(Z.T @ Z)[0] if r else 0.0
        least -= (n + 64 * r) * UNIT_ROUNDOFF * size**2
        shortest = np.sqrt(max(least, 0.0)) - np.linalg.norm(rows.slack)
        ratio = np.count_nonzero(rows.slack) ** max(0.0, 0.5 - 1.0 / p)  # ||x||_2 / ||x||_p
        embedding = float(ratio / shortest) if shortest > 0 else np.inf
        conjugate = np.inf if p == 1.0 else p / (p - 1.0)
        slack = float(_norm(rows.slack, p))
        return cls(rows, p, conjugate, slack, embedding, roundoff, size)

    def lower(self, target: _Target, q: FloatArray, s: FloatArray) -> Any:
        """Return what the queries q (..., r), with computed products s = Z q, prove."""
        length = np.linalg.norm(q, axis=-1)
        product = np.abs((q * target.row).sum(axis=-1)) - target.slack * length
        total = _norm(s, self.p) + self.slack * length
        return np.where(product > 0, product / total * (1.0 - 4 * self.roundoff), 0.0)

    def upper(self, target: _Target, y: FloatArray) -> Any:
        """Return what y (..., n) proves; infinite if nothing."""
        g = y @ self.rows.Z
        square = (target.row**2).sum(axis=-1)
        lam = (g * target.row).sum(axis=-1) / square
        rest = np.linalg.norm(g - lam[..., None] * target.row, axis=-1)
        rest += self.roundoff * (self.size * np.linalg.norm(y, axis=-1) + lam * np.sqrt(square))
        norm = _norm(y, self.conjugate)
        rest += self.slack * norm + lam * target.slack
        bound = (norm + self.embedding * rest) / lam * (1.0 + 4 * self.roundoff)
        return np.where((lam > 0) & ~np.isnan(bound), bound, np.inf)


def _norm(x: FloatArray, p: float) -> Any:
    """Return ``||x||_p`` along the last axis, in powers of numbers up to one."""
    top = np.maximum(np.abs(x).max(axis=-1, keepdims=True, initial=0.0), 1e-300)
    if np.isinf(p):
        return top[..., 0]
    return top[..., 0] * np.power(np.abs(x) / top, p).sum(axis=-1) ** (1.0 / p)
