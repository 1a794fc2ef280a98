"""LeverageKeySelector: what it says of its set, its budget, and the scores of queries."""

import numpy as np
import oracles
import pandas as pd
import pytest
from fitting import fit, quiet, split, stream
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracles import U
from strategies import (
    conditioned,
    cuts,
    duplicates,
    gaussian,
    growing,
    heavy_tails,
    ill_conditioned,
    keys,
    lone_in_hyperplane,
    low_rank,
    make,
    tiny_keys,
    zero_rows,
)

from levsketch import LeverageKeySelector, leverage_scores
from levsketch.streaming.rank import RowSpace

EPS = st.sampled_from([0.01, 0.1, 0.5, 1.0])


def slack_of(made):
    return oracles.slack(made.basis)


# -- the set and what is said of it


@given(keys(max_rows=3000), EPS, st.integers(0, 5))
def test_attributes_describe_the_same_rows(made, eps, min_keys):
    selector = fit(made.K, eps=eps, min_keys=min_keys)
    rows = selector.indices_
    n, d = made.K.shape
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert len(rows) >= min(min_keys, n)
    np.testing.assert_array_equal(selector.keys_, made.K[rows])
    assert selector.keys_.dtype == made.K.dtype
    np.testing.assert_array_equal(selector.get_support(indices=True), rows)
    np.testing.assert_array_equal(np.flatnonzero(selector.get_support()), rows)
    assert selector.get_support().shape == (n,)
    np.testing.assert_array_equal(selector.select(made.K), selector.keys_)
    assert selector.get_feature_names_out().tolist() == [f"key{j}" for j in rows]
    assert selector.scores_.shape == selector.guard_.shape == (len(rows),)
    assert ((selector.scores_ >= 0) & (selector.scores_ <= 1)).all()
    assert (selector.guard_ >= 0).all()
    assert (selector.n_samples_seen_, selector.n_features_in_) == (n, d)
    assert selector.condition_number_ >= 1
    assert selector.method_ in ("gram", "qr", "gram+qr")
    assert selector.transform(made.K[:3]).shape == (min(3, n), len(rows))


@given(keys(max_rows=4000, max_columns=6), EPS)
def test_the_guard_and_the_unselected_bound_are_true(made, eps):
    selector = fit(made.K, eps=eps)
    slack = slack_of(made)
    assume(slack < 1e-3)
    true = oracles.leverage(made.basis)
    outside = np.delete(true, selector.indices_).max(initial=0)
    assert outside * (1 - slack) <= selector.unselected_bound_
    if selector.certified_:
        inside = true[selector.indices_] * (1 - slack)
        assert (inside <= selector.scores_ + selector.guard_).all()
        assert selector.unselected_bound_ < eps


@pytest.mark.parametrize("kind", [gaussian, low_rank, zero_rows])
@pytest.mark.parametrize("min_keys", [0, 1, 7, 10**9])
def test_min_keys_tops_the_set_up_with_the_best(kind, min_keys):
    K = make(kind, 0, 900, 4).K
    plain, topped = fit(K, eps=0.9, min_keys=0), fit(K, eps=0.9, min_keys=min_keys)
    size = min(max(min_keys, len(plain.indices_)), len(K))
    assert len(topped.indices_) == size
    assert set(plain.indices_) <= set(topped.indices_)
    scores = leverage_scores(K)
    best = np.sort(scores)[::-1][:size]
    np.testing.assert_allclose(np.sort(topped.scores_)[::-1], best, rtol=1e-9, atol=1e-12)


def test_min_keys_tops_up_from_along_a_stream():
    K = make(gaussian, 1, 20_000, 4).K
    selector = stream(split(K, range(3000, 20_000, 3000)), eps=0.9, min_keys=6)
    assert selector.certified_
    best = np.argsort(-leverage_scores(K))[:6]
    assert selector.indices_.tolist() == sorted(best.tolist())


def test_zero_keys_select_nothing_but_a_top_up():
    assert fit(np.zeros((50, 3)), eps=0.5, min_keys=0).indices_.size == 0
    topped = fit(np.zeros((50, 3)), eps=0.5)
    assert topped.indices_.tolist() == [0]
    assert topped.scores_.tolist() == [0.0]
    assert topped.certified_


# -- a budget instead of a threshold


@settings(max_examples=100)
@given(keys(max_rows=6000, max_columns=5), st.integers(1, 40), st.data())
@example(make(conditioned, 0, 400, 5), 3, None)
@example(make(duplicates, 1, 2000, 3), 10, None)
def test_a_certified_budget_holds_the_top_keys(made, n_keys, data):
    batches = split(made.K, data.draw(cuts(len(made.K)))) if data else [made.K]
    selector = stream(batches, n_keys=n_keys)
    slack = slack_of(made)
    assume(slack < 1e-3)
    assert len(selector.indices_) == min(n_keys, len(made.K))
    true = oracles.leverage(made.basis)
    inside = true[selector.indices_].min()
    outside = np.delete(true, selector.indices_).max(initial=0)
    assert outside * (1 - slack) <= selector.unselected_bound_
    if selector.certified_:
        assert outside * (1 - slack) <= inside * (1 + slack)


def test_budgets_are_not_certified_where_rounding_decides_the_order():
    checked = 0
    for seed in range(30):
        K = ill_conditioned(np.random.default_rng(seed), 300, 6, 1e12)
        true, computed = np.array(oracles.leverage(K), float), leverage_scores(K)
        order = np.argsort(-computed, kind="stable")
        for k in range(1, 300):
            if true[order[k:]].max() > true[order[:k]].min() * (1 + 1e-7):
                assert not fit(K, n_keys=k).certified_
                checked += 1
    assert checked > 3  # such places exist


def test_budgets_on_streams_with_outstanding_keys_are_certified_and_right():
    K = make(heavy_tails, 3, 40_000, 3).K
    selector = stream(split(K, range(2000, 40_000, 2000)), n_keys=5)
    top = np.argsort(-np.array(oracles.leverage(K), float))[:5]
    assert selector.certified_
    assert selector.indices_.tolist() == sorted(top.tolist())


def test_a_budget_that_lost_a_key_on_the_way_says_so():
    # a crowd of good keys passes while the pool is full of better ones, which then drown
    rng = np.random.default_rng(4)
    early = np.zeros((4096, 2))
    early[:, 0] = 1.0 + 1e-3 * rng.random(4096)  # all alike: only the best are kept
    late = np.zeros((40_000, 2))
    late[:, 1] = 1.0
    selector = stream([early, late], n_keys=1000)
    order = np.argsort(-leverage_scores(np.concatenate([early, late])), kind="stable")
    if selector.indices_.tolist() != sorted(order[:1000].tolist()):
        assert not selector.certified_


def test_a_key_that_was_screened_out_forbids_the_certificate():
    # while 18 keys along e0 are the best, the large one along e1 goes at sight; later, many
    # more along e0 make those scores small, and the one that went would be the best
    K = np.zeros((4096 + 1024 + 1024, 2))
    K[:18, 0] = 1.0
    K[18 : 4096 + 1024, 1] = 1.0
    K[4500, 1] = 7.0
    K[-300:, 0] = 1.0
    selector = fit(K, n_keys=1)
    assert selector.indices_.tolist() == [4500] or not selector.certified_
    assert selector.unselected_bound_ >= leverage_scores(K)[4500] or 4500 in selector.indices_


@pytest.mark.parametrize("n_keys", [1, 5, 100])
def test_equal_keys_can_be_certified(n_keys):
    # any of them is a top key
    selector = fit(np.ones((50, 2)), n_keys=n_keys)
    assert selector.certified_
    assert selector.indices_.tolist() == list(range(min(50, n_keys)))


# -- queries


@given(tiny_keys(), st.data(), st.sampled_from([0.0, 0.5, 1e-300]))
def test_transform_is_the_attention_score_of_rational_arithmetic(K, data, ridge):
    selector = fit(K, min_keys=len(K), ridge=ridge)
    found = selector._selected().whitening
    assume(found.certified)
    entry = st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, 1e-300, 1e300])
    row = st.lists(entry, min_size=K.shape[1], max_size=K.shape[1])
    Q = np.array(data.draw(st.lists(row, min_size=1, max_size=3)))
    scores = selector.transform(Q)
    for q, mine in zip(Q, scores, strict=True):
        exact = oracles.exact_attention(q, K, ridge)
        # products of both signs may cancel: only then do the terms count, not the sums
        plain = all(a >= 0 for a in q) and (K >= 0).all()
        if plain:
            np.testing.assert_allclose(
                mine, [float(x) for x in exact], rtol=4 * found.error + 40 * U, atol=1e-280
            )
        assert ((mine >= 0) & (mine <= 1)).all()
        if not any(exact):
            np.testing.assert_array_equal(mine, 0.0)


@given(keys(max_rows=2500, max_columns=5), st.sampled_from([0.0, 0.7]), st.integers(0, 99))
def test_rows_of_transform_are_at_most_one_and_below_the_leverage(made, ridge, seed):
    selector = fit(made.K, eps=0.01, ridge=ridge)
    assume(selector.certified_)
    Q = np.random.default_rng(seed).standard_normal((20, made.K.shape[1]))
    scores = selector.transform(Q)
    bound = selector.scores_ + selector.guard_
    assert (scores <= bound * (1 + 2.0**-22)).all()
    assert (scores.sum(axis=1) <= (1 + selector._selected().whitening.error) ** 4 + 1e-6).all()


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 2.5])
def test_transform_is_the_definition(intercept, ridge):
    rng = np.random.default_rng(5)
    K, Q = rng.standard_normal((5000, 4)), rng.standard_normal((30, 4))
    selector = fit(K, eps=0.002, intercept=intercept, ridge=ridge)
    products = np.square(Q @ K.T)
    total = products.sum(axis=1) + ridge * np.square(Q).sum(axis=1)
    expected = (products / total[:, None])[:, selector.indices_]
    scores = leverage_scores(K, intercept=intercept, ridge=ridge)
    np.testing.assert_allclose(selector.scores_, scores[selector.indices_], rtol=1e-9)
    np.testing.assert_allclose(selector.transform(Q), expected, rtol=1e-9, atol=1e-13)


@given(tiny_keys(), tiny_keys(), st.sampled_from([0.0, 0.5]))
@example(np.eye(2), np.array([[2.0, 0.0]]), 0.0)
@example(np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 2.0]]), 0.0)
def test_score_samples_is_the_quadratic_form_of_rational_arithmetic(K, X, ridge):
    assume(K.shape[1] == X.shape[1])
    selector = fit(K, ridge=ridge)
    found = selector._selected().whitening
    assume(found.certified)
    scores = selector.score_samples(X)
    for x, score in zip(X, scores, strict=True):
        if not ridge and not oracles.in_row_space(x, K):
            # decided modulo a prime that is near 2**61: 2**61 and 31 are one number to it
            assert score == np.inf or not RowSpace.empty(len(x)).absorb(K)[0].outside(x[None])[0]
            continue
        # k^T G^+ k of a row that is not in the sum yet: y / (1 - y) once it is
        share = oracles.exact_leverage(np.vstack([K, x]), ridge)[-1]
        exact = share / (1 - share)
        if exact < 10**290:
            assert score == pytest.approx(float(exact), rel=4 * found.error + 40 * U, abs=1e-285)
        else:
            assert score > 1e280


@given(keys(max_rows=3000), st.booleans())
def test_score_samples_of_the_rows_seen_are_their_scores(made, intercept):
    selector = fit(made.K, eps=0.01, intercept=intercept)
    found = selector._selected().whitening
    assume(found.certified)
    scores = selector.score_samples(made.K)
    with quiet():
        expected = leverage_scores(made.K, intercept=intercept)
    assert scores.dtype == expected.dtype
    np.testing.assert_allclose(
        scores, expected, rtol=4 * found.error + 4e-7 * (scores.dtype == np.float32), atol=1e-290
    )
    np.testing.assert_allclose(
        scores[selector.indices_], selector.scores_, rtol=4 * found.error + 4e-7, atol=1e-290
    )


@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e300, 1.7e308])
def test_queries_of_any_size_give_no_nan_and_the_same_scores(size):
    K = make(gaussian, 6, 500, 3).K
    selector = fit(K, eps=0.01)
    Q = np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, -1.0, 1.0]])
    np.testing.assert_allclose(
        selector.transform(size * Q), selector.transform(np.sign(Q)), rtol=1e-13
    )
    assert not np.isnan(selector.score_samples(size * Q)).any()
    assert not np.isnan(selector.transform([[1.7e308, 5e-324, -1.7e308]])).any()


@given(keys(max_rows=2000, max_columns=5), EPS, st.integers(0, 99))
def test_heavy_scores_are_those_of_transform_and_no_more_than_eps_allows(made, eps, seed):
    selector = fit(made.K, eps=eps, min_keys=0)
    Q = np.random.default_rng(seed).standard_normal((15, made.K.shape[1]))
    heavy = selector.heavy_scores(Q)
    assert heavy.shape == (15, len(made.K))
    dense, scores = heavy.toarray(), np.zeros((15, len(made.K)))
    scores[:, selector.indices_] = selector.transform(Q)
    assert (dense[scores >= eps] > 0).all()
    stored = heavy.tocoo()
    np.testing.assert_allclose(stored.data, scores[stored.coords], rtol=1e-12)
    # each query has at most 1/eps of them
    if selector.certified_:
        assert np.diff(heavy.indptr).max() <= (1 + 1e-3) / eps + 1


def test_heavy_scores_do_not_depend_on_budget_or_top_up():
    K, Q = make(gaussian, 7, 3000, 3).K, make(gaussian, 8, 20, 3).K[:20]
    expected = fit(K, eps=0.004, min_keys=0).heavy_scores(Q).toarray()
    assert (expected > 0).any()
    for params in ({"min_keys": 50}, {"n_keys": 1}, {"n_keys": 2000}):
        np.testing.assert_allclose(
            fit(K, eps=0.004, **params).heavy_scores(Q).toarray(), expected, rtol=1e-12
        )


@given(keys(max_rows=2000, max_columns=5), EPS, st.booleans())
@example(make(lone_in_hyperplane, 3, 500, 2), 0.5, False)
def test_witness_queries_attain_the_scores(made, eps, intercept):
    selector = fit(made.K, eps=eps, intercept=intercept, min_keys=0)
    assume(selector.certified_)
    queries = selector.witness_queries()
    assert queries.shape == (len(selector.indices_), made.K.shape[1] + intercept)
    assert np.isfinite(queries).all()
    K = np.asarray(made.K, np.longdouble)
    if intercept:  # the weight of the intercept comes last
        K = np.concatenate([K, np.ones((len(K), 1))], axis=1)
    exact = oracles.attention(queries, K)[np.arange(len(queries)), selector.indices_]
    error = 4 * selector._selected().whitening.error
    assume(error < 0.1)
    np.testing.assert_allclose(np.asarray(exact, float), selector.scores_, rtol=error + 1e-9)


# -- containers


def test_frames_give_names_and_rows_of_frames():
    frame = pd.DataFrame(
        make(gaussian, 9, 300, 3).K, columns=["a", "b", "c"], index=range(300, 600)
    )
    selector = fit(frame, eps=0.05)
    assert selector.feature_names_in_.tolist() == ["a", "b", "c"]
    taken = selector.select(frame)
    assert taken.index.tolist() == (selector.indices_ + 300).tolist()
    keys_taken, values = selector.select(frame, frame["a"])
    pd.testing.assert_frame_equal(keys_taken, taken)
    assert values.tolist() == frame["a"].iloc[selector.indices_].tolist()


def test_select_takes_values_of_any_shape():
    K = make(gaussian, 10, 300, 3).K
    selector = fit(K, eps=0.05)
    V = np.arange(300 * 4).reshape(300, 2, 2)
    taken, values = selector.select(K.tolist(), V)
    np.testing.assert_array_equal(taken, selector.keys_)
    np.testing.assert_array_equal(values, V[selector.indices_])


def test_batches_of_other_types_widen_the_keys():
    K = make(gaussian, 11, 300, 2).K
    narrow = stream([K.astype(np.float16), K.astype(np.float32)], eps=0.1)
    assert narrow.keys_.dtype == np.float32
    assert stream([K.astype(np.float32), np.ones((2, 2), int)], eps=0.1).keys_.dtype == np.float64
    assert stream([np.ones((5, 2), int)], eps=0.1).keys_.dtype == np.float64


def test_the_method_tells_which_way_the_blocks_went():
    K = make(gaussian, 12, 4096, 3).K[:4096]
    assert fit(K).method_ == "gram"
    assert fit(K[:100], eps=0.5).method_ == "qr"
    assert fit(K[:4000]).method_ == "gram+qr"
    assert fit(ill_conditioned(np.random.default_rng(0), 4096, 3, 1e11)).method_ == "qr"


@pytest.mark.parametrize("kind", [gaussian, conditioned, growing])
def test_reading_attributes_changes_no_byte(kind):
    K = make(kind, 13, 2500, 3).K
    selector, untouched = fit(K, eps=0.05), LeverageKeySelector(eps=0.05)
    before = selector.to_bytes()
    with quiet():
        for name in ("indices_", "keys_", "scores_", "guard_", "unselected_bound_", "nbytes_"):
            getattr(selector, name)
        selector.transform(K[:5])
        selector.witness_queries()[:] = 0.0
        selector.keys_[:] = 0.0
        selector.scores_[:] = 0.0
        selector.indices_[:] = 0
        assert selector.to_bytes() == before
        np.testing.assert_array_equal(selector.keys_, K[selector.indices_])
        untouched.partial_fit(K)
        assert untouched.to_bytes() == before
