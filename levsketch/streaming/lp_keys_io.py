"""A stream of keys for any f as metadata and arrays, and back, refusing absurd ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from levsketch._checks import MAX_ROWS, LevsketchFormatError
from levsketch.linalg import NO_EXPONENT

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
from .lp_keys import LpStream
from .lp_policy import LpPolicy
from .lp_selection import Refined
from .pool import Pool

# Levels are brought back near one once they leave 1e-100 to 1e100.
_HUGE = 1e150
_META: Fields = {
    "n_seen": (int, 1, MAX_ROWS),
    "level": (float, 0.0, _HUGE),
    "prefix_level": (float, 0.0, _HUGE),
    "weights_sound": (bool, 0, 1),
    "dropped_bound": (float, 0.0, 1.0),
    "floor": (float, -1.0, 1.0),
    "kept": (int, 0, MAX_ROWS),
    "pool_sound": (bool, 0, 1),
    "refined_at": (int, 0, MAX_ROWS),
}
_ARRAYS: Kinds = {
    "pending": ("f8", 2),
    "pool_rows": ("f8", 2),
    "pool_index": ("i8", 1),
    "pool_weights": ("f8", 1),
    "pool_bounds": ("f8", 1),
    "pool_tickets": ("f8", 1),
    "pool_rose": ("?", 1),
    "refined_numbers": ("i8", 1),
    "refined_intervals": ("f8", 2),
    "refined_queries": ("f8", 2),
}
_LIFT = "lift_"


def to_arrays(stream: LpStream) -> tuple[dict[str, Any], Arrays]:
    """Return the JSON metadata and the arrays that define a stream."""
    weighted, lifted, pool = stream.weighted, stream.lifted, stream.pool
    meta, arrays = factor_to_arrays(weighted.factor, weighted.prefix)
    meta |= {
        "policy": stream.policy._asdict(),
        "n_seen": stream.n_seen,
        "dtype": stream.dtype,
        "level": weighted.level,
        "prefix_level": weighted.prefix_level,
        "weights_sound": weighted.sound,
        "dropped_bound": pool.dropped_bound,
        "floor": pool.floor,
        "kept": pool.kept,
        "pool_sound": pool.sound,
        "refined_at": stream.refined.n_seen,
        "lift": None,
    }
    arrays |= {
        "pending": stream.pending,
        "pool_rows": pool.rows,
        "pool_index": pool.index,
        "pool_weights": pool.weights,
        "pool_bounds": pool.bounds,
        "pool_tickets": pool.tickets,
        "pool_rose": pool.rose,
        "refined_numbers": stream.refined.numbers,
        "refined_intervals": stream.refined.intervals,
        "refined_queries": stream.refined.queries,
    }
    if lifted is not None:
        # its row space is always everything
        meta["lift"], more = factor_to_arrays(lifted.factor, lifted.prefix, _LIFT, with_space=False)
        arrays |= more | {_LIFT + "column_exponents": lifted.exponents}
    return meta, arrays


def from_arrays(meta: Mapping[str, Any], arrays: Arrays) -> LpStream:
    """Return the stream saved by ``to_arrays``.

    Raises
    ------
    LevsketchFormatError
        If a field is missing, or no stream could have left these values.
    """
    with refusing():
        check_fields(meta, _META)
        check_dtype(meta["dtype"])
        kinds = _ARRAYS | factor_kinds(meta)
        if meta["lift"] is not None:
            kinds |= factor_kinds(meta["lift"], _LIFT, with_space=False)
            kinds[_LIFT + "column_exponents"] = ("i8", 1)
        check_arrays(arrays, kinds)
        stream = _build(meta, arrays)
        _check_values(stream)
    return stream


def _build(meta: Mapping[str, Any], arrays: Arrays) -> LpStream:
    policy = LpPolicy(**meta["policy"])
    policy.check_types()
    d = len(arrays["space_basis"])  # of what is there, before anything is made of that size
    lift = policy.lift_for(d)
    if (lift is None) != (meta["lift"] is None):
        raise LevsketchFormatError("the state is absurd: its lift does not fit its parameters.")
    if lift is not None and arrays[_LIFT + "grams"].shape[1:] != (lift.size, lift.size):
        raise LevsketchFormatError("the state is absurd: its lift has another number of columns.")
    empty = LpStream.empty(policy, d)
    factor, prefix = factor_from_arrays(empty.weighted.factor, meta, arrays)
    lifted = empty.lifted
    if lifted is not None:
        above, lift_prefix = factor_from_arrays(lifted.factor, meta["lift"], arrays, _LIFT)
        exponents = arrays[_LIFT + "column_exponents"]
        lifted = replace(lifted, factor=above, prefix=lift_prefix, exponents=exponents)
    pool = Pool(
        arrays["pool_rows"],
        arrays["pool_index"],
        arrays["pool_weights"],
        arrays["pool_bounds"],
        np.zeros(len(arrays["pool_index"])),
        arrays["pool_tickets"],
        arrays["pool_rose"],
        meta["dropped_bound"],
        meta["floor"],
        meta["kept"],
        meta["pool_sound"],
    )
    weighted = replace(
        empty.weighted,
        factor=factor,
        level=meta["level"],
        prefix=prefix,
        prefix_level=meta["prefix_level"],
        sound=meta["weights_sound"],
    )
    return replace(
        empty,
        n_seen=meta["n_seen"],
        dtype=meta["dtype"],
        pending=arrays["pending"],
        weighted=weighted,
        lifted=lifted,
        pool=pool,
        refined=Refined(
            arrays["refined_numbers"],
            arrays["refined_intervals"],
            arrays["refined_queries"],
            meta["refined_at"],
        ),
    )


def _check_values(stream: LpStream) -> None:
    """Refuse shapes, orders and values that no stream could have left."""
    d, pool, refined, m = stream.d, stream.pool, stream.refined, len(stream.pool)
    first_pending = stream.n_seen - len(stream.pending)
    shapes_fit = (
        stream.pending.shape[1] == d
        and pool.rows.shape == (m, d)
        and all(a.shape == (m,) for a in (pool.weights, pool.bounds, pool.tickets, pool.rose))
        and refined.intervals.shape == (len(refined.numbers), 2)
        and refined.queries.shape == (len(refined.numbers), d)
    )
    require(shapes_fit, "an array has the wrong shape")
    counts_agree = len(stream.pending) < stream.block_rows and pool.kept <= first_pending
    require(counts_agree and first_pending >= 0, "the counts contradict each other")
    check_factor(stream.weighted.factor, stream.weighted.prefix, first_pending)
    lifted = stream.lifted
    if lifted is not None:
        check_factor(lifted.factor, lifted.prefix, first_pending)
        require(
            lifted.factor.n_blocks == stream.weighted.factor.n_blocks, "two counts of blocks differ"
        )
        e = lifted.exponents
        in_range = e.shape == (d,) and ((e >= NO_EXPONENT) & (e <= 1024)).all()
        require(in_range, "a column exponent is out of range")
    for numbers, end in ((pool.index, first_pending), (refined.numbers, stream.n_seen)):
        ascend = (np.diff(numbers) > 0).all() and (
            not len(numbers) or 0 <= numbers[0] <= numbers[-1] < end
        )
        require(ascend, "row numbers do not ascend below n_samples_seen_")
    ends = refined.intervals
    bounded = (
        ((pool.bounds >= 0) & (pool.bounds <= 1)).all()
        and (pool.weights >= 0).all()
        and ((pool.tickets > 0) & (pool.tickets <= 1)).all()
        and ((ends[:, 0] >= 0) & (ends[:, 0] <= ends[:, 1]) & (ends[:, 1] <= 1)).all()
    )
    require(bounded, "a bound or a weight is out of range")
