"""Which of many keys best stand for all of them: orthogonal matching pursuit under a kernel."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from levsketch._typing import FloatArray, IntArray
from levsketch.backends.exponentials import Taken, absorb, take

from .query_law import RemainderKernel

# Kernel entries that are held at a time while all pairs are summed.
_PAIRS = 1 << 20
# A key whose function is this close to the span of those chosen (squared, relative to the
# largest) is no candidate: rounding decides over it.
_FLOOR, _LEAST = 1e-9, 1e-300
# Added to the unit diagonal of kernel matrices that are solved with.
_JITTER = 1e-6
_MOST_AT_ONCE = 16
# Entries of the kernel matrix that is held while rows are chosen: 32 MiB.
_HELD = 1 << 22


class KernelMatrix:
    """The kernel of n rows with each other: held if it is small, else parts of it made anew."""

    def __init__(self, kernel: RemainderKernel, X: FloatArray) -> None:
        self.kernel, self.X = kernel, X
        self.whole = kernel(X, X) if len(X) ** 2 <= _HELD else None

    def times(self, B: FloatArray) -> FloatArray:
        """Return ``(H B)^T``, (c, n): for each column of ``B``."""
        if self.whole is not None:
            return np.asarray(B.T @ self.whole)
        return np.ascontiguousarray(products(self.kernel, self.X, self.X, B).T)

    def rows(self, which: IntArray) -> FloatArray:
        """Return some rows, (b, n)."""
        if self.whole is not None:
            return self.whole[which]
        return self.kernel(self.X[which], self.X)

    def block(self, which: IntArray) -> FloatArray:
        """Return the kernel of some rows with each other, (b, b)."""
        if self.whole is not None:
            return self.whole[which[:, None], which]
        return self.kernel(self.X[which], self.X[which])


def chosen(matrix: KernelMatrix, inner: FloatArray, size: int) -> IntArray:
    """Return the numbers of at most ``size`` rows whose functions span c others best.

    Parameters
    ----------
    matrix : KernelMatrix
        Of the n rows.
    inner : (c, n) array
        Inner products of the functions to be approximated with those of the rows:
        ``matrix.times(B)`` for functions ``sum_j B_j phi_j``.
    size : int

    Returns
    -------
    (k,) int array
        In the order in which they were chosen; k < size where fewer rows span the others.

    Notes
    -----
    Greedy: the next row is the one that lowers the squared error most,
    ``||r_j||^2 / delta_j`` with r the inner products of its function with the remainders and
    delta_j its squared distance from the span. Up to 16 rows are taken at a time, by the same
    rule, out of the four times as many best ones: then they are taken in by one pass over all. The
    result depends on no random numbers. O(n size (size + c)) time, O(n size) memory.
    """
    rest, n = np.array(inner, order="C"), inner.shape[1]
    left, gain, root = matrix.kernel.diagonal(matrix.X), np.empty(n), np.empty((size, n))
    floor = _floor(left)
    absorb(root[:0], root[:0, :0], Taken.none(len(rest)), rest, left, floor, gain)
    found: list[IntArray] = []
    k, at_once = 0, min(max(size // 32, 1), _MOST_AT_ONCE)
    while k < size:
        best = _largest(gain, 4 * at_once if at_once > 1 else 1)
        if not len(best):
            break
        seen = root[:k].take(best, axis=1)
        own = matrix.block(best)
        own -= seen.T @ seen
        taken = take(own, rest.take(best, axis=1), floor, min(at_once, size - k))
        if not len(taken.which):
            break
        new, end = best[taken.which], k + len(taken.which)
        root[k:end] = matrix.rows(new)
        absorb(root[:end], seen.take(taken.which, axis=1), taken, rest, left, floor, gain)
        left[new] = gain[new] = 0.0
        found.append(new)
        k = end
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _largest(gain: FloatArray, count: int) -> IntArray:
    """Return the numbers of the ``count`` largest positive gains, largest first, ties by number."""
    count = min(count, len(gain))
    if count <= 1:
        best = np.argmax(gain, keepdims=True) if count else np.zeros(0, np.int64)
    else:
        best = np.argpartition(-gain, count - 1)[:count]
        best = best[np.lexsort((best, -gain[best]))]
    return np.asarray(best[gain[best] > 0.0])


def products(kernel: RemainderKernel, X: FloatArray, Y: FloatArray, B: FloatArray) -> FloatArray:
    """Return ``kernel(X, Y) @ B`` (n, c), without the whole kernel matrix."""
    step = max(1, _PAIRS // max(1, len(Y)))
    parts = [kernel(X[i : i + step], Y) @ B for i in range(0, len(X), step)]
    return np.concatenate(parts) if parts else np.zeros((0, B.shape[1]))


def projected(
    kernel: RemainderKernel, S: FloatArray, target: FloatArray
) -> tuple[FloatArray, float]:
    """Return the coefficients (k, c) on the functions of ``S`` (k, d), and how much they explain.

    ``target`` (k, c) holds the inner products of these functions with what is projected; the
    second result is the squared norm of the projection, summed over the c columns with the
    weights of `emphasis`.
    """
    own = kernel.diagonal(S)
    scale = np.sqrt(np.maximum(own, _floor(own)))
    H = kernel(S, S)
    H /= scale[:, None]
    H /= scale
    factor = _cholesky(_ridged(H, _JITTER))
    wanted = target / scale[:, None]
    y = scipy.linalg.cho_solve((factor, True), wanted, check_finite=False)
    # once more on what is left: the jitter then hides no digits where H is well-conditioned
    y += scipy.linalg.cho_solve((factor, True), wanted - H @ y, check_finite=False)
    explained = np.sum(y * (2.0 * wanted - H @ y), axis=0)
    return y / scale[:, None], float(emphasis(len(explained)) ** 2 @ explained)


def emphasis(columns: int) -> FloatArray:
    """Return how much an error counts in each column of [values, one]: (columns,).

    Values are near one in size. An error of the normaliser moves an output by its distance from
    the mean value: less than that, by a factor that was near 0.3 on trained heads.
    """
    return np.array([1.0] * (columns - 1) + [0.3])


def _floor(squares: FloatArray) -> float:
    """Return the squared norm below which functions, of these squared norms, are rounding."""
    return max(_FLOOR * float(squares.max(initial=0.0)), _LEAST)


def _ridged(A: FloatArray, ridge: float) -> FloatArray:
    """Return A plus ``ridge`` times the identity."""
    sum_ = A.copy()
    sum_.ravel()[:: len(A) + 1] += ridge
    return sum_


def _cholesky(A: FloatArray) -> FloatArray:
    """Return the lower Cholesky factor of A, which rounding may have left indefinite."""
    size = float(np.max(np.diagonal(A), initial=_LEAST))
    for jitter in (0.0, 1e-10, 1e-7, 1e-4):
        try:
            return np.asarray(np.linalg.cholesky(_ridged(A, jitter * size)))
        except np.linalg.LinAlgError:
            continue
    return np.asarray(np.linalg.cholesky(_ridged(A, size)))
