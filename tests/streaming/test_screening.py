"""Cheap bounds on scores: never below one, and without a trace in any state."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lp_streams import CPU
from strategies import conditioned, gaussian, heavy_tails, make, smooth

from levsketch import LeverageKeySelector
from levsketch.algorithms.leverage import whitening_of
from levsketch.streaming import keys, screening


def correlated(rng, n, d):
    """Rows with a few strong directions, as keys of real heads have."""
    strong = rng.standard_normal((n, 3)) @ rng.standard_normal((3, d))
    return 30 * strong + rng.standard_normal((n, d))


def other_units(rng, n, d):
    return rng.standard_normal((n, d)) * 2.0 ** rng.integers(-90, 90, d)


KINDS = [gaussian, other_units, correlated, conditioned, heavy_tails, smooth]


@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.sampled_from([1, 5, 40, 70]))
def test_no_bound_is_below_a_score_computed_or_exact(seed, kind, d):
    K = np.asarray(make(kind, seed, 3 * d + 9, d).K, dtype=np.float64)
    prefix = whitening_of(CPU, K)
    if not prefix.spans_coordinates or prefix.folded() is None:
        return
    new = np.concatenate([K, K[::-1] * 3, np.eye(d), prefix.factor.R])
    scores = prefix.scores(CPU, new)
    exact = np.sum((new.astype(np.longdouble) @ prefix.folded().astype(np.longdouble)) ** 2, axis=1)
    for count in (0, 2, 16):
        found = screening._screen(prefix, min(count, d))
        if found is not None:
            bounds = found.bounds(CPU, new)
            assert (bounds >= scores).all()
            assert (bounds >= exact * (1 - 1e-12)).all()


def test_bounds_are_close_where_few_directions_correlate_the_columns():
    rng = np.random.default_rng(3)
    for kind, count in ((gaussian, 0), (other_units, 0), (correlated, 16)):
        K = kind(rng, 20_000, 80)
        prefix = whitening_of(CPU, K)
        found = screening._screen(prefix, count)
        share = found.bounds(CPU, K).mean() / prefix.scores(CPU, K).mean()
        assert share == pytest.approx(found.mean, rel=0.01)
        assert 1.0 <= share <= 3.0
    assert screening._screen(prefix, 0).mean > 100  # these need their directions


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not heavy_tails])
@pytest.mark.parametrize(
    "asked", [{}, {"n_keys": 5}, {"min_keys": 40}, {"intercept": True}], ids=str
)
def test_the_state_does_not_show_which_rows_were_screened(monkeypatch, kind, asked):
    K = np.asarray(make(kind, 5, 40_000, 6).K, dtype=np.float64)
    K[25_000] = 10 * np.abs(K).max(axis=0)
    passed = []
    scores = keys.KeyStream._ahead

    def counting(self, backend, prefix, rows, least):
        found = scores(self, backend, prefix, rows, least)
        passed.append(float((found > 0).mean()))
        return found

    monkeypatch.setattr(screening, "_DIRECTIONS", (0, 1, 2))
    monkeypatch.setattr(screening, "_SHARE", 1)
    monkeypatch.setattr(keys.KeyStream, "_ahead", counting)
    screened = LeverageKeySelector(eps=0.05, **asked).fit(K)
    if kind is gaussian and not asked:
        assert min(passed) < 0.05  # else nothing is tested here
    monkeypatch.setattr(keys, "screen_for", lambda *_: None)
    plain = LeverageKeySelector(eps=0.05, **asked).fit(K)
    assert screened.to_bytes() == plain.to_bytes()
    assert np.array_equal(screened.indices_, plain.indices_)
    assert 25_000 in screened.indices_


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_rows_that_raise_what_was_dropped_are_scored(monkeypatch, share):
    rng = np.random.default_rng(8)
    held = LeverageKeySelector(eps=0.05).fit(rng.standard_normal((40_000, 6)))._stream
    floor, new = held.candidates.floor, rng.standard_normal((4096, 6))
    x = held.prefix.scores(CPU, new)
    new = new[x / (1 + x) < 0.6 * floor]  # none is near what decides
    bound = share * floor  # as if less, or more, had been dropped so far
    held = replace(held, candidates=replace(held.candidates, dropped_bound=bound))
    screened = held._screen(CPU, new)
    assert (screened[1] == 0).mean() > 0.2  # else nothing is tested here
    monkeypatch.setattr(keys, "screen_for", lambda *_: None)
    plain = held._screen(CPU, new)
    assert not screened[0].any()
    assert not plain[0].any()
    assert max(bound, screened[1].max()) == max(bound, plain[1].max())
