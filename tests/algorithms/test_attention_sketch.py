"""What is certified of an attention sketch holds, for queries made to break it, in any unit."""

import numpy as np
import pytest
from attention_streams import (
    CPU,
    RESIDUALS,
    attended,
    policy,
    rounding,
    rows_of,
    sample_of,
    shares,
    stream,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from levsketch.algorithms import attention_sketch
from levsketch.algorithms.attention_sketch import covered_mass, error_bound, outputs
from levsketch.backends import cpu

SEEDS = st.integers(0, 2**32 - 1)
ASKED = {"queries": 0}


def clustered(rng, n, d):
    centres = 2 * rng.standard_normal((5, d))
    return centres[rng.integers(0, 5, n)] + 0.2 * rng.standard_normal((n, d))


def heavy(rng, n, d):
    return rng.standard_t(2, (n, d))


def planted(rng, n, d):
    K = 0.3 * rng.standard_normal((n, d))
    K[rng.integers(0, n, 8)] *= 20
    return K


def drifting(rng, n, d):
    return rng.standard_normal((n, d)) + np.linspace(0, 20, n)[:, None]


def skewed(rng, n, d):
    return rng.exponential(size=(n, d)) ** 2


def copies(rng, n, d):
    return rng.standard_normal((4, d))[rng.integers(0, 4, n)]


KEYS = [clustered, heavy, planted, drifting, skewed, copies]


def adversarial(rng, K, stream):
    """Return queries of any size, at keys that are kept, evicted and far, and between them."""
    d = K.shape[1]
    centred = K - K.mean(axis=0)
    longest = np.argsort(-(centred**2).sum(axis=1))[:20]
    kept = stream.answering[0].index[:20]
    toward = np.concatenate([centred[longest], centred[kept], centred[rng.integers(0, len(K), 40)]])
    toward = np.concatenate([toward, toward[::-1] - toward, rng.standard_normal((40, d))])
    lengths = np.linalg.norm(toward, axis=1, keepdims=True)
    toward /= np.where(lengths > 0, lengths, 1)
    size = np.sqrt((centred**2).sum(axis=1).mean())
    sizes = np.array([0.03, 0.5, 2.0, 10.0]) / size
    found = np.concatenate([toward * s for s in sizes] + [-toward / size, np.zeros((1, d))])
    return found


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("keys", KEYS, ids=lambda make: make.__name__)
def test_certificates_hold_for_queries_made_to_break_them(keys, residual):
    """48,048 queries: the mass is never above the true one, the bound never below the error."""
    for seed, decay in ((0, 1.0), (1, 0.999)):
        rng = np.random.default_rng(seed)
        n, d = 1100, int(rng.integers(1, 6))
        K = keys(rng, n, d)
        V = np.stack([np.tanh(K.sum(axis=1)), rng.standard_normal(n)], axis=1) * 10.0 ** (2 * seed)
        w = rng.random(n) * (rng.random(n) < 0.9)
        told = sample_of(rng.standard_normal((100, d))) if seed else None
        state = stream(K, V, w, policy(60, residual, decay), told)
        Q = adversarial(rng, K, state)
        p = shares(Q, K, w, decay)
        slack = rounding(Q, K, V)[:, 0] / np.abs(V).max()
        mass = p[:, state.answering[0].index].sum(axis=1)
        found = covered_mass(state, Q)
        assert (found >= 0.0).all()
        assert (found <= mass + slack).all()
        error = np.sqrt(((p @ V - outputs(state, Q)) ** 2).sum(axis=1))
        bound = error_bound(state, Q)
        assert (error <= bound + slack * np.abs(V).max() * 1e-3).all()
        live = w > 0
        box = np.linalg.norm(V[live].max(axis=0) - V[live].min(axis=0))
        assert (bound <= 1.01 * box + slack * np.abs(V).max()).all()
        ASKED["queries"] += len(Q)


def test_these_were_more_than_twenty_thousand():
    assert ASKED["queries"] == 0 or ASKED["queries"] > 20_000


@settings(max_examples=40)
@given(
    SEEDS,
    st.integers(1, 2000),
    st.sampled_from(RESIDUALS),
    st.sampled_from([1e-150, 1.0, 1e150]),
    st.sampled_from([1e-200, 1.0, 1e200]),
    st.sampled_from([0.0, 1e-3, 1.0, 10.0, 1e3, 1e100]),
)
@example(0, 1500, "auto", 1.0, 1.0, 0.0)
def test_certificates_hold_in_any_unit(seed, n, residual, key, value, size):
    rng = np.random.default_rng(seed)
    K, V = rng.standard_normal((n, 2)), rng.standard_normal((n, 2))
    Q = rng.standard_normal((20, 2)) * size
    state = stream(K * key, V * value, None, policy(40, residual))
    with np.errstate(over="ignore"):
        asked = np.nan_to_num(Q / key)
    p = shares(asked, K * key)
    slack = rounding(Q, K, V)[:, 0]
    error = np.sqrt(((p @ V - outputs(state, asked) / value) ** 2).sum(axis=1))
    bound = error_bound(state, asked) / value
    assert (error <= bound + slack).all()
    mass = p[:, state.answering[0].index].sum(axis=1)
    assert (covered_mass(state, asked) <= mass + slack).all()


def test_bounds_are_of_use_where_logits_are_small():
    rng = np.random.default_rng(0)
    K, V = rng.standard_normal((4000, 8)), rng.standard_normal((4000, 2))
    Q = 0.1 * rng.standard_normal((50, 8)) / np.sqrt(8)
    state = stream(K, V, None, policy(200, "closure"))
    assert (error_bound(state, Q) < 0.1).all()
    share = len(state.answering[0].index) / 4000
    assert (covered_mass(state, Q) > 0.7 * share).all()
    # one key that has it all
    K[77] = 12.0
    state = stream(K, V, None, policy(200, "closure"))
    assert covered_mass(state, np.ones((1, 8)) / 2)[0] > 0.999
    assert error_bound(state, np.ones((1, 8)) / 2)[0] < 1e-2


def test_exact_answers_are_certified_as_such():
    rng = np.random.default_rng(0)
    K, V, Q = rng.standard_normal((400, 3)), rng.standard_normal((400, 2)), np.eye(3)
    state = stream(K, V)
    np.testing.assert_array_equal(covered_mass(state, Q), 1.0)
    error = np.linalg.norm(outputs(state, Q) - attended(Q, K, V).astype(float), axis=1)
    assert (error <= error_bound(state, Q)).all()
    assert (error_bound(state, Q) < 1e-11).all()


def test_without_room_for_moments_nothing_is_covered_and_the_box_bounds_the_error():
    rng = np.random.default_rng(0)
    K, V = rng.standard_normal((1500, 9)), rng.standard_normal((1500, 2))
    state = stream(K, V, None, policy(10, "embedding"))
    assert not state.budget.certified
    Q = np.concatenate([rng.standard_normal((50, 9)), 30 * rng.standard_normal((50, 9))])
    waits = len(state.pending)
    assert waits
    np.testing.assert_array_equal(covered_mass(state, Q), 0.0)
    error = np.linalg.norm(outputs(state, Q) - attended(Q, K, V).astype(float), axis=1)
    bound = error_bound(state, Q)
    assert (error <= bound).all()
    assert (bound <= np.linalg.norm(V.max(axis=0) - V.min(axis=0)) * (1 + 1e-9)).all()


@pytest.mark.parametrize("answer", [outputs, covered_mass, error_bound])
@pytest.mark.parametrize("queries", [0, 1, 7, 700])
def test_neither_threads_nor_other_queries_change_a_bit(answer, queries, monkeypatch):
    rng = np.random.default_rng(0)
    K, V = rng.standard_normal((1500, 3)), rng.standard_normal((1500, 2))
    state, Q = stream(K, V), rng.standard_normal((queries, 3))
    monkeypatch.setattr(attention_sketch, "_QUERIES", 64)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(attention_sketch, "thread_count", lambda _, threads=threads: threads)
        found.append(answer(state, Q))
    assert found[0].tobytes() == found[1].tobytes()
    assert len(found[0]) == queries
    if queries > 64:
        assert answer(state, Q[:64]).tobytes() == found[0][:64].tobytes()
    assert cpu.thread_count(1) == 1


def test_there_is_nothing_to_average_without_weight():
    K, V = np.ones((700, 2)), np.ones((700, 1))
    for n in (5, 700):
        state = stream(K[:n], V[:n], np.zeros(n))
        for answer in (outputs, covered_mass, error_bound):
            with pytest.raises(ValueError, match="nothing to average"):
                answer(state, np.ones((1, 2)))
    some = state.update(CPU, rows_of(K[:1], 3 * V[:1]))
    np.testing.assert_array_equal(outputs(some, np.ones((1, 2))), 3.0)
