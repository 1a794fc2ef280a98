"""Streams for any f: in any batches the same bytes, and at no moment a key that is missing."""

import itertools
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import U
from strategies import (
    conditioned,
    cuts,
    duplicates,
    gaussian,
    graded_low_rank,
    growing,
    heavy_tails,
    ill_conditioned,
    lone_axis,
    lone_in_hyperplane,
    low_rank,
    make,
    scaled_columns,
    shrinking,
    smooth,
    wide,
    zero_columns,
    zero_rows,
)

from levsketch import LpSensitivitySelector
from levsketch.algorithms.sensitivity import sensitivities
from levsketch.backends import CpuBackend
from levsketch.functions import Power, make_function
from levsketch.streaming import lp_keys
from levsketch.streaming.lp_keys import LpStream
from levsketch.streaming.lp_keys_io import to_arrays
from levsketch.streaming.lp_policy import LpPolicy

CPU = CpuBackend()
POWERS = [{"p": p} for p in (0.3, 1.0, 1.5, 2.0, 2.005, 2.5, 3.0, 4.0, 8.0)]
OTHERS = [{"function": ["huber", {"threshold": 1.0}]}, {"function": ["tukey", {"threshold": 3.0}]}]
ASKED = POWERS + OTHERS
FEW = [POWERS[1], POWERS[6], POWERS[7], OTHERS[0]]


def policy(**changes):
    asked = {
        "p": 2.0,
        "eps": 0.1,
        "function": None,
        "bound": "auto",
        "refine": False,
        "delta": 0.5,
        "failure_probability": 0.2,
        "normaliser": "auto",
        "sketch_size": 64,
        "max_memory": 1 << 30,
        "n_keys": None,
        "min_keys": 1,
        "random_state": 0,
    }
    return LpPolicy(**(asked | changes))


def function_of(asked):
    return make_function(asked["function"]) if "function" in asked else Power(asked["p"])


def stream(batches, **changes):
    state = LpStream.empty(policy(**changes), batches[0].shape[1])
    for batch in batches:
        state = state.update(CPU, np.asarray(batch))
    return state


def split(K, places):
    return [K[a:b] for a, b in itertools.pairwise([0, *places, len(K)])]


def saved(state):
    """Return the bytes of a state, by the estimator's own format."""
    meta, arrays = to_arrays(state)
    return repr(meta), [(k, a.dtype, a.shape, a.tobytes()) for k, a in sorted(arrays.items())]


@pytest.fixture
def small_blocks(monkeypatch):
    """Make blocks of 32 rows: a few hundred rows then see many settlings."""
    monkeypatch.setattr(lp_keys, "block_size", lambda d: 32)


def attained(K, f, seed=0):
    """Return shares (n,) that some query gives each row: lower bounds on sensitivities.

    Less what rounding may hide of the products.
    """
    rng = np.random.default_rng(seed)
    K = K[:, K.any(axis=0)].astype(np.float64)
    n, d = K.shape
    if not d:
        return np.zeros(n)
    K = np.ldexp(K, -np.frexp(np.abs(K).max(axis=0))[1])
    alive = np.flatnonzero(K.any(axis=1))
    pairs = itertools.islice(combinations(rng.permutation(alive), d - 1), 100)
    vertices = [np.linalg.svd(K[list(rows)])[2][-1] for rows in pairs] if d > 1 else []
    parts = [rng.standard_normal((30, d)), np.eye(d), K[alive], *([vertices] if vertices else [])]
    lengths = np.maximum(np.linalg.norm(K, axis=1), 1e-100)
    for power in (0.0, -0.5, -1.0):
        scaled = K * (lengths**power)[:, None]
        parts.append(K[alive] @ np.linalg.pinv(scaled.T @ scaled))
    Q = np.concatenate(parts)
    Q /= np.abs(Q).max(axis=1, keepdims=True)
    products = np.abs(Q @ K.T)
    hidden = 4 * (d + 1) * U * (np.abs(Q) @ np.abs(K.T))
    top = np.maximum(products.max(axis=1, keepdims=True), 1e-300)
    best = np.zeros(n)
    for x in (1.0,) if f.homogeneous else (0.1, 1.0, 10.0, 1e4, 1e12):
        ends = np.maximum(products - hidden, 0), products + hidden
        with np.errstate(over="ignore", invalid="ignore"):  # of queries that meet next to nothing
            least, most = (f(a / top * x) for a in ends)
            total = most.sum(axis=1, keepdims=True) - most + least
            share = np.nan_to_num(least / np.where(total > 0, total, 1))
        best = np.maximum(best, share.max(axis=0))
    return best


def check(state, basis, f, allowed_to_doubt=False):
    """Check all that a state says of the rows so far; ``basis`` has their products."""
    found, eps = state.selection, state.policy.eps
    true = attained(basis, f) * (1 - 1e4 * U)
    assert found.certified or allowed_to_doubt
    pool = found.pool
    outside = np.setdiff1d(np.arange(len(basis)), pool.index)
    # squares of rows below 1e-145 of the others underflow
    assert (pool.bounds >= true[pool.index] - 1e-290).all()
    if found.certified:
        heavy = true >= eps
        heavy[pool.index[found.universal]] = False
        assert not heavy.any()
        assert pool.dropped_bound >= true[outside].max(initial=0) - 1e-290
        rest = np.setdiff1d(np.arange(len(basis)), pool.index[found.selected])
        assert found.unselected_bound >= true[rest].max(initial=0) - 1e-290
    assert (np.diff(pool.index) > 0).all()
    return found


# -- streams that are meant to hurt


def rank_rises_late(rng, n, d):
    K = rng.standard_normal((n, d))
    for c in range(1, d):
        K[: n * c // d, c] = 0
    return K


def zeros_first(rng, n, d):
    K = rng.standard_normal((n, d))
    K[: n // 2] = 0
    return K


def blocks_of_different_laws(rng, n, d):
    parts = np.array_split(np.arange(n), 5)
    K = rng.standard_normal((n, d))
    K[parts[1]] = rng.integers(-2, 3, (len(parts[1]), d))
    K[parts[2]] *= 1e3
    K[parts[3]] = K[parts[0]][0]
    K[parts[4]] *= np.exp(3 * rng.standard_normal((len(parts[4]), 1)))
    return K


def jumps(rng, n, d):
    K = rng.standard_normal((n, d))
    K[n // 3 :] *= 1e60
    K[2 * n // 3 :] *= 1e-120
    return K


def all_zero(rng, n, d):
    return np.zeros((n, d))


CERTAIN = [
    gaussian,
    heavy_tails,
    duplicates,
    zero_rows,
    zero_columns,
    lone_axis,
    low_rank,
    wide,
    scaled_columns,
    rank_rises_late,
    zeros_first,
    blocks_of_different_laws,
    jumps,
    all_zero,
]
DOUBTFUL = [conditioned, growing, shrinking, smooth, graded_low_rank, lone_in_hyperplane]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("kind", CERTAIN + DOUBTFUL)
def test_at_no_moment_is_a_key_missing(small_blocks, kind, asked):
    f, made = function_of(asked), make(kind, 1, 230, 3)
    if not f.homogeneous and np.abs(made.K.astype(float)).max() > 1e150:
        return  # no query brings such keys to the scale of f
    state, done = LpStream.empty(policy(eps=0.05, **asked), made.K.shape[1]), 0
    for place in (1, 33, 100, len(made.K)):
        place = min(place, len(made.K))
        state = state.update(CPU, made.K[done:place])
        done = place
        check(state, made.basis[:place], f, kind in DOUBTFUL)


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 10])
def test_equal_keys_are_kept_at_one_over_their_number(asked, m):
    # every query gives each of them exactly that
    K = np.repeat([[1.0, 3.0]], m, axis=0)
    for batches in ([K], [K[:1], K[1:]]):
        found = stream(batches, eps=(1 - 4 * U) / m, **asked).selection
        assert found.universal.sum() == m
    shards = [stream([row[None]], eps=(1 - 4 * U) / m, **asked) for row in K]
    for shard in shards[1:]:
        shards[0] = shards[0].merge(CPU, shard)
    assert shards[0].selection.universal.sum() == m


@pytest.mark.parametrize("asked", [a for a in POWERS if a["p"] >= 1], ids=str)
def test_bounds_of_long_streams_hold_against_exact_sensitivities(asked):
    rng = np.random.default_rng(0)
    K = rng.standard_normal((5000, 3))
    K[[3, 1500, 4200]] *= 8
    K[2500:] *= 3
    found = stream([K[:1700], K[1700:]], eps=0.05, **asked).selection
    rows = found.index[np.argsort(-found.upper)[:8]]
    low = sensitivities(K, asked["p"], indices=rows, tol=1e-3)[:, 0]
    upper = dict(zip(found.index.tolist(), found.upper, strict=True))
    assert all(upper[j] >= x for j, x in zip(rows.tolist(), low, strict=True))
    assert found.certified


@pytest.mark.parametrize("asked", FEW, ids=str)
@pytest.mark.parametrize("kappa", [1e3, 1e9, 1e13, 1e14])
def test_no_key_is_missed_up_to_condition_1e14(small_blocks, asked, kappa):
    rng = np.random.default_rng(1)
    K = ill_conditioned(rng, 300, 3, kappa)
    K[rng.integers(0, 300, 4)] *= 20
    check(stream([K[:100], K[100:]], **asked), K, function_of(asked), kappa > 1e12)


@pytest.mark.parametrize("asked", FEW, ids=str)
@pytest.mark.parametrize("size", [1e-12, 1e-100, 1e-300])
@pytest.mark.parametrize("row", [0, 40, 299])
def test_a_lone_key_is_certified_at_any_size(small_blocks, asked, size, row):
    K = np.random.default_rng(2).standard_normal((300, 3))
    K[:, 2] = 0
    K[row] = [0, 0, size]
    found = stream([K[:150], K[150:]], eps=0.9, min_keys=0, **asked).selection
    assert found.certified
    assert found.index[found.universal].tolist() == [row]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_narrow_types_leave_the_state_of_their_double_copy(asked, dtype):
    K = (4 * np.random.default_rng(3).standard_normal((2500, 2))).astype(dtype)
    narrow, double = stream([K], **asked), stream([K.astype(np.float64)], **asked)
    assert narrow.dtype == np.dtype(dtype).name
    assert saved(narrow)[1] == saved(double)[1]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("d", [1, 5])
def test_streams_of_one_row_and_of_one_column(small_blocks, asked, d):
    K = np.random.default_rng(4).standard_normal((3 if d > 1 else 200, d))
    state = stream(list(K[:, None]), **asked)
    check(state, K if d == 1 else np.eye(3), function_of(asked))
    if d == 5:
        assert state.selection.universal.all()


# -- any batches, the same bytes


@pytest.mark.parametrize("asked", ASKED, ids=str)
@settings(max_examples=4)
@given(st.data(), st.sampled_from([gaussian, heavy_tails, lone_axis, low_rank, growing]))
def test_random_batches_leave_the_bytes_of_one(asked, data, kind):
    K = make(kind, data.draw(st.integers(0, 99)), 4500, 3).K
    places = data.draw(cuts(len(K)))
    assert saved(stream(split(K, places), **asked)) == saved(stream([K], **asked))


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("normaliser", ["auto", "sample", None])
def test_long_streams_leave_the_same_bytes_in_batches_of_any_size(asked, normaliser):
    # 24 blocks: several are absorbed at once where a batch holds them
    K = make(blocks_of_different_laws, 0, 24 * 1024 + 100, 3).K
    whole = saved(stream([K], normaliser=normaliser, **asked))
    for step in (1024, 5000):
        assert (
            saved(stream(split(K, range(step, len(K), step)), normaliser=normaliser, **asked))
            == whole
        )
    one_row_batches = [*range(1, 40), *range(20_000, 20_020)]
    assert saved(stream(split(K, one_row_batches), normaliser=normaliser, **asked)) == whole


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_crowd_of_heavy_rows_is_pruned_at_the_same_row_in_any_batches(small_blocks, asked):
    # 16 blocks that all look heavy to the bounds of the 32 before them
    rng = np.random.default_rng(5)
    K = np.concatenate([rng.standard_normal((33 * 32, 3)), 1e3 * rng.standard_normal((20 * 32, 3))])
    whole = saved(stream([K], eps=0.01, **asked))
    assert saved(stream(split(K, range(32, len(K), 32)), eps=0.01, **asked)) == whole


# -- merging


def shards_of(K, places, **changes):
    return [stream([part], **changes) for part in split(K, places)]


def left(states):
    out = states[0]
    for state in states[1:]:
        out = out.merge(CPU, state)
    return out


def right(states):
    out = states[-1]
    for state in states[-2::-1]:
        out = state.merge(CPU, out)
    return out


def tree(states):
    while len(states) > 1:
        states = [left(states[i : i + 2]) for i in range(0, len(states), 2)]
    return states[0]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("kind", [*CERTAIN, conditioned, growing, lone_in_hyperplane])
def test_merging_in_any_association_misses_no_key(small_blocks, kind, asked):
    f = function_of(asked)
    made = make(kind, 7, 200, 2)
    if not f.homogeneous and np.abs(made.K.astype(float)).max() > 1e150:
        return
    places = [p for p in (5, 70, 171) if p < len(made.K)]
    for associate in (right, tree):
        merged = associate(shards_of(made.K, places, eps=0.05, **asked))
        assert merged.n_seen == len(made.K)
        check(merged, made.basis, f, kind in DOUBTFUL)
    # merged states go on
    state = merged.update(CPU, made.K)
    check(state, np.concatenate([made.basis, made.basis]), f, kind in DOUBTFUL)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_merging_with_nothing_changes_nothing(asked):
    K = np.random.default_rng(8).standard_normal((1500, 2))
    state, empty = stream([K], **asked), LpStream.empty(policy(**asked), 2)
    assert saved(state.merge(CPU, empty)) == saved(state)
    assert saved(empty.merge(CPU, state)) == saved(state)


@pytest.mark.parametrize("asked", [*ASKED, {"p": 2.05}, {"p": 20.0, "normaliser": None}], ids=str)
@pytest.mark.parametrize("sizes", [(1e-100, 1e100), (1.0, 1e30), (1e-3, 1.0), (1e-150, 1e150)])
def test_shards_of_wildly_different_scale_merge(small_blocks, asked, sizes):
    rng = np.random.default_rng(9)
    small, large = (s * rng.standard_normal((100, 2)) for s in sizes)
    small[17] = [sizes[0], sizes[0] * 5]
    f = function_of(asked)
    large[:, 1] = large[:, 0]  # rank one: the small rows are all there is in one direction
    for first, second in ((small, large), (large, small)):
        merged = stream([first], **asked).merge(CPU, stream([second], **asked))
        if f.homogeneous:
            check(merged, np.concatenate([first, second]), f, allowed_to_doubt=True)


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("size", [1e-60, 1.0, 1e60])
def test_shards_in_different_directions_merge_with_a_certificate(small_blocks, asked, size):
    rng = np.random.default_rng(10)
    first = rng.standard_normal((100, 4)) * [1, 1, 0, 0]
    second = size * rng.standard_normal((70, 4)) * [0, 0, 1, 1]
    for a, b in ((first, second), (second, first)):
        merged = stream([a], **asked).merge(CPU, stream([b], **asked))
        found = check(merged, np.concatenate([a, b]), function_of(asked))
        assert found.whitening.rank == 4


@pytest.mark.parametrize("asked", FEW, ids=str)
def test_merged_bounds_are_not_far_from_those_of_one_stream(asked):
    K = np.random.default_rng(11).standard_normal((8000, 3))
    K[::1000] *= 10
    whole = stream([K], **asked).selection
    merged = tree(shards_of(K, [1000, 2500, 6000], **asked)).selection
    for found in (whole, merged):
        heavy = found.index[found.universal]
        assert len(heavy) < 30
    a, b = (dict(zip(s.index.tolist(), s.upper, strict=True)) for s in (whole, merged))
    for j in range(0, 8000, 1000):
        assert b[j] <= 1.5 * a[j] + 0.01


# -- memory and use


@pytest.mark.parametrize("asked", [POWERS[1], POWERS[7], POWERS[6], OTHERS[0]], ids=str)
def test_memory_stays_flat_along_stationary_streams(asked):
    rng = np.random.default_rng(12)
    state = LpStream.empty(policy(eps=0.05, **asked), 2)
    sizes = []
    for _ in range(20):
        state = state.update(CPU, rng.standard_normal((15_360, 2)))
        sizes.append(state.nbytes)
    assert state.n_seen == 307_200
    # a block that waits, and a binary counter that has one level more
    assert max(sizes[10:]) <= 1.5 * max(sizes[2:10]) + 8 * 1024 * 2
    assert state.selection.certified
    assert len(state.selection.pool) < 4000


@pytest.mark.parametrize("asked", FEW, ids=str)
@pytest.mark.parametrize("jump", [1e8, 1e170])
def test_rows_that_grow_once_are_soon_told_apart_again(asked, jump):
    # squares of the first block underflow beside the others, or the other way round
    rng = np.random.default_rng(13)
    K = rng.standard_normal((40_000, 2))
    K[1024:] *= jump
    found = stream([K], eps=0.05, **asked).selection
    assert found.certified
    assert found.universal.sum() < 1000


@pytest.mark.parametrize("asked", FEW, ids=str)
def test_nan_and_infinity_are_refused_by_place(asked):
    for value, kind in ((np.nan, "NaN"), (np.inf, "infinity")):
        for row in (3, 1023, 1024, 2600, 5000):
            K = np.random.default_rng(14).standard_normal((5001, 2))
            K[row, 1] = value
            with pytest.raises(ValueError, match=f"{kind}.* at row {row}, column 1"):
                stream([K], **asked)


@pytest.mark.parametrize("asked", FEW, ids=str)
@pytest.mark.parametrize("size", [1e-306, 1e307])
def test_rows_at_the_ends_of_the_range_are_like_others(small_blocks, asked, size):
    K = np.random.default_rng(15).uniform(-9, 9, (300, 2))
    plain = stream([K], normaliser=None, **asked).selection
    if function_of(asked).homogeneous:
        found = stream([K * size], normaliser=None, **asked).selection
        assert found.certified
        np.testing.assert_array_equal(found.index[found.universal], plain.index[plain.universal])
        np.testing.assert_allclose(found.upper, plain.upper, rtol=1e-6)


@pytest.mark.parametrize("asked", [POWERS[0], POWERS[3], POWERS[7], OTHERS[1]], ids=str)
def test_narrow_scores_of_new_rows_are_rounded_up(asked):
    K = np.random.default_rng(16).standard_normal((3000, 2))
    selector = LpSensitivitySelector(eps=0.1, **asked).fit(K)
    wide, narrow = (selector.score_samples(K.astype(t)) for t in (np.float64, np.float32))
    exact = selector.score_samples(K.astype(np.float32).astype(np.float64))
    assert narrow.dtype == np.float32
    assert (narrow >= exact).all()
    assert (wide >= 0).all()


@pytest.mark.parametrize("asked", FEW, ids=str)
def test_merged_states_with_a_budget_prove_no_more_than_they_know(small_blocks, asked):
    K = np.random.default_rng(17).standard_normal((200, 2))
    merged = tree(shards_of(K, [64, 130], n_keys=3, **asked)).selection
    assert merged.selected.sum() == 3
    true = attained(K, function_of(asked))
    outside = np.setdiff1d(np.arange(200), merged.index[merged.selected])
    assert merged.unselected_bound >= true[outside].max() * (1 - 1e4 * U)
    assert not merged.certified
