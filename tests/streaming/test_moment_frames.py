"""Moments in another frame are those of the rows in that frame, and old ones count less."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import WIDE, U

from levsketch.streaming.attention_frame import Frame
from levsketch.streaming.features import feature_maps
from levsketch.streaming.moment_frames import aged, power_of, with_values_of
from levsketch.streaming.moments import MomentTensors

MAPS = feature_maps(3, [0, 1, 2, 3], 100, 0)
RNG = np.random.default_rng(0)
K = RNG.standard_normal((40, 3))
Q = RNG.standard_normal((7, 3))


def moments(summed):
    return MomentTensors.empty(MAPS, np.zeros(3), summed.shape[1]).update(K, summed)


def frame(value_power, spread_power, centre, weight_power):
    return Frame(0, value_power, weight_power, spread_power, np.zeros(3), np.array(centre))


def inside(V, w, at):
    """Return w [v, 1] in a frame, in long double."""
    wide = np.longdouble
    values = (V.astype(wide) * wide(2.0) ** -at.value_power - at.value_centre) * wide(
        2.0
    ) ** at.spread_power
    whole = np.column_stack([values, np.ones(len(w), wide)])
    return whole * (w.astype(wide) * wide(2.0) ** -at.weight_power)[:, None]


def sums(summed):
    """Return sums of powers in long double, and of their sizes."""
    x = K.astype(np.longdouble) @ Q.T.astype(np.longdouble)
    size = np.abs(K.astype(np.longdouble)) @ np.abs(Q.T.astype(np.longdouble))
    found = [np.einsum("nm,nc->mc", x**r, summed) for r in range(4)]
    sizes = [np.einsum("nm,nc->mc", size**r, np.abs(summed)) for r in range(4)]
    return np.stack(found, axis=1), np.stack(sizes, axis=1)


powers = st.integers(-30, 30)
centres = st.lists(st.sampled_from([0.0, 1.0, -0.7, 1e-9, 1e6]), min_size=2, max_size=2)


@settings(max_examples=100)
@given(powers, powers, centres, powers, powers, powers, centres, powers, st.integers(0, 99))
@example(0, 0, [0.0, 0.0], 0, 0, 0, [0.0, 0.0], 5, 0)
@example(0, 0, [0.0, 1.0], 0, 0, 0, [0.0, 0.0], -5, 1)
def test_values_of_another_frame(a, b, c, e, f, g, h, i, seed):
    theirs, mine = frame(a, b, c, e), frame(f, g, h, i)
    rng = np.random.default_rng(seed)
    V, w = rng.standard_normal((40, 2)) * 2.0**a, rng.random(40) * 2.0**e
    V[:, 0] = 0.0 if seed % 3 == 0 else V[:, 0]
    state = with_values_of(moments(inside(V, w, theirs).astype(np.float64)), mine, theirs)
    true, _ = sums(inside(V, w, mine))
    # the terms that are moved may cancel: these are their sizes
    far = np.abs(inside(V, w, replace(theirs, value_centre=-np.abs(theirs.value_centre))))
    stretch = 2.0 ** float(a - f + g - b)
    shift = (2.0 ** (a - f) * np.abs(theirs.value_centre) + np.abs(mine.value_centre)) * 2.0**g
    far[:, :-1] = far[:, :-1] * stretch + far[:, -1:] * shift
    _, size = sums(far * 2.0 ** float(e - i))
    error = np.abs(state.contract(Q) - true)
    assert (error <= 64 * U * size + 100 * WIDE * size).all()
    assert (error <= state.rounding(Q) + 4 * U * size + 100 * WIDE * size).all()
    assert state.n_rows == 40


def test_values_of_the_same_frame_stay_bit_for_bit():
    at = frame(3, -2, [0.3, 0.5], 1)
    before = moments(RNG.standard_normal((40, 3)))
    after = with_values_of(before, at, at)
    assert after.contract(Q).tobytes() == before.contract(Q).tobytes()


@pytest.mark.parametrize("base", [0.5, 0.999, 1 - 1e-9, 0.3, 1e-300, 5e-324, 1.0])
@pytest.mark.parametrize("count", [0, 1, 2, 513])
def test_powers_of_any_size(base, count):
    mantissa, exponent = power_of(base, count)
    assert 0.5 <= mantissa < 1.0
    true = Fraction(base) ** count
    found = Fraction(mantissa) * Fraction(2) ** exponent
    pieces = 2 + max(0, -exponent) / 450
    assert abs(found / true - 1) <= Fraction(4 * pieces * U)


def test_old_moments_count_less_also_far_below_float64():
    fresh = moments(RNG.standard_normal((40, 3)))
    assert aged(fresh, 1.0, 10) is fresh
    found, true = aged(fresh, 0.9, 30).contract(Q), fresh.contract(Q) * 0.9**30
    assert (np.abs(found - true) <= 16 * U * np.abs(true).max()).all()
    old = aged(aged(fresh, 0.5, 10**6), 1e-300, 10**12)
    assert old.contract(Q).tolist() == np.zeros((7, 4, 3)).tolist()
    # what is relative among them is still there
    found, was = old.contract_scaled(Q).averages(2), fresh.contract_scaled(Q).averages(2)
    np.testing.assert_allclose(found, was, rtol=8 * U)
    # beside new ones they are nothing
    both = old.merge(fresh)
    np.testing.assert_array_equal(both.contract(Q), fresh.contract(Q))
