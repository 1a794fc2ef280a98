"""Moment tensors as metadata and arrays, and back, refusing absurd ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from levsketch._checks import MAX_ROWS
from levsketch._typing import FloatArray, IntArray
from levsketch.linalg import NO_EXPONENT
from levsketch.sketches.symmetric import SymmetricPower
from levsketch.sketches.tensorsketch import TensorSketch

from .factor_io import Arrays, Fields, Kinds, check_arrays, check_fields, refusing, require
from .features import Constant
from .lifted import Lift
from .lp_policy import HIGHEST_DEGREE
from .moments import NO_VALUES, MomentTensors

_META: Fields = {
    "n_rows": (int, 0, MAX_ROWS),
    "depth": (int, 0, MAX_ROWS),
}
_ARRAYS: Kinds = {
    "center": ("f8", 1),
    "tensors": ("f8", 2),
    "key_exponents": ("i8", 1),
    "value_exponents": ("i8", 1),
    "lengths": ("f8", 2),
    "buckets": ("i8", 2),
    "negative": ("?", 2),
}
# What a length is saved as of which nothing is known: files hold no infinities.
_UNKNOWN = -1.0
# Differences of float64 have exponents up to 1025.
_HIGHEST_EXPONENT = 1100
# Lengths bound the entries of tensors, but for rounding and underflow.
_SLACK, _TINY = 1.01, 1e-290


def to_arrays(moments: MomentTensors, prefix: str = "") -> tuple[dict[str, Any], Arrays]:
    """Return the JSON metadata and the arrays that define moments.

    Names of arrays begin with ``prefix``, so that they may lie among others.
    """
    described, tables = maps_to_arrays(moments.maps)
    arrays: Arrays = {
        "center": moments.center,
        "tensors": np.concatenate(moments.tensors),
        "key_exponents": moments.exponents,
        "value_exponents": moments.value_exponents,
        "lengths": np.where(np.isinf(moments.lengths), _UNKNOWN, moments.lengths),
    }
    meta = {"maps": described, "n_rows": moments.n_rows, "depth": moments.depth}
    return meta, {prefix + name: array for name, array in (arrays | tables).items()}


def array_kinds(prefix: str = "") -> Kinds:
    """Return type and axes of every array of saved moments, by name."""
    return {prefix + name: kind for name, kind in _ARRAYS.items()}


def from_arrays(meta: Mapping[str, Any], arrays: Arrays, prefix: str = "") -> MomentTensors:
    """Return the moments saved by ``to_arrays``; arrays under other prefixes are left alone.

    Raises
    ------
    LevsketchFormatError
        If a field is missing, or no rows could have left these values. Nothing is
        allocated from sizes that the arrays do not have.
    """
    with refusing():
        check_fields(meta, _META)
        mine = {name: arrays[name] for name in array_kinds(prefix)}
        check_arrays(mine, array_kinds(prefix))
        moments = _build(meta, {name: mine[prefix + name] for name in _ARRAYS})
        _check_values(moments)
    return moments


def maps_to_arrays(maps: Sequence[Lift]) -> tuple[list[list[int | None]], Arrays]:
    """Return degree and size of every map, as JSON, and the tables of all sketches.

    The size is None for a symmetric power: it follows from the degree.
    """
    sketches = [lift for lift in maps if isinstance(lift, TensorSketch)]
    none = np.zeros((0, maps[0].d), np.int64)
    signs = [none, *(lift.signs.astype(np.int64) for lift in sketches)]
    described = [[m.degree, m.size if isinstance(m, TensorSketch) else None] for m in maps]
    return described, {
        "buckets": np.concatenate([none, *(lift.buckets for lift in sketches)]),
        "negative": np.concatenate(signs) < 0,
    }


def maps_from_arrays(described: Any, arrays: Arrays, d: int, total: int) -> tuple[Lift, ...]:
    """Return maps of d columns whose sizes add up to ``total``, which the caller has seen.

    They hold nothing of their size. Raises LevsketchFormatError if there are no such maps.
    """
    buckets, negative = arrays["buckets"], arrays["negative"]
    require(d > 0 and type(described) is list and described, "there are no maps")
    maps: list[Lift] = []
    at, last = 0, -1
    for entry in described:
        degree, size = entry
        whole = type(degree) is int and last < degree <= HIGHEST_DEGREE
        sketched = type(size) is int and degree > 0 and 0 < size <= total
        require(whole and (size is None or sketched), f"a map is {entry!r}")
        last = degree
        if size is None:
            maps.append(SymmetricPower(d, degree) if degree else Constant(d))
            continue
        table, signs = buckets[at : at + degree], 1 - 2 * negative[at : at + degree].astype(np.int8)
        fits = table.shape == signs.shape == (degree, d)
        require(fits and ((table >= 0) & (table < size)).all(), "a sketch has no such tables")
        for array in (table, signs):
            array.flags.writeable = False
        maps.append(TensorSketch(d, degree, size, table, signs))
        at += degree
    require(at == len(buckets) == len(negative), "there are tables of no sketch")
    require(sum(lift.size for lift in maps) == total, "maps of another size")
    return tuple(maps)


def check_exponents(exponents: IntArray, value_exponents: IntArray) -> None:
    """Refuse scales of columns that no rows could have left."""
    in_range = (exponents >= NO_EXPONENT) & (exponents <= _HIGHEST_EXPONENT)
    require(in_range.all(), "an exponent of a key is out of range")
    in_range = (value_exponents >= NO_VALUES) & (value_exponents <= -NO_VALUES)
    require(in_range.all(), "an exponent of a value is out of range")


def _build(meta: Mapping[str, Any], arrays: Arrays) -> MomentTensors:
    T, lengths, d = arrays["tensors"], arrays["lengths"], len(arrays["center"])
    maps = maps_from_arrays(meta["maps"], arrays, d, len(T))
    shapes_fit = (
        T.shape[1] > 0
        and arrays["key_exponents"].shape == (d,)
        and arrays["value_exponents"].shape == T.shape[1:]
        and lengths.shape == (len(maps), T.shape[1])
    )
    require(shapes_fit, "an array has the wrong shape")
    require(((lengths >= 0) | (lengths == _UNKNOWN)).all(), "a length is negative")
    return MomentTensors(
        maps,
        arrays["center"],
        tuple(np.split(T, np.cumsum([lift.size for lift in maps[:-1]]))),
        arrays["key_exponents"],
        arrays["value_exponents"],
        np.where(lengths == _UNKNOWN, np.inf, lengths),
        meta["n_rows"],
        meta["depth"],
    )


def _check_values(moments: MomentTensors) -> None:
    """Refuse exponents and sizes that no rows could have left."""
    ends = moments.value_exponents
    check_exponents(moments.exponents, ends)
    for T, lengths in zip(moments.tensors, moments.lengths, strict=True):
        require((_largest(T) <= lengths * _SLACK + _TINY).all(), "a tensor exceeds its lengths")
    empty = not moments.n_rows
    nothing = (ends == NO_VALUES).all() and not moments.lengths.any() and not moments.depth
    require(not empty or nothing, "no rows have left something")
    require(empty or (ends > NO_VALUES).any(), "rows have left nothing")


def _largest(T: FloatArray) -> FloatArray:
    return np.asarray(np.abs(T).max(axis=0, initial=0.0))
