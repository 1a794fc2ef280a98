"""Streams of keys and values: how tests make and compare them, and the truth about attention."""

import dataclasses
import itertools

import numpy as np
from oracles import WIDE, U

from levsketch.algorithms.attention_sketch import outputs
from levsketch.backends import CpuBackend
from levsketch.streaming.attention import AttentionPolicy, AttentionStream, QuerySample
from levsketch.streaming.attention_model import FAINTEST

CPU = CpuBackend()
RESIDUALS = ["auto", "embedding", "closure", "polynomial"]
LONG = np.longdouble


def policy(n_keys=24, residual="auto", decay=1.0, max_memory=None, seed=0):
    return AttentionPolicy(n_keys, max_memory, residual, decay, 1.0, seed)


def sample_of(Q):
    """Return what is remembered of sample queries."""
    apart = Q - Q.mean(axis=0)
    step = max(1, len(Q) // 64)
    return QuerySample(Q.mean(axis=0), apart.T @ apart / len(Q), Q[::step][:64].copy())


def rows_of(K, V, w=None):
    w = np.ones(len(K)) if w is None else w
    return np.concatenate([K, V, w[:, None]], axis=1)


def stream(K, V, w=None, asked=None, queries=None, edges=()):
    """Return the stream of these rows, cut into batches at ``edges``."""
    rows = rows_of(K, V, w)
    state = AttentionStream.empty(asked or policy(), K.shape[1], V.shape[1], queries)
    for i, j in itertools.pairwise([0, *edges, len(rows)]):
        state = state.update(CPU, rows[i:j])
    return state


def leaves(state):
    """Yield every array and number of a state, however deep."""
    if dataclasses.is_dataclass(state):
        state = [getattr(state, field.name) for field in dataclasses.fields(state)]
    if isinstance(state, (tuple, list)):
        for part in state:
            yield from leaves(part)
    else:
        yield state.tobytes() if isinstance(state, np.ndarray) else state


def same(a, b):
    """Tell whether two states agree in every byte."""
    return list(leaves(a)) == list(leaves(b))


def shares(Q, K, w=None, decay=1.0, frame=None):
    """Return the softmax shares (m, n) of rows in long double.

    Rows that weigh less than what a stream keeps, of the largest weight, have none.
    """
    n = len(K)
    w = np.ones(n, LONG) if w is None else np.asarray(w, LONG)
    unit = w.max()
    w = w * LONG(decay) ** np.arange(n - 1, -1, -1)
    w = np.where(w >= FAINTEST * unit, w, 0)
    with np.errstate(divide="ignore"):
        logits = np.asarray(Q, LONG) @ np.asarray(K, LONG).T + np.log(w)
    logits -= logits.max(axis=1, keepdims=True)
    found = np.exp(logits)
    return found / found.sum(axis=1, keepdims=True)


def attended(Q, K, V, w=None, decay=1.0):
    """Return the attention outputs (m, d_v) in long double."""
    return shares(Q, K, w, decay) @ np.asarray(V, LONG)


def rounding(Q, K, V):
    """Return what exact sums in float64, and the truth above, may be off by: (m, 1)."""
    logits = np.abs(Q) @ np.abs(K).max(axis=0) + np.abs(Q).max(axis=1) * np.abs(K).max()
    relative = 16 * U * (K.shape[1] + 4) * logits + (len(K) + 64) * (U + 8 * WIDE)
    return (np.minimum(relative, 2.0) * np.abs(V).max() * np.sqrt(V.shape[1]))[:, None]


def smooth(seed, n, d=4):
    """Return keys and values that depend on them: what models can do well."""
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((n, d))
    return K, np.tanh(K @ rng.standard_normal((d, 2))) + 0.1 * rng.standard_normal((n, 2))


def relative(state, Q, K, V, w=None, decay=1.0):
    truth = attended(Q, K, V, w, decay).astype(float)
    return np.linalg.norm(outputs(state, Q) - truth) / np.linalg.norm(truth)


def kinds(state):
    return [(model.kind, model.order) for model in state.models]
