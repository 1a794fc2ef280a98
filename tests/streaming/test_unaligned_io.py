"""Saved moments of two streams: what none could have left is refused."""

import numpy as np
import pytest

from levsketch import LevsketchFormatError
from levsketch.sketches.inner_product import make_sketch
from levsketch.streaming import serialize
from levsketch.streaming.features import feature_maps
from levsketch.streaming.unaligned import UnalignedMoments
from levsketch.streaming.unaligned_io import array_kinds, from_arrays, to_arrays

RNG = np.random.default_rng(0)
K, V = RNG.standard_normal((50, 3)), RNG.standard_normal((50, 2))


def empty(name, degrees=(0, 1, 2), most=1000, first_row=0):
    maps = feature_maps(3, degrees, most, 0)
    return UnalignedMoments.empty(make_sketch(name, 4, 7), maps, np.arange(3.0), 2, first_row)


STATES = {
    "ams": empty("ams").update_keys(K).update_values(V),
    "sketched": empty("gaussian", [0, 1, 3, 4], 8, 9).update_keys(K).update_values(V),
    "scaled": empty("countsketch").update_keys(K * [1e100, 1e-100, 0]).update_values(V * 1e-200),
    "keys": empty("ams", [2]).update_keys(K),
    "values": empty("ams").update_values(V),
    "empty": empty("ams", first_row=2**40),
}


def saved(name):
    """Return metadata and arrays as they come out of a file."""
    meta, arrays = to_arrays(STATES[name])
    return serialize.unpack(serialize.pack("x", meta, arrays))[1:]


def bytes_of(state):
    return serialize.pack("x", *to_arrays(state))


@pytest.mark.parametrize("name", STATES)
def test_a_loaded_state_is_the_saved_one_and_goes_on_the_same(name):
    state, loaded = STATES[name], from_arrays(*saved(name))
    assert bytes_of(loaded) == bytes_of(state)
    grown = state.update_keys(2 * K).update_values(2 * V)
    assert bytes_of(loaded.update_keys(2 * K).update_values(2 * V)) == bytes_of(grown)
    more = UnalignedMoments.empty(
        state.sketch, state.maps, state.center, 2, state.key_rows[1]
    ).update_keys(K)
    assert bytes_of(loaded.merge(more)) == bytes_of(state.merge(more))
    if state.key_rows == state.value_rows:
        np.testing.assert_array_equal(loaded.tensors().contract(K), state.tensors().contract(K))


def test_a_state_may_lie_among_other_arrays():
    meta, arrays = to_arrays(STATES["sketched"], "rest_")
    assert set(arrays) == set(array_kinds("rest_"))
    arrays |= {"center": np.zeros(7), "pending": np.zeros((2, 2))}
    assert bytes_of(from_arrays(meta, arrays, "rest_")) == bytes_of(STATES["sketched"])
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays)


ABSURD_META = [
    ("maps", [None, [], [[0, None]], [[0, None], [1, None], [3, 8], [4, 10**30]], [[2]]]),
    (
        "sketch",
        [
            *(None, [], ["ams", 4], ["md5", 4, 7], ["ams", 5, 7], ["ams", 10**30, 7]),
            *(["ams", 4.0, 7], ["ams", 4, None], [None, 4, 7], ["ams", True, 7], ["ams", 0, 7]),
        ],
    ),
    *(
        (rows, [None, [], [9], [60, 9], [-1, 50], [9, 2**63], [9.0, 59], ["9", "59"], [9, 9]])
        for rows in ("key_rows", "value_rows")
    ),
]


@pytest.mark.parametrize(("field", "values"), ABSURD_META, ids=[x for x, _ in ABSURD_META])
def test_absurd_metadata_is_refused(field, values):
    meta, arrays = saved("sketched")
    from_arrays(meta, arrays)
    for value in values:
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta | {field: value}, arrays)
    del meta[field]
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays)


def spoilt_arrays(name):
    """Yield copies of saved arrays with one of them absurd, and what was done to it."""
    meta, arrays = saved(name)
    for key, array in arrays.items():
        yield f"{key} missing", meta, {k: v for k, v in arrays.items() if k != key}
        shapes = [(*array.shape, 1), array.shape[:-1]]
        for axis, size in enumerate(array.shape):
            others = [size + 1] + [size - 1] * (size > 0)
            shapes += [(*array.shape[:axis], n, *array.shape[axis + 1 :]) for n in others]
        for shape in shapes:
            yield f"{key} of shape {shape}", meta, arrays | {key: np.resize(array, shape)}
        for dtype in (np.float64, np.int64, np.uint64, np.bool_):
            if dtype != array.dtype:
                other = np.clip(np.abs(array.astype(float)), 0, 1).astype(dtype)
                yield f"{key} of {dtype.__name__}", meta, arrays | {key: other}
        if array.dtype == np.float64 and array.size:
            for value in (np.nan, np.inf, -np.inf):
                bad = array.copy()
                bad.flat[-1] = value
                yield f"{key} with {value}", meta, arrays | {key: bad}


@pytest.mark.parametrize("name", STATES)
def test_absurd_arrays_are_refused(name):
    for what, meta, arrays in spoilt_arrays(name):
        if what.startswith(("buckets of shape (0,", "negative of shape (0,")):
            continue  # nothing, in another shape
        try:
            from_arrays(meta, arrays)
        except LevsketchFormatError:
            continue
        raise AssertionError(f"{what} was accepted")


@pytest.mark.parametrize(
    ("name", "key", "index", "value"),
    [
        ("ams", "lengths", 0, -1.0),
        ("ams", "key_exponents", 0, 2000),
        ("ams", "value_exponents", 0, 2**62),
        ("values", "features", (0, 0), 1.0),
        ("values", "ones", 0, 1.0),
        ("values", "lengths", 0, 1.0),
        ("values", "key_exponents", 0, 1),
        ("keys", "values", (0, 0), 1.0),
        ("keys", "value_exponents", 0, 1),
        ("sketched", "buckets", (0, 0), -1),
        ("sketched", "buckets", (6, 2), 8),
    ],
)
def test_values_that_no_rows_leave_are_refused(name, key, index, value):
    meta, arrays = saved(name)
    spoilt = {k: v.copy() for k, v in arrays.items()}
    spoilt[key][index] = value
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, spoilt)
