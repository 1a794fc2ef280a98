"""Key sets and queries that try to break a certificate of softmax sums, and the true sums.

References are in long double. What they may be off by themselves is ``Truth.hidden``, a bound on
the error of a logit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from oracles import WIDE
from strategies import ill_conditioned

WIDER = np.longdouble


def gaussian(rng, n, d):
    return rng.standard_normal((n, d))


def clustered(rng, n, d):
    return 3 * rng.standard_normal((4, d))[rng.integers(0, 4, n)] + gaussian(rng, n, d) / 10


def heavy_tailed(rng, n, d):
    return gaussian(rng, n, d) * np.exp(rng.uniform(0, 8) * rng.standard_normal((n, 1)))


def rank_one(rng, n, d):
    return rng.standard_normal((n, 1)) @ rng.standard_normal((1, d))


def conditioned(rng, n, d):
    """Condition number 1e14."""
    return ill_conditioned(rng, max(n, d), d, 1e14)[:n]


def one_outlier(rng, n, d):
    K = gaussian(rng, n, d)
    K[rng.integers(n)] *= 1e12
    return K


def duplicates(rng, n, d):
    return gaussian(rng, 3, d)[rng.integers(0, 3, n)]


def zero_rows(rng, n, d):
    return gaussian(rng, n, d) * (rng.random((n, 1)) < 0.5)


def constant(rng, n, d):
    return np.tile(gaussian(rng, 1, d), (n, 1))


def far_away(rng, n, d):
    return gaussian(rng, n, d) + 1e6 * rng.standard_normal(d)


def one_sided(rng, n, d):
    return np.abs(gaussian(rng, n, d)) ** 3


def mixed_columns(rng, n, d):
    return gaussian(rng, n, d) * np.exp(20 * rng.standard_normal(d))


def tiny(rng, n, d):
    return 1e-200 * gaussian(rng, n, d)


def huge(rng, n, d):
    return 1e140 * gaussian(rng, n, d)


KINDS = [
    gaussian,
    clustered,
    heavy_tailed,
    rank_one,
    conditioned,
    one_outlier,
    duplicates,
    zero_rows,
    constant,
    far_away,
    one_sided,
    mixed_columns,
    tiny,
    huge,
]


def queries(rng, K, m):
    """Return queries: along keys, against the covariance, witnesses, along axes, of any size."""
    n, d = K.shape
    centred = K - K.mean(axis=0)
    size = np.abs(centred).max() or 1.0
    inverse = np.linalg.pinv((centred / size).T @ (centred / size), hermitian=True)
    keys, any_way = centred[rng.integers(0, n, m)] / size, rng.standard_normal((m, d))
    ways = [
        any_way,
        any_way @ inverse,
        any_way * np.eye(d)[rng.integers(0, d, m)],
        keys,
        keys @ inverse,
        -keys @ inverse,
        K[rng.integers(0, n, m)] / size,
    ]
    Q = np.stack(ways)[rng.integers(0, len(ways), m), np.arange(m)]
    widest = np.abs(Q @ centred.T).max(axis=1)
    # mostly logits that matter, some far beyond, some of the size that comes
    aims = 10.0 ** rng.uniform(-4, 3.5, m)
    aimed = (widest > 0) & (rng.random(m) < 0.9)
    Q[aimed] *= (aims[aimed] / widest[aimed])[:, None]
    Q[0] = 0.0
    return np.nan_to_num(Q, posinf=1e200, neginf=-1e200)


@dataclass(frozen=True)
class Truth:
    """``log sum_j w_j exp<q, k_j>`` (m,), outputs (m, d_v) and what logits are off by (m,)."""

    log_normaliser: np.ndarray
    outputs: np.ndarray
    hidden: np.ndarray


def truth(Q, K, V, w):
    """Return the softmax sums of rows of positive weight in long double."""
    K, V, w = (np.asarray(X, WIDER)[np.asarray(w) > 0] for X in (K, V, w))
    if not len(K):
        none = np.full(len(Q), -np.inf, WIDER)
        return Truth(none, np.zeros((len(Q), V.shape[1]), WIDER), np.zeros(len(Q)))
    Q = np.asarray(Q, WIDER)
    logits = Q @ K.T
    top = logits.max(axis=1, keepdims=True)
    with np.errstate(under="ignore"):
        weights = w * np.exp(logits - top)
    total = weights.sum(axis=1)
    hidden = (4 * Q.shape[1] + 8) * WIDE * (np.abs(Q) @ np.abs(K).max(axis=0)) + len(K) * WIDE
    return Truth(top[:, 0] + np.log(total), (weights @ V) / total[:, None], hidden)


@dataclass(frozen=True)
class Rows:
    """Keys, values and weights, queries, which rows are kept, and where the others are cut."""

    kind: str
    K: np.ndarray
    V: np.ndarray
    w: np.ndarray
    Q: np.ndarray
    kept: np.ndarray
    cuts: np.ndarray
    seed: int


def make(kind, seed, n, d, m):
    """Return rows of one kind and m queries."""
    rng = np.random.default_rng(seed)
    K = kind(rng, n, d)
    V = rng.standard_normal((n, rng.integers(1, 4))) * 10.0 ** rng.integers(-3, 4)
    V += rng.choice([0.0, 0.0, 1e3])
    w = np.ones(n) if rng.random() < 0.5 else rng.exponential(size=n) * (rng.random(n) < 0.8)
    w[rng.integers(n)] = 1.0
    kept = np.zeros(n, np.bool_)
    kept[rng.permutation(n)[: rng.integers(0, n)]] = True
    cuts = np.sort(rng.integers(0, n + 1, rng.integers(0, 4)))
    return Rows(kind.__name__, K, V, w, queries(rng, K, m), kept, cuts, seed)


@st.composite
def rows(draw, m, max_rows=60, max_columns=6):
    """Rows of any kind, with m queries."""
    return make(
        draw(st.sampled_from(KINDS)),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(1, max_rows)),
        draw(st.integers(1, max_columns)),
        m,
    )
