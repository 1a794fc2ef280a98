"""Sketched attention of stacks of heads: each is a stream of its own, in fixed memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from typing import Any

import numpy as np

from levsketch._checks import check_count, check_finite
from levsketch._typing import ArrayLike, FloatArray
from levsketch.backends import backend_for
from levsketch.backends.cpu import thread_count
from levsketch.backends.interchange import like, result_dtype
from levsketch.streaming.attention import AttentionPolicy, AttentionStream, QuerySample
from levsketch.streaming.query_sample import query_sample, scaled_queries

from .attention_sketch import outputs
from .inputs import check_problems, checked_scale, stacked

# So many queries at most tell the law of all.
_SAMPLE = 4096
_RESIDUALS = ("auto", "embedding", "closure", "polynomial")


def sketched_attention(
    Q: ArrayLike,
    K: ArrayLike,
    V: ArrayLike,
    n_keys: int = 256,
    *,
    scale: float | str = "sqrt_d",
    residual: str = "auto",
    queries: ArrayLike | None = None,
    random_state: int = 0,
) -> Any:
    """Return approximate softmax attention outputs of stacks, each from a sketch of its keys.

    As `StreamingAttentionSketch` fitted to each problem: keys and values are read once, and
    then answer from ``n_keys (d + d_v)`` numbers.

    Parameters
    ----------
    Q : array (..., m, d)
        Queries.
    K : array (..., n, d)
        Keys; same leading axes as ``Q`` (batch, heads).
    V : array (..., n, d_v)
        Values; same leading axes and rows as ``K``.
    n_keys : int, default=256
        The budget of each problem, in keys with their values.
    scale : "sqrt_d" or float in (0, 1e100]
        The factor of the logits; "sqrt_d" is 1 / sqrt(d).
    residual : {"auto", "embedding", "closure", "polynomial"}, default="auto"
        As for the estimator.
    queries : array (..., l, d), optional
        Sample queries of each problem, for whose law its sketch is made; by default some
        of ``Q``, up to 4,096 of each problem.
    random_state : int, default=0

    Returns
    -------
    array (..., m, d_v)
        In the library of ``Q``; float32 if ``Q``, ``K`` and ``V`` have at most 32 bits.

    Raises
    ------
    ValueError
        For NaN or infinity (with problem, row and column), shapes that do not match, and
        parameters out of range.

    Notes
    -----
    Pays where queries are many more than the budget, or keys pass only once: building costs
    about ``4 n n_keys (d + n_keys)`` flops a problem, answering ``2 m n_keys (d + d_v)``. One
    thread for each problem. Source: see `StreamingAttentionSketch`.

    Examples
    --------
    >>> import numpy as np
    >>> import levsketch as lv
    >>> rng = np.random.default_rng(0)
    >>> Q, K = rng.normal(size=(2, 4, 2000, 8))[:, :, :50], rng.normal(size=(2, 4, 2000, 8))
    >>> V = np.sin(K)
    >>> error = lv.sketched_attention(Q, K, V, n_keys=100) - lv.attention(Q, K, V)
    >>> error.shape, bool(np.abs(error).max() < 0.1)
    ((2, 4, 50, 8), True)
    """
    Q_, K_, V_ = stacked("Q", Q), stacked("K", K), stacked("V", V)
    check_problems(Q_, K_, V_)
    sample = Q_ if queries is None else stacked("queries", queries)
    step = -(-sample.shape[-2] // _SAMPLE)
    if sample.shape[:-2] != K_.shape[:-2] or sample.shape[-1] != K_.shape[-1]:
        raise ValueError(
            f"queries of shape {sample.shape} and K of shape {K_.shape} must agree in their "
            "leading axes and in their last one."
        )
    if residual not in _RESIDUALS:
        raise ValueError(f"residual must be one of {_RESIDUALS}, got {residual!r}.")
    d, d_v = K_.shape[-1], V_.shape[-1]
    s = checked_scale(scale, d)
    if not (_is_whole(random_state) and random_state >= 0):
        raise ValueError(f"random_state must be a whole number >= 0, got {random_state!r}.")
    policy = AttentionPolicy(
        check_count("n_keys", n_keys), None, residual, 1.0, s, int(random_state)
    )
    narrow = all(result_dtype(X.dtype) == np.float32 for X in (Q_, K_, V_))
    out = np.empty((*Q_.shape[:-1], d_v), np.float32 if narrow else np.float64)

    def work(i: tuple[int, ...]) -> None:
        asked = _finite("Q", Q_, i)
        known = _law_of(asked[::step], s)
        if queries is not None:
            known = query_sample(_finite("queries", sample, i)[::step], s)
        stream = AttentionStream.empty(policy, d, d_v, known)
        keys, values = _finite("K", K_, i), _finite("V", V_, i)
        rows = np.concatenate([keys, values, np.ones((len(keys), 1))], axis=1)
        out[i] = outputs(stream.update(backend_for(None), rows), scaled_queries(asked, s))

    problems = list(np.ndindex(K_.shape[:-2]))
    threads = min(len(problems), thread_count(K_.size * policy.n_keys))
    if threads <= 1:
        list(map(work, problems))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, problems))
    return like(out, Q)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _law_of(Q: FloatArray, scale: float) -> QuerySample | None:
    """Return what is known of queries; nothing of such as leave the range of float64."""
    try:
        return query_sample(Q, scale)
    except ValueError:
        return None


def _finite(name: str, stack: Any, i: tuple[int, ...]) -> FloatArray:
    """Return one problem of a stack in float64, finite."""
    with np.errstate(over="ignore"):
        wide = np.ascontiguousarray(stack[i], np.float64)
    check_finite(wide, name=f"{name}[{', '.join(map(str, i))}]" if i else name)
    return wide
