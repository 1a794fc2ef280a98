"""The polynomials nearest to exp: certified, equioscillating, and better than all others."""

import functools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import WIDE, U

from levsketch.functions.exp_polynomial import HALFWIDTHS, exp_polynomial, exp_polynomials

DEGREES = [0, 2, 4, 6, 8]
# where nothing is rounded up: from 1/2 to 8
GRID = [float(HALFWIDTHS[1920 + j]) for j in (-32, -17, 0, 19, 32, 64, 77, 96)]
HALFWIDTHS = st.floats(0, 16)
WIDEST = [16.0, 20.0, 40.0, 64.0]


def errors(p, x):
    """Return ``p(x) e^-x - 1`` in long double, and by how much that may be off."""
    x = np.asarray(x, np.longdouble)
    value, size = np.zeros_like(x), np.zeros_like(x)
    for a in np.asarray(p)[::-1]:
        value, size = value * x + a, size * abs(x) + abs(a)
    return value * np.exp(-x) - 1, 4 * (len(p) + 4) * WIDE * (size * np.exp(-x) + 1)


def chebyshev_points(halfwidth, count=4001):
    # dense at the ends, where the error is steep
    return -halfwidth * np.cos(np.linspace(0, np.pi, count))


@given(st.sampled_from([*DEGREES, 12]), HALFWIDTHS)
@example(8, 16.0)
@example(2, 0.0)
@example(4, 5e-324)
@example(6, 1e-300)
@example(0, 1e-300)
@example(2, 2.0 + 2.0**-51)  # whose logarithm rounds to that of a smaller one
def test_the_error_is_at_most_what_is_certified(degree, halfwidth):
    p, error = exp_polynomial(degree, halfwidth)
    found, slack = errors(p, chebyshev_points(halfwidth))
    assert (np.abs(found) <= error + slack).all()


def horner(p, x):
    return functools.reduce(lambda value, a: value * x + a, reversed(p), mpmath.mpf(0))


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("halfwidth", [*GRID, *WIDEST])
def test_the_error_is_certified_in_extended_precision(degree, halfwidth):
    # 60 digits, at all critical points and the ends: where the maximum is
    p, error = exp_polynomial(degree, halfwidth)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(float(a)) for a in p]
        upper = [*exact[1:], mpmath.mpf(0)]
        slope = [(i + 1) * b - a for i, (a, b) in enumerate(zip(exact, upper, strict=True))]
        starts = np.roots([float(a) for a in slope[::-1]])
        points = [mpmath.mpf(-halfwidth), mpmath.mpf(halfwidth)]
        for start in starts[np.abs(starts.imag) < 1e-3 * halfwidth].real:
            x = mpmath.findroot(lambda x: horner(slope, x), float(start), tol=1e-40, verify=False)
            points += [x] if abs(x) <= halfwidth else []
        worst = max(abs(horner(exact, x) * mpmath.exp(-x) - 1) for x in points)
        assert worst <= error
        # what rounding of the coefficients adds is bounded, not known
        rounding = U * math.exp(halfwidth) * float(np.polyval(np.abs(p)[::-1], halfwidth))
        assert error <= worst * (1 + 1e-9) + 2 * rounding + 1e-30


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("halfwidth", [*GRID, 16.0])
def test_the_error_alternates_so_that_no_polynomial_is_better(degree, halfwidth):
    # de la Vallee Poussin: degree + 2 alternating errors of at least a certain size bound the
    # best error from below
    p, error = exp_polynomial(degree, halfwidth)
    found, slack = errors(p, chebyshev_points(halfwidth, 40001))
    assert slack.max() <= 1e-5 * error
    high = np.abs(found) >= (1 - 1e-5) * error
    signs = np.sign(found[high])
    assert 1 + np.sum(signs[1:] != signs[:-1]) == degree + 2
    assert found[0] > 0


@given(st.sampled_from(DEGREES), st.sampled_from(GRID), st.integers(0, 2**32 - 1))
def test_no_polynomial_nearby_is_better(degree, halfwidth, seed):
    rng = np.random.default_rng(seed)
    p, error = exp_polynomial(degree, halfwidth)
    x = chebyshev_points(halfwidth)
    best = np.abs(errors(p, x)[0]).max()
    other = p + rng.standard_normal(degree + 1) * error * 10.0 ** rng.uniform(-6, 0) / (
        halfwidth ** np.arange(degree + 1)
    )
    found, slack = errors(other, x)
    assert np.abs(found).max() >= best * (1 - 1e-6) - slack.max()


def test_it_is_far_better_than_the_taylor_polynomial():
    # theory, section 5
    _, error = exp_polynomial(2, 2.0)
    taylor = np.abs(errors([1.0, 1.0, 0.5], chebyshev_points(2.0))[0]).max()
    assert taylor == pytest.approx(6.389, abs=1e-3)
    assert error == pytest.approx(0.27, abs=5e-3)
    for degree in DEGREES[1:]:
        for halfwidth in GRID:
            taylor = [1 / math.factorial(i) for i in range(degree + 1)]
            # at least 2**degree times, as Chebyshev polynomials are smaller than monomials
            worst = np.abs(errors(taylor, [-halfwidth])[0])[0]
            assert exp_polynomial(degree, halfwidth)[1] <= 1.01 * worst / 2**degree


@pytest.mark.parametrize("degree", DEGREES)
def test_small_intervals_have_the_taylor_polynomial_and_no_error(degree):
    for halfwidth in (0.0, 5e-324, 1e-300, 2.0**-60):
        p, error = exp_polynomial(degree, halfwidth)
        np.testing.assert_allclose(p, [1 / math.factorial(i) for i in range(degree + 1)], rtol=U)
        assert 0 < error <= 2.0**-59


def test_degree_zero_is_the_hyperbolic_secant():
    for halfwidth in GRID:
        p, error = exp_polynomial(0, halfwidth)
        assert p == pytest.approx([1 / math.cosh(halfwidth)], rel=4 * U)
        assert error == pytest.approx(math.tanh(halfwidth), rel=4 * U)


@pytest.mark.parametrize("degree", [*DEGREES, 12])
def test_errors_grow_with_the_interval_and_fall_with_the_degree(degree):
    halfwidths = 2.0 ** np.arange(-8, 4.1, 0.25)
    found = [exp_polynomial(degree, h)[1] for h in halfwidths]
    # what the rounding of coefficients adds comes and goes
    assert (np.diff(found) > -4 * U * np.exp(2 * halfwidths[1:])).all()
    if degree:
        lower = [exp_polynomial(degree - 2, h)[1] for h in halfwidths]
        assert (found < np.array(lower) + 4 * U * np.exp(2 * halfwidths)).all()


def test_wide_intervals_are_known_to_be_useless():
    for degree in DEGREES:
        assert exp_polynomial(degree, 40.0)[1] >= 1
        for halfwidth in (math.nextafter(64.0, 65.0), 1e300, math.inf):
            p, error = exp_polynomial(degree, halfwidth)
            assert np.isfinite(p).all()
            assert error == math.inf


@given(st.sampled_from(DEGREES[1:]), st.floats(0, 10))
def test_an_error_below_one_keeps_the_polynomial_positive_on_the_whole_line(degree, halfwidth):
    p, error = exp_polynomial(degree, halfwidth)
    assert error < 1
    x = np.concatenate(
        [chebyshev_points(halfwidth, 999), -np.geomspace(1, 1e9), np.geomspace(1, 1e9)]
    )
    assert (np.polyval(p[::-1], x) > 0).all()


@given(st.sampled_from(DEGREES), st.lists(st.floats(0, 70), max_size=9))
def test_many_halfwidths_get_what_each_gets(degree, halfwidths):
    coefficients, found = exp_polynomials(degree, np.array(halfwidths, float))
    assert coefficients.shape == (len(halfwidths), degree + 1)
    for p, error, halfwidth in zip(coefficients, found, halfwidths, strict=True):
        q, bound = exp_polynomial(degree, halfwidth)
        np.testing.assert_array_equal(p, q)
        assert error == bound


def test_halfwidths_are_rounded_up_and_results_kept():
    a, b, c = exp_polynomial(4, 1.01), exp_polynomial(4, 2.0 ** (1 / 32)), exp_polynomial(4, 1.0)
    assert a[0] is b[0]
    assert a[1] == b[1] > c[1]
    assert not a[0].flags.writeable


def test_intervals_that_are_not_centred_have_the_error_of_their_halfwidth():
    low, high = -5.0, -1.0
    p, error = exp_polynomial(4, (high - low) / 2)
    x = np.linspace(low, high, 1000)
    middle = (low + high) / 2
    found = math.exp(middle) * np.polyval(p[::-1], x - middle) / np.exp(x) - 1
    assert np.abs(found).max() <= error + 100 * U
    assert np.abs(found).max() >= 0.99 * error


@pytest.mark.parametrize("degree", [-2, -1, 1, 3, 21, 22])
def test_odd_and_absurd_degrees_are_refused(degree):
    for call in (lambda: exp_polynomial(degree, 1.0), lambda: exp_polynomials(degree, np.ones(1))):
        with pytest.raises(ValueError, match=f"degree must be even, from 0 to 20, got {degree}"):
            call()


@pytest.mark.parametrize("halfwidth", [-1.0, -5e-324, -math.inf, math.nan])
def test_absurd_halfwidths_are_refused(halfwidth):
    with pytest.raises(ValueError, match="halfwidth must be at least 0"):
        exp_polynomial(2, halfwidth)
    with pytest.raises(ValueError, match="at row 1"):
        exp_polynomials(2, np.array([1.0, halfwidth]))
