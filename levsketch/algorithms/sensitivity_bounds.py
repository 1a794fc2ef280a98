"""Upper bounds on sensitivities: one short function a proof, and the smallest of them all.

Every bound holds for any positive weights, whether an iteration has converged or not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from levsketch._checks import check_p
from levsketch._typing import ArrayLike, FloatArray, Rows
from levsketch.backends import Backend, backend_for
from levsketch.backends.cpu import serial_blas
from levsketch.backends.interchange import like, result_dtype, rounded_up
from levsketch.functions import Power, ScoreFunction, make_function
from levsketch.functions.certificates import ROUNDING, CappedCertificate, Certificate, among_all
from levsketch.linalg import Whitening, above_underflow
from levsketch.sketches.symmetric import SymmetricPower
from levsketch.streaming.lifted import LiftedFactor
from levsketch.streaming.lp_policy import HIGHEST_DEGREE, LIFT_COLUMNS

from .inputs import stacked, warn_uncertified
from .leverage import score_rows, whitening_of
from .lewis import LEAST_WEIGHT, LewisFit, fit_lewis, row_space

# Bounds hold for any weights; closer than this to the fixed point they gain nothing.
_TOLERANCE = 1e-2
_STEPS = 60
_SUM_ROUNDING = 1.0 + ROUNDING


def sensitivity_bounds(
    K: ArrayLike, p: float = 2.0, *, function: ScoreFunction | str | None = None
) -> Any:
    """Return upper bounds on ``sup_q f(<q, k_j>) / sum_l f(<q, k_l>)`` for every row.

    The smallest, row by row, of the bounds by Lewis weights (`leave_one_out_bounds`), by
    leverage alone (`leverage_bounds`) and, for p = 4, 6, ..., by the leverage of lifted rows
    (`lift_bounds`). For p = 2 they are leverage scores, plus what rounding may hide.

    Parameters
    ----------
    K : array (..., n, d)
        Rows; leading axes are independent problems.
    p : float > 0
        Exponent of ``f(x) = |x|^p``.
    function : ScoreFunction or its name, optional
        Another f, of at most quadratic growth ("huber", "tukey"); ``p`` is then not used.

    Returns
    -------
    array (..., n)
        At most 1; zero for rows of zeros. In the library of ``K``; float32 (rounded up) if K
        has at most 32 bits.

    Raises
    ------
    ValueError
        For NaN or infinity (with row and column), p <= 0, an unknown function.

    Warns
    -----
    CertificationWarning
        If float64 cannot certify the keys: the bounds are then all 1.

    Notes
    -----
    About ten leverage passes of 2 n d^2 flops, and n D^2 more for the lift,
    ``D = C(d + p/2 - 1, p/2)`` columns, where 4 D <= n and D <= 1000. Memory O(n + d^2 + D^2).
    The total is about the rank at most for p <= 2, rank^(p/2) for p > 2, and often far less.
    Cohen and Peng, STOC 2015; Kannan, Bhattacharyya, Kacham, Woodruff, arXiv 2410.05462.

    Examples
    --------
    >>> import numpy as np
    >>> import levsketch as lv
    >>> K = np.vstack([np.eye(2)] * 8 + [[[0.0, 2.0]]])
    >>> lv.sensitivity_bounds(K, p=4)[[0, -1]].round(3)
    array([0.125, 0.667])
    """
    f = Power(check_p(p)) if function is None else make_function(function)
    keys = stacked("K", K)
    out = np.empty(keys.shape[:-1], dtype=result_dtype(keys.dtype))
    backend = backend_for(keys)
    for i in np.ndindex(keys.shape[:-2]):
        out[i] = rounded_up(bounds_of_rows(backend, keys[i], f), out.dtype)
    return like(out, K)


def bounds_of_rows(backend: Backend, K: Rows, f: ScoreFunction) -> FloatArray:
    """Return the bounds (n,) for one problem, warning if nothing can be certified."""
    tau, plain = _leverage(backend, K)
    if not plain.certified:
        warn_uncertified(plain)
        return np.where(K.any(axis=1), 1.0, 0.0)
    if not isinstance(f, Power):
        return capped_bounds(backend, K, CappedCertificate(f.growth), plain)
    p = f.p
    if p == 2.0:
        return tau
    bounds = leverage_bounds(tau, p)
    # a weight is the power p/2 of what the bounds are made of
    found = fit_lewis(backend, K, p, _TOLERANCE * min(1.0, p / 2.0), _STEPS)
    if found.whitening.certified:
        bounds = np.minimum(bounds, leave_one_out_bounds(found, p))
    if p % 2.0 == 0.0 and p <= 2 * HIGHEST_DEGREE:
        size = SymmetricPower(K.shape[1], int(p) // 2).size
        if size <= LIFT_COLUMNS and 4 * size <= len(K):
            bounds = np.minimum(bounds, lift_bounds(backend, K, p))
    return np.where(tau > 0, np.minimum(bounds, 1.0), 0.0)


def lewis_bounds(fit: LewisFit, p: float) -> FloatArray:
    """Return the Lewis bound, for any weights w > 0 (Cohen and Peng, 2015).

    With ``c_j = k_j^T (K^T W^(1-2/p) K)^+ k_j``: ``c_j^(p/2) (sum w)^(p/2-1)`` for p >= 2, by
    Hoelder's inequality, and ``c_j^(p/2) max_l (c_l / w_l^(2/p))^(1-p/2)`` for p < 2.
    """
    rule, c = Power(p).certificate, fit.values / fit.whitening.deflation
    return rule.bounds(c, _level(fit, rule, c))


def leave_one_out_bounds(fit: LewisFit, p: float) -> FloatArray:
    """Return the Lewis bound of each row among all *other* rows, turned into one among all.

    If ``|<q, k_j>|^p <= u_j sum_(l != j) |<q, k_l>|^p``, then the sensitivity is at most
    ``u_j / (1 + u_j)``: the row counts itself exactly. Proofs in ``shares`` of
    `HoelderCertificate` and `LewisCertificate`.
    """
    rule, c = Power(p).certificate, fit.values / fit.whitening.deflation
    return rule.shares(c, fit.squares, _level(fit, rule, c))


def _level(fit: LewisFit, rule: Certificate, c: FloatArray) -> float:
    if rule.additive:
        level = np.maximum(fit.weights, LEAST_WEIGHT).sum()
    else:
        level = rule.parts(fit.squares, c).max(initial=0.0)
    return float(level) * _SUM_ROUNDING


def leverage_bounds(tau: FloatArray, p: float) -> FloatArray:
    """Return the bound from leverage scores alone, by the norms of the other n - 1 products.

    At a query with ``<q, k_j>^2 = tau_j ||K q||^2`` or less, the others have squares that sum
    to at least ``(1 - tau_j) / tau_j`` times it, and a p-norm of at least their 2-norm for
    p <= 2, of ``(n-1)^(1/p-1/2)`` times it for p >= 2 (Hoelder).
    """
    others = 1.0 if p <= 2.0 else max(len(tau) - 1.0, 1.0) ** (1.0 - 2.0 / p)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        u = (tau / np.maximum(1.0 - tau, 0.0) * others) ** (p / 2.0)
    return among_all(u)


def lift_bounds(backend: Backend, K: Rows, p: float) -> FloatArray:
    """Return the leverage scores of lifted rows, for even p (arXiv 2410.05462).

    ``<q, k>^p = <phi(q), phi(k)>^2`` with phi the monomials of degree p/2, so the supremum
    over all vectors in place of phi(q) is a bound. Ones if the lifted rows cannot be
    certified to have full rank.
    """
    lift = SymmetricPower(K.shape[1], int(p) // 2)
    state = LiftedFactor.empty(lift, True, 0)
    block = state.factor.block_rows
    with serial_blas():
        for first in range(0, len(K), block):
            rows = np.asarray(backend.rows(K[first : first + block]), np.float64)
            state = (state.absorb if len(rows) == block else state.absorb_short)(backend, rows)
        whitening = state.whitening(backend)
        return state.bounds_of(backend, whitening, np.asarray(backend.rows(K), np.float64))


def capped_bounds(
    backend: Backend, K: Rows, rule: CappedCertificate, plain: Whitening
) -> FloatArray:
    """Return bounds for any f of at most quadratic growth, by capped sensitivities.

    See `CappedCertificate` for the proof. Weights are sought that press the largest value
    ``v_l c_l`` down to twice the mean.
    """
    n, space = len(K), row_space(K, plain)
    v, c, best = np.ones(n), np.empty(n), np.ones(n)
    level, found = rule.first_level(plain.rank, n), plain
    for _ in range(_STEPS):
        with serial_blas():
            score_rows(backend, found, K, False, c)
            above_underflow(c, K)
        if not found.certified:
            break
        upper = c / found.deflation
        parts = rule.parts(v, upper)
        shares = rule.shares(upper, v, float(parts.max(initial=0.0)) * _SUM_ROUNDING)
        before, best = best, np.minimum(best, shares)
        if np.abs(np.log(best[c > 0] / before[c > 0])).max(initial=0.0) < _TOLERANCE:
            break
        v = v ** (1.0 - rule.damping) * rule.weights(upper, level, plain.rank) ** rule.damping
        with serial_blas():
            found = whitening_of(backend, K, scale=np.sqrt(v), space=space)
    return np.where(c > 0, best, 0.0)


def _leverage(backend: Backend, K: Rows) -> tuple[FloatArray, Whitening]:
    """Return upper bounds on the leverage scores, and the whitening."""
    scores = np.empty(len(K))
    with serial_blas():
        found = whitening_of(backend, K)
        score_rows(backend, found, K, False, scores)
        above_underflow(scores, K)
    return found.upper_bounds(scores), found
