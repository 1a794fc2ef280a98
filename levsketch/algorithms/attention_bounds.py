"""What is certain of softmax attention when some keys are kept and moments of the rest.

Sums over the kept keys are known up to rounding, those over the rest between bounds that follow
from their moments and their extent. Logits are ``<q, k>``: their scale is in the queries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from levsketch._typing import FloatArray
from levsketch.backends.cpu import serial_blas
from levsketch.functions.exp_moments import LogBounds
from levsketch.functions.softmax import softmax_sums
from levsketch.linalg import UNIT_ROUNDOFF
from levsketch.streaming.attention_model import Exact, Model
from levsketch.streaming.extents import ValueExtent, row_norms
from levsketch.streaming.key_value_moments import KeyValueMoments

# Roundings of a bound once its parts are known, in units of these.
_OWN = 32.0 * UNIT_ROUNDOFF
# exp(x - top) is off by |x - top| roundings, but then it is small: no sum by more than this many.
_EXPONENT = 64


class ExactPart(NamedTuple):
    """Softmax sums over the kept keys, and what rounding did to them.

    Attributes
    ----------
    log_normaliser : (m,) array
        ``log sum_j w_j exp<q, k_j>``; -inf without keys.
    mean_value : (m, d_v) array
        Their attention output; zero without keys.
    log_error, value_error : (m,) arrays
        What ``log_normaliser`` and the length of ``mean_value`` may be off by.
    """

    log_normaliser: FloatArray
    mean_value: FloatArray
    log_error: FloatArray
    value_error: FloatArray


def exact_part(
    Q: FloatArray, K: FloatArray, V: FloatArray, weights: FloatArray | None = None
) -> ExactPart:
    """Return the softmax sums of queries over kept keys, with their rounding.

    Parameters
    ----------
    Q, K, V : (m, d), (n, d) and (n, d_v) arrays
        Finite, of moderate size: products must not overflow.
    weights : (n,) array, optional
        At least 0; ones if not given.

    Returns
    -------
    ExactPart
        The errors also cover keys and values whose entries were rounded up to four times.

    Notes
    -----
    A logit is off by at most ``h = (d + 7) u sum_i |q_i| max_j |k_ji|`` and so is the logarithm of
    the normaliser; shares of keys in it are off by a factor of ``exp(2 h)``, hence the output by
    ``exp(2 h) - 1`` times the sides of the box of the values. O(m n (d + d_v)).
    """
    w = np.ones(len(K)) if weights is None else weights
    if not w.all():  # the largest logit must be that of a key with weight
        K, V, w = K[w > 0.0], V[w > 0.0], w[w > 0.0]
    with serial_blas(), np.errstate(all="ignore"):
        shift, sums = softmax_sums(Q, K, np.concatenate([V * w[:, None], w[:, None]], axis=1))
    return _exact(Q, K, V, shift, sums)


def _exact(
    Q: FloatArray, K: FloatArray, V: FloatArray, shift: FloatArray, sums: FloatArray
) -> ExactPart:
    """Return the exact part from its sums, relative to ``exp(shift)``."""
    total, n = sums[:, -1], len(K)
    some = total > 0.0
    with np.errstate(all="ignore"):
        logits = np.abs(Q) @ np.abs(K).max(axis=0, initial=0.0)
        hidden = ((Q.shape[1] + 7) * logits + (n + _EXPONENT)) * (1.01 * UNIT_ROUNDOFF)
        log_normaliser = np.where(some, shift + np.log(total), -np.inf)
        mean = np.where(some[:, None], sums[:, :-1] / total[:, None], 0.0)
        hidden += np.where(some, _OWN * (np.abs(shift) + np.abs(log_normaliser)), 0.0)
        if not n:
            return ExactPart(log_normaliser, mean, np.zeros(len(Q)), np.zeros(len(Q)))
        low, high = V.min(axis=0), V.max(axis=0)
        sides, largest = (float(np.linalg.norm(x)) for x in (high - low, np.fmax(-low, high)))
        # after an overflow nothing is known but the box
        lost = ~(np.isfinite(hidden) & np.isfinite(mean).all(axis=1))
        log_normaliser, hidden = np.where(lost, 0.0, log_normaliser), np.where(lost, np.inf, hidden)
        mean = np.where(lost[:, None], low, mean)
        moved = np.fmin(np.expm1(2.0 * hidden), 1.0) * sides
        return ExactPart(log_normaliser, mean, hidden, moved + (n + 16) * UNIT_ROUNDOFF * largest)


def jensen_floor(moments: KeyValueMoments, Q: FloatArray) -> FloatArray:
    """Return lower bounds (m,) on ``log sum_j w_j exp<q, k_j>`` over the rows of the moments.

    Jensen's inequality, ``weight exp(<q, mean>)``, less what rounding hides. -inf without rows.
    """
    if not moments.count:
        return np.full(len(Q), -np.inf)
    found = moments.spread(Q)
    return np.asarray(found.log_weight + found.mean - found.log_error)


def normaliser_bounds(moments: KeyValueMoments, Q: FloatArray) -> LogBounds:
    """Return bounds on ``log sum_j w_j exp<q, k_j>`` over the rows of the moments.

    Parameters
    ----------
    moments : KeyValueMoments
    Q : (m, d) array
        Finite.

    Returns
    -------
    LogBounds
        ``lower`` and ``upper``, (m,) each; -inf without rows. Rounding is in them: no float64
        input violates them. Infinite at most where nothing is known, never NaN.

    Notes
    -----
    ``weight exp(<q, mean>)`` times bounds on the mean of ``exp(x_j)``; ``x_j = <q, k_j - mean>``.
    Weighted mean and variance of x are zero and ``q^T C q``, its range follows from the extent:
    see `log_mean_exp_bounds` and `KeyExtent.highest`. Each bound needs one side of the range.
    ``O(m d^2)``.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.streaming.key_value_moments import KeyValueMoments
    >>> rng = np.random.default_rng(0)
    >>> K, q = rng.normal(size=(4000, 8)), rng.normal(size=8) / 6
    >>> moments = KeyValueMoments.empty(8, 1).add(K, np.ones((4000, 1)))
    >>> lower, upper = normaliser_bounds(moments, q[None])
    >>> bool(lower[0] < np.log(np.exp(K @ q).sum()) < upper[0] < lower[0] + 0.2)
    True
    """
    if not moments.count:
        return LogBounds(np.full(len(Q), -np.inf), np.full(len(Q), -np.inf))
    return moments.spread(Q).log_sum_exp()


def covered_mass(
    log_exact: FloatArray, log_upper: FloatArray, log_error: FloatArray | float = 0.0
) -> FloatArray:
    """Return lower bounds (m,) on the share of the softmax weight that is on kept keys.

    Parameters
    ----------
    log_exact, log_upper : (m,) arrays
        Logarithm of the normaliser of the kept keys, -inf without any, and an upper bound on
        that of the rest, -inf if there is no rest.
    log_error : (m,) array or float
        What ``log_exact`` may be off by, see `exact_part`.

    Returns
    -------
    (m,) array
        ``Z_kept / (Z_kept + upper)`` in [0, 1], rounded down; 1 where there is no rest.
    """
    with np.errstate(all="ignore"):
        ahead = log_upper - log_exact
        ahead = ahead + log_error + _OWN * (np.abs(log_upper) + np.abs(log_exact))
        share = np.maximum(1.0 / (1.0 + np.exp(ahead)) - _OWN, 0.0)
    # without kept keys the difference may be inf - inf
    share = np.where((log_exact > -np.inf) & ~np.isnan(share), share, 0.0)
    return np.where(log_upper == -np.inf, 1.0, share)


def box_error(estimate: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return the distance (m,) of estimates (m, d_v) to the farthest corner of a box, rounded up.

    With the box of all values it bounds the error of any estimate, whatever the keys.
    """
    with np.errstate(all="ignore"):
        far = np.maximum(np.abs(high - estimate), np.abs(estimate - low))
        return np.asarray(row_norms(far) * (1.0 + _OWN + len(low) * UNIT_ROUNDOFF))


def error_bound(
    Q: FloatArray, estimate: FloatArray, exact: ExactPart, moments: KeyValueMoments
) -> FloatArray:
    """Return certified upper bounds (m,) on ``||estimate - output||`` for any estimate.

    Parameters
    ----------
    Q : (m, d) array
        Finite.
    estimate : (m, d_v) array
        What is claimed of the attention outputs over kept keys and rest.
    exact : ExactPart
        Sums over the kept keys, from `exact_part`.
    moments : KeyValueMoments
        Of the rest. There must be kept keys or a rest.

    Returns
    -------
    (m,) array
        Finite if values are. At most the distance to the farthest point that the extent of the
        values of the rest allows or, if that is larger, to the output of the kept keys.

    Notes
    -----
    With shares p_j, ``x_j = <q, k_j - mean>`` and ``r_j = exp(x_j) - 1 - x_j >= 0``, sums over the
    rest are, relative to ``weight exp(<q, mean>)``::

        sum p_j exp(x_j)     = 1 + zeta,                      zeta = sum p_j r_j,
        sum p_j exp(x_j) v_j = vbar + C_kv^T q + zeta h,      h = sum p_j r_j v_j / zeta,

    as ``sum p_j x_j = 0`` and ``sum p_j x_j v_j = C_kv^T q``. h is an average of values, so it lies
    in their box and in their ball, and zeta in the bounds of `log_mean_exp_bounds` less one. Let
    z be the normaliser of the kept keys in the same unit, and y0 the output at zeta = 0::

        y = (1 - f) y0 + f h,      f = zeta / (z + 1 + zeta),

    which grows with zeta. ``||estimate - y||`` is convex in f: its largest value is at an end of
    the interval of f and there, column by column, at a corner of the box, or less by the ball.
    y0 needs first moments only, and f is about ``v / 2`` times the share of the rest: the error
    is of second order in the logits of the rest. When these are large the bound says less than
    the same with the output of the kept keys for y0 and the share of the rest for f; the
    smaller one counts. An error e of log z moves y by at most ``e / 4`` times the distance of the
    kept keys' output to the rest's. ``O(m d (d + d_v))``.
    """
    alone = row_norms(estimate - exact.mean_value) + exact.value_error
    if not moments.count:
        return _up(alone)
    found, extent = moments.spread(Q), moments.value_extent
    with np.errstate(all="ignore"):
        ahead = exact.log_normaliser - found.log_weight - found.mean
        ends = [-np.expm1(-b) / (1.0 + np.exp(ahead - b)) for b in found.log_mean_exp()]
        rest = 1.0 / (1.0 + np.exp(ahead))
        start = exact.mean_value + rest[:, None] * (moments.linear_values(Q) - exact.mean_value)
        first = _farthest(estimate, start, ends, extent)
        first += rest * moments.linear_values_error(Q) * float(np.linalg.norm(extent.magnitude))
        none = np.isneginf(exact.log_normaliser)
        off = np.where(none, 0.0, exact.log_error + found.log_error)
        first += 0.25 * off * extent.farthest(-exact.mean_value, np.ones(len(Q)))
        least, most = found.log_sum_exp()
        least = 1.0 / (1.0 + np.exp(exact.log_normaliser + exact.log_error - least))
        most = 1.0 / (1.0 + np.exp(exact.log_normaliser - exact.log_error - most))
        ends = [np.where(none, 1.0, np.nan_to_num(least)), np.where(none, 1.0, np.fmin(most, 1.0))]
        plain = _farthest(estimate, exact.mean_value, ends, extent)
        # a NaN is inf - inf and bounds nothing
        both = np.fmin(first, plain) + exact.value_error
        anyhow = _farthest(estimate, exact.mean_value, [np.ones(len(Q))], extent)
        anyhow = np.fmax(anyhow, np.where(none, 0.0, alone))
    return _up(np.fmin(both, anyhow))


def error_bound_of_model(
    Q: FloatArray,
    estimate: FloatArray,
    exact: Exact,
    shift: FloatArray,
    sums: FloatArray,
    model: Model | None,
) -> FloatArray:
    """Return certified upper bounds (m,) on the errors of what an attention sketch answers.

    Parameters
    ----------
    Q, estimate : (m, d) and (m, d_v) arrays
    exact : Exact
        All keys that are kept as they were.
    shift, sums : (m,) and (m, d_v + 1) arrays
        ``exact.sums(Q)``.
    model : Model or None
        Of all other rows; None if there are none. Without moments, only their box is known.
    """
    part = _exact_of(Q, exact, shift, sums)
    moments = KeyValueMoments.empty(Q.shape[1], estimate.shape[1])
    if model is None or model.mass == 0.0:
        return error_bound(Q, estimate, part, moments)
    if model.moments is not None:
        return error_bound(Q, estimate, part, model.moments)
    alone = error_bound(Q, estimate, part, moments)
    alone = np.where(np.isneginf(part.log_normaliser), 0.0, alone)
    return np.maximum(box_error(estimate, model.low, model.high), alone)


def covered_mass_of_model(
    Q: FloatArray, exact: Exact, shift: FloatArray, sums: FloatArray, model: Model | None
) -> FloatArray:
    """Return certified lower bounds (m,) on the share of the softmax weight on kept keys.

    Arguments are those of `error_bound_of_model`. Zeros for a model without moments.
    """
    if model is None or model.mass == 0.0:
        return np.ones(len(Q))
    if model.moments is None:
        return np.zeros(len(Q))
    part = _exact_of(Q, exact, shift, sums)
    upper = normaliser_bounds(model.moments, Q).upper
    return covered_mass(part.log_normaliser, upper, part.log_error)


def _exact_of(Q: FloatArray, exact: Exact, shift: FloatArray, sums: FloatArray) -> ExactPart:
    """Return the exact part of keys whose sums are there, unless some have no weight."""
    if not exact.weights.all():
        exact = exact.taken(np.flatnonzero(exact.weights))
        shift, sums = exact.sums(Q)
    return _exact(Q, exact.keys, exact.values, shift, sums)


def _farthest(
    estimate: FloatArray, start: FloatArray, ends: list[FloatArray], extent: ValueExtent
) -> FloatArray:
    """Return ``max ||estimate - (1 - f) start - f h||`` (m,), f an end, h in the extent of values.

    NaN or infinite where ``start`` is. Ends are moved a little, the first down, the others up.
    """
    hidden = _OWN * (row_norms(estimate) + row_norms(start) + np.linalg.norm(extent.magnitude))
    found = np.zeros(len(estimate))
    for end, sign in zip(ends, (-1.0, 1.0), strict=False):
        f = np.clip(end * (1.0 + sign * _OWN) + sign * _OWN, 0.0, 1.0)
        found = np.maximum(found, extent.farthest((1.0 - f)[:, None] * start - estimate, f))
    return np.asarray(found + hidden)


def _up(lengths: FloatArray) -> FloatArray:
    """Return lengths rounded up."""
    with np.errstate(all="ignore"):
        return np.asarray(lengths * (1.0 + _OWN))
