"""Moments of two streams as metadata and arrays, and back, refusing absurd ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levsketch._checks import MAX_ROWS
from levsketch.linalg import NO_EXPONENT
from levsketch.sketches.inner_product import make_sketch

from .factor_io import Arrays, Kinds, check_arrays, refusing, require
from .moments import NO_VALUES
from .moments_io import check_exponents, maps_from_arrays, maps_to_arrays
from .unaligned import UnalignedMoments

_ARRAYS: Kinds = {
    "center": ("f8", 1),
    "features": ("f8", 2),
    "ones": ("f8", 1),
    "values": ("f8", 2),
    "key_exponents": ("i8", 1),
    "value_exponents": ("i8", 1),
    "lengths": ("f8", 1),
    "buckets": ("i8", 2),
    "negative": ("?", 2),
}


def to_arrays(moments: UnalignedMoments, prefix: str = "") -> tuple[dict[str, Any], Arrays]:
    """Return the JSON metadata and the arrays that define the state, these with a prefix."""
    described, tables = maps_to_arrays(moments.maps)
    sketch = moments.sketch
    meta = {
        "maps": described,
        "sketch": [sketch.name, sketch.size, sketch.seed],
        "key_rows": list(moments.key_rows),
        "value_rows": list(moments.value_rows),
    }
    arrays: Arrays = {
        "center": moments.center,
        "features": moments.features,
        "ones": moments.ones,
        "values": moments.values,
        "key_exponents": moments.exponents,
        "value_exponents": moments.value_exponents,
        "lengths": moments.lengths,
    }
    return meta, {prefix + name: array for name, array in (arrays | tables).items()}


def array_kinds(prefix: str = "") -> Kinds:
    """Return type and axes of every array of a saved state, by name."""
    return {prefix + name: kind for name, kind in _ARRAYS.items()}


def from_arrays(meta: Mapping[str, Any], arrays: Arrays, prefix: str = "") -> UnalignedMoments:
    """Return the state saved by ``to_arrays``; arrays under other prefixes are left alone.

    Raises
    ------
    LevsketchFormatError
        If a field is missing, or no rows could have left these values. Nothing is
        allocated from sizes that the arrays do not have.
    """
    with refusing():
        mine = {name: arrays[name] for name in array_kinds(prefix)}
        check_arrays(mine, array_kinds(prefix))
        moments = _build(meta, {name: mine[prefix + name] for name in _ARRAYS})
        _check_values(moments)
    return moments


def _build(meta: Mapping[str, Any], arrays: Arrays) -> UnalignedMoments:
    d, m = len(arrays["center"]), len(arrays["ones"])
    features, values, lengths = arrays["features"], arrays["values"], arrays["lengths"]
    name, size, seed = meta["sketch"]
    require(type(name) is str and type(size) is type(seed) is int, "there is no such sketch")
    maps = maps_from_arrays(meta["maps"], arrays, d, features.shape[1])
    shapes_fit = (
        m == size
        and len(features) == len(values) == m + 1
        and values.shape[1] > 0
        and arrays["key_exponents"].shape == (d,)
        and arrays["value_exponents"].shape == values.shape[1:]
        and lengths.shape == (len(maps),)
    )
    require(shapes_fit, "an array has the wrong shape")
    return UnalignedMoments(
        make_sketch(name, size, seed),
        maps,
        arrays["center"],
        features,
        arrays["ones"],
        values,
        arrays["key_exponents"],
        arrays["value_exponents"],
        lengths,
        _rows(meta["key_rows"]),
        _rows(meta["value_rows"]),
    )


def _rows(ends: Any) -> tuple[int, int]:
    """Return a range of rows."""
    start, stop = ends
    whole = type(start) is type(stop) is int
    require(whole and 0 <= start <= stop <= MAX_ROWS, f"a range of rows is {ends!r}")
    return start, stop


def _check_values(moments: UnalignedMoments) -> None:
    """Refuse exponents and sums that no rows could have left."""
    check_exponents(moments.exponents, moments.value_exponents)
    require((moments.lengths >= 0).all(), "a length is negative")
    no_keys = (
        (moments.exponents == NO_EXPONENT).all()
        and not moments.features.any()
        and not moments.ones.any()
        and not moments.lengths.any()
    )
    require(moments.n_keys or no_keys, "no keys have left something")
    no_values = (moments.value_exponents == NO_VALUES).all() and not moments.values.any()
    require(moments.n_values or no_values, "no values have left something")
