"""The law of queries and its kernel, against integrals by quadrature and series in rationals."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import U
from quadrature import polynomials, quadrature

from levsketch.backends.cpu import serial_blas
from levsketch.streaming.query_law import QueryLaw, RemainderKernel

SEEDS = st.integers(0, 2**32 - 1)
SIZES = [1e-150, 1e-9, 1.0, 1e9, 1e90]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """BLAS as streams call it: on matrices this small, threads cost more than they save."""
    with serial_blas():
        yield


def covariance(rng, d, rank=None, size=1.0):
    A = rng.standard_normal((d, d if rank is None else rank)) * size
    return A @ A.T


def drawn_law(seed, d=2):
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal(d), covariance(rng, d)
    return QueryLaw.estimate(covariance(rng, d), queries), rng


@given(SEEDS, st.integers(1, 6))
def test_the_law_is_that_of_the_queries_with_the_covariance_of_keys_as_more_precision(seed, d):
    rng = np.random.default_rng(seed)
    C, mean, S = covariance(rng, d), rng.standard_normal(d), covariance(rng, d, d + 3)
    law = QueryLaw.estimate(C, (mean, S))
    floored = S + 1e-3 * np.trace(S) / d * np.eye(d)
    P = np.linalg.inv(floored)
    rounding = 100 * d * U * np.linalg.cond(floored) * np.linalg.cond(P + C)
    whole = law.root @ law.root.T
    np.testing.assert_allclose((P + C) @ whole, np.eye(d), atol=rounding)
    assert np.linalg.norm((P + C) @ law.mean - P @ mean) <= rounding * np.linalg.norm(P @ mean)
    np.testing.assert_array_equal(law.root, np.tril(law.root))
    assert (np.diagonal(law.root) > 0).all()


@given(SEEDS, st.integers(1, 6), st.sampled_from(SIZES))
def test_logits_of_unknown_queries_have_unit_variance_before_the_tilt(seed, d, size):
    C = covariance(np.random.default_rng(seed), d, size=size)
    law = QueryLaw.estimate(C, None)
    P = np.trace(C) * np.eye(d)
    np.testing.assert_allclose((P + C) @ law.root @ law.root.T, np.eye(d), atol=200 * d * U)
    assert np.isclose(np.trace(C @ np.linalg.inv(P)), 1.0)
    assert not law.mean.any()


@given(
    SEEDS,
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(SIZES),
    st.sampled_from([0.0, *SIZES]),
    st.sampled_from([0.0, *SIZES]),
)
@example(0, 4, 1, 4, 1e9, 1.0, 1.0)  # not positive definite after rounding
@example(0, 3, 3, 0, 1.0, 1.0, 1.0)  # one query, many times
@example(0, 3, 0, 3, 1.0, 1e-150, 0.0)
def test_any_covariances_give_a_law_of_full_rank(seed, d, rank, spread, size, wide, far):
    rng = np.random.default_rng(seed)
    C = covariance(rng, d, rank, size)
    law = QueryLaw.estimate(C, (rng.standard_normal(d) * far, covariance(rng, d, spread, wide)))
    assert np.isfinite(law.root).all()
    assert np.isfinite(law.mean).all()
    assert (np.diagonal(law.root) > 0).all()
    # the mean is not so far out that differences of a trend's terms are all rounding
    assert np.linalg.norm(np.linalg.solve(law.root, law.mean)) < 1e7


def test_no_keys_no_spread_no_queries():
    for law in (
        QueryLaw.estimate(np.zeros((3, 3)), None),
        QueryLaw.estimate(np.zeros((3, 3)), (np.zeros(3), np.zeros((3, 3)))),
    ):
        assert np.isfinite(law.root).all()
        assert (np.diagonal(law.root) > 0).all()


@given(SEEDS, st.sampled_from([1e-6, 0.3, 1.0]))
def test_a_narrower_law_shrinks_squares_and_means_of_logits_alike(seed, factor):
    law, rng = drawn_law(seed)
    keys = rng.standard_normal((5, 2))
    (x, t), (s, u) = law.coordinates(keys), law.shrunk(factor).coordinates(keys)
    np.testing.assert_allclose((s * s).sum(axis=1), factor * (x * x).sum(axis=1), rtol=64 * U)
    np.testing.assert_allclose(u, factor * t, rtol=8 * U, atol=8 * U * np.abs(t).max())


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("order", [0, 1])
def test_the_kernel_is_the_inner_product_of_functions_less_their_polynomials(order, d):
    for seed in range(10):
        law, rng = drawn_law(seed, d)
        keys = rng.standard_normal((6, d))
        Q, Z, W = quadrature(law)
        x, t = law.coordinates(keys)
        functions = np.exp(Q @ keys.T)
        norms = np.sqrt(W @ functions**2)
        size = (x * x).sum(axis=1)
        rounding = 1e-12 * np.exp(size.max() / 2 + np.abs(t).max())
        np.testing.assert_allclose(norms, np.exp(t + size), rtol=rounding)
        functions /= norms
        basis = polynomials(Z, order)
        rest = functions - basis @ ((basis * W[:, None]).T @ functions)
        expected = (rest * W[:, None]).T @ rest
        kernel = RemainderKernel(order)
        np.testing.assert_allclose(kernel(x, x), expected, atol=rounding)
        np.testing.assert_allclose(kernel.diagonal(x), np.diagonal(expected), atol=rounding)


@pytest.mark.parametrize("order", [0, 1])
def test_the_kernel_of_close_functions_keeps_its_digits(order):
    sizes = np.concatenate([np.geomspace(1e-8, 3.0, 300), -np.geomspace(1e-8, 3.0, 300)])
    for g in sizes:
        # exp(<x, y>) less its first terms, by the series in fractions
        term = total = Fraction(g) ** (order + 1) / math.factorial(order + 1)
        for r in range(order + 2, order + 30):
            term *= Fraction(g) / r
            total += term
        found = RemainderKernel(order)(np.array([[g]]), np.array([[1.0]]))[0, 0]
        found *= math.exp(g * g / 2 + 0.5)
        assert abs(found / float(total) - 1) < 5e-12, (g, found)


@given(SEEDS, st.integers(1, 4), st.sampled_from([1e-4, 1.0, 3.0]), st.integers(0, 1))
def test_kernel_matrices_are_those_of_inner_products(seed, d, size, order):
    x = np.random.default_rng(seed).standard_normal((7, d)) * size
    x[-1] = 0.0
    kernel = RemainderKernel(order)
    H, own = kernel(x, x), kernel.diagonal(x)
    np.testing.assert_allclose(np.diagonal(H), own, rtol=1e-10)
    assert own[-1] == 0.0  # a constant is in every trend
    assert not H[-1].any()
    assert np.linalg.eigvalsh((H + H.T) / 2).min() >= -1e-11 * max(own.max(), 1e-300)


@given(SEEDS, st.integers(1, 4))
def test_linear_functions_of_z_become_linear_functions_of_q(seed, d):
    law, rng = drawn_law(seed, d)
    constant, linear, Z = (rng.standard_normal(s) for s in (3, (d, 3), (9, d)))
    a, A = law.to_query_space(constant, linear)
    Q = law.mean + Z @ law.root.T
    rounding = 100 * U * np.linalg.cond(law.root) * (1 + np.abs(Q).max() * np.abs(A).max())
    np.testing.assert_allclose(a + Q @ A, constant + Z @ linear, atol=rounding)
