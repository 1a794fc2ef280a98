"""A stream of moments for attention as metadata and arrays, and back, refusing absurd ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from levsketch._checks import MAX_ROWS
from levsketch._typing import FloatArray
from levsketch.sketches.inner_product import make_sketch
from levsketch.sketches.tensorsketch import TensorSketch

from . import key_value_moments_io, moments_io, unaligned_io
from .attention_frame import Frame
from .factor_io import (
    Arrays,
    Fields,
    Kinds,
    check_arrays,
    check_dtype,
    check_fields,
    refusing,
    require,
)
from .moments import MomentTensors
from .monomials import monomial_count
from .polynomial import PolynomialPolicy, PolynomialStream
from .polynomial_memory import PolynomialMemory
from .unaligned import UnalignedMoments

_META: Fields = {
    "n_features": (int, 1, 2**31),
    "n_outputs": (int, 1, 2**31),
    "n_seen": (int, 0, MAX_ROWS),
    "centred": (bool, 0, 1),
    "boxed": (bool, 0, 1),
}
_FRAME: Fields = {
    "key_power": (int, -2000, 2000),
    "value_power": (int, -2000, 2000),
    "weight_power": (int, -2000, 2000),
    "spread_power": (int, -2000, 2000),
}
_ARRAYS: Kinds = {
    "pending": ("f8", 2),
    "late": ("f8", 2),
    "low": ("f8", 1),
    "high": ("f8", 1),
}
_FRAME_ARRAYS: Kinds = {
    "key_centre": ("f8", 1),
    "value_centre": ("f8", 1),
}
_REACH, _MOMENTS = "reach_", "moments_"


def to_arrays(stream: PolynomialStream) -> tuple[dict[str, Any], Arrays]:
    """Return the JSON metadata and the arrays that define a stream."""
    memory, moments, frame = stream.memory, stream.memory.moments, stream.memory.frame
    boxed = bool((memory.low <= memory.high).all())
    about, arrays = key_value_moments_io.to_arrays(memory.reach, _REACH)
    meta: dict[str, Any] = {
        "policy": stream.policy._asdict(),
        "n_features": stream.n_features,
        "n_outputs": stream.n_outputs,
        "n_seen": stream.n_seen,
        "dtype": stream.dtype,
        "centred": memory.center is not None,
        "boxed": boxed,
        "frame": None if frame is None else {name: getattr(frame, name) for name in _FRAME},
        "reach": about,
        "moments": None,
    }
    arrays |= {
        "pending": stream.pending,
        "late": stream.late,
        # files hold no infinities
        "low": memory.low if boxed else np.zeros_like(memory.low),
        "high": memory.high if boxed else np.zeros_like(memory.high),
    }
    if memory.center is not None:
        arrays["fixed_center"] = memory.center
    if frame is not None:
        arrays |= {name: getattr(frame, name) for name in _FRAME_ARRAYS}
    if isinstance(moments, MomentTensors):
        meta["moments"], more = moments_io.to_arrays(moments, _MOMENTS)
        arrays |= more
    elif moments is not None:
        meta["moments"], more = unaligned_io.to_arrays(moments, _MOMENTS)
        arrays |= more
    return meta, arrays


def from_arrays(meta: Mapping[str, Any], arrays: Arrays) -> PolynomialStream:
    """Return the stream saved by ``to_arrays``.

    Raises
    ------
    LevsketchFormatError
        If a field is missing, or no stream could have left these values. Nothing is
        allocated from sizes that the arrays do not have.
    """
    with refusing():
        check_fields(meta, _META)
        if meta["dtype"] != "":  # values may come before the first key
            check_dtype(meta["dtype"])
        policy = PolynomialPolicy(**meta["policy"])
        policy.check()
        check_arrays(arrays, _kinds(meta, policy))
        stream = _build(meta, policy, arrays)
        _check_rows(stream)
        _check_memory(stream)
    return stream


def _kinds(meta: Mapping[str, Any], policy: PolynomialPolicy) -> Kinds:
    """Return type and axes of every array, after checking the metadata."""
    kinds = _ARRAYS | key_value_moments_io.array_kinds(_REACH)
    if meta["centred"]:
        kinds["fixed_center"] = ("f8", 1)
    if meta["frame"] is not None:
        check_fields(meta["frame"], _FRAME)
        kinds |= _FRAME_ARRAYS
    if not policy.aligned:
        kinds |= unaligned_io.array_kinds(_MOMENTS)
    elif meta["moments"] is not None:
        kinds |= moments_io.array_kinds(_MOMENTS)
    return kinds


def _build(meta: Mapping[str, Any], policy: PolynomialPolicy, arrays: Arrays) -> PolynomialStream:
    frame = None
    moments: MomentTensors | UnalignedMoments | None = None
    if meta["frame"] is not None:
        powers = [meta["frame"][name] for name in _FRAME]
        frame = Frame(*powers, *(arrays[name] for name in _FRAME_ARRAYS))
    d, d_v = meta["n_features"], meta["n_outputs"]
    if not policy.aligned:
        moments = unaligned_io.from_arrays(meta["moments"], arrays, _MOMENTS)
    elif meta["moments"] is not None:
        moments = moments_io.from_arrays(meta["moments"], arrays, _MOMENTS)
    none = not meta["boxed"]
    low, high = arrays["low"], arrays["high"]
    memory = PolynomialMemory(
        policy,
        arrays["fixed_center"] if meta["centred"] else None,
        frame,
        moments,
        key_value_moments_io.from_arrays(meta["reach"], arrays, _REACH),
        np.full_like(low, np.inf) if none else low,
        np.full_like(high, -np.inf) if none else high,
    )
    return PolynomialStream(
        meta["n_seen"],
        meta["dtype"],
        arrays["pending"],
        policy,
        d,
        d_v,
        memory,
        arrays["late"],
    )


def _check_rows(stream: PolynomialStream) -> None:
    """Refuse rows that wait, and counts, that no stream could have left."""
    d, d_v, aligned = stream.n_features, stream.n_outputs, stream.policy.aligned
    width = d + d_v + 1 if aligned else d
    shapes_fit = stream.pending.shape[1] == width and stream.late.shape[1] == d_v
    require(shapes_fit, "an array has the wrong shape")
    waiting, absorbed = len(stream.pending), stream.n_seen - len(stream.pending)
    block = stream.block_rows
    counts_agree = absorbed >= 0 and max(waiting, len(stream.late)) < block
    require(counts_agree, "the counts contradict each other")
    require(stream.n_seen or stream.n_values, "there are no rows")
    require((stream.dtype == "") == (stream.n_seen == 0), "keys have a dtype, or none")
    if aligned:
        require(not len(stream.late), "aligned values come with their keys")
        require((stream.pending[:, -1] >= 0).all(), "a weight is negative")


def _check_memory(stream: PolynomialStream) -> None:
    """Refuse moments of other rows and columns than there are."""
    memory, d, d_v = stream.memory, stream.n_features, stream.n_outputs
    policy, frame, moments, reach = memory.policy, memory.frame, memory.moments, memory.reach
    absorbed, center = stream.n_seen - len(stream.pending), memory.center
    fits = (
        memory.low.shape == memory.high.shape == (d_v,)
        and (reach.d, reach.d_v) == (d, d_v if policy.aligned else 0)
        and (center is None or center.shape == (d,))
    )
    require(fits, "an array has the wrong shape")
    boxed = (memory.low <= memory.high).all()
    require(boxed or np.isposinf(memory.low).all(), "the box of values is empty")
    require(policy.softmax or (center is not None and not center.any()), "powers have a center")
    if isinstance(moments, UnalignedMoments):
        require(moments.n_keys == absorbed, "the counts contradict each other")
        require((frame is not None) == (absorbed > 0), "a frame needs keys")
        require(moments.n_values == 0 or boxed, "values are in no box")
    elif moments is None or frame is None:
        nothing = moments is None and frame is None and not boxed
        require(nothing, "a frame needs moments")
    else:
        require(0 < moments.n_rows <= absorbed and boxed, "the counts contradict each other")
    if moments is not None:
        _check_maps(moments, policy, d, d_v)
    if frame is not None and moments is not None:
        _check_frame(frame, moments.center, policy, d, d_v)
        require(center is None or (center == moments.center).all(), "there are two centers")
    rows = 0
    if isinstance(moments, UnalignedMoments):
        rows = moments.n_keys
    elif moments is not None and policy.softmax:
        rows = moments.n_rows
    require(reach.count == rows, "the counts contradict each other")


def _check_maps(
    moments: MomentTensors | UnalignedMoments, policy: PolynomialPolicy, d: int, d_v: int
) -> None:
    """Refuse other maps, sketches and columns than the policy asks for."""
    most = policy.most_features(d, d_v)
    degrees = range(policy.lowest, policy.degree + 1)
    counts = [monomial_count(d, r) for r in degrees]
    if isinstance(moments, UnalignedMoments):
        columns = moments.values.shape[1] + 1
        psi = make_sketch(policy.sketch, policy.sketch_size, policy.seed)
        require(moments.sketch == psi, "the sketch is not the one that was asked for")
    else:
        columns = moments.lengths.shape[1]
    fits = (
        [lift.degree for lift in moments.maps] == list(degrees)
        and [lift.size for lift in moments.maps] == [min(count, most) for count in counts]
        and [isinstance(lift, TensorSketch) for lift in moments.maps]
        == [count > most for count in counts]
        and columns == d_v + 1
        and len(moments.center) == d
    )
    require(fits, "moments are not those that were asked for")


def _check_frame(
    frame: Frame, center: FloatArray, policy: PolynomialPolicy, d: int, d_v: int
) -> None:
    columns = (d if policy.softmax else 0), (d_v if policy.aligned else 0)
    fits = (len(frame.key_centre), len(frame.value_centre)) == columns
    require(fits, "an array has the wrong shape")
    if not columns[0]:
        require(not center.any(), "powers have a center")
        return
    # by so much may scaling have rounded subnormal numbers
    room = np.ldexp(1.0, [frame.key_power - 1070, -1070]).sum()
    apart = np.abs(np.ldexp(frame.key_centre, frame.key_power) - center)
    require((apart <= room).all(), "the center is not that of the frame")
