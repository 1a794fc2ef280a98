"""Saved streams of moments: loaded they go on the same; what none could have left is refused."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levsketch import LevsketchFormatError
from levsketch.algorithms.polynomial_attention import answers
from levsketch.backends.cpu import CpuBackend
from levsketch.streaming import serialize
from levsketch.streaming.polynomial import PolynomialPolicy, PolynomialStream
from levsketch.streaming.polynomial_io import from_arrays, to_arrays

BACKEND = CpuBackend()
RNG = np.random.default_rng(0)


def rows_of(n, weighted=True):
    K, V = RNG.standard_normal((n, 3)), RNG.standard_normal((n, 2)) + 7
    w = np.where(RNG.random(n) < 0.2, 0.0, RNG.random(n)) if weighted else np.ones(n)
    return np.column_stack([K, V, w])


def stream(n=700, function="softmax", degree=2, sketch="exact", size=0, decay=1.0, **options):
    floats = options.pop("floats", 10**6)
    policy = PolynomialPolicy(function, degree, sketch, size, decay, "sqrt_d", floats, 3)
    empty = PolynomialStream.empty(policy, 3, 2, **options)
    return empty.update(BACKEND, rows_of(n, weighted=policy.aligned))


def without_weight(n):
    rows = rows_of(n)
    rows[:, -1] = 0.0
    state = stream(0)
    return state.update(BACKEND, rows)


# Every kind of state that is written: moments exact and sketched, waiting rows alone, rows without
# a weight, powers, keys or values alone, a center that was given.
STATES = {
    "softmax": stream(),
    "waiting": stream(5),
    "weightless": without_weight(600),
    "decay": stream(decay=0.9, degree=4),
    "sketched": stream(degree=4, floats=60),
    "centred": stream(degree=4, floats=60, center=np.ones(3)),
    "power": stream(function=4.0, degree=4),
    "power waits": stream(9, function=2.0, degree=2),
    "ams": stream(sketch="ams", size=7),
    "gaussian": stream(100, sketch="gaussian", size=7, center=np.ones(3), first_row=2**40),
    "both": stream(degree=4, sketch="countsketch", size=9, floats=250),
    "keys": stream(0, sketch="ams", size=7).update_keys(rows_of(600)[:, :3]),
    "values": stream(0, sketch="ams", size=7).update_values(rows_of(600)[:, 3:5]),
}
WHOLE = [name for name in STATES if name not in ("weightless", "keys", "values")]


def saved(name):
    """Return metadata and arrays as they come out of a file."""
    meta, arrays = to_arrays(STATES[name])
    return serialize.unpack(serialize.pack("x", meta, arrays))[1:]


def bytes_of(state):
    return serialize.pack("x", *to_arrays(state))


@pytest.mark.parametrize("name", STATES)
def test_a_loaded_stream_is_the_saved_one_and_goes_on_the_same(name):
    state, loaded = STATES[name], from_arrays(*saved(name))
    assert bytes_of(loaded) == bytes_of(state)
    assert (loaded.n_seen, loaded.n_values, loaded.nbytes) == (
        (state.n_seen, state.n_values, state.nbytes)
    )
    more = rows_of(600, weighted=False)
    assert bytes_of(loaded.update(BACKEND, more)) == bytes_of(state.update(BACKEND, more))
    if state.policy.aligned and "sketched" not in name:
        assert bytes_of(loaded.merge(BACKEND, loaded)) == bytes_of(state.merge(BACKEND, state))
    if name in WHOLE:
        Q = RNG.standard_normal((9, 3))
        for one, other in zip(answers(loaded, Q), answers(state, Q), strict=True):
            assert one.tobytes() == other.tobytes()


def changed(where, path, value):
    """Return a copy of nested metadata with one field changed."""
    found = copy.deepcopy(where)
    at = found
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return found


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("softmax", ["n_features"], 4),
        ("softmax", ["n_features"], 2**31),
        ("softmax", ["n_outputs"], 3),
        ("softmax", ["n_seen"], 10),
        ("softmax", ["n_seen"], 200),
        ("softmax", ["n_seen"], 700.0),
        ("softmax", ["n_seen"], 2**70),
        ("softmax", ["dtype"], "complex128"),
        ("softmax", ["dtype"], ""),
        ("softmax", ["frame"], None),
        ("softmax", ["frame", "key_power"], 10**9),
        ("softmax", ["frame", "key_power"], 3),
        ("softmax", ["moments"], None),
        ("softmax", ["moments", "n_rows"], 10),
        ("softmax", ["moments", "n_rows"], 10**6),
        ("softmax", ["reach", "count"], 10),
        ("softmax", ["boxed"], False),
        ("softmax", ["boxed"], 1),
        ("softmax", ["centred"], True),
        ("softmax", ["policy", "degree"], 4),
        ("softmax", ["policy", "degree"], 2.0),
        ("softmax", ["policy", "degree"], 10**9),
        ("softmax", ["policy", "decay"], 2.0),
        ("softmax", ["policy", "floats"], 20),
        ("softmax", ["policy", "floats"], -1),
        ("softmax", ["policy", "sketch"], "ams"),
        ("softmax", ["policy", "function"], 2.0),
        ("softmax", ["policy"], {}),
        ("softmax", ["policy"], None),
        ("waiting", ["n_seen"], 4),
        ("waiting", ["n_seen"], 0),
        ("waiting", ["boxed"], True),
        ("sketched", ["policy", "floats"], 10**6),
        ("sketched", ["policy", "floats"], 70),
        ("centred", ["centred"], False),
        ("power", ["policy", "function"], 2.0),
        ("power", ["policy", "function"], "softmax"),
        ("power", ["policy", "degree"], 2),
        ("power", ["centred"], False),
        ("ams", ["policy", "sketch"], "gaussian"),
        ("ams", ["policy", "seed"], 4),
        ("ams", ["policy", "sketch_size"], 8),
        ("ams", ["moments", "key_rows"], [0, 511]),
        ("ams", ["moments", "value_rows"], [5, 0]),
        ("ams", ["moments"], None),
        ("keys", ["n_seen"], 0),
        ("values", ["n_seen"], 512),
        ("values", ["boxed"], False),
    ],
)
def test_absurd_metadata_are_refused(name, path, value):
    meta, arrays = saved(name)
    with pytest.raises(LevsketchFormatError):
        from_arrays(changed(meta, path, value), arrays)


@pytest.mark.parametrize("name", STATES)
def test_every_field_and_array_is_needed(name):
    meta, arrays = saved(name)
    for key in meta:
        with pytest.raises(LevsketchFormatError):
            from_arrays({k: v for k, v in meta.items() if k != key}, arrays)
    for key in arrays:
        with pytest.raises(LevsketchFormatError):
            from_arrays(meta, {k: v for k, v in arrays.items() if k != key})
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays | {"more": np.zeros(3)})


@pytest.mark.parametrize("name", STATES)
def test_arrays_of_another_shape_or_with_nan_are_refused(name):
    meta, arrays = saved(name)
    for key, array in arrays.items():
        wrong = [array[None], array.astype(np.float32)]
        if array.dtype.kind == "f" and array.size:
            wrong += [np.full_like(array, np.nan), np.full_like(array, np.inf)]
        if array.size and key not in ("pending", "late"):
            wrong.append(np.concatenate([array, array]))
        for other in wrong:
            with pytest.raises(LevsketchFormatError):
                from_arrays(meta, arrays | {key: other})


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("softmax", "low", lambda a: a + 100.0),
        ("softmax", "key_centre", lambda a: a + 1.0),
        ("softmax", "pending", lambda a: -a),
        ("softmax", "moments_center", lambda a: a + 1.0),
        ("centred", "fixed_center", lambda a: a + 1.0),
        ("centred", "key_centre", lambda a: a + 1.0),
        ("power", "fixed_center", lambda a: a + 1.0),
        ("power", "moments_center", lambda a: a + 1.0),
        ("waiting", "late", lambda a: np.zeros((1, 2))),
        ("waiting", "pending", lambda a: np.ones((600, 6))),
        ("ams", "late", lambda a: np.ones((600, 2))),
    ],
)
def test_arrays_that_contradict_others_are_refused(name, key, change):
    meta, arrays = saved(name)
    with pytest.raises(LevsketchFormatError):
        from_arrays(meta, arrays | {key: change(arrays[key])})


@settings(max_examples=150)
@given(st.sampled_from(list(STATES)), st.data())
def test_a_garbled_field_is_refused_or_harmless(name, data):
    meta, arrays = saved(name)
    path = [data.draw(st.sampled_from(sorted(meta)))]
    while isinstance(inner := field_at(meta, path), dict) and data.draw(st.booleans()):
        path.append(data.draw(st.sampled_from(sorted(inner))))
    junk = st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=4)
    )
    value = data.draw(st.one_of(junk, st.lists(junk, max_size=3)))
    try:
        loaded = from_arrays(changed(meta, path, value), arrays)
    except LevsketchFormatError:
        return
    loaded.update(BACKEND, rows_of(3, weighted=False))


def field_at(where, path):
    for step in path:
        where = where[step]
    return where
