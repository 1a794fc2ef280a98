"""universal_set: exactly the keys that reach eps, for stacks of problems."""

import itertools

import ml_dtypes
import numpy as np
import oracles
import pytest
from fitting import NOT_REDUCED, fit, quiet
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import gaussian, keys, make, tiny_keys

from levsketch import CertificationWarning, universal_set
from levsketch.algorithms.leverage import whitening_of
from levsketch.backends import CpuBackend

EPS = st.sampled_from([1e-3, 0.05, 0.25, 0.5, 1.0])


def masks(K, eps):
    with quiet():
        return universal_set(K, eps)


@given(tiny_keys(), EPS)
@example(np.array([[1.0], [1.0], [1.0], [1.0]]), 0.25)
@example(np.array([[2.0**31, 31, 0, 0], [1, 2.0**30, 0, 0], [0, 0, 1, 1]]), 0.9)
def test_the_set_is_the_one_of_rational_arithmetic(K, eps):
    found = whitening_of(CpuBackend(), K, 0.0, False)
    assume(found.certified)
    guard = (1 - found.error) ** -2 * (1 + found.error) ** 2
    mask = masks(K, eps)
    for score, kept in zip(oracles.exact_leverage(K), mask, strict=True):
        assert kept or score < eps
        assert not kept or float(score) * guard >= eps * (1 - 1e-15)


@given(keys(max_rows=3000), EPS)
def test_the_set_holds_at_most_rank_over_eps_keys(made, eps):
    found = whitening_of(CpuBackend(), np.asarray(made.K, np.float64), 0.0, False)
    assume(found.certified)
    assert masks(made.K, eps).sum() <= made.rank / eps * (1 + found.error) ** 4 + 1e-9


@given(keys(max_rows=3000), EPS)
def test_the_set_is_that_of_the_selector_without_top_up(made, eps):
    with quiet():
        selector = fit(made.K, eps=eps, min_keys=0)
        np.testing.assert_array_equal(np.flatnonzero(masks(made.K, eps)), selector.indices_)


@given(keys(max_rows=1500))
def test_sets_shrink_as_eps_grows(made):
    sets = [masks(made.K, eps) for eps in (1e-3, 0.05, 0.3, 1.0)]
    for larger, smaller in itertools.pairwise(sets):
        assert not (smaller & ~larger).any()


@pytest.mark.parametrize("shape", [(2, 400, 3), (2, 2, 300, 2), (0, 5, 2)])
def test_leading_axes_are_problems_of_their_own(shape):
    K = np.random.default_rng(0).standard_normal(shape) ** 3
    mask = masks(K, 0.05)
    assert mask.shape == shape[:-1]
    assert mask.dtype == np.bool_
    for i in np.ndindex(shape[:-2]):
        np.testing.assert_array_equal(mask[i], masks(K[i], 0.05))


def test_thresholds_that_promise_nothing_are_warned_of_with_both_numbers():
    with pytest.warns(UserWarning, match=r"d/eps = 60 keys, not fewer than the n = 50"):
        universal_set(np.ones((50, 3)), 0.05)
    with pytest.warns(UserWarning, match=NOT_REDUCED):
        universal_set(np.ones((60, 3)), 0.05)
    universal_set(np.ones((61, 3)), 0.05)


def test_hopeless_keys_are_warned_of_and_the_lone_one_kept():
    K = np.ones((100, 2))
    K[7] = [1e-200, -1e-200]
    with pytest.warns(CertificationWarning, match="The set was enlarged"):
        assert universal_set(K, 0.9)[7]


@pytest.mark.parametrize("eps", [1, np.float32(0.5), np.int64(1)])
def test_eps_may_be_any_real_number(eps):
    K = make(gaussian, 0, 200, 2).K
    assert masks(K, eps).tolist() == masks(K, float(eps)).tolist()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("p", [2, 4])
def test_half_precision_keys_have_the_set_of_their_double_copy(dtype, p):
    K = np.random.default_rng(0).standard_t(2, (2, 4000, 5)).clip(-200, 200).astype(dtype)
    with quiet():
        found, expected = universal_set(K, 0.01, p), universal_set(K.astype(np.float64), 0.01, p)
    assert found.any()
    np.testing.assert_array_equal(found, expected)
