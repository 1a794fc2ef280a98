"""The streaming state: what pruning drops can never matter, and memory does not grow."""

import dataclasses
import itertools

import numpy as np
import oracles
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import ill_conditioned, keys

from levsketch.backends import CpuBackend
from levsketch.streaming.factor import block_size
from levsketch.streaming.keys import KeyStream, Policy

CPU = CpuBackend()


def policy(eps=0.05, n_keys=None, min_keys=0, intercept=False, ridge=0.0):
    return Policy(eps, n_keys, min_keys, intercept, ridge)


def stream(K, **params):
    return KeyStream.empty(policy(**params), K.shape[1]).update(CPU, K)


@settings(max_examples=60)
@given(keys(max_rows=9000, max_columns=5), st.sampled_from([0.01, 0.1, 0.6]))
def test_no_dropped_row_has_a_score_above_the_dropped_bound(made, eps):
    state = stream(made.K, eps=eps)
    slack = oracles.slack(made.basis)
    assume(slack < 1e-3 and state.candidates.sound)
    true = np.array(oracles.leverage(made.basis) * (1 - slack), float)
    first_pending = len(made.K) - len(state.pending)
    true[first_pending:] = 0.0
    true[state.candidates.index] = 0.0
    assert true.max(initial=0) <= state.candidates.dropped_bound
    # whole blocks were settled at least once: nothing above eps is dropped, ever
    assert state.candidates.dropped_bound < eps


@settings(max_examples=60)
@given(keys(max_rows=9000, max_columns=5))
def test_candidates_are_rows_of_the_stream_in_order(made):
    state = stream(made.K)
    held = state.candidates
    K = np.asarray(made.K, np.float64)
    np.testing.assert_array_equal(held.rows, K[held.index])
    assert (np.diff(held.index) > 0).all()
    np.testing.assert_array_equal(state.pending, K[len(K) - len(state.pending) :])
    assert len(state.pending) == len(K) % block_size(state.d)
    assert state.factor.n_blocks == len(K) // block_size(state.d)


def test_updating_leaves_the_old_state_as_it_was():
    rng = np.random.default_rng(0)
    old = stream(rng.standard_normal((5000, 3)))
    arrays = [old.pending, old.candidates.rows, old.prefix.matrix, old.factor.space.basis]
    arrays += [G for _, G in old.factor.grams]
    copies = [a.copy() for a in arrays]
    new = old.update(CPU, 1e5 * rng.standard_normal((9000, 3)))
    assert (old.n_seen, new.n_seen) == (5000, 14_000)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_no_rows_give_the_same_object_back():
    state = stream(np.ones((3, 2)))
    assert state.update(CPU, np.ones((0, 2))) is state


def test_row_numbers_beyond_int64_are_refused():
    state = dataclasses.replace(stream(np.ones((3, 2))), n_seen=2**63 - 3)
    assert state.update(CPU, np.ones((2, 2))).n_seen == 2**63 - 1
    with pytest.raises(OverflowError, match=f"{2**63} rows"):
        state.update(CPU, np.ones((3, 2)))


def test_row_numbers_beyond_32_bits_and_53_bits_are_exact():
    rng = np.random.default_rng(0)
    K = rng.standard_normal((3000, 3))
    state = stream(K)
    for start in (2**31 - 1000, 2**40, 2**53 + 1):
        far = dataclasses.replace(state, n_seen=start).update(CPU, 1e9 * np.eye(3))
        assert far.selection.index[far.selection.universal].tolist() == [
            start,
            start + 1,
            start + 2,
        ]


def gaussian_blocks(rng, d):
    while True:
        yield rng.standard_normal((4096, d))


def doubling_blocks(rng, d):
    """Each row twice the last: at its arrival every row has a score near one."""
    for i in itertools.count():
        steps = 2.0 ** ((np.arange(4096) + 4096 * i) % 1800 / 1.0 - 900)
        yield rng.standard_normal((4096, d)) * steps[:, None]


def slowly_growing_blocks(rng, d):
    for i in itertools.count():
        yield rng.standard_normal((4096, d)) * 1.3 ** ((np.arange(4096) + i) % 2000)[:, None]


def low_rank_blocks(rng, d):
    right = rng.integers(-5, 6, (2, d)).astype(float)
    while True:
        yield rng.integers(-5, 6, (4096, 2)) @ right


def uncertifiable_blocks(rng, d):
    """Products rounded to float64: full rank by rounding noise alone."""
    right = rng.standard_normal((d // 2, d))
    while True:
        yield rng.standard_normal((4096, d // 2)) @ right


def lone_then_hyperplane_blocks(rng, d):
    for i in itertools.count():
        K = rng.integers(-5, 6, (4096, d)).astype(float)
        K[:, 1] = K[:, 0]
        if i == 0:
            K[5] = 0.0
            K[5, :2] = 1e-300, -1e-300
        yield K


def constant_blocks(rng, d):
    row = rng.standard_normal((1, d))
    while True:
        yield np.repeat(row, 4096, axis=0)


def zero_blocks(rng, d):
    while True:
        yield np.zeros((4096, d))


def duplicate_column_blocks(rng, d):
    while True:
        x = rng.standard_normal((4096, 1))
        yield x * np.linspace(0.1, 0.9, d)


def drowned_blocks(rng, d):
    """Small noise, then equal rows that are larger by more than float64 can tell apart."""
    yield 1e-100 * rng.standard_normal((4096, d))
    while True:
        yield np.ones((4096, d))


def drowned_integer_blocks(rng, d):
    yield 1e-30 * rng.standard_normal((4096, d))
    while True:
        yield rng.integers(-4, 5, (4096, 1)) * np.ones((1, d))


STREAMS = [
    drowned_blocks,
    drowned_integer_blocks,
    gaussian_blocks,
    doubling_blocks,
    slowly_growing_blocks,
    low_rank_blocks,
    uncertifiable_blocks,
    lone_then_hyperplane_blocks,
    constant_blocks,
    zero_blocks,
    duplicate_column_blocks,
]


@pytest.mark.parametrize("blocks", STREAMS)
def test_memory_stays_bounded_along_a_stream(blocks):
    d = 5
    params = policy(eps=0.05, min_keys=1)
    state = KeyStream.empty(params, d)
    for K in itertools.islice(blocks(np.random.default_rng(1), d), 32):
        state = state.update(CPU, K)
        # d numbers and an index for each of: 9 blocks that wait, d / eps that stay, the pool
        rows = 9 * block_size(d) + 2 * d / params.eps + 2 * params.pool_size
        small = 60 * d * d + 4 * d * 64  # factors, Gram matrices, row space, protected rows
        assert state.nbytes <= 8 * ((d + 2) * rows + small)
        if state.factor.settles() and state.prefix.certified:
            # scores sum to the rank: this many reach eps, and no other stays but the pool
            most = state.prefix.rank / params.eps * (1 + state.prefix.error) ** 4
            assert len(state.candidates) <= most + params.pool_size
            assert len(state.candidates.protected) <= most
    assert state.n_seen == 32 * 4096


def test_well_conditioned_streams_hold_little_more_than_the_set():
    state = stream(np.random.default_rng(2).standard_normal((200_000, 4)))
    assert len(state.candidates) < 4 / 0.05 + state.policy.pool_size + 100


@pytest.mark.parametrize("d", [1, 3])
def test_the_selection_is_computed_once(d):
    state = stream(ill_conditioned(np.random.default_rng(3), 2000, d, 10.0))
    assert state.selection is state.selection
    assert state.selection.certified


def test_rows_kept_by_uncertified_pruning_make_the_state_unsound():
    # more rows than memory may hold, none ruled out by proof: some go, and it says so
    blocks = uncertifiable_blocks(np.random.default_rng(4), 6)
    state = KeyStream.empty(policy(), 6)
    for K in itertools.islice(blocks, 6):
        state = state.update(CPU, K)
    assert not state.candidates.sound
    assert not state.selection.certified
    assert state.selection.unselected_bound == 1.0
    # well-conditioned rows later cannot bring the proof back
    state = state.update(CPU, 1e9 * np.random.default_rng(5).standard_normal((5000, 6)))
    assert state.selection.whitening.certified
    assert not state.selection.certified
