"""Lewis weights: the change of density that makes lp as tame as l2."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from levsketch._checks import check_count, check_p, check_real, warn_caller
from levsketch._typing import ArrayLike, FloatArray, Rows
from levsketch.backends import Backend, backend_for
from levsketch.backends.cpu import serial_blas
from levsketch.backends.interchange import like, result_dtype
from levsketch.linalg import Whitening, above_underflow
from levsketch.streaming.rank import RowSpace

from .inputs import stacked, warn_uncertified
from .leverage import score_rows, whitening_of

# Smaller weights count as this in bounds for p >= 2, so that w and w^(1-2/p) stay in range.
LEAST_WEIGHT = 1e-200


class LewisFit(NamedTuple):
    """Weights w (n,) > 0 but for zero rows, and what belongs to them.

    ``squares`` are ``v_j = w_j^(1-2/p)``, the weights of the squares, for p < 2 up to a common
    factor; ``values`` are ``c_j = k_j^T (sum_l v_l k_l k_l^T)^+ k_j`` for these weights, not of
    the step after them; ``residual`` is the largest ``|log(c_j^(p/2) / w_j)|``.
    """

    weights: FloatArray
    squares: FloatArray
    values: FloatArray
    residual: float
    whitening: Whitening
    steps: int


def lewis_weights(K: ArrayLike, p: float, *, tol: float = 1e-6, max_iter: int = 200) -> Any:
    """Return the lp Lewis weights of the rows: the fixed point ``w_j = tau_j(W^(1/2-1/p) K)``.

    Leverage scores of the rows after row j was divided by ``w_j^(1/p-1/2)``. They sum to
    the rank of K, are leverage scores for p = 2, and bound sensitivities: by ``w_j`` for
    p <= 2, by ``rank^(p/2-1) w_j`` for p > 2.

    Parameters
    ----------
    K : array (..., n, d)
        Rows; leading axes are independent problems.
    p : float > 0
    tol : float > 0
        Stop when one more step would change no weight by more than this, relatively.
    max_iter : int >= 1
        Steps at the most; a few dozen do for any p (see Notes).

    Returns
    -------
    array (..., n)
        In the library of ``K``; float32 if K has at most 32 bits, else float64. Zero for
        rows of zeros.

    Raises
    ------
    ValueError
        For NaN or infinity (with row and column), p <= 0, fewer than two axes, no rows.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If ``max_iter`` steps did not reach ``tol``, with the residual. The weights are
        positive and usable all the same: the bounds of `sensitivity_bounds` hold for any.
    CertificationWarning
        If float64 cannot certify the weighted keys, as for `leverage_scores`.

    Notes
    -----
    The published iteration ``w <- c^(p/2)`` diverges for p >= 4. The damped one,
    ``w <- w^(1-theta) c^(p theta/2)`` with ``theta = 4/(p+2)``, contracts by
    ``|p-2|/(p+2)`` near the solution for every p > 0 (local rate proved, global convergence
    measured only: docs/theory). Each step costs one leverage pass, 2 n d^2 flops; memory
    O(n + d^2). Cohen and Peng, "lp row sampling by Lewis weights", STOC 2015.

    Examples
    --------
    >>> import levsketch as lv
    >>> lv.lewis_weights([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]], p=4).round(6)
    array([0.5, 0.5, 1. ])
    """
    p = check_p(p)
    tol = check_real("tol", tol, low=0.0, open_low=True)
    max_iter = check_count("max_iter", max_iter)
    keys = stacked("K", K)
    out = np.empty(keys.shape[:-1], dtype=result_dtype(keys.dtype))
    backend = backend_for(keys)
    for i in np.ndindex(keys.shape[:-2]):
        found = fit_lewis(backend, keys[i], p, tol, max_iter)
        out[i] = found.weights
        if found.residual > tol:
            warn_caller(
                f"Lewis weights for p={p:g} did not converge to tol={tol:g} in max_iter={max_iter} "
                f"steps: one more would change a weight by {found.residual:.1e}, relatively.",
                ConvergenceWarning,
            )
        if not found.whitening.certified:
            warn_uncertified(found.whitening)
    return like(out, K)


def fit_lewis(backend: Backend, K: Rows, p: float, tol: float, max_iter: int) -> LewisFit:
    """Return Lewis weights of one problem (n, d), after as many damped steps as it takes."""
    theta = 4.0 / (p + 2.0)
    c = np.empty(len(K))
    log_w, scale, space, step = np.zeros(len(K)), None, None, 0
    factor = 0.0
    while True:
        with serial_blas():
            found = whitening_of(backend, K, scale=scale, space=space)
            score_rows(backend, found, K, False, c)
        log_c = _logs(found, K, c)
        present = ~np.isneginf(log_c)  # rows that are not zero
        if space is None:
            space = row_space(K, found)
            # from weights that are all equal to the mean
            log_w[:] = np.log(max(found.rank, 1) / len(K))
            factor = (2.0 / p - 1.0) * float(log_w[0])
        change = np.where(present, p / 2.0 * (log_c + factor) - log_w, 0.0)
        residual = float(np.abs(change).max(initial=0.0))
        step += 1
        if residual <= tol or step > max_iter or p == 2.0:
            break
        log_w += theta * change
        # a common factor keeps w^(1/2-1/p) in range for small p, and is taken out of c again
        middle = float(np.median(log_w[present])) if p < 2.0 and present.any() else 0.0
        scale = np.where(present, _row_factors(log_w - middle, p), 0.0)
        factor = (2.0 / p - 1.0) * middle
    if scale is None and p >= 2.0:
        scale = np.where(present, _row_factors(log_w, p), 0.0)
        c = c * np.exp(factor)
    squares = np.ones(len(K)) if scale is None else np.square(scale)
    with np.errstate(under="ignore"):
        weights = np.where(present, np.exp(log_w), 0.0)
    if p == 2.0:
        weights, residual = np.minimum(c, 1.0), 0.0
    return LewisFit(weights, squares, above_underflow(c, K), residual, found, step)


def _logs(found: Whitening, K: Rows, c: FloatArray) -> FloatArray:
    """Return the logarithms of values c of rows K, also of squares that underflow."""
    with np.errstate(divide="ignore"):
        logs = np.log(c)
    faint = np.flatnonzero(c < 1e-280)
    if len(faint):
        e = np.where(found.active, found.factor.exponents, 0)
        rows = np.where(found.active, K[faint], 0.0).astype(np.float64)
        mantissa, own = np.frexp(rows)
        tops = np.max(np.where(mantissa != 0, own - e, -(10**6)), axis=1)
        unit = np.ldexp(mantissa, np.clip(own - e - tops[:, None], -2000, 0))
        with np.errstate(divide="ignore"):
            squares = np.log(np.square(unit @ found.matrix).sum(axis=1))
        logs[faint] = squares + 2.0 * np.log(2.0) * tops
    return logs


def _row_factors(log_w: FloatArray, p: float) -> FloatArray:
    """Return ``w^(1/2-1/p)``, by which rows are multiplied, for w of at least LEAST_WEIGHT.

    For p < 2 cut to float64's range instead, which only makes some bounds larger.
    """
    if p >= 2.0:
        log_w = np.maximum(log_w, np.log(LEAST_WEIGHT))
    return np.exp(np.clip((0.5 - 1.0 / p) * log_w, -288.0, 288.0))


def row_space(K: Rows, found: Whitening) -> RowSpace:
    """Return the exact row space of ``K``: of its columns where full rank was proved."""
    if found.spans_coordinates:
        return RowSpace.coordinates(found.active)
    return RowSpace.empty(K.shape[1]).absorb(K)[0]
