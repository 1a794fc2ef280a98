"""A stream factor and the whitening of its prefix as metadata and arrays, and back."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from levsketch._checks import MAX_ROWS, LevsketchFormatError
from levsketch._typing import FloatArray
from levsketch.linalg import NO_EXPONENT, Factor, Whitening

from .factor import StreamFactor
from .rank import RowSpace

Arrays = dict[str, np.ndarray[Any, Any]]
# name: (type, lowest, highest); a bool is no int here, and an int no float
Fields = dict[str, tuple[type, float, float]]
Kinds = dict[str, tuple[str, int]]

FACTOR_META: Fields = {
    "n_blocks": (int, 0, MAX_ROWS),
    "gram_error": (float, 0.0, 1.0),
    "product_error": (float, 0.0, 1.0),
}
_PREFIX: Fields = {
    "triangular": (bool, 0, 1),
    "rank": (int, 0, 2**31),
}
_FACTOR_ARRAYS: Kinds = {
    "grams": ("f8", 3),
    "factors": ("f8", 3),
    "exponents": ("i8", 2),
}
_SPACE_ARRAYS: Kinds = {
    "space_basis": ("u8", 2),
    "space_pivots": ("u1", 1),
}
_PREFIX_ARRAYS: Kinds = {
    "prefix_R": ("f8", 2),
    "prefix_exponents": ("i8", 1),
    "prefix_matrix": ("f8", 2),
    "prefix_active": ("?", 1),
}


def factor_to_arrays(
    factor: StreamFactor, prefix: Whitening | None, tag: str = "", *, with_space: bool = True
) -> tuple[dict[str, Any], Arrays]:
    """Return metadata and arrays of a factor and its prefix; names of arrays begin with ``tag``."""
    d = factor.d
    meta: dict[str, Any] = {
        "n_blocks": factor.n_blocks,
        "gram_error": factor.gram_error,
        "product_error": factor.product_error,
        "gram_levels": [level for level, _ in factor.grams],
        "factor_levels": [level for level, _ in factor.factors],
        "prefix": None,
    }
    arrays: Arrays = {
        "grams": _stack([G for _, G in factor.grams], (d, d)),
        "factors": _stack([f.R for _, f in factor.factors], (d, d)),
        "exponents": _stack([f.exponents for _, f in factor.factors], (d,)).astype(np.int64),
    }
    if with_space:
        arrays |= {"space_basis": factor.space.basis, "space_pivots": factor.space.pivots}
    if prefix is not None:
        meta["prefix"] = {
            "triangular": prefix.triangular,
            "rank": prefix.rank,
            "condition": _finite(prefix.condition),
            "error": _finite(prefix.error),
        }
        arrays |= {
            "prefix_R": prefix.factor.R,
            "prefix_exponents": prefix.factor.exponents,
            "prefix_matrix": prefix.matrix,
            "prefix_active": prefix.active,
        }
    return meta, {tag + name: array for name, array in arrays.items()}


def factor_kinds(meta: Mapping[str, Any], tag: str = "", *, with_space: bool = True) -> Kinds:
    """Return type and axes of every array of a factor, after checking its metadata."""
    check_fields(meta, FACTOR_META)
    prefix = meta["prefix"]
    kinds = dict(_FACTOR_ARRAYS)
    if with_space:
        kinds |= _SPACE_ARRAYS
    if prefix is not None:
        check_fields(prefix, _PREFIX)
        for name in ("condition", "error"):
            value = prefix[name]
            if value is not None and (type(value) is not float or value < 0.0):
                raise LevsketchFormatError(f"the state is absurd: prefix {name} is {value!r}.")
        kinds |= _PREFIX_ARRAYS
    return {tag + name: kind for name, kind in kinds.items()}


def factor_from_arrays(
    empty: StreamFactor, meta: Mapping[str, Any], arrays: Arrays, tag: str = ""
) -> tuple[StreamFactor, Whitening | None]:
    """Return a factor and its prefix; ``empty`` is the factor of no rows."""
    d = empty.d
    pairs = zip(arrays[tag + "factors"], arrays[tag + "exponents"], strict=True)
    factors = [Factor(R, e) for R, e in pairs]
    space = empty.space
    if tag + "space_basis" in arrays:
        found = {"basis": arrays[tag + "space_basis"], "pivots": arrays[tag + "space_pivots"]}
        space = RowSpace.from_arrays(found, d)
    prefix = None
    if meta["prefix"] is not None:
        p = meta["prefix"]
        prefix = Whitening(
            Factor(arrays[tag + "prefix_R"], arrays[tag + "prefix_exponents"]),
            arrays[tag + "prefix_matrix"],
            p["triangular"],
            p["rank"],
            arrays[tag + "prefix_active"],
            _infinite(p["condition"]),
            _infinite(p["error"]),
        )
    factor = StreamFactor(
        empty.ridge,
        meta["n_blocks"],
        tuple(zip(_levels(meta["gram_levels"]), arrays[tag + "grams"], strict=True)),
        tuple(zip(_levels(meta["factor_levels"]), factors, strict=True)),
        meta["gram_error"],
        space,
        empty.block,
        meta["product_error"],
    )
    return factor, prefix


def check_factor(factor: StreamFactor, prefix: Whitening | None, rows: int) -> None:
    """Refuse what no ``rows`` rows could have left."""
    d, n_blocks = factor.d, factor.n_blocks
    grams = [G for _, G in factor.grams]
    triangles = [f for _, f in factor.factors]
    if prefix is not None:
        triangles.append(prefix.factor)
    levels = [level for level, _ in (*factor.grams, *factor.factors)]
    shapes_fit = (
        all(G.shape == (d, d) for G in grams)
        and all(f.R.shape == (d, d) and f.exponents.shape == (d,) for f in triangles)
        and (prefix is None or _is_whitening(prefix, d))
    )
    require(shapes_fit, "an array has the wrong shape")
    counts_agree = (
        n_blocks <= rows <= n_blocks * factor.block_rows
        and all(level < max(1, n_blocks) for level in levels)
        and bool(levels) == (n_blocks > 0)
        and (prefix is None) == (n_blocks == 0)
    )
    require(counts_agree, "the counts contradict each other")
    require(not any(np.tril(f.R, -1).any() for f in triangles), "a factor is not triangular")
    for f in triangles:
        e = f.exponents
        require(((e >= NO_EXPONENT) & (e <= -NO_EXPONENT)).all(), "an exponent is out of range")
    for G in grams:
        require((G == G.T).all() and (np.diagonal(G) >= 0).all(), "a Gram matrix is none")


def check_fields(where: Any, expected: Fields) -> None:
    """Refuse fields of another type or out of range, before any is used."""
    for name, (kind, low, high) in expected.items():
        if type(where[name]) is not kind or not low <= where[name] <= high:
            raise LevsketchFormatError(f"the state is absurd: {name} is {where[name]!r}.")


def check_dtype(dtype: Any) -> None:
    """Refuse a name that is not that of a real dtype."""
    if (
        type(dtype) is not str
        or np.dtype(dtype).name != dtype
        or np.dtype(dtype).kind not in "fiub"
    ):
        raise LevsketchFormatError(f"the state is absurd: its keys are of dtype {dtype!r}.")


def check_arrays(arrays: Arrays, kinds: Kinds) -> None:
    """Refuse other arrays than ``kinds`` names, other types and axes, NaN and infinity."""
    if set(arrays) != set(kinds):
        raise LevsketchFormatError(f"the state has the arrays {sorted(arrays)}.")
    for name, (code, ndim) in kinds.items():
        array = arrays[name]
        if array.dtype != np.dtype(code) or array.ndim != ndim:
            raise LevsketchFormatError(
                f"the state is absurd: {name} is {array.ndim}-D of dtype {array.dtype}."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise LevsketchFormatError(f"the state is absurd: {name} is not finite.")


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Return a context in which what a garbled field can raise is a LevsketchFormatError."""
    try:
        yield
    except LevsketchFormatError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise LevsketchFormatError(f"the state lacks or garbles a field: {error!r}.") from error


def require(good: Any, what: str) -> None:
    """Raise LevsketchFormatError unless ``good``."""
    if not good:
        raise LevsketchFormatError(f"the state is absurd: {what}.")


def _is_whitening(prefix: Whitening, d: int) -> bool:
    """Tell whether the fields of a whitening fit one another."""
    matrix, count = prefix.matrix, int(prefix.active.sum())
    return (
        prefix.active.shape == (d,)
        and prefix.active.dtype == np.bool_
        and bool((prefix.active == prefix.factor.R.any(axis=0)).all())
        and matrix.dtype == np.float64
        and matrix.ndim == 2
        and len(matrix) == d
        and (matrix.shape[1] == d if prefix.triangular else matrix.shape[1] <= count)
        and not (prefix.triangular and np.tril(matrix, -1).any())
        and 0 <= prefix.rank <= count
        and prefix.condition >= 1.0
        and prefix.error >= 0.0
    )


def _stack(items: list[Any], shape: tuple[int, ...]) -> FloatArray:
    return np.stack(items) if items else np.zeros((0, *shape))


def _levels(levels: list[int]) -> list[int]:
    if (
        not isinstance(levels, list)
        or any(type(a) is not int or a < 0 for a in levels)
        or any(a <= b for a, b in itertools.pairwise(levels))
    ):
        raise LevsketchFormatError(f"tree levels {levels} do not fall.")
    return levels


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _infinite(value: float | None) -> float:
    return np.inf if value is None else float(value)
