"""Whatever is refused leaves the estimator, its input and its saved bytes as they were."""

import functools
import threading

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from fitting import (
    NOT_REDUCED,
    every_selector,
    few_selectors,
    fit,
    quiet,
    snapshot,
    split,
    stream,
)
from sklearn.exceptions import NotFittedError

from levsketch import (
    CertificationWarning,
    LeverageKeySelector,
    LevsketchStateError,
    attention,
    heavy_attention,
    leverage_scores,
    lewis_weights,
    sensitivities,
    universal_set,
)
from levsketch.backends import CpuBackend

RNG = np.random.default_rng(0)
K = RNG.standard_normal((2500, 3))


def unchanged(selector, call, error, match):
    """Check that ``call`` raises and leaves the selector as it was."""
    before = snapshot(selector)
    with pytest.raises(error, match=match) as caught:
        call()
    assert snapshot(selector) == before
    return caught.value


def call_with(selector, method, X):
    """Return a call of a method, to be made later."""
    return lambda: getattr(selector, method)(X)


def spoilt(value, row, column=1):
    X = K.copy()
    X[row, column] = value
    return X


VALUES = {
    "NaN": np.nan,
    "infinity": np.inf,
    "minus infinity": -np.inf,
}


@every_selector
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("row", [0, 1023, 1024, 2047, 2048, 2499])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_values_that_are_not_finite_are_named_by_row_and_column(new, value, row, started, method):
    selector = new(eps=0.05)
    if started:
        with quiet():
            selector.partial_fit(K[:700])  # so that blocks do not begin where batches do
    word = "NaN" if np.isnan(value) else "infinity"
    call = getattr(selector, method)
    unchanged(
        selector, lambda: call(spoilt(value, row)), ValueError, f"{word}.* row {row}, column 1"
    )
    assert started == hasattr(selector, "n_features_in_")


@pytest.mark.parametrize("row", [3, 1500, 2499])
def test_the_intercept_is_not_counted_among_the_columns(row):
    selector = fit(K, eps=0.05, intercept=True)
    bad = spoilt(np.nan, row)
    for method in ("fit", "partial_fit", "transform", "score_samples"):
        call = call_with(selector, method, bad)
        unchanged(selector, call, ValueError, f"row {row}, column 1;")
    with pytest.raises(ValueError, match=f"row {row}, column 1;"):
        leverage_scores(bad, intercept=True)


@every_selector
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f8", ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_found_in_every_type(new, dtype):
    selector = fit(K, new, eps=0.05)
    bad = spoilt(np.nan, 2499).astype(dtype)
    unchanged(selector, lambda: selector.partial_fit(bad), ValueError, "NaN.* row 2499, column 1")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f8", ml_dtypes.bfloat16])
def test_functions_find_values_that_are_not_finite_in_every_type(dtype):
    bad = spoilt(np.nan, 2499).astype(dtype)
    for function in (leverage_scores, lambda X: universal_set(X, 0.05)):
        with pytest.raises(ValueError, match=r"NaN.* row 2499, column 1"):
            function(bad)
    for Q, X in ((bad, K), (K, bad)):
        with pytest.raises(ValueError, match=r"NaN.* row 2499, column 1"):
            heavy_attention(Q, X, 0.05)


@every_selector
def test_finite_long_doubles_beyond_float64_are_refused_with_their_place(new):
    bad = K.astype(np.longdouble)
    bad[1500, 2] = np.longdouble(10) ** 400
    selector = fit(K, new, eps=0.05)
    unchanged(selector, lambda: selector.partial_fit(bad), ValueError, "row 1500, column 2")


@every_selector
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["transform", "heavy_scores", "score_samples"])
def test_queries_that_are_not_finite_are_named_by_row_and_column(new, bad, method):
    selector = fit(K, new, eps=0.05)
    call = getattr(selector, method)
    unchanged(selector, lambda: call(spoilt(bad, 7)), ValueError, "row 7, column 1")


SHAPES = {
    "other width": (
        np.ones((5, 4)),
        ValueError,
        "X has 4 features, but .* is expecting 3 features",
    ),
    "1-D": (np.ones(3), ValueError, "Expected 2D array, got 1D array"),
    "0-D": (np.array(3.0), ValueError, "Expected 2D array, got scalar"),
    "3-D": (np.ones((2, 2, 3)), ValueError, "Found array with dim 3"),
    "no columns": (np.ones((5, 0)), ValueError, "0 feature"),
    "complex": (K[:5] * 1j, ValueError, "Complex data not supported"),
    "text": (np.array([["a", "b", "c"]]), ValueError, "(?s)convert|numeric|bytes/strings"),
    "objects": (np.array([[1, 2, "x"]], object), ValueError, "could not convert|convert"),
    "ragged": ([[1.0, 2.0, 3.0], [1.0]], ValueError, "inhomogeneous|sequence"),
    "nothing": (None, ValueError, "None|Expected 2D"),
    "sparse": (scipy.sparse.csr_array(K), TypeError, "[Ss]parse"),
    "dates": (np.zeros((2, 3), "datetime64[s]"), (ValueError, TypeError), "real numbers|datetime"),
    "time spans": (
        np.zeros((2, 3), "timedelta64[s]"),
        (ValueError, TypeError),
        "real numbers|timedelta",
    ),
    "records": (np.zeros((2, 3), [("a", "f8")]), (ValueError, TypeError), None),
    "a set": ({1, 2}, (ValueError, TypeError), None),
    "bytes": (b"abc", (ValueError, TypeError), None),
    "missing": (np.array([[1, None, 3], [1, 2, 3]]), ValueError, "NaN at row 0, column 1"),
    "missing in lists": ([[1, None, 3], [1, 2, 3]], ValueError, "real numbers, got dtype object"),
}


@few_selectors
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("started", [False, True])
def test_arrays_of_the_wrong_kind_are_refused_and_change_nothing(new, case, started):
    X, error, match = SHAPES[case]
    if case == "other width" and not started:
        return  # then it is a width like any other
    if case == "sparse" and new is LeverageKeySelector:
        return  # it takes such rows
    selector = fit(K, new, eps=0.05) if started else new(eps=0.05)
    for method in ("partial_fit", "fit"):
        if case == "other width" and method == "fit":
            continue
        unchanged(selector, call_with(selector, method, X), error, match)
    if started:
        for method in ("transform", "heavy_scores", "score_samples"):
            unchanged(selector, call_with(selector, method, X), error, match)


@pytest.mark.parametrize("case", ["1-D", "0-D", "complex", "text", "dates", "sparse", "objects"])
def test_functions_refuse_the_same_arrays(case):
    X = SHAPES[case][0]
    dense_only = case == "sparse"
    for function in (
        (lambda X: lewis_weights(X, 1)) if dense_only else leverage_scores,
        lambda X: universal_set(X, 0.05, p=4 if dense_only else 2),
        lambda X: heavy_attention(X, K, 0.05),
        lambda X: heavy_attention(K, X, 0.05),
        lambda X: attention(X, K, K),
        lambda X: attention(K, X, K),
    ):
        with pytest.raises((ValueError, TypeError)):
            function(X)
    if case == "sparse":
        with pytest.raises(TypeError, match="toarray"):
            sensitivities(X, 4)


@every_selector
def test_no_rows_are_no_fit_but_an_empty_batch(new):
    selector = new(eps=0.05)
    unchanged(selector, lambda: selector.fit(K[:0]), ValueError, "0 sample")
    assert selector.partial_fit(K[:0]) is selector
    assert vars(selector) == vars(new(eps=0.05))
    with pytest.raises(NotFittedError):
        selector.scores_  # noqa: B018
    selector = fit(K, new, eps=0.05)
    before = snapshot(selector)
    selector.partial_fit(K[:0])
    assert snapshot(selector) == before
    unchanged(selector, lambda: selector.fit(K[:0]), ValueError, "0 sample")
    # an empty batch of another width is still of another width
    unchanged(selector, lambda: selector.partial_fit(np.ones((0, 4))), ValueError, "4 features")


@every_selector
@pytest.mark.parametrize("bad", ["NaN", "text"])
def test_a_failed_first_call_with_a_frame_sets_no_attribute(new, bad):
    frame = pd.DataFrame(K[:50], columns=["a", "b", "c"])
    frame = frame.astype(object)
    frame.iloc[49, 2] = np.nan if bad == "NaN" else "x"
    for method in ("fit", "partial_fit"):
        selector = new(eps=0.5)
        unchanged(selector, call_with(selector, method, frame), ValueError, None)
        assert vars(selector) == vars(new(eps=0.5))


@few_selectors
def test_columns_that_were_renamed_or_reordered_are_listed(new):
    frame = pd.DataFrame(K[:100], columns=["a", "b", "c"])
    selector = fit(frame, new, eps=0.5)
    renamed, reordered = frame.rename(columns={"b": "beta"}), frame[["b", "a", "c"]]
    unchanged(selector, lambda: selector.partial_fit(renamed), ValueError, "(?s)beta.*b")
    unchanged(selector, lambda: selector.partial_fit(reordered), ValueError, "same order")
    unchanged(selector, lambda: selector.transform(renamed), ValueError, "(?s)beta.*b")
    with quiet():
        assert selector.fit(renamed).feature_names_in_.tolist() == ["a", "beta", "c"]
        assert not hasattr(selector.fit(K), "feature_names_in_")


def test_shapes_of_queries_and_keys_must_agree():
    for Q in (np.ones((4, 2)), np.ones((2, 4, 3))):
        with pytest.raises(ValueError, match="must agree"):
            heavy_attention(Q, K, 0.05)


@every_selector
def test_of_two_threads_the_second_is_told_and_the_first_ones_rows_stay(new, monkeypatch):
    selector = fit(K, new, eps=0.05)
    winner = fit(K, new, eps=0.05).partial_fit(K[:100])
    original = type(selector)._updated

    def interrupted(self, stream, X):
        after = original(self, stream, X)
        if len(X) == 77:  # the slow batch: another thread finishes meanwhile
            thread = threading.Thread(target=selector.partial_fit, args=(K[:100],))
            thread.start()
            thread.join()
        return after

    monkeypatch.setattr(type(selector), "_updated", interrupted)
    with pytest.raises(LevsketchStateError, match="two threads"):
        selector.partial_fit(K[:77].tolist())  # rows that take a while to validate
    assert selector.to_bytes() == winner.to_bytes()


@few_selectors
def test_many_threads_lose_no_batch_that_was_accepted(new):
    selector = new(eps=0.05, min_keys=0)
    batches = split(np.arange(1.0, 3001)[:, None] * [[1.0]], range(100, 3000, 100))
    accepted, refused = [], []

    def work(mine):
        for batch in mine:
            try:
                selector.partial_fit(batch)
                accepted.append(len(batch))
            except LevsketchStateError:
                refused.append(len(batch))

    threads = [threading.Thread(target=work, args=(batches[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) + len(refused) == len(batches)
    assert selector.n_samples_seen_ == sum(accepted)


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt."""


OPERATIONS = ["whitened_row_norms", "block_grams", "qr_blocks", "rows"]


def counted(monkeypatch, call, fail_at=None, error=None):
    """Return how often ``call`` uses the backend; raise ``error`` at use ``fail_at``."""
    uses = []

    def watched(original):
        def wrapper(*args, **kwargs):
            uses.append(original)
            if len(uses) - 1 == fail_at:
                raise error("in the middle")
            return original(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as context, quiet():
        for name in OPERATIONS:
            context.setattr(CpuBackend, name, watched(getattr(CpuBackend, name)))
        call()
    return len(uses)


@every_selector
@pytest.mark.parametrize("error", [MemoryError, Interrupt, OSError])
def test_an_error_at_any_operation_leaves_the_state(new, monkeypatch, error):
    # Gram matrices and R factors, a rank that rises, rows that wait for their block
    first = K * np.geomspace(1, 1e-6, 3) @ np.ones((3, 3)) + K * 1e-5
    more = np.concatenate([K * 1e-9, K + K[:, :1], 1e12 * K])
    data = stream([first], new, eps=0.05).to_bytes()
    load = type(new()).from_bytes
    other = load(stream([K], new, eps=0.05).to_bytes())
    calls = {
        "partial_fit": lambda selector: selector.partial_fit(more),
        "fit": lambda selector: selector.fit(more[:3000]),
        "merge": lambda selector: selector.merge(other),
        "a look": lambda selector: selector.transform(K[:3]),
    }
    for name, call in calls.items():
        uses = counted(monkeypatch, functools.partial(call, load(data)))
        for at in sorted({0, 1, uses // 3, uses // 2, uses - 1}):
            selector = load(data)
            before = snapshot(selector)
            with pytest.raises(error, match="in the middle"):
                counted(monkeypatch, functools.partial(call, selector), at, error)
            assert snapshot(selector) == before, (name, at)


@few_selectors
def test_warnings_made_errors_leave_the_state_too(new):
    selector = fit(K, new, eps=0.05)
    hopeless = np.array([[1.0, 1.0], [1.0, 1.0], [1e-200, -1e-200]])
    unchanged(selector, lambda: selector.fit(K[:10]), UserWarning, NOT_REDUCED)
    with pytest.warns(UserWarning, match=NOT_REDUCED), pytest.warns(CertificationWarning):
        new().fit(hopeless)
    lonely = new(n_keys=1)
    unchanged(lonely, lambda: lonely.fit(hopeless), CertificationWarning, "condition number")
    assert vars(lonely) == vars(new(n_keys=1))


@every_selector
def test_the_warning_about_certification_comes_once_and_names_the_condition(new):
    hopeless = np.array([[1.0, 1.0], [1.0, 1.0], [1e-200, -1e-200]])
    selector = new(n_keys=1).partial_fit(hopeless)  # no look yet: no warning
    with pytest.warns(CertificationWarning, match="condition number about (inf|[0-9.]+e[+]1[4-9])"):
        assert not selector.certified_
    with quiet():  # of normalisers, of which lifts have less
        selector.transform(hopeless)
    assert selector.scores_.size == 1


@few_selectors
def test_unfitted_selectors_say_so(new):
    selector = new()
    names = [name for name in dir(type(selector)) if name[-1] == "_" != name[0]]
    assert len(names) >= 10
    for name in names:
        with pytest.raises(NotFittedError):
            getattr(selector, name)
        assert not hasattr(selector, name)
    for method in ("transform", "heavy_scores", "score_samples", "select"):
        with pytest.raises(NotFittedError):
            getattr(selector, method)(K)
    for method in ("get_support", "witness_queries", "get_feature_names_out", "to_bytes"):
        with pytest.raises(NotFittedError):
            getattr(selector, method)()


@few_selectors
def test_select_refuses_arrays_of_other_lengths(new):
    selector = fit(K, new, eps=0.05)
    with pytest.raises(ValueError, match="K has 2499 rows, but 2500 were seen"):
        selector.select(K[1:])
    with pytest.raises(ValueError, match="V has 3 rows, but 2500 were seen"):
        selector.select(K, np.ones(3))
