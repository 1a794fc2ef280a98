"""Softmax outputs from moments: by which polynomial, and how far from the truth at most."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from levsketch._typing import BoolArray, FloatArray
from levsketch.functions.exp_polynomial import exp_polynomials
from levsketch.functions.exp_series import hermite_polynomials, weight_errors
from levsketch.linalg import UNIT_ROUNDOFF
from levsketch.streaming.extents import row_norms
from levsketch.streaming.key_value_moments import KeyValueMoments
from levsketch.streaming.moments import NO_VALUES, MomentTensors, recentred
from levsketch.streaming.polynomial_answering import Answering

from . import attention_bounds

# Roundings of a bound once its parts are known; those of an exponential are as many as its
# argument is large.
_OWN = 64.0 * UNIT_ROUNDOFF
# Halfwidths are rounded up to a power of 2**(1/8), so that a few polynomials serve all queries: at
# degree g their errors grow by a factor of 1.09**(g + 1) at most.
_GRID = 0.125
# No polynomial of degree g has a relative error below a half on more than g + 1 to either side.
_USEFUL = 1
# Logits of a larger variance are taken for those of a narrower normal law, whose polynomials weigh
# rare logits less wildly. On 12 heads of a trained encoder the relative error at degree 4 had a
# median of .23, .20 and .23 with 2, 3 and 4, and at most .70; of .35 without, and at most 2.3.
_WIDEST = 3.0
# The polynomial of an interval answers where its certificate is smaller by this factor. On normal
# logits that of the other is up to 1.4 times larger, but its error up to 30 times smaller; on
# logits at both ends of their range both are 300 times larger (one column, degree 4, measured).
_MUCH = 0.25


class SoftmaxOutputs(NamedTuple):
    """Outputs (m, d_v) and error bounds (m,) in the frame; (m,) of which nothing is proved."""

    outputs: FloatArray
    bounds: FloatArray
    beyond: BoolArray


class _Sums(NamedTuple):
    """``sum_j w_j x_j^r [v_j, 1]``, r = 0 ... g: (m, g + 1, c), and bounds on its rounding.

    Times ``exp(log_scale)``.
    """

    values: FloatArray
    rounding: FloatArray
    log_scale: float

    @property
    def degree(self) -> int:
        return int(self.values.shape[1]) - 1

    @property
    def weights(self) -> _Sums:
        """The last column alone."""
        return _Sums(self.values[..., -1:], self.rounding[..., -1:], self.log_scale)

    def about(self, shift: FloatArray) -> _Sums:
        """Return the sums of ``(x_j - shift)^r``, one shift (m,) a query."""
        with np.errstate(over="ignore", invalid="ignore"):
            far = -np.abs(shift)
            values = recentred(self.values, shift)
            rounding = recentred(self.rounding, far)
            rounding += (self.degree + 8) * UNIT_ROUNDOFF * recentred(np.abs(self.values), far)
        return _Sums(values, rounding, self.log_scale)

    def polynomial(self, coefficients: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return ``sum_j w_j p(x_j) [v_j, 1]`` (m, c), and bounds on its rounding."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.einsum("mr,mrc->mc", coefficients, self.values)
            size = np.abs(self.values) * ((self.degree + 8) * UNIT_ROUNDOFF) + self.rounding
            return found, np.einsum("mr,mrc->mc", np.abs(coefficients), size)


class _Choice(NamedTuple):
    """A polynomial in ``x - shift`` for each query, and D / Z of it; infinite if unproved."""

    shift: FloatArray
    coefficients: FloatArray
    share: FloatArray

    def or_better(self, other: _Choice) -> _Choice:
        """Return for each query this choice, or the other one where that is much better."""
        better = other.share < _MUCH * self.share
        return _Choice(
            np.where(better, other.shift, self.shift),
            np.where(better[:, None], other.coefficients, self.coefficients),
            np.where(better, other.share, self.share),
        )


def softmax_outputs(view: Answering, Q: FloatArray) -> SoftmaxOutputs:
    """Return attention outputs of queries (m, d), which have the scale in them.

    Notes
    -----
    Let x_j be the logits of the absorbed rows, p a polynomial and s a shift. The sums
    ``exp(s) sum_j w_j p(x_j - s) [v_j, 1]`` are inner products with moments; the sums of exp over
    rows that wait are added to them. Together they are N and Z, and the output is N / Z. With
    y the exact output and ::

        D >= exp(s) sum_j w_j |p(x_j - s) - exp(x_j - s)|,

    *the error is at most* ``D max_j ||v_j - y|| / Z``. *Proof.* As ``sum_j w_j exp(x_j) (v_j - y)``
    over all rows is zero, ``N - y Z = exp(s) sum_j w_j (p(x_j - s) - exp(x_j - s)) (v_j - y)``; and
    ``N / Z - y`` is that over Z. *End.* The largest ``||v_j - y||`` is at most the diameter of the
    extent of the values; and at most ``r / (1 - D / Z)``, with r the largest distance of a
    value to the output, for it is at most r plus the error.

    Two polynomials are tried. The nearest to exp in the mean square of a normal law with mean
    and variance of the logits (3 if that is larger) has the D of `weight_errors`; it is for
    logits most of which are near their mean. The best on the certified range of the logits,
    ``|p - exp| <= rho exp``, has ``D = rho / (1 - rho) Z``, as the exact normaliser is at most
    ``Z / (1 - rho)``; it is for logits that fill their range, and answers where its D / Z is
    much smaller.

    Where the polynomials prove less than first and second moments do, or are sketched, what
    counts is `attention_bounds.error_bound`, for rows whose weights do not decay; else, that
    outputs are in the box of the values.
    """
    frame, extent = view.frame, view.extent
    inner = frame.queries(Q)
    exact = attention_bounds.exact_part(inner, view.keys, view.values, view.weights)
    d, d_v = Q.shape[1], len(view.low)
    if view.moments is None:
        nothing = KeyValueMoments.empty(d, d_v)
        bounds = attention_bounds.error_bound(inner, exact.mean_value, exact, nothing)
        return SoftmaxOutputs(exact.mean_value, bounds, np.zeros(len(Q), np.bool_))
    sums = _sums(view.moments, Q)
    low, high = -view.reach.highest(-inner), view.reach.highest(inner)
    choice = _chosen(sums, low, high, _key_rounding(view, inner))
    part, rounding = _of_choice(sums, choice)
    # both kinds of rows in one unit
    log_unit = choice.shift + (sums.log_scale + view.log_age)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        log_part = log_unit + np.log(part[:, -1])
        top = np.maximum(log_part, exact.log_normaliser)
        absorbed, waiting = np.exp(log_part - top), np.exp(exact.log_normaliser - top)
        total = absorbed + waiting
        absorbed, waiting = absorbed / total, waiting / total
        average = part[:, :-1] / part[:, -1:]
        outputs = absorbed[:, None] * average + waiting[:, None] * exact.mean_value
        outputs = np.clip(outputs, extent.low, extent.high)
        # the two parts weigh what they do but for this, relatively
        off = exact.log_error + _OWN * (64.0 + np.abs(log_unit) + np.abs(exact.log_normaliser))
        off = np.where(waiting > 0.0, waiting * np.expm1(2.0 * off), 0.0)
        share = absorbed * choice.share + off
        largest = float(row_norms(extent.magnitude[None])[0])
        hidden = absorbed * (row_norms(rounding[:, :-1]) + rounding[:, -1] * largest) / part[:, -1]
        hidden += waiting * exact.value_error + _OWN * largest
        bounds = share * _farthest(view, outputs, share) + hidden
    beyond = ~(share < 1.0)
    bounds = np.where(beyond | np.isnan(bounds) | (not view.certified), np.inf, bounds)
    if view.about is not None:
        plain = attention_bounds.error_bound(inner, outputs, exact, view.about)
        bounds = np.fmin(bounds, plain)
    anyhow = attention_bounds.box_error(outputs, extent.low, extent.high)
    return SoftmaxOutputs(outputs, np.fmin(bounds, anyhow), beyond)


def _sums(moments: MomentTensors, Q: FloatArray) -> _Sums:
    """Return the sums of queries, in the unit of the last column."""
    found = moments.contract_scaled(Q)
    unit = int(moments.value_exponents[-1])
    # columns without entries have no unit: any will do
    seen = moments.value_exponents > NO_VALUES
    powers = found.powers[:, :, None] + np.where(seen, moments.value_exponents - unit, 0)
    with np.errstate(over="ignore", under="ignore"):
        values, rounding = np.ldexp(found.values, powers), np.ldexp(found.rounding, powers)
    return _Sums(values, rounding, unit * math.log(2.0))


def _key_rounding(view: Answering, inner: FloatArray) -> FloatArray:
    """Return by how much taking the center from keys may have changed a logit."""
    size = np.maximum(np.abs(view.reach.low), np.abs(view.reach.high))
    return np.asarray(4.0 * UNIT_ROUNDOFF * (np.abs(inner) @ size))


def _chosen(sums: _Sums, low: FloatArray, high: FloatArray, off: FloatArray) -> _Choice:
    """Return the polynomials that answer; logits are in [low, high], and off by ``off`` at most."""
    degree, weights = sums.degree, sums.weights
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mean = weights.values[:, 1, 0] / weights.values[:, 0, 0]
        mean = np.where(np.isfinite(mean), mean, 0.0)
        spread = weights.about(mean).values
        variance = np.nan_to_num(spread[:, 2, 0] / spread[:, 0, 0], posinf=0.0)
    normal = hermite_polynomials(degree, np.clip(variance, 0.0, _WIDEST))
    choice = _judged(weights, mean, normal, low, high, off)
    halfwidth = np.exp2(np.ceil(np.log2(np.maximum((high - low) / 2.0, 1e-9)) / _GRID) * _GRID)
    narrow = np.flatnonzero(halfwidth <= degree + _USEFUL)
    if not len(narrow):
        return choice
    some = _Sums(weights.values[narrow], weights.rounding[narrow], weights.log_scale)
    low, high, off = low[narrow], high[narrow], off[narrow]
    best, rho = exp_polynomials(degree, halfwidth[narrow])
    middle = low + (high - low) / 2.0
    # rounding may have moved the middle by more than the grid has room
    wide = np.maximum(high - middle, middle - low) * (1.0 + _OWN) > halfwidth[narrow]
    rho = np.where(wide, np.inf, rho)
    other = _Choice(mean.copy(), normal.copy(), np.full(len(mean), np.inf))
    for mine, its in zip(other, _judged(some, middle, best, low, high, off, rho), strict=True):
        mine[narrow] = its
    return choice.or_better(other)


def _judged(
    weights: _Sums,
    shift: FloatArray,
    coefficients: FloatArray,
    low: FloatArray,
    high: FloatArray,
    off: FloatArray,
    rho: FloatArray | None = None,
) -> _Choice:
    """Return a choice with its share D / Z; ``rho`` is a relative error if one is known."""
    moved = weights.about(shift)
    found, rounding = moved.polynomial(coefficients)
    total, lost = found[:, 0], rounding[:, 0]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        room = _OWN * (np.abs(low) + np.abs(high) + np.abs(shift))
        most = (moved.values + moved.rounding)[..., 0]
        D = weight_errors(coefficients, low - shift - room, high - shift + room, most)
        if rho is not None:
            proved = np.where(rho < 1.0, rho / (1.0 - rho) * (total + lost), np.inf)
            D = np.fmin(D, proved)
        D += np.expm1(off) * (total + lost + D)
        share = (D + lost) / total * (1.0 + _OWN)
    share = np.where((total > 2.0 * lost) & np.isfinite(share), share, np.inf)
    return _Choice(shift, coefficients, share)


def _of_choice(sums: _Sums, choice: _Choice) -> tuple[FloatArray, FloatArray]:
    """Return the sums (m, d_v + 1) of the chosen polynomials, relative to exp(shift), and rounding.

    By Jensen's inequality those of exp have a normaliser of at least the weight, about the mean.
    Polynomials of which nothing is proved may have less, or overflow: then all rows weigh the same.
    """
    part, rounding = sums.about(choice.shift).polynomial(choice.coefficients)
    plain = sums.values[:, 0]
    sound = np.isfinite(part).all(axis=1) & (part[:, -1] > 0.5 * plain[:, -1])
    sound |= np.isfinite(choice.share)
    part = np.where(sound[:, None], part, plain)
    return part, np.where(sound[:, None], rounding, np.inf)


def _farthest(view: Answering, outputs: FloatArray, share: FloatArray) -> FloatArray:
    """Return bounds (m,) on how far a value is from the exact output; see `softmax_outputs`."""
    extent = view.extent
    sides = float(row_norms((extent.high - extent.low)[None])[0])
    diameter = min(sides, 2.0 * extent.radius) * (1.0 + _OWN)
    near = extent.farthest(-outputs, np.ones(len(outputs))) * (1.0 + _OWN)
    return np.fmin(diameter, np.where(share < 1.0, near / (1.0 - share), np.inf))
