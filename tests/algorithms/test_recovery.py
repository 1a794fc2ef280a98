"""Sparse recovery: as near as proved, honest about what it misses, whatever the columns are.

Statements over seeds are tested on fixed ones, against binomial bounds.
"""

import math

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from oracles import U

from levsketch.algorithms.recovery import recover_columns
from levsketch.sketches.countsketch import CountSketch
from levsketch.streaming.output_sketch import OutputSketch

# A test that is right fails with about this probability, were its seeds random.
RARE = 1e-6
Z = scipy.stats.norm.isf(RARE / 2)


def sketched(Y, seed=0, depth=9, width=64, **sizes):
    state = OutputSketch.make(Y.shape[1], depth=depth, width=width, seed=seed, **sizes)
    return state.update(Y)


def tails(X, k):
    """Return the norms of columns without their k largest entries."""
    return np.linalg.norm(np.sort(np.abs(X), axis=0)[: max(0, len(X) - k)], axis=0)


def spiky(n, k, seed=0, noise=0.01):
    """Return columns near constants 3 and 0, with k spikes each, and a dense column."""
    rng = np.random.default_rng(seed)
    Y = noise * rng.standard_normal((n, 3))
    for c in range(2):
        Y[rng.choice(n, k, replace=False), c] += rng.choice([-1, 1], k) * (1 + rng.random(k))
    Y[:, 0] += 3.0
    Y[:, 2] = rng.standard_normal(n)
    return Y


@pytest.mark.parametrize(("k", "eps", "failure"), [(3, 1.0, 0.2), (8, 0.25, 0.05)])
def test_errors_exceed_the_bound_no_more_often_than_proved(k, eps, failure):
    n, trials = 400, 40
    Y = spiky(n, k)
    Y[:, 1] = 1.0 / np.arange(1, n + 1)
    constants = np.array([3.0, 0.0, 0.0])
    bound = math.sqrt(1 + 10 * eps) * tails(Y - constants, k)
    failed = np.zeros(3)
    for seed in range(trials):
        sizes = CountSketch.for_recovery(k, eps, n, failure, seed)
        sketch = sketched(Y, seed, sizes.depth, sizes.width, tail_depth=3, tail_width=64)
        found = recover_columns(sketch, k, [constants])
        failed += np.linalg.norm(Y - found.toarray(), axis=0) > bound
        assert abs(found.offset[0] - 3.0) < 0.01  # the mean of the rows may do as well
    assert (failed <= scipy.stats.binom.isf(RARE, trials, failure)).all()


def deviates(values, mean):
    """Tell whether the mean of ``values`` is not ``mean``, by the central limit theorem."""
    return abs(values.mean() - mean) > Z * values.std() / math.sqrt(len(values))


def test_reported_norms_are_unbiased_though_entries_were_chosen():
    n, k, trials, failure = 400, 32, 120, 0.1
    Y = spiky(n, k, noise=0.05)[:, :2]
    told, biased = np.zeros((2, 2, trials)), np.zeros((2, trials))
    for seed in range(trials):
        # one hash row: its squared norms are unbiased, no median is taken
        sketch = sketched(Y, seed, 9, 8 * k, tail_depth=1, tail_width=64)
        found = recover_columns(sketch, k, [np.array([3.0, 0.0])])
        left = Y - found.offset - found.entries.toarray()
        true = np.linalg.norm(left, axis=0)
        told[0, :, seed] = found.norm / np.linalg.norm(Y - found.offset, axis=0)
        told[1, :, seed] = found.tail / true
        table = sketch.recovery.empty(2)
        sketch.recovery.scatter(table, np.arange(n), left)
        biased[:, seed] = sketch.recovery.column_norms(table) / true
    for one in told.reshape(4, trials) ** 2:
        assert not deviates(one, 1.0)
        failed = np.sum(np.abs(one - 1) > sketch.tail.norm_error(failure))
        assert failed <= scipy.stats.binom.isf(RARE, trials, failure)
    # the table that the entries came from makes their errors look small
    assert deviates(biased[0] ** 2, 1.0)
    assert biased.mean() < 1


def test_dense_columns_keep_their_constant_and_the_report_says_so():
    n, k = 4000, 5
    rng = np.random.default_rng(0)
    Y = 0.5 + rng.standard_normal((n, 20))
    Y[:, :3] = 0.5
    Y[[7, 1000, 3999], :3] = np.diag([9.0, -1.0, 100.0])
    found = recover_columns(sketched(Y, depth=21, width=80), k)
    assert found.sparse.tolist() == [True] * 3 + [False] * 17
    error = np.linalg.norm(Y - found.toarray(), axis=0)
    constant = np.linalg.norm(Y - found.offset, axis=0)
    np.testing.assert_allclose(found.tail[3:], error[3:], rtol=0.15)
    np.testing.assert_allclose(found.norm[3:], constant[3:], rtol=0.15)
    assert (error[3:] <= 1.02 * constant[3:]).all()
    text = found.explain()
    assert text.startswith("3 of 20 columns are sparse beside their constant")
    bare = int(np.sum(np.diff(found.entries.indptr)[3:] == 0))
    assert f"100% (median) of what the constant misses; {bare} of them return" in text


def test_a_column_whose_entries_would_make_it_worse_gets_none():
    # eight buckets for 3000 dense rows: every estimate is noise
    Y = np.random.default_rng(0).standard_normal((3000, 8))
    found = recover_columns(sketched(Y, depth=1, width=8), 50)
    assert found.entries.nnz == 0
    assert (found.tail == found.norm).all()
    assert not found.sparse.any()
    assert found.explain().endswith("8 of them return the constant alone.")


def test_the_constant_is_the_candidate_that_leaves_least():
    n = 2000
    Y = np.tile([2.0, 0.0, 7.0, -1.0], (n, 1))
    Y[:20] += 50.0  # the mean is no use in any of them
    Y[:, 3] = -1.0 + 0.1 * np.random.default_rng(0).standard_normal(n)
    sketch = sketched(Y, depth=21, width=400)
    found = recover_columns(sketch, 20, [np.array([2.0, 5, 5, 5]), np.array([5.0, 5, 7, 5])])
    assert found.offset[:3].tolist() == [2.0, 0.0, 7.0]
    assert found.offset[3] == sketch.mean[3]
    assert found.sparse[:3].all()
    np.testing.assert_allclose(found.toarray()[:, :3], Y[:, :3], atol=1e-9)


@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.integers(0, 2**32),
    st.integers(0, 2**60),
    st.sampled_from([1e-150, 1.0, 1e150]),
)
def test_few_rows_come_back_exactly_and_k_may_exceed_them(n, k, seed, first, scale):
    """Tail_k of at most k rows is zero: in a table without collisions nothing is lost."""
    Y = np.random.default_rng(seed).integers(-4, 5, (n, 2)) * scale
    state = OutputSketch.make(2, depth=5, width=1024, seed=seed, first_row=first).update(Y)
    found = recover_columns(state, max(k, n))
    assert found.ranges == ((first, first + n),)
    assert found.entries.shape == (first + n, 2)
    entries = scipy.sparse.coo_array(found.entries)
    got = np.zeros((n, 2)) + found.offset
    np.add.at(got, (entries.row - first, entries.col), entries.data)
    # a median is wrong only where three of five buckets collide
    off = np.abs(got - Y) > 8 * n * U * np.abs(Y).max()
    buckets, _ = state.recovery.places(first + np.arange(n))
    lonely = sum((np.bincount(b, minlength=1024)[b] == 1).astype(int) for b in buckets) >= 3
    assert not off[lonely].any()
    assert found.sparse.all() or not lonely.all()


def test_columns_of_zeros_of_constants_and_one_huge_entry():
    n = 3000
    Y = np.zeros((n, 5))
    Y[:, 1] = 0.1
    Y[77, 2] = 1e150
    Y[:, 3] = 1e-3
    Y[77, 3] = -1e150
    Y[:, 4] = 1.0 / 3.0
    Y[5, 4] += 1e-6
    found = recover_columns(sketched(Y, depth=9), 3, [np.full(5, 0.1), np.full(5, 1.0 / 3.0)])
    assert np.diff(found.entries.indptr)[:3].tolist() == [0, 0, 1]
    assert found.offset[:2].tolist() == [0.0, 0.1]
    assert found.norm[:2].tolist() == found.tail[:2].tolist() == [0.0, 0.0]
    assert found.entries[77, 2] == 1e150
    assert found.entries[77, 3] == -1e150
    np.testing.assert_allclose(found.norm[2:4], 1e150)
    assert abs(found.entries[5, 4] - 1e-6) < 1e-12
    assert found.sparse.all()
    assert found.explain() == (
        "5 of 5 columns are sparse beside their constant (recovery leaves at most half of what "
        "the constant misses)."
    )


def test_equal_entries_are_all_found_if_there_is_room():
    Y = np.zeros((1000, 1))
    Y[100:110] = 3.0  # ties, and rows that follow one another
    found = recover_columns(sketched(Y, depth=21, width=160), 5)
    np.testing.assert_allclose(found.toarray(), Y, atol=0)
    assert found.entries.indices.tolist() == list(range(100, 110))


def test_blocks_batchings_and_merges_do_not_change_what_is_found(monkeypatch):
    Y = spiky(2000, 10)
    whole = recover_columns(sketched(Y, width=160), 10)
    parts = [
        OutputSketch.make(3, depth=9, width=160, seed=0, first_row=i).update(Y[i : i + 500])
        for i in range(0, 2000, 500)
    ]
    merged = recover_columns(parts[2].merge(parts[0]).merge(parts[3]).merge(parts[1]), 10)
    monkeypatch.setattr("levsketch.algorithms.recovery._ROWS", 7)
    blocks = recover_columns(sketched(Y[:900], width=160).update(Y[900:]), 10)
    np.testing.assert_array_equal(blocks.toarray(), whole.toarray())
    np.testing.assert_array_equal(blocks.tail, whole.tail)
    np.testing.assert_allclose(merged.toarray()[:, :2], whole.toarray()[:, :2], atol=1e-10)
    np.testing.assert_allclose(merged.tail, whole.tail, rtol=1e-6)


def test_rows_that_no_shard_has_seen_are_not_a_number():
    a = OutputSketch.make(1, depth=5, width=64, seed=0).update(np.full((4, 1), 2.0))
    b = OutputSketch.make(1, depth=5, width=64, seed=0, first_row=6).update(np.full((2, 1), 2.0))
    found = recover_columns(a.merge(b), 1, [np.array([2.0])])
    np.testing.assert_array_equal(found.toarray()[:, 0], [2, 2, 2, 2, np.nan, np.nan, 2, 2])
    nothing = recover_columns(OutputSketch.make(2, depth=1, width=4, seed=0), 3)
    assert nothing.toarray().shape == (0, 2)
    assert nothing.sparse.all()


def test_memory_is_that_of_a_block_and_never_of_the_rows(monkeypatch):
    asked = []
    estimate = CountSketch.estimate
    monkeypatch.setattr(
        CountSketch,
        "estimate",
        lambda self, table, at: (asked.append(len(at)), estimate(self, table, at))[1],
    )
    Y = np.zeros((20_000, 1))
    recover_columns(sketched(Y), 3)
    assert max(asked) <= 4096
    assert sum(asked) == 2 * 20_000  # zero and the mean
    asked.clear()
    recover_columns(sketched(Y), 3000)
    assert max(asked) <= 6000


def test_arguments_are_checked_by_name():
    sketch = sketched(np.ones((10, 2)))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recover_columns(sketch, 0)
    with pytest.raises(TypeError, match="k must be a whole number"):
        recover_columns(sketch, 2.0)
    for wrong, text in (
        (np.ones(3), r"offset_candidates\[1\] must have shape \(2,\), got \(3,\)"),
        (np.array([0.0, np.nan]), r"offset_candidates\[1\] contains NaN at row 0, column 1"),
    ):
        with pytest.raises(ValueError, match=text):
            recover_columns(sketch, 1, [np.ones(2), wrong])
