"""Streams that decide at fixed block boundaries, whatever batches their rows come in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from levsketch._checks import check_finite, check_row_count
from levsketch._typing import FloatArray, Rows
from levsketch.backends import Backend
from levsketch.backends.cpu import serial_blas


@dataclass(frozen=True, eq=False)
class BlockStream:
    """The rows of a stream that do not fill a block yet; subclasses remember the others.

    Attributes
    ----------
    n_seen : int
    dtype : str
        Name of the dtype in which selected keys are given back.
    pending : (m, d) float64 array
        The last rows, fewer than a block.
    """

    n_seen: int
    dtype: str
    pending: FloatArray

    @property
    def block_rows(self) -> int:
        """Rows in a block."""
        raise AssertionError("a subclass defines block_rows")

    def run_length(self) -> int:
        """Return how many blocks may be consumed together."""
        raise AssertionError("a subclass defines run_length")

    def _rows(self, backend: Backend, X: Rows, offset: int) -> Rows:
        """Return rows as the kernels read them."""
        rows: Rows = backend.rows(X)
        return rows

    def _consume(self, backend: Backend, rows: Rows, offset: int) -> Self:
        """Return the state after one or more of the whole blocks ``rows``; none are pending."""
        raise AssertionError("a subclass defines _consume")

    def update(self, backend: Backend, X: Rows) -> Self:
        """Return the state after the rows of ``X`` (n, n_features), any real dtype.

        The same state, byte for byte, for the same rows in any batches. Raises
        ValueError for NaN or infinity, naming row and column of ``X``.
        """
        n = len(X)
        check_row_count(self.n_seen, n)
        if n == 0:
            return self
        dtype = X.dtype if self.dtype == "" else np.result_type(X.dtype, self.dtype)
        block = self.block_rows
        state, done = self, 0
        with serial_blas():
            if len(self.pending):
                done = min(n, block - len(self.pending))
                head = self._rows(backend, X[:done], 0)
                check_finite(head)
                rows = np.concatenate([self.pending, head])
                state = replace(state, n_seen=self.n_seen + done, pending=rows)
                if len(rows) == block:
                    empty = replace(state, n_seen=state.n_seen - block, pending=rows[:0])
                    state = empty._consume(backend, rows, 0)
            while n - done >= block:
                count = min((n - done) // block, state.run_length())
                rows = self._rows(backend, X[done : done + count * block], done)
                state = state._consume(backend, rows, done)
                done = state.n_seen - self.n_seen
            if done < n:
                tail = self._rows(backend, X[done:], done)
                check_finite(tail, offset=done)
                state = replace(state, pending=np.concatenate([state.pending, tail]))
        return replace(state, n_seen=self.n_seen + n, dtype=dtype.name)
