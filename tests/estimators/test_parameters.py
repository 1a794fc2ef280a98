"""Parameters: checked at fit by name and value, fixed from the first row of a stream on."""

import decimal
import tracemalloc

import numpy as np
import pytest
from fitting import FEW, NOT_REDUCED, every_selector, fit, quiet, snapshot

from levsketch import (
    CertificationWarning,
    LeverageKeySelector,
    LevsketchStateError,
    LpSensitivitySelector,
    heavy_attention,
    leverage_scores,
    universal_set,
)
from levsketch.functions import Huber

RNG = np.random.default_rng(0)
K = RNG.standard_normal((2500, 3))

SHARED = [
    ("eps", [0, 0.0, -0.1, 1.0000001, np.nan, np.inf, "0.1", None, [0.1], 1j]),
    ("n_keys", [0, -1, 2.5, "3", np.nan]),
    ("min_keys", [-1, None, 0.5, "1"]),
]
LEVERAGE = [
    ("intercept", [2, "yes", None, 0.0]),
    ("ridge", [-1e-300, np.nan, np.inf, "1", None]),
    ("decay", [0.5, 0.0, 1.5, np.nan, "1", None]),
    ("window", [1, 0, 100, 2.5, "5"]),
    ("order", ["causal", "exactly", None, 1]),
]
LP = [
    ("p", [0, 0.0, -1.0, np.nan, np.inf, "4", None, [4.0], 1j]),
    ("function", ["nope", 3, 2.0, {}, ["huber"], ["nope", {}], [Huber(), {}]]),
    ("bound", ["weight", None, 1]),
    ("refine", [2, "yes", None]),
    ("delta", [0, 0.0, -0.1, 1.0000001, np.nan, "0.1", None]),
    ("failure_probability", [0, 0.0, 1, 1.0, np.nan, "x", None]),
    ("normaliser", ["none", "exact", 3, True]),
    ("sketch_size", [0, -1, 2.5, "1024", None]),
    ("max_memory", [0, -1, "", "0", "1e3", "x", "-1MB", 2.5, None, True]),
    ("random_state", [-1, None, 2.5, "0", np.random.RandomState(0)]),
]
CASES = (
    [(f"{name} {kind}", new, name, v) for kind, new in FEW.items() for name, v in SHARED]
    + [(name, LeverageKeySelector, name, values) for name, values in LEVERAGE]
    + [(name, LpSensitivitySelector, name, values) for name, values in LP]
)


def unchanged(selector, call, error, match):
    """Check that ``call`` raises and leaves the selector as it was."""
    before = snapshot(selector)
    with pytest.raises(error, match=match) as caught:
        call()
    assert snapshot(selector) == before
    return caught.value


@pytest.mark.parametrize(
    ("new", "name", "values"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_parameters_out_of_range_are_refused_by_name_and_value(new, name, values):
    for value in values:
        for started in (False, True):
            selector = fit(K, new) if started else new()
            selector.set_params(**{name: value})  # not checked here, as in scikit-learn
            for method in (selector.fit, selector.partial_fit):
                error = unchanged(selector, lambda m=method: m(K), (ValueError, TypeError), name)
                found, text = value[0] if isinstance(value, list) else value, str(error)
                assert any(word in text for word in (repr(found), str(found), type(found).__name__))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"p": 3, "normaliser": "lift"}, ["normaliser='lift'", "even p", "p=3"]),
        ({"p": 2.5, "normaliser": "tensorsketch"}, ["normaliser='tensorsketch'", "p=2.5"]),
        ({"function": "huber", "normaliser": "lift"}, ["normaliser='lift'", "'huber'"]),
        ({"p": 0.5, "refine": True}, ["refine=True", "p >= 1", "p=0.5"]),
        ({"function": "tukey", "refine": True}, ["refine=True", "tukey"]),
    ],
    ids=str,
)
def test_parameters_that_contradict_each_other_are_refused_together(params, words):
    for started in (False, True):
        selector = fit(K, LpSensitivitySelector) if started else LpSensitivitySelector()
        selector.set_params(**params)
        for method in (selector.fit, selector.partial_fit):
            error = unchanged(selector, lambda m=method: m(K), ValueError, None)
            assert all(word in str(error) for word in words)


CHANGES = [(new, change) for new in FEW.values() for change in ({"eps": 0.06}, {"n_keys": 3})]
CHANGES += [(LeverageKeySelector, {"intercept": True}), (LeverageKeySelector, {"ridge": 1.0})]
CHANGES += [
    (LpSensitivitySelector, change)
    for change in (
        {"p": 6.0},
        {"function": Huber(2.0)},
        {"bound": "weights"},
        {"refine": True},
        {"delta": 0.2},
        {"failure_probability": 0.5},
        {"normaliser": None},
        {"sketch_size": 99},
        {"max_memory": "2GiB"},
        {"min_keys": 2},
        {"random_state": 7},
    )
]


@pytest.mark.parametrize(("new", "change"), CHANGES, ids=str)
def test_parameters_changed_between_batches_are_refused_by_name(new, change):
    ((name, value),) = change.items()
    selector = fit(K, new, eps=0.05)
    selector.set_params(**change)
    unchanged(selector, lambda: selector.partial_fit(K), LevsketchStateError, name)
    with quiet():
        selector.fit(K)  # a new stream may differ
    assert selector.to_bytes() == fit(K, new, **({"eps": 0.05} | {name: value})).to_bytes()


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"function": "huber"}, {"function": Huber()}),
        ({"function": "huber"}, {"function": ["huber", {"threshold": 1.345}]}),
        ({"function": Huber(2)}, {"function": ("huber", {"threshold": 2.0})}),
        ({"max_memory": "1GiB"}, {"max_memory": 1 << 30}),
        ({"p": 3}, {"p": np.float32(3.0)}),
        ({"refine": np.bool_(True)}, {"refine": True}),
        ({"random_state": np.int64(5)}, {"random_state": 5}),
    ],
    ids=str,
)
def test_one_value_in_two_spellings_is_one_parameter(one, same):
    a, b = (fit(K, LpSensitivitySelector, **params) for params in (one, same))
    assert a.to_bytes() == b.to_bytes()
    with quiet():
        assert a.merge(b).n_samples_seen_ == b.merge(a).n_samples_seen_ == 5000
        assert a.set_params(**same).partial_fit(K).n_samples_seen_ == 5000


# -- memory


@pytest.mark.parametrize(
    ("params", "d", "words"),
    [
        ({"p": 6, "normaliser": "lift"}, 200, ["1353400 columns", "d = 200 and p = 6"]),
        ({"normaliser": "tensorsketch", "sketch_size": 10**9}, 3, ["sketch_size", "1000000000"]),
        ({"normaliser": "lift", "max_memory": 8000}, 3, ["8064 bytes", "max_memory=8000"]),
        ({"max_memory": "4KB"}, 3, ["8064 bytes", "max_memory=4000"]),
    ],
    ids=str,
)
def test_lifts_that_take_too_much_are_refused_with_the_estimate_before_they_are_made(
    params, d, words
):
    X = np.ones((2000, d))
    for method in ("fit", "partial_fit"):
        selector = LpSensitivitySelector(**params)
        tracemalloc.start()
        error = unchanged(selector, lambda s=selector, m=method: getattr(s, m)(X), ValueError, None)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        tracemalloc.stop()
        assert vars(selector) == vars(LpSensitivitySelector(**params))
        assert all(word in str(error) for word in [*words, "bytes", "max_memory"])


def test_samples_that_take_too_much_are_refused_and_say_what_fills_them():
    many = RNG.standard_normal((20_000, 4))
    params = {"p": 3, "delta": 0.05, "max_memory": 150_000}
    selector = fit(many[:1500], LpSensitivitySelector, **params)
    for method in (selector.fit, selector.partial_fit):
        error = unchanged(selector, lambda m=method: m(many), ValueError, "max_memory=150000")
        assert "for the normaliser" in str(error)
        assert "delta" in str(error)
    assert fit(many, LpSensitivitySelector, **(params | {"normaliser": None})).indices_.size > 0


def test_what_partial_fit_took_can_be_looked_at():
    # rows that wait for their block are held whatever happens; so a look cannot be refused
    selector = LpSensitivitySelector(p=3, normaliser=None, max_memory=20_000)
    with quiet():
        selector.partial_fit(K[:500])
        assert selector.indices_.size > 0


# -- extreme values


@pytest.mark.parametrize("value", ["9" * 400, "9" * 400 + "TiB", 10**400], ids=["B", "TiB", "int"])
def test_sizes_beyond_any_float_are_sizes_or_refused_by_name(value):
    selector = LpSensitivitySelector(max_memory=value)
    try:
        fit(K, lambda: selector)
    except ValueError as error:
        assert "max_memory" in str(error)  # noqa: PT017


@pytest.mark.parametrize("delta", [1e-100, 1e-160, 1e-200, 5e-324])
@pytest.mark.parametrize("failure", [0.01, 5e-324, 1 - 2.0**-53])
def test_accuracies_that_are_hardly_numbers_keep_every_row(delta, failure):
    selector = fit(K, LpSensitivitySelector, p=3, delta=delta, failure_probability=failure)
    assert selector.sample_size_ == len(K)
    assert np.isfinite(selector.transform(K[:5])).all()


@pytest.mark.parametrize("normaliser", ["lift", "tensorsketch"])
def test_lifts_of_a_degree_without_digits_are_refused_by_name(normaliser):
    selector = LpSensitivitySelector(p=42, normaliser=normaliser)
    with pytest.raises(ValueError, match=r"p must be at most 40 .* got 42"):
        selector.fit(K)
    assert fit(K, LpSensitivitySelector, p=42).normaliser_ == "sample"


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("p", [5e-324, 1e-3, 100.0, 342.0, 400.0, 1e4, 1e6, 1e300])
def test_exponents_of_any_size_work_or_are_refused_by_name(p, d):
    selector = LpSensitivitySelector(p=p)
    try:
        fit(K[:, :d], lambda: selector)
    except ValueError as error:
        assert "p" in str(error).split("=")[0]  # noqa: PT017
        return
    scores = selector.transform(K[:20, :d])
    assert np.isfinite(scores).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert selector.certified_ in (True, False)


@every_selector
@pytest.mark.parametrize("eps", [1e-300, 1e-310, 5e-324])
def test_thresholds_that_are_hardly_numbers_are_thresholds_all_the_same(new, eps):
    with pytest.warns(UserWarning, match=NOT_REDUCED):
        assert len(new(eps=eps).fit(K).indices_) == len(K)


@pytest.mark.parametrize("eps", [1e-300, 5e-324])
def test_what_is_kept_without_proof_is_bounded_at_any_threshold(eps):
    selector = LeverageKeySelector(eps=eps).partial_fit(1e-100 * RNG.standard_normal((1024, 4)))
    selector.partial_fit(np.ones((12_000, 4)))  # more than is kept without proof
    with pytest.warns(CertificationWarning):
        assert not selector.certified_


# -- functions


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


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, "x", None, True])
def test_functions_check_ridge(value):
    with pytest.raises((ValueError, TypeError), match=r"ridge must be .* got"):
        leverage_scores(K, ridge=value)
