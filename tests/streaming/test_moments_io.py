"""Saved moments: what no rows could have left is refused, though its digest is valid."""

import tracemalloc

import numpy as np
import pytest

from levsketch import LevsketchFormatError
from levsketch.sketches.inner_product import make_sketch
from levsketch.streaming import serialize
from levsketch.streaming.features import feature_maps
from levsketch.streaming.moments import MomentTensors
from levsketch.streaming.moments_io import array_kinds, from_arrays, to_arrays
from levsketch.streaming.unaligned import UnalignedMoments

RNG = np.random.default_rng(0)
K, VA = RNG.standard_normal((50, 3)), RNG.standard_normal((50, 2))


def summed(degrees, most=1000, scale=1.0):
    maps = feature_maps(3, degrees, most, 0)
    return MomentTensors.empty(maps, np.arange(3.0), 2).update(K * scale, VA)


def unaligned():
    empty = UnalignedMoments.empty(make_sketch("ams", 4, 0), summed([0, 2]).maps, np.zeros(3), 1)
    return empty.update_keys(K).update_values(VA[:, :1]).tensors()


STATES = {
    "exact": summed([0, 1, 2]),
    "one": summed([4]),
    "sketched": summed([0, 1, 3, 4], most=8),
    "scaled": summed([1, 2], scale=[1e100, 1e-100, 0.0]).times(0.3).times(1e-300),
    "merged": summed([0, 1, 2]).merge(summed([0, 1, 2]).update(K, VA)),
    "empty": MomentTensors.empty(feature_maps(3, [0, 3], 5, 0), np.zeros(3), 2),
    "unaligned": unaligned(),
}


def saved(name):
    """Return metadata and arrays as they come out of a file."""
    meta, arrays = to_arrays(STATES[name])
    return serialize.unpack(serialize.pack("x", meta, arrays))[1:]


def bytes_of(state):
    return serialize.pack("x", *to_arrays(state))


@pytest.mark.parametrize("name", STATES)
def test_loaded_moments_are_the_saved_ones_and_go_on_the_same(name):
    state, loaded = STATES[name], from_arrays(*saved(name))
    assert bytes_of(loaded) == bytes_of(state)
    np.testing.assert_array_equal(loaded.contract(K), state.contract(K))
    np.testing.assert_array_equal(loaded.rounding(K), state.rounding(K))
    grown = state.update(2 * K, VA).times(0.5)
    assert bytes_of(loaded.update(2 * K, VA).times(0.5)) == bytes_of(grown)
    assert bytes_of(loaded.merge(state)) == bytes_of(state.merge(loaded))


def test_moments_may_lie_among_other_arrays():
    meta, arrays = to_arrays(STATES["sketched"], "rest_")
    assert set(arrays) == set(array_kinds("rest_"))
    arrays |= {"center": np.zeros(7), "pending": np.zeros((2, 2))}
    assert bytes_of(from_arrays(meta, arrays, "rest_")) == bytes_of(STATES["sketched"])
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays)


ABSURD_META = [
    ("n_rows", [-1, 0, 2**63, 10**30, "5", None, 50.0, True]),
    ("depth", [-1, 2**63, 0.5, None, True]),
    (
        "maps",
        [
            None,
            [],
            {},
            "maps",
            [None],
            [[0]],
            [[0, None, 1]],
            [[0, None], [1, None]],
            [[0, None], [1, None], [1, None]],
            [[1, None], [0, None], [3, 8], [4, 8]],
            [[0, None], [1, None], [3, 8], [4, 9]],
            [[0, None], [1, None], [4, 8], [3, 8]],
            [[0, None], [1, None], [3, 8], [5, 8]],
            [[0, None], [1, None], [3, 8.0], [4, 8]],
            [[0, None], [1, None], [3, 10**30], [4, 8]],
            [[0, None], [1, None], [3, -8], [4, 8]],
            [[0, 1], [1, None], [3, 8], [4, 8]],
            [[0, None], [1, None], [3, 8], [4, None]],
            [[False, None], [True, None], [3, 8], [4, 8]],
            [[0, None], [1, None], [3, 8], [10**9, None]],
            [[0, None], [1, None], [3, 8], [10**9, 8]],
        ],
    ),
]


@pytest.mark.parametrize(
    ("field", "values"), ABSURD_META, ids=lambda x: x if type(x) is str else ""
)
def test_absurd_metadata_is_refused(field, values):
    for value in values:
        meta, arrays = saved("sketched")
        meta[field] = value
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)
    meta, arrays = saved("sketched")
    del meta[field]
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays)


@pytest.mark.parametrize("degree", [4, 20, 21, 10**9])
def test_claims_of_many_monomials_are_refused_before_room_is_made_for_them(degree):
    meta, arrays = saved("one")
    wide = {"center": np.zeros(2000), "key_exponents": np.zeros(2000, np.int64)}
    wide |= {"buckets": np.zeros((0, 2000), np.int64), "negative": np.zeros((0, 2000), np.bool_)}
    meta["maps"] = [[degree, None]]
    tracemalloc.start()
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays | wide)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_degrees_without_end_are_refused_where_each_has_one_monomial():
    maps = feature_maps(1, [4], 5, 0)
    meta, arrays = to_arrays(MomentTensors.empty(maps, np.zeros(1), 2).update(K[:, :1], VA))
    assert from_arrays(meta, arrays).degrees == (4,)
    for degree in (21, 10**9, 10**30):
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta | {"maps": [[degree, None]]}, arrays)


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
        ("exact", "tensors", (3, 1), 1e9),  # more than its lengths allow
        ("exact", "tensors", (0, 0), -1e9),
        ("exact", "lengths", (1, 0), 0.0),
        ("exact", "lengths", (1, 0), -0.5),
        ("exact", "key_exponents", 0, 2000),
        ("exact", "key_exponents", 0, -(2**63)),
        ("exact", "value_exponents", 0, 2**62),
        ("exact", "value_exponents", 0, -(2**63)),
        ("empty", "value_exponents", 0, 1),
        ("empty", "lengths", (0, 0), 1.0),
        ("empty", "tensors", (0, 0), 1.0),
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
