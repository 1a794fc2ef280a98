"""How a budget of numbers is split between what an attention sketch remembers."""

from __future__ import annotations

from typing import NamedTuple

from .key_value_moments import KeyValueMoments
from .landmarks import Landmarks
from .quadratic import QuadraticMoments

# A constant trend is tried beside the linear one where that takes more than this share of the
# budget; what certifies the error is kept where it takes no more than this.
_TREND_SHARE = 0.25
_CERTIFICATE_SHARE = 0.2
_PROBE_SHARE = 0.05
# Fewer probes tell nothing; they are done without where they take twice their share.
_FEWEST_PROBES, _MOST_PROBES = 4, 64
# One row in this many of an embedding is an exact key rather than a landmark.
_HEAVY_PART = 10


class Budget(NamedTuple):
    """Sizes in rows and queries.

    Attributes
    ----------
    floats : int
        What was allowed.
    probes : int
        Queries whose exact outputs are kept.
    closure_keys : int
        Exact keys beside a Gaussian closure; negative if its moments do not fit.
    polynomial_keys : int
        Exact keys beside moments of degree two; negative if these do not fit.
    rows : dict of int
        Landmarks and exact keys of the embedding together, for each order of its trend
        (1, linear, or 0, constant) that is worth a trial.
    heavy_keys : int
        Exact keys among them, at most.
    certified : bool
        Whether the embedding keeps the moments that certify its error.
    """

    floats: int
    probes: int
    closure_keys: int
    polynomial_keys: int
    rows: dict[int, int]
    heavy_keys: int
    certified: bool


def split(floats: int, d: int, d_v: int) -> Budget:
    """Return how ``floats`` numbers are split, for d columns of keys and d_v of values.

    A landmark and an exact key are d + d_v + 1 numbers each; besides them there are the frame,
    the box of the values and the mean of the keys, the trend or the moments, and probes.
    """
    row, probe = d + d_v + 1, d + d_v + 2
    probes = min(max(int(_PROBE_SHARE * floats) // probe, _FEWEST_PROBES), _MOST_PROBES)
    if probes * probe > 2 * _PROBE_SHARE * floats:
        probes = 0
    left = floats - (2 * d + 3 * d_v + 1) - probes * probe
    moments = KeyValueMoments.floats(d, d_v)
    certified = moments <= _CERTIFICATE_SHARE * floats
    trend = [Landmarks.floats(0, order, d, d_v + 1) for order in (0, 1)]
    room = [left - size - certified * moments for size in trend]
    rows = {}
    if room[1] >= 0:
        rows[1] = room[1] // row
    if room[1] < 0 or trend[1] > _TREND_SHARE * floats:
        rows[0] = max(1, room[0] // row)
    return Budget(
        floats,
        probes,
        closure_keys=(left - moments) // row,
        polynomial_keys=(left - moments - QuadraticMoments.floats(d, d_v + 1)) // row,
        rows=rows,
        heavy_keys=min(rows.values()) // _HEAVY_PART if certified else 0,
        certified=certified,
    )
