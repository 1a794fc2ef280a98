"""Saved moments of keys and values: read back the same, and refused where no rows left them."""

import adversary
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levsketch import LevsketchFormatError
from levsketch.streaming import serialize
from levsketch.streaming.key_value_moments import KeyValueMoments
from levsketch.streaming.key_value_moments_io import array_kinds, from_arrays, to_arrays

RNG = np.random.default_rng(0)
K, V = RNG.standard_normal((200, 3)), RNG.standard_normal((200, 2)) + 5.0
WHOLE = KeyValueMoments.empty(3, 2).add(K, V, RNG.random(200))
STATES = {
    "whole": WHOLE,
    "empty": KeyValueMoments.empty(3, 2),
    "one row": KeyValueMoments.empty(3, 2).add(K[:1], V[:1]),
    "zero": KeyValueMoments.empty(3, 2).add(np.zeros((4, 3)), np.zeros((4, 2))),
    "merged": WHOLE.merge(WHOLE, 1e6 * K[0]).times(0.25),
    "moved": WHOLE.moved(2.0**40, K[0], 0.5, 1e9 * V[0], 4.0),
    "no values": KeyValueMoments.empty(3, 0).add(K, np.zeros((200, 0))),
    "no ellipsoid": KeyValueMoments.empty(3, 2)
    .add(1e-160 * K, V)
    .moved(2.0**-20, K[0], 1, V[0], 1),
}


def saved(moments, prefix=""):
    """Return metadata and arrays as they come out of a file."""
    packed = serialize.pack("x", *to_arrays(moments, prefix))
    return serialize.unpack(packed)[1:]


def bytes_of(moments):
    return serialize.pack("x", *to_arrays(moments))


@pytest.mark.parametrize("name", STATES)
def test_loaded_moments_are_the_saved_ones_and_go_on_the_same(name):
    state = STATES[name]
    loaded = from_arrays(*saved(state))
    assert bytes_of(loaded) == bytes_of(state)
    more = RNG.standard_normal((50, 3)), RNG.standard_normal((50, state.d_v))
    assert bytes_of(loaded.add(*more)) == bytes_of(state.add(*more))
    assert bytes_of(loaded.merge(state, K[1])) == bytes_of(state.merge(loaded, K[1]))
    for one, other in zip(loaded.closure(K), state.closure(K), strict=True):
        np.testing.assert_array_equal(one, other)


def test_arrays_may_lie_among_others():
    meta, arrays = saved(WHOLE, "rest_")
    assert set(arrays) == set(array_kinds("rest_"))
    loaded = from_arrays(meta, arrays | {"other": np.zeros(3)}, "rest_")
    assert bytes_of(loaded) == bytes_of(WHOLE)


@given(adversary.rows(m=1), st.booleans())
def test_whatever_rows_leave_can_be_read(rows, far):
    moments = KeyValueMoments.empty(rows.K.shape[1], rows.V.shape[1])
    shift = np.full(moments.d, 1e3 * np.abs(rows.K).max() if far else 0.0)
    for part in np.split(np.arange(len(rows.w)), rows.cuts):
        moments = moments.times(0.5).add(rows.K[part], rows.V[part], rows.w[part])
        moments = KeyValueMoments.empty(moments.d, moments.d_v).merge(moments, shift)
    assert bytes_of(from_arrays(*saved(moments))) == bytes_of(moments)


NAN, INF = float("nan"), float("inf")
ABSURD_META = [
    ("weight", [-1.0, 0.0, NAN, INF, 1, "1", None, True, 1e-30, 10**400]),
    ("count", [-1, 0, 2**63, 5.0, "5", None, True]),
    ("roundings", [-1, 0, 2**63, 5.0, "5", None, True]),
    ("radius", [-1.0, 0.0, 1e-3, NAN, INF, "1", None, 1]),
    ("value_radius", [-1.0, 0.0, NAN, INF, "1", None, 1]),
    ("reach", [[], [1.0], [1.0, 2.0], 3.0, [-1.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]),
    ("reach", [[NAN, 1.0, 1.0], [1.0, INF, 1.0], [1, 2, 1], ["1", "2", "1"], "abc", {}]),
]


@pytest.mark.parametrize(("field", "values"), ABSURD_META, ids=str)
def test_absurd_metadata_is_refused(field, values):
    for value in values:
        meta, arrays = saved(WHOLE)
        meta[field] = value
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)
        del meta[field]
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)


def test_what_no_rows_cannot_have_left_is_refused():
    for field in ("weight", "roundings", "radius", "reach"):
        meta, arrays = saved(STATES["empty"])
        meta[field] = saved(WHOLE)[0][field]
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)
    for name in set(array_kinds()) - {"factor"}:
        meta, arrays = saved(STATES["empty"])
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays | {name: saved(WHOLE)[1][name]})


def spoilt_arrays():
    """Yield copies of saved arrays with one of them absurd, and what was done to it."""
    _, arrays = saved(WHOLE)
    for key, array in arrays.items():
        yield f"{key} is missing", {k: v for k, v in arrays.items() if k != key}
        shapes = [(*array.shape, 1), array.shape[:-1]]
        for axis, size in enumerate(array.shape):
            shapes += [(*array.shape[:axis], n, *array.shape[axis + 1 :]) for n in (size + 1, 0)]
        for shape in shapes:
            yield f"{key} of shape {shape}", arrays | {key: np.resize(array, shape)}
        for dtype in (np.float32, np.int64, np.bool_):
            yield f"{key} of {dtype.__name__}", arrays | {key: array.astype(dtype)}
        for value in (np.nan, np.inf, -np.inf):
            bad = array.copy()
            bad.flat[-1] = value
            yield f"{key} with {value}", arrays | {key: bad}
    for key, change in [
        ("key_square", lambda S: S + np.triu(np.full((3, 3), 1e-9), 1)),  # not symmetric
        ("key_square", lambda S: -S),
        ("key_square", lambda S: S - 2 * S[0, 0] * np.eye(3)[0] * np.eye(3)[0][:, None]),
        ("key_square", lambda S: S + 100 * np.max(S) * (1 - np.eye(3))),  # indefinite
        ("key_square", lambda S: 2 * S),  # more than the magnitude
        ("key_sum", lambda s: s + 1e3),
        ("key_value", lambda S: S + 1e4),
        ("value_sum", lambda s: -s),
        ("magnitude", lambda m: -m),
        ("magnitude", lambda m: m / 2),
        ("key_low", lambda x: x + 100.0),
        ("key_high", lambda x: x - 100.0),
        ("key_low", lambda x: x - 100.0),
        ("value_low", lambda x: x + 100.0),
        ("value_high", lambda x: x - 100.0),
        ("value_magnitude", lambda x: -x),
        ("factor", lambda L: L.T),
        ("factor", lambda L: -L),
        ("factor", lambda L: 0 * L),
    ]:
        yield f"{key} changed", arrays | {key: change(arrays[key].copy())}


def test_absurd_arrays_are_refused():
    accepted = []
    for what, arrays in spoilt_arrays():
        try:
            from_arrays(saved(WHOLE)[0], arrays)
        except LevsketchFormatError:
            continue
        accepted.append(what)
    assert accepted == []


def test_sums_that_overflowed_are_not_read():
    huge = KeyValueMoments.empty(3, 2).add(1e160 * K, V)
    with pytest.raises(LevsketchFormatError):
        from_arrays(*to_arrays(huge))
