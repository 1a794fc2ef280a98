"""The factor of a stream: a fixed tree of blocks, Gram matrices only where they are harmless."""

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, heavy_tails, ill_conditioned, make, smooth

from levsketch.algorithms.leverage import whitening_of
from levsketch.backends import CpuBackend
from levsketch.streaming.factor import (
    GRAM_BUDGET,
    StreamFactor,
    block_size,
    with_intercept,
)

CPU = CpuBackend()


def of(K, ridge=0.0):
    """Return the stream factor of the whole blocks of ``K``, one block at a time."""
    d = K.shape[1]
    factor, prefix, block = StreamFactor.empty(d, np.full(d, ridge)), None, block_size(d)
    for first in range(0, len(K) - block + 1, block):
        rows = np.ascontiguousarray(K[first : first + block])
        factor = factor.absorb(CPU, factor.measure(CPU, rows, prefix, first), 1)
        prefix = factor.whitening(CPU)[0]
    return factor


@given(st.integers(1, 3000))
def test_runs_of_blocks_never_pass_a_settling(count):
    factor = StreamFactor(np.zeros(2), count, (), (), 0.0, StreamFactor.empty(2, np.zeros(2)).space)
    run = factor.run_length()
    assert run >= 1
    between = range(count + 1, count + run)
    assert not any(b & (b - 1) == 0 for b in between)
    assert factor.settles() == (bin(count).count("1") == 1)


@pytest.mark.parametrize("kappa", [1.0, 1e3, 1e6, 1e10])
@pytest.mark.parametrize("d", [2, 4, 12])
def test_gram_matrices_stay_within_their_budget_and_move_no_score_beyond_it(kappa, d):
    K = ill_conditioned(np.random.default_rng(d), 9 * block_size(d), d, kappa)
    factor = of(K)
    assert factor.n_blocks == 9
    assert 0.0 <= factor.gram_error <= GRAM_BUDGET
    assert sum(2**level for level, _ in (*factor.grams, *factor.factors)) == 9
    found = factor.whitening(CPU)[0]
    true = oracles.leverage(K)
    slack = oracles.slack(K)
    scores = found.scores(CPU, K)
    assert (true * (1 - slack) <= found.upper_bounds(scores)).all()
    assert (true * (1 + slack) >= found.lower_bounds(scores)).all()
    if kappa <= 1e3:
        assert not factor.factors  # the fast path is taken where it is allowed
    if kappa >= 1e10:
        assert not factor.grams


def test_a_gram_matrix_is_refused_where_the_prefix_makes_it_harmful():
    # large correlated rows after small ones: harmless alone, fatal to the small direction
    rng = np.random.default_rng(0)
    small = rng.standard_normal((1024, 2))
    large = 1e7 * np.repeat(rng.standard_normal((1024, 1)), 2, axis=1)
    factor = of(np.concatenate([small, large]))
    assert len(factor.grams) == len(factor.factors) == 1
    K = np.concatenate([small, large])
    error = np.abs(factor.whitening(CPU)[0].scores(CPU, K) - oracles.leverage(K))
    assert error.max() < 1e-8


def test_a_gram_matrix_is_refused_where_it_has_columns_that_the_prefix_has_not():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 1024, 3))
    first[:, 2] = 0.0
    second[:, 2] = second[:, 1] + 1e-7 * second[:, 2]
    K = np.concatenate([first, second])
    factor = of(K)
    assert len(factor.grams) == len(factor.factors) == 1
    scores, true = factor.whitening(CPU)[0].scores(CPU, K), oracles.leverage(K)
    assert float(np.max(np.abs(scores - true) / true)) < 1e-6


@pytest.mark.parametrize("size", [1e-300, 1e-110, 1e110, 1e300])
def test_blocks_whose_squares_leave_the_range_go_through_r_factors(size):
    K = make(gaussian, 0, 2048, 3).K.copy()
    K[:, 1] *= size
    factor = of(K)
    assert not factor.grams
    np.testing.assert_allclose(
        factor.whitening(CPU)[0].scores(CPU, K), oracles.leverage(K).astype(float), rtol=1e-11
    )


def test_an_underflowing_entry_in_a_zero_column_is_not_taken_for_zero():
    K = make(gaussian, 1, 2048, 3).K.copy()
    K[:, 2] = 0.0
    K[1500, 2] = 1e-170  # its square is below the range of float64
    factor = of(K)
    assert factor.whitening(CPU)[0].rank == 3
    assert factor.whitening(CPU)[0].scores(CPU, K[1500:1501])[0] == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 1023, 1024, 3071])
def test_measuring_names_the_first_value_that_is_not_finite(bad, row):
    K = make(gaussian, 2, 3072, 3).K.copy()
    K[row, 2] = bad
    K[row + 1 :, 0] = np.nan
    factor = StreamFactor.empty(3, np.zeros(3))
    with pytest.raises(ValueError, match=f"at row {7000 + row}, column 2;"):
        factor.measure(CPU, K, None, 7000)


@pytest.mark.parametrize("kind", [gaussian, heavy_tails, smooth])
def test_merged_factors_give_the_scores_of_all_rows(kind):
    K = make(kind, 3, 6 * 1024, 4).K
    left, right = of(K[:2048]), of(K[2048:])
    before = [a.copy() for _, a in left.grams], [f.R.copy() for _, f in left.factors]
    assert left.merge(CPU, right).gram_error >= max(left.gram_error, right.gram_error)
    merged = left.merge(CPU, right).whitening(CPU)[0]
    whole = whitening_of(CPU, K, 0.0, False)
    allowed = (1 + merged.error) ** 2 * (1 + whole.error) ** 2
    ratio = merged.scores(CPU, K) / whole.scores(CPU, K)
    assert (ratio <= allowed).all()
    assert (ratio >= 1 / allowed).all()
    for (_, G), copy in zip(left.grams, before[0], strict=True):
        np.testing.assert_array_equal(G, copy)
    for (_, f), copy in zip(left.factors, before[1], strict=True):
        np.testing.assert_array_equal(f.R, copy)


@pytest.mark.parametrize("ridge", [1e-300, 1e-6, 1.0, 1e6])
def test_a_ridge_counts_as_rows(ridge):
    K = make(gaussian, 4, 2048, 3).K
    stacked = np.concatenate([K, np.sqrt(ridge) * np.eye(3)])
    found = of(K, ridge).whitening(CPU)[0]
    np.testing.assert_allclose(
        found.scores(CPU, K), oracles.leverage(stacked).astype(float)[:2048], rtol=1e-10
    )
    assert found.rank == 3


def test_a_short_block_counts_as_its_rows():
    K = make(gaussian, 5, 1500, 3).K
    factor = of(K[:1024]).absorb_short(CPU, K[1024:])
    np.testing.assert_allclose(
        factor.whitening(CPU)[0].scores(CPU, K), oracles.leverage(K).astype(float), rtol=1e-10
    )
    rows_at_once = of(K[:1024]).whitening(CPU, K[1024:])[0]
    np.testing.assert_allclose(
        rows_at_once.scores(CPU, K), oracles.leverage(K).astype(float), rtol=1e-10
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_intercept_is_a_column_of_ones_in_front(dtype):
    X = np.full((3, 2), 5, dtype)
    rows = with_intercept(X, True)
    assert rows.dtype == dtype
    assert rows.tolist() == [[1.0, 5.0, 5.0]] * 3
    assert with_intercept(X, False) is X


@pytest.mark.parametrize("d", [1, 2, 511, 512, 513, 2000])
def test_blocks_have_at_least_twice_as_many_rows_as_columns(d):
    assert block_size(d) == max(1024, 2 * d)


def test_gram_matrices_that_leave_the_range_of_squares_become_r_factors():
    K = np.random.default_rng(3).standard_normal((4096, 3))
    far = np.array([-500, 0, 420])
    factor = of(K)
    assert factor.grams
    moved = factor.column_times(far)
    assert not moved.grams
    assert moved.gram_error >= factor.gram_error
    found, expected = moved.whitening(CPU)[0], factor.whitening(CPU)[0]
    assert found.certified
    np.testing.assert_allclose(
        found.scores(CPU, np.ldexp(K, far)), expected.scores(CPU, K), rtol=1e-12
    )
    near = factor.column_times(np.array([-90, 0, 90]))
    assert len(near.grams) == len(factor.grams)
    again = near.column_times(np.array([90, 0, -90]))
    assert all((a == b).all() for (_, a), (_, b) in zip(again.grams, factor.grams, strict=True))


def test_gram_matrices_that_are_singular_without_the_r_factors_certify():
    # pairs of equal columns in all blocks but the second, which leaves an R factor: the Gram
    # matrix of the third has a pivot of exactly zero
    K = np.random.default_rng(0).choice([-1.0, 1.0], (3 * 1024, 3))
    K[:1024, 1], K[2048:, 1] = K[:1024, 0], K[2048:, 0]
    found = whitening_of(CPU, K)
    assert found.error < 1e-9
    np.testing.assert_allclose(found.scores(CPU, K), oracles.leverage(K), rtol=found.error * 4)
    streamed = of(K)
    assert [level for level, _ in streamed.grams] == [0]
    assert streamed.whitening(CPU)[0].error < 1e-9
    # and where rounding alone decides whether there is a factor
    for seed in range(20):
        K = np.random.default_rng(seed).standard_normal((3 * 1024, 5))
        K[:1024, 1:3], K[2048:, 1:3] = K[:1024, :1], K[2048:, 3:4]
        found = whitening_of(CPU, K)
        assert found.error < 1e-9
        np.testing.assert_allclose(found.scores(CPU, K), oracles.leverage(K), rtol=found.error * 4)
