"""Rows that skip validation: the same bytes, errors and attributes as with it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import levsketch as lv
from levsketch._checks import LevsketchStateError

KEYS = np.random.default_rng(0).standard_normal((5000, 4)) * 10.0 ** np.arange(4)


class Careful(lv.LeverageKeySelector):
    """The same selector, always by way of validation."""

    def _appended(self, X):
        return False


def visible(selector):
    return {k: v for k, v in vars(selector).items() if k not in ("_stream", "_asked")}


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([1, 1, 2, 63, 64, 700, 1023, 1024, 1025, 2048]), max_size=12),
    st.sampled_from([np.float64, np.float32]),
    st.sampled_from([{}, {"intercept": True}, {"n_keys": 3}, {"ridge": 0.5}]),
)
def test_any_batching_leaves_the_state_that_validation_would(sizes, dtype, params):
    quick, careful, done = lv.LeverageKeySelector(**params), Careful(**params), 0
    for size in [3, *sizes]:
        rows = KEYS[done : done + size].astype(dtype)
        done += len(rows)
        assert quick.partial_fit(rows) is quick
        careful.partial_fit(rows)
        assert quick._stream.pending.tobytes() == careful._stream.pending.tobytes()
    assert quick._stream.n_seen == careful._stream.n_seen == done
    mine, theirs = quick._stream, careful._stream
    assert [G.tobytes() for _, G in mine.factor.grams] == [
        G.tobytes() for _, G in theirs.factor.grams
    ]
    np.testing.assert_array_equal(quick.indices_, careful.indices_)
    np.testing.assert_array_equal(quick.scores_, careful.scores_)
    assert visible(quick) == visible(careful)


def test_the_quick_way_is_taken(monkeypatch):
    selector = lv.LeverageKeySelector(eps=0.9).fit(KEYS[:10])

    def refuse(*args, **kwargs):
        raise AssertionError("validation was called")

    monkeypatch.setattr(lv.LeverageKeySelector, "_validated", staticmethod(refuse))
    for size in (1, 64, 2000):
        selector.partial_fit(KEYS[:size])
    assert selector.n_samples_seen_ == 2075


@pytest.mark.parametrize("size", [1, 64, 1024, 3000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_rows_change_nothing_and_are_named(size, value):
    selector = lv.LeverageKeySelector(eps=0.9).fit(KEYS[:100])
    before, rows = selector.to_bytes(), KEYS[:size].copy()
    rows[size - 1, 2] = value
    with pytest.raises(ValueError, match=rf"at row {size - 1}, column 2"):
        selector.partial_fit(rows)
    assert selector.to_bytes() == before
    selector.partial_fit(KEYS[100:101])
    assert selector.to_bytes() == lv.LeverageKeySelector(eps=0.9).fit(KEYS[:101]).to_bytes()


def test_squares_that_overflow_are_no_obstacle():
    selector = lv.LeverageKeySelector(eps=0.9).fit(KEYS[:10]).partial_fit(KEYS[:1] * 1e200)
    assert selector.n_samples_seen_ == 11


@pytest.mark.parametrize(
    ("name", "value"), [("eps", 0.25), ("eps", np.float64(0.5)), ("ridge", 1.0), ("n_keys", 4)]
)
def test_changed_parameters_are_noticed(name, value):
    selector = lv.LeverageKeySelector(eps=0.9).fit(KEYS[:10]).partial_fit(KEYS[:1])
    setattr(selector, name, value)
    with pytest.raises(LevsketchStateError, match=name):
        selector.partial_fit(KEYS[:1])
    selector.set_params(eps=-1.0)
    with pytest.raises(ValueError, match="eps"):
        selector.partial_fit(KEYS[:1])
    assert selector.n_samples_seen_ == 11


@pytest.mark.parametrize(
    "form",
    [
        lambda X: X.tolist(),
        np.asfortranarray,
        lambda X: np.concatenate([X, X])[::2],
        lambda X: X.astype(np.float16),
        lambda X: X.astype(">f8"),
        lambda X: X.astype(np.int64),
        lambda X: np.ma.array(X),
    ],
)
def test_other_forms_of_rows_still_work(form):
    rows = np.round(KEYS[:7] * 2)
    selector = lv.LeverageKeySelector(eps=0.9).fit(KEYS[:10]).partial_fit(form(rows))
    assert selector.n_samples_seen_ == 17
    same = lv.LeverageKeySelector(eps=0.9).fit(KEYS[:10]).partial_fit(np.asarray(form(rows), float))
    np.testing.assert_array_equal(selector.scores_, same.scores_)


def test_other_shapes_are_refused_as_ever():
    selector = lv.LeverageKeySelector(eps=0.9).fit(KEYS[:10])
    for rows in (KEYS[:3, :2], KEYS[0], KEYS[None, :2], np.zeros((3, 4), complex)):
        with pytest.raises(ValueError):  # noqa: PT011 - scikit-learn's words
            selector.partial_fit(rows)
    assert selector.n_samples_seen_ == 10


def test_rows_given_may_be_changed_afterwards():
    selector = lv.LeverageKeySelector(eps=0.9).fit(KEYS[:10])
    rows = KEYS[10:12].copy()
    selector.partial_fit(rows)
    rows[:] = 1e9
    assert selector.to_bytes() == lv.LeverageKeySelector(eps=0.9).fit(KEYS[:12]).to_bytes()
