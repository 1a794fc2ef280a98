"""Exact attention: every query meets every key, in blocks that fit a cache."""

from __future__ import annotations

import functools
import math
import numbers
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from levsketch._checks import check_finite, check_real
from levsketch._typing import ArrayLike, FloatArray, IntArray
from levsketch.backends.cpu import serial_blas, thread_count
from levsketch.backends.interchange import like, result_dtype, to_numpy
from levsketch.functions import REGISTRY, Power, ScoreFunction, make_function
from levsketch.functions.softmax import (
    FarLogits,
    Weighing,
    combine,
    exponentials,
    far_sums,
    softmax_sums,
)
from levsketch.linalg import NO_EXPONENT, column_exponents, scale_columns

from .heavy import scaled_queries
from .inputs import check_problems, checked_scale, stacked

# Queries of one task: more gain nothing (measured), fewer are more tasks for the threads.
_QUERIES = 256
# Entries of keys and values that are widened at a time: 16 MiB.
_ENTRIES = 1 << 21
# Sums of n values are kept below two to this power, less the bits of n.
_SUM_EXPONENT = 1022
# The least weight is kept above 2**-1000, so that no normaliser loses digits ...
_LEAST_EXPONENT = -1000
# ... unless the weights are so far apart that the values would have no room.
_WEIGHT_RANGE = 1400
# Exponent up to which queries, and sums of their products with keys, cannot overflow.
_SAFE = 1000

# Keys (n, d) and what is summed over them (n, d_v + 1), some rows at a time.
Segments = Iterable[tuple[FloatArray, FloatArray]]
# map, or that of a pool of threads
Each = Callable[[Callable[[slice], None], Iterable[slice]], Iterable[None]]


def attention(
    Q: ArrayLike,
    K: ArrayLike,
    V: ArrayLike,
    f: Any = "softmax",
    *,
    scale: float | str = "sqrt_d",
    sample_weight: ArrayLike | None = None,
) -> Any:
    """Return the attention output ``sum_j a_ij v_j``, ``a_ij`` in proportion to f(s <q_i, k_j>).

    Every query meets every key: the reference that everything faster is measured against. The
    weights ``a_ij = w_j f(s <q_i, k_j>) / sum_l w_l f(s <q_i, k_l>)`` are never stored.

    Parameters
    ----------
    Q : array (..., m, d)
        Queries.
    K : array (..., n, d)
        Keys; same leading axes as ``Q``.
    V : array (..., n, d_v)
        Values; same leading axes and rows as ``K``.
    f : "softmax", float > 0, ScoreFunction or its name
        exp; or |x|^p for a number p; or another function of `levsketch.functions`.
    scale : "sqrt_d" or float in (0, 1e100]
        s, which multiplies the products; "sqrt_d" is 1 / sqrt(d). Powers do not depend on it.
    sample_weight : array (n,) or (..., n), optional
        w, finite, >= 0, not all zero; a weight of 2 is a key that is there twice.

    Returns
    -------
    array (..., m, d_v)
        In the library of ``Q``; float32 if ``Q``, ``K`` and ``V`` have at most 32 bits, else
        float64. All arithmetic is in float64. Each entry lies between the smallest and
        the largest value of its column. Where f is zero for all keys (a power, for the zero
        query and for queries orthogonal to all keys): a row of zeros, never NaN.

    Raises
    ------
    ValueError
        For NaN or infinity (with row and column), shapes that do not match, no rows, an unknown
        f, weights that are negative or all zero, and products that overflow where f has a
        scale of its own and is not exp.

    Notes
    -----
    With u = 2**-53, a computed logit is off by at most ``e_j = (d + 2) u s sum_c |q_c k_jc|``;
    a softmax weight, relatively, by 2 max_j e_j (over keys whose weight counts) and a few u;
    one of |x|^p by 2 p times the relative error of products. Sums add a few u, at worst one for
    each key of a block and each block. So an output is within ``(2 max_j e_j + O(u))
    sum_j a_ij |v_j|``. Logits above 1 / (d u) are not known
    to within one, and of near ties one may take all; ties of products that need no rounding
    share. Logits may be of any size, also beyond float64: the largest takes all. Powers are of
    products relative to the largest one, of queries and keys scaled by powers of two. Weights
    below 2**-1074 are zero.

    2 m n (d + d_v) flops and m n exponentials; memory O(m d_v) besides the result, and blocks of
    2**18 pairs and 2**21 entries. One thread for each block of up to 256 queries; the same
    bits for any number of threads. The largest logit and sums relative to it are kept for
    each query while blocks of keys pass: Milakov and Gimelshein, arXiv 1805.02867; Rabe and
    Staats, arXiv 2112.05682.

    Examples
    --------
    >>> import levsketch as lv
    >>> K = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    >>> V = [[9.0], [0.0], [6.0]]
    >>> lv.attention([[0.0, 0.0], [1.0, 0.0], [1e300, 0.0]], K, V).round(4)
    array([[5.    ],
           [6.0209],
           [9.    ]])
    >>> lv.attention([[2.0, 1.0], [0.0, 0.0]], K, V, f=2)
    array([[7.],
           [0.]])
    >>> lv.attention([[2.0, 1.0]], K, V, f=2, sample_weight=[1, 2, 0])
    array([[6.]])
    """
    function = _checked_function(f)
    queries, keys, values = stacked("Q", Q), stacked("K", K), stacked("V", V)
    check_problems(queries, keys, values)
    d = queries.shape[-1]
    s = checked_scale(scale, d)
    weights = _checked_weights(sample_weight, keys.shape[:-1])
    narrow = all(result_dtype(X.dtype) == np.float32 for X in (queries, keys, values))
    shape = (*queries.shape[:-1], values.shape[-1])
    out = np.empty(shape, np.float32 if narrow else np.float64)
    threads = thread_count(queries.shape[-2] * keys.shape[-2] * (d + shape[-1]))
    with serial_blas(), ThreadPoolExecutor(threads) as pool:
        each: Each = pool.map if threads > 1 else map
        for i in np.ndindex(shape[:-2]):
            memory = _Memory(keys[i], values[i], weights[i])
            out[i] = _output(function, s, _finite(queries[i], "Q"), memory, each)
    return like(out, Q)


class _Extent(NamedTuple):
    """Column by column: exponents of keys (d,) and values (d_v,), and the range of values."""

    keys: IntArray
    values: IntArray
    low: FloatArray
    high: FloatArray

    @property
    def width(self) -> int:
        """How many numbers are summed: the values, and one for the normaliser."""
        return len(self.values) + 1


@dataclass(frozen=True)
class _Memory:
    """Keys (n, d), values (n, d_v) and weights (n,) of one problem, read in segments."""

    K: Any
    V: Any
    weights: FloatArray

    def segments(self) -> Iterator[tuple[FloatArray, FloatArray, FloatArray]]:
        """Return keys, values and weights that are not zero, in float64, some rows at a time."""
        step = max(1, _ENTRIES // (self.K.shape[1] + self.V.shape[1]))
        for start in range(0, len(self.K), step):
            part = slice(start, start + step)
            keys = _finite(self.K[part], "K", start)
            values = _finite(self.V[part], "V", start)
            heavy = self.weights[part] > 0
            if heavy.all():
                yield keys, values, self.weights[part]
            elif heavy.any():
                yield keys[heavy], values[heavy], self.weights[part][heavy]

    def extent(self) -> _Extent:
        """Return the extent of the rows that have a weight."""
        parts = [
            _Extent(column_exponents(K), column_exponents(V), V.min(axis=0), V.max(axis=0))
            for K, V, _ in self.segments()
        ]
        keys, values, low, high = map(np.array, zip(*parts, strict=True))
        return _Extent(keys.max(axis=0), values.max(axis=0), low.min(axis=0), high.max(axis=0))

    def lifts(self, extent: _Extent) -> tuple[int, IntArray]:
        """Return the powers of two for weights, and for columns of values (d_v,).

        As large as sums allow: what is lost are values 2**2000 times smaller than others.
        """
        least = np.where(self.weights > 0, self.weights, np.inf).min()
        top, bottom = (int(np.frexp(w)[1]) for w in (self.weights.max(), least))
        room = max(0, _LEAST_EXPONENT + top - bottom)
        room_of_values = _SUM_EXPONENT - len(self.weights).bit_length() - room
        return room - top, room_of_values - np.where(extent.values > NO_EXPONENT, extent.values, 0)

    def sums(self, extent: _Extent) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Return keys, and what is summed over them: weight times [value, 1], in range."""
        up, lift = self.lifts(extent)
        for K, V, weights in self.segments():
            summed = np.concatenate([scale_columns(V, lift), np.ones((len(V), 1))], axis=1)
            with np.errstate(under="ignore"):
                summed *= np.ldexp(weights, up)[:, None]
            yield K, summed


def _output(
    f: ScoreFunction | None, s: float, Q: FloatArray, memory: _Memory, each: Each
) -> FloatArray:
    """Return the output (m, d_v) of one problem; exp is None."""
    extent = memory.extent()
    if f is None:
        sums = _softmax_sums(s, Q, memory, extent, each)
    else:
        sums = _function_sums(f, s, Q, memory, extent, each)
    total = sums[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = sums[:, :-1] / total
    # a mean: what rounding adds beyond the values may even overflow
    mean = np.clip(scale_columns(scaled, -memory.lifts(extent)[1]), extent.low, extent.high)
    return np.where(total > 0, mean, 0.0)


def _softmax_sums(
    s: float, Q: FloatArray, memory: _Memory, extent: _Extent, each: Each
) -> FloatArray:
    """Return the sums (m, d_v + 1) for exp, of queries of any length."""
    mantissa, power = _parts(s)
    top, d = int(extent.keys.max()), Q.shape[1]
    own = column_exponents(Q.T) + power
    far = np.maximum(own, own + top + d.bit_length()) > _SAFE
    sums = np.zeros((len(Q), extent.width))
    if not far.all():
        near, weighing = scale_columns(Q[~far], np.full(d, power)), exponentials(mantissa)
        sums[~far] = _passing_sums(weighing, near, memory.sums(extent), extent, each)[1]
    if far.any():
        logits = FarLogits(Q[far], mantissa, power, top)
        sums[far] = far_sums(logits, lambda: memory.sums(extent), extent.width)
    return sums


def _function_sums(
    f: ScoreFunction, s: float, Q: FloatArray, memory: _Memory, extent: _Extent, each: Each
) -> FloatArray:
    """Return the sums (m, d_v + 1) for another f; queries of a power are scaled to length one."""
    mantissa, power = _parts(s)
    segments: Segments = memory.sums(extent)
    if f.homogeneous:
        seen = extent.keys > NO_EXPONENT  # a query's entry for a column of zeros scales no other
        e = np.where(seen, extent.keys, 0)
        queries = scaled_queries(np.where(seen, Q, 0.0), e)
        segments = ((scale_columns(K, -e), summed) for K, summed in segments)
    else:
        queries = scale_columns(Q, np.full(Q.shape[1], power))
    shift, sums = _passing_sums(_weighing(f, mantissa), queries, segments, extent, each)
    if not np.isfinite(shift).all():
        raise ValueError(
            f"<q, k> overflows for query {int(np.argmin(np.isfinite(shift)))}: f={f.name!r} has a "
            "scale of its own, so queries cannot be scaled down for it."
        )
    return sums


def _parts(s: float) -> tuple[float, int]:
    """Return m in (1/2, 1] and e with ``s = m 2**e``.

    Queries take the power of two, which is exact: what underflows changes no logit. Products
    take m, so that those that are equal, or zero, without rounding remain so.
    """
    mantissa, power = math.frexp(s)
    return (1.0, power - 1) if mantissa == 0.5 else (mantissa, power)


def _passing_sums(
    weighing: Weighing,
    Q: FloatArray,
    segments: Segments,
    extent: _Extent,
    each: Each,
) -> tuple[FloatArray, FloatArray]:
    """Return largest values (m,) and sums (m, d_v + 1) of queries, while keys pass once.

    Blocks of queries are tasks of their own, the same whatever the number of threads.
    """
    shift, sums = np.full(len(Q), weighing.least), np.zeros((len(Q), extent.width))
    step = min(_QUERIES, max(16, -(-len(Q) // 8)))
    parts = [slice(i, i + step) for i in range(0, len(Q), step)]

    def absorb(keys: FloatArray, summed: FloatArray, part: slice) -> None:
        with np.errstate(all="ignore"):  # overflow is told by the shift that it leaves
            found = softmax_sums(Q[part], keys, summed, weighing, threads=1)
            shift[part], sums[part] = combine(shift[part], sums[part], *found, weighing)

    for keys, summed in segments:
        deque(each(functools.partial(absorb, keys, summed), parts), maxlen=0)
    return shift, sums


def _weighing(f: ScoreFunction, scale: float) -> Weighing:
    """Return how products weigh by f: powers relative to the largest product, others to f there.

    A power of a large product may overflow, where that of a ratio does not.
    """

    def ratio(values: FloatArray, top: FloatArray) -> FloatArray:
        values /= np.where(top > 0, top, 1.0)
        return values

    def power(values: FloatArray, top: FloatArray) -> FloatArray:
        relative, unit = f(ratio(values, top)), float(f(1.0))
        return relative if unit == 1.0 else relative / unit

    if f.homogeneous:
        return Weighing(lambda products: np.abs(products, out=products), power, 0.0)
    return Weighing(lambda products: f(np.multiply(products, scale, out=products)), ratio, 0.0)


def _finite(X: Any, name: str, start: int = 0) -> FloatArray:
    """Return rows as C-contiguous float64; the first is number ``start`` if one is not finite."""
    with np.errstate(over="ignore"):  # a long double may be infinite in float64: found now
        wide = np.ascontiguousarray(X, np.float64)
    check_finite(wide, name=name, offset=start)
    return wide


def _checked_function(f: Any) -> ScoreFunction | None:
    """Return the function that ``f`` stands for, None for exp."""
    if not isinstance(f, bool) and isinstance(f, numbers.Real):
        return Power(check_real("f", f, low=0.0, open_low=True))
    if isinstance(f, str) and f == "softmax":
        return None
    if isinstance(f, ScoreFunction) or (isinstance(f, str) and f in REGISTRY):
        return make_function(f)
    kind = ValueError if isinstance(f, str) else TypeError
    raise kind(
        f'f must be "softmax", a number p > 0, a ScoreFunction or one of {sorted(REGISTRY)}, '
        f"got {f!r}."
    )


def _checked_weights(weights: ArrayLike | None, shape: tuple[int, ...]) -> FloatArray:
    """Return the weights of keys as float64 of ``shape`` (..., n)."""
    if weights is None:
        return np.broadcast_to(np.ones(()), shape)
    host = np.asarray(to_numpy(weights))
    host = host.astype(np.float64) if host.dtype.kind == "O" else host
    if host.dtype.kind not in "fiub":
        raise TypeError(f"sample_weight must hold real numbers, got dtype {host.dtype}.")
    if host.shape not in (shape, shape[-1:]):
        raise ValueError(
            f"sample_weight must have shape {shape[-1:]} or {shape}, one for each row of K, "
            f"got {host.shape}."
        )
    with np.errstate(over="ignore"):
        wide = np.asarray(host, np.float64)
    wrong = ~(np.isfinite(wide) & (wide >= 0))
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0])
        raise ValueError(
            f"sample_weight must be finite and >= 0, got {wide[place]} at row {int(place[-1])}."
        )
    if not (wide > 0).any(axis=-1).all():
        raise ValueError("sample_weight must not be all zero: there would be nothing to average.")
    least = np.where(wide > 0, wide, np.inf).min(axis=-1)
    if (np.frexp(wide.max(axis=-1))[1] - np.frexp(least)[1] > _WEIGHT_RANGE).any():
        raise ValueError(
            f"sample_weight must not span more than 2**{_WEIGHT_RANGE}, got {wide.max():g} and "
            f"{least.min():g}."
        )
    return np.broadcast_to(wide, shape)
