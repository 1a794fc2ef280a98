"""Weighted factors: bounds read from them hold, at any time, for all rows that are in."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import U
from strategies import gaussian, heavy_tails, lone_axis, low_rank, make, zero_rows

from levsketch.backends import CpuBackend
from levsketch.functions import Huber, Power, Tukey
from levsketch.streaming.weighted import WeightedFactor

CPU = CpuBackend()
BLOCK = 32
FUNCTIONS = [Power(p) for p in (0.3, 1.0, 1.5, 2.0, 2.005, 2.5, 3.0, 4.0, 8.0, 20.0)]
FUNCTIONS += [Huber(1.0), Tukey(3.0)]


def absorbed(f, K, state=None):
    """Return the factor of rows K (the last ones as a short block), their weights and bounds."""
    state = WeightedFactor.empty(f.certificate, K.shape[1], BLOCK) if state is None else state
    done, weights, bounds = 0, np.zeros(0), np.zeros(0)
    while done < len(K):
        count = min((len(K) - done) // BLOCK, state.run_length())
        step = K[done : done + max(1, count) * BLOCK]
        found = (state.absorb if count else state.absorb_alone)(CPU, step, done)
        state, done = found.weighted, done + (found.blocks * BLOCK if count else len(step))
        weights = np.concatenate([weights, found.weights])
        bounds = np.concatenate([bounds, found.bounds])
        if found.rose.any() or state.settles():
            state, power = state.settled(CPU)
            weights = weights * 4.0**power
    state, power = state.settled(CPU)
    return state, weights * 4.0**power, bounds


def attained(K, f):
    """Return shares (n,) that some query gives each row, less what its products round."""
    d = K.shape[1]
    Q = [np.random.default_rng(0).standard_normal((200, d)), K, np.eye(d)]
    for power in (0.0, -0.5, -1.0):
        scaled = K * np.maximum(np.linalg.norm(K, axis=1), 1e-100)[:, None] ** power
        Q.append(K @ np.linalg.pinv(scaled.T @ scaled))
    Q = np.concatenate(Q)
    Q = Q[np.abs(Q @ K.T).max(axis=1) > 1e-100]
    products = np.abs(Q @ K.T)
    hidden = 4 * (d + 1) * U * (np.abs(Q) @ np.abs(K.T))
    top = products.max(axis=1, keepdims=True)
    best = np.zeros(len(K))
    for x in (1.0,) if f.homogeneous else (0.1, 1.0, 10.0, 1e4):
        least = f(np.maximum(products - hidden, 0) / top * x)
        most = f((products + hidden) / top * x)
        total = most.sum(axis=1, keepdims=True) - most + least
        best = np.maximum(best, (least / np.where(total > 0, total, 1)).max(axis=0, initial=0))
    return best * (1 - 1e4 * U)


KINDS = [gaussian, heavy_tails, lone_axis, low_rank, zero_rows]


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
@settings(max_examples=8)
@given(st.sampled_from(KINDS), st.integers(0, 99), st.integers(1, 300), st.integers(1, 3))
@example(gaussian, 0, 300, 1)
@example(gaussian, 0, 2, 1)
def test_bounds_hold_when_rows_arrive_and_ever_after(f, kind, seed, n, d):
    K = make(kind, seed, n, d).K
    state, weights, first = absorbed(f, K)
    true = attained(K, f)
    assert (first >= true - 1e-290).all()
    later = state.bounds_of(CPU, K, weights)
    assert (later >= true - 1e-290).all()
    assert (later <= 1).all()
    assert not np.isnan(later).any()
    # for rows that are in, u bounds their share; for new ones u / (1 + u)
    assert (state.sums_of(CPU, K) * (1 + 1e-9) >= true - 1e-290).all()
    new = np.random.default_rng(seed).standard_normal((3, d)) @ np.diag(K.any(axis=0))
    both = attained(np.concatenate([K, new]), f)
    u = state.sums_of(CPU, new)
    assert (1 - 1 / (1 + u) >= both[-3:] - 4 * U).all()


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_weights_and_level_are_those_that_the_certificate_asks_for(f):
    # against the definition, with values against the whole factor in plain numpy
    K = np.random.default_rng(1).standard_normal((300, 3))
    K[120:] *= 7
    state, v, _ = absorbed(f, K)
    rule = f.certificate
    G = (K * v[:, None]).T @ K
    c = np.einsum("ij,jk,ik->i", K, np.linalg.inv(G), K)
    parts = rule.parts(v, c)
    if rule.additive:
        assert state.level == pytest.approx(parts.sum(), rel=1e-9)
    else:
        assert parts.max() <= state.prefix_level
    if not f.homogeneous:
        assert (v <= 1).all()
    u = rule.bounds(c, state.prefix_level)
    np.testing.assert_allclose(state.sums_of(CPU, K), u, rtol=1e-6)


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
@pytest.mark.parametrize("power", [-100, -3, 1, 100])
def test_times_preserves_bounds(f, power):
    K = np.random.default_rng(2).standard_normal((200, 3))
    state, v, _ = absorbed(f, K)
    if state.certificate.times(1.0, 1) == 1.0:
        return  # masses are one, or at most one: never scaled
    moved = state.times(power)
    # the powers of a level round, magnified by p/(p-2) up to 10
    limit = 1e5 * U
    expected = state.bounds_of(CPU, K, v)
    if 1e-290 < moved.prefix_level < 1e290:
        found = moved.bounds_of(CPU, K, np.ldexp(v, 2 * power))
        np.testing.assert_allclose(found, expected, rtol=limit)
        np.testing.assert_allclose(moved.sums_of(CPU, K), state.sums_of(CPU, K), rtol=limit)
        settled, extra = moved.settled(CPU)
        found = settled.bounds_of(CPU, K, np.ldexp(v, 2 * (power + extra)))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    back = moved.times(-power)
    for (_, a), (_, b) in zip(back.factor.factors, state.factor.factors, strict=True):
        np.testing.assert_array_equal(a.R, b.R)
        np.testing.assert_array_equal(a.exponents, b.exponents)


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("n", [1, 40, 200])
def test_merged_bounds_hold_for_the_rows_of_both(f, size, n):
    rng = np.random.default_rng(n)
    A, B = rng.standard_normal((150, 2)), size * rng.standard_normal((n, 2))
    B[:, 1] = 0
    (a, v, _), (b, w, _) = absorbed(f, A), absorbed(f, B)
    merged, power = a.merge(CPU, b)
    K = np.concatenate([A, B])
    bounds = merged.bounds_of(CPU, K, np.concatenate([v, np.ldexp(w, 2 * power)]))
    assert (bounds >= attained(K, f) - 1e-290).all()
    assert merged.certified


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_shards_of_zeros_merge_as_nothing(f, first):
    K = np.random.default_rng(3).standard_normal((100, 2))
    (a, v, _), (z, _, _) = absorbed(f, K), absorbed(f, np.zeros((40, 2)))
    merged, power = z.merge(CPU, a) if first else a.merge(CPU, z)
    v = np.ldexp(v, 2 * power) if first else v
    assert merged.certified
    bounds = merged.bounds_of(CPU, K, v)
    assert (bounds >= attained(K, f)).all()
    if f.spec()[1] not in ({"p": 2.0}, {"p": 2.005}):  # whose masses count zero rows, too
        np.testing.assert_allclose(bounds, a.bounds_of(CPU, K, absorbed(f, K)[1]), rtol=1e-6)


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_runs_end_where_prefixes_are_due(f):
    state = WeightedFactor.empty(f.certificate, 2, BLOCK)
    K = np.random.default_rng(4).standard_normal((BLOCK * 70, 2))
    done, settled = 0, []
    while done < 70:
        count = min(state.run_length(), 70 - done)
        found = state.absorb(CPU, K[done * BLOCK : (done + count) * BLOCK], 0)
        state, done = found.weighted, done + found.blocks
        assert done == state.factor.n_blocks
        if state.settles():
            settled.append(done)
            state = state.settled(CPU)[0]
    assert settled == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_runs_of_blocks_leave_the_level_of_single_blocks(f):
    K = np.random.default_rng(5).standard_normal((BLOCK * 24, 2))
    levels = []
    for most in (1, 64):
        state, done = WeightedFactor.empty(f.certificate, 2, BLOCK), 0
        while done < 24:
            count = min(state.run_length(), most, 24 - done)
            found = state.absorb(CPU, K[done * BLOCK : (done + count) * BLOCK], 0)
            state, done = found.weighted, done + found.blocks
            if state.settles():
                state = state.settled(CPU)[0]
        levels.append(state.level)
    assert levels[0] == levels[1]


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_nothing_is_certified_before_a_row(f):
    state = WeightedFactor.empty(f.certificate, 2, BLOCK)
    assert not state.certified
    assert (state.bounds_of(CPU, np.ones((2, 2)), np.ones(2)) == 1).all()
    assert np.isinf(state.sums_of(CPU, np.ones((2, 2)))).all()


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_rows_outside_the_row_space_have_no_bound(f):
    K = np.random.default_rng(6).integers(-3, 4, (100, 1)) * np.array([[1.0, 2.0]])
    state, _, _ = absorbed(f, K)
    found = state.sums_of(CPU, np.array([[3.0, 6.0], [3.0, 6.0 + 2.0**-40], [0.0, 0.0]]))
    assert np.isinf(found).tolist() == [False, True, False]
