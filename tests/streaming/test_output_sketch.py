"""Sketches of outputs: the same bytes in any batching, merges in any order, no growth."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import U
from strategies import cuts

from levsketch.streaming.output_sketch import OutputSketch

SMALL = {"depth": 3, "width": 8, "seed": 5, "tail_depth": 1, "tail_width": 4}


def outputs(n, c=2, seed=0):
    return np.random.default_rng(seed).standard_normal((n, c)) * 10.0 ** (3 * np.arange(c))


def integers(n, c=2, seed=0):
    """Return small whole numbers: every sum of them is exact."""
    return np.random.default_rng(seed).integers(-99, 100, (n, c)).astype(np.float64)


def stream(Y, edges=(), first_row=0, **sizes):
    state = OutputSketch.make(Y.shape[1], **{**SMALL, **sizes}, first_row=first_row)
    for i, j in itertools.pairwise([0, *edges, len(Y)]):
        state = state.update(Y[i:j])
    return state


def same(a, b):
    """Tell whether two states agree in every byte."""
    fields = [field.name for field in dataclasses.fields(OutputSketch)]
    return all(
        x.tobytes() == y.tobytes() and x.shape == y.shape if isinstance(x, np.ndarray) else x == y
        for x, y in ((getattr(a, f), getattr(b, f)) for f in fields)
    )


@settings(max_examples=60)
@given(st.integers(0, 1200), st.integers(0, 2**62), st.data())
@example(256, 0, None)
@example(512, 3, None)
def test_any_batching_gives_the_same_bytes(n, first, data):
    Y = outputs(n)
    edges = data.draw(cuts(n)) if data else range(1, n)
    whole, batched = stream(Y, first_row=first), stream(Y, edges, first_row=first)
    assert same(whole, batched)
    assert same(whole.settled(), batched.settled())
    assert whole.n_rows == n
    assert whole.next_row == first + n
    assert whole.ranges == (((first, first + n),) if n else ())
    assert len(whole.pending) == n % whole.block_rows


def test_tables_are_sums_one_row_after_the_other_however_blocks_fall():
    Y = outputs(1000, 1)
    found = stream(Y).settled()
    table, tail_table = found.recovery.empty(1), found.tail.empty(1)
    total = 0.0
    for sketch, cells in ((found.recovery, table), (found.tail, tail_table)):
        buckets, signs = sketch.places(np.arange(1000))
        for i, r in itertools.product(range(1000), range(sketch.depth)):
            cells[r, buckets[r, i]] += signs[r, i] * Y[i]
    for y in Y[:, 0]:
        total += y
    np.testing.assert_array_equal(found.table, table)
    np.testing.assert_array_equal(found.tail_table, tail_table)
    assert found.sums[0] == total
    assert found.mean[0] == stream(Y).mean[0] == total / 1000


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, ">f8"])
def test_other_types_and_layouts_give_the_bytes_of_their_double_copy(dtype):
    Y = integers(300).astype(dtype)
    expected = stream(Y.astype(np.float64))
    assert same(stream(Y), expected)
    assert same(stream(np.asfortranarray(Y)), expected)
    assert same(stream(np.repeat(Y, 2, axis=0)[::2]), expected)


@settings(max_examples=60)
@given(st.integers(1, 400), st.permutations(range(5)), st.data())
def test_shards_merge_in_any_order_to_the_whole_stream(n, order, data):
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, n), min_size=4, max_size=4))), n]
    for make, exact in ((integers, True), (outputs, False)):
        Y = make(n)
        shards = [stream(Y[i:j], first_row=i) for i, j in itertools.pairwise(edges)]
        merged = functools.reduce(OutputSketch.merge, [shards[i] for i in order]).settled()
        whole = stream(Y).settled()
        assert merged.ranges == whole.ranges == ((0, n),)
        tolerance = 0.0 if exact else 2 * n * U * np.abs(Y).sum(axis=0)
        for name in ("table", "tail_table", "sums"):
            assert (np.abs(getattr(merged, name) - getattr(whole, name)) <= tolerance).all()


def test_merging_is_commutative_in_every_byte_and_leaves_both_as_they_were():
    a, b = stream(outputs(300)), stream(outputs(500, seed=1), first_row=400)
    before = [dataclasses.replace(s, table=s.table.copy(), sums=s.sums.copy()) for s in (a, b)]
    ab, ba = a.merge(b), b.merge(a)
    assert same(ab, ba)
    assert ab.ranges == ((0, 300), (400, 900))
    assert ab.n_rows == 800
    assert same(a, before[0])
    assert same(b, before[1])
    # the gap can be filled later, and the stream goes on after the last row
    middle = stream(outputs(100, seed=2), first_row=300)
    assert ab.merge(middle).update(outputs(5)).ranges == ((0, 905),)
    for name in ("table", "tail_table", "sums", "pending"):
        for x in (a, a.settled(), a.update(outputs(1)), ab):
            with pytest.raises(ValueError, match="read-only"):
                getattr(x, name)[...] = 0.0


def test_empty_states_and_batches_add_nothing():
    state, empty = stream(outputs(300)), stream(outputs(0), first_row=7)
    assert same(state.merge(empty), state)
    assert same(empty.merge(state), state)
    assert empty.merge(empty).n_rows == 0
    assert state.update(np.zeros((0, 2))) is state
    assert not empty.mean.any()
    assert empty.settled() is empty


def test_a_row_counts_once():
    a, b = stream(outputs(300)), stream(outputs(10), first_row=299)
    for x, y in ((a, b), (b, a), (a, a)):
        with pytest.raises(ValueError, match=r"row (299|0) is in both sketches"):
            x.merge(y)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ({"seed": 6}, "recovery"),
        ({"width": 9}, "recovery"),
        ({"depth": 5}, "recovery"),
        ({"tail_depth": 3}, "tail"),
        ({"tail_width": 5}, "tail"),
    ],
)
def test_other_sketches_do_not_merge(sizes, name):
    a, b = stream(outputs(3)), stream(outputs(3), first_row=3, **sizes)
    with pytest.raises(ValueError, match=f"{name} must agree to merge: CountSketch"):
        a.merge(b)
    with pytest.raises(ValueError, match="d_v must agree to merge: 2 and 3"):
        a.merge(stream(outputs(3, 3), first_row=3))


def test_memory_does_not_grow_with_the_rows():
    state = OutputSketch.make(4, depth=3, width=300, seed=0)
    bare = state.nbytes
    assert bare == 8 * 4 * (3 * 300 + 9 * 512 + 1)
    for _ in range(40):
        state = state.update(np.ones((777, 4)))
        assert bare <= state.nbytes < bare + 8 * 4 * state.block_rows
        assert state.pending.base is None or state.pending.base.nbytes <= 8 * 4 * 1077
    assert state.ranges == ((0, 40 * 777),)
    assert state.settled().nbytes == bare


def test_the_two_tables_have_unrelated_places_also_for_neighbouring_seeds():
    states = [OutputSketch.make(1, depth=1, width=16, seed=s, tail_depth=1, tail_width=16)
              for s in range(3)]  # fmt: skip
    places = [sketch.places(np.arange(64))[0] for s in states for sketch in (s.recovery, s.tail)]
    for a, b in itertools.combinations(places, 2):
        assert np.mean(a == b) < 0.3


def test_bad_rows_are_refused_with_their_place_and_change_nothing():
    state = stream(outputs(300))
    Y = outputs(600)
    Y[599, 1] = np.nan
    for wrong, text in (
        (Y, "Input Y contains NaN at row 599, column 1"),
        (np.full((1, 2), np.inf), "Input Y contains infinity"),
        (np.zeros((4, 3)), r"Y must have shape \(n, 2\), got \(4, 3\)"),
        (np.zeros(2), r"Y must have shape \(n, 2\), got \(2,\)"),
    ):
        with pytest.raises(ValueError, match=text):
            state.update(wrong)
    assert same(state, stream(outputs(300)))


def test_sums_beyond_float64_are_an_error_and_not_infinite():
    full = stream(np.full((255, 2), 1e306))
    with pytest.raises(OverflowError, match="leave the range of float64"):
        full.update(np.full((500, 2), 1e306))
    assert full.n_rows == 255
    with pytest.raises(OverflowError, match="leave the range of float64"):
        full.merge(stream(np.full((255, 2), 1e306), first_row=255))
    with pytest.raises(OverflowError, match="row numbers end at"):
        stream(outputs(0), first_row=2**63 - 3).update(outputs(3))


def test_sizes_that_make_no_sense_are_refused_by_name():
    for wrong, text in (
        ({"d_v": 0}, "d_v must be at least 1"),
        ({"first_row": -1}, "first_row must be at least 0, got -1"),
        ({"depth": 2}, "depth must be odd"),
        ({"tail_width": 0}, "width must be at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            OutputSketch.make(**{"d_v": 2, **SMALL, **wrong})
