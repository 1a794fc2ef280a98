"""Attention sketches of every sort, streams of keys and values for them, and all they answer.

Laws that hold for every sketch run over ``SKETCHES``: functions that return unfitted estimators.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from fitting import split

from levsketch import StreamingAttentionSketch, attention

# Polynomials of low degree follow exp over a short range: documented to warn beyond.
BEYOND = "[0-9]+ of [0-9]+ queries may have logits that no polynomial of degree"

_new = functools.partial
# One of each sort, with budgets that the streams below exceed: models with and without probes and
# certificates; moments, monomials that are sketched; powers; streams of keys and values apart.
SKETCHES = {
    "auto": _new(StreamingAttentionSketch, n_keys=24),
    "embedding": _new(StreamingAttentionSketch, n_keys=60, residual="embedding"),
    "closure": _new(StreamingAttentionSketch, n_keys=24, residual="closure"),
    "polynomial": _new(StreamingAttentionSketch, n_keys=24, residual="polynomial"),
    "memory": _new(StreamingAttentionSketch, max_memory="2KiB", scale=0.5),
    "decay": _new(StreamingAttentionSketch, n_keys=24, decay=0.999),
    "moments": _new(StreamingAttentionSketch, sketch="exact", degree=4),
    "sketched features": _new(StreamingAttentionSketch, sketch="exact", degree=4, max_memory=700),
    "fading moments": _new(StreamingAttentionSketch, sketch="exact", decay=0.99),
    "power": _new(StreamingAttentionSketch, function=4),
    "ams": _new(StreamingAttentionSketch, sketch="ams", sketch_size=32),
    "countsketch": _new(StreamingAttentionSketch, sketch="countsketch", sketch_size=32),
}
APART = ("ams", "countsketch")
FEW = {name: SKETCHES[name] for name in ("auto", "moments", "ams")}
# Sketches of rows, and of monomials about means, do not add up.
MERGING = {k: new for k, new in SKETCHES.items() if k not in (*APART, "sketched features")}

every_sketch = pytest.mark.parametrize("new", SKETCHES.values(), ids=SKETCHES)
few_sketches = pytest.mark.parametrize("new", FEW.values(), ids=FEW)
merging_sketches = pytest.mark.parametrize("new", MERGING.values(), ids=MERGING)


class Stream(NamedTuple):
    """Keys (n, d), values (n, d_v), and queries (m, d) of the size that keys have."""

    K: np.ndarray
    V: np.ndarray
    Q: np.ndarray


def drawn(seed, n=3000, d=3, d_v=2, m=40, dtype=np.float64):
    """Return keys in clusters of several sizes, values that depend on them, and queries."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((7, d))
    K = centres[rng.integers(0, 7, n)] + rng.gamma(1.0, 0.3, (n, 1)) * rng.standard_normal((n, d))
    V = np.tanh(K @ rng.standard_normal((d, d_v))) + 0.1 * rng.standard_normal((n, d_v))
    return Stream(*(X.astype(dtype) for X in (K, V, rng.standard_normal((m, d)))))


@contextlib.contextmanager
def quiet():
    """Silence the warning about queries beyond the range of polynomials, and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=BEYOND, category=UserWarning)
        yield


def fit(data, new=SKETCHES["auto"], sample_weight=None, queries=None):
    """Return a sketch fitted to keys and values at once."""
    return new().fit(data[0], data[1], sample_weight, queries)


def stream(data, cuts, new=SKETCHES["auto"], sample_weight=None, queries=None):
    """Return a sketch fitted to one batch after the other, cut before the rows ``cuts``."""
    sketch = new()
    parts = [split(X, cuts) for X in data[:2]]
    weights = [None] * len(parts[0]) if sample_weight is None else split(sample_weight, cuts)
    for keys, values, weight in zip(*parts, weights, strict=True):
        first = queries is not None and not hasattr(sketch, "n_features_in_") and len(keys) > 0
        sketch.partial_fit(keys, values, weight, queries if first else None)
    return sketch


def exact(data, sketch, sample_weight=None):
    """Return the outputs that a sketch approximates, from all keys and values."""
    f = "softmax" if sketch.function == "softmax" else float(sketch.function)
    weights = np.ones(len(data.K)) if sample_weight is None else np.asarray(sample_weight, float)
    if sketch.decay < 1.0:
        weights = weights * sketch.decay ** np.arange(len(data.K) - 1.0, -1.0, -1.0)
    return attention(data.Q, data.K, data.V, f=f, scale=sketch.scale, sample_weight=weights)


def public(sketch, Q):
    """Return every fitted attribute and answer of a sketch as bytes, by name."""
    found = {
        name: np.asarray(getattr(sketch, name)).tobytes()
        for name in dir(type(sketch))
        if name.endswith("_") and not name.startswith("_") and hasattr(sketch, name)
    }
    with quiet():
        for name in ("transform", "predict", "covered_mass", "error_bound"):
            found[name] = np.asarray(getattr(sketch, name)(Q)).tobytes()
    return found
