"""Rows in host memory: NumPy arrays, read by the compiled kernels."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import threadpoolctl
from joblib import cpu_count
from threadpoolctl import ThreadpoolController

import levsketch._kernels.blocks as blocks
from levsketch._typing import BoolArray, FloatArray, Rows

from . import csr_passes
from .base import Backend
from .csr import CsrRows
from .device import DeviceRows
from .stored import Bfloat16Rows, StoredRows

# Below this many multiplications, a quarter of a millisecond, a parallel region may cost more than
# it saves: where other processes hold a core, its threads wait for a time slice.
_SERIAL_WORK = 1 << 24
_forked = False


def _after_fork() -> None:
    # libgomp hangs in a forked child whose parent had already used threads
    global _forked, _serial
    _forked = True
    _serial = _SerialBlas()  # another thread may have held the lock of the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _threadpools() -> ThreadpoolController:
    # made once: looking for the loaded libraries costs more than a small call
    return ThreadpoolController()


@functools.cache
def _cpus() -> int:
    # what this process may use, control groups included; looking takes 0.1 ms
    return int(cpu_count())


class _SerialBlas:
    """How many contexts want BLAS serial: the first one in limits it, the last one out restores."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.limit: Any = None


_serial = _SerialBlas()


def _take_control() -> None:
    """Let this thread set limits: since threadpoolctl 3.8 only the first one that did may."""
    release = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)


@contextlib.contextmanager
def serial_blas() -> Iterator[None]:
    """Return a context in which BLAS runs on one thread, also when several threads are in one.

    Small matrices gain nothing from more, BLAS bits change with its thread
    count, and threaded BLAS inside our own loops is several times slower.
    """
    with _serial.lock:
        if _serial.depth == 0:
            _take_control()
            _serial.limit = _threadpools().limit(limits=1, user_api="blas")
        _serial.depth += 1
    try:
        yield
    finally:
        with _serial.lock:
            _serial.depth -= 1
            if _serial.depth == 0:
                _take_control()
                _serial.limit.restore_original_limits()
                _take_control()


def thread_count(work: float = np.inf) -> int:
    """Return how many threads a parallel loop over ``work`` multiplications gets.

    Follows OMP_NUM_THREADS and threadpoolctl as scikit-learn does; 1 after a fork.
    """
    if _forked or work < _SERIAL_WORK:
        return 1
    limit = int(blocks.max_threads())
    if os.environ.get("OMP_NUM_THREADS"):
        return max(1, limit)
    return max(1, min(limit, _cpus()))


def use_instruction_set(name: str) -> None:
    """Run the kernels on the named instruction set ("" = the best that this processor has)."""
    if not blocks.select_tiles(name):
        raise ImportError(
            f"LEVSKETCH_SIMD={name!r} is unknown or this processor lacks it; "
            "known are baseline, avx2 and avx512."
        )


use_instruction_set(os.environ.get("LEVSKETCH_SIMD", ""))


def _stored(K: Rows | Bfloat16Rows) -> Rows:
    """Return rows as kernels take them: an array, in which uint16 stands for bfloat16."""
    return K.bits if isinstance(K, Bfloat16Rows) else K


class CpuBackend(Backend):
    """Compiled row passes over NumPy arrays; results do not depend on the thread count."""

    name = "cpu"

    def rows(self, X: Any) -> Any:
        """Return ``X`` as C-contiguous, aligned, native rows of a type that kernels read.

        These are float16, bfloat16, float32 and float64; every other type becomes float64.
        A matching array, or rows stored in a form that kernels read, are passed on without a
        copy.
        """
        if isinstance(X, Bfloat16Rows):
            bits = np.require(X.bits, requirements=["C", "A"])
            return X if bits is X.bits else Bfloat16Rows(bits)
        if isinstance(X, DeviceRows):
            return X.on_host()
        if isinstance(X, StoredRows):
            return X
        dtype = X.dtype.type if X.dtype.type in (np.float16, np.float32) else np.float64
        with np.errstate(over="ignore"):  # a long double may be infinite in float64: found later
            return np.require(X, dtype=dtype, requirements=["C", "A"])

    def block_grams(self, K: Rows, block: int, scale: FloatArray | None = None) -> FloatArray:
        """Return the Gram matrices (ceil(n / block), d, d) of consecutive row blocks."""
        if isinstance(K, CsrRows):
            return csr_passes.block_grams(self.block_grams, K, block, scale, thread_count)
        n, d = K.shape
        out = np.empty((-(-n // block), d, d))
        factors = np.empty(0) if scale is None else np.ascontiguousarray(scale)
        blocks.block_grams(_stored(K), factors, block, out, thread_count(n * d * d))
        return out

    def whitened_row_norms(self, K: Rows, W: FloatArray, *, triangular: bool = False) -> FloatArray:
        """Return ``||k_j W||^2`` for every row, without an n x c temporary."""
        n, d = K.shape
        out = np.empty(n)  # its pages are first touched by the threads that fill them
        if not (n and W.shape[1]):
            out[:] = 0.0
        elif isinstance(K, CsrRows):
            return csr_passes.whitened_row_norms(
                self.whitened_row_norms, K, W, triangular, thread_count
            )
        else:
            work = n * d * W.shape[1]
            blocks.whitened_row_norms(
                _stored(K), np.ascontiguousarray(W), triangular, out, thread_count(work)
            )
        return out

    def column_squares(self, K: Rows, block: int, scale: FloatArray | None = None) -> FloatArray:
        """Return the diagonals (ceil(n / block), d) of ``block_grams``, to the bit."""
        if isinstance(K, CsrRows):
            return np.asarray(super().column_squares(K, block, scale))
        n, d = K.shape
        out = np.empty((-(-n // block), d))
        factors = np.empty(0) if scale is None else np.ascontiguousarray(scale)
        blocks.column_squares(_stored(K), factors, block, out, thread_count(n * d))
        return out

    def screened_row_norms(self, K: Rows, M: FloatArray, rest: FloatArray) -> FloatArray:
        """Return ``||k_j M||^2 + sum_i (rest_i k_ji)^2`` for every row."""
        out = self.whitened_row_norms(K, M)
        if isinstance(K, CsrRows):
            return out + K.row_squares(rest)
        if len(K):
            blocks.add_row_squares(_stored(K), rest, out, thread_count(K.shape[0] * K.shape[1]))
        return out

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
        if isinstance(K, CsrRows):
            return csr_passes.by_widened_blocks(
                lambda rows, part: self.whitened_block_grams(
                    rows, W, block, part, triangular=triangular
                ),
                K,
                block,
                scale,
                thread_count,
            )
        n, (d, c) = len(K), W.shape
        out = np.empty((-(-n // block), c, c))
        factors = np.empty(0) if scale is None else np.ascontiguousarray(scale)
        threads = thread_count(2 * n * d * c)
        wide = np.ascontiguousarray(W)
        blocks.whitened_block_grams(_stored(K), factors, wide, triangular, block, out, threads)
        return out

    def qr_blocks(self, K: Rows, block: int) -> FloatArray:
        """Return R factors (ceil(n / block), d, d), by LAPACK inside a loop over blocks."""
        if isinstance(K, CsrRows):
            return csr_passes.by_widened_blocks(
                lambda rows, _: self.qr_blocks(rows, block), K, block, None, thread_count
            )
        n, d = K.shape
        out = np.empty((-(-n // block), d, d))
        wide = np.ascontiguousarray(K, dtype=np.float64)
        with serial_blas():
            blocks.qr_blocks(wide, block, out, thread_count(n * d * d))
        return out

    def qr_pairs(self, R: FloatArray) -> FloatArray:
        """Return the R factors (m, d, d) of upper triangles R[0] on R[1], R[2] on R[3], ..."""
        count, d = len(R) // 2, R.shape[-1]
        out = np.empty((count, d, d))
        with serial_blas():
            blocks.qr_pairs(np.ascontiguousarray(R), out, thread_count(count * d**3))
        return out

    def roots_times(self, H: FloatArray, R: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Return ``C R`` (m, d, d) for H[b] = C^T C, and for which b there is such a C."""
        count, d = len(H), R.shape[-1]
        out, found = np.empty((count, d, d)), np.empty(count, np.uint8)
        H, R = np.ascontiguousarray(H), np.ascontiguousarray(R)
        with serial_blas():
            blocks.roots_times(H, R, out, found, thread_count(count * d**3))
        return out, found.view(np.bool_)
