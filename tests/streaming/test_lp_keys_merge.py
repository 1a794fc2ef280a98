"""Merged streams for any f: in any order and grouping, no key is missing."""

import numpy as np
import pytest
from lp_streams import (
    ASKED,
    CERTAIN,
    CPU,
    DOUBTFUL,
    FEW,
    attained,
    check,
    function_of,
    policy,
    saved,
    split,
    stream,
)
from oracles import U
from strategies import (
    conditioned,
    growing,
    lone_in_hyperplane,
    make,
)

from levsketch.streaming import lp_keys
from levsketch.streaming.lp_keys import LpStream


@pytest.fixture
def small_blocks(monkeypatch):
    """Make blocks of 32 rows: a few hundred rows then see many settlings."""
    monkeypatch.setattr(lp_keys, "block_size", lambda d: 32)


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


@pytest.mark.parametrize("asked", FEW, ids=str)
def test_merged_states_with_a_budget_prove_no_more_than_they_know(small_blocks, asked):
    K = np.random.default_rng(17).standard_normal((200, 2))
    merged = tree(shards_of(K, [64, 130], n_keys=3, **asked)).selection
    assert merged.selected.sum() == 3
    true = attained(K, function_of(asked))
    outside = np.setdiff1d(np.arange(200), merged.index[merged.selected])
    assert merged.unselected_bound >= true[outside].max() * (1 - 1e4 * U)
    assert not merged.certified
