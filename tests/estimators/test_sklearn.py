"""scikit-learn's own checks, and the company that its estimators keep."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from fitting import NOT_REDUCED, SELECTORS, every_selector, few_selectors, fit, quiet
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from strategies import gaussian, make

from levsketch import LeverageKeySelector, LpSensitivitySelector
from levsketch.functions import Huber

# Most checks fit a few dozen rows, fewer than d / eps: documented to warn. Some data have
# columns that are combinations of others up to rounding (make_classification, digits in which
# one image alone lights two pixels, standardised): documented to warn, too.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{NOT_REDUCED}:UserWarning"),
    pytest.mark.filterwarnings("ignore:the keys have condition number:UserWarning"),
]

VARIANTS = [
    LeverageKeySelector(),
    LeverageKeySelector(eps=1.0, min_keys=0),
    LeverageKeySelector(n_keys=3),
    LeverageKeySelector(intercept=True),
    LeverageKeySelector(ridge=0.5, min_keys=4),
    LpSensitivitySelector(),
    LpSensitivitySelector(p=1),
    LpSensitivitySelector(p=3),
    LpSensitivitySelector(refine=True),
    LpSensitivitySelector(p=1.5, refine=True, bound="weights"),
    LpSensitivitySelector(function="huber"),
    LpSensitivitySelector(n_keys=3),
    LpSensitivitySelector(eps=1.0, min_keys=0),
    LpSensitivitySelector(normaliser="tensorsketch", sketch_size=32),
]


@parametrize_with_checks(VARIANTS)
def test_scikit_learn_checks_pass(estimator, check, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # else some would be skipped
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:600], y[:600]


def test_eps_is_searched_for_in_a_pipeline(digits):
    pipeline = make_pipeline(
        StandardScaler(), LeverageKeySelector(), LogisticRegression(max_iter=2000)
    )
    search = GridSearchCV(
        pipeline, {"leveragekeyselector__eps": [0.3, 0.6, 0.9]}, cv=2, error_score="raise"
    )
    search.fit(*digits)
    assert (
        search.best_score_ > 0.3
    )  # of ten classes; features "how much does this row attend to that key"
    selector = search.best_estimator_[1]
    assert len(search.best_estimator_[-1].coef_[0]) == len(selector.indices_)


def test_p_and_eps_are_searched_for_in_a_pipeline(digits):
    X, y = digits[0][:300], digits[1][:300]
    pipeline = make_pipeline(
        PCA(6), LpSensitivitySelector(delta=0.5), LogisticRegression(max_iter=300)
    )
    grid = {"lpsensitivityselector__p": [1, 3, 4], "lpsensitivityselector__eps": [0.1, 0.3]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.2  # of ten classes
    selector = search.best_estimator_[1]
    assert selector.get_params()["p"] == search.best_params_["lpsensitivityselector__p"]
    assert len(search.best_estimator_[-1].coef_[0]) == len(selector.indices_)


@few_selectors
def test_processes_give_what_threads_give(new, digits):
    X, y = digits
    # parallel loops have run in this process by now: workers must not hang on that
    fit(make(gaussian, 0, 20_000, 24).K)
    pipeline = make_pipeline(PCA(6), new(eps=0.6), LogisticRegression(max_iter=500))
    alone = cross_val_score(pipeline, X, y, cv=2)
    np.testing.assert_array_equal(cross_val_score(pipeline, X, y, cv=2, n_jobs=2), alone)


def test_workers_return_fitted_selectors():
    K = make(gaussian, 1, 4000, 4).K
    asked = [(new, eps) for new in SELECTORS.values() for eps in (0.01, 0.1)]
    selectors = joblib.Parallel(n_jobs=2, backend="loky")(
        joblib.delayed(fit)(K, new, eps=eps) for new, eps in asked
    )
    for selector, (new, eps) in zip(selectors, asked, strict=True):
        assert selector.to_bytes() == fit(K, new, eps=eps).to_bytes()


@pytest.mark.parametrize(
    "selector",
    [
        LeverageKeySelector(eps=0.1, n_keys=4, intercept=True),
        LpSensitivitySelector(p=1.5, eps=0.1, n_keys=4, max_memory="2MB", random_state=3),
        LpSensitivitySelector(eps=0.1, function=Huber(2.0), normaliser=None),
        LpSensitivitySelector(eps=0.1, function=["huber", {"threshold": 2.0}]),
    ],
)
def test_clones_are_unfitted_and_equal_in_parameters(selector):
    selector.fit(np.eye(5))
    copy = clone(selector)
    assert copy.get_params() == selector.get_params()
    assert not hasattr(copy, "indices_")
    assert vars(copy).keys() == selector.get_params().keys()
    assert "eps=0.1" in repr(selector)


@every_selector
def test_pickles_keep_everything_that_was_fitted(new):
    frame = pd.DataFrame(make(gaussian, 2, 900, 3).K, columns=["a", "b", "c"])
    selector = fit(frame, new, eps=0.05)
    again = pickle.loads(pickle.dumps(selector))
    assert again.to_bytes() == selector.to_bytes()
    assert again.feature_names_in_.tolist() == ["a", "b", "c"]
    with quiet():
        assert again.partial_fit(frame).to_bytes() == selector.partial_fit(frame).to_bytes()


@every_selector
def test_pandas_output_names_the_keys(new):
    frame = pd.DataFrame(make(gaussian, 3, 300, 3).K, columns=["a", "b", "c"])
    selector = new(eps=0.05).set_output(transform="pandas").fit(frame)
    found = selector.transform(frame.iloc[5:9])
    assert isinstance(found, pd.DataFrame)
    assert found.columns.tolist() == [f"key{row}" for row in selector.indices_]
    assert found.index.tolist() == [5, 6, 7, 8]
    assert found.columns.tolist() == selector.get_feature_names_out().tolist()
    assert selector.fit_transform(frame).shape == (300, len(selector.indices_))


@few_selectors
def test_selectors_stand_beside_others(new):
    X = make(gaussian, 4, 300, 4).K
    union = make_union(new(eps=0.05), StandardScaler())
    assert union.fit_transform(X).shape[1] > 4
    columns = make_column_transformer((new(eps=0.05), [0, 1]), remainder="drop")
    assert columns.fit(X).transform(X).shape[0] == 300


@every_selector
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transformed_queries_keep_their_precision(new, dtype):
    X = make(gaussian, 5, 300, 4).K.astype(dtype)
    selector = fit(X, new, eps=0.05)
    assert selector.transform(X).dtype == dtype
    assert selector.heavy_scores(X).dtype == dtype
    assert selector.score_samples(X).dtype == dtype


@every_selector
def test_y_is_ignored_and_fit_returns_itself(new):
    X = make(gaussian, 6, 300, 4).K
    selector = new(eps=0.05)
    assert selector.fit(X, np.zeros(300)) is selector
    assert selector.partial_fit(X, "anything") is selector
    assert selector.n_samples_seen_ == 600
