"""Scores and sets of sparse rows are those of the same rows as an array, never made dense whole."""

import tracemalloc

import numpy as np
import oracles
import pytest
import scipy.sparse
from fitting import quiet
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import (
    conditioned,
    graded_low_rank,
    ill_conditioned,
    keys,
    lone_axis,
    lone_in_hyperplane,
    make,
    scaled_columns,
    zero_columns,
)

from levsketch import leverage_scores, universal_set
from levsketch.algorithms.leverage import whitening_of
from levsketch.backends import backend_for
from levsketch.backends.csr import CsrRows

csr = scipy.sparse.csr_array


def thin(K, share, seed):
    """Return keys with all but a share of the entries made zero."""
    return K * (np.random.default_rng(seed).random(K.shape) < share)


def error_of(K, ridge=0.0, intercept=False):
    """Return the proved relative error of norms of whitened sparse rows."""
    backend = backend_for(K)
    return whitening_of(backend, CsrRows.of("K", csr(K)), ridge, intercept).error


def scores(K, **params):
    with quiet():
        return leverage_scores(K, **params)


def close(a, b, error):
    np.testing.assert_allclose(a, b, rtol=error + 64 * oracles.U, atol=1e-300)


@given(keys(max_rows=3000, max_columns=6), st.sampled_from([0.1, 0.3, 1.0]), st.booleans())
@example(make(lone_axis, 1, 1500, 3), 0.3, False)
@example(make(lone_in_hyperplane, 1, 1500, 3), 1.0, True)
@example(make(conditioned, 3, 1500, 4), 1.0, False)
@example(make(scaled_columns, 3, 1500, 4), 0.3, False)
@example(make(graded_low_rank, 3, 1500, 4), 1.0, False)
@example(make(zero_columns, 3, 1500, 4), 0.1, True)
def test_scores_are_those_of_the_array(made, share, intercept):
    K = thin(made.K.astype(np.float64), share, 0)
    error = error_of(K, intercept=intercept)
    assume(error < 0.1)
    close(scores(csr(K), intercept=intercept), scores(K, intercept=intercept), 8 * error)


@given(keys(max_rows=2500, max_columns=6), st.sampled_from([0.02, 0.3]))
def test_no_key_that_may_reach_eps_is_outside_the_set(made, eps):
    K = thin(made.K.astype(np.float64), 0.4, 1)
    error = error_of(K)
    assume(error < 0.1)
    with quiet():
        found = universal_set(csr(K), eps)
    true = scores(K)
    assert found[true >= eps * (1 + 4 * error)].all()
    assert not found[true < eps * (1 - 8 * error) - 1e-300].any()


@pytest.mark.parametrize("kappa", [1e3, 1e10])
def test_ill_conditioned_sparse_keys_have_the_scores_of_the_oracle(kappa):
    rng = np.random.default_rng(0)
    K = np.zeros((6000, 12))
    for block in range(3):  # rows of four numbers each
        rows = np.arange(block, 6000, 3)
        K[rows, 4 * block : 4 * block + 4] = ill_conditioned(rng, 2000, 4, kappa)
    error = error_of(K)
    assert error < 0.01
    close(scores(csr(K)), oracles.leverage(K), 2 * error + oracles.slack(K))


@pytest.mark.parametrize("size", [1e-12, 1e-200, 1e-300])
def test_a_key_alone_in_its_direction_scores_one_however_small(size):
    K = thin(np.random.default_rng(1).standard_normal((3000, 40)), 0.1, 2)
    K[:, 7] = 0.0
    K[2345] = 0.0
    K[2345, 7] = size
    found = scores(csr(K))
    assert abs(found[2345] - 1.0) < 1e-9
    assert universal_set(csr(K), 0.9)[2345]
    close(found, scores(K), 1e-9)


@pytest.mark.parametrize("size", [1e-200, 1e200, 1e300])
def test_sizes_whose_squares_leave_the_range_change_no_score(size):
    K = thin(np.random.default_rng(1).standard_normal((3000, 20)), 0.2, 2)
    close(scores(csr(K * size)), scores(K), 1e-9)
    K[:, ::2] *= size
    close(scores(csr(K)), scores(K), 1e-9)


def test_rank_is_exact():
    rng = np.random.default_rng(2)
    left = rng.integers(-3, 4, (4000, 5)) * (rng.random((4000, 5)) < 0.3)
    right = np.zeros((5, 30))
    right[np.repeat(np.arange(5), 6), np.arange(30)] = rng.integers(1, 9, 30)
    K = (left @ right).astype(float)
    found = scores(csr(K))
    assert abs(found.sum() - 5) < 1e-9
    close(found, scores(K), 1e-9)
    assert (found[~K.any(axis=1)] == 0).all()


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 50), (7, 2000), (40, 40), (1500, 3)])
def test_few_rows_and_rows_of_nothing(n, d):
    K = thin(np.random.default_rng(3).standard_normal((n, d)), 0.3, 4)
    close(scores(csr(K)), scores(K), 1e-9)
    assert (scores(csr((n, d))) == 0).all()
    with quiet():
        assert not universal_set(csr((n, d)), 0.5).any()


def test_many_columns():
    rng = np.random.default_rng(4)
    X = scipy.sparse.random_array((5000, 1500), density=0.01, format="csr", rng=rng)
    X = X + scipy.sparse.eye_array(5000, 1500, format="csr")
    found = scores(X)
    assert abs(found.sum() - 1500) < 1e-6
    close(found, scores(X.toarray()), 1e-6)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.bool_])
def test_formats_and_types_give_the_bits_of_csr(form, dtype):
    K = (4 * thin(np.random.default_rng(5).standard_normal((2500, 9)), 0.3, 6)).astype(dtype)
    plain = scores(csr(K))
    assert plain.dtype == (np.float32 if dtype is np.float32 else np.float64)
    np.testing.assert_array_equal(scores(csr(K).asformat(form)), plain)
    np.testing.assert_array_equal(scores(scipy.sparse.csr_matrix(K).asformat(form)), plain)
    # to the rounding of the result
    np.testing.assert_allclose(plain, scores(K), rtol=1e-6 if dtype is np.float32 else 1e-12)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("row", [3, 1500, 2999])
def test_what_is_not_finite_is_named(row, value, intercept):
    K = thin(np.random.default_rng(7).standard_normal((3000, 9)), 0.3, 8)
    K[row, 5] = value
    kind = "NaN" if np.isnan(value) else "infinity"
    for call in (
        lambda X: leverage_scores(X, intercept=intercept),
        lambda X: universal_set(X, 0.05),
    ):
        with pytest.raises(ValueError, match=f"{kind}.*row {row}, column 5"):
            call(csr(K))


def test_other_exponents_refuse_sparse_keys_and_name_who_takes_them():
    with pytest.raises(TypeError, match=r"pass K\.toarray\(\).*universal_set with p = 2"):
        universal_set(csr(np.eye(40)), 0.5, p=4)
    with pytest.raises(ValueError, match="at least one row"):
        leverage_scores(csr((0, 3)))


def extra_memory(call):
    tracemalloc.start()
    try:
        with quiet():
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@settings(max_examples=1)
@given(st.just(0))
def test_memory_is_far_below_that_of_dense_rows(seed):
    rng = np.random.default_rng(seed)
    X = scipy.sparse.random_array((200_000, 512), density=0.002, format="csr", rng=rng)
    dense = 8 * 200_000 * 512
    assert extra_memory(lambda: leverage_scores(X)) < dense / 10
    assert extra_memory(lambda: leverage_scores(X, intercept=True)) < dense / 10
    assert extra_memory(lambda: universal_set(X, 0.3)) < dense / 10
