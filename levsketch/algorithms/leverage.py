"""Leverage scores of all rows: two passes over them, d x d memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from levsketch._checks import check_choice, check_finite, check_real, is_finite
from levsketch._typing import ArrayLike, FloatArray, Rows
from levsketch.backends import Backend, backend_for
from levsketch.backends.cpu import serial_blas
from levsketch.backends.csr import CsrRows
from levsketch.backends.interchange import like, result_dtype
from levsketch.linalg import Whitening
from levsketch.streaming.factor import StreamFactor, block_size, with_intercept
from levsketch.streaming.leaves import GRAM_BUDGET
from levsketch.streaming.rank import RowSpace

from .inputs import keys_of, warn_uncertified

# Rows scored at a time, whose scores stay in cache; if they are first converted; and sparse ones,
# whose kernels look for signals in between.
_SCORED, _CHUNK, _SPARSE_CHUNK = 1 << 17, 1 << 15, 1 << 18
# Multiplications between two looks for signals: 20 to 50 ms on one core.
_WORK = 1 << 31
# While a doubling of the rows adds less than this to the rounding of the Gram matrices, a fresh
# prefix is not worth its d^3: sixty doublings then use up half of the budget.
_DOUBLING = GRAM_BUDGET / 64


def leverage_scores(
    K: ArrayLike, *, ridge: float = 0.0, intercept: bool = False, nan_policy: str = "raise"
) -> Any:
    """Return the leverage score ``k_j^T (K^T K + ridge I)^+ k_j`` of every row.

    The score of a row is the largest share of ``sum_l <q, k_l>^2`` that it takes
    for any query q: 1 for a row that is independent of all others, however small;
    0 for a zero row. Scores sum to the rank of K, which is decided exactly, never
    by a tolerance.

    Parameters
    ----------
    K : array (..., n, d), or scipy.sparse (n, d)
        Rows; leading axes are independent problems (batch, heads). float16, bfloat16,
        float32 and float64 are read as they are, other types converted by blocks.
    ridge : float >= 0
        Added to the diagonal of ``K^T K`` (units of K squared), not on the intercept.
    intercept : bool
        Score the rows ``[1, k_j]`` instead: invariant to shifting all rows.
    nan_policy : {"raise", "propagate"}
        What NaN or infinity in a problem of a stack does: an error, or NaN for all scores of that
        problem and of no other.

    Returns
    -------
    array (..., n)
        In the library and on the device of ``K``; float32 if K has at most 32 bits, else float64.
        All arithmetic is in float64.

    Raises
    ------
    ValueError
        For NaN or infinity (with row and column), fewer than two axes, no rows.

    Warns
    -----
    CertificationWarning
        If the condition number, after column scaling, is beyond about 1e13: the
        scores may then have no correct digits.

    Notes
    -----
    Blocks of rows contribute their float64 Gram matrices while the rounding in
    these is proved to move no score by more than 1e-4 of itself (what is measured
    is below 1e-9), and R factors otherwise: by Cholesky QR of rows that are whitened with those
    before them, or Householder QR where that is not certified. The relative error is then
    about (16 + d) u sqrt(d) times the condition number. 2 n d^2 flops and two reads of K
    on the Gram path, about 5 n d^2 on the others; memory O(d^2) besides the result.
    Sparse rows are never made dense, except a block at a time off the Gram path: on it the work
    is the squares of their nonzeros, nnz d for the scores, and O(d^2) a block.
    The same bits for any number of threads. Stacks on a GPU are computed there at once, each
    problem with a proved bound of 5 % at most on the norms behind its scores (16-bit rows: what
    is measured is below 1e-5), or as above.

    Examples
    --------
    >>> import levsketch as lv
    >>> lv.leverage_scores([[1.0, 0.0], [1.0, 0.0], [0.0, 1e-200]])
    array([0.5, 0.5, 1. ])
    """
    ridge = check_real("ridge", ridge, low=0.0)
    check_choice("nan_policy", nan_policy, ("raise", "propagate"))
    keys = keys_of("K", K)
    backend = backend_for(keys)
    out, left = backend.scores_at_once(keys, ridge, intercept)
    for i in left:
        here = isinstance(out, np.ndarray)
        scores = out[i] if here else np.empty(keys.shape[-2], result_dtype(keys.dtype))
        if nan_policy == "propagate" and not is_finite(keys[i]):
            scores[:] = np.nan
        else:
            try:
                with serial_blas():
                    whitening = whitening_of(backend, keys[i], ridge, intercept)
                    score_rows(backend, whitening, keys[i], intercept, scores, top=1.0)
            except ValueError as error:
                raise ValueError(f"problem {i}: {error}" if i else str(error)) from None
            if not whitening.certified:
                warn_uncertified(whitening)
        if not here:  # on another device
            out[i].set(scores)
    return like(out, K)


def whitening_of(
    backend: Backend,
    K: Rows,
    ridge: float = 0.0,
    intercept: bool = False,
    *,
    scale: FloatArray | None = None,
    space: RowSpace | None = None,
) -> Whitening:
    """Return the whitening of all rows of ``K`` (n, d), read once in blocks.

    With ``scale`` (n,) row j is multiplied by ``scale[j]`` first. A known row space of all
    rows spares the search for it.
    """
    n, d = len(K), K.shape[1] + int(intercept)
    diagonal = np.full(d, ridge)
    diagonal[: int(intercept)] = 0.0
    factor, block = StreamFactor.empty(d, diagonal), block_size(d)
    if space is not None:
        factor = replace(factor, space=space)
    prefix, done, spent = None, 0, 0.0
    while n - done >= block:
        count = min((n - done) // block, factor.run_length())
        rows = with_intercept(backend.rows(K[done : done + count * block]), intercept, done)
        part = None if scale is None else scale[done : done + len(rows)]
        leaves = factor.measure(backend, rows, prefix, done, part)
        prefix = prefix or leaves.prefix
        count = leaves.rising.index(True) + 1 if True in leaves.rising else count
        factor = factor.absorb(backend, leaves, count)
        done += count * block
        stale = prefix is None or bool(factor.factors) or factor.gram_error - spent > _DOUBLING
        if leaves.rising[count - 1] or (factor.settles() and stale):
            prefix, space, _ = factor.whitening(backend)
            factor = replace(factor, space=space)
        if factor.settles():
            spent = factor.gram_error
    tail = with_intercept(backend.rows(K[done:]), intercept, done)
    check_finite(tail, offset=done)
    if scale is None:
        return factor.whitening(backend, tail)[0]
    if len(tail):
        factor = factor.absorb_short(backend, tail, scale[done:])
    return factor.whitening(backend)[0]


def score_rows(
    backend: Backend,
    whitening: Whitening,
    X: Rows,
    intercept: bool,
    out: FloatArray,
    *,
    top: float = np.inf,
) -> None:
    """Write the scores of rows ``X`` (n, d), at most ``top``, into ``out`` (n,)."""
    step, probe = max(1, min(_SCORED, _WORK // whitening.matrix.size)), X[:2]
    if intercept or backend.rows(probe) is not probe:  # these rows are copied
        step = min(step, _CHUNK)
    if isinstance(X, CsrRows):
        step = _SPARSE_CHUNK
    for start in range(0, len(X), step):
        rows = with_intercept(backend.rows(X[start : start + step]), intercept)
        np.minimum(whitening.scores(backend, rows), top, out=out[start : start + step])
