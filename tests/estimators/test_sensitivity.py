"""LpSensitivitySelector: true bounds, complete scores, and what refining leaves known."""

import pickle
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from fitting import LP_SELECTORS, every_lp_selector, fit, public, quiet, split, stream
from foreign import LIBRARIES, host
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracles import U
from strategies import gaussian, heavy_tails, keys, make

from levsketch import (
    CertificationWarning,
    LevsketchStateError,
    LpSensitivitySelector,
    sensitivities,
)
from levsketch.functions import Huber, ScoreFunction, Tukey

K = make(heavy_tails, 3, 2500, 3).K
Q = np.random.default_rng(1).standard_normal((12, 3))


@dataclass(frozen=True)
class Capped(ScoreFunction):
    """x^2 up to a height."""

    name: ClassVar[str] = "capped-for-tests"
    height: float = 1.0

    def values(self, x):
        return np.square(np.minimum(x, np.sqrt(self.height)))


def attention(Q, K, f):
    """Return ``f(<q, k>) / sum_l`` (m, n) in long double, and the error of its products."""
    A, B = np.asarray(Q, np.longdouble), np.asarray(K, np.longdouble)
    products = np.abs(A @ B.T)
    if isinstance(f, float):  # a power: no value may under- or overflow
        top = products.max(axis=1, keepdims=True)
        values = (products / np.where(top > 0, top, 1)) ** np.longdouble(f)
    else:
        values = f(products.astype(float)).astype(np.longdouble)
    total = values.sum(axis=1, keepdims=True)
    return values / np.where(total > 0, total, 1)


# -- scores


@pytest.mark.parametrize("p", [2.0, 4.0, 6.0])
def test_scores_of_even_p_are_exact_and_none_of_eps_is_missed(p):
    K = make(gaussian, 3, 2500, 3).K
    selector = stream(split(K, [700, 1024, 1900]), LpSensitivitySelector, p=p, eps=0.003)
    true = attention(Q, K, p)
    assert selector.normaliser_ == "lift"
    # condition^p of these keys is below 100
    np.testing.assert_allclose(
        selector.transform(Q), true[:, selector.indices_].astype(float), rtol=1e4 * U, atol=1e-300
    )
    heavy = selector.heavy_scores(Q).toarray()
    np.testing.assert_array_equal(heavy > 0, true >= 0.003)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 3.0, 5.0])
def test_scores_of_other_p_are_within_delta_and_heavy_ones_are_complete(p):
    rng = np.random.default_rng(2)
    queries, many = rng.standard_normal((400, 3)), rng.standard_normal((12_000, 3))
    many[:9] *= 40.0
    asked = {"p": p, "eps": 0.02, "delta": 0.25, "failure_probability": 0.05}
    selector = fit(many, LpSensitivitySelector, **asked)
    assert 5 < selector.sample_size_ < 6000
    true = attention(queries, many, p)
    mine = true[:, selector.indices_].astype(float)
    ratio = (selector.transform(queries) / np.where(mine > 0, mine, 1)).max(axis=1)
    # at most a share of failure_probability, with four deviations of a binomial to spare
    most = 400 * 0.05 + 4 * np.sqrt(400 * 0.05)
    assert ((ratio > 1.26) | (ratio < 0.79)).sum() <= most
    heavy = selector.heavy_scores(queries).toarray() > 0
    assert ((true >= 0.02 * (1 + 1e-12)) & ~heavy).any(axis=1).sum() <= most
    assert not (heavy & (true < 0.02 / 1.3**2)).sum() > most


@pytest.mark.parametrize("function", ["huber", "tukey", Huber(0.1), Tukey(30.0), Capped(2.0)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_scores_of_functions_follow_the_length_of_the_query(function, size):
    selector = fit(K[:1500], LpSensitivitySelector, function=function, eps=0.02, delta=0.5)
    f = selector._stream.policy.score_function
    true = attention(size * Q, K[:1500], f)
    found = selector.transform(size * Q)
    np.testing.assert_allclose(found, true[:, selector.indices_].astype(float), rtol=0.6, atol=1e-9)
    heavy = selector.heavy_scores(size * Q).toarray() > 0
    assert not ((true >= 0.02 * (1 + 1e-12)) & ~heavy).any()


@every_lp_selector
@pytest.mark.parametrize("n", [1, 700, 3000])
def test_zero_keys_are_in_no_set_but_as_a_top_up(new, n):
    zeros = np.zeros((n, 3))
    assert fit(zeros, new, eps=1e-6, min_keys=0).indices_.size == 0
    topped = fit(zeros, new, eps=1e-6)
    assert topped.indices_.tolist() == [0]
    assert not topped.sensitivity_bounds_.any()
    mixed = np.concatenate([make(gaussian, 8, 3000, 3).K, zeros])
    selector = fit(mixed, new, eps=1e-6, min_keys=0)
    assert selector.indices_.max() < 3000
    assert not selector.transform(np.zeros((2, 3))).any()


@every_lp_selector
def test_queries_of_nothing_give_zeros_and_none_gives_nan(new):
    flat = np.array(make(gaussian, 4, 2500, 3).K)
    flat[:, 2] = flat[:, 0] + flat[:, 1]  # exact rank two up to rounding of the sum
    flat = np.round(flat * 64) / 64  # sums of such numbers are exact
    flat[:, 2] = flat[:, 0] + flat[:, 1]
    selector = fit(flat, new, eps=0.02)
    silent = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, -1.0], [1e-300, 1e-300, -1e-300]])
    assert not selector.transform(silent).any()
    assert not selector.heavy_scores(silent).toarray().any()
    assert np.isinf(selector.score_samples([[1.0, 1.0, -1.0]])).all()
    assert not selector.score_samples([[0.0, 0.0, 0.0]]).any()
    if selector.function is not None:
        with pytest.raises(ValueError, match="overflows for query 1"):
            selector.transform([[1.0, 0, 0], [1.7e308, 1.7e308, 1.7e308]])
        return
    sizes = [1e-320, 1e-300, 1e300, 1.7e308]
    for size in sizes:
        scores = selector.transform(np.sign(Q) * size)
        np.testing.assert_allclose(scores, selector.transform(np.sign(Q)), rtol=1e-9, atol=1e-300)
    assert not np.isnan(selector.transform([[1.7e308, 5e-324, -1.7e308]])).any()


@pytest.mark.parametrize("tiny", [1e-5, 1e-8, 1e-10])
def test_scores_are_right_or_in_doubt_where_lifted_keys_lose_their_digits(tiny):
    # squares of this query against the first key are lost in the rounding of its fourth powers
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        selector = LpSensitivitySelector(eps=0.5).fit([[1.0, 1.0], [tiny, -tiny]])
        scores = selector.transform([[1.0, -1.0]])
    right = np.allclose(scores, [[0.0, 1.0]], rtol=1e-6)
    assert right or any(issubclass(w.category, CertificationWarning) for w in caught)


@pytest.mark.parametrize("p", [1.0, 3.0, 5.0])
def test_samples_of_all_rows_miss_no_score_where_products_cancel(p):
    # the product with the large key is nothing but rounding
    for seed in range(40):
        a, b = np.random.default_rng(seed).uniform(1e9, 2e9, 2)
        keys_, query = np.array([[a, b], [1e-8, -1e-8], [5e-9, 4e-9]]), np.array([[b, -a]])
        selector = fit(keys_, LpSensitivitySelector, p=p, eps=0.3, normaliser="sample")
        assert selector.sample_size_ == 3
        found = np.zeros((1, 3), bool)
        found[selector.heavy_scores(query).tocoo().coords] = True
        assert not ((attention(query, keys_, p) >= 0.3 * (1 + 1e-9)) & ~found).any()


def test_without_a_normaliser_scores_are_refused_and_the_set_is_there():
    selector = fit(K, LpSensitivitySelector, p=3, eps=0.02, normaliser=None)
    assert selector.normaliser_ == "none"
    assert selector.sample_size_ == 0
    for method in ("transform", "heavy_scores"):
        with pytest.raises(LevsketchStateError, match="normaliser=None"):
            getattr(selector, method)(Q)
    with_one = fit(K, LpSensitivitySelector, p=3, eps=0.02)
    np.testing.assert_array_equal(selector.indices_, with_one.indices_)
    np.testing.assert_array_equal(selector.score_samples(Q), with_one.score_samples(Q))


def test_the_random_state_decides_the_sample_and_nothing_else():
    one, same, other = (
        fit(K, LpSensitivitySelector, p=3, eps=0.02, delta=0.4, random_state=seed)
        for seed in (5, 5, 6)
    )
    assert one.to_bytes() == same.to_bytes()
    assert one.to_bytes() != other.to_bytes()
    np.testing.assert_array_equal(one.indices_, other.indices_)
    np.testing.assert_array_equal(one.sensitivity_bounds_, other.sensitivity_bounds_)
    assert not np.array_equal(one._stream.pool.tickets, other._stream.pool.tickets)


@every_lp_selector
@pytest.mark.parametrize("n", [5, 5 * 1024, 5 * 1024 + 7])
def test_looking_changes_no_byte(new, n):
    X = make(heavy_tails, 9, 6000, 3).K[:n]
    selector, untouched = new(eps=0.02).partial_fit(X), new(eps=0.02).partial_fit(X)
    before = selector.to_bytes()
    first = public(selector, Q)
    for name in ("indices_", "keys_", "scores_", "guard_", "sensitivity_bounds_"):
        getattr(selector, name)[...] = 0
    selector.sensitivity_intervals_[...] = 0.0
    with quiet():
        selector.witness_queries()[...] = 0.0
        assert public(selector, Q) == first
        assert selector.to_bytes() == before
        assert selector.partial_fit(X).to_bytes() == untouched.partial_fit(X).to_bytes()


# -- bounds


@settings(max_examples=40)
@given(keys(max_rows=120, max_columns=3), st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0, 6.0]))
@example(make(heavy_tails, 1, 120, 3), 4.0)
def test_bounds_hold_against_every_key_and_random_query(made, p):
    selector = fit(made.K, LpSensitivitySelector, p=p, eps=0.05, min_keys=0, normaliser=None)
    assume(selector.certified_)
    queries = np.random.default_rng(0).standard_normal((60, made.K.shape[1]))
    queries = np.concatenate([queries, made.K[:40], selector.witness_queries()])
    reached = attention(queries, made.K, p).max(axis=0).astype(float)
    exact = made.kind not in ("conditioned", "smooth", "lone_in_hyperplane", "heavy_tails")
    slack = 1e-9 if exact else 1e-3
    bounds = selector.sensitivity_bounds_
    assert (reached[selector.indices_] * (1 - slack) <= bounds).all()
    outside = np.delete(reached, selector.indices_).max(initial=0)
    assert outside * (1 - slack) <= selector.unselected_bound_ < 0.05 or outside == 0


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
def test_refined_sets_are_the_universal_ones(p):
    X = make(heavy_tails, 5, 400, 3).K
    eps = 0.05
    selector = fit(X, LpSensitivitySelector, p=p, eps=eps, refine=True, min_keys=0)
    lower, upper = sensitivities(X, p).T
    rows = selector.indices_
    assert selector.exact_
    assert (upper[rows] >= eps * (1 - 1e-5)).all()
    assert (np.delete(lower, rows) < eps * (1 + 1e-5)).all()
    low, high = selector.sensitivity_intervals_.T
    assert (low >= eps).all()
    assert (low <= upper[rows] * (1 + 1e-9)).all()
    assert (high * (1 + 1e-9) >= lower[rows]).all()
    # lower ends are attained by the queries that are given for them
    reached = attention(selector.witness_queries(), X, p)[np.arange(len(low)), selector.indices_]
    assert (reached >= low * (1 - 1e-9)).all()
    assert (reached <= high * (1 + 1e-9)).all()
    np.testing.assert_allclose(reached.astype(float), low, rtol=1e-5)
    np.testing.assert_array_equal(selector.scores_, low)
    np.testing.assert_allclose(selector.guard_, high - low, atol=1e-300)


@pytest.mark.parametrize("p", [1.0, 3.0, 4.0])
def test_what_is_exact_is_so_until_it_no_longer_is_known(p):
    X = make(heavy_tails, 6, 3000, 3).K
    new = LP_SELECTORS["refined"].func
    selector = fit(X, new, p=p, eps=0.05, refine=True, min_keys=0)
    assert selector.exact_
    upper = dict(zip(selector.indices_.tolist(), selector.sensitivity_bounds_, strict=True))
    again = pickle.loads(pickle.dumps(selector))
    merged = selector | selector
    with quiet():
        again.partial_fit(1e-3 * X[:50])
        for later in (again, merged):
            low, high = later.sensitivity_intervals_.T
            assert (low <= high).all()
            # with a lift the state alone decides; else all rows would have to be there
            assert later.exact_ == (p == 4.0) or not low.any()
            if p != 4.0:
                assert not low.any()
                assert later.exact_ == (not low.size)
            # upper ends hold for ever
            for row, bound in zip(later.indices_.tolist(), high, strict=True):
                assert bound <= upper.get(row % 3000, 1.0) * (1 + 1e-9)
    assert selector.exact_


def test_nothing_is_exact_of_bounds_alone():
    plain = fit(K, LpSensitivitySelector, p=3, eps=0.02)
    assert plain.certified_
    assert not plain.exact_
    assert not plain.sensitivity_intervals_[:, 0].any()
    np.testing.assert_array_equal(plain.scores_, plain.sensitivity_bounds_)
    assert not plain.guard_.any()


# -- functions


@pytest.mark.parametrize("function", ["huber", Huber(0.5), ["tukey", {"threshold": 3.0}], Capped()])
def test_functions_of_every_kind_are_saved_pickled_and_go_on(function):
    selector = fit(K[:1500], LpSensitivitySelector, function=function, eps=0.02, delta=0.5)
    for again in (
        LpSensitivitySelector.from_bytes(selector.to_bytes()),
        pickle.loads(pickle.dumps(selector)),
    ):
        assert public(again, Q) == public(selector, Q)
        with quiet():
            assert again.partial_fit(K).to_bytes() == (
                stream([K[:1500], K], LpSensitivitySelector, **selector.get_params()).to_bytes()
            )


# -- containers


@every_lp_selector
@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_library_gets_its_own_arrays_with_the_numbers_of_numpy(new, name, dtype):
    rows = K[:400].astype(dtype)
    X = LIBRARIES[name](rows)
    selector, expected = fit(X, new, eps=0.02), fit(rows, new, eps=0.02)
    assert selector.to_bytes() == expected.to_bytes()
    fields = ["indices_", "keys_", "scores_", "guard_"]
    fields += ["sensitivity_bounds_", "sensitivity_intervals_"]
    pairs = [(getattr(selector, field), getattr(expected, field)) for field in fields]
    pairs += [
        (selector.transform(X), expected.transform(rows)),
        (selector.score_samples(X), expected.score_samples(rows)),
        (selector.witness_queries(), expected.witness_queries()),
        (selector.select(X), expected.select(rows)),
    ]
    for found, reference in pairs:
        assert type(found) is type(X)
        assert host(found).dtype == reference.dtype
        np.testing.assert_array_equal(host(found), reference)


@pytest.mark.parametrize("asked", [{"p": 1}, {"function": "huber"}])
def test_what_could_not_be_certified_earlier_in_the_stream_is_warned_of(asked):
    rng = np.random.default_rng(0)
    bad = rng.standard_normal((1024, 3))
    bad[:, 2] = bad[:, 0] * (1 + 1e-15 * rng.standard_normal(1024))
    selector = LpSensitivitySelector(eps=0.05, normaliser=None, **asked)
    selector.partial_fit(bad).partial_fit(rng.standard_normal((5000, 3)))
    with pytest.warns(CertificationWarning, match="earlier in the stream"):
        assert not selector.certified_


def test_keys_that_cannot_be_certified_do_not_pile_up():
    rng = np.random.default_rng(1)
    K = rng.standard_normal((60_000, 3))
    K[:, 2] = K[:, 0] * (1 + 1e-15 * rng.standard_normal(len(K)))
    selector = LpSensitivitySelector(p=3, normaliser=None)
    for block in np.array_split(K, 6):
        selector.partial_fit(block)
    assert len(selector._stream.pool) < 12_000
    with quiet():
        assert not selector.certified_


def test_refined_budgets_are_proved_to_be_the_top():
    K = np.random.default_rng(2).standard_normal((300, 3))
    selector = fit(K, LpSensitivitySelector, p=3, n_keys=5, eps=0.01, refine=True)
    exact = sensitivities(K, 3).mean(axis=1)
    assert sorted(np.argsort(-exact)[:5]) == selector.indices_.tolist()
    assert selector.certified_
