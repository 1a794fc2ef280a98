"""What the demo claims, tried on the spot by brute force with plain NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from levsketch import LeverageKeySelector, leverage_scores
from levsketch._typing import FloatArray, IntArray

# float64 agrees far better on this data; a wrong formula does not come near.
_TOLERANCE = 1e-10
# Queries whose scores against all keys are held at a time.
_QUERIES = 512


@dataclass(frozen=True)
class Check:
    """One claim and whether it held."""

    held: bool
    claim: str
    detail: str


@dataclass(frozen=True)
class Offline:
    """The scores and best queries of all rows from one SVD: none of levsketch's own code."""

    scores: FloatArray
    best_queries: FloatArray

    @classmethod
    def of(cls, K: FloatArray) -> Offline:
        """Return both for the rows of ``K``: squared row norms of U, and rows of ``K^+``."""
        U, s, Vt = np.linalg.svd(K, full_matrices=False)
        rank = int((s > s[0] * max(K.shape) * np.finfo(np.float64).eps).sum())
        U, s, Vt = U[:, :rank], s[:rank], Vt[:rank]
        return cls(np.sum(U * U, axis=1), (U / s) @ Vt)


def brute_force_scores(K: FloatArray, Q: FloatArray) -> FloatArray:
    """Return the attention scores of queries against all keys, straight from the definition."""
    products = np.square(Q @ K.T)
    total = products.sum(axis=1, keepdims=True)
    scores: FloatArray = products / np.where(total > 0, total, 1.0)
    return scores


def batchings(n: int) -> dict[str, list[int]]:
    """Return ways to cut n rows into blocks: their name and the rows of each block."""
    uneven, left = [], n
    sizes = iter((1, 2, 5, 13, 34, 89, 233, 610))
    while left:
        uneven.append(min(left, next(sizes, left)))
        left -= uneven[-1]
    hundreds = [min(100, n - start) for start in range(0, n, 100)]
    return {
        f"{len(uneven)} uneven blocks": uneven,
        "blocks of 100": hundreds,
        "single rows": [1] * n,
    }


def streamed(K: FloatArray, eps: float, sizes: list[int]) -> LeverageKeySelector:
    """Return a selector that saw the rows of ``K`` once, in blocks of the given sizes."""
    selector, start = LeverageKeySelector(eps=eps), 0
    for size in sizes:
        selector.partial_fit(K[start : start + size])
        start += size
    return selector


def run_checks(K: FloatArray, selector: LeverageKeySelector, offline: Offline) -> Iterator[Check]:
    """Yield every check of the demo, in the order in which they are printed."""
    yield from _against_queries(K, selector, offline)
    own = leverage_scores(K)
    gap = float(np.abs(own - offline.scores).max())
    # a score that lies at eps to the last digits may fall on either side
    clear = np.abs(offline.scores - selector.eps) > _TOLERANCE
    reach = np.zeros(len(K), np.bool_)
    reach[selector.indices_[selector.scores_ >= selector.eps]] = True
    same = np.array_equal((offline.scores >= selector.eps)[clear], reach[clear])
    yield Check(
        gap <= _TOLERANCE and same,
        "an independent SVD finds the same scores and the same set",
        f"largest difference of the {len(K):,} scores {gap:.0e}",
    )
    yield _against_batchings(K, selector)


def _against_queries(
    K: FloatArray, selector: LeverageKeySelector, offline: Offline
) -> Iterator[Check]:
    """Yield what brute force says of the set, of ``transform`` and of ``heavy_scores``."""
    Q = np.concatenate([K, offline.best_queries, selector.witness_queries()])
    eps, index = float(selector.eps), selector.indices_
    outside = np.ones(len(K), np.bool_)
    outside[index] = False
    heavy = missed = wrong = 0
    gap = 0.0
    for start in range(0, len(Q), _QUERIES):
        part = Q[start : start + _QUERIES]
        truth = brute_force_scores(K, part)
        reached = truth >= eps
        heavy += int(reached.sum())
        missed += int((reached & outside).sum())
        gap = max(gap, float(np.abs(selector.transform(part) - truth[:, index]).max(initial=0.0)))
        found = selector.heavy_scores(part).toarray()
        clear = np.abs(truth - eps) > _TOLERANCE
        wrong += int((((found > 0) != reached) & clear).sum())
    yield Check(
        missed == 0,
        f"no query gives a share of {eps:g} to a key outside the set",
        f"{len(Q):,} queries x {len(K):,} keys = {len(Q) * len(K):,} pairs, "
        f"{heavy:,} scores >= {eps:g}, {missed} of them outside the set",
    )
    yield Check(
        gap <= _TOLERANCE and wrong == 0,
        "transform and heavy_scores, which never look at all keys, agree with brute force",
        f"largest difference {gap:.0e}, heavy scores listed wrongly: {wrong}",
    )


def _against_batchings(K: FloatArray, selector: LeverageKeySelector) -> Check:
    whole = LeverageKeySelector(eps=selector.eps).fit(K).to_bytes()
    named = batchings(len(K))
    same = [streamed(K, selector.eps, sizes).to_bytes() == whole for sizes in named.values()]
    return Check(
        all(same) and selector.to_bytes() == whole,
        "any batching leaves the same bytes of state",
        f"all at once = {' = '.join(named)}: {len(whole):,} bytes each",
    )


def queries_tried(index: IntArray) -> str:
    """Return in words which queries brute force tried."""
    return (
        "Queries tried: every row itself, the best possible query for every row (from the SVD), "
        f"and the witnesses ({len(index):,})."
    )
