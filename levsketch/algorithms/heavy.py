"""Attention scores for f(x) = x^2: exact, from the universal set and one small factor."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from levsketch._checks import check_finite, check_p, check_real
from levsketch._typing import ArrayLike, FloatArray, IntArray
from levsketch.backends import backend_for
from levsketch.backends.cpu import serial_blas
from levsketch.backends.interchange import result_dtype
from levsketch.linalg import MAX_ERROR, UNIT_ROUNDOFF, Whitening, query_norms, scale_columns
from levsketch.streaming.keys import Selection
from levsketch.streaming.rank import RowSpace

from .universal_set import select_keys, stacked

# Scores of this many (query, key) pairs are held at a time.
_PAIRS = 1 << 21


def attention_scores(
    whitening: Whitening,
    space: RowSpace,
    keys: FloatArray,
    upper: FloatArray,
    Q: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Return ``<q, k_j>^2 / sum_l <q, k_l>^2`` for queries ``Q`` (m, d) and some of the keys.

    Parameters
    ----------
    whitening : Whitening
        Of all the keys; its factor R gives the normaliser ``||R q||^2``.
    space : RowSpace
        Of all the keys: tells exactly which queries are orthogonal to them.
    keys, upper : (k, d) and (k,) arrays
        The keys asked for, and the upper bounds of their leverage scores, which
        no score may exceed.
    Q : (m, d) array
        Finite; of any size, since each query is scaled by a power of two first.

    Returns
    -------
    scores : (m, k) array
        Rows of zeros for the zero query and for queries that are, exactly,
        orthogonal to all keys.
    bounds : (m, k) array
        Upper bounds on the true scores: ``scores`` plus what rounding can hide.
    """
    active, factor = whitening.active, whitening.factor
    e = np.where(active, factor.exponents, 0)
    # (2**e q) is the query that meets keys scaled by 2**-e: same products
    mantissa, own = np.frexp(np.where(active, Q, 0.0))
    top = np.max(np.where(mantissa != 0, own + e, -(10**6)), axis=1, initial=-(10**6))
    with np.errstate(under="ignore"):
        scaled = np.ldexp(mantissa, np.maximum(own + e - top[:, None], -3000))
    scaled[top == -(10**6)] = 0.0
    lengths = np.linalg.norm(scaled, axis=1)
    norms = query_norms(factor, scaled)
    rounding = (len(active) + 2) * UNIT_ROUNDOFF
    hidden = rounding * float(np.linalg.norm(factor.R)) * lengths
    # small norms are told from zero ones exactly; only deficient rank has the latter
    deficient = whitening.rank < int(active.sum())
    doubtful = np.flatnonzero(norms <= (8 * hidden if deficient else 0.0))
    silent = np.zeros(len(Q), np.bool_)
    silent[doubtful] = space.orthogonal(Q[doubtful])
    unit = scale_columns(keys, -e)
    products = np.abs(scaled @ unit.T)
    least = np.maximum(norms - hidden, 0.0) * (1.0 - min(whitening.error, MAX_ERROR))
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.nan_to_num(np.square(products / norms[:, None]), nan=0.0, posinf=np.inf)
        products += rounding * lengths[:, None] * np.linalg.norm(unit, axis=1)
        bounds = np.square(products / least[:, None])
    scores[silent] = bounds[silent] = 0.0
    # fmin: 0 / 0 says nothing, but the leverage bound still holds
    return np.minimum(scores, upper), np.fmin(bounds, upper)


def heavy_entries(
    selection: Selection, Q: FloatArray, eps: float, n: int, dtype: Any
) -> scipy.sparse.csr_array:
    """Return every attention score >= ``eps`` of queries ``Q`` (m, d), as (m, n) CSR.

    A score that is below eps by less than its rounding error is in, too: none is missed.
    ``selection`` must come from a stream of n keys whose eps is not larger.
    """
    keys = selection.rows[selection.universal]
    index = selection.index[selection.universal]
    upper = selection.upper[selection.universal]
    step = max(1, _PAIRS // max(1, len(index)))
    indptr: list[IntArray] = [np.zeros(1, np.int64)]
    indices: list[IntArray] = [np.zeros(0, np.int64)]
    values: list[FloatArray] = [np.zeros(0)]
    for start in range(0, len(Q), step):
        with serial_blas():
            scores, bounds = attention_scores(
                selection.whitening, selection.space, keys, upper, Q[start : start + step]
            )
        rows, columns = np.nonzero(bounds >= eps)
        counts = np.bincount(rows, minlength=len(scores))
        indptr.append(indptr[-1][-1] + np.cumsum(counts))
        indices.append(index[columns])
        values.append(scores[rows, columns])
    data = np.concatenate(values).astype(dtype, copy=False)
    return scipy.sparse.csr_array(
        (data, np.concatenate(indices), np.concatenate(indptr)), shape=(len(Q), n)
    )


def heavy_attention(Q: ArrayLike, K: ArrayLike, eps: float, p: float = 2) -> Any:
    """Return every attention score >= eps of every query, exactly, as sparse matrices.

    The scores are ``A[i, j] = <q_i, k_j>^2 / sum_l <q_i, k_l>^2``. Only the keys
    of the universal set can reach eps, and the normaliser is ``||R q_i||^2`` with
    the d x d factor R of the keys: no query meets all n keys.

    Parameters
    ----------
    Q : array (..., m, d)
        Queries.
    K : array (..., n, d)
        Keys; same leading axes as ``Q``.
    eps : float in (0, 1]
        Threshold on the scores (a fraction of each query's total).
    p : float
        Exponent of f(x) = |x|^p; 2 in this version.

    Returns
    -------
    scipy.sparse.csr_array (m, n)
        float32 if ``Q`` has at most 32 bits, else float64. With leading axes: an
        object array of that shape, one matrix for each problem.

    Raises
    ------
    ValueError
        For NaN, infinity, shapes that do not match, or eps outside (0, 1].

    Notes
    -----
    O(n d^2) time for the keys and O(d (d + |U|)) a query, with |U| <= d / eps;
    O(d^2 + d |U|) memory besides the result. Theorem: Kannan, Bhattacharyya,
    Kacham and Woodruff, "LevAttention", ICLR 2025, arXiv 2410.05462, section 2.

    Examples
    --------
    >>> import levsketch as lv
    >>> K = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    >>> lv.heavy_attention([[1.0, 1.0]], K, eps=0.2).toarray()
    array([[0.2, 0.2, 0.2, 0.2, 0.2]])
    >>> lv.heavy_attention([[1.0, 0.1]], K, eps=0.5).toarray().round(3)
    array([[0.962, 0.   , 0.   , 0.   , 0.   ]])
    """
    check_p(p)
    eps = check_real("eps", eps, low=0.0, high=1.0, open_low=True)
    queries, keys = stacked("Q", Q), stacked("K", K)
    if queries.shape[:-2] != keys.shape[:-2] or queries.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"Q of shape {queries.shape} and K of shape {keys.shape} must agree in their "
            "leading axes and in their last one."
        )
    dtype = result_dtype(queries.dtype)
    backend = backend_for(keys)
    out = np.empty(keys.shape[:-2], dtype=object)
    for i in np.ndindex(out.shape):
        check_finite(queries[i], name="Q")
        selection = select_keys(backend, keys[i], eps)
        out[i] = heavy_entries(
            selection, np.ascontiguousarray(queries[i], np.float64), eps, keys.shape[-2], dtype
        )
    return out[()]


def witnesses(whitening: Whitening, keys: FloatArray) -> FloatArray:
    """Return the queries ``G^+ k_j`` (k, d), which give key j its leverage score.

    Halved as often as needed where an entry would overflow: scores do not change.
    """
    e = np.where(whitening.active, whitening.factor.exponents, 0)
    with serial_blas():
        y = scale_columns(keys, -e) @ whitening.matrix @ whitening.matrix.T
    mantissa, own = np.frexp(y)
    top = np.max(np.where(mantissa != 0, own - e, 0), axis=1, keepdims=True, initial=0)
    return np.asarray(scale_columns(y, -e - np.maximum(top - 1000, 0)))
