"""Frames: scales and shifts that softmax does not see, and that lose no digits that count."""

import itertools

import numpy as np
import pytest
from attention_streams import LONG, rows_of
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import U

from levsketch.streaming.attention_frame import Frame

SEEDS = st.integers(0, 2**32 - 1)
SIZES = [1e-300, 1e-150, 1e-9, 1.0, 1e9, 1e150, 1e300]
LARGEST = np.finfo(np.float64).max


def drawn(seed, n=12, d=3, d_v=2, key=1.0, value=1.0, weight=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    K, V = rng.standard_normal((2, n, d))
    return (K + offset) * key, (V[:, :d_v] + offset) * value, rng.random(n) * weight


@given(SEEDS, st.sampled_from(SIZES), st.sampled_from(SIZES), st.sampled_from(SIZES))
def test_rows_of_any_size_are_near_one_in_the_frame(seed, key, value, weight):
    K, V, w = drawn(seed, key=key, value=value, weight=weight)
    frame = Frame.of(rows_of(K, V, w), 3)
    keys, values, weights = frame.inside(rows_of(K, V, w))
    assert 0.1 < np.abs(keys).max() <= 2.0
    assert 0.25 < np.sqrt((values**2).sum(axis=1).mean()) <= 1.0
    assert 0.5 <= weights.max() < 1.0
    np.testing.assert_array_equal(np.ldexp(weights, frame.weight_power), w)
    rounding = 8 * U * np.abs(V).max()
    np.testing.assert_allclose(frame.outputs(values), V, atol=rounding)
    lengths = frame.lengths(np.linalg.norm(values - values[0], axis=1))
    size = np.abs(V).max()
    expected = np.linalg.norm((V - V[0]) / size, axis=1)
    np.testing.assert_allclose(lengths / size, expected, atol=64 * U)


@given(SEEDS, st.sampled_from(SIZES), st.sampled_from([0.0, 1.0, 1e6]))
def test_logits_change_by_a_constant_for_each_query(seed, key, offset):
    K, V, w = drawn(seed, key=key, offset=offset)
    frame = Frame.of(rows_of(K, V, w), 3)
    keys, _, _ = frame.inside(rows_of(K, V, w))
    # queries of logits near one; beyond 1e300 they lose digits to underflow
    Q = np.random.default_rng(seed + 1).standard_normal((5, 3)) / key
    found, whole = frame.queries(Q) @ keys.T, (Q.astype(LONG) @ K.T.astype(LONG))
    apart = (found - found[:, :1]) - (whole - whole[:, :1]).astype(float)
    assert (np.abs(apart) <= 32 * U * (1 + offset) * np.abs(Q * key).sum(axis=1)[:, None]).all()


def test_a_few_outliers_take_no_digits_from_the_others():
    """Centred at the mean, keys of size one beside one of 1e12 lost seven digits."""
    K, V, _ = drawn(0, 101)
    for far in (1e12, 1e150):
        K[7], V[9] = far, -far
        frame = Frame.of(rows_of(K, V), 3)
        keys, values, _ = frame.inside(rows_of(K, V))
        others = np.setdiff1d(np.arange(101), [7, 9])
        found = np.ldexp(keys[others] - keys[0], frame.key_power)
        np.testing.assert_allclose(found, K[others] - K[0], atol=16 * U)
        back = frame.outputs(values)[others]
        np.testing.assert_allclose(back, V[others], atol=16 * U)


def test_columns_that_are_mostly_zero_are_centred_at_their_mean():
    K = (np.random.default_rng(0).random((400, 3)) < 0.2).astype(float)
    frame = Frame.of(rows_of(K, K[:, :1]), 3)
    np.testing.assert_allclose(np.ldexp(frame.key_centre, frame.key_power), K.mean(axis=0))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e300, LARGEST, -LARGEST, 5e-324])
@pytest.mark.parametrize("n", [1, 3, 7, 300])
def test_constant_values_come_back_as_they_are(n, value):
    V = np.full((n, 2), value)
    frame = Frame.of(rows_of(V, V), 2)
    keys, values, _ = frame.inside(rows_of(V, V))
    assert not keys.any()
    np.testing.assert_array_equal(frame.outputs(values), V)
    # whatever is averaged, with what rounding does to it
    assert (np.abs(frame.outputs(values + 4 * U)) <= LARGEST).all()


def test_rows_without_weight_have_no_part_in_a_frame():
    K, V, w = drawn(0)
    far = np.concatenate([K, 1e300 * K]), np.concatenate([V, 1e300 * V])
    a = Frame.of(rows_of(K, V, w), 3)
    b = Frame.of(rows_of(*far, np.concatenate([w, np.zeros(12)])), 3)
    for name in ("key_power", "value_power", "weight_power", "spread_power"):
        assert getattr(a, name) == getattr(b, name)
    np.testing.assert_array_equal(a.key_centre, b.key_centre)
    np.testing.assert_array_equal(a.value_centre, b.value_centre)
    # unless there are no others, or no rows at all
    assert Frame.of(rows_of(1e300 * K, V, 0 * w), 3).key_power > 900
    assert not Frame.of(rows_of(K[:0], V[:0]), 3).key_centre.any()


def test_rows_that_outgrow_the_frame_are_refused_by_name():
    K, V, w = drawn(0)
    frame = Frame.of(rows_of(K, V, w), 3)
    frame.inside(rows_of(1e90 * K, 1e90 * V, 1e90 * w))
    for grown, name in (
        (rows_of(1e91 * K, V, w), "keys"),
        (rows_of(K, 1e91 * V, w), "values"),
        (rows_of(K, V, 1e95 * w), "sample_weight"),
    ):
        with pytest.raises(OverflowError, match=rf"^{name} grew by a factor of more than 2\*\*300"):
            frame.inside(grown)


@pytest.mark.parametrize("key", [1e-300, 1.0, 1e300])
def test_the_longest_queries_still_tell_the_same_key(key):
    K, V, w = drawn(0, key=key)
    frame = Frame.of(rows_of(K, V, w), 3)
    keys, _, _ = frame.inside(rows_of(K, V, w))
    Q = np.random.default_rng(1).standard_normal((40, 3))
    for size in (1e200, LARGEST / 8):
        found = frame.queries(size * Q)
        assert np.isfinite(found).all()
        logits = found @ keys.T
        assert np.isfinite(logits).all()
        np.testing.assert_array_equal(logits.argmax(axis=1), (Q @ (K / key).T).argmax(axis=1))
    assert not frame.queries(np.zeros((1, 3))).any()


@given(SEEDS, *[st.sampled_from(SIZES)] * 4, st.sampled_from([0.0, 3.0]))
@example(0, 1e-300, 1e300, 1e300, 1e-300, 3.0)
def test_what_is_in_two_frames_reads_alike_in_their_joint_one(seed, a, b, c, e, offset):
    sizes = [{"key": a, "value": b, "weight": c}, {"key": b, "value": e, "weight": a}]
    shards = [rows_of(*drawn(seed + i, offset=offset * i, **size)) for i, size in enumerate(sizes)]
    frames = [Frame.of(rows, 3) for rows in shards]
    joint = frames[0].joined(frames[1])
    for frame, rows in zip(frames, shards, strict=True):
        move = joint.move(frame)
        assert all(0.0 < scale <= 2.0**60 for scale in (move[0], move[2], move[4]))
        keys, values, weights = frame.inside(rows)
        expected = joint.inside(rows)
        rounding = 64 * U * (1 + offset)
        np.testing.assert_allclose(
            keys * move.key_scale + move.key_shift, expected[0], atol=rounding
        )
        columns = np.concatenate([values, np.ones((12, 1))], axis=1) * weights[:, None]
        size = (1 + np.abs(expected[1]).max()) * weights.max()
        found = move.of_values(columns)
        np.testing.assert_allclose(
            found[:, :-1], expected[1] * weights[:, None], atol=rounding * size
        )
        np.testing.assert_array_equal(found[:, -1], weights)
        np.testing.assert_allclose(weights * move.weight_scale, expected[2], atol=1e-300)


def test_a_frame_and_itself_stay_where_they_are():
    K, V, w = drawn(0)
    frame = Frame.of(rows_of(K, V, w), 3)
    assert frame.joined(frame).move(frame).stays
    for a, b in itertools.permutations([frame, Frame.of(rows_of(K + 1, V, w), 3)]):
        assert not a.move(b).stays
