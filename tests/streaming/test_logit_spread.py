"""Spreads of logits: the true mean, variance and range are within what they claim."""

import adversary
import numpy as np
from adversary import WIDE, WIDER
from hypothesis import given

from levsketch.streaming.extents import KeyExtent, shaped
from levsketch.streaming.key_value_moments import KeyValueMoments
from levsketch.streaming.logit_spread import logit_spread

# What underflows in the logits themselves is no matter: they are arguments of exp.
TINY = 2.0**-1000


@given(adversary.rows(m=200))
def test_mean_variance_and_range_are_as_far_off_as_they_say(rows):
    K, w, Q = rows.K, rows.w, rows.Q
    moments = KeyValueMoments.empty(K.shape[1], 0)
    for part in np.split(np.arange(len(K)), rows.cuts):
        moments = moments.add(K[part], np.zeros((len(part), 0)), w[part])
    with np.errstate(all="raise", under="ignore"):
        found = moments.spread(Q)
    live = w > 0
    K, w, Q = (np.asarray(X, WIDER) for X in (K[live], w[live], Q))
    logits, shares = Q @ K.T, w / w.sum()
    mean = logits @ shares
    variance = np.square(logits - mean[:, None]) @ shares
    size = np.abs(Q) @ np.abs(K).max(axis=0)
    hidden = (4 * Q.shape[1] + 2 * len(K)) * WIDE * size + TINY
    assert all(not np.isnan(part).any() for part in found)
    assert (np.abs(found.mean - mean) <= found.mean_error + hidden).all()
    off = TINY + found.variance_error + 2 * hidden * (np.sqrt(variance) + hidden) + WIDE * variance
    assert (np.abs(found.variance - variance) <= off).all()
    assert (logits.min(axis=1) >= found.low - hidden).all()
    assert (logits.max(axis=1) <= found.high + hidden).all()
    assert abs(found.log_weight - np.log(w.sum())) <= found.weight_error + 1e-15


def test_errors_are_small_for_ordinary_keys():
    rng = np.random.default_rng(0)
    K, Q = rng.standard_normal((5000, 32)), rng.standard_normal((100, 32)) / 4
    found = KeyValueMoments.empty(32, 0).add(K, np.zeros((5000, 0))).spread(Q)
    assert found.mean_error.max() < 2e-11
    assert (found.variance_error < 1e-10 * np.maximum(found.variance, 1.0)).all()
    assert (found.log_error < 3e-11).all()


def test_after_an_overflow_nothing_is_known_but_nothing_is_nan():
    K = np.array([[1e150, 1.0], [-1e150, 2.0]])
    extent = KeyExtent.empty(2).add(K, lambda: shaped(K.mean(axis=0), np.cov(K.T), np.ones(2)))
    Q = np.array([[1e200, 0.0], [1e200, -1e200], [0.0, 1.0], [0.0, 0.0]])
    with np.errstate(over="ignore", invalid="ignore"):
        covariance = np.array([[np.inf, np.nan], [np.nan, 0.25]])
        found = logit_spread(Q, K.mean(axis=0), covariance, np.ones(2), 2.0, 1e-13, extent)
    assert not any(np.isnan(part).any() for part in found)
    np.testing.assert_array_equal(np.isinf(found.variance_error), True)
    lower, upper = found.log_sum_exp()
    assert not np.isnan([lower, upper]).any()
    assert (lower <= upper).all()
    # Jensen, and what the range alone says, which is all of two keys
    np.testing.assert_allclose(lower[2:] - np.log(2.0), [1.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(upper[2:], np.log([np.e + np.e**2, 2.0]), atol=1e-12)
