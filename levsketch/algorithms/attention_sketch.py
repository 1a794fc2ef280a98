"""Answers of a streaming attention sketch, with what is certified of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from levsketch._typing import FloatArray
from levsketch.backends.cpu import serial_blas, thread_count
from levsketch.streaming.attention import AttentionStream

from . import attention_bounds

# Queries that are answered together.
_QUERIES = 1024


def outputs(stream: AttentionStream, Q: FloatArray) -> FloatArray:
    """Return the attention outputs (m, d_v) of queries (m, d), which have the scale in them.

    O(d (d_v + kept keys)) a query, whatever the number of rows seen.
    """
    _check_weight(stream)

    def answer(part: FloatArray) -> FloatArray:
        _, sums = stream.sums(part)
        return np.asarray(sums[:, :-1] / sums[:, -1:])

    return stream.frame_or_own.outputs(_by_parts(stream, Q, answer, stream.n_outputs))


def covered_mass(stream: AttentionStream, Q: FloatArray) -> FloatArray:
    """Return a certified lower bound (m,) on the attention mass of keys that are kept exactly."""
    _check_weight(stream)
    exact, model = stream.answering

    def answer(part: FloatArray) -> FloatArray:
        shift, sums = exact.sums(part)
        return attention_bounds.covered_mass_of_model(part, exact, shift, sums, model)[:, None]

    return _by_parts(stream, Q, answer, 1)[:, 0]


def error_bound(stream: AttentionStream, Q: FloatArray) -> FloatArray:
    """Return a certified upper bound (m,) on ``||output - exact output||``, in units of values."""
    _check_weight(stream)
    exact, model = stream.answering

    def answer(part: FloatArray) -> FloatArray:
        _, whole = stream.sums(part)
        Y = whole[:, :-1] / whole[:, -1:]
        shift, sums = exact.sums(part)
        return attention_bounds.error_bound_of_model(part, Y, exact, shift, sums, model)[:, None]

    return stream.frame_or_own.lengths(_by_parts(stream, Q, answer, 1)[:, 0])


def _check_weight(stream: AttentionStream) -> None:
    """Refuse to average nothing."""
    exact, model = stream.answering
    if not exact.weights.any() and (model is None or model.mass == 0.0):
        raise ValueError("all rows seen have sample_weight 0: there is nothing to average.")


def _by_parts(
    stream: AttentionStream,
    Q: FloatArray,
    answer: Callable[[FloatArray], FloatArray],
    columns: int,
) -> FloatArray:
    """Return the answers (m, columns) to queries, some at a time, on as many threads as there are.

    Parts do not depend on the number of threads, and BLAS is serial in each: nor do the bits.
    """
    queries = stream.frame_or_own.queries(Q)
    out = np.empty((len(Q), columns))
    parts = [slice(i, i + _QUERIES) for i in range(0, len(Q), _QUERIES)]

    def work(part: slice) -> None:
        out[part] = answer(queries[part])

    exact, model = stream.answering  # looked at once, before threads are
    kept = len(exact) + (len(model.landmarks.keys) if model and model.landmarks else 0)
    threads = min(len(parts), thread_count(len(Q) * max(1, kept) * queries.shape[1]))
    with serial_blas():
        if threads <= 1:
            list(map(work, parts))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, parts))
    return out
