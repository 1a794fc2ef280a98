"""What StreamingAttentionSketch refuses leaves it, its input and its saved bytes as they were."""

import functools
import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from fitting import snapshot
from sketching import (
    APART,
    SKETCHES,
    drawn,
    every_sketch,
    few_sketches,
    fit,
    public,
    quiet,
)
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError

from levsketch import LevsketchStateError, StreamingAttentionSketch

DATA = drawn(0, 1300)
K, V, Q = DATA
ONES = np.ones(len(K))
VALUES = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}


def unchanged(sketch, call, error, match):
    """Check that ``call`` raises and leaves the sketch as it was."""
    before = snapshot(sketch)
    with pytest.raises(error, match=match) as caught:
        call()
    assert snapshot(sketch) == before
    return caught.value


def refuses(sketch, error, match, *args, methods=("fit", "partial_fit"), **kwargs):
    """Check that methods refuse arguments and that nothing changes."""
    for name in methods:
        call = functools.partial(getattr(sketch, name), *args, **kwargs)
        unchanged(sketch, call, error, match)


def spoilt(X, value, row, column=1):
    X = np.array(X, copy=True)
    if X.ndim == 1:
        X[row] = value
    else:
        X[row, column] = value
    return X


# -- values


@every_sketch
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("row", [0, 511, 512, 1299])
def test_values_that_are_not_finite_are_named_by_array_row_and_column(new, value, row):
    word = "NaN" if np.isnan(value) else "infinity"
    where = f"{word}.* row {row}, column"
    started = new().partial_fit(K[:70], V[:70])  # so that blocks do not begin where batches do
    for sketch in (new(), started):
        refuses(sketch, ValueError, f"X contains {where} 1", spoilt(K, value, row), V)
        refuses(sketch, ValueError, f"y contains {where} 1", K, spoilt(V, value, row))
        w = spoilt(ONES, value, row)
        refuses(sketch, ValueError, f"sample_weight contains {where} 0", K, V, w)
        bad = spoilt(K, value, row)
        fitting = ("fit",) if sketch is started else ("fit", "partial_fit")
        match = f"queries contains {where} 1"
        refuses(sketch, ValueError, match, K, V, queries=bad, methods=fitting)
        assert hasattr(sketch, "n_features_in_") == (sketch is started)
    answers = ("transform", "predict", "covered_mass", "error_bound", "recover")
    refuses(started, ValueError, f"X contains {where} 1", spoilt(K, value, row), methods=answers)


@pytest.mark.parametrize("name", APART)
def test_values_are_named_in_streams_of_their_own(name):
    sketch = SKETCHES[name]().partial_fit(K[:70], V[:70])
    for row in (0, 512, 1299):
        for X, bad, method in ((K, "X", "partial_fit_keys"), (V, "y", "partial_fit_values")):
            match = f"{bad} contains NaN at row {row}, column 1"
            refuses(sketch, ValueError, match, spoilt(X, np.nan, row), methods=[method])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f8", ml_dtypes.bfloat16, object])
def test_values_are_found_in_every_type(dtype):
    sketch = fit(DATA)
    bad, worse = (spoilt(X, np.nan, 1299).astype(dtype) for X in (K, V))
    refuses(sketch, ValueError, "NaN at row 1299, column 1", bad, V)
    refuses(sketch, ValueError, "NaN at row 1299, column 1", K, worse)


def test_long_doubles_beyond_float64_are_refused_with_their_place():
    sketch = fit(DATA)
    keys, values, w = (X.astype(np.longdouble) for X in (K, V, ONES))
    keys[700, 2] = values[701, 0] = w[702] = np.longdouble(10) ** 400
    refuses(sketch, ValueError, "X contains infinity .* row 700, column 2", keys, V)
    refuses(sketch, ValueError, "y contains infinity .* row 701, column 0", K, values)
    refuses(sketch, ValueError, "sample_weight contains infinity .* row 702", K, V, w)
    refuses(sketch, ValueError, "row 700, column 2", keys, methods=["transform"])
    refuses(sketch, ValueError, "queries .* row 700", K, V, queries=keys, methods=["fit"])


# -- shapes and kinds


@few_sketches
def test_values_that_do_not_belong_to_the_keys_are_refused(new):
    name = "StreamingAttentionSketch"
    for sketch in (new(), fit(DATA, new)):
        refuses(sketch, ValueError, "requires y to be passed, but the target y is None", K)
        refuses(sketch, ValueError, r"inconsistent numbers of samples: \[1300, 1299\]", K, V[1:])
        refuses(sketch, ValueError, "Found array with dim 3", K, V[:, :, None])
        refuses(sketch, ValueError, "0 feature", K, V[:, :0])
        refuses(sketch, TypeError, "at least 1 dimension", K, np.array(1.0), methods=["fit"])
        refuses(sketch, ValueError, "numeric", K, np.full(1300, "a"))
        refuses(sketch, ValueError, "Complex data not supported", K, V * 1j)
        refuses(sketch, ValueError, "y must hold real numbers", K, V.astype("datetime64[s]"))
        refuses(sketch, TypeError, "Sparse data was passed for y", K, scipy.sparse.csr_array(V))
        refuses(sketch, TypeError, "Sparse data was passed for X", scipy.sparse.csr_array(K), V)
        refuses(sketch, ValueError, "inhomogeneous", K[:2], [[1.0, 2.0], [1.0]])
    sketch = fit(DATA, new)
    for y in (V[:, 0], V[:, :1]):
        match = f"y has 1 columns, but {name} is expecting 2"
        refuses(sketch, ValueError, match, K, y, methods=["partial_fit"])
    match = f"X has 2 features, but {name} is expecting 3 features"
    refuses(sketch, ValueError, match, K[:, :2], V, methods=["partial_fit"])
    refuses(sketch, ValueError, match, Q[:, :2], methods=["transform", "error_bound", "recover"])


@few_sketches
def test_keys_of_the_wrong_kind_are_refused(new):
    for sketch in (new(), fit(DATA, new)):
        refuses(sketch, ValueError, "Expected 2D array, got 1D", K[0], V[:3])
        refuses(sketch, ValueError, "Expected 2D array, got scalar", np.array(3.0), V)
        refuses(sketch, ValueError, "Found array with dim 3", K[None], V)
        refuses(sketch, ValueError, "0 feature", K[:, :0], V)
        refuses(sketch, ValueError, "Complex data not supported", K * 1j, V)
        refuses(sketch, ValueError, "numeric|convert", K.astype(str), V)
        refuses(sketch, ValueError, None, None, V)
        refuses(sketch, (ValueError, TypeError), None, {1, 2}, V)


def test_weights_that_are_none_are_refused():
    w = spoilt(ONES, -1e-300, 600)
    for sketch in (StreamingAttentionSketch(), fit(DATA), fit(DATA, SKETCHES["moments"])):
        refuses(sketch, ValueError, "sample_weight must be >= 0, got -1e-300 at row 600", K, V, w)
        refuses(sketch, ValueError, "sample_weight must be >= 0, got -2", K, V, -2.0)
        for bad in (ONES[1:], ONES[:, None], np.ones((1300, 3))):
            refuses(sketch, ValueError, r"or have shape \(1300,\).* got shape", K, V, bad)
        refuses(sketch, ValueError, "numeric", K, V, ["heavy"] * 1300)
        refuses(sketch, ValueError, "Complex", K, V, ONES * 1j)
        match = "sample_weight must not be all zero"
        refuses(sketch, ValueError, match, K, V, 0 * ONES, methods=["fit"])


@pytest.mark.parametrize("name", APART)
def test_weights_of_keys_whose_values_come_apart_are_refused(name):
    sketch = fit(DATA, SKETCHES[name])
    refuses(sketch, ValueError, "sample_weight must be 1 with sketch=", K, V, 2 * ONES)
    assert SKETCHES[name]().fit(K, V, ONES).to_bytes() == sketch.to_bytes()


def test_nothing_is_averaged_before_a_row_has_a_weight():
    for name in ("auto", "closure", "memory", "decay", "moments", "power"):
        sketch = SKETCHES[name]()
        for n in (100, 1200):  # waiting rows, then whole blocks
            sketch.partial_fit(K[:n], V[:n], 0 * ONES[:n])
            for method in ("transform", "predict", "covered_mass", "error_bound", "recover"):
                call = getattr(sketch, method)
                unchanged(sketch, lambda c=call: c(Q), ValueError, "sample_weight 0: .*nothing")
            assert type(sketch).from_bytes(sketch.to_bytes()).to_bytes() == sketch.to_bytes()
        sketch.partial_fit(K[:1], V[:1])
        with quiet():
            np.testing.assert_allclose(sketch.transform(Q), np.tile(V[0], (40, 1)), rtol=1e-12)


def test_sample_queries_that_are_none_are_refused():
    frame = pd.DataFrame(K, columns=["a", "b", "c"])
    for sketch in (StreamingAttentionSketch(), StreamingAttentionSketch(function=2)):
        refuses(sketch, ValueError, "queries has 2 features, but X has 3", K, V, queries=Q[:, :2])
        refuses(sketch, ValueError, "Expected 2D array, got 1D", K, V, queries=Q[0])
        refuses(sketch, ValueError, "0 sample", K, V, queries=Q[:0])
        refuses(sketch, ValueError, "Complex", K, V, queries=Q * 1j)
        sparse = scipy.sparse.csr_array(Q)
        refuses(sketch, TypeError, "Sparse data was passed for queries", K, V, queries=sparse)
        other = frame.rename(columns={"a": "x"})
        refuses(sketch, ValueError, "(?s)feature names.*x", frame, V, queries=other)
    refuses(
        StreamingAttentionSketch(), ValueError, "queries must be below", K, V, queries=1e200 * Q
    )


def test_sample_queries_come_with_the_first_rows_or_not_at_all():
    sketch = StreamingAttentionSketch(n_keys=24)
    match = "queries come with the first rows of a stream, but X has none"
    refuses(sketch, ValueError, match, K[:0], V[:0], queries=Q, methods=["partial_fit"])
    sketch.partial_fit(K[:0], V[:0]).partial_fit(K, V, queries=Q)
    assert sketch.to_bytes() == StreamingAttentionSketch(n_keys=24).fit(K, V, queries=Q).to_bytes()
    match = "queries were fixed when the stream began"
    for keys in (K, K[:0]):
        unchanged(
            sketch,
            lambda X=keys: sketch.partial_fit(X, V[: len(X)], queries=Q),
            LevsketchStateError,
            match,
        )


# -- calls


@every_sketch
def test_no_rows_are_no_fit_but_an_empty_batch(new):
    sketch = new()
    refuses(sketch, ValueError, "0 sample", K[:0], V[:0], methods=["fit"])
    assert sketch.partial_fit(K[:0], V[:0]) is sketch
    assert vars(sketch) == vars(new())
    with pytest.raises(NotFittedError):
        sketch.indices_  # noqa: B018
    sketch = fit(DATA, new)
    before = snapshot(sketch)
    sketch.partial_fit(K[:0], V[:0])
    sketch.partial_fit(K[:0], V[:0], ONES[:0])
    assert snapshot(sketch) == before
    refuses(sketch, ValueError, "0 sample", K[:0], V[:0], methods=["fit"])
    # an empty batch of another width is still of another width
    match = "4 features"
    refuses(sketch, ValueError, match, np.ones((0, 4)), V[:0], methods=["partial_fit"])
    match = "3 columns"
    refuses(sketch, ValueError, match, K[:0], np.ones((0, 3)), methods=["partial_fit"])
    match = "shape"
    refuses(sketch, ValueError, match, K[:0], V[:0], ONES, methods=["partial_fit"])


@pytest.mark.parametrize("bad", ["NaN", "text"])
def test_a_failed_first_call_with_a_frame_sets_no_attribute(bad):
    frame = pd.DataFrame(K, columns=["a", "b", "c"])
    spoilt_frame = frame.astype(object)
    spoilt_frame.iloc[49, 2] = np.nan if bad == "NaN" else "x"
    for X, y in ((spoilt_frame, V), (frame, spoilt_frame), (frame, None), (frame, V[1:])):
        sketch = StreamingAttentionSketch()
        refuses(sketch, ValueError, None, X, y)
        assert vars(sketch) == vars(StreamingAttentionSketch())


def test_columns_that_were_renamed_or_reordered_are_listed():
    frame = pd.DataFrame(K, columns=["a", "b", "c"])
    sketch = StreamingAttentionSketch().fit(frame, V)
    renamed, reordered = frame.rename(columns={"b": "beta"}), frame[["b", "a", "c"]]
    refuses(sketch, ValueError, "(?s)beta.*b", renamed, V, methods=["partial_fit"])
    refuses(sketch, ValueError, "same order", reordered, V, methods=["partial_fit"])
    refuses(sketch, ValueError, "(?s)beta.*b", renamed, methods=["transform", "error_bound"])
    assert sketch.fit(renamed, V).feature_names_in_.tolist() == ["a", "beta", "c"]
    assert not hasattr(sketch.fit(K, V), "feature_names_in_")


def test_keys_and_values_apart_need_a_sketch_and_a_beginning():
    for new in (SKETCHES["auto"], SKETCHES["moments"], SKETCHES["power"]):
        for sketch in (new(), fit(DATA, new)):
            match = "may come apart only if they are sketched"
            refuses(sketch, ValueError, match, K, methods=["partial_fit_keys"])
            refuses(sketch, ValueError, match, V, methods=["partial_fit_values"])
    for name in APART:
        sketch = SKETCHES[name]()
        for method, X in (("partial_fit_keys", K), ("partial_fit_values", V)):
            match = "begin with partial_fit"
            refuses(sketch, LevsketchStateError, match, X, methods=[method])
            refuses(sketch, LevsketchStateError, match, X[:0], methods=[method])
        assert vars(sketch) == vars(SKETCHES[name]())
        sketch.fit(K, V)
        before = sketch.to_bytes()
        assert sketch.partial_fit_keys(K[:0]).partial_fit_values(V[:0]).to_bytes() == before
        refuses(sketch, ValueError, "2 features", K[:, :2], methods=["partial_fit_keys"])
        refuses(sketch, ValueError, "1 columns", V[:, 0], methods=["partial_fit_values"])
        sketch.partial_fit_keys(K[:5])
        match = "1305 keys and 1300 values have come"
        refuses(sketch, LevsketchStateError, match, Q, methods=["transform", "error_bound"])
        sketch.partial_fit_values(V[:5])
        assert sketch.to_bytes() == SKETCHES[name]().fit(K, V).partial_fit(K[:5], V[:5]).to_bytes()


def test_unfitted_sketches_say_so():
    sketch = StreamingAttentionSketch()
    names = [name for name in dir(type(sketch)) if name[-1] == "_" != name[0]]
    assert len(names) >= 6
    for name in names:
        with pytest.raises(NotFittedError):
            getattr(sketch, name)
        assert not hasattr(sketch, name)
    for method in ("transform", "predict", "covered_mass", "error_bound", "recover"):
        with pytest.raises(NotFittedError):
            getattr(sketch, method)(Q)
    for method in ("get_feature_names_out", "to_bytes"):
        with pytest.raises(NotFittedError):
            getattr(sketch, method)()


# -- parameters

OUT_OF_RANGE = [
    ("n_keys", [0, -1, 2.5, "3", None, np.nan]),
    ("scale", [0, 0.0, -1.0, np.nan, np.inf, "sqrt", None, 1j]),
    ("residual", ["exact", None, 1]),
    ("function", ["tanh", 1, 0, -2.0, np.inf, np.nan, None, True, 1j]),
    ("degree", [0, 1, -2, 2.0, "2", None]),
    ("sketch", ["tensorsketch", 3, True]),
    ("sketch_size", [0, -1, 2.5, "1024", None]),
    ("sparsity", [0, -1, 2.5, None]),
    ("decay", [0, 0.0, -0.1, 1.5, np.nan, "1", None]),
    ("max_memory", [0, -1, 2.5, True + 0j, []]),
    ("random_state", [-1, None, 2.5, "0", np.random.RandomState(0)]),
]
CONTRADICTIONS = [
    ({"degree": 3, "sketch": "exact"}, ["degree must be an even number", "got 3"]),
    ({"degree": 100, "sketch": "ams"}, ["degree", "got 100"]),
    ({"function": 3}, ["function must be an even number", "got 3"]),
    ({"function": 2.5}, ["function must be an even number", "got 2.5"]),
    ({"function": 1e9}, ["function", "got 1000000000.0"]),
    ({"function": 2, "sketch": "ams"}, ["sketch='ams' is for softmax", "function=2"]),
    ({"sketch": "gaussian", "decay": 0.5}, ["sketch='gaussian'", "decay=0.5"]),
    ({"scale": 1.1e100}, ["scale must be in (0, 1e+100]", "got 1.1e+100"]),
    ({"max_memory": "many"}, ["max_memory", "'many'"]),
    ({"max_memory": "0"}, ["max_memory", "'0'"]),
]


@pytest.mark.parametrize(("name", "values"), OUT_OF_RANGE, ids=[name for name, _ in OUT_OF_RANGE])
def test_parameters_out_of_range_are_refused_by_name_and_value(name, values):
    for value in values:
        for sketch in (StreamingAttentionSketch(), fit(DATA)):
            sketch.set_params(**{name: value})  # not checked here, as in scikit-learn
            for method in (sketch.fit, sketch.partial_fit):
                error = unchanged(sketch, lambda m=method: m(K, V), InvalidParameterError, name)
                assert repr(value) in str(error)


@pytest.mark.parametrize(("params", "words"), CONTRADICTIONS, ids=str)
def test_parameters_that_contradict_each_other_are_refused_together(params, words):
    sketch = StreamingAttentionSketch(**params)
    for method in (sketch.fit, sketch.partial_fit):
        error = unchanged(sketch, lambda m=method: m(K, V), ValueError, None)
        assert all(word in str(error) for word in words)
    assert vars(sketch) == vars(StreamingAttentionSketch(**params))


@pytest.mark.parametrize(
    ("params", "d", "words"),
    [
        ({"sketch": "exact", "degree": 4, "max_memory": 1000}, 200, ["degree=4", "bytes at least"]),
        ({"sketch": "ams", "sketch_size": 10**9}, 5, ["max_memory=1073741824", "bytes at least"]),
        ({"function": 6}, 200, ["function=6", "take 2297927032800 bytes", "max_memory=1073741824"]),
        ({"function": 4, "max_memory": 100}, 3, ["function=4", "take 360 bytes"]),
        ({"max_memory": 1000}, 60, ["max_memory=1000", "d = 60", "takes 1544 bytes"]),
        ({"max_memory": 9000, "residual": "closure"}, 60, ["max_memory=9000", "takes"]),
    ],
    ids=str,
)
def test_what_takes_too_much_is_refused_with_the_estimate_before_it_is_made(params, d, words):
    X = np.ones((600, d))
    sketch = StreamingAttentionSketch(**params)
    tracemalloc.start()
    for method in (sketch.fit, sketch.partial_fit):
        error = unchanged(sketch, lambda m=method: m(X, X[:, :2]), ValueError, None)
        assert all(word in str(error) for word in words), str(error)
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()
    assert vars(sketch) == vars(StreamingAttentionSketch(**params))


CHANGES = {
    "auto": {
        "n_keys": 25,
        "scale": 1.0,
        "residual": "closure",
        "function": 2,
        "sketch": "exact",
        "decay": 0.9,
        "max_memory": "1MB",
        "random_state": 7,
    },
    "moments": {
        "scale": 1.0,
        "function": 4,
        "degree": 2,
        "sketch": None,
        "decay": 0.9,
        "max_memory": "1MB",
        "random_state": 7,
    },
    "ams": {"sketch": "gaussian", "sketch_size": 33, "degree": 4},
    "power": {"function": 2, "sketch": "ams"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_parameters_changed_between_batches_are_refused_by_name(name):
    for param, value in CHANGES[name].items():
        sketch = fit(DATA, SKETCHES[name])
        old = sketch.get_params()[param]
        sketch.set_params(**{param: value})
        if (name, param) == ("power", "sketch"):
            unchanged(sketch, lambda s=sketch: s.partial_fit(K, V), ValueError, "sketch='ams'")
        else:
            match = f"^{param} changed between calls"
            unchanged(sketch, lambda s=sketch: s.partial_fit(K, V), LevsketchStateError, match)
        sketch.set_params(**{param: old}).partial_fit(K, V)
        assert sketch.n_samples_seen_ == 2600


def test_parameters_that_no_stream_depends_on_may_change():
    sketch = fit(DATA).set_params(sparsity=3, degree=4, sketch_size=9)
    assert sketch.partial_fit(K, V).n_samples_seen_ == 2600
    # one value in two spellings is one parameter
    sketch = StreamingAttentionSketch(max_memory="10kB", decay=1).fit(K, V)
    sketch.set_params(max_memory=10_000, decay=np.float64(1.0), n_keys=np.int64(256))
    assert sketch.partial_fit(K, V).n_samples_seen_ == 2600


@pytest.mark.parametrize(
    "params",
    [
        {"n_keys": 1},
        {"n_keys": 10**30},
        {"random_state": 2**70},
        {"decay": 5e-324},
        {"scale": 5e-324},
        {"scale": 1e100},
        {"max_memory": "9" * 400},
        {"function": 20},
    ],
    ids=str,
)
def test_parameters_that_are_hardly_sensible_work(params):
    sketch = StreamingAttentionSketch(**params).fit(K, V)
    with quiet():
        found = sketch.transform(Q)
    assert ((found >= V.min(axis=0) - 1e-15) & (found <= V.max(axis=0) + 1e-15)).all()
    assert type(sketch).from_bytes(sketch.to_bytes()).to_bytes() == sketch.to_bytes()


# -- threads, and errors in the middle


@few_sketches
def test_of_two_threads_the_second_is_told_and_the_first_ones_rows_stay(new, monkeypatch):
    sketch, winner = fit(DATA, new), fit(DATA, new).partial_fit(K[:100], V[:100])
    original = type(sketch)._updated

    def interrupted(self, before, batch):
        after = original(self, before, batch)
        if len(batch.keys) == 77:  # the slow batch: another thread finishes meanwhile
            args = (K[:100], V[:100])
            thread = threading.Thread(target=sketch.partial_fit, args=args)
            thread.start()
            thread.join()
        return after

    monkeypatch.setattr(type(sketch), "_updated", interrupted)
    with pytest.raises(LevsketchStateError, match="two threads"):
        sketch.partial_fit(K[:77], V[:77])
    assert sketch.to_bytes() == winner.to_bytes()


def test_many_threads_lose_no_batch_that_was_accepted():
    sketch = StreamingAttentionSketch(n_keys=24)
    accepted, refused = [], []

    def work(mine):
        for start in mine:
            try:
                sketch.partial_fit(K[start : start + 50], V[start : start + 50])
                accepted.append(50)
            except LevsketchStateError:
                refused.append(50)

    threads = [threading.Thread(target=work, args=(range(i * 50, 1300, 200),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) + len(refused) == 26
    assert sketch.n_samples_seen_ == sum(accepted)


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt."""


@pytest.mark.parametrize("error", [MemoryError, Interrupt, OverflowError])
@pytest.mark.parametrize("name", ["auto", "closure", "moments", "ams"])
def test_an_error_at_any_operation_leaves_the_state(name, error, monkeypatch):
    data = fit(DATA, SKETCHES[name]).to_bytes()
    load = StreamingAttentionSketch.from_bytes
    other = load(data)
    calls = {
        "partial_fit": lambda sketch: sketch.partial_fit(K, V),
        "fit": lambda sketch: sketch.fit(K, V),
        "transform": lambda sketch: sketch.transform(Q),
    }
    if name not in APART:
        calls["merge"] = lambda sketch: sketch.merge(other)
    for call in calls.values():
        for place in ("concatenate", "where"):
            original, uses = getattr(np, place), []

            def watched(*args, fail_at=None, use=original, count=uses, **kwargs):
                count.append(args)
                if len(count) == fail_at:
                    raise error("in the middle")
                return use(*args, **kwargs)

            sketch = load(data)
            with monkeypatch.context() as context, quiet():
                context.setattr(np, place, watched)
                call(sketch)
            for at in sorted({1, (len(uses) + 1) // 2, len(uses)} - {0}):
                sketch = load(data)
                before = snapshot(sketch)
                uses.clear()
                with monkeypatch.context() as context, quiet():
                    context.setattr(np, place, functools.partial(watched, fail_at=at))
                    with pytest.raises(error, match="in the middle"):
                        call(sketch)
                assert snapshot(sketch) == before


def test_warnings_made_errors_leave_the_state_too():
    sketch = fit(DATA, SKETCHES["moments"])
    unchanged(sketch, lambda: sketch.transform(1e3 * Q), UserWarning, "no polynomial of degree 4")
    unchanged(sketch, lambda: sketch.recover(1e3 * Q), UserWarning, "no polynomial of degree 4")


# -- growth


def test_rows_that_grow_out_of_range_are_refused_at_once():
    for name in ("auto", "closure", "moments"):
        sketch = fit(DATA, SKETCHES[name])
        for far in (1e200 * K, 1e300 * K[:3]):
            match = "keys grew by a factor of more than 2\\*\\*300"
            refuses(sketch, OverflowError, match, far, V[: len(far)], methods=["partial_fit"])
        match = "values grew"
        refuses(sketch, OverflowError, match, K, 1e200 * V, methods=["partial_fit"])
        with quiet():
            assert np.isfinite(sketch.fit(1e300 * K, 1e300 * V).transform(1e-300 * Q)).all()


# -- memory layouts and types


def misaligned(X):
    raw = np.empty(X.nbytes + 1, np.uint8)
    view = raw[1:].view(X.dtype).reshape(X.shape)
    view[:] = X
    return view


def read_only(X):
    copy = X.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided rows": lambda X: np.repeat(X, 2, axis=0)[::2],
    "negative rows": lambda X: np.ascontiguousarray(X[::-1])[::-1],
    "misaligned": misaligned,
    "big-endian": lambda X: X.astype(X.dtype.newbyteorder(">")),
    "read-only": read_only,
    "masked": lambda X: np.ma.masked_array(X, np.zeros(X.shape, bool)),
    "lists": lambda X: X.tolist(),
    "frame": lambda X: pd.DataFrame(X) if X.ndim == 2 else pd.Series(X),
}


@few_sketches
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_change_a_byte_nor_the_input(new, layout):
    for dtype in (np.float64, np.float32) if layout != "lists" else (np.float64,):
        arrays = [(4 * X).astype(dtype) for X in (K, V)]
        arrays.append(np.arange(1300) % 3 if new().sketch not in APART else ONES)
        plain = new().fit(*arrays)
        laid = [LAYOUTS[layout](X) for X in arrays]
        found = new().fit(*laid)
        assert found.to_bytes() == plain.to_bytes()
        for X, before in zip(laid, arrays, strict=True):
            np.testing.assert_array_equal(X, before)
        asked = LAYOUTS[layout](Q.astype(dtype))
        assert public(found, asked) == public(plain, Q.astype(dtype))


TYPES = [np.float16, np.float32, np.int8, np.int64, np.uint16, np.bool_, object, np.longdouble]


@few_sketches
@pytest.mark.parametrize("dtype", [*TYPES, ml_dtypes.bfloat16])
def test_other_types_leave_the_bytes_of_their_double_copy(new, dtype):
    keys, values, queries = ((4 * np.abs(X)).astype(dtype) for X in (K, V, Q))
    found = new().fit(keys, values)
    wide = new().fit(keys.astype(np.float64), values.astype(np.float64))
    assert found.to_bytes() == wide.to_bytes()
    narrow = dtype in (np.float16, np.float32, ml_dtypes.bfloat16)
    with quiet():
        answers = found.transform(queries)
        expected = wide.transform(queries.astype(np.float64))
    assert answers.dtype == (np.float32 if narrow else np.float64)
    np.testing.assert_array_equal(answers, expected.astype(answers.dtype))


def test_half_precision_products_are_summed_wide():
    keys = np.full((2000, 2), 6e4, np.float16)  # the square of one overflows half precision
    keys[5] = [6e4, -6e4]
    values = np.zeros(2000, np.float16)
    values[5] = 6e4
    sketch = StreamingAttentionSketch(n_keys=24).fit(keys, values)
    found = sketch.predict(np.array([[1.0, -1.0], [-1.0, 0.0]], np.float16))
    np.testing.assert_allclose(found, [6e4, 30.0], rtol=1e-3)
