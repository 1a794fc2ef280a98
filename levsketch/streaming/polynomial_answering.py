"""What answers queries to a stream of moments: those of absorbed rows, and rows that wait."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from levsketch._typing import FloatArray
from levsketch.backends.cpu import serial_blas
from levsketch.sketches.tensorsketch import TensorSketch

from .attention_frame import Frame
from .extents import KeyExtent, ValueExtent, row_norms
from .key_value_moments import KeyValueMoments
from .moment_frames import power_of, with_values_of
from .moments import MomentTensors
from .polynomial_memory import PolynomialMemory, inside
from .unaligned import UnalignedMoments

# More than the rounding of a norm.
_UP = 1.0 + 1e-9
# The frame of values and weights as users pass them.
_AS_PASSED = Frame(0, 0, 0, 0, np.zeros(0), np.zeros(()))


class Answering(NamedTuple):
    """Moments of the rows that were absorbed, and rows that wait.

    Attributes
    ----------
    frame : Frame
        Of all that follows, but keys of ``moments``, which are in units of users, and ``low``.
    moments : MomentTensors or None
        None without absorbed rows. For powers they are those of all rows.
    log_age : float
        They count ``exp(log_age)``.
    certified : bool
        Whether they are the moments of the rows, but for rounding.
    keys, values, weights : (m, d), (m, d_v) and (m,) arrays
        Rows that wait.
    reach : KeyExtent
        How far absorbed keys reach.
    about : KeyValueMoments or None
        Of absorbed rows, if that is known and their weights do not decay.
    extent : ValueExtent
        Of all values.
    low, high : (d_v,) arrays
        Box of all values, as users passed them.
    """

    frame: Frame
    moments: MomentTensors | None
    log_age: float
    certified: bool
    keys: FloatArray
    values: FloatArray
    weights: FloatArray
    reach: KeyExtent
    about: KeyValueMoments | None
    extent: ValueExtent
    low: FloatArray
    high: FloatArray


def together(
    memory: PolynomialMemory, rows: FloatArray, ages: FloatArray, waiting: int
) -> Answering:
    """Return what answers queries, if keys and values are aligned.

    Parameters
    ----------
    memory : PolynomialMemory
    rows, ages : (m, d + d_v + 1) and (m,) arrays
        Those of the rows that wait that have a weight, and how many follow each.
    waiting : int
        How many wait, of any weight.
    """
    policy = memory.policy
    if memory.frame is None and not len(rows):
        raise ValueError("all rows seen have sample_weight 0: there is nothing to average.")
    if not policy.softmax:
        with serial_blas():
            memory = memory.aged(waiting).add(rows, ages)
        rows, ages, waiting = rows[:0], ages[:0], 0
    moments, frame = memory.moments, memory.framed(rows)
    if isinstance(moments, UnalignedMoments):
        raise AssertionError("these are not aligned")
    keys, values, weights = inside(frame, rows)
    box = memory.boxed(rows[:, memory.d : -1])
    extent, known = _extent(frame, box.low, box.high), policy.softmax
    if known:
        lengths = row_norms(values).max(initial=memory.reach.value_extent.radius)
        extent = replace(extent, radius=min(extent.radius, float(lengths) * _UP))
    mantissa, exponent = power_of(policy.decay, waiting)
    sketched = moments is not None and any(isinstance(m, TensorSketch) for m in moments.maps)
    return Answering(
        frame,
        moments,
        math.log(mantissa) + exponent * math.log(2.0),
        not sketched,
        keys,
        values,
        weights * policy.decay**ages,
        memory.reach.extent,
        memory.reach if known and policy.decay == 1.0 else None,
        extent,
        box.low,
        box.high,
    )


def apart(memory: PolynomialMemory, K: FloatArray, V: FloatArray) -> Answering:
    """Return what answers queries, if keys and values have streams of their own.

    ``K`` (m, d) and ``V`` (m, d_v) are those that wait, of the same rows. What both
    have absorbed must be the same rows, too, and not all can be none.
    """
    moments, low, high = memory.moments, memory.low, memory.high
    if not isinstance(moments, UnalignedMoments):
        raise AssertionError("these are aligned")
    ones = np.ones((len(K), 1))
    frame = memory.framed(np.concatenate([K, ones], axis=1))
    # values had no first block with keys: their box is a frame
    power = int(np.frexp(np.max(np.maximum(np.abs(low), np.abs(high))))[1])
    centre = np.ldexp(low, -power - 1) + np.ldexp(high, -power - 1)
    size = float(np.linalg.norm(np.ldexp(high, -power) - centre))
    spread = -int(np.frexp(size)[1]) if size > 2.0**-50 else 0
    frame = replace(frame, value_power=power, value_centre=centre, spread_power=spread)
    keys, values, weights = inside(frame, np.concatenate([K, V, ones], axis=1))
    estimated = moments.n_keys > 0
    return Answering(
        frame,
        with_values_of(moments.tensors(), frame, _AS_PASSED) if estimated else None,
        0.0,
        not estimated,
        keys,
        values,
        weights,
        memory.reach.extent,
        None,
        _extent(frame, low, high),
        low,
        high,
    )


def _extent(frame: Frame, low: FloatArray, high: FloatArray) -> ValueExtent:
    """Return a box of values, as users passed them, in the frame, and the ball around it."""
    ends = []
    for side, way in ((low, -np.inf), (high, np.inf)):
        moved = np.ldexp(side, -frame.value_power) - frame.value_centre
        ends.append(np.nextafter(np.ldexp(moved, frame.spread_power), way))
    largest = np.maximum(np.abs(ends[0]), np.abs(ends[1]))
    radius = float(row_norms(largest[None])[0]) * _UP
    return ValueExtent(ends[0], ends[1], radius, largest)
