"""Moments as they read in another frame, and as they count when more rows have gone by."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from levsketch._typing import FloatArray, IntArray

from .attention_frame import Frame
from .moments import NO_VALUES, MomentTensors

# Powers of a decay are taken at once above this, and squared step by step below.
_FAINT = 2.0**-900
# Old weights go down to 2 to this power; in sums with new ones they are zero by then.
_LEAST_EXPONENT = -(2**39)


def power_of(base: float, count: int) -> tuple[float, int]:
    """Return m and e with ``base**count = m * 2**e``, 1/2 <= m < 1; base in (0, 1], count >= 0.

    Within 2 roundings where the power is above 2**-900, and as many more as it falls
    below powers of that.
    """
    plain = base**count
    if plain >= _FAINT or count == 1:
        return math.frexp(plain)
    root, exponent = power_of(base, count // 2)
    last, own = math.frexp(base) if count % 2 else (1.0, 0)
    mantissa, more = math.frexp(root * root * last)
    return mantissa, 2 * exponent + own + more


def aged(moments: MomentTensors, decay: float, rows: int) -> MomentTensors:
    """Return the moments when ``rows`` rows have gone by, and each made older ones count less."""
    if decay == 1.0 or not moments.n_rows or not rows:
        return moments
    mantissa, exponent = power_of(decay, rows)
    # twice the mantissa is at least one: nothing gets lost
    old = moments.times(2.0 * mantissa)
    seen = old.value_exponents > NO_VALUES
    # all columns by the same power, or averages would not be the same
    room = min(0, _LEAST_EXPONENT - int(old.value_exponents[seen].min(initial=0)))
    ends = old.value_exponents + max(exponent - 1, room)
    return replace(old, value_exponents=np.where(seen, ends, NO_VALUES), depth=old.depth + 1)


def with_values_of(moments: MomentTensors, mine: Frame, theirs: Frame) -> MomentTensors:
    """Return moments of values and weights in the frame ``theirs`` as they read in ``mine``.

    The last column is that of the weights. A shift of the values adds a multiple of
    it to every other one; powers of two are exact. Keys stay as they are.
    """
    power = theirs.value_power - mine.value_power
    with np.errstate(under="ignore"):
        shift = np.ldexp(theirs.value_centre, power) - mine.value_centre
    shift = np.ldexp(shift, mine.spread_power)
    stretch = power + mine.spread_power - theirs.spread_power
    weight = theirs.weight_power - mine.weight_power
    moved = moments if not shift.any() else _shifted(moments, shift, stretch)
    steps = np.full(len(moments.value_exponents), weight)
    steps[:-1] += 0 if shift.any() else stretch
    return replace(moved, value_exponents=_raised(moved.value_exponents, steps))


def _shifted(moments: MomentTensors, shift: FloatArray, stretch: int) -> MomentTensors:
    """Return moments of values ``2**stretch v + shift``; the last column stays."""
    mantissa, powers = np.frexp(shift)
    old, last = moments.value_exponents[:-1], moments.value_exponents[-1]
    own = np.where(old > NO_VALUES, old + stretch, NO_VALUES)
    added = np.where((mantissa != 0) & (last > NO_VALUES), last + powers, NO_VALUES)
    top = np.maximum(own, added)
    ends = np.where(top > NO_VALUES, top + 1, NO_VALUES)

    def mixed(columns: FloatArray, weights: FloatArray) -> FloatArray:
        with np.errstate(under="ignore"):
            first = np.ldexp(columns[:, :-1], _apart(own, ends))
            second = np.ldexp(columns[:, -1:] * weights, _apart(added, ends))
        return np.concatenate([first + second, columns[:, -1:]], axis=1)

    return replace(
        moments,
        tensors=tuple(mixed(T, mantissa) for T in moments.tensors),
        lengths=mixed(moments.lengths, np.abs(mantissa)),
        value_exponents=np.append(ends, last),
        depth=moments.depth + 4,
    )


def _apart(exponents: IntArray, ends: IntArray) -> IntArray:
    """Return exponents less ``ends``; 0 for columns without entries."""
    return np.where(exponents > NO_VALUES, exponents - ends, 0)


def _raised(exponents: IntArray, steps: IntArray) -> IntArray:
    return np.where(exponents > NO_VALUES, exponents + steps, NO_VALUES)
