"""Attention scores: for f(x) = x^2 from the universal set and one small factor, else direct."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse

from levsketch._checks import check_finite, check_p, check_real
from levsketch._typing import ArrayLike, FloatArray, IntArray, Rows
from levsketch.backends import backend_for
from levsketch.backends.cpu import serial_blas
from levsketch.backends.interchange import result_dtype
from levsketch.backends.stored import StoredRows
from levsketch.functions import Power, ScoreFunction, make_function
from levsketch.linalg import (
    MAX_ERROR,
    NO_EXPONENT,
    UNIT_ROUNDOFF,
    Whitening,
    column_exponents,
    query_norms,
    scale_columns,
    unscaled_queries,
)
from levsketch.streaming.keys import Selection
from levsketch.streaming.rank import RowSpace

from .inputs import stacked
from .sensitivity_bounds import bounds_of_rows
from .universal_set import select_keys

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
    scaled = scaled_queries(np.where(active, Q, 0.0), e)
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

    def scored(part: FloatArray) -> tuple[FloatArray, FloatArray]:
        return attention_scores(selection.whitening, selection.space, keys, upper, part)

    return sparse_entries(scored, index, Q, eps, (len(Q), n), dtype)


def query_step(Q: Rows, keys: int) -> int:
    """Return how many of the queries ``Q`` (m, d) are scored at a time against so many keys."""
    widened = Q.shape[1] if isinstance(Q, StoredRows) else 0
    return max(1, _PAIRS // max(1, keys, widened))


def sparse_entries(
    scored: Callable[[FloatArray], tuple[FloatArray, FloatArray]],
    index: IntArray,
    Q: FloatArray,
    eps: float,
    shape: tuple[int, int],
    dtype: Any,
) -> scipy.sparse.csr_array:
    """Return the scores whose upper bound reaches ``eps`` as CSR, a chunk of queries at a time.

    ``scored`` maps queries (m, d) to scores and upper bounds (m, k) of the keys whose
    numbers are ``index`` (k,).
    """
    step = query_step(Q, len(index))
    indptr: list[IntArray] = [np.zeros(1, np.int64)]
    indices: list[IntArray] = [np.zeros(0, np.int64)]
    values: list[FloatArray] = [np.zeros(0)]
    for start in range(0, len(Q), step):
        with serial_blas():
            scores, bounds = scored(Q[start : start + step])
        rows, columns = np.nonzero(bounds >= eps)
        counts = np.bincount(rows, minlength=len(scores))
        indptr.append(indptr[-1][-1] + np.cumsum(counts))
        indices.append(index[columns])
        values.append(scores[rows, columns])
    data = np.concatenate(values).astype(dtype, copy=False)
    return scipy.sparse.csr_array(
        (data, np.concatenate(indices), np.concatenate(indptr)), shape=shape
    )


def heavy_attention(
    Q: ArrayLike,
    K: ArrayLike,
    eps: float,
    p: float = 2,
    *,
    function: ScoreFunction | str | None = None,
) -> Any:
    """Return every attention score >= eps of every query, exactly, as sparse matrices.

    The scores are ``A[i, j] = f(<q_i, k_j>) / sum_l f(<q_i, k_l>)`` with f(x) = |x|^p. Only the
    keys of the universal set can reach eps. For p = 2 the normaliser is ``||R q_i||^2`` with
    the d x d factor R of the keys, and no query meets all n keys; for other f it is summed
    over all keys, in blocks.

    Parameters
    ----------
    Q : array (..., m, d)
        Queries.
    K : array (..., n, d)
        Keys; same leading axes as ``Q``.
    eps : float in (0, 1]
        Threshold on the scores (a fraction of each query's total).
    p : float > 0
        Exponent of f(x) = |x|^p.
    function : ScoreFunction or its name, optional
        Another f, of at most quadratic growth; ``p`` is then not used.

    Returns
    -------
    scipy.sparse.csr_array (m, n)
        float32 if ``Q`` has at most 32 bits, else float64. With leading axes: an
        object array of that shape, one matrix for each problem.

    Raises
    ------
    ValueError
        For NaN, infinity, shapes that do not match, eps outside (0, 1], p <= 0.

    Notes
    -----
    O(n d^2) time for the keys and O(d (d + |U|)) a query, with |U| <= d / eps, for p = 2;
    O(n d) a query for other f. O(d^2 + d |U|) memory besides the result. Theorem: Kannan,
    Bhattacharyya, Kacham and Woodruff, "LevAttention", ICLR 2025, arXiv 2410.05462,
    section 2.

    Examples
    --------
    >>> import levsketch as lv
    >>> K = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    >>> lv.heavy_attention([[1.0, 1.0]], K, eps=0.2).toarray()
    array([[0.2, 0.2, 0.2, 0.2, 0.2]])
    >>> lv.heavy_attention([[1.0, 0.1]], K, eps=0.5).toarray().round(3)
    array([[0.962, 0.   , 0.   , 0.   , 0.   ]])
    >>> lv.heavy_attention([[1.0, 1.0], [1.0, 0.1]], K, eps=0.5, p=4).toarray().round(4)
    array([[0.    , 0.    , 0.    , 0.    , 0.    ],
           [0.9996, 0.    , 0.    , 0.    , 0.    ]])
    """
    f = Power(check_p(p)) if function is None else make_function(function)
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
        rows = np.ascontiguousarray(queries[i], np.float64)
        n = keys.shape[-2]
        if isinstance(f, Power) and f.p == 2.0:
            out[i] = heavy_entries(select_keys(backend, keys[i], eps), rows, eps, n, dtype)
            continue
        upper = bounds_of_rows(backend, keys[i], f)
        index = np.flatnonzero(upper >= eps)
        scored = functools.partial(direct_scores, f, backend.rows(keys[i]), index, upper[index])
        out[i] = sparse_entries(scored, index, rows, eps, (len(rows), n), dtype)
    return out[()]


def direct_scores(
    f: ScoreFunction, K: Rows, index: IntArray, upper: FloatArray, Q: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return scores of queries (m, d) against keys ``index`` of ``K`` (n, d), and upper bounds.

    The normaliser is summed over all keys, in blocks. Queries of a power f are scaled first,
    so that no product over- or underflows. ``upper`` (k,) are bounds on sensitivities.
    """
    e = column_exponents(K)
    seen = e > NO_EXPONENT  # a query's entry for a column of zeros must not scale the others
    e = np.where(seen, e, 0) if f.homogeneous else np.zeros_like(e)
    scaled = scaled_queries(np.where(seen, Q, 0.0), e) if f.homogeneous else Q
    if not len(index):
        return np.zeros((len(Q), 0)), np.zeros((len(Q), 0))
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(scaled, axis=1)
    step = max(1, _PAIRS // max(1, len(Q)))

    def products(rows: Rows) -> tuple[FloatArray, FloatArray]:
        unit = scale_columns(rows, -e)
        with np.errstate(over="ignore", invalid="ignore"):
            hidden = lengths[:, None] * np.linalg.norm(unit, axis=1)
            found = np.abs(scaled @ unit.T)
        check_products(found, f)
        return found, (len(e) + 2) * UNIT_ROUNDOFF * hidden

    blocks = [K[i : i + step] for i in range(0, len(K), step)]
    top = np.ones(len(Q))
    if f.homogeneous:
        tops = [products(block)[0].max(axis=1, initial=0.0) for block in blocks]
        top = np.max(tops, axis=0)
    unit = np.where(top > 0, top, 1.0)[:, None]
    total, least = np.zeros(len(Q)), np.zeros(len(Q))
    for block in blocks:
        found, hidden = products(block)
        total += f(found / unit).sum(axis=1)
        least += f(np.maximum(found - hidden, 0.0) / unit).sum(axis=1)
    found, hidden = products(K[index])
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = f(found / unit) / total[:, None]
        bounds = f((found + hidden) / unit) / least[:, None]
    scores[total == 0] = 0.0
    bounds[lengths == 0] = 0.0
    return np.minimum(scores, upper), np.fmin(bounds, upper)


def check_products(products: FloatArray, f: ScoreFunction) -> None:
    """Refuse products (m, n) of queries and keys that overflowed: only powers can be rescaled."""
    if not np.isfinite(products).all():
        raise ValueError(
            f"<q, k> overflows for query {int(np.argwhere(~np.isfinite(products))[0, 0])}: "
            f"f={f.name!r} has a scale of its own, so queries cannot be scaled down for it."
        )


def scaled_queries(Q: FloatArray, exponents: IntArray) -> FloatArray:
    """Return queries (m, d) times ``2**exponents`` and a power of two each: entries up to one."""
    mantissa, own = np.frexp(Q)
    nothing = -(10**6)
    top = np.max(np.where(mantissa != 0, own + exponents, nothing), axis=1, initial=nothing)
    with np.errstate(under="ignore"):
        scaled = np.ldexp(mantissa, np.maximum(own + exponents - top[:, None], -3000))
    scaled[top == nothing] = 0.0
    return np.asarray(scaled)


def witnesses(whitening: Whitening, keys: FloatArray) -> FloatArray:
    """Return the queries ``G^+ k_j`` (k, d), which give key j its leverage score.

    Halved as often as needed where an entry would overflow: scores do not change.
    """
    e = np.where(whitening.active, whitening.factor.exponents, 0)
    with serial_blas():
        y = scale_columns(keys, -e) @ whitening.matrix @ whitening.matrix.T
    return unscaled_queries(y, e)
