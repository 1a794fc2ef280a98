"""Moments of keys and values as metadata and arrays, and back, refusing absurd ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from levsketch._checks import MAX_ROWS
from levsketch._typing import FloatArray

from .extents import Ellipsoid, KeyExtent, ValueExtent
from .factor_io import Arrays, Fields, Kinds, check_arrays, check_fields, refusing, require
from .key_value_moments import KeyValueMoments

_META: Fields = {
    "weight": (float, 0.0, 1e300),
    "count": (int, 0, MAX_ROWS),
    "roundings": (int, 0, MAX_ROWS),
    "radius": (float, 0.0, 1e300),
    "value_radius": (float, 0.0, 1e300),
}
_ARRAYS: Kinds = {
    "key_sum": ("f8", 1),
    "key_square": ("f8", 2),
    "value_sum": ("f8", 1),
    "key_value": ("f8", 2),
    "magnitude": ("f8", 1),
    "key_low": ("f8", 1),
    "key_high": ("f8", 1),
    "centre": ("f8", 1),
    "factor": ("f8", 2),
    "value_low": ("f8", 1),
    "value_high": ("f8", 1),
    "value_magnitude": ("f8", 1),
}
_SUMS = ("key_sum", "key_square", "value_sum", "key_value", "magnitude")
_OF_KEYS = ("key_sum", "magnitude", "key_low", "key_high", "centre")
# Inequalities that hold but for rounding, and for underflow, are asked for with this much room.
_SLACK, _TINY = 1e-6, 1e-140


def to_arrays(moments: KeyValueMoments, prefix: str = "") -> tuple[dict[str, Any], Arrays]:
    """Return the JSON metadata and the arrays that define moments.

    Names of arrays begin with ``prefix``, so that they may lie among others. Sums that have
    overflowed are written as they are, and refused when they are read.
    """
    extent, values, empty = moments.extent, moments.value_extent, not moments.count
    ellipsoid = extent.ellipsoid
    boxes = (extent.low, extent.high, values.low, values.high)
    # files hold no infinities
    key_low, key_high, value_low, value_high = (np.zeros_like(b) if empty else b for b in boxes)
    meta: dict[str, Any] = {
        "weight": float(moments.weight),
        "count": moments.count,
        "roundings": moments.roundings,
        "radius": 0.0 if empty else float(extent.radius),
        "value_radius": float(values.radius),
        "reach": None,
    }
    if ellipsoid.known:
        meta["reach"] = [float(x) for x in (ellipsoid.reach, ellipsoid.spill, extent.fitted)]
    arrays: Arrays = {
        **{name: getattr(moments, name) for name in _SUMS},
        "key_low": key_low,
        "key_high": key_high,
        "centre": ellipsoid.centre,
        "factor": ellipsoid.factor,
        "value_low": value_low,
        "value_high": value_high,
        "value_magnitude": values.magnitude,
    }
    return meta, {prefix + name: array for name, array in arrays.items()}


def array_kinds(prefix: str = "") -> Kinds:
    """Return type and axes of every array of saved moments, by name."""
    return {prefix + name: kind for name, kind in _ARRAYS.items()}


def from_arrays(meta: Mapping[str, Any], arrays: Arrays, prefix: str = "") -> KeyValueMoments:
    """Return the moments saved by ``to_arrays``; arrays under other prefixes are left alone.

    Raises
    ------
    LevsketchFormatError
        If a field is missing, or no rows could have left these values.
    """
    with refusing(), np.errstate(all="ignore"):
        check_fields(meta, _META)
        mine = {name: arrays[name] for name in array_kinds(prefix)}
        check_arrays(mine, array_kinds(prefix))
        moments = _build(meta, {name: mine[prefix + name] for name in _ARRAYS})
        _check_sums(moments)
        _check_extents(moments)
    return moments


def _build(meta: Mapping[str, Any], arrays: Arrays) -> KeyValueMoments:
    d, d_v = arrays["key_value"].shape
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_ARRAYS, (d_v,))
    shapes |= dict.fromkeys(_OF_KEYS, (d,)) | {"key_square": (d, d), "factor": (d, d)}
    shapes["key_value"] = (d, d_v)
    fits = all(array.shape == shapes[name] for name, array in arrays.items())
    require(d > 0 and fits, "an array has the wrong shape")
    reach = spill = fitted = np.inf
    if meta["reach"] is not None:
        require(all(type(x) is float and x >= 0.0 for x in meta["reach"]), "a reach is none")
        reach, spill, fitted = meta["reach"]
        require(reach <= spill < np.inf and fitted <= reach, "an ellipsoid has no such reach")
    ellipsoid = Ellipsoid(arrays["centre"], arrays["factor"], reach, spill)
    if not meta["count"]:
        nothing = not any(arrays[name].any() for name in _ARRAYS if name != "factor")
        none = all(meta[name] == 0 for name in _META) and meta["reach"] is None
        require(nothing and none, "no rows have left something")
        return KeyValueMoments.empty(d, d_v)
    held = arrays["value_low"], arrays["value_high"], meta["value_radius"]
    fields: dict[str, Any] = {name: meta[name] for name in ("weight", "count", "roundings")}
    fields |= {name: arrays[name] for name in _SUMS}
    return KeyValueMoments(
        **fields,
        extent=KeyExtent(meta["radius"], arrays["key_low"], arrays["key_high"], ellipsoid, fitted),
        value_extent=ValueExtent(*held, arrays["value_magnitude"]),
    )


def _check_sums(moments: KeyValueMoments) -> None:
    """Refuse sums that are those of no rows with weights."""
    if not moments.count:
        return
    S, weight, size = moments.key_square, moments.weight, moments.magnitude
    require(weight > 0.0 and moments.roundings > 0, "rows have left no weight")
    require((S == S.T).all() and (np.diagonal(S) >= 0.0).all(), "mean squares are not symmetric")
    enough = (size * (1.0 + _SLACK) + _TINY >= np.diagonal(S)).all()
    require(enough, "mean squares exceed their magnitude")
    # of [1, k]: its Gram matrix has no negative eigenvalue but for rounding
    roots = np.sqrt(np.concatenate([[weight], size])) + _TINY
    G = np.block([[np.array([[weight]]), moments.key_sum[None]], [moments.key_sum[:, None], S]])
    scaled = G / roots / roots[:, None]
    fits = bool(np.isfinite(scaled).all()) and bool(np.linalg.eigvalsh(scaled)[0] >= -_SLACK)
    require(fits, "mean squares are not those of rows")
    most = np.sqrt(weight) * roots[1:, None] * moments.value_extent.magnitude
    fits = bool((np.abs(moments.key_value) <= most * (1.0 + _SLACK) + _TINY).all())
    require(fits, "products of keys and values exceed their sizes")


def _check_extents(moments: KeyValueMoments) -> None:
    """Refuse boxes, balls and ellipsoids that do not hold the means."""
    if not moments.count:
        return
    extent, values = moments.extent, moments.value_extent
    L = extent.ellipsoid.factor
    is_factor = not np.triu(L, 1).any() and (np.diagonal(L) > 0.0).all()
    require(is_factor, "the factor of an ellipsoid is none")
    require((extent.low <= extent.high).all(), "the box of the keys is none")
    require((values.low <= values.high).all(), "the box of the values is none")
    require((values.magnitude >= 0.0).all(), "a magnitude is negative")
    room = np.sqrt(moments.magnitude / moments.weight)
    held = _holds(extent.low, extent.high, moments.mean, room)
    held = held and _holds(values.low, values.high, moments.mean_value, values.magnitude)
    require(held, "a mean is outside the box")
    for radius, low, high, size in (
        (extent.radius, extent.low, extent.high, room),
        (values.radius, values.low, values.high, values.magnitude),
    ):
        reached = np.fmax(-low, high) <= (radius + size) * _SLACK + radius + _TINY
        require(reached.all(), "the box is outside the ball")


def _holds(low: FloatArray, high: FloatArray, mean: FloatArray, size: FloatArray) -> bool:
    room = _SLACK * size + _TINY
    return bool(((mean >= low - room) & (mean <= high + room)).all())
