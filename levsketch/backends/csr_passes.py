"""The operations of the CPU backend over sparse rows: by their nonzeros where these are few.

A block or row that is not sparse is widened and goes to the dense kernels, a few at a time. Which
way it goes depends on its own numbers alone, never on what came with it.

Rounding is as `levsketch.linalg` assumes of any kernel: a Gram matrix is off by at most
``gamma_n |K|^T |K|`` for n rows (weights rounded first), an entry of ``k W`` by at most
``gamma_d |k| |W|``, for sums of fewer terms in a fixed order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

import levsketch._kernels.blocks as blocks
import levsketch._kernels.sparse as sparse
from levsketch._typing import FloatArray, IntArray

from .csr import CsrRows

# Shares of the columns up to which products of nonzeros, scattered over a Gram matrix, and sums of
# rows of W take less time than the dense kernels: measured (benchmarks/csr_table.py).
_GRAM_SHARE = 0.25
_NORM_SHARE = 0.4
# Multiplications between two looks for signals: 20 to 50 ms on one core.
_WORK = 1 << 28
# Numbers of rows that are widened at a time, where rows are alone.
_WIDE = 1 << 20

Threads = Callable[[float], int]


def block_grams(
    dense: Callable[..., FloatArray],
    K: CsrRows,
    block: int,
    scale: FloatArray | None,
    threads: Threads,
) -> FloatArray:
    """Return the Gram matrices (ceil(n / block), d, d) of consecutive row blocks."""
    n, d = K.shape
    out = np.empty((-(-n // block), d, d))
    squares = np.concatenate([[0.0], np.cumsum(np.square(K.lengths.astype(np.float64)))])
    edges = np.minimum(np.arange(len(out) + 1) * block, n)
    # pairs of nonzeros over those of full rows: whole numbers below 2**53, so exact
    few = np.diff(squares[edges]) <= (_GRAM_SHARE * d) ** 2 * np.diff(edges)
    which = np.flatnonzero(few)
    if len(which):
        factors = np.empty(0) if scale is None else np.ascontiguousarray(scale)
        count = threads(squares[-1] + float(len(which)) * d * d)
        sparse.block_grams(
            K.values, K.columns, K.start, factors, which, block, out, blocks.tiles_name(), count
        )
    for part, at in _widened_blocks(K, block, np.flatnonzero(~few), threads):
        rows = slice(at[0] * block, at[0] * block + len(part))
        out[at] = dense(part, block, None if scale is None else scale[rows])
    return out


def whitened_row_norms(
    dense: Callable[..., FloatArray],
    K: CsrRows,
    W: FloatArray,
    triangular: bool,
    threads: Threads,
) -> FloatArray:
    """Return ``||k_j W||^2`` for every row, shape (n,)."""
    (n, d), c = K.shape, W.shape[1]
    out = np.empty(n)
    W = np.ascontiguousarray(W)
    most = int(_NORM_SHARE * d)
    cuts = K.cuts(max(1, _WORK // c))
    for first, last in itertools.pairwise(cuts):
        part = K[first:last]
        count = threads(float(part.start[-1] - part.start[0]) * c)
        sparse.whitened_row_norms(
            part.values,
            part.columns,
            part.start,
            W,
            triangular,
            most,
            out[first:last],
            blocks.tiles_name(),
            count,
        )
    full = np.flatnonzero(K.lengths > most)
    step = max(1, _WIDE // d)
    for i in range(0, len(full), step):
        taken = full[i : i + step]
        out[taken] = dense(K[taken].widened(), W, triangular=triangular)
    return out


def by_widened_blocks(
    dense: Callable[[FloatArray, FloatArray | None], FloatArray],
    K: CsrRows,
    block: int,
    scale: FloatArray | None,
    threads: Threads,
) -> FloatArray:
    """Return what ``dense(rows, scale)`` finds for blocks, as many at a time as threads."""
    found = []
    for part, at in _widened_blocks(K, block, np.arange(-(-len(K) // block)), threads):
        rows = slice(at[0] * block, at[0] * block + len(part))
        found.append(dense(part, None if scale is None else scale[rows]))
    return np.concatenate(found)


def _widened_blocks(
    K: CsrRows, block: int, which: IntArray, threads: Threads
) -> Iterator[tuple[FloatArray, IntArray]]:
    """Yield runs of the blocks ``which``, widened, and their numbers."""
    if not len(which):
        return
    most = threads(np.inf)
    runs = np.split(which, np.flatnonzero(np.diff(which) > 1) + 1)
    for run in runs:
        for i in range(0, len(run), most):
            at = run[i : i + most]
            yield K[at[0] * block : (at[-1] + 1) * block].widened(), at
