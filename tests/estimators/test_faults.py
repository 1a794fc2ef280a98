"""Whatever is refused leaves the estimator, its input and its saved bytes as they were."""

import decimal
import threading

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from fitting import NOT_REDUCED, fit, quiet, snapshot, split
from sklearn.exceptions import NotFittedError

from levsketch import (
    CertificationWarning,
    LeverageKeySelector,
    LevsketchStateError,
    heavy_attention,
    leverage_scores,
    universal_set,
)

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


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("row", [0, 1023, 1024, 2047, 2048, 2499])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_values_that_are_not_finite_are_named_by_row_and_column(value, row, started, method):
    selector = LeverageKeySelector(eps=0.05)
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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f8"])
def test_values_that_are_not_finite_are_found_in_every_type(dtype):
    selector = fit(K, eps=0.05)
    bad = spoilt(np.nan, 2499).astype(dtype)
    unchanged(selector, lambda: selector.partial_fit(bad), ValueError, "NaN.* row 2499, column 1")
    for function in (leverage_scores, lambda X: universal_set(X, 0.05)):
        with pytest.raises(ValueError, match=r"NaN.* row 2499, column 1"):
            function(bad)
    for Q, X in ((bad, K), (K, bad)):
        with pytest.raises(ValueError, match=r"NaN.* row 2499, column 1"):
            heavy_attention(Q, X, 0.05)


def test_finite_long_doubles_beyond_float64_are_refused_with_their_place():
    bad = K.astype(np.longdouble)
    bad[1500, 2] = np.longdouble(10) ** 400
    selector = fit(K, eps=0.05)
    unchanged(selector, lambda: selector.partial_fit(bad), ValueError, "row 1500, column 2")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["transform", "heavy_scores", "score_samples"])
def test_queries_that_are_not_finite_are_named_by_row_and_column(bad, method):
    selector = fit(K, eps=0.05)
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


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("started", [False, True])
def test_arrays_of_the_wrong_kind_are_refused_and_change_nothing(case, started):
    X, error, match = SHAPES[case]
    if case == "other width" and not started:
        return  # then it is a width like any other
    selector = fit(K, eps=0.05) if started else LeverageKeySelector(eps=0.05)
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
    for function in (
        leverage_scores,
        lambda X: universal_set(X, 0.05),
        lambda X: heavy_attention(X, K, 0.05),
        lambda X: heavy_attention(K, X, 0.05),
    ):
        with pytest.raises((ValueError, TypeError)):
            function(X)
    if case == "sparse":
        with pytest.raises(TypeError, match="toarray"):
            leverage_scores(X)


def test_no_rows_are_no_fit_but_an_empty_batch():
    selector = LeverageKeySelector(eps=0.05)
    unchanged(selector, lambda: selector.fit(K[:0]), ValueError, "0 sample")
    assert selector.partial_fit(K[:0]) is selector
    assert vars(selector) == vars(LeverageKeySelector(eps=0.05))
    with pytest.raises(NotFittedError):
        selector.scores_  # noqa: B018
    selector = fit(K, eps=0.05)
    before = snapshot(selector)
    selector.partial_fit(K[:0])
    assert snapshot(selector) == before
    unchanged(selector, lambda: selector.fit(K[:0]), ValueError, "0 sample")
    # an empty batch of another width is still of another width
    unchanged(selector, lambda: selector.partial_fit(np.ones((0, 4))), ValueError, "4 features")


@pytest.mark.parametrize("bad", ["NaN", "text"])
def test_a_failed_first_call_with_a_frame_sets_no_attribute(bad):
    frame = pd.DataFrame(K[:50], columns=["a", "b", "c"])
    frame = frame.astype(object)
    frame.iloc[49, 2] = np.nan if bad == "NaN" else "x"
    for method in ("fit", "partial_fit"):
        selector = LeverageKeySelector(eps=0.5)
        unchanged(selector, call_with(selector, method, frame), ValueError, None)
        assert vars(selector) == vars(LeverageKeySelector(eps=0.5))


def test_columns_that_were_renamed_or_reordered_are_listed():
    frame = pd.DataFrame(K[:100], columns=["a", "b", "c"])
    selector = fit(frame, eps=0.5)
    renamed, reordered = frame.rename(columns={"b": "beta"}), frame[["b", "a", "c"]]
    unchanged(selector, lambda: selector.partial_fit(renamed), ValueError, "(?s)beta.*b")
    unchanged(selector, lambda: selector.partial_fit(reordered), ValueError, "same order")
    unchanged(selector, lambda: selector.transform(renamed), ValueError, "(?s)beta.*b")
    assert selector.fit(renamed).feature_names_in_.tolist() == ["a", "beta", "c"]
    with quiet():
        assert not hasattr(selector.fit(K), "feature_names_in_")


PARAMETERS = [
    ("eps", [0, 0.0, -0.1, 1.0000001, np.nan, np.inf, "0.1", None, [0.1], 1j]),
    ("n_keys", [0, -1, 2.5, "3", np.nan]),
    ("min_keys", [-1, None, 0.5, "1"]),
    ("intercept", [2, "yes", None, 0.0]),
    ("ridge", [-1e-300, np.nan, np.inf, "1", None]),
    ("decay", [0.5, 0.0, 1.5, np.nan, "1", None]),
    ("window", [1, 0, 100, 2.5, "5"]),
    ("order", ["causal", "exactly", None, 1]),
]


@pytest.mark.parametrize(
    ("name", "values"), PARAMETERS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_parameters_out_of_range_are_refused_by_name_and_value(name, values):
    for value in values:
        for started in (False, True):
            selector = LeverageKeySelector()
            if started:
                with quiet():
                    selector.fit(K)
            selector.set_params(**{name: value})  # not checked here, as in scikit-learn
            for method in ("fit", "partial_fit"):
                call = call_with(selector, method, K)
                error = unchanged(selector, call, (ValueError, TypeError), name)
                assert repr(value) in str(error) or str(value) in str(error)


@pytest.mark.parametrize(
    "value", [0.0, -1.0, 1.5, np.nan, np.inf, "x", None, True, 1j, decimal.Decimal(0)]
)
def test_functions_check_eps(value):
    for function in (universal_set, lambda X, eps: heavy_attention(X, X, eps)):
        with pytest.raises((ValueError, TypeError), match=r"eps must be .* got"):
            function(K, value)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, True, 1j, "2", None])
def test_functions_check_p(value):
    with pytest.raises((ValueError, TypeError), match=r"p must be .* got"):
        universal_set(K, 0.05, p=value)
    with pytest.raises((ValueError, TypeError), match=r"p must be .* got"):
        heavy_attention(K, K, 0.05, p=value)


@pytest.mark.parametrize("eps", [1e-300, 1e-310, 5e-324])
def test_thresholds_that_are_hardly_numbers_are_thresholds_all_the_same(eps):
    selector = LeverageKeySelector(eps=eps).partial_fit(1e-100 * RNG.standard_normal((1024, 4)))
    selector.partial_fit(np.ones((12_000, 4)))  # more than is kept without proof
    with pytest.warns(CertificationWarning):
        assert not selector.certified_
    with pytest.warns(UserWarning, match=NOT_REDUCED):
        assert len(LeverageKeySelector(eps=eps).fit(K).indices_) == len(K)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, "x", None, True])
def test_functions_check_ridge(value):
    with pytest.raises((ValueError, TypeError), match=r"ridge must be .* got"):
        leverage_scores(K, ridge=value)


def test_shapes_of_queries_and_keys_must_agree():
    for Q in (np.ones((4, 2)), np.ones((2, 4, 3))):
        with pytest.raises(ValueError, match="must agree"):
            heavy_attention(Q, K, 0.05)


@pytest.mark.parametrize(
    ("name", "value"),
    [("eps", 0.06), ("n_keys", 3), ("min_keys", 2), ("intercept", True), ("ridge", 1.0)],
)
def test_parameters_changed_between_batches_are_refused_by_name(name, value):
    selector = fit(K, eps=0.05)
    selector.set_params(**{name: value})
    unchanged(selector, lambda: selector.partial_fit(K), LevsketchStateError, name)
    with quiet():
        selector.fit(K)  # a new stream may differ
    assert selector.to_bytes() == fit(K, **({"eps": 0.05} | {name: value})).to_bytes()


def test_of_two_threads_the_second_is_told_and_the_first_ones_rows_stay(monkeypatch):
    selector = fit(K, eps=0.05)
    winner = fit(K, eps=0.05).partial_fit(K[:100])
    original = LeverageKeySelector._updated

    def interrupted(self, stream, X):
        after = original(self, stream, X)
        if len(X) == 77:  # the slow batch: another thread finishes meanwhile
            thread = threading.Thread(target=selector.partial_fit, args=(K[:100],))
            thread.start()
            thread.join()
        return after

    monkeypatch.setattr(LeverageKeySelector, "_updated", interrupted)
    with pytest.raises(LevsketchStateError, match="two threads"):
        selector.partial_fit(K[:77])
    assert selector.to_bytes() == winner.to_bytes()


def test_many_threads_lose_no_batch_that_was_accepted():
    selector = LeverageKeySelector(eps=0.05, min_keys=0)
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


@pytest.mark.parametrize("error", [MemoryError, Interrupt, OSError])
@pytest.mark.parametrize("place", ["whitened_row_norms", "block_grams", "qr_blocks"])
def test_any_error_in_the_middle_leaves_the_state(monkeypatch, error, place):
    from levsketch.backends import CpuBackend

    selector = fit(K * np.geomspace(1, 1e-12, 3) @ np.ones((3, 3)) + K * 1e-11, eps=0.05)
    calls = []

    original = getattr(CpuBackend, place)

    def fail(self, *args, **kwargs):
        calls.append(place)
        if len(calls) > 1:
            raise error("in the middle")
        return original(self, *args, **kwargs)

    before = snapshot(selector)
    with monkeypatch.context() as context, quiet():
        context.setattr(CpuBackend, place, fail)
        with pytest.raises(error, match="in the middle"):
            selector.fit(np.concatenate([K * 1e-9, K + K[:, :1], 1e12 * K]))
    assert snapshot(selector) == before


def test_warnings_made_errors_leave_the_state_too():
    selector = fit(K, eps=0.05)
    hopeless = np.array([[1.0, 1.0], [1.0, 1.0], [1e-200, -1e-200]])
    unchanged(selector, lambda: selector.fit(K[:10]), UserWarning, NOT_REDUCED)
    with pytest.warns(UserWarning, match=NOT_REDUCED), pytest.warns(CertificationWarning):
        LeverageKeySelector().fit(hopeless)
    lonely = LeverageKeySelector(n_keys=1)
    unchanged(lonely, lambda: lonely.fit(hopeless), CertificationWarning, "condition number")
    assert vars(lonely) == vars(LeverageKeySelector(n_keys=1))


def test_the_warning_about_certification_comes_once_and_names_the_condition():
    hopeless = np.array([[1.0, 1.0], [1.0, 1.0], [1e-200, -1e-200]])
    selector = LeverageKeySelector(n_keys=1).partial_fit(hopeless)  # no look yet: no warning
    with pytest.warns(CertificationWarning, match="condition number about (inf|[0-9.]+e[+]1[4-9])"):
        assert not selector.certified_
    selector.transform(hopeless)
    assert selector.scores_.size == 1


def test_unfitted_selectors_say_so():
    selector = LeverageKeySelector()
    names = ["indices_", "keys_", "scores_", "guard_", "certified_", "unselected_bound_"]
    names += ["condition_number_", "method_", "n_samples_seen_", "nbytes_"]
    for name in names:
        with pytest.raises(NotFittedError):
            getattr(selector, name)
        assert not hasattr(selector, name) or name == "x"
    for method in ("transform", "heavy_scores", "score_samples", "select"):
        with pytest.raises(NotFittedError):
            getattr(selector, method)(K)
    for method in ("get_support", "witness_queries", "get_feature_names_out"):
        with pytest.raises(NotFittedError):
            getattr(selector, method)()


def test_select_refuses_arrays_of_other_lengths():
    selector = fit(K, eps=0.05)
    with pytest.raises(ValueError, match="K has 2499 rows, but 2500 were seen"):
        selector.select(K[1:])
    with pytest.raises(ValueError, match="V has 3 rows, but 2500 were seen"):
        selector.select(K, np.ones(3))
