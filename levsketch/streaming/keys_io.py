"""A stream of keys as metadata and arrays, and back, refusing absurd ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from levsketch._checks import MAX_ROWS, LevsketchFormatError

from .candidates import Candidates
from .factor_io import (
    Arrays,
    Fields,
    Kinds,
    check_arrays,
    check_dtype,
    check_factor,
    check_fields,
    factor_from_arrays,
    factor_kinds,
    factor_to_arrays,
    refusing,
    require,
)
from .keys import KeyStream, Policy

_META: Fields = {
    "n_features": (int, 1, 2**31),
    "n_seen": (int, 1, MAX_ROWS),
    "dropped_bound": (float, 0.0, 1.0),
    "floor": (float, 0.0, 1.0),
    "kept": (int, 0, MAX_ROWS),
    "sound": (bool, 0, 1),
}
_ARRAYS: Kinds = {
    "pending": ("f8", 2),
    "candidate_rows": ("f8", 2),
    "candidate_index": ("i8", 1),
    "protected": ("i8", 1),
}


def to_arrays(stream: KeyStream) -> tuple[dict[str, Any], Arrays]:
    """Return the JSON metadata and the arrays that define a stream."""
    held = stream.candidates
    meta, arrays = factor_to_arrays(stream.factor, stream.prefix)
    meta |= {
        "policy": stream.policy._asdict(),
        "n_features": stream.n_features,
        "n_seen": stream.n_seen,
        "dtype": stream.dtype,
        "dropped_bound": held.dropped_bound,
        "floor": held.floor,
        "kept": held.kept,
        "sound": held.sound,
    }
    arrays |= {
        "pending": stream.pending,
        "candidate_rows": held.rows,
        "candidate_index": held.index,
        "protected": held.protected,
    }
    return meta, arrays


def from_arrays(meta: Mapping[str, Any], arrays: Arrays) -> KeyStream:
    """Return the stream saved by ``to_arrays``.

    Raises
    ------
    LevsketchFormatError
        If a field is missing, or no stream could have left these values.
    """
    with refusing():
        check_fields(meta, _META)
        check_dtype(meta["dtype"])
        check_arrays(arrays, _ARRAYS | factor_kinds(meta))
        stream = _build(meta, arrays)
        _check_values(stream)
    return stream


def _build(meta: Mapping[str, Any], arrays: Arrays) -> KeyStream:
    policy = Policy(**meta["policy"])
    d = len(arrays["space_basis"])  # of what is there, before anything is made of that size
    if meta["n_features"] + bool(policy.intercept) != d:
        raise LevsketchFormatError(f"the state is absurd: {meta['n_features']} features, d {d}.")
    empty = KeyStream.empty(policy, meta["n_features"])
    factor, prefix = factor_from_arrays(empty.factor, meta, arrays)
    return replace(
        empty,
        n_seen=meta["n_seen"],
        dtype=meta["dtype"],
        pending=arrays["pending"],
        factor=factor,
        prefix=prefix,
        candidates=Candidates(
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
    d, held = stream.d, stream.candidates
    first_pending = stream.n_seen - len(stream.pending)
    shapes_fit = stream.pending.shape[1] == d and held.rows.shape == (len(held.index), d)
    require(shapes_fit, "an array has the wrong shape")
    counts_agree = len(stream.pending) < stream.block_rows and held.kept <= first_pending
    require(counts_agree and first_pending >= 0, "the counts contradict each other")
    check_factor(stream.factor, stream.prefix, first_pending)
    rows_ascend = (np.diff(held.index) > 0).all() and (
        not len(held) or 0 <= held.index[0] <= held.index[-1] < first_pending
    )
    require(rows_ascend, "row numbers do not ascend below n_samples_seen_")
