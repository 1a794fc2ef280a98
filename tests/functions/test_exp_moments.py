"""Means of exp(X): no X of that mean, variance and range is outside, and two points attain both."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import U

from levsketch.functions.exp_moments import log_mean_exp_bounds


def exact_two_points(variance, end):
    """Return ``log E exp(X)`` for X of mean zero on ``end`` and one more point."""
    with mpmath.workdps(80):
        s, b = mpmath.mpf(float(variance)), mpmath.mpf(float(end))
        share = s / (b * b + s)
        return mpmath.log((1 - share) * mpmath.exp(-s / b) + share * mpmath.exp(b))


def bounds(low, high, variance_low, variance_high):
    arrays = np.array([[low], [high], [variance_low], [variance_high]], np.float64)
    lower, upper = log_mean_exp_bounds(*arrays)
    return float(lower[0]), float(upper[0])


SIZES = st.floats(-12, 3.3).map(lambda x: 10.0**x)


@given(SIZES, SIZES, st.floats(-20, 0))
def test_two_points_attain_the_bounds_but_for_rounding(low, high, power):
    variance = low * high * 10.0**power
    lower, upper = bounds(-low, high, variance, variance)
    top, bottom = exact_two_points(variance, high), exact_two_points(variance, -low)
    rounding = 64 * U * (1 + high + abs(np.log(variance / high**2)))
    assert top <= upper <= min(top + rounding, high) or top <= upper == high
    assert max(bottom - rounding, 0) <= lower <= bottom
    if top < 1e-3:  # relative where that is small
        assert upper <= top * (1 + 1e-13)
        assert lower >= bottom * (1 - 1e-13)


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.floats(-3, 2.5))
def test_no_distribution_is_outside(seed, n, power):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n) ** rng.choice([1, 3]) * 10.0**power
    p = rng.exponential(size=n) ** 3
    p /= p.sum()
    x -= p @ x
    exact = [mpmath.mpf(float(v)) for v in x], [mpmath.mpf(float(v)) for v in p]
    with mpmath.workdps(60):
        total = mpmath.fsum(exact[1])
        mean = mpmath.fdot(*exact) / total
        value = mpmath.log(mpmath.fdot(exact[1], [mpmath.exp(v - mean) for v in exact[0]]) / total)
        s = mpmath.fdot(exact[1], [(v - mean) ** 2 for v in exact[0]]) / total
    room = 8 * U * np.abs(x).max()
    loose, tight = 10.0 ** rng.uniform(0, 1, 2), (float(s) * (1 - 8 * U), float(s) * (1 + 8 * U))
    lower, upper = bounds(x.min() - room, x.max() + room, *tight)
    assert lower <= value <= upper
    wide = bounds(x.min() * loose[0], x.max() * loose[1], tight[0] / 2, tight[1] * 2)
    assert wide[0] <= lower
    assert upper <= wide[1]


def test_hoeffdings_and_bennetts_bounds_are_not_smaller():
    low, high = -3.0, 5.0
    hoeffding = np.log((high * np.exp(low) - low * np.exp(high)) / (high - low))
    assert bounds(low, high, 0.0, np.inf)[1] == pytest.approx(hoeffding, rel=1e-14)
    for s in (0.1, 1.0, 10.0):
        bennett = np.log1p(s * (np.exp(high) - 1.0 - high) / high**2)
        assert bounds(low, high, 0.0, s)[1] < min(bennett, hoeffding)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((-np.inf, np.inf, 1.0, 1.0), (0.0, np.inf)),
        ((-np.inf, 2.0, 0.0, np.inf), (0.0, 2.0)),
        ((0.0, 3.0, 0.0, 1.0), (0.0, 0.0)),
        ((-3.0, 0.0, 0.0, 1.0), (0.0, 0.0)),
        ((0.0, np.inf, 0.0, np.inf), (0.0, 0.0)),
        ((-1e300, 1e300, 0.0, np.inf), (0.0, 1e300)),
        ((-1.0, 1.0, -1.0, np.inf), (0.0, None)),
        ((-1.0, 1.0, np.nan, np.nan), (0.0, None)),
    ],
    ids=str,
)
def test_where_nothing_is_known_nothing_is_said(arguments, expected):
    with np.errstate(all="raise"):
        lower, upper = bounds(*arguments)
    assert lower == expected[0]
    assert upper == pytest.approx(np.log(np.cosh(1.0)) if expected[1] is None else expected[1])


def test_zeros_and_infinities_do_not_spoil_their_neighbours():
    rng = np.random.default_rng(0)
    ends, s = rng.uniform(0.1, 9.0, (2, 50)), rng.uniform(0.0, 2.0, 50)
    ends[0, ::7], ends[1, ::5], s[::3] = 0.0, np.inf, 0.0
    together = log_mean_exp_bounds(-ends[0], ends[1], s, s)
    apart = [bounds(-a, b, v, v) for a, b, v in zip(*ends, s, strict=True)]
    np.testing.assert_array_equal(np.stack(together, axis=1), apart)
