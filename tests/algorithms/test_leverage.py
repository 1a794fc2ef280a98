"""leverage_scores: the numbers themselves, and what theory says about them."""

import tracemalloc

import ml_dtypes
import numpy as np
import oracles
import pytest
from fitting import quiet
from hypothesis import assume, example, given
from hypothesis import strategies as st
from oracles import U
from strategies import (
    GENERIC,
    conditioned,
    gaussian,
    heavy_tails,
    ill_conditioned,
    keys,
    low_rank,
    make,
    scaled_columns,
    smooth,
    tiny_keys,
    wide,
    zero_rows,
)
from threadpoolctl import threadpool_limits

from levsketch import CertificationWarning, leverage_scores
from levsketch.algorithms.leverage import whitening_of
from levsketch.backends import CpuBackend

KIND = tuple(k for k in GENERIC if k is not smooth)


def error_of(K, ridge=0.0, intercept=False):
    """Return the certified relative error of a score of ``K``; infinite if there is none."""
    found = whitening_of(CpuBackend(), np.asarray(K, np.float64), ridge, intercept)
    return (1 - found.error) ** -2 - 1 if found.certified else np.inf


def close(found, expected, relative):
    np.testing.assert_allclose(
        np.asarray(found, float), np.asarray(expected, float), rtol=relative, atol=1e-290
    )


@given(tiny_keys(), st.sampled_from([0.0, 0.5, 1e-300, 1e300]), st.booleans())
@example(np.array([[2.0**31, 31, 0, 0], [1, 2.0**30, 0, 0], [0, 0, 1, 1]]), 0.0, False)
@example(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1e-300]]), 0.0, False)
@example(np.array([[5e-324]]), 0.0, False)
def test_scores_are_those_of_rational_arithmetic(K, ridge, intercept):
    error = error_of(K, ridge, intercept)
    assume(error < 0.1)
    exact = [float(x) for x in oracles.exact_leverage(K, ridge, intercept)]
    close(leverage_scores(K, ridge=ridge, intercept=intercept), exact, error + 8 * U)


@given(keys(max_rows=4000))
@example(make(wide, 0, 1, 9))
@example(make(scaled_columns, 1, 4000, 5))
@example(make(zero_rows, 2, 4000, 3))
def test_scores_are_those_of_long_double_arithmetic(made):
    error = error_of(made.K)
    slack = oracles.slack(made.basis)
    assume(error < 0.1 and slack < 1e-3)
    scores = leverage_scores(made.K)
    rounding = 2.0**-23 if scores.dtype == np.float32 else 0.0
    close(scores, oracles.leverage(made.basis), error + slack + rounding)
    assert scores.sum(dtype=float) == pytest.approx(
        made.rank, abs=made.rank * (error + rounding) + 1e-12
    )
    assert ((scores >= 0) & (scores <= 1)).all()


@given(keys(max_rows=3000, kinds=KIND), st.integers(0, 2**32 - 1))
def test_scores_depend_on_the_column_space_alone(made, seed):
    K = np.asarray(made.K, np.float64)
    rng = np.random.default_rng(seed)
    M = ill_conditioned(rng, K.shape[1], K.shape[1], 10.0 ** rng.uniform(0, 3))
    with np.errstate(all="ignore"):
        mixed = K @ M
    condition = oracles.condition(K)
    # the product itself rounds: a change of the rows by u |K| |M|
    error = error_of(K) + error_of(mixed) + 64 * U * K.shape[1] * 1e3 * condition
    assume(error < 0.1 and np.abs(K).max(initial=0) < 1e100)
    close(leverage_scores(mixed), leverage_scores(K), 2 * error)


@given(keys(max_rows=3000), st.randoms())
def test_scores_follow_their_rows(made, random):
    order = list(range(len(made.K)))
    random.shuffle(order)
    mixed = made.K[order]
    error = error_of(made.K) + error_of(mixed)  # other blocks may go another way
    assume(error < 0.1)
    rounding = 2.0**-22 if made.K.dtype != np.float64 else 0.0
    close(leverage_scores(mixed), leverage_scores(made.K)[order], 2 * error + rounding)


@given(keys(max_rows=300, kinds=KIND), st.integers(2, 20), st.data())
def test_m_copies_of_a_key_share_its_score(made, m, data):
    K = np.asarray(made.K, np.float64)
    j = data.draw(st.integers(0, len(K) - 1))
    copied = np.concatenate([K, np.repeat(K[j : j + 1], m - 1, axis=0)])
    error = error_of(K) + error_of(copied)
    assume(error < 0.1)
    tau = leverage_scores(K)[j]
    close(leverage_scores(copied)[[j, -1]], [tau / (1 + (m - 1) * tau)] * 2, 2 * error)


@pytest.mark.parametrize("kind", [gaussian, conditioned, heavy_tails, low_rank])
@pytest.mark.parametrize(("n", "reach"), [(900, 900), (20_000, 100)])
def test_columns_scaled_by_powers_of_two_leave_the_same_bits(kind, n, reach):
    # (far scales leave the range in which whole blocks go through Gram matrices)
    rng = np.random.default_rng(1)
    K = make(kind, 2, n, 4).K
    K = K / np.abs(K).max()
    shifts = rng.integers(-reach, reach + 1, K.shape[1])
    K[np.abs(K) < 2.0**-120] = 0.0  # so that no product underflows on either side
    with quiet():
        np.testing.assert_array_equal(leverage_scores(np.ldexp(K, shifts)), leverage_scores(K))


@given(keys(max_rows=3000, kinds=KIND), st.integers(0, 3000))
def test_zero_rows_score_zero_and_change_no_other(made, place):
    K = np.asarray(made.K, np.float64)
    place = min(place, len(K))
    padded = np.insert(K, place, np.zeros((3, K.shape[1])), axis=0)
    error = error_of(K)
    assume(error < 0.1)
    scores = leverage_scores(padded)
    np.testing.assert_array_equal(scores[place : place + 3], 0.0)
    close(np.delete(scores, range(place, place + 3)), leverage_scores(K), 4 * error)


@given(keys(max_rows=3000, kinds=KIND), st.integers(1, 2999))
def test_scores_never_rise_when_rows_are_appended(made, place):
    K = np.asarray(made.K, np.float64)
    place = min(place, len(K))
    error = error_of(K) + error_of(K[:place])
    assume(error < 0.1)
    with quiet():
        assert (
            leverage_scores(K)[:place] <= leverage_scores(K[:place]) * (1 + error) + 1e-290
        ).all()


@given(keys(max_rows=2500, kinds=KIND), st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e9]))
def test_scores_never_rise_with_the_ridge(made, ridge):
    K = np.asarray(made.K, np.float64)
    error = error_of(K, ridge) + error_of(K, 2 * ridge + 1e-30)
    assume(error < 0.1)
    less, more = leverage_scores(K, ridge=ridge), leverage_scores(K, ridge=2 * ridge + 1e-30)
    assert (more <= less * (1 + error) + 1e-290).all()


@given(keys(max_rows=500, max_columns=5, kinds=KIND), st.sampled_from([1e-8, 0.1, 7.0]))
def test_a_ridge_acts_like_rows(made, ridge):
    K = np.asarray(made.K, np.float64)
    K = K / max(1.0, np.abs(K).max())
    error = error_of(K, ridge)
    assume(error < 0.1)
    found = leverage_scores(K, ridge=ridge)
    close(found, oracles.leverage(K, ridge), error + 1e-10)


@pytest.mark.parametrize("shift", [1.0, -3.0, 1e4, 1e8])
def test_with_an_intercept_shifts_do_not_matter(shift):
    K = np.round(1024 * make(gaussian, 3, 2500, 4).K) / 1024  # so that shifting is exact
    plain = leverage_scores(K, intercept=True)
    moved = K + shift * np.array([1.0, -2.0, 0.0, 0.5])
    close(leverage_scores(moved, intercept=True), plain, 2 * error_of(moved, intercept=True))
    centred = K - K.mean(axis=0)
    close(plain, 1 / len(K) + leverage_scores(centred), 1e-9)


def test_the_ridge_is_not_on_the_intercept():
    K = make(gaussian, 4, 300, 2).K
    # so heavy a ridge leaves the intercept alone: 1/n each
    close(leverage_scores(K, ridge=1e30, intercept=True), np.full(300, 1 / 300), 1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 900])
@pytest.mark.parametrize("d", [1, 2, 7])
def test_constant_keys_share_one_direction(n, d):
    close(leverage_scores(np.full((n, d), 3.0)), np.full(n, 1 / n), 1e-12)
    np.testing.assert_array_equal(leverage_scores(np.zeros((n, d))), np.zeros(n))


@pytest.mark.parametrize("size", [5e-324, 1e-308, 1e-300, 1.0, 1e300, 1.7e308])
def test_single_keys_score_one_at_any_size(size):
    close(leverage_scores([[size]]), [1.0], 4 * U)
    close(leverage_scores([[size, 0.0], [0.0, 1.0]]), [1.0, 1.0], 4 * U)
    close(leverage_scores([[size, size, -size]]), [1.0], 1e-14)
    close(leverage_scores([[size, 1.0], [1.0, 1.0], [1.0, 0.0]]).sum(), 2.0, 1e-14)


@pytest.mark.parametrize("shape", [(2, 30, 3), (2, 3, 30, 4), (1, 1, 1, 1), (0, 5, 2)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_leading_axes_are_problems_of_their_own(shape, dtype):
    K = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    scores = leverage_scores(K)
    assert scores.shape == shape[:-1]
    for i in np.ndindex(shape[:-2]):
        np.testing.assert_array_equal(scores[i], leverage_scores(K[i]))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.longdouble, np.float64),
        (np.int8, np.float64),
        (np.uint64, np.float64),
        (np.bool_, np.float64),
    ],
)
def test_scores_come_in_single_precision_for_narrow_floats_alone(dtype, expected):
    K = np.array([[0, 1], [1, 1], [1, 0]], dtype)
    scores = leverage_scores(K)
    assert scores.dtype == expected
    close(scores, [2 / 3] * 3, 1e-6 if expected == np.float32 else 1e-14)


def test_hopeless_keys_are_warned_of_with_their_condition():
    K = np.array([[1.0, 1.0], [1.0, 1.0], [1e-200, -1e-200]])
    with pytest.warns(CertificationWarning, match="certifies up to about"):
        leverage_scores(K)


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2047, 2048, 2049, 3072, 5000])
def test_block_boundaries_leave_no_trace(n):
    K = make(gaussian, 5, n, 3).K[:n]
    close(leverage_scores(K), oracles.leverage(K), 1e-11)


def test_keys_wider_than_a_block_are_scored():
    rng = np.random.default_rng(6)
    K = rng.standard_normal((1200, 520))
    with threadpool_limits(1):
        scores = leverage_scores(K)
        reference = np.square(np.linalg.qr(K)[0]).sum(axis=1)
    close(scores, reference, 1e-10)
    assert scores.sum() == pytest.approx(520, abs=1e-7)


HALVES = [np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", [gaussian, low_rank, zero_rows, heavy_tails])
@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("params", [{}, {"intercept": True}, {"ridge": 2.0}])
def test_half_precision_keys_have_the_scores_of_their_double_copy(kind, close, dtype, params):
    K = make(kind, 3, 5000, 6).K
    K = (K / np.abs(K).max() * 6e4).astype(dtype)  # the square of one overflows float16
    if close:  # condition number 1e10
        K[:, 1] = K[:, 0]
        K[500, :2] = [0.0, 2.0**-14]
    with quiet():
        found = leverage_scores(K, **params)
        expected = leverage_scores(K.astype(np.float64), **params)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES)
def test_stacks_of_half_precision_keys_may_be_laid_out_in_any_way(dtype):
    K = np.random.default_rng(0).standard_normal((2, 3000, 3, 5)).astype(dtype)
    for stack in (K.swapaxes(1, 2), K.swapaxes(1, 2)[:, ::-1, 1::2], K[:, :40].T):
        with quiet():
            found = leverage_scores(stack)
            expected = leverage_scores(np.ascontiguousarray(stack).astype(np.float32))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("params", [{}, {"intercept": True}])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_keys_are_never_copied_whole(dtype, params):
    K = np.random.default_rng(0).standard_normal((200_000, 64)).astype(dtype)
    tracemalloc.start()
    leverage_scores(K, **params)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = 4 * K.size
    assert peak < (whole if params else whole / 3)  # a column of ones makes copies of parts


def test_what_is_no_number_may_be_confined_to_its_problem():
    K = np.random.default_rng(3).standard_normal((2, 3, 1500, 5))
    K[1, 0, 1400, 2] = np.inf
    K[0, 2, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"problem \(0, 2\): .* NaN at row 3, column 4"):
        leverage_scores(K)
    found = leverage_scores(K, nan_policy="propagate")
    assert np.isnan(found[0, 2]).all()
    assert np.isnan(found[1, 0]).all()
    for i in ((0, 0), (0, 1), (1, 1), (1, 2)):
        np.testing.assert_array_equal(found[i], leverage_scores(K[i]))
    with pytest.raises(ValueError, match="Input X contains NaN at row 3, column 4"):
        leverage_scores(K[0, 2])
    with pytest.raises(ValueError, match="one of 'raise', 'propagate', got 'omit'"):
        leverage_scores(K, nan_policy="omit")
