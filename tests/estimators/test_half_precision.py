"""Keys in float16 and bfloat16, read as they are: what float32 copies of them give, bit for bit."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from fitting import fit, quiet, snapshot, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from levsketch import LeverageKeySelector

BFLOAT16 = ml_dtypes.bfloat16
HALVES = [np.float16, BFLOAT16]
RNG = np.random.default_rng(3)


def generic():
    return RNG.standard_normal((5000, 6))


def close():
    """Return keys with columns that differ in one row: their Gram matrices will not do."""
    K = generic() * 64
    K[:, 1] = K[:, 0]
    K[2500, 1] += 2.0**-6
    K[2500, 0] = 0.0
    return K


def deficient():
    """Return keys of which rounding leaves two columns dependent, and one empty until late."""
    K = generic()
    K[:, 1], K[:3000, 2] = K[:, 0], 0.0
    return K


def extreme():
    """Return keys whose squares, and sums of columns, overflow in float16, or vanish there."""
    K = generic().clip(-3.9, 3.9) * 2.0 ** np.array([14, 14, 14, -14, -14, 0])
    K[::2, 0] = 6e4
    return K


FORMS = {form.__name__: form() for form in (generic, close, deficient, extreme)}
PARAMS = [{}, {"intercept": True}, {"ridge": 0.5}, {"n_keys": 7}]
forms = pytest.mark.parametrize("K", FORMS.values(), ids=FORMS)
halves = pytest.mark.parametrize("dtype", HALVES)


def same_state(found, expected):
    """Tell whether two streams are the same but for the dtype of their keys."""
    mine, theirs = found._stream_arrays(found._stream), expected._stream_arrays(expected._stream)
    mine[0].pop("dtype"), theirs[0].pop("dtype")
    assert mine[0] == theirs[0]
    assert mine[1].keys() == theirs[1].keys()
    return all(mine[1][name].tobytes() == theirs[1][name].tobytes() for name in mine[1])


@halves
@forms
@pytest.mark.parametrize("params", PARAMS)
def test_states_and_answers_are_those_of_single_precision(K, dtype, params):
    K = K.astype(dtype)
    wide = K.astype(np.float32)
    with np.errstate(all="raise"):
        found = fit(K, eps=0.05, **params)
    expected = fit(wide, eps=0.05, **params)
    assert same_state(found, expected)
    assert same_state(found, fit(wide.astype(np.float64), eps=0.05, **params))
    assert same_state(found, stream([K[:700], K[700:4000], K[4000:]], eps=0.05, **params))
    with threadpool_limits(3, user_api="openmp"):
        assert same_state(found, fit(K, eps=0.05, **params))
    X = np.concatenate([K[:50], K[2490:2510], RNG.standard_normal((1500, 6)).astype(dtype)])
    with quiet():
        for name in ("indices_", "scores_", "guard_"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        scores = found.score_samples(X)
        np.testing.assert_array_equal(scores, expected.score_samples(X.astype(np.float32)))
        np.testing.assert_array_equal(found.transform(X), expected.transform(X.astype(np.float32)))
    assert scores.dtype == np.float32
    assert found.keys_.dtype == (np.float16 if dtype is np.float16 else np.float32)
    np.testing.assert_array_equal(found.keys_, wide[found.indices_])


def test_the_forms_take_the_ways_that_they_are_for():
    for dtype in HALVES:
        assert fit(FORMS["generic"][:4096].astype(dtype), eps=0.05).method_ == "gram"
        assert "qr" in fit(FORMS["close"][:4096].astype(dtype), eps=0.05).method_
        assert fit(FORMS["deficient"].astype(dtype))._stream.selection.space.rank == 5


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 63, 700, 1023, 1024, 1025, 2048]), st.integers(0, 3)),
        max_size=8,
    ),
    st.sampled_from(PARAMS),
)
def test_batches_of_any_size_and_type_leave_the_state_of_the_numbers(batches, params):
    # numbers that are the same in all four types
    K = np.round(FORMS["generic"] * 8)
    types, done = [np.float64, np.float32, *HALVES], 0
    found, expected = LeverageKeySelector(**params), LeverageKeySelector(**params)
    for size, kind in [(3, 3), *batches]:
        found.partial_fit(K[done : done + size].astype(types[kind]))
        expected.partial_fit(K[done : done + size])
        done += size
    assert same_state(found, expected)


@halves
def test_rows_outside_the_row_space_are_found(dtype):
    K = FORMS["generic"].astype(dtype)
    K[:, 5] = 0
    X = np.concatenate([K[:2000], np.eye(6).astype(dtype)])
    for params in ({}, {"intercept": True}):
        found = fit(K, eps=0.05, **params).score_samples(X)
        assert np.flatnonzero(np.isinf(found)).tolist() == [len(X) - 1]


WRONG = {
    "another width": lambda K: K[:, :4],
    "one axis": lambda K: K[0],
    "no axis": lambda K: K[0, 0],
    "three axes": lambda K: K[None],
    "no columns": lambda K: K[:, :0],
    "no rows": lambda K: K[:0],
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "score_samples"])
def test_what_scikit_learn_refuses_is_refused_in_the_same_words(wrong, method):
    K = FORMS["generic"][:2000].astype(BFLOAT16)
    bad, said = wrong(K), []
    for X in (bad, bad.astype(np.float32)):
        selector = fit(K, eps=0.05)
        before = snapshot(selector)
        try:
            with quiet():
                getattr(selector, method)(X)
        except ValueError as error:
            said.append(str(error))
            assert snapshot(selector) == before
        else:
            said.append("")
    assert said[0] == said[1]


def test_features_are_counted_and_their_names_missed():
    pandas = pytest.importorskip("pandas")
    K = FORMS["generic"][:2000].astype(BFLOAT16)
    assert fit(K, eps=0.05).n_features_in_ == 6
    named = fit(pandas.DataFrame(K.astype(np.float32), columns=list("abcdef")), eps=0.05)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        named.partial_fit(K)


@pytest.mark.parametrize("params", PARAMS[:2])
@pytest.mark.parametrize("row", [0, 1500, 4999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@halves
def test_values_that_are_not_finite_are_named_and_change_nothing(dtype, value, row, params):
    K = FORMS["generic"].astype(dtype)
    selector = fit(K, eps=0.05, **params)
    before, bad = snapshot(selector), K.copy()
    bad[row, 3] = value
    kind = "NaN" if np.isnan(value) else "infinity"
    for method in ("fit", "partial_fit", "score_samples"):
        with pytest.raises(ValueError, match=rf"{kind}.* at row {row}, column 3;"), quiet():
            getattr(selector, method)(bad)
    assert snapshot(selector) == before


def test_bfloat16_keys_are_never_copied_whole():
    K = np.random.default_rng(0).standard_normal((200_000, 64)).astype(BFLOAT16)
    selector, peaks = fit(K[:5000], eps=0.05), []
    tracemalloc.start()
    for call in (selector.partial_fit, selector.score_samples):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        call(K)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert max(peaks) < 4 * K.size / 3
