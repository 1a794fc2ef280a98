"""A stream of keys as metadata and arrays, and back, refusing absurd ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from levsketch._checks import MAX_ROWS, LevsketchFormatError
from levsketch._typing import FloatArray
from levsketch.linalg import NO_EXPONENT, Factor, Whitening

from .candidates import Candidates
from .factor import StreamFactor, block_size
from .keys import KeyStream, Policy
from .rank import RowSpace

Arrays = dict[str, np.ndarray[Any, Any]]


def to_arrays(stream: KeyStream) -> tuple[dict[str, Any], Arrays]:
    """Return the JSON metadata and the arrays that define a stream."""
    factor, held, prefix = stream.factor, stream.candidates, stream.prefix
    d = stream.d
    meta: dict[str, Any] = {
        "policy": stream.policy._asdict(),
        "n_features": stream.n_features,
        "n_seen": stream.n_seen,
        "dtype": stream.dtype,
        "n_blocks": factor.n_blocks,
        "gram_error": factor.gram_error,
        "gram_levels": [level for level, _ in factor.grams],
        "factor_levels": [level for level, _ in factor.factors],
        "dropped_bound": held.dropped_bound,
        "floor": held.floor,
        "kept": held.kept,
        "sound": held.sound,
        "prefix": None,
    }
    arrays: Arrays = {
        "pending": stream.pending,
        "grams": _stack([G for _, G in factor.grams], (d, d)),
        "factors": _stack([f.R for _, f in factor.factors], (d, d)),
        "exponents": _stack([f.exponents for _, f in factor.factors], (d,)).astype(np.int64),
        "space_basis": factor.space.basis,
        "space_pivots": factor.space.pivots,
        "candidate_rows": held.rows,
        "candidate_index": held.index,
        "protected": held.protected,
    }
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
    return meta, arrays


def from_arrays(meta: Mapping[str, Any], arrays: Arrays) -> KeyStream:
    """Return the stream saved by ``to_arrays``.

    Raises
    ------
    LevsketchFormatError
        If a field is missing, or no stream could have left these values.
    """
    try:
        _check_kinds(meta, arrays)
        stream = _build(meta, arrays)
        _check_values(stream)
    except LevsketchFormatError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise LevsketchFormatError(f"the state lacks or garbles a field: {error!r}.") from error
    return stream


# name: (type, lowest, highest); a bool is no int here, and an int no float
_META: dict[str, tuple[type, float, float]] = {
    "n_features": (int, 1, 2**31),
    "n_seen": (int, 1, MAX_ROWS),
    "n_blocks": (int, 0, MAX_ROWS),
    "gram_error": (float, 0.0, 1.0),
    "dropped_bound": (float, 0.0, 1.0),
    "floor": (float, 0.0, 1.0),
    "kept": (int, 0, MAX_ROWS),
    "sound": (bool, 0, 1),
}
_PREFIX: dict[str, tuple[type, float, float]] = {
    "triangular": (bool, 0, 1),
    "rank": (int, 0, 2**31),
}
_ARRAYS = {
    "pending": ("f8", 2),
    "grams": ("f8", 3),
    "factors": ("f8", 3),
    "exponents": ("i8", 2),
    "space_basis": ("u8", 2),
    "space_pivots": ("u1", 1),
    "candidate_rows": ("f8", 2),
    "candidate_index": ("i8", 1),
    "protected": ("i8", 1),
}
_PREFIX_ARRAYS = {
    "prefix_R": ("f8", 2),
    "prefix_exponents": ("i8", 1),
    "prefix_matrix": ("f8", 2),
    "prefix_active": ("?", 1),
}


def _check_kinds(meta: Mapping[str, Any], arrays: Arrays) -> None:
    """Refuse fields and arrays of another type, range or number of axes, before any is used."""
    prefix = meta["prefix"]
    fields = [(meta, _META)] + ([] if prefix is None else [(prefix, _PREFIX)])
    for where, expected in fields:
        for name, (kind, low, high) in expected.items():
            if type(where[name]) is not kind or not low <= where[name] <= high:
                raise LevsketchFormatError(f"the state is absurd: {name} is {where[name]!r}.")
    for name in ("condition", "error"):
        value = 1.0 if prefix is None else prefix[name]
        if value is not None and (type(value) is not float or value < 0.0):
            raise LevsketchFormatError(f"the state is absurd: prefix {name} is {value!r}.")
    dtype = meta["dtype"]
    if (
        type(dtype) is not str
        or np.dtype(dtype).name != dtype
        or np.dtype(dtype).kind not in "fiub"
    ):
        raise LevsketchFormatError(f"the state is absurd: its keys are of dtype {dtype!r}.")
    kinds = _ARRAYS if prefix is None else _ARRAYS | _PREFIX_ARRAYS
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


def _build(meta: Mapping[str, Any], arrays: Arrays) -> KeyStream:
    policy = Policy(**meta["policy"])
    d = len(arrays["space_basis"])  # of what is there, before anything is made of that size
    if meta["n_features"] + bool(policy.intercept) != d:
        raise LevsketchFormatError(f"the state is absurd: {meta['n_features']} features, d {d}.")
    empty = KeyStream.empty(policy, meta["n_features"])
    pairs = zip(arrays["factors"], arrays["exponents"], strict=True)
    factors = [Factor(R, e) for R, e in pairs]
    space = {"basis": arrays["space_basis"], "pivots": arrays["space_pivots"]}
    prefix = None
    if meta["prefix"] is not None:
        p = meta["prefix"]
        prefix = Whitening(
            Factor(arrays["prefix_R"], arrays["prefix_exponents"]),
            arrays["prefix_matrix"],
            p["triangular"],
            p["rank"],
            arrays["prefix_active"],
            _infinite(p["condition"]),
            _infinite(p["error"]),
        )
    return KeyStream(
        meta["n_seen"],
        meta["dtype"],
        arrays["pending"],
        policy,
        empty.n_features,
        StreamFactor(
            empty.factor.ridge,
            meta["n_blocks"],
            tuple(zip(_levels(meta["gram_levels"]), arrays["grams"], strict=True)),
            tuple(zip(_levels(meta["factor_levels"]), factors, strict=True)),
            meta["gram_error"],
            RowSpace.from_arrays(space, d),
        ),
        prefix,
        Candidates(
            arrays["candidate_rows"],
            arrays["candidate_index"],
            arrays["protected"],
            meta["dropped_bound"],
            meta["floor"],
            meta["kept"],
            meta["sound"],
        ),
    )


def _check_values(stream: KeyStream) -> None:
    """Refuse shapes, orders and values that no stream could have left."""
    d, held, factor = stream.d, stream.candidates, stream.factor
    grams = [G for _, G in factor.grams]
    triangles = [f for _, f in factor.factors]
    if stream.prefix is not None:
        triangles.append(stream.prefix.factor)
    first_pending, n_blocks = stream.n_seen - len(stream.pending), factor.n_blocks
    levels = [level for level, _ in (*factor.grams, *factor.factors)]

    def require(good: Any, what: str) -> None:
        if not good:
            raise LevsketchFormatError(f"the state is absurd: {what}.")

    shapes_fit = (
        stream.pending.shape[1] == d
        and held.rows.shape == (len(held.index), d)
        and all(G.shape == (d, d) for G in grams)
        and all(f.R.shape == (d, d) and f.exponents.shape == (d,) for f in triangles)
        and (stream.prefix is None or _is_whitening(stream.prefix, d))
    )
    require(shapes_fit, "an array has the wrong shape")
    counts_agree = (
        0 <= len(stream.pending) < block_size(d)
        and 0 <= first_pending <= n_blocks * block_size(d)
        and n_blocks <= first_pending
        and held.kept <= first_pending
        and all(level < max(1, n_blocks) for level in levels)
        and bool(levels) == (n_blocks > 0)
        and (stream.prefix is None) == (n_blocks == 0)
    )
    require(counts_agree, "the counts contradict each other")
    require(not any(np.tril(f.R, -1).any() for f in triangles), "a factor is not triangular")
    for f in triangles:
        e = f.exponents
        require(((e >= NO_EXPONENT) & (e <= -NO_EXPONENT)).all(), "an exponent is out of range")
    for G in grams:
        require((G == G.T).all() and (np.diagonal(G) >= 0).all(), "a Gram matrix is none")
    rows_ascend = (np.diff(held.index) > 0).all() and (
        not len(held) or 0 <= held.index[0] <= held.index[-1] < first_pending
    )
    require(rows_ascend, "row numbers do not ascend below n_samples_seen_")


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
