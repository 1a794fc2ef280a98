"""Rows on a GPU: passes over them in CUDA kernels, what comes back on the host.

Algorithms, streams and estimators are the same as on the CPU: what they get from a pass is small
(d x d), or one number a row. Only `leverage_scores` of whole stacks has a way of its own, on the
device from end to end, with a certificate for each problem.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from levsketch._typing import BoolArray, FloatArray, Rows

from . import cuda_kernels as kernels
from .cpu import CpuBackend
from .cuda_report import Report
from .device import DeviceRows, cupy
from .transfers import to_device

# Relative errors of whitened norms up to which scores are taken as they come from the device, as
# proved bounds; what is seen is a thousand times less.
_ERROR = 0.05
_U, _U32 = 2.0**-53, 2.0**-24
# One step of a tensor core with fp32 sums is off by this share of the sum of magnitudes, as
# probed on Hopper; twice as much is reported for the chips before (the model is in
# kernels/common.cu).
_STEP = {True: 5 * 2.0**-23, False: 10 * 2.0**-23}


class CudaBackend(CpuBackend):
    """Passes over rows on a GPU, or that are moved there run by run; d x d work on the host.

    Every result is the same bytes each time. Sums are in float64 for every type of rows in
    streams and factors, so that the guards of `levsketch.linalg` hold as they are.
    """

    name = "cuda"

    def rows(self, X: Any) -> Any:
        """Return rows on a GPU as they are, others on the current device."""
        return X if isinstance(X, DeviceRows) else _moved(super().rows(X))

    def block_grams(self, K: Rows, block: int, scale: FloatArray | None = None) -> FloatArray:
        """Return the Gram matrices (ceil(n / block), d, d) of consecutive row blocks."""

        def part(rows: DeviceRows, weights: FloatArray | None) -> FloatArray:
            factors = None if weights is None else cupy().asarray(weights)[None]
            found = kernels.block_grams(rows.array[None], block, factors, wide=True)
            return np.asarray(found[0].get())

        return _in_parts(part, K, scale, block)

    def column_squares(self, K: Rows, block: int, scale: FloatArray | None = None) -> FloatArray:
        """Return the diagonals (ceil(n / block), d) of ``block_grams``, to the bit."""
        return np.ascontiguousarray(
            np.diagonal(self.block_grams(K, block, scale), axis1=1, axis2=2)
        )

    def whitened_row_norms(self, K: Rows, W: FloatArray, *, triangular: bool = False) -> FloatArray:
        """Return ``||k_j W||^2`` for every row."""
        if not (len(K) and W.shape[1]):
            return np.zeros(len(K))

        def part(rows: DeviceRows, _: Any) -> FloatArray:
            device_W = cupy().asarray(W)[None]
            found = kernels.row_norms(rows.wide()[None], device_W, triangular=triangular)
            return np.asarray(found[0].get())

        return _in_parts(part, K, None, 1)

    def screened_row_norms(self, K: Rows, M: FloatArray, rest: FloatArray) -> FloatArray:
        """Return ``||k_j M||^2 + sum_i (rest_i k_ji)^2`` for every row."""

        def part(rows: DeviceRows, _: Any) -> FloatArray:
            cp = cupy()
            Z = rows.wide() * cp.asarray(rest)
            found = (Z * Z).sum(axis=1)
            return np.asarray(cp.where(cp.isnan(found), np.inf, found).get())

        return self.whitened_row_norms(K, M) + _in_parts(part, K, None, 1)

    def whitened_block_grams(
        self,
        K: Rows,
        W: FloatArray,
        block: int,
        scale: FloatArray | None = None,
        *,
        triangular: bool = False,
    ) -> FloatArray:
        """Return the Gram matrices (ceil(n / block), c, c) of the rows of ``K W`` by blocks."""

        def part(rows: DeviceRows, weights: FloatArray | None) -> FloatArray:
            cp = cupy()
            Z = rows.wide() @ cp.asarray(W)
            factors = None if weights is None else cp.asarray(weights)[None]
            return np.asarray(kernels.block_grams(Z[None], block, factors, wide=True)[0].get())

        return _in_parts(part, K, scale, block)

    def qr_blocks(self, K: Rows, block: int) -> FloatArray:
        """Return R factors (ceil(n / block), d, d), on the host, where one QR is faster."""
        return super().qr_blocks(np.asarray(K), block)

    def scores_at_once(self, K: Any, ridge: float, intercept: bool) -> tuple[Any, list[Any]]:
        """Return scores (..., n) on the device, and the problems that need a closer look.

        Gram matrices, whiteners and norms of all problems in a few launches; 16-bit rows on
        tensor cores with fp32 sums where their bound allows, others in float64. One look from
        the host, while norms are computed: a few numbers a problem, which make the certificate.
        """
        if not isinstance(K, DeviceRows) or intercept or K.shape[-1] > kernels.MAX_COLUMNS:
            return super().scores_at_once(K, ridge, intercept)
        cp = cupy()
        lead, (n, d) = K.shape[:-2], K.shape[-2:]
        with K.array.device:
            stack = K.array.reshape(-1, n, d)
            narrow = stack.dtype.itemsize == 2
            try:
                scores, report = kernels.leverage(stack, ridge=ridge)
                bounds, wide = error_bounds(K, report, fast=narrow)
                for h in np.flatnonzero(wide & narrow).tolist():
                    scores[h : h + 1], report = kernels.leverage(
                        stack[h : h + 1], ridge=ridge, wide=True
                    )
                    bounds[h] = error_bounds(K, report, fast=False)[0][0]
                cp.minimum(scores, 1.0, out=scores)
            except cp.cuda.memory.OutOfMemoryError:
                _free()
                return super().scores_at_once(K, ridge, intercept)
            scores = scores.astype(K.dtype, copy=False).reshape(*lead, n)
        left = np.flatnonzero(~(bounds <= _ERROR)).tolist()
        return scores, [tuple(int(i) for i in np.unravel_index(h, lead)) for h in left]


def error_bounds(K: DeviceRows, report: Report, *, fast: bool) -> tuple[FloatArray, BoolArray]:
    """Return bounds (heads,) on the relative error of whitened norms, and which heads want float64.

    Infinite if there is none.

    With the share and the spread of `cuda_report.Whitened`, and gamma and g of the path that a
    problem took: ``gamma spread`` from the Gram matrix, ``(3 d + 30) u d share`` from its factor
    and the inverse, ``g sqrt(d share)`` from the product, and the rounding of its squares. The
    error model and its proof are at the top of kernels/common.cu.
    """
    n, d = K.shape[-2:]
    info, stats, wide = report.parts()
    step, width = _STEP[_is_hopper(K.array.data.device_id)], 64 if d <= 64 else 128
    share, spread = stats[:, 0], stats[:, 1]
    gamma = (4 * step if fast else 0.0) + (n + 2) * _U
    g = (width / 16 + 2) * step if fast else (d + 1) * _U
    squares = (d / 8 + 8) * (_U32 if fast else _U) + (_U32 if K.dtype == np.float32 else 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        bound = gamma * spread + (3 * d + 30) * _U * d * share + g * np.sqrt(d * share) + squares
    return np.where((info == 0) & np.isfinite(bound), bound, np.inf), wide != 0


@functools.cache
def _is_hopper(device: int) -> bool:
    return int(cupy().cuda.Device(device).compute_capability) >= 90


def _in_parts(
    work: Callable[[DeviceRows, Any], FloatArray], K: Rows, scale: Any, block: int
) -> FloatArray:
    """Return what ``work`` finds for rows, moved to the device if they are not there.

    Where memory does not suffice, for halves of them: whole blocks.

    Raises
    ------
    MemoryError
        If one block is too large, with its bytes.
    """
    cp = cupy()
    home = K.array.device if isinstance(K, DeviceRows) else cp.cuda.Device()
    try:
        with home, np.errstate(over="ignore", invalid="ignore"):
            return work(K if isinstance(K, DeviceRows) else _moved(K), scale)
    except cp.cuda.memory.OutOfMemoryError as error:
        _free()
        half = -(-len(K) // (2 * block)) * block
        if half >= len(K):
            size = 8 * len(K) * K.shape[1]
            raise MemoryError(f"{size} bytes for {len(K)} rows do not fit on the GPU.") from error
    parts = [(K[:half], None if scale is None else scale[:half])]
    parts.append((K[half:], None if scale is None else scale[half:]))
    return np.concatenate([_in_parts(work, rows, weights, block) for rows, weights in parts])


def _moved(K: Any) -> DeviceRows:
    """Return host rows of any form on the current device."""
    bits = getattr(K, "bits", None)
    return DeviceRows(to_device(np.asarray(K) if bits is None else bits))


def _free() -> None:
    """Return to the device what CuPy keeps for later."""
    cupy().get_default_memory_pool().free_all_blocks()
