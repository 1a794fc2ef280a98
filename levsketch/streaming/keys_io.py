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
        stream = _build(meta, arrays)
    except LevsketchFormatError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise LevsketchFormatError(f"the state lacks or garbles a field: {error!r}.") from error
    _check(stream, arrays)
    return stream


def _build(meta: Mapping[str, Any], arrays: Arrays) -> KeyStream:
    policy = Policy(**meta["policy"])
    n_features = meta["n_features"]
    d = len(arrays["space_basis"])  # of what is there, before anything is made of that size
    if type(n_features) is not int or n_features < 1 or n_features + bool(policy.intercept) != d:
        raise LevsketchFormatError(f"the state is absurd: n_features {n_features!r}, d {d}.")
    empty = KeyStream.empty(policy, n_features)
    pairs = zip(arrays["factors"], arrays["exponents"], strict=True)
    factors = [Factor(R, e) for R, e in pairs]
    prefix = None
    if meta["prefix"] is not None:
        p = meta["prefix"]
        prefix = Whitening(
            Factor(arrays["prefix_R"], arrays["prefix_exponents"]),
            arrays["prefix_matrix"],
            bool(p["triangular"]),
            int(p["rank"]),
            arrays["prefix_active"],
            _infinite(p["condition"]),
            _infinite(p["error"]),
        )
    return KeyStream(
        policy,
        empty.n_features,
        int(meta["n_seen"]),
        str(np.dtype(meta["dtype"]).name) if meta["dtype"] else "",
        arrays["pending"],
        StreamFactor(
            empty.factor.ridge,
            int(meta["n_blocks"]),
            tuple(zip(_levels(meta["gram_levels"]), arrays["grams"], strict=True)),
            tuple(zip(_levels(meta["factor_levels"]), factors, strict=True)),
            float(meta["gram_error"]),
            RowSpace.from_arrays(
                {"basis": arrays["space_basis"], "pivots": arrays["space_pivots"]}, empty.d
            ),
        ),
        prefix,
        Candidates(
            arrays["candidate_rows"],
            arrays["candidate_index"],
            arrays["protected"],
            float(meta["dropped_bound"]),
            float(meta["floor"]),
            int(meta["kept"]),
            bool(meta["sound"]),
        ),
    )


def _check(stream: KeyStream, arrays: Arrays) -> None:
    """Refuse shapes, orders and values that no stream could have left."""
    d, held = stream.d, stream.candidates
    floats = [a for a in arrays.values() if a.dtype == np.float64]
    triangles = [G for _, G in stream.factor.factors] + (
        [stream.prefix.factor] if stream.prefix is not None else []
    )
    first_pending = stream.n_seen - len(stream.pending)
    problems = {
        "a value is not finite": any(not np.isfinite(a).all() for a in floats),
        "an array has the wrong shape": (
            stream.pending.shape[1:] != (d,)
            or held.rows.shape != (len(held.index), d)
            or any(a.dtype != np.float64 for a in (stream.pending, held.rows, arrays["grams"]))
            or held.index.dtype != np.int64
            or held.protected.dtype != np.int64
            or arrays["grams"].shape[1:] != (d, d)
            or any(
                f.R.shape != (d, d)
                or f.R.dtype != np.float64
                or f.exponents.shape != (d,)
                or f.exponents.dtype != np.int64
                or (np.abs(f.exponents) > -NO_EXPONENT).any()
                for f in triangles
            )
            or (stream.prefix is not None and not _is_whitening(stream.prefix, d))
        ),
        "the counts contradict each other": (
            first_pending < 0
            or not 0 < stream.n_seen <= MAX_ROWS
            or len(stream.pending) >= block_size(d)
            or (first_pending == 0) != (stream.factor.n_blocks == 0)
            or not 0 <= stream.factor.n_blocks <= first_pending
            or not 0 <= held.kept <= first_pending
            or (stream.prefix is None) != (stream.factor.n_blocks == 0)
        ),
    }
    for text, wrong in problems.items():
        if wrong:
            raise LevsketchFormatError(f"the state is absurd: {text}.")
    problems = {
        "a factor is not triangular": any(np.tril(f.R, -1).any() for f in triangles),
        "a Gram matrix is not symmetric": any((G != G.T).any() for _, G in stream.factor.grams),
        "row numbers do not ascend below n_samples_seen_": bool(
            (np.diff(held.index) <= 0).any()
            or (len(held) and (held.index[0] < 0 or held.index[-1] >= first_pending))
        ),
        "a bound is out of range": not (
            0.0 <= held.dropped_bound <= 1.0
            and 0.0 <= held.floor <= 1.0
            and stream.factor.gram_error >= 0.0
        ),
    }
    for text, wrong in problems.items():
        if wrong:
            raise LevsketchFormatError(f"the state is absurd: {text}.")


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
