"""Rows that are kept: bounds that only fall, and a sample that misses what it says it may."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from levsketch.backends import CpuBackend
from levsketch.functions import Power, make_function
from levsketch.sketches.hashing import row_salt, uniforms
from levsketch.streaming.lp_keys import LpStream, sample_weights
from levsketch.streaming.lp_policy import LpPolicy, sampling_rate
from levsketch.streaming.pool import Pool

CPU = CpuBackend()


def pool(n, seed=0, **fields):
    rng = np.random.default_rng(seed)
    base = Pool.empty(2).extended(
        rng.standard_normal((n, 2)),
        np.arange(n),
        rng.random(n),
        rng.random(n),
        rng.random(n),
        rng.random(n) < 0.3,
        0.0,
    )
    for name, value in fields.items():
        object.__setattr__(base, name, value)
    return base


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.arrays(), b.arrays(), strict=True))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_pruning_remembers_the_largest_bound_of_what_it_drops(n, m, seed):
    both = pool(n, seed).joined(pool(m, seed + 1), n)
    assert len(both) == n + m
    assert both.index.tolist() == list(range(n + m))
    keep = np.random.default_rng(seed).random(n + m) < 0.5
    left = both.kept_only(keep, 0.1, 3, True, False)
    assert left.dropped_bound == both.bounds[~keep].max(initial=0.0)
    assert left.heavy(0.5) == (both.bounds[keep] >= 0.5).sum()
    np.testing.assert_array_equal(left.rose, both.rose[keep])
    assert not both.kept_only(keep, 0.1, 3, True, True).rose.any()
    again = left.kept_only(np.zeros(len(left), bool), 0.0, 0, True, True)
    assert again.dropped_bound == both.bounds.max(initial=0.0)
    assert len(again) == 0


def test_bounds_only_fall_and_lower_ends_end_with_new_rows():
    one = pool(5, lower=np.full(5, 0.1))
    lowered = one.bounded(np.full(5, 0.4))
    assert (lowered.bounds == np.minimum(one.bounds, 0.4)).all()
    assert same(one.bounded(np.ones(5)), one)
    assert (one.joined(pool(1), 5).lower == 0).all()
    assert one.joined(pool(1, dropped_bound=0.7), 5).dropped_bound == 0.7
    assert not one.joined(pool(1, sound=False), 5).sound
    assert not pool(1, sound=False).joined(one, 1).sound


def test_scaling_weights_by_powers_of_four_is_exact_and_changes_nothing_else():
    one = pool(6)
    moved = one.times(20)
    np.testing.assert_array_equal(moved.weights, one.weights * 4.0**20)
    assert same(moved.times(-20), one)
    assert one.times(0) is one
    assert np.isfinite(one.times(-(10**5)).weights).all()
    assert (one.times(10**5).weights[one.weights > 0] > 1e300).all()


def test_an_empty_pool_joins_as_nothing():
    one = pool(4)
    assert same(Pool.empty(2).joined(one, 0), one)
    assert same(one.joined(Pool.empty(2), 4), one)


# -- the importance sample


@pytest.mark.parametrize("delta", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("failure", [1e-6, 0.01, 0.5])
def test_the_rate_is_the_one_of_bernsteins_inequality(delta, failure):
    rate = sampling_rate(delta, failure)
    # mean 1, variance 1/rate, terms up to 1/rate: twice the one-sided tail at delta
    tail = 2 * math.exp(-(delta**2) / 2 / (1 / rate + delta / 3 / rate))
    assert tail == pytest.approx(failure, rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 30.0]))
def test_sampled_rows_weigh_the_inverse_of_their_chance(seed, rate):
    held = pool(40, seed)
    weights = sample_weights(0.8, rate, held)
    if rate == 0:
        assert (weights == 0).all()
        return
    chance = np.where(held.bounds >= 0.8, 1.0, np.minimum(1, rate * held.bounds))
    inside = weights > 0
    np.testing.assert_array_equal(inside, (chance == 1) | (held.tickets < chance))
    np.testing.assert_array_equal(weights[inside], 1 / chance[inside])


def policy(seed, **changes):
    given_ = {
        "p": 3.0,
        "eps": 0.3,
        "function": None,
        "bound": "auto",
        "refine": False,
        "delta": 0.5,
        "failure_probability": 0.2,
        "normaliser": "sample",
        "sketch_size": 64,
        "max_memory": 1 << 30,
        "n_keys": None,
        "min_keys": 1,
        "random_state": seed,
    }
    return LpPolicy(**(given_ | changes))


def stream(K, seed=0, **changes):
    return LpStream.empty(policy(seed, **changes), K.shape[1]).update(CPU, K)


ASKED = [
    {"p": 1.0},
    {"p": 1.5},
    {"p": 3.0},
    {"p": 4.0},
    {"function": ["huber", {"threshold": 1.0}]},
]


def function_of(asked):
    return make_function(asked["function"]) if "function" in asked else Power(asked["p"])


def rows_and_queries(d=2, n=3000):
    rng = np.random.default_rng(1)
    K = rng.standard_normal((n, d)) * np.exp(0.7 * rng.standard_normal((n, 1)))
    Q = np.concatenate([rng.standard_normal((2, d)), np.eye(d)[:1] * 3, np.linalg.pinv(K).T[:1]])
    return K, Q


def estimates(found, f, Q):
    return f(found.rows @ Q.T).T @ found.sample


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_normalisers_fail_no_more_often_than_the_probability_given(asked):
    K, Q = rows_and_queries()
    f = function_of(asked)
    true = f(K @ Q.T).sum(axis=0)
    state = stream(K, delta=1e-6, eps=0.3, **asked)  # this rate keeps every row
    held = state.selection.pool
    assert len(held) > 0.99 * len(K)  # the others add nothing to any sum
    rate = sampling_rate(0.5, 0.2)
    values, bad, sizes, ratios = f(held.rows @ Q.T), np.zeros(len(Q)), [], []
    for seed in range(1000):
        object.__setattr__(held, "tickets", uniforms(seed, held.index, row_salt(held.rows)))
        weights = sample_weights(0.3, rate, held)
        sizes.append((weights > 0).sum())
        ratios.append(weights @ values / true)
        bad += np.abs(ratios[-1] - 1) > 0.5
    assert max(sizes) < len(K) / 10
    # chance 1e-9 to see more, were it exactly 0.2
    assert (bad <= scipy.stats.binom.isf(1e-9, 1000, 0.2)).all()
    # and without bias: within six standard errors
    ratios = np.array(ratios)
    assert (np.abs(ratios.mean(axis=0) - 1) <= 6 * ratios.std(axis=0) / np.sqrt(1000)).all()
    # a spread near what theory allows would be 1 / rate: it is sampled indeed
    assert (ratios.var(axis=0) > 0.02 / rate).all()


@pytest.mark.parametrize("asked", ASKED[:3], ids=str)
def test_streams_sample_as_the_bounds_say_whatever_the_seed(asked):
    K, Q = rows_and_queries(n=2500)
    f = function_of(asked)
    true = f(K @ Q.T).sum(axis=0)
    bad, sizes, means = np.zeros(len(Q)), [], []
    for seed in range(40):
        found = stream(K, seed, **asked).selection
        sizes.append(int((found.sample > 0).sum()))
        means.append(estimates(found, f, Q) / true)
        bad += np.abs(means[-1] - 1) > 0.5
    assert 10 < np.mean(sizes) < len(K) / 10
    assert (bad <= scipy.stats.binom.isf(1e-9, 40, 0.2)).all()
    means = np.array(means)
    assert (np.abs(means.mean(axis=0) - 1) <= 6 * means.std(axis=0) / np.sqrt(40)).all()


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_merged_shards_sample_without_bias(asked):
    K, Q = rows_and_queries(n=2600)
    K[1300:] *= 3
    f = function_of(asked)
    true = f(K @ Q.T).sum(axis=0)
    bad, ratios = np.zeros(len(Q)), []
    for seed in range(40):
        merged = stream(K[:1300], seed, **asked).merge(CPU, stream(K[1300:], seed, **asked))
        ratios.append(estimates(merged.selection, f, Q) / true)
        bad += np.abs(ratios[-1] - 1) > 0.5
    assert (bad <= scipy.stats.binom.isf(1e-9, 40, 0.2)).all()
    ratios = np.array(ratios)
    assert (np.abs(ratios.mean(axis=0) - 1) <= 6 * ratios.std(axis=0) / np.sqrt(40)).all()


def test_shards_that_agree_in_their_first_and_last_column_sample_independently():
    # a constant first column and a padded last one, as intercepts and alignment make them
    rng = np.random.default_rng(3)
    shards = [rng.standard_normal((1100, 3)) for _ in range(8)]
    for K in shards:
        K[:, 0], K[:, 2] = 1.0, 0.0
    states = [stream(K, 5, p=1.0, eps=0.5) for K in shards]
    merged = states[0]
    for state in states[1:]:
        merged = merged.merge(CPU, state)
    found = merged.selection
    kept = found.index[found.sample > 0] % 1100
    assert len(kept) > 30
    # equal tickets would keep the same row numbers in every shard
    assert len(np.unique(kept)) > 0.8 * len(kept)


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("merged", [False, True])
def test_tickets_decide_who_is_sampled_and_nothing_else(asked, merged):
    K = np.random.default_rng(2).standard_normal((9000, 3))
    K[::500] *= 6
    found = []
    for seed in (0, 1):
        state = stream(K[:5000], seed, **asked) if merged else stream(K, seed, **asked)
        if merged:
            state = state.merge(CPU, stream(K[5000:], seed, **asked))
        found.append(state.selection)
    a, b = found
    _, i, j = np.intersect1d(a.index, b.index, return_indices=True)
    assert len(i) > 10
    np.testing.assert_array_equal(a.upper[i], b.upper[j])
    np.testing.assert_array_equal(a.index[a.universal], b.index[b.universal])
    np.testing.assert_array_equal(a.index[a.selected], b.index[b.selected])
    assert set(a.index[a.sample > 0]) != set(b.index[b.sample > 0])
    again = stream(K[:5000], 0, **asked) if merged else stream(K, 0, **asked)
    if merged:
        again = again.merge(CPU, stream(K[5000:], 0, **asked))
    np.testing.assert_array_equal(again.selection.sample, a.sample)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_row_is_sampled_if_its_ticket_is_below_its_chance(asked):
    # no earlier and larger bound may have thrown a row out, and none may have let it in
    K = np.random.default_rng(4).standard_normal((7000, 2))
    state = stream(K, 3, **asked)
    found = state.selection
    tickets = uniforms(3, np.arange(7000), row_salt(K))
    np.testing.assert_array_equal(tickets[found.index], found.pool.tickets)
    everything = stream(K, 3, **asked, delta=1e-6).selection
    assert len(everything.index) == 7000
    chance = np.minimum(1, state.rate * everything.pool.bounds)
    chance[everything.pool.bounds >= 0.3] = 1
    expected = np.flatnonzero(tickets < chance)
    np.testing.assert_array_equal(found.index[found.sample > 0], expected)
