"""Polynomials that stand for exp where numbers of known moments are, and what that costs."""

from __future__ import annotations

import math

import numpy as np

from levsketch._typing import FloatArray

# Beyond this, no certificate of the remainder says anything that exp(64) would not drown.
_FARTHEST = 64.0
# Terms of a series: those of exp(64) fall below 2**-53 of their sum before the 230th.
_TERMS = 256
# A variance above this, of what is exponentiated, is taken for this: nothing is certified there.
_WIDEST = 200.0
# Twice what the roundings of a sum of so many positive terms come to.
_ROUNDINGS = 2.0**-43


def hermite_polynomials(degree: int, variances: FloatArray) -> FloatArray:
    """Return the polynomials nearest to exp in the mean square of normal laws of mean zero.

    Parameters
    ----------
    degree : int
    variances : (m,) array
        Of each law, at least 0; infinite ones and those above 200 count as 200.

    Returns
    -------
    (m, degree + 1) array
        Coefficients of ``x^r``; those of Taylor for a variance of zero.

    Notes
    -----
    ``exp(x) = exp(v / 2) sum_r v^(r/2) / r! He_r(x / sqrt(v))`` is the expansion in Hermite
    polynomials, orthogonal for the law; the sum is cut at the degree. If logits are
    normal, sums of exp over them come out right whatever the degree, and those of exp times a
    polynomial of that degree as well: Taylor's polynomial, and the best on an interval,
    serve rare logits as well as frequent ones, at the expense of these.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.functions.exp_series import hermite_polynomials
    >>> hermite_polynomials(2, np.array([0.0, 1.0])).round(3)
    array([[1.   , 1.   , 0.5  ],
           [0.824, 1.649, 0.824]])
    """
    v = np.minimum(variances, _WIDEST)
    # h_r(x) = v^(r/2) He_r(x / sqrt(v)):  h_(r+1) = x h_r - r v h_(r-1)
    before, here = np.zeros((len(v), degree + 1)), np.zeros((len(v), degree + 1))
    here[:, 0] = 1.0
    total = here.copy()
    for r in range(degree):
        before, here = here, np.roll(here, 1, axis=1) - r * v[:, None] * before
        total += here / math.factorial(r + 1)
    return np.asarray(total * np.exp(v / 2.0)[:, None])


def remainders(degree: int, x: FloatArray) -> FloatArray:
    """Return ``(exp(x) - sum_{r < degree} x^r / r!) / x^degree``: positive, growing with x.

    Within 2**-44, relatively, for degree >= 1 and |x| <= 64; infinite above, and below a
    number that it exceeds.

    Notes
    -----
    Above zero the series ``sum_k x^k / (k + degree)!``; below, where that alternates, Kummer's
    transform of it, ``exp(x) / degree! sum_k degree / (degree + k) (-x)^k / k!``. All terms are
    positive.
    """
    near = np.minimum(np.abs(x), _FARTHEST)
    above, below = np.ones_like(near), np.ones_like(near)
    term, exponential = np.ones_like(near), np.ones_like(near)
    for k in range(1, _TERMS):
        term = term * near / (degree + k)
        exponential = exponential * near / k
        above += term
        below += exponential * (degree / (degree + k))
        if exponential.max(initial=0.0) < 2.0**-60:
            break
    found = np.where(x >= 0.0, above, np.exp(-near) * below) / math.factorial(degree)
    # below -64 it is about 1 / (factorial(degree - 1) |x|): zero is a bound
    return np.where(x > _FARTHEST, np.inf, np.where(x < -_FARTHEST, 0.0, found))


def weight_errors(
    coefficients: FloatArray, low: FloatArray, high: FloatArray, moments: FloatArray
) -> FloatArray:
    """Return bounds (m,) on ``sum_j w_j |p(x_j) - exp(x_j)|``, from even moments and a range.

    Parameters
    ----------
    coefficients : (m, g + 1) array
        Of p; g is even and at least 2.
    low, high : (m,) arrays
        No x_j is outside.
    moments : (m, g + 1) array
        Upper bounds on ``sum_j w_j x_j^r`` for even r, weights w_j >= 0; odd r are not read.

    Returns
    -------
    (m,) array
        Rounding is in it; infinite where nothing is known, never NaN.

    Notes
    -----
    With ``R(x)`` the function of `remainders` and c_r the coefficients of p, ::

        exp(x) - p(x) = x^g (R(x) - c_g) + sum_{r < g} (1 / r! - c_r) x^r.

    R grows, so that ``|R(x) - c_g|`` is largest at an end; x^g is no less than zero; and
    ``sum w |x|^r`` for odd r is at most the geometric mean of its neighbours (Cauchy and Schwarz).
    The bound on the best polynomial of an interval is that of its worst points; this one counts how
    far out numbers are, and how many: for logits of a normal law it is 10 to 100 times
    smaller.
    """
    g = coefficients.shape[1] - 1
    even = np.maximum(moments, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        ends = np.stack([remainders(g, low), remainders(g, high)], axis=1)
        top = coefficients[:, g:]
        apart = np.abs(ends - top) + _ROUNDINGS * (ends + np.abs(top))
        total = apart.max(axis=1) * even[:, g]
        for r in range(g):
            taylor = 1.0 / math.factorial(r)
            off = np.abs(taylor - coefficients[:, r]) + _ROUNDINGS * taylor
            size = even[:, r]
            if r % 2:
                size = np.sqrt(even[:, r - 1]) * np.sqrt(even[:, r + 1])
            total += off * size
        total *= 1.0 + _ROUNDINGS
    return np.where(np.isnan(total), np.inf, total)
