"""Hypothesis strategies of nasty key matrices, each with its true column space.

Bulk entries come from a drawn seed; what Hypothesis varies and shrinks is the
structure: kind, sizes, condition, element type.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st


class Keys(NamedTuple):
    """Keys ``K``; ``basis`` has full column rank and the column space of K, so the same scores."""

    K: np.ndarray
    basis: np.ndarray
    kind: str

    @property
    def rank(self) -> int:
        columns = np.abs(self.basis).max(axis=0, initial=0) > 0
        return min(len(self.basis), int(columns.sum()))


def orthogonal(rng, n, d):
    """Return a matrix (n, d) with orthonormal columns."""
    return np.linalg.qr(rng.standard_normal((n, d)))[0]


def ill_conditioned(rng, n, d, kappa):
    """Return keys with singular values from 1 down to 1 / kappa, rotated."""
    return (orthogonal(rng, n, d) * np.geomspace(1.0, 1.0 / kappa, d)) @ orthogonal(rng, d, d).T


def gaussian(rng, n, d):
    return rng.standard_normal((n, d))


def conditioned(rng, n, d):
    return ill_conditioned(rng, n, d, 10.0 ** rng.uniform(0, 14))


def heavy_tails(rng, n, d):
    return rng.standard_normal((n, d)) * np.exp(rng.uniform(0, 20) * rng.standard_normal((n, 1)))


def duplicates(rng, n, d):
    distinct = rng.standard_normal((d + 1, d))
    return distinct[np.concatenate([np.arange(d + 1), rng.integers(0, d + 1, n - d - 1)])]


def zero_rows(rng, n, d):
    K = rng.standard_normal((n, d))
    K[rng.choice(n, (n - d) // 2, replace=False)] = 0.0
    return K


def zero_columns(rng, n, d):
    return rng.standard_normal((n, d)) * (rng.random(d) < 0.6)


def growing(rng, n, d):
    """Rows that double: at each moment the newest one towers over the rest."""
    return rng.standard_normal((n, d)) * 2.0 ** (np.arange(n) % 900 - 450)[:, None]


def shrinking(rng, n, d):
    return growing(rng, n, d)[::-1].copy()


def smooth(rng, n, d):
    """Columns that are samples of ever closer functions."""
    t = np.sort(rng.uniform(-1, 1, n))
    return np.exp(np.outer(t, np.arange(d)) * 10.0 ** rng.uniform(-1, 0))


def lone_axis(rng, n, d):
    """One key alone in the last coordinate, at 1e-12 or 1e-300 of the others."""
    K = rng.standard_normal((n, d))
    K[:, -1] = 0.0
    K[rng.integers(n)] = rng.choice([1e-12, 1e-300]) * np.eye(d)[-1]
    return K


GENERIC = [
    gaussian,
    conditioned,
    heavy_tails,
    duplicates,
    zero_rows,
    zero_columns,
    growing,
    shrinking,
    smooth,
    lone_axis,
]


def low_rank(rng, n, d):
    """Integer keys of exact rank below d (and at most n)."""
    r = int(rng.integers(1, max(2, min(n, d))))
    left = np.concatenate([np.eye(r), rng.integers(-3, 4, (n - r, r))])[rng.permutation(n)]
    right = np.concatenate([np.eye(r), rng.integers(-3, 4, (r, d - r))], axis=1)
    return left @ right[:, rng.permutation(d)], left


def graded_low_rank(rng, n, d):
    """Integer combinations, of rank below d, of directions that differ in size by 2**40."""
    r = int(rng.integers(1, max(2, d)))
    left = np.concatenate([np.eye(r), rng.integers(-50, 51, (n - r, r))])[rng.permutation(n)]
    left *= 2.0 ** rng.integers(-19, 20, r)
    right = rng.integers(-50, 51, (r, max(2, d)))
    right[:, :r] = np.tril(right[:, :r], -1) + np.eye(r, dtype=int) * rng.integers(1, 51)
    return left @ right, left  # exact: 6 bits each, one for every sum, and the 38 between


def duplicate_columns(rng, n, d):
    K = rng.standard_normal((n, d))
    return np.concatenate([K, K[:, :1]], axis=1), K


def wide(rng, n, d):
    """Fewer keys than columns, all independent."""
    return rng.standard_normal((d, d + 3)), np.eye(d)


def scaled_columns(rng, n, d):
    """Columns from 1e-300 to 1e300, by powers of two."""
    K = rng.standard_normal((n, d))
    return np.ldexp(K, rng.integers(-990, 990, d)), K


def lone_in_hyperplane(rng, n, d):
    """All keys but one exactly in the hyperplane x0 = x1; that one outside it, down to 1e-300."""
    K = rng.standard_normal((n, d + 1))
    K[:, 1] = K[:, 0]
    row = int(rng.integers(n))
    K[row] = 0.0
    K[row, :2] = 2.0 ** -int(rng.choice([3, 20, 40, 44, 47, 50, 53, 60, 200, 996])) * np.array(
        [1, -1]
    )
    basis = np.concatenate([K[:, 1:], np.zeros((n, 1))], axis=1)
    basis[row], basis[row, -1] = 0.0, 1.0
    return K, basis


STRUCTURED = [
    low_rank,
    graded_low_rank,
    duplicate_columns,
    wide,
    scaled_columns,
    lone_in_hyperplane,
]
KINDS = [*GENERIC, *STRUCTURED]
# Kinds whose entries are exact in half precision, or whose rank survives rounding to it.
NARROW = [gaussian, duplicates, zero_rows, zero_columns, low_rank]


def make(kind, seed, n, d, dtype=np.float64) -> Keys:
    """Return keys of one kind; n and d are sizes to aim at."""
    rng = np.random.default_rng(seed)
    made = kind(rng, max(n, d + 2), d)
    K, basis = made if isinstance(made, tuple) else (made, None)
    K = np.ascontiguousarray(K.astype(dtype))
    return Keys(K, K.astype(np.float64) if basis is None else basis, kind.__name__)


@st.composite
def keys(draw, max_rows=300, max_columns=9, kinds=tuple(KINDS)):
    """Keys of any kind, with their column space."""
    kind = draw(st.sampled_from(kinds))
    narrow = [np.float64, np.float32, np.float16] if kind in NARROW else [np.float64]
    return make(
        kind,
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(1, max_rows)),
        draw(st.integers(1, max_columns)),
        draw(st.sampled_from(narrow)),
    )


# Entries of tiny matrices for the exact oracles: where cancellation, underflow and
# the prime of the exact rank are near.
ENTRIES = st.one_of(
    st.integers(-3, 3).map(float),
    st.sampled_from([1e-300, -1e-300, 1e300, 5e-324, 2.0**-60, 1.0 + 2.0**-52, 1e-12, 0.1]),
    st.sampled_from([2.0**31, 31.0, 2.0**30, 2.0**61, -31.0]),
)


@st.composite
def tiny_keys(draw, entries=ENTRIES, max_rows=5, max_columns=4):
    """Matrices small enough for rational arithmetic."""
    n, d = draw(st.integers(1, max_rows)), draw(st.integers(1, max_columns))
    rows = draw(st.lists(st.lists(entries, min_size=d, max_size=d), min_size=n, max_size=n))
    return np.array(rows, dtype=np.float64).reshape(n, d)


@st.composite
def cuts(draw, n, most=6):
    """Ascending places at which a stream of n rows is cut into batches, empty ones too."""
    return sorted(draw(st.lists(st.integers(0, n), max_size=most)))
