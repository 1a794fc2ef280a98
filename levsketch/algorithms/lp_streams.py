"""Exact sensitivities where bounds do not decide, from all rows or from a lifted factor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from levsketch._typing import FloatArray, Rows
from levsketch.backends import Backend
from levsketch.backends.cpu import serial_blas
from levsketch.streaming.lp_keys import LpStream
from levsketch.streaming.lp_selection import LpSelection, Refined

from .heavy import witnesses as leverage_witnesses
from .leverage import whitening_of
from .lift_refine import lifted_form, refine_by_lift
from .sensitivity import original_queries, refined_intervals, whitened_rows

_TOLERANCE = 1e-6
_STEPS = 200


def refined_stream(backend: Backend, stream: LpStream, X: Rows) -> LpStream:
    """Return the stream of all rows ``X`` (n, d) with its doubtful keys decided.

    Unchanged where ``decided`` can do that without rows. Every key whose bound reaches eps
    gets an interval that does not contain eps, or that is narrower than 1e-6 of its upper
    end: the set is then the universal one, but for keys that are that close to eps.
    """
    found, policy = stream.selection, stream.policy
    numbers = found.index[found.universal]
    if not len(numbers) or lifted_form(found) is not None:
        return stream
    with serial_blas():
        whitening = whitening_of(backend, X)
        if not whitening.certified:
            return stream
        if policy.p == 2.0:
            rows = backend.rows(X[numbers])
            scores = whitening.scores(backend, rows)
            ends = np.stack([whitening.lower_bounds(scores), whitening.upper_bounds(scores)], 1)
            queries = leverage_witnesses(whitening, np.asarray(rows, np.float64))
        else:
            intervals = refined_intervals(
                whitened_rows(backend, whitening, X),
                numbers,
                policy.p,
                tol=_TOLERANCE,
                max_iter=_STEPS,
                decide=policy.eps if policy.n_keys is None else None,
            )
            ends = np.stack([intervals.lower, intervals.upper], axis=1)
            queries = original_queries(whitening, intervals.queries)
    ends = np.clip(ends, 0.0, 1.0)
    return replace(stream, refined=Refined(numbers, ends, queries, stream.n_seen))


def decided(stream: LpStream) -> LpStream:
    """Return the stream with its doubtful keys decided from its lifted factor, without rows.

    The same set as with all rows at hand, for even p with a certified lift; otherwise
    the stream as it is, as it is without ``refine``. Worked out once for a stream.
    """
    if not stream.policy.refine or stream.refined.n_seen == stream.n_seen:
        return stream
    known: LpStream | None = stream.__dict__.get("_decided")
    if known is None:
        known = stream.__dict__["_decided"] = _decided(stream)
    return known


def _decided(stream: LpStream) -> LpStream:
    found, policy = stream.selection, stream.policy
    taken = np.flatnonzero(found.universal)
    if not len(taken):
        return stream
    with serial_blas():
        decide = policy.eps if policy.n_keys is None else None
        refined = refine_by_lift(found, taken, decide)
    if refined is None:
        return stream
    known = Refined(found.index[taken], refined[0], refined[1], stream.n_seen)
    after = replace(stream, refined=known)
    pool = known.applied(found.pool, stream.n_seen)
    after.__dict__["selection"] = found.with_pool(policy, pool)
    return after


def witnesses(stream: LpStream, found: LpSelection) -> FloatArray:
    """Return, for each selected key, a query (m, d) that gives it much of its sensitivity."""
    queries = leverage_witnesses(found.whitening, found.rows[found.selected])
    numbers = found.index[found.selected]
    _, mine, theirs = np.intersect1d(
        numbers, stream.refined.numbers, assume_unique=True, return_indices=True
    )
    queries[mine] = stream.refined.queries[theirs]
    return queries
