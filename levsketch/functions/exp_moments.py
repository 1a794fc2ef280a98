"""The mean of exp(X) between certain bounds, from the range of X and what is known of its variance.

For sums of exp(<q, k>) over keys that are not stored: of them the moments are known, and a range.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from levsketch._typing import FloatArray
from levsketch.linalg import UNIT_ROUNDOFF

# Below this, exp(x) - 1 - x is summed as a series, of as many terms as reach 2**-53 of it.
_SERIES_BELOW = 0.5
_SERIES = [1.0 / math.factorial(k) for k in range(18, 1, -1)]
# Roundings of a bound, in units of what they are relative to: twice what a count of them gives.
_ROUNDINGS = 16.0 * UNIT_ROUNDOFF


class LogBounds(NamedTuple):
    """Bounds ``lower <= log E exp(X) <= upper``, two arrays of the same shape."""

    lower: FloatArray
    upper: FloatArray


def log_mean_exp_bounds(
    low: FloatArray, high: FloatArray, variance_low: FloatArray, variance_high: FloatArray
) -> LogBounds:
    """Return bounds on ``log E exp(X)`` for any X of mean zero with ``low <= X <= high``.

    Parameters
    ----------
    low, high : arrays of one shape
        ``low <= 0 <= high``; either may be infinite.
    variance_low, variance_high : arrays of that shape
        Numbers that the variance of X is not below and not above; the second may be infinite.

    Returns
    -------
    LogBounds
        ``lower`` is at least 0 (Jensen) and at most ``upper``, which is at most ``high``;
        rounding is in them. Never NaN.

    Notes
    -----
    Let p be the parabola that meets exp in the point b and touches it in the point a. Then
    ``exp(x) - p(x) = exp(t) (x - a)^2 (x - b) / 6`` for some t: p is above exp left of b, below it
    right of b. With ``b = high``, ``E exp(X) <= E p(X)``; with ``b = low``, ``E exp(X) >= E p(X)``.
    The second derivative of p, a divided difference of exp, is positive: so ``E p(X)`` grows
    with the variance, and a bound s on it will do. With ``a = -s / b``, ``E p(X)`` at variance s
    is ``E exp`` of the X on the two points a and b: neither bound can be improved [1]_, [2]_.
    The upper one implies ``1 + s (exp(b) - 1 - b) / b^2`` (Bennett), ``exp(b)``, and, as no
    variance exceeds ``-low high``, the one from convexity (Hoeffding). A few elementary functions
    for each entry.

    References
    ----------
    .. [1] G. Bennett, "Probability inequalities for the sum of independent random variables",
       JASA 57 (1962). W. Hoeffding, JASA 58 (1963), for the use of convexity.
    .. [2] R. Bhatia and C. Davis, "A better bound on the variance", Amer. Math. Monthly 107
       (2000).

    Examples
    --------
    >>> import numpy as np
    >>> bounds = log_mean_exp_bounds(*np.array([[-3.0], [2.0], [1.0], [1.0]]))
    >>> bounds.lower.round(3), bounds.upper.round(3)
    (array([0.232]), array([0.674]))
    """
    with np.errstate(all="ignore"):
        most = -low * high * (1.0 + _ROUNDINGS)
        # X = 0 if it is never above, or never below its mean
        most = np.where((low == 0.0) | (high == 0.0), 0.0, most)
        upper, rounding = _log_two_points(np.fmin(variance_high, most), high)
        upper = np.fmin(upper + rounding, high)
        value, rounding = _log_two_points(np.maximum(variance_low, 0.0), low)
        # fmax: nothing but Jensen where the difference is inf - inf
        lower = np.fmin(np.fmax(value - rounding, 0.0), upper)
    return LogBounds(lower, upper)


def _log_two_points(variance: FloatArray, end: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return ``log E exp(X)`` for the X of mean zero on ``end`` and one more point; its rounding.

    ``end`` has either sign. Odds are those of ``end`` against the other point.
    """
    certain = (variance == 0.0) | (end == 0.0) | (end == -np.inf)
    b = np.where(certain, 1.0, end)
    s = np.where(certain, 0.0, variance)
    a = -s / b
    odds = np.fmin(s / b / b, 1e300)
    excess = (_remainder(a) + odds * _remainder(b)) / (1.0 + odds)
    log_odds = np.log(odds)
    far = np.logaddexp(a, log_odds + b) - np.log1p(odds)
    near = excess < 1.0
    value = np.where(near, np.log1p(excess), far)
    larger = np.where(b > 0.0, b, a)
    rounding = np.where(near, np.abs(value), 1.0 + np.abs(value) + larger + np.abs(log_odds))
    value = np.where(certain, 0.0, np.where(end == np.inf, np.inf, value))
    return value, np.where(certain | (end == np.inf), 0.0, _ROUNDINGS * rounding)


def _remainder(x: FloatArray) -> FloatArray:
    """Return ``exp(x) - 1 - x``, to a few units of rounding of itself."""
    small = np.abs(x) < _SERIES_BELOW
    y = np.where(small, x, 0.0)
    return np.asarray(np.where(small, y * y * np.polyval(_SERIES, y), np.expm1(x) - x))
