"""Sums of exp(<q, k>) v over keys, block by block: the largest logit of a query is kept apart.

Such a pair (largest logit, sums relative to it) is all that must be remembered of the keys seen:
pairs of disjoint sets of keys combine into that of their union. So do sums of other f, relative
to the largest value. exp is no ``ScoreFunction``: it is not even, and exp(0) is not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from levsketch._typing import FloatArray
from levsketch.backends.exponentials import softmax_weights

# Values of this many (query, key) pairs are held at a time, 2 MiB: in a cache of that size the
# passes over them cost a tenth of the two products (measured: 2**17 to 2**19 are alike).
BLOCK_PAIRS = 1 << 18


@dataclass(frozen=True)
class Weighing:
    """How products <q, k> become weights relative to the largest of a query.

    Attributes
    ----------
    values : callable
        From products (m, n), which it may overwrite, to what is compared.
    relative : callable
        ``(values, top)`` to weights: f at ``values`` over f at ``top``, at most 1. It may
        overwrite ``values``.
    least : float
        The value below which there is none: that of no keys at all.
    fused : callable or None
        ``(products, threads)`` to the largest value of each row and all relative to it, as the
        others give them, in one pass.
    """

    values: Callable[[FloatArray], FloatArray]
    relative: Callable[[FloatArray, FloatArray], FloatArray]
    least: float
    fused: Callable[[FloatArray, int | None], tuple[FloatArray, FloatArray]] | None = None

    def weighed(
        self, products: FloatArray, threads: int | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the largest value of each row (m,), and weights (m, n) relative to it; n > 0."""
        if self.fused is not None:
            return self.fused(products, threads)
        values = self.values(products)
        top = values.max(axis=1)
        return top, self.relative(values, top[:, None])


def _exponential(logits: FloatArray, top: FloatArray) -> FloatArray:
    """Return ``exp(logits - top)``, written over ``logits``."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        logits -= top
        return np.asarray(np.exp(logits, out=logits))


def exponentials(scale: float = 1.0) -> Weighing:
    """Return the weighing by ``exp(scale <q, k>)``."""

    def logits(products: FloatArray) -> FloatArray:
        if scale != 1.0:
            products *= scale
        return products

    def fused(products: FloatArray, threads: int | None) -> tuple[FloatArray, FloatArray]:
        return softmax_weights(products, scale, threads)

    return Weighing(logits, _exponential, -np.inf, fused)


SOFTMAX = exponentials()


def softmax_sums(
    Q: FloatArray,
    K: FloatArray,
    V: FloatArray,
    weighing: Weighing = SOFTMAX,
    threads: int | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return t (m,) and S (m, c) with ``sum_j exp(<q_i, k_j>) v_j = exp(t_i) S_i``.

    Parameters
    ----------
    Q, K, V : (m, d), (n, d) and (n, c) arrays
        Host float64, finite, the scale of the logits in ``Q``; nothing is checked. With a
        column of ones (or of weights) in ``V``, its sum is the normaliser.
    weighing : Weighing
        Another f than exp; ``exp(t)`` is then f at the value t.
    threads : int, optional
        For exponentials, which are as many as products: 1 for callers that have threads of their
        own. As many as pay, by default; no bit depends on it.

    Returns
    -------
    shift : (m,) array
        The largest logit of each query; ``weighing.least`` if there are no keys.
    sums : (m, c) array
        No weight in them exceeds 1, and that of the largest logit is 1.

    Notes
    -----
    Products must not overflow. BLAS decides the bits: call within ``serial_blas()``. O(m n
    (d + c)) time, ``BLOCK_PAIRS`` pairs of memory besides the result.
    """
    shift, sums = np.full(len(Q), weighing.least), np.zeros((len(Q), V.shape[1]))
    step = max(1, BLOCK_PAIRS // max(1, len(Q)))
    for start in range(0, len(K), step):
        with np.errstate(under="ignore"):  # some kernels of BLAS flag it, others do not
            top, weights = weighing.weighed(Q @ K[start : start + step].T, threads)
            part = weights @ V[start : start + step]
        shift, sums = combine(shift, sums, top, part, weighing)
    return shift, sums


def combine(
    shift_a: FloatArray,
    sums_a: FloatArray,
    shift_b: FloatArray,
    sums_b: FloatArray,
    weighing: Weighing = SOFTMAX,
) -> tuple[FloatArray, FloatArray]:
    """Return shift (...,) and sums (..., c) of all keys from those of two disjoint sets of keys.

    A shift of ``weighing.least`` with sums of zero stands for no keys. Arguments are unchanged.
    """
    shift = np.maximum(shift_a, shift_b)
    total = np.zeros(np.broadcast_shapes(sums_a.shape, sums_b.shape))
    for own, sums in ((shift_a, sums_a), (shift_b, sums_b)):
        factor = weighing.relative(np.array(own, np.float64), shift)
        # infinite shifts have no difference
        total += np.where(own == shift, 1.0, factor)[..., None] * sums
    return shift, total


class FarLogits:
    """Logits of queries whose products with keys may leave the range of float64.

    Each product is computed twice: as it is, and of queries and keys scaled to 2**480, where
    nothing overflows. The second stands in where the first did. What underflows in it, entries
    2**1554 times smaller than the largest of their query or of all keys, is less than the
    rounding of products that large.

    Parameters
    ----------
    Q : (m, d) array
        Queries, none of them zero.
    scale, power : float in (1/2, 1] and int <= 500
        Logits are products of queries and keys times ``scale 2**power``.
    exponent : int
        All entries of keys are smaller than two to this power.
    """

    def __init__(self, Q: FloatArray, scale: float, power: int, exponent: int) -> None:
        own = np.frexp(np.abs(Q).max(axis=1, keepdims=True))[1].astype(np.int64)
        with np.errstate(under="ignore"):
            self.plain = np.ldexp(Q, min(power, 0))
            self.scaled = np.ldexp(Q, 480 - own)
        self.scale, self.up, self.down = scale, max(power, 0), 480 - exponent
        self.exponents = own + (power + exponent - 960)

    def __len__(self) -> int:
        return len(self.plain)

    def __call__(self, part: slice, K: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return logits (r, n), infinite where they are too large, and the scaled ones."""
        with np.errstate(all="ignore"):
            scaled = self.scaled[part] @ np.ldexp(K, self.down).T * self.scale
            plain = self.plain[part] @ K.T * self.scale
            far = np.ldexp(scaled, self.exponents[part])
            return np.where(np.isfinite(plain), np.ldexp(plain, self.up), far), scaled


def far_sums(
    logits: FarLogits, segments: Callable[[], Iterable[tuple[FloatArray, FloatArray]]], width: int
) -> FloatArray:
    """Return the sums (m, width) of such queries, relative to their largest logits.

    ``segments()`` gives keys (n, d) and what is summed (n, width); it is called twice. Where
    even the largest logit is infinite, two that differ at all differ by far more than the
    745 after which exp is zero: those that equal the largest share the weight.
    """
    tops, tops_scaled = np.full((len(logits), 1), -np.inf), np.full((len(logits), 1), -np.inf)
    sums = np.zeros((len(logits), width))

    def blocks(n: int) -> Iterator[slice]:
        step = max(1, BLOCK_PAIRS // n)
        return (slice(i, i + step) for i in range(0, len(logits), step))

    for K, _ in segments():
        for part in blocks(len(K)):
            found, scaled = logits(part, K)
            tops[part] = np.maximum(tops[part], found.max(axis=1, keepdims=True))
            tops_scaled[part] = np.maximum(tops_scaled[part], scaled.max(axis=1, keepdims=True))
    for K, V in segments():
        for part in blocks(len(K)):
            found, scaled = logits(part, K)
            one_hot = scaled == tops_scaled[part]
            with np.errstate(all="ignore"):
                weights = np.where(np.isfinite(tops[part]), np.exp(found - tops[part]), one_hot)
                sums[part] += weights @ V
    return sums
