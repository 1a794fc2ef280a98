"""Merging attention streams: as one stream in any order, whatever each has seen and decided."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from attention_streams import (
    CPU,
    RESIDUALS,
    attended,
    kinds,
    policy,
    relative,
    rows_of,
    same,
    sample_of,
    smooth,
    stream,
)

from levsketch.algorithms.attention_sketch import outputs
from levsketch.streaming.attention import AttentionStream, probe_error


def drawn(seed, n, d=3, d_v=2):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.standard_normal((n, d_v))


def tree(backend, shards):
    while len(shards) > 1:
        pairs = [a.merge(backend, b) for a, b in zip(shards[::2], shards[1::2], strict=False)]
        shards = pairs + ([shards[-1]] if len(shards) % 2 else [])
    return shards[0]


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("told", [False, True])
def test_eight_shards_merge_in_any_order_to_nearly_one_stream(residual, told):
    K, V = smooth(0, 8 * 700)
    rng = np.random.default_rng(1)
    Q = rng.standard_normal((100, 4)) / 2
    queries = sample_of(rng.standard_normal((400, 4)) / 2) if told else None
    asked = policy(100, residual)
    shards = [
        stream(k, v, None, asked, queries)
        for k, v in zip(np.split(K, 8), np.split(V, 8), strict=True)
    ]
    one = relative(stream(K, V, None, asked, queries), Q, K, V)
    orders = [range(8), range(7, -1, -1), rng.permutation(8)]
    merge = functools.partial(functools.reduce, lambda a, b: a.merge(CPU, b))
    found = [merge([shards[i] for i in order]) for order in orders] + [tree(CPU, shards)]
    for state in found:
        assert state.n_seen == 5600
        assert len(state.models) == 1
        assert state.nbytes <= 8 * asked.floats(4, 2) + state.pending.nbytes + 8 * 65 * 4 + 200
        kept = state.answering[0].index
        assert len(set(kept)) == len(kept)
    errors = [relative(state, Q, K, V) for state in found]
    # errors were 0.3 where the law followed the weights of landmarks, which cancel
    assert max(errors) < 1.5 * one + 0.03, errors
    for state, order in zip(found[:3], orders, strict=True):
        rows = np.concatenate([np.arange(700 * i, 700 * (i + 1)) for i in order])
        exact = state.models[0].exact
        np.testing.assert_allclose(
            np.ldexp(exact.keys + state.frame.key_centre, state.frame.key_power),
            K[rows][exact.index],
            atol=1e-13,
        )


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("decay", [1.0, 0.995])
@pytest.mark.parametrize("n", [40, 350])
@pytest.mark.parametrize("m", [40, 350])
def test_a_merge_counts_each_row_as_one_stream_does(residual, decay, n, m):
    """Rows of the first stream aged twice by the rows that wait in the second."""
    K, V = drawn(0, n + m)
    V[:n] += 4.0
    asked = policy(4000, residual, decay)
    # as if blocks were short: the budget then holds all rows
    a, b = (short(rows, asked) for rows in (rows_of(K[:n], V[:n]), rows_of(K[n:], V[n:])))
    merged = a.merge(CPU, b)
    assert merged.n_seen == n + m
    Q = np.random.default_rng(1).standard_normal((9, 3))
    truth = attended(Q, K, V, None, decay).astype(float)
    np.testing.assert_allclose(outputs(merged, Q), truth, atol=1e-9)
    more = merged.update(CPU, rows_of(K[:33], V[:33]))
    truth = attended(Q, np.concatenate([K, K[:33]]), np.concatenate([V, V[:33]]), None, decay)
    np.testing.assert_allclose(outputs(more, Q), truth.astype(float), atol=1e-9)


class ShortBlocks(AttentionStream):
    """A stream with blocks of 100 rows, far fewer than its budget holds."""

    @property
    def block_rows(self):
        return 100


def short(rows, asked):
    state = ShortBlocks.empty(asked, 3, 2, None)
    return state.update(CPU, rows)


def test_merging_with_nothing_changes_nothing_and_with_itself_counts_twice():
    K, V = smooth(0, 2000)
    Q = np.random.default_rng(1).standard_normal((20, 4)) / 2
    state, empty = stream(K, V), stream(K[:0], V[:0])
    assert same(state.merge(CPU, empty), state)
    assert same(empty.merge(CPU, state), state)
    assert same(empty.merge(CPU, empty), empty)
    before = stream(K, V)
    twice = state.merge(CPU, state)
    assert same(state, before)
    assert twice.n_seen == 4000
    np.testing.assert_allclose(outputs(twice, Q), outputs(state, Q), atol=0.1)
    # one that has no frame yet
    few = stream(K[:100], V[:100])
    assert few.frame is None
    assert same(state.merge(CPU, few), state.update(CPU, rows_of(K[:100], V[:100])))
    for merged in (few.merge(CPU, state), state.merge(CPU, few)):
        assert merged.n_seen == 2100
        both = np.concatenate([K, K[:100]]), np.concatenate([V, V[:100]])
        assert relative(merged, Q, *both) < 0.2


def test_streams_whose_rows_do_not_count_add_rows_and_nothing_else():
    K, V = smooth(0, 2000)
    Q = np.random.default_rng(1).standard_normal((20, 4)) / 2
    state, nothing = stream(K, V), stream(1e300 * K, 1e300 * V, np.zeros(2000))
    # the first absorbs the rows that wait: a compression more, and nothing else
    for merged, alone in (
        (state.merge(CPU, nothing), state._flushed()),
        (nothing.merge(CPU, state), state),
    ):
        assert merged.n_seen == 4000
        assert merged.frame.key_power < 10
        assert merged.has_weight
        np.testing.assert_allclose(outputs(merged, Q), outputs(alone, Q), atol=1e-6)
    kept = nothing.merge(CPU, state).answering[0].index
    assert (kept >= 2000).all()
    assert not nothing.merge(CPU, nothing).has_weight


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e3, 1e200])
def test_shards_of_other_units_meet_in_the_larger_ones(scale):
    """Factors between frames overflowed: keys, values and weights differ by up to 2**664."""
    K, V = smooth(0, 2400)
    size = np.where(np.arange(2400) < 1200, 1.0, scale)
    K, V, w = K * size[:, None], V * size[:, None], np.minimum(size, 1 / size)
    asked = policy(100, "closure")
    a, b = (stream(K[i : i + 1200], V[i : i + 1200], w[i : i + 1200], asked) for i in (0, 1200))
    for merged in (a.merge(CPU, b), b.merge(CPU, a)):
        power = np.frexp(np.abs(K).max())[1]
        assert abs(merged.frame.key_power - power) <= 1
        Q = np.random.default_rng(1).standard_normal((20, 4)) / np.abs(K).max()
        found = outputs(merged, Q) / np.abs(V).max()
        assert np.isfinite(found).all()
        heavy = np.argmax([w[:1200].sum(), w[1200:].sum()])
        truth = attended(Q, K, V / np.abs(V).max(), w).astype(float)
        np.testing.assert_allclose(found, truth, atol=0.1), heavy


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_law_of_queries_is_in_the_units_of_the_joint_frame(scale):
    K, V = smooth(0, 1200)
    queries = sample_of(np.random.default_rng(1).standard_normal((400, 4)))
    asked = policy(100, "embedding")
    a, b = (stream(k, V, None, asked, queries) for k in (K, scale * K))
    nothing = stream(K, V, np.zeros(1200), asked, queries)
    for merged in (a.merge(CPU, b), b.merge(CPU, a), nothing.merge(CPU, b)):
        mean, covariance = merged.models[0].landmarks.queries
        power = 2.0**merged.frame.key_power
        np.testing.assert_array_equal(mean, queries.mean * power)
        np.testing.assert_array_equal(covariance, queries.covariance * power**2)


def test_a_decided_stream_and_one_that_still_tries_agree_on_the_model_and_on_probes():
    K, V = smooth(0, 9 * 512)
    decided, trying = stream(K, V, asked=policy(100)), stream(K[:1000], V[:1000], asked=policy(100))
    assert len(decided.models) == 1 < len(trying.models)
    Q = np.random.default_rng(1).standard_normal((20, 4)) / 2
    for merged in (decided.merge(CPU, trying), trying.merge(CPU, decided)):
        assert kinds(merged) == kinds(decided)
        # the first probes are the same: none needs to be given up
        assert len(merged.probes) == decided.budget.probes > 0
        assert np.isfinite(probe_error(merged.best, merged.probes))
        both = np.concatenate([K, K[:1000]]), np.concatenate([V, V[:1000]])
        assert relative(merged, Q, *both) < 0.1
    still = trying.merge(CPU, trying)
    assert len(still.models) == len(trying.models)
    assert len(still.probes) == 64


def with_model(state, kind):
    return replace(state, models=tuple(m for m in state.models if (m.kind, m.order) == kind))


def test_shards_that_decided_otherwise_merge_by_what_they_share():
    K, V = smooth(0, 4000)
    asked = policy(400)
    trying = stream(K, V, asked=asked)
    assert {"embedding", "closure", "polynomial"} == {model.kind for model in trying.models}
    alone = {model.kind: with_model(trying, (model.kind, model.order)) for model in trying.models}
    Q = np.random.default_rng(1).standard_normal((20, 4)) / 3
    for a, b in itertools.permutations(alone, 2):
        assert alone[a].models[0].moments is not None
        merged = alone[a].merge(CPU, alone[b])
        assert kinds(merged) == [("closure", None)]
        assert len(merged.models[0].exact) <= merged.budget.closure_keys
        assert relative(merged, Q, np.tile(K, (2, 1)), np.tile(V, (2, 1))) < 0.1
    # without moments there is nothing to share
    poor = replace(alone["embedding"].models[0], moments=None)
    bad = replace(alone["embedding"], models=(poor,))
    with pytest.raises(ValueError, match="'embedding' here and 'closure' in the other"):
        bad.merge(CPU, alone["closure"])


def test_embeddings_with_trends_of_other_orders_merge():
    K, V = smooth(0, 2000, 9)
    trying = stream(K, V, asked=policy(10))
    orders = [model.order for model in trying.models if model.kind == "embedding"]
    assert sorted(orders) == [0, 1]
    a, b = (with_model(trying, ("embedding", order)) for order in (0, 1))
    Q = np.random.default_rng(1).standard_normal((20, 9)) / 4
    for x, y in itertools.permutations([a, b]):
        merged = x.merge(CPU, y)
        assert kinds(merged) == kinds(x)
        worst = max(relative(state, Q, K, V) for state in (a, b))
        assert relative(merged, Q, np.tile(K, (2, 1)), np.tile(V, (2, 1))) < 2 * worst + 0.1


def test_streams_that_ask_otherwise_do_not_merge():
    K, V = drawn(0, 700)
    state = stream(K, V)
    for other, name in (
        (stream(K, V, asked=policy(25)), "policy"),
        (stream(K[:, :2], V), "n_features"),
        (stream(K, V[:, :1]), "n_outputs"),
    ):
        with pytest.raises(ValueError, match=f"{name} must agree to merge"):
            state.merge(CPU, other)
