"""Saved streams for any f: what none could have left is refused, though its digest is valid."""

import tracemalloc

import numpy as np
import pytest
from strategies import ill_conditioned, low_rank, make

from levsketch import LevsketchFormatError
from levsketch.algorithms.lp_streams import refined_stream
from levsketch.backends import CpuBackend
from levsketch.functions import Huber
from levsketch.streaming import serialize
from levsketch.streaming.lp_keys import LpStream
from levsketch.streaming.lp_keys_io import from_arrays, to_arrays
from levsketch.streaming.lp_policy import LpPolicy

CPU = CpuBackend()
DEFAULTS = {
    "p": 4.0,
    "eps": 0.05,
    "function": None,
    "bound": "auto",
    "refine": False,
    "delta": 0.3,
    "failure_probability": 0.01,
    "normaliser": "auto",
    "sketch_size": 16,
    "max_memory": 1 << 30,
    "n_keys": None,
    "min_keys": 1,
    "random_state": 0,
}


def stream(K, **params):
    return LpStream.empty(LpPolicy(**(DEFAULTS | params)), K.shape[1]).update(CPU, K)


def refined(K, **params):
    return refined_stream(CPU, stream(K, refine=True, **params), K)


RNG = np.random.default_rng(0)
K = RNG.standard_normal((3 * 1024 + 100, 3))
# One of each sort: Gram matrices and R factors of lifted rows; samples; a function; a sketch
# of fewer and of more columns than its rows span; intervals; no prefix; exact rank below d.
STATES = {
    "lift gram": stream(K),
    "lift qr": stream(ill_conditioned(RNG, 3 * 1024 + 100, 3, 1e6)),
    "p=1": stream(K, p=1.0),
    "p=3": stream(K, p=3.0, n_keys=2),
    "huber": stream(K, function=Huber().spec()),
    "sketch": stream(K, normaliser="tensorsketch", sketch_size=8),
    "wide sketch": stream(K[:, :2], normaliser="tensorsketch", sketch_size=40),
    "refined": refined(K, p=3.0, eps=0.01),
    "refined p=2": refined(K, p=2.0, normaliser=None, eps=0.005),
    "pending": stream(K[:10]),
    "low rank": stream(make(low_rank, 3, 3000, 4).K),
    "merged": stream(K[:100]).merge(CPU, stream(K[:50])),
    "merged blocks": stream(K[:1500]).merge(CPU, stream(K)),
}


def saved(name):
    """Return metadata and arrays as they come out of a file."""
    meta, arrays = to_arrays(STATES[name])
    return serialize.unpack(serialize.pack("x", meta, arrays))[1:]


def bytes_of(state):
    return serialize.pack("x", *to_arrays(state))


@pytest.mark.parametrize("name", STATES)
def test_a_loaded_stream_is_the_saved_one_and_goes_on_the_same(name):
    state = STATES[name]
    loaded = from_arrays(*saved(name))
    assert bytes_of(loaded) == bytes_of(state)
    assert loaded.policy == state.policy
    more = RNG.standard_normal((3000, state.d))
    assert bytes_of(loaded.update(CPU, more)) == bytes_of(state.update(CPU, more))
    twice = state.merge(CPU, state)
    assert bytes_of(loaded.merge(CPU, loaded)) == bytes_of(twice)
    assert bytes_of(from_arrays(*to_arrays(twice))) == bytes_of(twice)
    for field in ("scores", "selected", "lower", "upper", "sample", "index"):
        np.testing.assert_array_equal(
            getattr(loaded.selection, field), getattr(state.selection, field)
        )
    assert loaded.selection.certified == state.selection.certified
    assert loaded.selection.unselected_bound == state.selection.unselected_bound


NAN, INF = float("nan"), float("inf")
ABSURD_META = [
    ("n_seen", [-1, 0, 1, 99, 2**63, 10**30, "5", None, 3172.5, True]),
    ("n_blocks", [-5, -1, 0, 10**6, 10**30, "5", None, 5.5]),
    ("gram_error", [-1e-9, 2.0, "0", None, NAN, INF, 10**400]),
    ("gram_levels", [[], [0, 2], [2, 2], [-1, -2], [2.0, 0.0], None, "20", [10**9]]),
    ("factor_levels", [[], [3], [1, 0], None, ["0"]]),
    ("level", [-1.0, "1", None, NAN, INF, 1]),
    ("prefix_level", [-1.0, "1", None, NAN, INF]),
    ("weights_sound", [None, "yes", 1, 0.5]),
    ("dropped_bound", [-0.1, 1.1, "0", None, NAN]),
    ("floor", [-1.1, 1.1, "0", None, NAN]),
    ("kept", [-1, 10**18, "3", None, 2.5]),
    ("pool_sound", [None, "yes", 1, 0.5]),
    ("refined_at", [-1, 2**63, 1.0, None]),
    ("dtype", ["", "object", "float99", "O", 3, None, "datetime64[s]", "complex128", "U5"]),
    ("policy", [None, {}, {"p": 4.0}, [1, 2], DEFAULTS | {"more": 1}]),
    ("prefix", [None, {}, 3]),
    ("lift", [None, {}, 3, [1]]),
]
ABSURD_PREFIX = [
    ("triangular", ["yes", None, 2]),
    ("rank", [-1, 7, 10**6, "3", None, 2.5]),
    ("condition", [0.5, -1.0, "1", NAN]),
    ("error", [-5.0, -1e-300, "0", NAN]),
]
ABSURD_POLICY = [
    ("p", [0.0, -1.0, NAN, INF, "4", None, 3, 3.0, 6.0]),
    ("eps", ["x", None, 1, [0.05]]),
    ("function", ["nope", ["nope", {}], ["huber", {"threshold": -1}], ["huber"], 3, {}]),
    ("bound", [None, 1]),
    ("refine", [1, None, "yes"]),
    ("delta", ["x", None, 1]),
    ("normaliser", ["sample", None, 3, True, "tensorsketch"]),
    ("sketch_size", [0, -1, 2.5, "8", None, True]),
    ("max_memory", [1, "1GiB", None, 2.5]),
    ("min_keys", ["1", None, 0.5]),
    ("random_state", [-1, None, "0", 0.5]),
]


def names(x):
    return x if isinstance(x, str) else ""


@pytest.mark.parametrize(("field", "values"), ABSURD_META, ids=names)
def test_absurd_metadata_is_refused(field, values):
    for value in values:
        meta, arrays = saved("lift gram")
        meta[field] = value
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)
        del meta[field]
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)


@pytest.mark.parametrize(("field", "values"), ABSURD_META[1:4], ids=names)
def test_absurd_metadata_of_the_lift_is_refused(field, values):
    for value in values:
        meta, arrays = saved("lift gram")
        meta["lift"] |= {field: value}
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)


@pytest.mark.parametrize("part", ["own", "lift"])
@pytest.mark.parametrize(("field", "values"), ABSURD_PREFIX, ids=names)
def test_absurd_prefixes_are_refused(part, field, values):
    for value in values:
        meta, arrays = saved("lift gram")
        (meta if part == "own" else meta["lift"])["prefix"] |= {field: value}
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)


@pytest.mark.parametrize(("field", "values"), ABSURD_POLICY, ids=names)
def test_absurd_policies_are_refused(field, values):
    for value in values:
        meta, arrays = saved("lift gram")
        meta["policy"] |= {field: value}
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)
        meta["policy"].pop(field)
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)


@pytest.mark.parametrize(
    "claim",
    [{"p": 2e6}, {"p": 2e300}, {"normaliser": "tensorsketch", "sketch_size": 10**5}],
    ids=str,
)
@pytest.mark.parametrize("name", ["lift gram", "pending"])
def test_lifts_of_any_claimed_size_are_refused_before_room_is_made_for_them(name, claim):
    meta, arrays = saved(name)
    meta["policy"] |= claim | {"max_memory": 10**40}
    tracemalloc.start()
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


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
        for dtype in (np.float64, np.int64, np.uint64, np.uint8, np.bool_):
            if dtype != array.dtype:
                other = np.clip(np.abs(array), 0, 9).astype(dtype)
                yield f"{key} of {dtype.__name__}", meta, arrays | {key: other}
        if array.dtype == np.float64 and array.size:
            for value in (np.nan, np.inf, -np.inf):
                bad = array.copy()
                bad.flat[-1] = value
                yield f"{key} with {value}", meta, arrays | {key: bad}
    yield "an array more with", meta, arrays | {"more": np.zeros(3)}


@pytest.mark.parametrize("name", STATES)
def test_absurd_arrays_are_refused_or_harmless(name):
    for what, meta, arrays in spoilt_arrays(name):
        try:
            state = from_arrays(meta, arrays)
        except LevsketchFormatError:
            continue
        # an empty array of another shape, say, may pass: then all must work, and save again
        assert "with" not in what, f"{what} was accepted"
        assert "missing" not in what, f"{what} was accepted"
        try:
            grown = state.update(CPU, np.ones((1500, state.d)))
            scores = from_arrays(*to_arrays(grown)).selection.scores
        except Exception as error:
            raise AssertionError(f"{what} was accepted and failed later") from error
        assert scores.min() >= 0, what


def change(arrays, key, index, value):
    spoilt = {k: v.copy() for k, v in arrays.items()}
    spoilt[key][index] = value
    return spoilt


@pytest.mark.parametrize(
    ("name", "key", "index", "value"),
    [
        ("lift gram", "grams", (0, 0, 1), 123.0),  # not symmetric
        ("lift gram", "lift_grams", (0, 1, 1), -1.0),  # not positive
        ("lift qr", "lift_factors", (0, 2, 0), 1e-300),  # below the diagonal
        ("lift qr", "lift_exponents", (0, 0), 10**6),
        ("lift gram", "lift_column_exponents", 0, 2000),
        ("lift gram", "lift_column_exponents", 0, -(2**63)),
        ("lift gram", "lift_prefix_exponents", 0, 10**6),
        ("lift gram", "lift_prefix_active", 0, False),
        ("lift gram", "prefix_matrix", (2, 0), 1.0),  # below the diagonal, yet "triangular"
        ("lift gram", "pool_index", 0, -1),
        ("lift gram", "pool_index", -1, 3 * 1024),  # a pending row
        ("lift gram", "pool_index", 1, 0),
        ("lift gram", "pool_weights", 0, -1.0),
        ("lift gram", "pool_bounds", 0, 1.5),
        ("lift gram", "pool_bounds", 0, -0.1),
        ("p=3", "pool_tickets", 0, 0.0),
        ("p=3", "pool_tickets", 0, 1.5),
        ("refined", "refined_numbers", 0, -1),
        ("refined", "refined_numbers", -1, 10**6),
        ("refined", "refined_intervals", (0, 1), 1.5),
        ("refined", "refined_intervals", (0, 0), -0.5),
        ("refined", "refined_intervals", (0, 0), 0.9999),  # above the upper end
        ("lift gram", "space_basis", (1, 0), 7),
        ("lift gram", "space_pivots", 0, 0),
    ],
)
def test_values_that_no_stream_leaves_are_refused(name, key, index, value):
    meta, arrays = saved(name)
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, change(arrays, key, index, value))
