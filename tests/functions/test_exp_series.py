"""Polynomials for exp from moments: the normal law's, and what any polynomial may be off by."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import U

from levsketch.functions.exp_series import hermite_polynomials, remainders, weight_errors


def exact_remainder(degree, x):
    if x == 0:
        return 1 / Decimal(math.factorial(degree))
    x = Decimal(float(x))
    taylor = sum((x**r / math.factorial(r) for r in range(1, degree)), Decimal(1))
    return (x.exp() - taylor) / x**degree


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 6, 12, 20])
def test_remainders_are_right_to_a_few_digits_and_grow(degree):
    near = np.array([1e-20, 1e-8, 1e-3, 0.1, 0.5, 1, 3, 7, 20, 50, 64])
    x = np.concatenate([-near[::-1], [0.0], near])
    found = remainders(degree, x)
    with localcontext() as context:
        context.prec, context.Emin = 900, -(10**6)
        true = [exact_remainder(degree, each) for each in x]
        errors = [abs(float(Decimal(float(a)) / b - 1)) for a, b in zip(found, true, strict=True)]
    assert max(errors) <= 2.0**-44
    assert (np.diff(found) >= 0).all()
    ends = remainders(degree, np.array([-np.inf, -64.1, 64.1, np.inf]))
    assert ends.tolist() == [0.0, 0.0, np.inf, np.inf]


@pytest.mark.parametrize("degree", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("variance", [0.0, 1e-12, 0.3, 1.0, 4.0])
def test_normal_sums_of_the_polynomials_are_those_of_exp(degree, variance):
    # E x^r exp(x) over a normal law, r up to the degree: Gauss's rule integrates polynomials
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x, weights = nodes * math.sqrt(variance), weights / weights.sum()
    p = np.polynomial.polynomial.polyval(x, hermite_polynomials(degree, np.array([variance]))[0])
    for r in range(degree + 1):
        size = weights @ (np.abs(x) ** r * np.exp(np.abs(x)))
        assert weights @ (x**r * (p - np.exp(x))) == pytest.approx(0.0, abs=1e-12 * size)


def test_without_variance_they_are_those_of_taylor_and_large_ones_are_cut():
    taylor = [1 / math.factorial(r) for r in range(7)]
    found = hermite_polynomials(6, np.array([0.0, 200.0, 1e9, np.inf]))
    np.testing.assert_allclose(found[0], taylor, rtol=8 * U)
    assert np.isfinite(found).all()
    assert (found[1:] == found[1]).all()


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 4, 6]),
    st.sampled_from(["normal", "ends", "one far", "taylor", "any"]),
    st.floats(0.01, 8.0),
)
@example(0, 2, "ends", 0.01)
def test_no_polynomial_is_off_by_more_than_the_bound(seed, g, kind, width):
    rng = np.random.default_rng(seed)
    x, w = rng.uniform(-width, width, 40), rng.random(40)
    if kind == "ends":
        x = np.sign(x) * width
    if kind == "one far":
        x = np.append(x / 50, rng.choice([-1, 1]) * 8 * width)
        w = np.append(w, rng.random())
    p = hermite_polynomials(g, np.array([np.average(x**2, weights=w)]))[0]
    if kind == "taylor":
        p = hermite_polynomials(g, np.zeros(1))[0]
    if kind == "any":
        p = p * (1 + rng.standard_normal(g + 1) * 10.0 ** rng.uniform(-9, 1))
    wide, powers = np.longdouble, np.arange(g + 1)
    true = (
        w * np.abs(np.polynomial.polynomial.polyval(x.astype(wide), p) - np.exp(x.astype(wide)))
    ).sum()
    moments = (w[:, None] * x[:, None] ** powers).sum(axis=0) * (1 + 100 * U)
    spare = rng.choice([1.0, 1.3])
    low, high = np.array([x.min() * spare if x.min() < 0 else x.min()]), np.array([x.max()])
    bound = weight_errors(p[None], low, high, moments[None])[0]
    assert true <= bound < np.inf


@pytest.mark.parametrize("g", [2, 4, 6])
def test_the_bound_is_sharp_where_all_numbers_are_at_the_far_end(g):
    p, x = hermite_polynomials(g, np.zeros(1)), 1.5
    moments = x ** np.arange(g + 1.0)
    true = math.exp(x) - sum(x**r / math.factorial(r) for r in range(g + 1))
    bound = weight_errors(p, np.array([-x]), np.array([x]), moments[None])[0]
    assert true - 8 * U * math.exp(x) <= bound <= true * (1 + 1e-9) + 64 * U * math.exp(x)


def test_a_bound_of_which_nothing_is_known_is_infinite():
    p = hermite_polynomials(2, np.ones(4))
    low, high = np.array([-1.0, -np.inf, -1.0, np.nan]), np.array([np.inf, 1.0, 70.0, 1.0])
    moments = np.ones((4, 3))
    found = weight_errors(p, low, high, moments)
    assert np.isinf(found).tolist() == [True, False, True, True]
    moments[1] = np.nan
    assert np.isinf(weight_errors(p, low, high, moments)).all()
