"""Gram matrices, whiteners and row norms of rows of any width, by CuPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

# Rows that are widened at a time.
_ROWS = 8192


def _wide_block(K: Any, head: int, start: int, stop: int) -> Any:
    """Return rows of one head in float64."""
    rows = K[head, start:stop]
    if rows.dtype.name in ("bfloat16", "uint16"):
        bits = rows.view(np.uint16).astype(np.uint32) << 16
        rows = bits.view(np.float32)
    return rows.astype(np.float64)


def grams(K: Any, block: int, scale: Any, chosen: Any, out: Any) -> Any:
    """Write the Gram matrices of rows of any width, by matrix products of CuPy."""
    import cupy as cp

    heads, n, _ = K.shape
    for head in range(heads):
        for b in range(out.shape[1]):
            stop, total = min(n, (b + 1) * block), cp.zeros(out.shape[2:])
            for start in range(b * block, stop, _ROWS):
                end = min(start + _ROWS, stop)
                rows = _wide_block(K, head, start, end)
                rows = rows if scale is None else rows * scale[head, start:end, None]
                total += rows.T @ rows
            total = cp.triu(total) + cp.triu(total, 1).T
            keep = total if chosen is None else cp.where(chosen[head], total, out[head, b])
            out[head, b] = keep
    return out


def whiten(G: Any, limit: float, least_square: float, selected: Any, into: Any) -> None:
    """Write whiteners of any width; a factor that is not one of G shows in the residual."""
    import cupy as cp

    d = G.shape[1]
    squares = cp.diagonal(G, axis1=1, axis2=2)
    usable = (squares > 0) & cp.isfinite(squares)
    down = cp.ldexp(1.0, -cp.frexp(cp.sqrt(cp.where(usable, squares, 1.0)))[1])
    scaled = G * down[:, :, None] * down[:, None, :]
    usable &= cp.isfinite(scaled).all(axis=2)
    fine = usable.all(axis=1)[:, None, None]
    L = cp.tril(cp.linalg.cholesky(cp.where(fine, scaled, cp.eye(d))))
    off = abs(L @ L.transpose(0, 2, 1) - scaled).max(axis=(1, 2))
    pivots = cp.diagonal(L, axis1=1, axis2=2)
    fine = fine[:, 0, 0] & (off < 4 * d * 2.0**-53) & (pivots > 0).all(axis=1)
    safe = cp.where(fine[:, None, None], L, cp.eye(d))
    X = cp.tril(cp.linalg.inv(safe))
    lengths = cp.sqrt(cp.diagonal(scaled, axis1=1, axis2=2))
    share = ((X * lengths[:, None, :]) ** 2).sum(axis=(1, 2))
    spread = (abs(X * lengths[:, None, :]).sum(axis=2) ** 2).sum(axis=1)
    least = (pivots**2 / lengths**2).min(axis=1)
    W = cp.where(fine[:, None, None], X.transpose(0, 2, 1) * down[:, :, None], cp.nan)
    stats = cp.stack([share, spread, cp.sqrt(share), least], axis=1)
    stats[:, :3] = cp.where(fine[:, None], stats[:, :3], cp.inf)
    new = cp.ones(len(G), dtype=bool) if selected is None else selected != 0
    into.W[...] = cp.where(new[:, None, None], W, into.W)
    into.info[...] = cp.where(new, cp.where(fine, 0, d), into.info)
    into.stats[...] = cp.where(new[:, None], stats, into.stats)
    if selected is None:
        into.wide[...] = ~(fine & (share <= limit) & (squares >= least_square).all(axis=1))


def row_norms(K: Any, W: Any, out: Any) -> Any:
    """Write the row norms of rows of any width, by matrix products of CuPy."""
    import cupy as cp

    heads, n, _ = K.shape
    for head in range(heads):
        for start in range(0, n, _ROWS):
            Z = _wide_block(K, head, start, min(n, start + _ROWS)) @ W[head]
            norms = (Z * Z).sum(axis=1)
            out[head, start : start + len(Z)] = cp.where(cp.isnan(norms), cp.inf, norms)
    return out
