"""Models of rows: what is exact, what is known of the rest, and the guards of its answers."""

from dataclasses import replace

import numpy as np
import pytest
from attention_streams import LONG, attended, rounding, same
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import U

from levsketch.backends.cpu import serial_blas
from levsketch.streaming.attention_frame import Frame
from levsketch.streaming.attention_model import FAINTEST, Exact, Model, augmented
from levsketch.streaming.key_value_moments import KeyValueMoments
from levsketch.streaming.landmarks import Landmarks

SEEDS = st.integers(0, 2**32 - 1)
KINDS = ["embedding", "closure"]
HERE = Frame(0, 0, 0, 0, np.zeros(3), np.zeros(2))
STAY = HERE.move(HERE)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with serial_blas():
        yield


def drawn(seed, n=120, d=3, d_v=2):
    rng = np.random.default_rng(seed)
    K, V = rng.standard_normal((n, d)), rng.standard_normal((n, d_v))
    K[rng.integers(0, n, 5)] *= 20.0
    return Exact(K, V, rng.uniform(0.1, 1.0, n), np.arange(n))


def model(kind, capacity=6, size=20, *, order=1, certified=True, threshold=0.0, d=3, d_v=2):
    landmarks = None
    if kind == "embedding":
        landmarks = Landmarks.empty(None, size, order=order, d=d, columns=d_v + 1)
    return Model.empty(
        d, d_v, capacity=capacity, threshold=threshold, landmarks=landmarks, certified=certified
    )


def in_blocks(state, rows, step=50):
    for i in range(0, len(rows), step):
        state = state.add(rows.taken(np.arange(i, min(i + step, len(rows)))))
    return state


def joined(state):
    """Return all that is known of weight, keys and values, exact and rest together."""
    e = state.exact
    return (
        state.mass + e.weights.sum(),
        state.key_sum + e.weights @ e.keys,
        np.minimum(state.low, e.values.min(axis=0, initial=np.inf)),
        np.maximum(state.high, e.values.max(axis=0, initial=-np.inf)),
    )


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 120), st.integers(1, 60), st.sampled_from(KINDS), st.integers(0, 9))
def test_every_row_is_exact_or_in_the_rest_and_never_both(seed, n, step, kind, capacity):
    rows = drawn(seed).taken(np.arange(n))
    state = in_blocks(model(kind, capacity), rows, step)
    assert len(state.exact) <= capacity
    assert len(set(state.exact.index)) == len(state.exact)
    for name in ("keys", "values", "weights"):
        kept = getattr(rows, name)[state.exact.index]
        np.testing.assert_array_equal(getattr(state.exact, name), kept)
    mass, key_sum, low, high = joined(state)
    np.testing.assert_allclose(mass, rows.weights.sum(), rtol=200 * U)
    np.testing.assert_allclose(key_sum, rows.weights @ rows.keys, atol=1e4 * U * n)
    np.testing.assert_array_equal(low, rows.values.min(axis=0))
    np.testing.assert_array_equal(high, rows.values.max(axis=0))
    # the moments are those of the rows that are not exact, evicted ones included
    others = rows.taken(np.setdiff1d(np.arange(n), state.exact.index))
    expected = KeyValueMoments.empty(3, 2).add(others.keys, others.values, others.weights)
    assert state.moments.count == len(others)
    for name in ("weight", "key_sum", "key_square", "value_sum", "key_value"):
        np.testing.assert_allclose(
            getattr(state.moments, name), getattr(expected, name), atol=1e6 * U * n
        )
    assert state.answers_exactly == (len(others) == 0)
    if kind == "embedding":
        assert len(state.landmarks.keys) + len(state.exact) <= 20


@given(SEEDS, st.sampled_from(KINDS))
@settings(max_examples=30)
def test_the_rows_of_largest_leverage_are_exact(seed, kind):
    rows = drawn(seed, 60)
    state = model(kind, 4).add(rows)
    centred = rows.keys - np.average(rows.keys, axis=0, weights=rows.weights)
    C = (centred * rows.weights[:, None]).T @ centred
    own = np.einsum("nd,nd->n", centred @ np.linalg.inv(C), centred)
    scores = rows.weights * (own + 1.0 / rows.weights.sum())
    np.testing.assert_array_equal(np.sort(state.exact.index), np.sort(np.argsort(-scores)[:4]))


def test_only_rows_above_the_threshold_are_exact():
    rng = np.random.default_rng(0)
    K = rng.standard_normal((200, 3))
    K[17] = 40.0
    rows = Exact(K, rng.standard_normal((200, 2)), np.ones(200), np.arange(200))
    assert list(model("embedding", threshold=60.0).add(rows).exact.index) == [17]
    assert len(model("embedding", threshold=1e9).add(rows).exact) == 0
    assert len(model("embedding", capacity=0).add(rows).exact) == 0
    assert len(model("embedding", certified=False).add(rows).exact) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [0, 1])
@settings(max_examples=30)
@given(SEEDS, st.sampled_from([0.0, 1e-9, 1.0, 10.0, 1e3, 1e90]))
def test_answers_stay_in_the_box_and_normalisers_above_jensens_bound(kind, order, seed, size):
    rows = drawn(seed)
    state = in_blocks(model(kind, order=order), rows)
    Q = np.random.default_rng(seed + 1).standard_normal((20, 3)) * size
    log_normaliser, sums = state.rest(Q)
    assert np.isfinite(log_normaliser).all()
    np.testing.assert_array_equal(sums[:, -1], 1.0)
    assert (sums[:, :-1] >= state.low).all()
    assert (sums[:, :-1] <= state.high).all()
    floor = np.log(state.mass) + Q @ (state.key_sum / state.mass)
    assert (log_normaliser >= floor - 1e-12 * (1 + np.abs(floor))).all()
    _, whole = state.sums(Q)
    found = whole[:, :-1] / whole[:, -1:]
    slack = 8 * U * np.abs(rows.values).max()
    assert (found >= rows.values.min(axis=0) - slack).all()
    assert (found <= rows.values.max(axis=0) + slack).all()


@pytest.mark.parametrize("weight", [-1.0, 0.0, 1e-300])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e100])
def test_an_embedding_gone_wrong_answers_by_jensen(weight, size):
    """The heaviest landmark of a long query may have a negative weight: 0 / 0 once."""
    state = in_blocks(model("embedding"), drawn(0))
    landmarks = state.landmarks
    bad = replace(
        landmarks, weights=np.full_like(landmarks.weights, weight), constant=landmarks.constant * 0
    )
    state = replace(state, landmarks=bad)
    Q = np.random.default_rng(0).standard_normal((20, 3)) * size
    log_normaliser, sums = state.rest(Q)
    floor = np.log(state.mass) + Q @ (state.key_sum / state.mass)
    assert (log_normaliser >= floor).all()
    if weight <= 0.0 and size > 1.0:
        np.testing.assert_array_equal(log_normaliser, floor)
        assert not sums[:, :-1].any()
    assert np.isfinite(sums).all()


@given(SEEDS, st.sampled_from(KINDS), st.integers(0, 6))
@settings(max_examples=30)
def test_few_rows_are_answered_exactly(seed, kind, capacity):
    rows = drawn(seed, 14)
    state = model(kind, 20 if kind == "closure" else capacity).add(rows)
    Q = np.random.default_rng(seed + 1).standard_normal((9, 3))
    shift, sums = state.sums(Q)
    expected = attended(Q, rows.keys, rows.values, rows.weights).astype(float)
    error = np.abs(sums[:, :-1] / sums[:, -1:] - expected)
    assert (error <= 4 * rounding(Q, rows.keys, rows.values)).all()
    logits = Q.astype(LONG) @ rows.keys.T + np.log(rows.weights.astype(LONG))
    whole = np.logaddexp.reduce(logits, axis=1).astype(float)
    np.testing.assert_allclose(shift + np.log(sums[:, -1]), whole, atol=1e-11)


@given(SEEDS, st.sampled_from(KINDS), st.sampled_from([0.5, 0.3, 1e-20, 1e200]))
@settings(max_examples=30)
def test_old_rows_count_less_by_one_factor(seed, kind, factor):
    state = in_blocks(model(kind), drawn(seed))
    aged = state.times(factor)
    Q = np.random.default_rng(seed + 1).standard_normal((9, 3))
    (a, b), (t, u) = state.sums(Q), aged.sums(Q)
    np.testing.assert_allclose(u[:, :-1] / u[:, -1:], b[:, :-1] / b[:, -1:], rtol=1e-9, atol=1e-9)
    log_a, log_t = a + np.log(b[:, -1]), t + np.log(u[:, -1])
    np.testing.assert_allclose(log_t - log_a, np.log(factor), atol=1e-9)
    np.testing.assert_allclose(aged.moments.weight, aged.mass, rtol=1e-9)
    # beside new rows of the same weight
    both, other = aged.add(drawn(seed + 2)), state.add(drawn(seed + 2))
    assert (both.mass < other.mass) == (factor < 1)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_fade_out_are_forgotten(kind):
    state = in_blocks(model(kind), drawn(0))
    assert state.has_weight
    for factor in (0.0, 1e-290, 5e-324):
        gone = state.times(factor)
        assert not gone.has_weight
        shift, sums = gone.rest(np.ones((2, 3)))
        assert (shift == -np.inf).all()
        assert not sums.any()
        # and leave nothing behind
        assert same(gone.add(drawn(1)), model(kind).add(drawn(1)))
    weights = np.full(120, 1e-250)
    weights[:3] = 1.0
    mixed = in_blocks(model(kind), replace(drawn(0), weights=weights)).times(1e-100)
    assert len(mixed.exact) + (mixed.mass > 0) > 0
    assert (mixed.exact.weights >= FAINTEST).all()


@given(SEEDS, st.sampled_from(KINDS), st.integers(1, 100))
@settings(max_examples=30)
def test_a_merge_in_the_same_frame_is_a_sum(seed, kind, n):
    rows = drawn(seed)
    a, b = rows.taken(np.arange(n)), rows.taken(np.arange(n, 120))
    b_own = replace(b, index=b.index - n)
    merged = in_blocks(model(kind), a).merge(in_blocks(model(kind), b_own), STAY, n)
    assert len(merged.exact) <= 6
    kept = merged.exact.index
    np.testing.assert_array_equal(merged.exact.keys, rows.keys[kept])
    mass, key_sum, low, high = joined(merged)
    np.testing.assert_allclose(mass, rows.weights.sum(), rtol=200 * U)
    np.testing.assert_allclose(key_sum, rows.weights @ rows.keys, atol=1e6 * U)
    np.testing.assert_array_equal(low, rows.values.min(axis=0))
    np.testing.assert_array_equal(high, rows.values.max(axis=0))
    np.testing.assert_allclose(merged.moments.weight, merged.mass, rtol=200 * U)
    assert merged.moments.count == 120 - len(kept)


@given(SEEDS, st.sampled_from(KINDS), st.integers(-9, 9), st.booleans())
@settings(max_examples=30)
def test_a_model_reads_the_same_in_another_frame(seed, kind, power, centred):
    rows, rng = drawn(seed), np.random.default_rng(seed + 1)
    state = in_blocks(model(kind), rows)
    centres = (0.3 * centred * rng.standard_normal(c) for c in (3, 2))
    there = Frame(
        power,
        -power,
        2,
        3,
        *(np.ldexp(c, e) for c, e in zip(centres, (-power, power), strict=True)),
    )
    joint = there.joined(HERE)
    moved = state.moved(joint.move(HERE), 7)
    np.testing.assert_array_equal(np.sort(moved.exact.index), np.sort(state.exact.index + 7))
    Q = rng.standard_normal((9, 3)) * 0.2
    (_, a), (_, b) = state.sums(Q), moved.sums(joint.queries(Q))
    found, expected = (s[:, :-1] / s[:, -1:] for s in (b, a))
    # the trend of an embedding is projected anew about another centre
    close = 0.1 if kind == "embedding" and centred else 1e-9
    largest = np.abs(rows.values).max()
    np.testing.assert_allclose(joint.outputs(found), expected, atol=close * largest)


def test_an_embedding_that_gives_up_its_landmarks_is_a_closure():
    rows = drawn(0)
    embedding, closure = (in_blocks(model(kind, capacity=0), rows) for kind in KINDS)
    Q = np.random.default_rng(1).standard_normal((9, 3))
    given_up = embedding.as_closure(4)
    assert (given_up.kind, given_up.order) == ("closure", None)
    for a, b in zip(given_up.sums(Q), closure.sums(Q), strict=True):
        np.testing.assert_array_equal(a, b)


def test_numbers_are_counted():
    state = in_blocks(model("embedding"), drawn(0))
    e, k = len(state.exact), len(state.landmarks.keys)
    held = 6 * (e + k) + 3 * 4 + 8 + KeyValueMoments.floats(3, 2)
    assert state.floats == held
    assert in_blocks(model("closure"), drawn(0)).floats == 6 * 6 + 8 + KeyValueMoments.floats(3, 2)


def test_values_are_weighted_and_counted():
    columns = augmented(np.array([[2.0, 3.0]]), np.array([0.5]))
    np.testing.assert_array_equal(columns, [[1.0, 1.5, 0.5]])
