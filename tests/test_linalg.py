"""Whitening: scores within the error that it claims, from the rank that is exact."""

import numpy as np
import oracles
import pytest
import scipy.linalg
from hypothesis import assume, example, given
from hypothesis import strategies as st
from oracles import WIDE, U
from strategies import (
    ENTRIES,
    conditioned,
    graded_low_rank,
    ill_conditioned,
    keys,
    low_rank,
    make,
    smooth,
    tiny_keys,
)

from levsketch.algorithms.leverage import whitening_of
from levsketch.backends import CpuBackend
from levsketch.linalg import (
    MAX_ERROR,
    NO_EXPONENT,
    Factor,
    certified_condition,
    column_exponents,
    diagonal_factor,
    factor_blocks,
    gram_factor,
    gram_roundoff,
    query_norms,
    scale_columns,
    stack_factors,
    whiten,
)

CPU = CpuBackend()


def whitening(K, ridge=0.0, intercept=False):
    return whitening_of(CPU, np.asarray(K, np.float64), ridge, intercept)


def product(factor):
    """Return R * 2**exponents in long double, whose range holds every factor."""
    return np.ldexp(factor.R.astype(np.longdouble), factor.exponents)


@given(keys(max_rows=3000))
@example(make(low_rank, 0, 3000, 9))
def test_true_scores_lie_within_the_bounds_of_certified_whitenings(made):
    found = whitening(made.K)
    slack = oracles.slack(made.basis)
    assume(found.certified and slack < 1e-3)
    scores, true = found.scores(CPU, np.asarray(made.K, np.float64)), oracles.leverage(made.basis)
    # below 1e-290 squares leave the range of float64: absolute there
    assert (true * (1 - slack) <= found.upper_bounds(scores) + 1e-290).all()
    assert (true * (1 + slack) >= found.lower_bounds(scores) - 1e-290).all()


@given(tiny_keys())
@example(np.array([[2.0**31, 31, 0, 0], [1, 2.0**30, 0, 0], [0, 0, 1, 1]]))
@example(np.array([[2.0**31, 31, 0], [1, 2.0**30, 0], [1, 2.0**30, 0]]))
def test_bounds_hold_against_rational_arithmetic(K):
    found = whitening(K)
    assume(found.certified)
    true = np.array([float(x) for x in oracles.exact_leverage(K)])
    scores = found.scores(CPU, K)
    assert (true <= found.upper_bounds(scores) * (1 + 4 * U)).all()
    assert (true >= found.lower_bounds(scores) * (1 - 4 * U) - 1e-290).all()
    assert found.rank == oracles.exact_rank(K)


@given(tiny_keys(entries=st.integers(-4, 4).map(float)))
def test_small_integers_are_always_certified(K):
    found = whitening(K)
    assert found.certified
    assert found.rank == oracles.exact_rank(K)
    assert found.scores(CPU, K).sum() == pytest.approx(found.rank, abs=1e-9)


@given(keys(max_rows=3000), st.sampled_from([0.0, 1e-3, 5.0]))
def test_scores_sum_to_the_exact_rank_without_ridge_and_less_with(made, ridge):
    found = whitening(made.K, ridge)
    assume(found.certified)
    total = found.scores(CPU, np.asarray(made.K, np.float64)).sum()
    tolerance = max(1, made.rank) * ((1 - found.error) ** -2 - 1 + 64 * U)
    if ridge:
        assert total <= made.rank + tolerance
    else:
        assert found.rank == made.rank
        assert total == pytest.approx(made.rank, abs=tolerance)


@pytest.mark.parametrize("d", [1, 2, 5, 16, 40])
@pytest.mark.parametrize("kappa", [1.0, 1e3, 1e6, 1e9, 1e12])
def test_relative_error_is_a_constant_times_roundoff_times_condition(d, kappa):
    K = ill_conditioned(np.random.default_rng(d), 2500, d, kappa)
    scores, true = whitening(K).scores(CPU, K), oracles.leverage(K)
    worst = float(np.max(np.abs(scores - true) / true))
    size = oracles.condition(K)  # Frobenius: within sqrt(d) of the condition number
    # A block goes in as a Gram matrix only where its proved bound is below 1e-4, that
    # is for condition^2 n u d below 1e-4; what rounds there in fact is u condition^2.
    squared = size**2 if gram_roundoff(1024, d) * d * size**2 < 1e-2 else 0.0
    assert worst <= 64 * (U * size * np.sqrt(d) + U * squared + WIDE * size)


@given(keys(max_rows=50))
def test_scores_are_between_zero_and_one_when_certified(made):
    found = whitening(made.K)
    assume(found.certified)
    scores = found.scores(CPU, np.asarray(made.K, np.float64))
    assert (scores >= 0).all()
    assert (scores <= (1 + found.error) ** 2).all()
    assert (found.upper_bounds(scores) <= 1).all()
    assert (found.upper_bounds(scores) >= np.minimum(scores, 1)).all()
    assert (found.lower_bounds(scores) <= scores).all()


@pytest.mark.parametrize("d", [2, 8, 30])
def test_condition_is_within_sqrt_d_of_the_true_one_and_limits_certification(d):
    for kappa in (1.0, 1e4, 1e8, 1e12, 1e15):
        K = ill_conditioned(np.random.default_rng(d), 200, d, kappa)
        found = whitening(K)
        true = oracles.condition(K)
        if found.certified:
            assert found.condition == pytest.approx(true, rel=0.5)
        assert found.certified == (found.condition <= certified_condition(d) * (1 + 1e-9))
        assert found.condition >= 1.0
        assert found.certified or kappa > 1e12


def test_bound_of_an_uncertified_whitening_is_a_factor_of_four():
    # singular to working precision, yet of exact rank 2
    K = np.array([[1.0, 1.0], [1.0, 1.0], [1e-17, -1e-17]])
    found = whitening(K)
    assert not found.certified
    assert found.error > MAX_ERROR
    assert found.deflation == 0.25
    np.testing.assert_array_equal(found.upper_bounds(np.array([0.1, 0.5])), [0.4, 1.0])


@given(keys(max_rows=40, max_columns=5))
def test_stacked_factors_have_the_gram_matrix_of_all_rows(made):
    K = np.asarray(made.K, np.float64)
    parts = factor_blocks(CPU, K, 7)
    whole = product(stack_factors(CPU, parts))
    wide = K.astype(np.longdouble)
    norms = np.sqrt((wide * wide).sum(axis=0))
    error = np.abs(whole.T @ whole - wide.T @ wide)
    # Householder QR is backward stable column by column
    assert (error <= 200 * U * np.sqrt(len(norms)) * np.outer(norms, norms)).all()
    assert (np.tril(whole, -1) == 0).all()
    assert (np.diagonal(whole) >= 0).all()


@given(st.lists(ENTRIES, min_size=1, max_size=8), st.integers(-2000, 2000))
def test_scaling_columns_by_powers_of_two_is_exact_inside_the_range(entries, shift):
    x = np.array([entries])
    scaled = scale_columns(x, np.full(x.shape[1], shift))
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_array_equal(scaled, np.ldexp(x, shift))


@given(tiny_keys())
def test_column_exponents_bring_every_column_to_one(K):
    e = column_exponents(K)
    top = np.abs(K).max(axis=0)
    assert (e[top == 0] == NO_EXPONENT).all()
    scaled = np.abs(scale_columns(K, -e)).max(axis=0)[top > 0]
    assert ((scaled >= 0.5) & (scaled < 1)).all()


@given(st.lists(st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 3.0, 1e300]), min_size=1, max_size=6))
def test_diagonal_factors_are_exact(values):
    factor = diagonal_factor(np.array(values))
    np.testing.assert_array_equal(product(factor), np.diag(np.array(values, np.longdouble)))


@pytest.mark.parametrize("scale", [1e-90, 1.0, 1e90])
def test_gram_factor_is_the_cholesky_factor_with_zero_columns(scale):
    K = np.random.default_rng(0).standard_normal((50, 4)) * scale
    K[:, 2] = 0.0
    G = K.T @ K
    factor = gram_factor(G)
    assert factor.exponents[2] == NO_EXPONENT
    kept = [0, 1, 3]
    expected = scipy.linalg.cholesky(G[np.ix_(kept, kept)])
    np.testing.assert_allclose(
        product(factor)[np.ix_(kept, kept)].astype(float), expected, rtol=1e-12
    )


def test_gram_factor_says_when_the_matrix_is_not_positive():
    assert gram_factor(np.array([[1.0, 2.0], [2.0, 1.0]])) is None


@given(keys(max_rows=60, max_columns=6), st.integers(0, 2**32 - 1))
def test_query_norms_are_norms_of_all_products(made, seed):
    K = np.asarray(made.K, np.float64)
    found = whitening(K)
    top = np.abs(K).max(axis=0, initial=0)
    assume(found.certified and ((top == 0) | (top > 1e-100)).all() and (top < 1e100).all())
    Q = np.random.default_rng(seed).standard_normal((5, K.shape[1]))
    e = np.where(found.active, found.factor.exponents, 0)
    norms = query_norms(found.factor, np.where(found.active, scale_columns(Q, e), 0.0))
    true = np.sqrt(((Q.astype(np.longdouble) @ K.T.astype(np.longdouble)) ** 2).sum(axis=1))
    # products may cancel: absolute in the size of the columns
    size = np.abs(Q) @ np.sqrt((K.astype(np.longdouble) ** 2).sum(axis=0))
    assert (np.abs(norms - true) <= found.error * true + 200 * U * size).all()


def test_inactive_columns_are_left_out_whatever_the_factor():
    R = np.triu(np.arange(1.0, 17).reshape(4, 4))
    R[:, 1] = 0.0
    found = whiten(Factor(R, np.zeros(4, np.int64)), lambda: pytest.fail("rank is proved"))
    assert found.active.tolist() == [True, False, True, True]
    assert found.rank == 3
    np.testing.assert_allclose(found.scores(CPU, R).sum(), 3.0, rtol=1e-12)


def test_rows_that_overflow_inside_a_norm_may_be_anything():
    # products of both signs beyond the range: inf - inf must not read as "small"
    K = ill_conditioned(np.random.default_rng(0), 100, 2, 1e11)
    huge = np.array([[1.2e308, 1.7e308], [1.7e308, -1.7e308], [1e308, 1e308]])
    assert (whitening(K).scores(CPU, huge) > 1e300).all()


@pytest.mark.parametrize("n", [2, 60, 200, 900, 1024, 1025, 2047, 5000])
@pytest.mark.parametrize("d", [2, 3, 7, 16])
def test_equal_keys_have_rank_one_whatever_their_number(n, d):
    # the rounding of n equal rows adds up, unlike that of random ones
    for value in (1.0, 0.1, 1 / 3, 0.7, 3.0):
        K = np.full((n, d), value)
        found = whitening(K)
        assert found.certified
        assert found.rank == 1
        np.testing.assert_allclose(found.scores(CPU, K), 1 / n, rtol=4 * found.error)


@pytest.mark.parametrize("d", [14, 15, 16, 17, 18])
def test_smooth_keys_keep_to_their_bounds(d):
    # R is graded here: an inverse that is good from one side only is off by thousands
    checked = 0
    for seed in range(40):
        K = make(smooth, seed, 160, d).K
        found = whitening(K)
        if not found.certified:
            continue
        checked += 1
        slack = oracles.slack(K)
        scores, true = found.scores(CPU, K), oracles.leverage(K)
        assert (true * (1 - slack) <= found.upper_bounds(scores)).all()
        assert (true * (1 + slack) >= found.lower_bounds(scores)).all()
    assert checked


@pytest.mark.parametrize(
    ("d", "n", "seeds"),
    [
        (3, 150, [743, 780, 822]),
        (3, 300, [392, 704, 920]),
        (4, 150, [616]),
        (4, 300, [920, 1076, 1359]),
        (5, 150, [710, *range(60)]),
    ],
)
def test_graded_keys_of_deficient_rank_keep_to_their_bounds(d, n, seeds):
    # a singular value decomposition stops early, and lost 50 roundoffs on the first of these
    for seed in seeds:
        made = make(graded_low_rank, seed, n, d)
        found = whitening(made.K)
        assert found.certified
        assert found.rank == made.rank
        scores, true = found.scores(CPU, made.K), np.array(oracles.leverage(made.basis), float)
        assert (true <= found.upper_bounds(scores) * (1 + 4 * U)).all()
        assert (true >= found.lower_bounds(scores) * (1 - 4 * U)).all()


def test_certified_share_of_ill_conditioned_keys_is_as_documented():
    # so that the laws above are not about an empty set
    certified = [whitening(make(conditioned, seed, 200, 5).K).certified for seed in range(100)]
    assert sum(certified) > 90
