"""Attention in long double, with what float64 may differ from it, and blocks of any size."""

import contextlib
from unittest import mock

import numpy as np
from hypothesis import strategies as st
from oracles import WIDE, U

from levsketch.algorithms import attention as module
from levsketch.functions import Huber, ScoreFunction, Tukey, softmax

LONG = np.longdouble
SEEDS = st.integers(0, 2**32 - 1)
FUNCTIONS = ["softmax", 0.5, 1, 2, 3.0, 4, 8, Huber(), Tukey(2.0)]
POWERS = [f for f in FUNCTIONS if isinstance(f, (int, float))]


@contextlib.contextmanager
def blocks(pairs=1 << 18, entries=1 << 21, queries=256):
    """Compute in blocks of other sizes."""
    with (
        mock.patch.object(softmax, "BLOCK_PAIRS", pairs),
        mock.patch.object(module, "_ENTRIES", entries),
        mock.patch.object(module, "_QUERIES", queries),
    ):
        yield


BLOCKS = st.builds(
    dict,
    pairs=st.sampled_from([1, 9, 40, 1 << 18]),
    entries=st.sampled_from([1, 25, 100, 1 << 21]),
    queries=st.sampled_from([1, 3, 256]),
)


def unscaled_weights(f, x, slack, w):
    """Return weights (m, n) relative to the largest, lower and upper bounds of them.

    ``x`` are logits or products, each off by up to ``slack``. Keys with w = 0 have no weight.
    """
    if f == "softmax":
        seen = np.where(w > 0, x, -np.inf)
        top = seen.argmax(axis=1)[:, None]
        x = np.where(w > 0, x - np.take_along_axis(x, top, 1), -np.inf)
        # an error common to all does not count
        slack = slack + np.take_along_axis(slack, top, 1)
        np.put_along_axis(slack, top, 0, 1)
        lower, upper = np.exp(np.maximum(x - slack, -11000)), np.exp(np.minimum(x + slack, 11000))
        return w * np.exp(x), w * np.where(w > 0, lower, 0), w * np.where(w > 0, upper, 0)
    x = np.abs(x)
    parts = x, np.maximum(x - slack, 0), x + slack
    if isinstance(f, ScoreFunction):
        parts = [f.values(part) for part in parts]
        power = LONG(1)
    else:
        power = LONG(f)
    unit = np.max(np.where(w > 0, parts[0], 0), axis=1, keepdims=True)
    unit = np.where(unit > 0, unit, 1)
    return tuple(w * (part / unit) ** power for part in parts)


def reference(Q, K, V, f="softmax", scale="sqrt_d", w=None):
    """Return the output (m, d_v) in long double, and by how much float64 may differ from it.

    A product of d terms is off by d + 2 units of the sum of their absolute values, and by what
    underflows. Sums are off by a unit for each term at most, weights by a few. Also returned: the
    values that are averaged, and which queries cannot be told from ones that no key answers.
    """
    Q, K, V = (np.asarray(X).astype(LONG) for X in (Q, K, V))
    n, d = K.shape
    w = np.ones(n, LONG) if w is None else np.asarray(w, LONG)
    s = 1 / np.sqrt(LONG(d)) if scale == "sqrt_d" else LONG(scale)
    if f in POWERS:
        s = LONG(1)
    x, size = s * (Q @ K.T), s * (np.abs(Q) @ np.abs(K).T)
    lost = LONG(2) ** -1073 * np.abs(K).max()  # of a query times a key
    if f in POWERS:  # columns and then queries are scaled
        lost = LONG(2) ** -1073 * (np.abs(Q) * np.abs(K).max(axis=0)).max(axis=1, keepdims=True)
    slack = (d + 4) * (U + WIDE) * size + 4 * d * lost
    weights, lower, upper = unscaled_weights(f, x, slack, w)
    total = weights.sum(axis=1, keepdims=True)
    out = weights @ V / np.where(total > 0, total, 1)
    least = lower.sum(axis=1, keepdims=True)
    off = np.maximum(upper - weights, weights - lower)
    spread = np.einsum("ij,ijc->ic", off, np.abs(V[None] - out[:, None]))
    with np.errstate(divide="ignore", invalid="ignore"):
        drift = np.where(least > 0, spread / least, np.inf)
    units = (4 * n + 64) * (1 + (f if f in POWERS else 1))
    sizes = weights @ np.abs(V) / np.where(total > 0, total, 1) + np.abs(out)
    held = V[w > 0]
    tolerance = np.minimum(drift, np.ptp(held, axis=0))
    # weights below the smallest float64 are zero
    lost = LONG(2) ** -1073 * np.abs(held).sum(axis=0) + LONG(2) ** -1060
    return out, tolerance + (U + WIDE) * units * sizes + lost, held, least[:, 0] == 0


def check(found, expected, single=False):
    """Compare an output with a reference."""
    out, tolerance, held, doubtful = expected
    if single:
        tolerance = tolerance + LONG(2) ** -24 * np.abs(out) + LONG(2) ** -149
    wrong = ~(np.abs(found - out) <= tolerance) & ~doubtful[:, None]
    assert not wrong.any(), (found[wrong], out[wrong], tolerance[wrong])
    found = found[~doubtful | found.any(axis=1)]
    assert (found >= held.min(axis=0)).all()
    assert (found <= held.max(axis=0)).all()


def drawn(seed, m, n, d, d_v, spread=1.0, dtype=np.float64):
    """Return queries, keys and values, some of them equal or zero."""
    rng = np.random.default_rng(seed)
    Q, K = rng.standard_normal((m, d)), rng.standard_normal((n, d))
    V = rng.standard_normal((n, d_v)) * np.exp(rng.standard_normal(d_v))
    K[rng.random(n) < 0.2] = K[0]
    K[rng.random(n) < 0.1] = 0.0
    Q[rng.random(m) < 0.1] = 0.0
    return [X.astype(dtype) for X in (Q * spread, K, V)]
