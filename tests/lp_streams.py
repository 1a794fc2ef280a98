"""Streams for any f: how tests make them, hurt them, and know the truth about them."""

import itertools
from itertools import combinations

import numpy as np
from oracles import U
from strategies import (
    conditioned,
    duplicates,
    gaussian,
    graded_low_rank,
    growing,
    heavy_tails,
    lone_axis,
    lone_in_hyperplane,
    low_rank,
    scaled_columns,
    shrinking,
    smooth,
    wide,
    zero_columns,
    zero_rows,
)

from levsketch.backends import CpuBackend
from levsketch.functions import Power, make_function
from levsketch.streaming.lp_keys import LpStream
from levsketch.streaming.lp_keys_io import to_arrays
from levsketch.streaming.lp_policy import LpPolicy

CPU = CpuBackend()
POWERS = [{"p": p} for p in (0.3, 1.0, 1.5, 2.0, 2.005, 2.5, 3.0, 4.0, 8.0)]
OTHERS = [{"function": ["huber", {"threshold": 1.0}]}, {"function": ["tukey", {"threshold": 3.0}]}]
ASKED = POWERS + OTHERS
FEW = [POWERS[1], POWERS[6], POWERS[7], OTHERS[0]]


def policy(**changes):
    asked = {
        "p": 2.0,
        "eps": 0.1,
        "function": None,
        "bound": "auto",
        "refine": False,
        "delta": 0.5,
        "failure_probability": 0.2,
        "normaliser": "auto",
        "sketch_size": 64,
        "max_memory": 1 << 30,
        "n_keys": None,
        "min_keys": 1,
        "random_state": 0,
    }
    return LpPolicy(**(asked | changes))


def function_of(asked):
    return make_function(asked["function"]) if "function" in asked else Power(asked["p"])


def stream(batches, **changes):
    state = LpStream.empty(policy(**changes), batches[0].shape[1])
    for batch in batches:
        state = state.update(CPU, np.asarray(batch))
    return state


def split(K, places):
    return [K[a:b] for a, b in itertools.pairwise([0, *places, len(K)])]


def saved(state):
    """Return the bytes of a state, by the estimator's own format."""
    meta, arrays = to_arrays(state)
    return repr(meta), [(k, a.dtype, a.shape, a.tobytes()) for k, a in sorted(arrays.items())]


def attained(K, f, seed=0):
    """Return shares (n,) that some query gives each row: lower bounds on sensitivities.

    Less what rounding may hide of the products.
    """
    rng = np.random.default_rng(seed)
    K = K[:, K.any(axis=0)].astype(np.float64)
    n, d = K.shape
    if not d:
        return np.zeros(n)
    K = np.ldexp(K, -np.frexp(np.abs(K).max(axis=0))[1])
    alive = np.flatnonzero(K.any(axis=1))
    pairs = itertools.islice(combinations(rng.permutation(alive), d - 1), 100)
    vertices = [np.linalg.svd(K[list(rows)])[2][-1] for rows in pairs] if d > 1 else []
    parts = [rng.standard_normal((30, d)), np.eye(d), K[alive], *([vertices] if vertices else [])]
    lengths = np.maximum(np.linalg.norm(K, axis=1), 1e-100)
    for power in (0.0, -0.5, -1.0):
        scaled = K * (lengths**power)[:, None]
        parts.append(K[alive] @ np.linalg.pinv(scaled.T @ scaled))
    Q = np.concatenate(parts)
    Q /= np.abs(Q).max(axis=1, keepdims=True)
    products = np.abs(Q @ K.T)
    hidden = 4 * (d + 1) * U * (np.abs(Q) @ np.abs(K.T))
    top = np.maximum(products.max(axis=1, keepdims=True), 1e-300)
    best = np.zeros(n)
    for x in (1.0,) if f.homogeneous else (0.1, 1.0, 10.0, 1e4, 1e12):
        ends = np.maximum(products - hidden, 0), products + hidden
        with np.errstate(over="ignore", invalid="ignore"):  # of queries that meet next to nothing
            least, most = (f(a / top * x) for a in ends)
            total = most.sum(axis=1, keepdims=True) - most + least
            share = np.nan_to_num(least / np.where(total > 0, total, 1))
        best = np.maximum(best, share.max(axis=0))
    return best


def check(state, basis, f, allowed_to_doubt=False):
    """Check all that a state says of the rows so far; ``basis`` has their products."""
    found, eps = state.selection, state.policy.eps
    true = attained(basis, f) * (1 - 1e4 * U)
    assert found.certified or allowed_to_doubt
    pool = found.pool
    outside = np.setdiff1d(np.arange(len(basis)), pool.index)
    # squares of rows below 1e-145 of the others underflow
    assert (pool.bounds >= true[pool.index] - 1e-290).all()
    if found.certified:
        heavy = true >= eps
        heavy[pool.index[found.universal]] = False
        assert not heavy.any()
        assert pool.dropped_bound >= true[outside].max(initial=0) - 1e-290
        rest = np.setdiff1d(np.arange(len(basis)), pool.index[found.selected])
        assert found.unselected_bound >= true[rest].max(initial=0) - 1e-290
    assert (np.diff(pool.index) > 0).all()
    return found


# -- streams that are meant to hurt


def rank_rises_late(rng, n, d):
    K = rng.standard_normal((n, d))
    for c in range(1, d):
        K[: n * c // d, c] = 0
    return K


def zeros_first(rng, n, d):
    K = rng.standard_normal((n, d))
    K[: n // 2] = 0
    return K


def blocks_of_different_laws(rng, n, d):
    parts = np.array_split(np.arange(n), 5)
    K = rng.standard_normal((n, d))
    K[parts[1]] = rng.integers(-2, 3, (len(parts[1]), d))
    K[parts[2]] *= 1e3
    K[parts[3]] = K[parts[0]][0]
    K[parts[4]] *= np.exp(3 * rng.standard_normal((len(parts[4]), 1)))
    return K


def jumps(rng, n, d):
    K = rng.standard_normal((n, d))
    K[n // 3 :] *= 1e60
    K[2 * n // 3 :] *= 1e-120
    return K


def all_zero(rng, n, d):
    return np.zeros((n, d))


CERTAIN = [
    gaussian,
    heavy_tails,
    duplicates,
    zero_rows,
    zero_columns,
    lone_axis,
    low_rank,
    wide,
    scaled_columns,
    rank_rises_late,
    zeros_first,
    blocks_of_different_laws,
    jumps,
    all_zero,
]
DOUBTFUL = [conditioned, growing, shrinking, smooth, graded_low_rank, lone_in_hyperplane]
