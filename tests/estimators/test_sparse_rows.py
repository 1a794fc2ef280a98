"""LeverageKeySelector over sparse rows: the keys of the same rows as an array, in any batches."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
from fitting import LP_SELECTORS, fit, quiet, split, stream
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import cuts, keys, lone_axis, lone_in_hyperplane, make
from threadpoolctl import threadpool_limits

from levsketch import LeverageKeySelector, StreamingAttentionSketch, load

csr = scipy.sparse.csr_array
VARIANTS = [
    {"eps": 0.05},
    {"n_keys": 7},
    {"eps": 0.05, "intercept": True},
    {"eps": 0.05, "ridge": 0.3},
]
every_variant = pytest.mark.parametrize("params", VARIANTS)


def draw(n, d, share=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * (rng.random((n, d)) < share)


def thin(made, share):
    """Return drawn keys with all but a share of the entries made zero, of a type scipy knows."""
    K = made.K if made.K.dtype in (np.float32, np.float64) else made.K.astype(np.float64)
    return K * (np.random.default_rng(0).random(K.shape) < share)


def uneven(n, d, seed=0):
    """Return rows whose density goes up and down: blocks on both sides of every threshold."""
    share = 0.5 + 0.5 * np.sin(np.arange(n) / 900)[:, None]
    return draw(n, d, share, seed)


def sparse_batches(K, places):
    return [csr(part) for part in split(K, places)]


@every_variant
@settings(max_examples=20)
@given(keys(max_rows=5000, max_columns=5), st.sampled_from([0.2, 1.0]), st.data())
@example(make(lone_in_hyperplane, 1, 5000, 3), 1.0, None)
@example(make(lone_axis, 1, 5000, 3), 0.2, None)
def test_random_batches_leave_the_bytes_of_one_fit(params, made, share, data):
    K = thin(made, share)
    places = data.draw(cuts(len(K))) if data else [1, 2, 1023, 1024, 1024, 1025, 4999]
    whole = fit(csr(K), **params)
    assert stream(sparse_batches(K, places), **params).to_bytes() == whole.to_bytes()


@every_variant
@pytest.mark.parametrize("d", [4, 24])
def test_long_streams_leave_the_same_bytes_in_batches_of_any_size(params, d):
    K = uneven(25_000, d)
    whole = fit(csr(K), **params).to_bytes()
    for step in (997, 1024, 1025, 7000):
        places = range(step, len(K), step)
        assert stream(sparse_batches(K, places), **params).to_bytes() == whole
    one_row_batches = [*range(1000, 1100), *range(20_000, 20_050)]
    assert stream(sparse_batches(K, one_row_batches), **params).to_bytes() == whole


def test_forms_and_stored_zeros_do_not_change_a_byte():
    K = uneven(6000, 9)
    whole = fit(csr(K), eps=0.02).to_bytes()
    coo = csr(K).tocoo()
    halves = scipy.sparse.coo_array(
        (
            np.concatenate([coo.data / 2, coo.data / 2, np.zeros(500)]),
            tuple(np.concatenate([i, i, np.arange(500) % 9]) for i in coo.coords),
        ),
        shape=K.shape,
    )
    long = csr(K)
    long.indices, long.indptr = long.indices.astype(np.int64), long.indptr.astype(np.int64)
    for X in (csr(K).tocsc(), coo, halves, long, scipy.sparse.csr_matrix(K)):
        assert fit(X, eps=0.02).to_bytes() == whole


def test_thread_limits_do_not_change_a_byte():
    K = uneven(20_000, 48)
    found = set()
    for limit in (1, 2, 3):
        for api in ("blas", "openmp"):
            with threadpool_limits(limit, user_api=api), quiet():
                selector = fit(csr(K), eps=0.01)
                found.add(selector.to_bytes() + selector.score_samples(csr(K)).tobytes())
    assert len(found) == 1


SCRIPT = """
import hashlib
import numpy as np, scipy.sparse
import levsketch as lv
rng = np.random.default_rng(0)
K = rng.standard_normal((20000, 64)) * (rng.random((20000, 1)) < rng.random((20000, 64)) ** 3)
X = scipy.sparse.csr_array(K)
whole = lv.leverage_scores(X).tobytes() + lv.LeverageKeySelector(eps=0.01).fit(X).to_bytes()
print(hashlib.sha256(whole).hexdigest())
"""


def test_environment_thread_counts_do_not_change_a_byte():
    found = set()
    for omp, blas in (("1", "1"), ("2", "4"), ("7", "2")):
        env = os.environ | {"OMP_NUM_THREADS": omp, "OPENBLAS_NUM_THREADS": blas}
        command = [sys.executable, "-P", "-c", SCRIPT]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        found.add(run.stdout)
    assert len(found) == 1


@every_variant
@given(keys(max_rows=3000, max_columns=5))
def test_what_is_selected_is_what_the_array_selects(params, made):
    K = thin(made, 0.5)
    ours, theirs = fit(csr(K), **params), fit(K, **params)
    error = max(s._selected().whitening.error for s in (ours, theirs))
    assume(error < 0.1)
    assert ours.certified_ == theirs.certified_ or "n_keys" in params
    bound = 8 * error + 1e-12
    for a, b in ((ours, theirs), (theirs, ours)):
        # a key in one of the sets only is within rounding of the edge
        other = dict(zip(b.indices_.tolist(), b.scores_, strict=True))
        edge = params.get("eps", min(a.scores_.min(initial=1), b.scores_.min(initial=1)))
        for index, score in zip(a.indices_.tolist(), a.scores_, strict=True):
            if index in other:
                assert abs(score - other[index]) <= bound * score + 1e-300
            elif "eps" in params and len(a.indices_) > 1:
                assert abs(score - edge) <= bound
    with quiet():
        Q = np.random.default_rng(1).standard_normal((40, K.shape[1]))
        Q *= np.abs(Q) > 0.7
        np.testing.assert_array_equal(ours.transform(csr(Q)), ours.transform(Q))


@every_variant
def test_sparse_queries_have_the_answers_of_the_array(params):
    K, Q = uneven(5000, 12), draw(300, 12, 0.3, seed=1)
    selector = fit(csr(K), **params)
    for dtype in (np.float32, np.float64):
        X = csr(Q.astype(dtype))
        assert selector.transform(X).dtype == dtype
        np.testing.assert_array_equal(selector.transform(X), selector.transform(X.toarray()))
        found, want = selector.heavy_scores(X), selector.heavy_scores(X.toarray())
        assert (found != want).nnz == 0
        scores = selector.score_samples(X)
        assert scores.dtype == dtype
        rounding = 1e-6 if dtype is np.float32 else 1e-12
        np.testing.assert_allclose(scores, selector.score_samples(X.toarray()), rtol=rounding)
    assert selector.transform(csr((0, 12))).shape == (0, len(selector.indices_))


def test_queries_are_made_dense_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr("levsketch.algorithms.heavy._PAIRS", 200)
    K, Q = uneven(5000, 12), draw(300, 12, 0.3, seed=1)
    selector = fit(csr(K), eps=0.005)
    whole = selector.transform(Q)
    np.testing.assert_allclose(selector.transform(csr(Q)), whole, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(
        selector.heavy_scores(csr(Q)).toarray(), selector.heavy_scores(Q).toarray(), rtol=1e-9
    )


def test_rows_outside_the_row_space_score_infinity():
    K = draw(3000, 10)
    K[:, [2, 7]] = 0.0
    Q = draw(50, 10, 0.2, seed=2)
    for fitted in (fit(csr(K), eps=0.1), fit(csr(K[:, [0, 0, 1, 2, 2, 3, 4, 5, 6, 7]]), eps=0.1)):
        found = fitted.score_samples(csr(Q))
        np.testing.assert_allclose(found, fitted.score_samples(Q), rtol=1e-9)
    found = fit(csr(K), eps=0.1).score_samples(csr(Q))
    np.testing.assert_array_equal(np.isinf(found), Q[:, [2, 7]].any(axis=1))


def test_streams_of_both_kinds_of_rows():
    K = uneven(9000, 6)
    parts = split(K, [1500, 1600, 4000, 4001, 7000])
    mixed = stream([csr(p) if i % 2 else p for i, p in enumerate(parts)], eps=0.02)
    other = stream([p if i % 2 else csr(p) for i, p in enumerate(parts)], eps=0.02)
    plain = fit(K, eps=0.02)
    for selector in (mixed, other):
        np.testing.assert_array_equal(selector.indices_, plain.indices_)
        np.testing.assert_array_equal(selector.keys_, K[plain.indices_])
        np.testing.assert_allclose(selector.scores_, plain.scores_, rtol=1e-9)
        assert selector.certified_
    # how a row came decides, not in which batches
    again = [piece for i, p in enumerate(parts) for piece in halves(csr(p) if i % 2 else p)]
    assert stream(again, eps=0.02).to_bytes() == mixed.to_bytes()


def halves(rows):
    middle = rows.shape[0] // 2
    return rows[:middle], rows[middle:]


def test_states_are_merged_saved_and_read(tmp_path):
    K = uneven(5000, 6)
    a, b = fit(csr(K[:2500]), eps=0.02), fit(csr(K[2500:]), eps=0.02)
    np.testing.assert_array_equal((a | b).indices_, fit(csr(K), eps=0.02).indices_)
    a.save(tmp_path / "keys.lev")
    again = load(tmp_path / "keys.lev")
    again.partial_fit(csr(K[2500:]))
    assert again.to_bytes() == fit(csr(K), eps=0.02).to_bytes()


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("row", [3, 1500, 2999])
def test_what_is_not_finite_is_named_and_changes_nothing(row, intercept):
    K = draw(3000, 9)
    selector = fit(csr(K[:700]), eps=0.1, intercept=intercept)
    before = selector.to_bytes()
    K[row, 5] = np.nan
    for method in ("partial_fit", "fit", "score_samples", "transform", "heavy_scores"):
        with pytest.raises(ValueError, match=f"NaN at row {row}, column 5"), quiet():
            getattr(selector, method)(csr(K))
    assert selector.to_bytes() == before


def test_damaged_matrices_are_refused_and_change_nothing():
    selector = fit(csr(draw(700, 5)), eps=0.1)
    before = selector.to_bytes()
    for form in ("csr", "csc"):
        X = csr(draw(60, 5)).asformat(form)
        X.indices[7] = 10**8
        for method in ("partial_fit", "fit", "score_samples", "transform"):
            with pytest.raises(ValueError, match="indices outside its shape"), quiet():
                getattr(selector, method)(X)
    with pytest.raises(ValueError, match="4 features"), quiet():
        selector.partial_fit(csr((0, 4)))
    assert selector.to_bytes() == before


def test_the_selected_rows_of_sparse_keys_and_values_are_sparse():
    K = draw(3000, 9)
    selector = fit(csr(K), eps=0.005)
    assert len(selector.indices_) > 1
    for form in ("csr", "csc", "coo"):
        found, values = selector.select(csr(K).asformat(form), K)
        assert found.format == "csr"
        np.testing.assert_array_equal(found.toarray(), selector.keys_)
        np.testing.assert_array_equal(values, selector.keys_)
    with pytest.raises(ValueError, match="K has 2999 rows, but 3000 were seen"):
        selector.select(csr(K[:-1]))


@pytest.mark.parametrize("new", [*LP_SELECTORS.values(), StreamingAttentionSketch])
def test_other_estimators_refuse_sparse_rows_as_before(new):
    assert not new().__sklearn_tags__().input_tags.sparse
    with pytest.raises(TypeError, match="Sparse data was passed"), quiet():
        new().fit(csr(np.eye(30)), np.eye(30))
    assert LeverageKeySelector().__sklearn_tags__().input_tags.sparse
