"""Queries as a stream reads them, and what it remembers of sample queries."""

from __future__ import annotations

import numpy as np

from levsketch._typing import FloatArray
from levsketch.backends.cpu import serial_blas

from .attention import QuerySample

# So many of the sample queries are remembered, for probes.
_REMEMBERED = 64
# Entries of queries with the scale in them stay below this power of two.
_LARGEST = 1023


def scaled_queries(Q: FloatArray, scale: float) -> FloatArray:
    """Return finite queries (m, d) with the scale of the logits in them.

    Those that leave the range of float64 become shorter by a power of two, all entries alike.
    """
    Q = np.ascontiguousarray(Q)  # the bits of products depend on the order of entries in memory
    with np.errstate(over="ignore", under="ignore"):
        scaled = Q * scale
        far = ~np.isfinite(scaled).all(axis=1)
        if far.any():
            mantissa, power = np.frexp(scale)
            top = np.frexp(np.abs(Q[far]).max(axis=1))[1]
            room = np.minimum(power, _LARGEST - top)
            scaled[far] = np.ldexp(Q[far] * mantissa, room[:, None])
    return np.asarray(scaled)


def query_sample(Q: FloatArray | None, scale: float) -> QuerySample | None:
    """Return what is remembered of sample queries (m, d), whose logits are times ``scale``.

    The same bits on any number of threads.

    Raises
    ------
    ValueError
        If their covariance leaves the range of float64.
    """
    if Q is None:
        return None
    Q = np.ascontiguousarray(Q)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"), serial_blas():
        scaled = Q * scale
        mean = scaled.mean(axis=0)
        apart = scaled - mean
        covariance = apart.T @ apart / len(Q)
    if not np.isfinite(covariance).all():
        raise ValueError(
            f"queries must be below about {1e150 / scale:.0e} for their covariance to be finite, "
            f"got entries up to {np.abs(Q).max():.1e}."
        )
    step = max(1, len(Q) // _REMEMBERED)
    return QuerySample(mean, covariance, scaled[::step][:_REMEMBERED].copy())
