"""Probes: exact sums of a few queries, in any order of the rows, in any frame."""

import numpy as np
import pytest
from attention_streams import LONG, attended, rounding, rows_of
from hypothesis import given
from hypothesis import strategies as st
from oracles import U

from levsketch.backends.cpu import serial_blas
from levsketch.streaming.attention_frame import Frame
from levsketch.streaming.attention_model import augmented
from levsketch.streaming.probes import Probes

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with serial_blas():
        yield


def drawn(seed, n=30, size=1.0):
    rng = np.random.default_rng(seed)
    K, V, w = rng.standard_normal((n, 3)), rng.standard_normal((n, 2)), rng.uniform(0.1, 1, n)
    return size * rng.standard_normal((5, 3)), K, V, w


def probes(Q, K, V, w):
    return Probes.empty(Q, 3).add(K, augmented(V, w))


@given(SEEDS, st.integers(0, 30), st.sampled_from([0.1, 1.0, 1e3, 1e100]), st.booleans())
def test_outputs_are_exact_however_the_rows_come(seed, n, size, swapped):
    Q, K, V, w = drawn(seed, size=size)
    a, b = probes(Q, K[:n], V[:n], w[:n]), probes(Q, K[n:], V[n:], w[n:])
    found = (b.merge(a) if swapped else a.merge(b)).outputs
    error = np.abs(found - attended(Q, K, V, w).astype(float))
    assert (error <= rounding(Q, K, V)).all()
    again = probes(Q, K[:n], V[:n], w[:n]).add(K[n:], augmented(V[n:], w[n:])).outputs
    assert (np.abs(found - again) <= 2 * rounding(Q, K, V)).all()


def test_no_rows_are_the_neutral_element():
    Q, K, V, w = drawn(0)
    none, all_ = Probes.empty(Q, 3), probes(Q, K, V, w)
    assert (none.shift == -np.inf).all()
    for found in (none.merge(all_), all_.merge(none), all_.times(1.0)):
        for name in ("queries", "shift", "sums"):
            np.testing.assert_array_equal(getattr(found, name), getattr(all_, name))
    assert not none.merge(none).sums.any()


def test_streams_with_other_probes_share_none_and_with_fewer_share_these():
    Q, K, V, w = drawn(0)
    a, b = probes(Q, K, V, w), probes(Q[:3], 2 * K, V, w)
    for merged in (a.merge(b), b.merge(a)):
        np.testing.assert_array_equal(merged.queries, Q[:3])
        expected = attended(Q[:3], np.concatenate([K, 2 * K]), np.tile(V, (2, 1)), np.tile(w, 2))
        np.testing.assert_allclose(merged.outputs, expected.astype(float), atol=1e-13)
    other = Q.copy()
    other[1, 1] = np.nextafter(other[1, 1], 9)
    assert len(a.merge(probes(other, K, V, w))) == 0


def test_sums_that_have_decayed_to_nothing_are_over_no_keys():
    Q, K, V, w = drawn(0, size=30.0)
    old = probes(Q, K, V, w)
    np.testing.assert_array_equal(old.times(0.5).sums, 0.5 * old.sums)
    np.testing.assert_array_equal(old.times(0.5).outputs, old.outputs)
    gone = old.times(1e-300).times(1e-300)
    assert (gone.shift == -np.inf).all()
    found = gone.merge(probes(Q, -K, V, w)).outputs
    np.testing.assert_array_equal(found, probes(Q, -K, V, w).outputs)


@given(SEEDS, st.sampled_from([1e-100, 1.0, 1e100]), st.floats(-5, 5))
def test_probes_move_with_the_rows(seed, size, offset):
    Q, K, V, w = drawn(seed)
    rows = [rows_of(K, V, w), rows_of(size * (K + offset), V - offset, w)]
    frames = [Frame.of(part, 3) for part in rows]
    joint = frames[0].joined(frames[1])
    asked = joint.queries(Q / size)
    there = [frame.inside(part) for frame, part in zip(frames, rows, strict=True)]
    pairs = []
    for frame, (keys, values, weights) in zip(frames, there, strict=True):
        move = joint.move(frame)
        own = Probes.empty(asked * move.key_scale, 3).add(keys, augmented(values, weights))
        pairs.append(own.moved(move))
    merged = pairs[0].merge(pairs[1])
    assert len(merged) == 5
    keys, values, weights = (
        np.concatenate(parts) for parts in zip(*(joint.inside(part) for part in rows), strict=True)
    )
    expected = attended(asked, keys.astype(LONG), values, weights)
    tolerance = 1e3 * U * (1 + abs(offset)) * (1 + np.abs(asked).max() * np.abs(keys).max())
    size = np.abs(values).max()
    np.testing.assert_allclose(merged.outputs, expected.astype(float), atol=tolerance * size)


def test_probes_too_long_for_another_frame_are_dropped():
    Q, K, V, w = drawn(0)
    near, far = Frame.of(rows_of(K, V, w), 3), Frame.of(rows_of(1e200 * K, V, w), 3)
    assert len(probes(Q, K, V, w).moved(far.move(near))) == 0


def test_the_first_probes_do_not_keep_the_others_in_memory():
    few = probes(*drawn(0)).first(2)
    assert len(few) == 2
    assert all(part.base is None for part in (few.queries, few.shift, few.sums))
