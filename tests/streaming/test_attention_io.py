"""Saved attention streams: what none could have left is refused, though its digest is valid."""

import tracemalloc

import numpy as np
import pytest
from garbled import holders
from sketching import drawn

from levsketch import LevsketchFormatError
from levsketch.algorithms import attention_sketch
from levsketch.backends.cpu import CpuBackend
from levsketch.streaming import serialize
from levsketch.streaming.attention import AttentionPolicy, AttentionStream
from levsketch.streaming.attention_io import from_arrays, to_arrays
from levsketch.streaming.query_sample import query_sample

CPU = CpuBackend()


def stream(n, n_keys=24, residual="auto", decay=1.0, max_memory=None, d=3, d_v=2, known=False, w=1):
    data = drawn(0, n, d, d_v)
    policy = AttentionPolicy(n_keys, max_memory, residual, decay, "sqrt_d", 0)
    sample = query_sample(data.Q if known else None, d**-0.5)
    rows = np.concatenate([data.K, data.V, np.full((n, 1), float(w))], axis=1)
    return AttentionStream.empty(policy, d, d_v, sample).update(CPU, rows)


# One of each sort: models on trial (up to four) and chosen, with and without probes, certificates,
# exact keys and sample queries; no block yet, no weight at all.
STATES = {
    "trial": stream(1500),
    "chosen": stream(4500),
    "four models": stream(1500, d=8, d_v=8, n_keys=60),
    "two trends": stream(1500, d=8, d_v=8, n_keys=17),
    "embedding": stream(2000, 60, "embedding", known=True),
    "closure": stream(2000, 24, "closure"),
    "polynomial": stream(2000, 60, "polynomial"),
    "memory": stream(2000, max_memory=3000, decay=0.99),
    "waiting": stream(20, known=True),
    "no weight": stream(1500, 60, w=0),
    "whole block": stream(1024),
    "one landmark": stream(1500, 1),
}


def saved(name):
    """Return metadata and arrays as they come out of a file."""
    meta, arrays = to_arrays(STATES[name])
    return serialize.unpack(serialize.pack("x", meta, arrays))[1:]


def bytes_of(state):
    return serialize.pack("x", *to_arrays(state))


def test_states_are_of_all_sorts():
    counts = {name: len(state.models) for name, state in STATES.items()}
    assert counts["four models"] >= 3
    assert counts["two trends"] >= 3
    assert counts["chosen"] == counts["closure"] == counts["polynomial"] == 1
    assert counts["waiting"] == 0
    assert any(len(model.exact) for model in STATES["closure"].models)
    assert STATES["two trends"].models[0].moments is None
    assert STATES["embedding"].models[0].moments is not None


@pytest.mark.parametrize("name", STATES)
def test_a_loaded_stream_is_the_saved_one_and_goes_on_the_same(name):
    state = STATES[name]
    loaded = from_arrays(*saved(name))
    assert bytes_of(loaded) == bytes_of(state)
    assert loaded.nbytes == state.nbytes
    more = drawn(1, 3000, state.n_features, state.n_outputs)
    rows = np.concatenate([more.K, more.V, np.ones((3000, 1))], axis=1)
    grown, expected = loaded.update(CPU, rows), state.update(CPU, rows)
    assert bytes_of(grown) == bytes_of(expected)
    np.testing.assert_array_equal(
        attention_sketch.outputs(grown, more.Q), attention_sketch.outputs(expected, more.Q)
    )
    assert bytes_of(loaded.merge(CPU, state)) == bytes_of(state.merge(CPU, loaded))


HUGE = [10**9, 2**40, 2**63, 10**30]
ABSURD_META = [
    ("n_features", [0, -1, 2, 4, *HUGE, 3.0, "3", None, True, [3]]),
    ("n_outputs", [0, -1, 1, 3, *HUGE, 2.0, "2", None]),
    ("n_seen", [-1, 0, 1, 99, 2**63, 10**30, "5", None, 4500.5]),
    ("dtype", ["", "object", "float99", "O", 3, None, "datetime64[s]", "complex128", "U5"]),
    ("policy", [None, {}, {"n_keys": 24}, [1, 2], "x"]),
    ("frame", [None, {}, 3, [1]]),
    ("models", [None, {}, [], 3, [None], [{}], ["x"], [[]]]),
    ("sampled", [True, None, 0, "no"]),
]
ABSURD_POLICY = [
    ("n_keys", [0, -1, 5, 100, 24.0, "24", None, True, 10**400]),
    ("max_memory", [0, -1, 100, "1MB", 2.5, True]),
    ("residual", ["none", "", None, 1, [], {}]),
    ("decay", [0.0, -0.5, 1.5, "1", None, 1, float("nan")]),
    ("scale", [0.0, -1.0, "sqrt", None, 1, True, float("nan"), float("inf"), 1e101]),
    ("random_state", [-1, "0", None, 0.0, True]),
    ("other", [1]),
]
ABSURD_FRAME = [
    (f"{name}_power", [5000, -5000, "0", None, 0.5, True, 10**30])
    for name in ("key", "value", "weight", "spread")
]
ABSURD_MODEL = [
    ("capacity", [-1, 10**18, "3", None, 2.5, 99]),
    ("threshold", [-1.0, "0", None, 1, float("nan"), float("inf")]),
    ("rows", [-1, 0, 10**18, 13, "3", None]),
    ("mass", [-1.0, 0.0, "0", None, 1, float("nan"), float("inf"), 1e301]),
    ("landmarks", [None, {}, 3, "x"]),
    ("moments", [{}, 3, "x"]),
    ("polynomial", [True, None, 0, "no"]),
]
ABSURD_LANDMARKS = [
    ("size", [0, -1, 1, 10**18, "3", None, 2.5]),
    ("order", [-1, 0, 2, 3, "1", None, True]),
]
META = [
    *(("chosen", lambda meta: meta, *case) for case in ABSURD_META),
    *(("chosen", lambda meta: meta["policy"], *case) for case in ABSURD_POLICY),
    *(("closure", lambda meta: meta["policy"], *case) for case in ABSURD_POLICY),
    *(("chosen", lambda meta: meta["frame"], *case) for case in ABSURD_FRAME),
    *(("chosen", lambda meta: meta["models"][0], *case) for case in ABSURD_MODEL),
    *(("chosen", lambda meta: meta["models"][0]["landmarks"], *case) for case in ABSURD_LANDMARKS),
]


@pytest.mark.parametrize(
    ("name", "where", "field", "values"), META, ids=[f"{case[0]} {case[2]}" for case in META]
)
def test_absurd_metadata_is_refused(name, where, field, values):
    for value in values:
        meta, arrays = saved(name)
        where(meta)[field] = value
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)
    meta, arrays = saved(name)
    if field in where(meta):
        del where(meta)[field]
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, arrays)


@pytest.mark.parametrize("name", ["closure", "polynomial"])
def test_models_are_of_the_kind_and_size_that_the_budget_has(name):
    for field, values in (
        ("capacity", [0, 1, 10**9]),
        ("rows", [1, 10**9]),
        ("polynomial", [name != "polynomial"]),
        ("landmarks", [{"size": 1, "order": 1}]),
        ("moments", [None]),
    ):
        for value in values:
            meta, arrays = saved(name)
            meta["models"][0][field] = value
            with pytest.raises(LevsketchFormatError):
                from_arrays(meta, arrays)


def test_two_models_of_one_kind_are_refused():
    meta, arrays = saved("chosen")
    copies = {name.replace("model0", "model1"): array for name, array in arrays.items()}
    meta["models"] = meta["models"] * 2
    with pytest.raises(LevsketchFormatError, match="two models"):
        from_arrays(meta, arrays | copies)
    meta, arrays = saved("trial")
    meta["models"] = meta["models"][:1]
    with pytest.raises(LevsketchFormatError, match="arrays"):
        from_arrays(meta, arrays)


@pytest.mark.parametrize("size", [10**5, 2**20, 2**31 - 1])
def test_claims_of_many_columns_allocate_nothing(size):
    for name in STATES:
        for fields in (["n_features"], ["n_outputs"], ["n_features", "n_outputs"]):
            meta, arrays = saved(name)
            meta |= dict.fromkeys(fields, size)
            tracemalloc.start()
            with pytest.raises(LevsketchFormatError):
                from_arrays(meta, arrays)
            assert tracemalloc.get_traced_memory()[1] < 1 << 22
            tracemalloc.stop()


def test_wide_keys_without_their_squares_allocate_nothing():
    # every array that is checked before the triangle of products has the columns that are claimed
    d = 10**5
    meta, arrays = saved("polynomial")
    meta["n_features"] = d
    wide = {name: array for name, array in arrays.items() if array.ndim and 3 in array.shape}
    for name, array in wide.items():
        if array.shape != (3, 3):
            shape = tuple(d if size == 3 else min(size, 2) for size in array.shape)
            arrays[name] = np.zeros(shape, array.dtype)
    arrays["pending"] = np.zeros((0, d + 3))
    tracemalloc.start()
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def spoilt_arrays(name):
    """Yield copies of saved arrays with one of them absurd, and what was done to it."""
    meta, arrays = saved(name)
    for key, array in arrays.items():
        yield f"{key} missing", meta, {k: v for k, v in arrays.items() if k != key}
        shapes = [(*array.shape, 1), array.shape[:-1]]
        for step in (1, -1):
            shapes += [
                tuple(s + step if i == axis else s for i, s in enumerate(array.shape))
                for axis in range(array.ndim)
                if array.shape[axis] + step >= 0
            ]
        for shape in shapes:
            yield f"{key} of shape {shape}", meta, arrays | {key: np.resize(array, shape)}
        for dtype in (np.float64, np.int64, np.uint8, np.bool_):
            if dtype != array.dtype:
                cast = np.clip(np.abs(array), 0, 9).astype(dtype)
                yield f"{key} with type {dtype.__name__}", meta, arrays | {key: cast}
        if array.dtype == np.float64 and array.size:
            for value in (np.nan, np.inf, -np.inf):
                bad = array.copy()
                bad.flat[-1] = value
                yield f"{key} with {value}", meta, arrays | {key: bad}


@pytest.mark.parametrize("name", STATES)
def test_absurd_arrays_are_refused_or_harmless(name):
    Q = np.random.default_rng(2).standard_normal((5, STATES[name].n_features))
    for what, meta, arrays in spoilt_arrays(name):
        try:
            state = from_arrays(meta, arrays)
        except LevsketchFormatError:
            continue
        # an array without rows, or a row fewer of sample queries, say, may pass: all must work
        assert "with" not in what, f"{what} was accepted"
        assert "missing" not in what, f"{what} was accepted"
        try:
            width = state.n_features + state.n_outputs + 1
            grown = state.update(CPU, np.ones((600, width)))
            found = attention_sketch.outputs(from_arrays(*to_arrays(grown)), Q)
        except Exception as error:
            raise AssertionError(f"{what} was accepted and failed later") from error
        assert np.isfinite(found).all(), what


VALUES = [
    ("chosen", "pending", (0, -1), -1.0),
    ("chosen", "pending", (0, 0), 1e200),  # out of the range of the frame
    ("chosen", "pending", (0, -1), 1e200),
    ("chosen", "key_centre", 0, 1.5),
    ("chosen", "value_centre", 0, -2.0),
    ("chosen", "model0_low", 0, 1e5),  # above the highest
    ("chosen", "model0_high", 0, 1e200),
    ("embedding", "sample_covariance", (0, 0), -1.0),
    ("embedding", "probe_sums", (0, -1), -1.0),
    ("closure", "model0_exact_index", 0, -1),
    ("closure", "model0_exact_index", 0, 10**9),
    ("closure", "model0_exact_index", 0, 1999),  # a row that waits
    ("closure", "model0_exact_weights", 0, 0.0),
    ("closure", "model0_exact_keys", (0, 0), 1e200),
    ("closure", "model0_exact_values", (0, 0), -1e300),
]


@pytest.mark.parametrize(("name", "key", "index", "value"), VALUES)
def test_values_that_no_stream_leaves_are_refused(name, key, index, value):
    meta, arrays = saved(name)
    arrays = {k: v.copy() for k, v in arrays.items()}
    arrays[key][index] = value
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays)


def test_the_same_row_is_not_exact_twice():
    meta, arrays = saved("closure")
    arrays["model0_exact_index"] = arrays["model0_exact_index"].copy()
    arrays["model0_exact_index"][1] = arrays["model0_exact_index"][0]
    with pytest.raises(LevsketchFormatError, match="no rows of the stream"):
        from_arrays(meta, arrays)


def test_metadata_hold_no_infinity_nor_numpy_number():
    for name in STATES:
        meta, _ = to_arrays(STATES[name])
        for holder in holders(meta):
            for value in holder.values():
                assert type(value) in (int, float, str, bool, dict, list, type(None))
                assert not isinstance(value, float) or np.isfinite(value)
