"""Attention outputs from moments of keys and values, with what is certified of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from levsketch._typing import BoolArray, FloatArray
from levsketch.backends.cpu import serial_blas, thread_count
from levsketch.linalg import UNIT_ROUNDOFF
from levsketch.streaming.polynomial import PolynomialStream
from levsketch.streaming.polynomial_answering import Answering

from .power_moments import power_outputs
from .softmax_moments import softmax_outputs

# Queries that are answered together; each thread has a copy of the tensors, and all copies of
# large ones together no more than this many numbers, 1 GB.
_QUERIES = 1024
_COPIES = 1 << 27


class Answers(NamedTuple):
    """Answers to m queries.

    Attributes
    ----------
    outputs : (m, d_v) array
    bounds : (m,) array
        On ``||output - exact||``.
    beyond : (m,) bool array
        For which queries polynomials prove nothing.
    """

    outputs: FloatArray
    bounds: FloatArray
    beyond: BoolArray


def outputs(stream: PolynomialStream, Q: FloatArray) -> tuple[FloatArray, int]:
    """Return attention outputs (m, d_v) of queries (m, d), and for how many nothing is proved.

    Queries have the scale in them. What is counted are queries whose logits may be so far apart
    that no polynomial of the degree is shown to be near exp. Their outputs are in the box of the
    values, like all.

    Raises
    ------
    ValueError
        If no row has a weight.
    LevsketchStateError
        If keys and values have not brought the same rows.

    Notes
    -----
    `softmax_outputs` and `power_outputs` tell how. ``2 m (d_v + 1)`` operations for each monomial,
    whatever the number of rows; the same bits on any number of threads.
    """
    found = answers(stream, Q)
    return found.outputs, int(found.beyond.sum())


def error_bound(stream: PolynomialStream, Q: FloatArray) -> FloatArray:
    """Return upper bounds (m,) on ``||output - exact output||``, in units of the values.

    Certified, rounding included, with the given keys, values, weights and queries for the real
    numbers that they are. Where moments are sketched (features that did not fit, keys and
    values that are not aligned), polynomials prove nothing: what is known without them
    remains, at least that outputs are in the box of the values. Raises as `outputs`.
    """
    return answers(stream, Q).bounds


def covered_mass(stream: PolynomialStream, Q: FloatArray) -> FloatArray:
    """Return a lower bound (m,) on the attention mass of rows that are answered exactly.

    1 for powers, and while all rows wait for the first block, else 0. Raises as `outputs`.
    """
    everything = stream.answering.moments is None or not stream.policy.softmax
    return np.full(len(Q), float(everything))


def answers(stream: PolynomialStream, Q: FloatArray) -> Answers:
    """Return outputs, error bounds and what is unproved of queries (m, d), in one pass.

    Raises as `outputs`.
    """
    view = stream.answering
    columns, softmax = len(view.low), stream.policy.softmax
    inner = np.empty((len(Q), columns + 2))
    parts = [slice(i, i + _QUERIES) for i in range(0, len(Q), _QUERIES)]

    def work(part: slice) -> None:
        one = softmax_outputs if softmax else power_outputs
        inner[part] = np.column_stack(one(view, Q[part]))

    size = 0 if view.moments is None else view.moments.size
    threads = min(len(parts), thread_count(len(Q) * max(1, size)), max(1, _COPIES // max(1, size)))
    with serial_blas():
        if threads <= 1:
            list(map(work, parts))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, parts))
    flags = inner[:, -1] > 0.0
    found = np.clip(view.frame.outputs(inner[:, :columns]), view.low, view.high)
    bounds = view.frame.lengths(inner[:, -2])
    if softmax:
        return Answers(found, _up(bounds, view), flags)
    found[flags] = 0.0  # no key has a weight: by definition
    bounds = np.where(flags & (bounds == 0.0), 0.0, _up(bounds, view))
    return Answers(found, bounds, np.zeros(len(Q), np.bool_))


def _up(bounds: FloatArray, view: Answering) -> FloatArray:
    """Return bounds (m,) with what outputs in the box lose when they are put in units of users."""
    size = np.maximum(np.abs(view.low), np.abs(view.high))
    power = int(np.frexp(size.max())[1])
    length = float(np.linalg.norm(np.ldexp(size, -power)))
    with np.errstate(over="ignore"):
        lost = np.ldexp(4.0 * UNIT_ROUNDOFF * length, power)
        return np.asarray(np.nextafter(bounds + lost, np.inf))
