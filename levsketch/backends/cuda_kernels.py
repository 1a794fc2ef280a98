"""Launches of the kernels in ``kernels``: Gram matrices, whiteners and row norms of stacks.

Rows K are (heads, n, d), columns contiguous, strides of heads and rows free: float64, float32,
float16, or bfloat16 (as that dtype or its bits in uint16). Results live on the same device and
are the same bytes each time; nothing waits for the device. Beyond 128 columns CuPy does the
work in blocks of float64. CuPy is imported on the first call.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import cuda_wide
from .cuda_report import Report, Whitened

# Columns that the kernels take.
MAX_COLUMNS = 128
# Heads with a larger share than this, in units of d, are computed in float64: 16-bit products
# with fp32 sums then err by up to 1e-5. The share is d for orthogonal columns.
FAST_SHARE = 64.0
_NULL = np.intp(0)
# What kernels call the types; bfloat16 may come as its bits.
_STORAGE = {"uint16": 0, "bfloat16": 0, "float16": 1, "float32": 2, "float64": 3}
# Threads of a block.
_NORM_THREADS = {"fast": 512, "wide": 256}
_WHITEN_THREADS = 512
# Rows that a step of the Gram kernels takes.
_CHUNK = {"fast": 64, "wide": 16}
# fp32 sums of 16-bit products lose nothing to underflow from this squared norm of a column on.
_LEAST_SQUARE = 2.0**-100
# Rows of a problem, or of a block, that one CTA takes at least, and how many CTAs share them at
# most: whatever the number of problems, so that no sum depends on what is in the same stack.
_PART, _MOST_PARTS = 2048, 240
# Parts of 16 bits whose sum is W, by storage.
_PARTS = {0: 3, 1: 2}
# What is compiled together, by the file that gives it its name.
_FILES = {
    "whiten": ("common", "whiten"),
    "gram": ("common", "rows", "gram"),
    "norms": ("common", "rows", "norms"),
}


class _Stack(NamedTuple):
    """What kernels are told of rows K (heads, n, d); ``K`` keeps them alive."""

    K: Any
    device: int
    storage: int
    heads: int
    n: int
    d: int
    head_stride: int
    row_stride: int

    @property
    def width(self) -> int:
        return 64 if self.d <= 64 else 128

    def aligned(self, group: int) -> int:
        """Return whether every ``group`` columns start at a multiple of their size, up to 16."""
        size = min(16, group * self.K.itemsize)
        strides = self.d, self.head_stride, self.row_stride
        return int(self.K.data.ptr % size == 0 and not any(s % group for s in strides))

    def arguments(self) -> tuple[Any, ...]:
        return self.K, *map(np.int64, (self.head_stride, self.row_stride, self.n))

    def launch(
        self, file: str, name: str, grid: int, threads: int, *arguments: Any, shared: int = 0
    ) -> None:
        macros = _macros(self.storage, self.width)
        kernel = _kernel(self.device, file, name, shared, *macros)
        _launch(kernel, grid, threads, *arguments, shared=shared)


def _stack(K: Any) -> _Stack:
    """Return the description of ``K``, copied only if its columns are not contiguous."""
    import cupy as cp

    if K.ndim != 3 or K.dtype.name not in _STORAGE:
        raise TypeError(f"rows (heads, n, d) of 16, 32 or 64 bits expected, got {K.dtype} {K.ndim}")
    size = K.itemsize
    if (K.shape[2] > 1 and K.strides[2] != size) or any(s % size for s in K.strides):
        K = cp.ascontiguousarray(K)
    (heads, n, d), (head_stride, row_stride) = K.shape, (s // size for s in K.strides[:2])
    storage = _STORAGE[K.dtype.name]
    return _Stack(K, K.data.device_id, storage, heads, n, d, head_stride, row_stride)


@functools.cache
def _macros(storage: int, width: int) -> tuple[str, str]:
    return f"STORAGE={storage}", f"DP={width}"


@functools.cache
def _kernel(device: int, file: str, name: str, shared: int, *macros: str) -> Any:
    """Return a kernel that may have ``shared`` bytes, compiled at first use for a device."""
    kernel = _module(device, file, *macros).get_function(name)
    if shared > 48 << 10:
        kernel.max_dynamic_shared_size_bytes = shared
    return kernel


@functools.cache
def _module(device: int, file: str, *macros: str) -> Any:
    import cupy as cp  # keeps the binary on disk

    folder = Path(__file__).with_name("kernels")
    code = "\n".join((folder / f"{f}.cu").read_text(encoding="utf-8") for f in _FILES[file])
    return cp.RawModule(code=code, options=("-std=c++17", *(f"-D{m}" for m in macros)))


def _launch(kernel: Any, grid: int, threads: int, *arguments: Any, shared: int) -> None:
    """Launch a kernel with arrays, None for a null pointer, 32-bit integers, NumPy scalars."""
    passed = [_NULL if x is None else _int32(x) if type(x) is int else x for x in arguments]
    kernel((grid,), (threads,), tuple(passed), shared_mem=shared)


@functools.lru_cache(4096)
def _int32(x: int) -> np.int32:
    return np.int32(x)


@functools.cache
def _processors(device: int) -> int:
    import cupy as cp

    return int(cp.cuda.Device(device).attributes["MultiProcessorCount"])


def _on(x: Any) -> Any:
    """Return a context in which the device of ``x`` is the current one."""
    import cupy as cp

    # entering a device costs as much as a launch
    current = cp.cuda.runtime.getDevice() == x.data.device_id
    return contextlib.nullcontext() if current else x.device


def _contiguous(x: Any, dtype: Any) -> Any:
    import cupy as cp

    if x is None or (x.dtype == dtype and x.flags.c_contiguous):
        return x
    return cp.ascontiguousarray(x, dtype=dtype)


def gram(K: Any, scale: Any = None, *, wide: Any = None, out: Any = None) -> Any:
    """Return the Gram matrices ``K^T K`` of each head, (heads, d, d) float64.

    Parameters
    ----------
    K : (heads, n, d) array
    scale : (heads, n) array, optional
        Row j is first multiplied by ``scale[j]``; all is in float64 then.
    wide : True or (heads,) int32 array, optional
        True for float64 products and sums of 16-bit rows, too. An array: these, and only for
        the heads that it does not name 0; ``out`` keeps the others.
    out : (heads, d, d) float64 array, optional

    Returns
    -------
    (heads, d, d) float64 array
        A NaN, an infinity or a square beyond float32's range (16-bit rows) leaves a diagonal
        that is not finite, in its own head only.
    """
    heads, n, d = K.shape
    result = None if out is None else out[:, None]
    return block_grams(K, max(n, 1), scale, wide=wide, out=result).reshape(heads, d, d)


def block_grams(K: Any, block: int, scale: Any = None, *, wide: Any = None, out: Any = None) -> Any:
    """Return the Gram matrices (heads, ceil(n / block), d, d) of consecutive row blocks.

    Parameters as in `gram`, which is one block (all zero for n = 0, where this has none).
    """
    import cupy as cp

    heads, n, d = K.shape
    blocks = max(-(-n // block), 1 if block >= n else 0)
    with _on(K):
        if out is None:
            out = cp.zeros((heads, blocks, d, d)) if n == 0 else cp.empty((heads, blocks, d, d))
        if n == 0 or d == 0 or heads == 0:
            out[...] = 0.0
            return out
        scale = _contiguous(scale, np.float64)
        chosen = None if wide is True else wide
        if d > MAX_COLUMNS:
            return cuda_wide.grams(K, block, scale, chosen, out)
        stack = _stack(K)
        path = "fast" if stack.storage < 2 and wide is None and scale is None else "wide"
        _launch_gram(stack, path, scale, _contiguous(chosen, np.int32), block, out)
    return out


def _launch_gram(stack: _Stack, path: str, scale: Any, chosen: Any, block: int, out: Any) -> None:
    import cupy as cp

    heads, blocks, d, _ = out.shape
    width, panels, chunk = stack.width, stack.width // 16, _CHUNK[path]
    splits = min(-(-min(block, stack.n) // _PART), _MOST_PARTS)
    grid = heads * blocks * splits
    size = panels * (panels + 1) * 128  # of the upper triangle, in tiles
    partial = cp.empty(grid * size)
    ranges = np.int64(block), blocks, splits
    rows, threads = stack.arguments(), 2 * width
    if path == "fast":
        shared = 4 * chunk * width * 2
        arguments = (*rows, d, stack.aligned(8), *ranges, partial)
    else:
        shared = 2 * chunk * (width + 4) * 8
        arguments = (*rows, d, stack.aligned(4), scale, *ranges, chosen, partial)
    stack.launch("gram", f"gram_{path}", grid, threads, *arguments, shared=shared)
    pieces = heads * blocks * (size // 256)
    stack.launch("gram", "gram_sum", pieces, 256, partial, out, d, blocks, splits, chosen)


def whiten(
    G: Any,
    *,
    limit: float | None = None,
    least_square: float = 0.0,
    selected: Any = None,
    into: Whitened | None = None,
) -> Whitened:
    """Return upper triangular W with ``W^T G W = I`` for each Gram matrix of a stack.

    Parameters
    ----------
    G : (heads, d, d) float64 array
        Symmetric; the upper triangles are read.
    limit : float, optional
        Share beyond which a head is marked as wide; `FAST_SHARE` times d unless given.
    least_square : float
        A head with a smaller number on its diagonal is marked, too.
    selected : (heads,) int32 array, optional
        Heads named 0 are left as ``into`` has them, and ``into.wide`` stays as it is.
    into : Whitened, optional
        Where to write.
    """
    heads, d, _ = G.shape
    limit = FAST_SHARE * d if limit is None else limit
    with _on(G):
        G = _contiguous(G, np.float64)
        marked = into is None or selected is None
        into = Whitened.empty(heads, d) if into is None else into
        if d == 0 or heads == 0:
            for part in into:
                part[...] = 0
            return into
        if d > MAX_COLUMNS:
            cuda_wide.whiten(G, limit, least_square, selected, into)
            return into
        selected = _contiguous(selected, np.int32)
        # for any d: what a kernel may have belongs to it, and not to a launch
        shared = 8 * (MAX_COLUMNS * (MAX_COLUMNS + 4) + 5 * MAX_COLUMNS)
        kernel = _kernel(G.data.device_id, "whiten", "whiten", shared)
        limits = np.float64(limit), np.float64(least_square)
        wide = into.wide if marked else None
        arguments = G, into.W, d, into.info, into.stats, *limits, wide, selected
        _launch(kernel, heads, _WHITEN_THREADS, *arguments, shared=shared)
    return into


def row_norms(
    K: Any, W: Any, *, triangular: bool = False, wide: Any = None, out: Any = None
) -> Any:
    """Return ``||k_j W_h||^2`` of every row, (heads, n).

    Parameters
    ----------
    K : (heads, n, d) array
    W : (heads, d, c) float64 array
    triangular : bool
        W is upper triangular: the zeros are skipped.
    wide : True or (heads,) int32 array, optional
        Heads of 16-bit rows whose products are in float64; by default none.
    out : (heads, n) array, optional

    Returns
    -------
    (heads, n) array
        float64 for float64 rows, else float32. Infinite where infinities cancel or the row
        has a NaN: nothing is known of it.
    """
    import cupy as cp

    heads, n, d = K.shape
    dtype = np.float64 if K.dtype == np.float64 else np.float32
    with _on(K):
        out = cp.empty((heads, n), dtype=dtype) if out is None else out
        if n == 0 or heads == 0 or 0 in W.shape:
            out[...] = 0
            return out
        W = _contiguous(W, np.float64)
        if d > MAX_COLUMNS:
            return cuda_wide.row_norms(K, W, out)
        stack = _stack(K)
        if W.shape[2] > stack.width:  # kernels pad both sides of W to one width
            return cuda_wide.row_norms(K, W, out)
        chosen = None if wide is True else _contiguous(wide, np.int32)
        fast = stack.storage < 2 and wide is not True
        if fast:
            _launch_norms_fast(stack, W, triangular, chosen, out)
        if not fast or chosen is not None:
            _launch_norms_wide(stack, W, triangular, chosen if fast else None, out)
    return out


def _launch_norms_fast(stack: _Stack, W: Any, triangular: bool, chosen: Any, out: Any) -> None:
    import cupy as cp

    heads, d, c = W.shape
    width, size = stack.width, _PARTS[stack.storage] * stack.width**2
    parts, scales = cp.empty((heads, size), np.uint16), cp.empty((heads, width), np.float32)
    stack.launch("norms", "split_whitener", heads * (width // 32), 256, W, d, c, parts, scales)
    threads = _NORM_THREADS["fast"]
    shared = 2 * size + 4 * width + 2 * threads * width  # W, scales, a row for each thread
    arguments = *stack.arguments(), heads, d, stack.aligned(8), parts, scales, chosen, out
    name = "norms_fast_upper" if triangular else "norms_fast_full"
    stack.launch("norms", name, _processors(stack.device), threads, *arguments, shared=shared)


def _launch_norms_wide(stack: _Stack, W: Any, triangular: bool, chosen: Any, out: Any) -> None:
    heads, d, c = W.shape
    shared = 8 * stack.width * (stack.width + 1)
    arguments = *stack.arguments(), heads, d, c, stack.aligned(4), W, chosen, out
    name = "norms_wide_upper" if triangular else "norms_wide_full"
    threads = _NORM_THREADS["wide"]
    stack.launch("norms", name, _processors(stack.device), threads, *arguments, shared=shared)


def leverage(K: Any, *, ridge: float = 0.0, wide: bool = False) -> tuple[Any, Report]:
    """Return the scores (heads, n) of all rows, and the report of the whiteners that gave them.

    ``ridge`` is added to the diagonal of each Gram matrix. 16-bit rows are computed in fp32
    sums unless ``wide``; the report then names the heads to which that is not good enough, for
    their share or for columns whose squares fp32 could lose. Nothing here waits for the device;
    the report comes while it computes the norms. Scores are infinite in heads whose
    factorisation broke down.
    """
    with _on(K):
        fast = K.dtype.itemsize == 2 and K.shape[2] <= MAX_COLUMNS and not wide
        G = gram(K, wide=True if wide else None)
        if ridge:
            places = np.arange(G.shape[1])
            G[:, places, places] += ridge
        found = whiten(G, least_square=_LEAST_SQUARE if fast else 0.0)
        report = Report(found)
        return row_norms(K, found.W, triangular=True, wide=True if wide else None), report
