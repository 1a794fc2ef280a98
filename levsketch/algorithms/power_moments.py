"""Outputs of attention with f(x) = x^p, p even, from moments: exact but for rounding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from levsketch._typing import BoolArray, FloatArray
from levsketch.linalg import NO_EXPONENT, UNIT_ROUNDOFF
from levsketch.streaming.extents import row_norms
from levsketch.streaming.features import MOST_ROWS, roundoff
from levsketch.streaming.polynomial_answering import Answering

from . import attention_bounds

# A normaliser this many roundings of its largest term is one of rounding.
_NOISE = 8.0
# Roundings of a bound once its parts are known.
_OWN = 64.0 * UNIT_ROUNDOFF


class PowerOutputs(NamedTuple):
    """Outputs (m, d_v) and error bounds (m,) in the frame; (m,) where all weights are zero."""

    outputs: FloatArray
    bounds: FloatArray
    empty: BoolArray


def power_outputs(view: Answering, Q: FloatArray) -> PowerOutputs:
    """Return attention outputs of queries (m, d) of any length.

    Where the normaliser is not told from rounding, they are zero in units of users, as they are by
    definition for a query that is orthogonal to all keys.

    Notes
    -----
    ``sum_j w_j <q, k_j>^p [v_j, 1]``, N and Z, are inner products with moments. If these are off by
    at most e and z, and Z > z, then ``|N / Z - y| <= (e + |N / Z| z) / (Z - z)`` in each column:
    up to e, N is y times the exact normaliser. Both have the proved bound of `MomentTensors`;
    relative to ``||q||^p sum_j w_j ||k_j||^p``, so queries that are nearly orthogonal to
    all keys lose digits. If Z is not proved positive, the exact output may be zero, or anything in
    the box of the values.
    """
    moments, extent = view.moments, view.extent
    if moments is None:
        raise AssertionError("powers have moments of all rows")
    found = moments.contract_scaled(Q)
    total, lost = found.values[:, 0, -1], found.rounding[:, 0, -1]
    share = roundoff(moments.maps[0], min(moments.n_rows, MOST_ROWS) + moments.depth)
    empty = ~(total > _NOISE * UNIT_ROUNDOFF / share * lost)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        power = found.value_powers[:-1] - found.value_powers[-1]
        ratios = np.where(empty[:, None], 0.0, found.values[:, 0, :-1] / total[:, None])
        errors = (found.rounding[:, 0, :-1] + np.abs(ratios) * lost[:, None]) / (total - lost)[
            :, None
        ]
        outputs, errors = np.ldexp(ratios, power), np.ldexp(errors, power)
        outputs = np.clip(outputs, extent.low, extent.high)
        nothing = np.ldexp(-view.frame.value_centre, view.frame.spread_power)
        outputs = np.where(empty[:, None], nothing, outputs)
        hidden = _OWN * (row_norms(outputs) + row_norms(extent.magnitude[None])[0])
        bounds = row_norms(errors) * (1.0 + _OWN) + hidden
    sure = (total > lost) & ~empty & ~np.isnan(bounds)
    anyhow = attention_bounds.box_error(outputs, extent.low, extent.high)
    apart = np.maximum(anyhow, row_norms(outputs - nothing))
    bounds = np.where(sure, np.fmin(bounds, anyhow), apart)
    # columns of keys that are all zero
    met = Q[:, moments.exponents > NO_EXPONENT].any(axis=1)
    return PowerOutputs(outputs, np.where(met, bounds, 0.0), empty)
