"""What is known of whiteners on a GPU, and how it comes to the host: in one copy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Whitened(NamedTuple):
    """Whiteners of a stack of Gram matrices G, and what bounds on errors need.

    Attributes
    ----------
    W : (heads, d, d) float64
        Upper triangular, ``W^T G W = I``; NaN where the factorisation broke down.
    info : (heads,) int32
        0, or the number of the first pivot that was not positive and finite.
    stats : (heads, 4) float64
        ``share = sum_a G_aa ||W_a||^2``; ``spread = sum_b (sum_a sqrt(G_aa) |W_ab|)^2``, at
        most d times the share; ``sqrt(share)``, which is ``||W||_F`` for columns of norm
        one; the smallest pivot as a part of its diagonal entry. Infinite where info is set.
    wide : (heads,) int32
        1 where info is set, the share is beyond the limit, or a square is too small.
    report : (40 heads,) uint8
        The memory of stats, info and wide, which is brought to the host at once.
    """

    W: Any
    info: Any
    stats: Any
    wide: Any
    report: Any

    @classmethod
    def empty(cls, heads: int, d: int) -> Whitened:
        """Return room on the current device."""
        import cupy as cp

        report = cp.empty(40 * heads, np.uint8)
        return cls(cp.empty((heads, d, d)), *_parts_of(report), report)


def _parts_of(report: Any) -> tuple[Any, Any, Any]:
    """Return info, stats and wide of a report, on the host or on a device."""
    heads = len(report) // 40
    info, wide = report[32 * heads : 36 * heads], report[36 * heads :]
    stats = report[: 32 * heads].view(np.float64).reshape(heads, 4)
    return info.view(np.int32), stats, wide.view(np.int32)


class Report:
    """Copy of a `Whitened`'s report on its way to the host, behind what was launched before it."""

    def __init__(self, found: Whitened) -> None:
        import cupy as cp

        size = found.report.nbytes
        self._kept = found.report, cp.cuda.alloc_pinned_memory(max(size, 1))
        self._host = np.frombuffer(self._kept[1], np.uint8, size)
        stream = cp.cuda.get_current_stream()
        found.report.data.copy_to_host_async(self._kept[1].ptr, size, stream)
        self._there = stream.record(cp.cuda.Event(disable_timing=True))

    def parts(self) -> tuple[Any, Any, Any]:
        """Return info, stats and wide on the host, once they are there."""
        self._there.synchronize()
        return _parts_of(self._host)
