"""Saved streams: what no stream could have left is refused, though its digest is valid."""

import numpy as np
import pytest
from strategies import gaussian, ill_conditioned, low_rank, make, scaled_columns

from levsketch import LevsketchFormatError
from levsketch.backends import CpuBackend
from levsketch.streaming import serialize
from levsketch.streaming.keys import KeyStream, Policy
from levsketch.streaming.keys_io import from_arrays, to_arrays

CPU = CpuBackend()


def stream(K, **params):
    policy = Policy(
        **({"eps": 0.05, "n_keys": None, "min_keys": 1, "intercept": False, "ridge": 0.0} | params)
    )
    return KeyStream.empty(policy, K.shape[1]).update(CPU, K)


RNG = np.random.default_rng(0)
# One of each sort: Gram matrices, R factors, both; with and without a prefix; low rank;
# exponents that do not fold; an intercept.
STATES = {
    "gram": stream(RNG.standard_normal((5 * 1024 + 100, 3))),
    "qr": stream(ill_conditioned(RNG, 5 * 1024 + 100, 3, 1e10)),
    "both": stream(
        np.concatenate(
            [RNG.standard_normal((2048, 2)), 1e8 * np.ones((2050, 1)) * RNG.random((2050, 2))]
        )
    ),
    "pending": stream(RNG.standard_normal((10, 3))),
    "low rank": stream(make(low_rank, 3, 3000, 5).K),
    "far exponents": stream(make(scaled_columns, 4, 3000, 3).K),
    "intercept": stream(make(gaussian, 5, 2100, 2).K, intercept=True, ridge=0.5, n_keys=3),
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
    more = RNG.standard_normal((3000, state.n_features))
    assert bytes_of(loaded.update(CPU, more)) == bytes_of(state.update(CPU, more))
    np.testing.assert_array_equal(loaded.selection.scores, state.selection.scores)
    np.testing.assert_array_equal(loaded.selection.selected, state.selection.selected)


ABSURD_META = [
    ("n_features", [0, -1, 2, 4, 10**5, 10**9, 2**63, 3.0, "3", None, True, [3]]),
    ("n_seen", [-1, 0, 1, 99, 2**63, 10**30, "5", None, 5220.5]),
    ("n_blocks", [-5, -1, 0, 10**6, 10**30, "5", None, 5.5]),
    ("gram_error", [-1e-9, "0", None, float("nan"), float("inf"), 10**400]),
    ("gram_levels", [[], [1], [0, 2], [2, 2], [-1, -2], [2.0, 0.0], None, "20", [10**9, 0]]),
    ("factor_levels", [[0], None, ["0"]]),
    ("dropped_bound", [-0.1, 1.1, "0", None, float("nan")]),
    ("floor", [-0.1, 1.1, "0", None, float("nan")]),
    ("kept", [-1, 10**18, "3", None, 2.5]),
    ("sound", [None, "yes", 1, 0.5]),
    ("dtype", ["", "object", "float99", "O", 3, None, "datetime64[s]", "complex128", "U5"]),
    ("policy", [None, {}, {"eps": 0.05}, [1, 2]]),
    ("prefix", [None, {}, 3]),
]
ABSURD_PREFIX = [
    ("triangular", ["yes", None, 2]),
    ("rank", [-1, 4, "3", None, 2.5]),
    ("condition", [0.5, -1.0, "1", float("nan")]),
    ("error", [-5.0, -1e-300, "0", float("nan")]),
]


@pytest.mark.parametrize(
    ("field", "values"), ABSURD_META, ids=lambda x: x if isinstance(x, str) else ""
)
def test_absurd_metadata_is_refused(field, values):
    for value in values:
        meta, arrays = saved("gram")
        meta[field] = value
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)
        del meta[field]
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)


@pytest.mark.parametrize(
    ("field", "values"), ABSURD_PREFIX, ids=lambda x: x if isinstance(x, str) else ""
)
def test_absurd_prefixes_are_refused(field, values):
    for value in values:
        meta, arrays = saved("gram")
        meta["prefix"] |= {field: value}
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)


def spoilt_arrays(name):
    """Yield copies of saved arrays with one of them absurd, and what was done to it."""
    meta, arrays = saved(name)
    for key, array in arrays.items():
        yield f"{key} missing", meta, {k: v for k, v in arrays.items() if k != key}
        shapes = [(*array.shape, 1), array.shape[:-1]]
        shapes += [
            tuple(s + 1 if i == axis else s for i, s in enumerate(array.shape))
            for axis in range(array.ndim)
        ]
        shapes += [
            tuple(s - 1 if i == axis else s for i, s in enumerate(array.shape))
            for axis in range(array.ndim)
            if array.shape[axis]
        ]
        for shape in shapes:
            yield f"{key} of shape {shape}", meta, arrays | {key: np.resize(array, shape)}
        for dtype in (np.float64, np.int64, np.uint64, np.uint8, np.bool_):
            if dtype != array.dtype:
                yield (
                    f"{key} of {dtype.__name__}",
                    meta,
                    arrays | {key: np.clip(np.abs(array), 0, 9).astype(dtype)},
                )
        if array.dtype == np.float64 and array.size:
            for value in (np.nan, np.inf, -np.inf):
                bad = array.copy()
                bad.flat[-1] = value
                yield f"{key} with {value}", meta, arrays | {key: bad}


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
            grown = state.update(CPU, np.ones((1500, state.n_features)))
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
        ("qr", "factors", (0, 2, 0), 1e-300),  # below the diagonal
        ("gram", "grams", (0, 0, 1), 123.0),  # not symmetric
        ("gram", "grams", (0, 1, 1), -1.0),  # not positive
        ("qr", "exponents", (0, 0), 10**6),
        ("qr", "exponents", (0, 0), -(2**63)),
        ("gram", "prefix_exponents", 0, 10**6),
        ("gram", "prefix_exponents", 0, -(10**6)),
        ("gram", "prefix_matrix", (2, 0), 1.0),  # below the diagonal, yet "triangular"
        ("gram", "prefix_active", 0, False),
        ("gram", "candidate_index", 0, -1),
        ("gram", "candidate_index", 0, 10**9),
        ("gram", "candidate_index", -1, 5 * 1024),  # a pending row
        ("gram", "candidate_index", 1, 0),
        ("gram", "space_basis", (1, 0), 7),
        ("gram", "space_pivots", 0, 0),
    ],
)
def test_values_that_no_stream_leaves_are_refused(name, key, index, value):
    meta, arrays = saved(name)
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, change(arrays, key, index, value))
