"""Mean, variance and range of the logits of rows that are not kept, and what they are off by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from levsketch._typing import FloatArray
from levsketch.functions.exp_moments import LogBounds, log_mean_exp_bounds
from levsketch.linalg import UNIT_ROUNDOFF

from .extents import KeyExtent

# Two differences of two numbers round by less than this times their sizes.
_DIFFERENCE = 4.0 * UNIT_ROUNDOFF


class LogitSpread(NamedTuple):
    """What is known of the logits ``<q, k_j>`` of rows, one entry (m,) for each query.

    Attributes
    ----------
    mean, variance : (m,) arrays
        Weighted mean and variance as computed; zero where they leave the range of float64.
    mean_error, variance_error : (m,) arrays
        What these may be off by.
    low, high : (m,) arrays
        No logit of a row is outside; infinite where nothing is known.
    log_weight, weight_error : float
        Logarithm of the sum of the weights, and what it may be off by.
    """

    mean: FloatArray
    mean_error: FloatArray
    variance: FloatArray
    variance_error: FloatArray
    low: FloatArray
    high: FloatArray
    log_weight: float
    weight_error: float

    @property
    def log_error(self) -> FloatArray:
        """What ``log_weight + mean`` may be off by (m,), the addition included."""
        return self.mean_error + self._sum_error(self.mean)

    def log_mean_exp(self) -> LogBounds:
        """Return bounds on ``log sum_j p_j exp(x_j)``: x_j logits less their mean, p_j shares.

        By `log_mean_exp_bounds`, with everything as far off as it may be.
        """
        with np.errstate(all="ignore"):
            hidden = self.mean_error + _DIFFERENCE * np.abs(self.mean)
            above = self.high - self.mean + _DIFFERENCE * np.abs(self.high) + hidden
            below = self.mean - self.low + _DIFFERENCE * np.abs(self.low) + hidden
            return log_mean_exp_bounds(
                -_positive(below),
                _positive(above),
                self.variance - self.variance_error,
                self.variance + self.variance_error,
            )

    def log_sum_exp(self) -> LogBounds:
        """Return bounds on ``log sum_j w_j exp<q, k_j>``: by the mean, and by the range alone."""
        bounds = self.log_mean_exp()
        with np.errstate(all="ignore"):
            middle, hidden = self.log_weight + self.mean, self.log_error
            upper = middle + bounds.upper + (hidden + _DIFFERENCE * bounds.upper)
            lower = middle + bounds.lower - (hidden + _DIFFERENCE * bounds.lower)
            upper = np.fmin(upper, self.log_weight + self.high + self._sum_error(self.high))
            lower = np.fmax(lower, self.log_weight + self.low - self._sum_error(self.low))
        return LogBounds(
            np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)
        )

    def _sum_error(self, logits: FloatArray) -> FloatArray:
        size = np.abs(logits) + abs(self.log_weight)
        return np.asarray(self.weight_error + _DIFFERENCE * (1.0 + size))


def logit_spread(
    Q: FloatArray,
    mean: FloatArray,
    covariance: FloatArray,
    scale: FloatArray,
    weight: float,
    roundoff: float,
    extent: KeyExtent,
) -> LogitSpread:
    """Return what moments of keys say of the logits of queries (m, d), never NaN.

    Parameters
    ----------
    Q : (m, d) array
    mean, covariance : (d,) and (d, d) arrays
        As computed from the sums over the keys.
    scale : (d,) array
        Roots of the mean squares of the columns, at least, relative to where they were summed.
    weight : float
        Sum of the weights, positive.
    roundoff : float
        What sums are off by, relative to sums of absolute values.
    extent : KeyExtent

    Notes
    -----
    Let e be the scale, t the roundoff and ``R = sum_i |q_i| e_i``. No mean square (a, b) is off by
    more than ``t e_a e_b`` (Cauchy-Schwarz), nor a mean by more than ``t e_a``. Dividing,
    subtracting and multiplying with q make that ``(2 t + (d + 3) u) R`` for the mean logit and
    ``(6 t + (2 d + 12) u) R^2`` for the variance. Four roundings of each entry of a key are 4 u R
    and 9 u R^2 more. ``O(m d^2)``.
    """
    d = Q.shape[1]
    average, variance = Q @ mean, np.einsum("md,md->m", Q @ covariance, Q)
    size = np.abs(Q) @ scale * 1.01
    mean_error = (2.0 * roundoff + (d + 7) * UNIT_ROUNDOFF) * size
    variance_error = (6.0 * roundoff + (2 * d + 21) * UNIT_ROUNDOFF) * size * size
    known = np.isfinite(average) & np.isfinite(mean_error)
    sure = np.isfinite(variance) & np.isfinite(variance_error)
    return LogitSpread(
        np.where(known, average, 0.0),
        np.where(known, mean_error, np.inf),
        np.where(sure, variance, 0.0),
        np.where(sure, variance_error, np.inf),
        -extent.highest(-Q),
        extent.highest(Q),
        float(np.log(weight)),
        1.01 * roundoff,
    )


def _positive(x: FloatArray) -> FloatArray:
    """Return x, zero if it is below, and infinity for inf - inf."""
    return np.where(np.isnan(x), np.inf, np.maximum(x, 0.0))
