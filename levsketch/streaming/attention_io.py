"""An attention stream as metadata and arrays, and back, refusing absurd ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from levsketch._checks import MAX_ROWS
from levsketch._typing import FloatArray

from . import key_value_moments_io
from .attention import AttentionPolicy, AttentionStream, QuerySample
from .attention_frame import Frame
from .attention_model import Exact, Model
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
from .landmarks import Landmarks
from .probes import Probes
from .quadratic import QuadraticMoments

# Whole numbers of any size do.
_ANY = float("inf")
_POLICY: Fields = {
    "n_keys": (int, 1, _ANY),
    "decay": (float, 5e-324, 1.0),
    "random_state": (int, 0, _ANY),
}
# What is in a frame has no larger entries: 2**300 that rows may grow by, times 2**50 that values
# are stretched by, with room.
_LARGEST = 2.0**400
_RESIDUALS = ("auto", "embedding", "closure", "polynomial")
_META: Fields = {
    "n_features": (int, 1, 2**31),
    "n_outputs": (int, 1, 2**31),
    "n_seen": (int, 1, MAX_ROWS),
}
_FRAME: Fields = {
    # exponents of float64, and of spreads from 2**-50 to the root of a number of columns
    "key_power": (int, -1100, 1100),
    "value_power": (int, -1100, 1100),
    "weight_power": (int, -1100, 1100),
    "spread_power": (int, -50, 50),
}
_MODEL: Fields = {
    "capacity": (int, 0, MAX_ROWS),
    "threshold": (float, 0.0, 1e300),
    "rows": (int, 0, MAX_ROWS),
    "mass": (float, 0.0, 1e300),
}
_LANDMARKS: Fields = {"size": (int, 0, MAX_ROWS), "order": (int, 0, 1)}
_MODEL_ARRAYS: Kinds = {
    "exact_keys": ("f8", 2),
    "exact_values": ("f8", 2),
    "exact_weights": ("f8", 1),
    "exact_index": ("i8", 1),
    "key_sum": ("f8", 1),
    "low": ("f8", 1),
    "high": ("f8", 1),
}
_LANDMARK_ARRAYS: Kinds = {
    "landmark_keys": ("f8", 2),
    "landmark_weights": ("f8", 2),
    "constant": ("f8", 1),
    "slope": ("f8", 2),
}
_QUADRATIC_ARRAYS: Kinds = {"zeroth": ("f8", 1), "first": ("f8", 2), "second": ("f8", 2)}
_FRAME_ARRAYS: Kinds = {
    "key_centre": ("f8", 1),
    "value_centre": ("f8", 1),
    "probe_queries": ("f8", 2),
    "probe_shift": ("f8", 1),
    "probe_sums": ("f8", 2),
}
_SAMPLE_ARRAYS: Kinds = {
    "sample_mean": ("f8", 1),
    "sample_covariance": ("f8", 2),
    "sample_some": ("f8", 2),
}


def to_arrays(stream: AttentionStream) -> tuple[dict[str, Any], Arrays]:
    """Return the JSON metadata and the arrays that define a stream."""
    meta: dict[str, Any] = {
        "policy": stream.policy._asdict(),
        "n_features": stream.n_features,
        "n_outputs": stream.n_outputs,
        "n_seen": stream.n_seen,
        "dtype": stream.dtype,
        "frame": None,
        "models": [],
        "sampled": stream.queries is not None,
    }
    arrays: Arrays = {"pending": stream.pending}
    if stream.queries is not None:
        arrays |= dict(zip(_SAMPLE_ARRAYS, stream.queries, strict=True))
    frame, probes = stream.frame, stream.probes
    if frame is not None and probes is not None:
        meta["frame"] = {name: getattr(frame, name) for name in _FRAME}
        # the largest logit of no keys is infinite
        shift = np.where(probes.sums[:, -1] > 0.0, probes.shift, 0.0)
        held = (probes.queries, shift, probes.sums)
        arrays |= dict(
            zip(_FRAME_ARRAYS, (frame.key_centre, frame.value_centre, *held), strict=True)
        )
    for i, model in enumerate(stream.models):
        fields, parts = _model_to_arrays(model)
        meta["models"].append(fields)
        arrays |= {f"model{i}_{name}": array for name, array in parts.items()}
    return meta, arrays


def from_arrays(meta: Mapping[str, Any], arrays: Arrays) -> AttentionStream:
    """Return the stream saved by ``to_arrays``.

    Raises
    ------
    LevsketchFormatError
        If a field is missing, or no stream could have left these values.
    """
    with refusing():
        check_fields(meta, _META)
        check_dtype(meta["dtype"])
        _check_policy(AttentionPolicy(**meta["policy"]))
        check_arrays(arrays, _kinds(meta))
        stream = _build(meta, arrays)
        _check_values(stream)
    return stream


def _model_to_arrays(model: Model) -> tuple[dict[str, Any], Arrays]:
    fields: dict[str, Any] = {n: kind(getattr(model, n)) for n, (kind, _, _) in _MODEL.items()}
    fields |= {"landmarks": None, "moments": None, "polynomial": model.quadratic is not None}
    exact, empty = model.exact, model.mass == 0.0
    held = (exact.keys, exact.values, exact.weights, exact.index, model.key_sum)
    # the box of no values is infinite
    box = (np.zeros_like(model.low) if empty else side for side in (model.low, model.high))
    arrays: Arrays = dict(zip(_MODEL_ARRAYS, (*held, *box), strict=True))
    if model.landmarks is not None:
        found = model.landmarks
        fields["landmarks"] = {"size": found.size, "order": found.order}
        parts = (found.keys, found.weights, found.constant, found.slope)
        arrays |= dict(zip(_LANDMARK_ARRAYS, parts, strict=True))
    if model.quadratic is not None:
        found_ = model.quadratic
        arrays |= dict(
            zip(_QUADRATIC_ARRAYS, (found_.zeroth, found_.first, found_.second), strict=True)
        )
    if model.moments is not None:
        fields["moments"], parts_ = key_value_moments_io.to_arrays(model.moments, "moments_")
        arrays |= parts_
    return fields, arrays


def _kinds(meta: Mapping[str, Any]) -> Kinds:
    """Return type and axes of every array, after checking the metadata."""
    kinds: Kinds = {"pending": ("f8", 2)}
    require(type(meta["sampled"]) is bool, "sampled is neither true nor false")
    require(type(meta["models"]) is list, "models are no list")
    require((meta["frame"] is None) == (not meta["models"]), "a frame needs a model")
    if meta["sampled"]:
        kinds |= _SAMPLE_ARRAYS
    if meta["frame"] is not None:
        check_fields(meta["frame"], _FRAME)
        kinds |= _FRAME_ARRAYS
    for i, fields in enumerate(meta["models"]):
        check_fields(fields, _MODEL)
        own = dict(_MODEL_ARRAYS)
        if fields["landmarks"] is not None:
            check_fields(fields["landmarks"], _LANDMARKS)
            own |= _LANDMARK_ARRAYS
        require(type(fields["polynomial"]) is bool, "polynomial is neither true nor false")
        if fields["polynomial"]:
            own |= _QUADRATIC_ARRAYS
        if fields["moments"] is not None:
            own |= key_value_moments_io.array_kinds("moments_")
        kinds |= {f"model{i}_{name}": kind for name, kind in own.items()}
    return kinds


def _build(meta: Mapping[str, Any], arrays: Arrays) -> AttentionStream:
    frame = probes = queries = None
    if meta["frame"] is not None:
        powers = [meta["frame"][name] for name in _FRAME]
        found = [arrays[name] for name in _FRAME_ARRAYS]
        asked, shift, sums = found[2:]
        frame = Frame(*powers, *found[:2])
        probes = Probes(asked, np.where(sums[:, -1] > 0.0, shift, -np.inf), sums)
    if meta["sampled"]:
        queries = QuerySample(*(arrays[name] for name in _SAMPLE_ARRAYS))
    stream = AttentionStream(
        meta["n_seen"],
        meta["dtype"],
        arrays["pending"],
        AttentionPolicy(**meta["policy"]),
        meta["n_features"],
        meta["n_outputs"],
        queries,
        frame,
        (),
        probes,
    )
    models = []
    for i, fields in enumerate(meta["models"]):
        tag = f"model{i}_"
        own = {name[len(tag) :]: array for name, array in arrays.items() if name.startswith(tag)}
        law = stream.law_of_queries(frame) if frame is not None else None
        models.append(_model_from_arrays(fields, own, law))
    return replace(stream, models=tuple(models))


def _model_from_arrays(
    fields: Mapping[str, Any], arrays: Arrays, queries: tuple[FloatArray, FloatArray] | None
) -> Model:
    keys, values, weights, index, key_sum, low, high = (arrays[name] for name in _MODEL_ARRAYS)
    landmarks = moments = quadratic = None
    if fields["polynomial"]:
        quadratic = QuadraticMoments(*(arrays[name] for name in _QUADRATIC_ARRAYS))
    if fields["landmarks"] is not None:
        found = [arrays[name] for name in _LANDMARK_ARRAYS]
        about = fields["landmarks"]
        landmarks = Landmarks(queries, about["size"], about["order"], *found)
    if fields["moments"] is not None:
        moments = key_value_moments_io.from_arrays(fields["moments"], arrays, "moments_")
    empty = fields["mass"] == 0.0
    return Model(
        Exact(keys, values, weights, index),
        fields["capacity"],
        fields["threshold"],
        landmarks,
        fields["rows"],
        moments,
        fields["mass"],
        key_sum,
        np.full_like(low, np.inf) if empty else low,
        np.full_like(high, -np.inf) if empty else high,
        quadratic,
    )


def _check_policy(policy: AttentionPolicy) -> None:
    """Refuse what no estimator would ask."""
    check_fields(policy._asdict(), _POLICY)
    memory, scale = policy.max_memory, policy.scale
    asked = (
        policy.residual in _RESIDUALS
        and (memory is None or (type(memory) is int and memory >= 1))
        and (scale == "sqrt_d" or (type(scale) is float and 0.0 < scale <= 1e100))
    )
    require(asked, "no estimator asks that")


def _check_values(stream: AttentionStream) -> None:
    """Refuse shapes and values that no stream could have left."""
    d, d_v = stream.n_features, stream.n_outputs
    rows = stream.pending
    require(rows.shape[1] == d + d_v + 1, "an array has the wrong shape")
    counts = len(rows) <= stream.n_seen and len(rows) < stream.block_rows
    begun = stream.frame is not None
    require(counts and begun == (len(rows) < stream.n_seen), "the counts contradict each other")
    require((rows[:, -1] >= 0).all(), "a weight is negative")
    if stream.queries is not None:
        sample = stream.queries
        fits = (
            sample.mean.shape == (d,)
            and sample.covariance.shape == (d, d)
            and sample.some.shape[1] == d
            and 1 <= len(sample.some) <= 64
            and (np.diagonal(sample.covariance) >= 0).all()
        )
        require(fits, "sample queries fit no stream")
    if stream.frame is None or stream.probes is None:
        return
    probes, m = stream.probes, len(stream.probes.queries)
    fits = (
        stream.frame.key_centre.shape == (d,)
        and stream.frame.value_centre.shape == (d_v,)
        and probes.queries.shape == (m, d)
        and probes.shift.shape == (m,)
        and probes.sums.shape == (m, d_v + 1)
        and (probes.sums[:, -1] >= 0).all()
    )
    require(fits, "frame or probes have the wrong shape")
    frame = stream.frame
    centred = np.abs(np.concatenate([frame.key_centre, frame.value_centre])) <= 1.0
    require(centred.all(), "the centre of a frame is outside of it")
    stream.waiting()  # raises where rows that wait are out of its range
    kinds = [(model.kind, model.order) for model in stream.models]
    require(len(set(kinds)) == len(kinds), "two models are of one kind")
    for model in stream.models:
        _check_sizes(model, stream)
        _check_model(model, d, d_v, stream.n_seen - len(rows))


def _check_sizes(model: Model, stream: AttentionStream) -> None:
    """Refuse models of other sizes than the budget has: they would grow beyond it."""
    budget, found = stream.budget, model.landmarks
    if found is None:
        room = budget.closure_keys if model.quadratic is None else budget.polynomial_keys
        certified, rows, capacity = True, 0, max(room, 0)
    else:
        require(found.order in budget.rows, "a trend is of another order")
        certified, rows, capacity = (
            budget.certified,
            budget.rows[found.order],
            budget.heavy_keys,
        )
        require(found.size <= rows, "there are too many landmarks")
    sizes = (model.moments is not None, model.rows, model.capacity)
    require(sizes == (certified, rows, capacity), "a model is of another size than the budget has")


def _check_model(model: Model, d: int, d_v: int, n: int) -> None:
    exact, m = model.exact, len(model.exact.index)
    fits = (
        exact.keys.shape == (m, d)
        and exact.values.shape == (m, d_v)
        and exact.weights.shape == (m,)
        and model.key_sum.shape == (d,)
        and model.low.shape == model.high.shape == (d_v,)
    )
    require(fits, "an array has the wrong shape")
    require(_inside(exact.keys, exact.values), "exact keys or values are outside the frame")
    known = m <= model.capacity and (exact.weights > 0).all()
    known = known and ((exact.index >= 0) & (exact.index < n)).all()
    require(known and len(np.unique(exact.index)) == m, "exact keys are no rows of the stream")
    empty = model.mass == 0.0
    boxed = (model.low <= model.high).all() and _inside(model.low, model.high)
    require(empty or boxed, "the box of values is empty")
    if model.landmarks is not None:
        found, k = model.landmarks, len(model.landmarks.keys)
        fits = (
            found.keys.shape == (k, d)
            and found.weights.shape == (k, d_v + 1)
            and found.constant.shape == (d_v + 1,)
            and found.slope.shape == (d, d_v + 1)
        )
        require(fits, "an array has the wrong shape")
        require(k <= found.size, "there are too many landmarks")
        require(_inside(found.keys), "landmarks are outside the frame")
        require(not (empty and (k or found.has_trend)), "landmarks are of no rows")
    if model.quadratic is not None:
        sums = model.quadratic
        fits = (
            model.landmarks is None
            and sums.zeroth.shape == (d_v + 1,)
            and sums.first.shape == (d, d_v + 1)
            and sums.second.shape == (d * (d + 1) // 2, d_v + 1)
        )
        require(fits, "an array has the wrong shape")
        nothing = not (sums.zeroth.any() or sums.first.any() or sums.second.any())
        require(nothing or not empty, "moments are of no rows")
    if model.moments is not None:
        about = model.moments
        fits = about.key_sum.shape == (d,) and about.value_sum.shape == (d_v,)
        require(fits, "an array has the wrong shape")
        rows = about.count
        require((rows == 0) == empty and rows + m <= n, "the counts contradict each other")


def _inside(*parts: FloatArray) -> bool:
    """Return whether all entries are of a size that a frame holds."""
    return all(bool((np.abs(part) <= _LARGEST).all()) for part in parts)
