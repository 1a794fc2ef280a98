"""Streams that decide at fixed block boundaries, whatever batches their rows come in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from levsketch._checks import MAX_ROWS, check_finite, check_row_count
from levsketch._typing import FloatArray, Rows
from levsketch.backends import Backend
from levsketch.backends.cpu import serial_blas
from levsketch.backends.csr import CsrRows

from .room import Room


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

    @property
    def takes_rows_as_they_are(self) -> bool:
        """Whether pending rows are those that users pass, with no column added."""
        return False

    def appended(self, X: Rows) -> Self | None:
        """Return the state after rows that fit in the pending block; None where it takes more.

        As ``update`` does, but for rows (n, n_features) of the stream's own dtype, known to
        be C-contiguous, in a time that does not depend on how many are pending.
        """
        held, n, block = len(self.pending), len(X), self.block_rows
        if (
            not 0 < n < block - held
            or X.dtype.name != self.dtype
            or not self.takes_rows_as_they_are
            or self.n_seen + n > MAX_ROWS
        ):
            return None
        flat = X.reshape(-1)
        if flat.dtype == np.float16:  # sums of squares would be of that type, too
            flat = flat.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.dot(flat, flat)
        if not np.isfinite(size):
            return None  # NaN or infinity, or squares that overflow: a closer look will tell
        room: Room | None = self.__dict__.get("_room")
        pending = None if room is None else room.append(held, X)
        if pending is None:
            room = Room(self.pending, block)
            pending = room.append(held, X)
        after = object.__new__(type(self))
        mine, fields = self.__dict__, type(self).__dataclass_fields__
        after.__dict__.update({name: mine[name] for name in fields})
        after.__dict__.update(n_seen=self.n_seen + n, pending=pending, _room=room)
        return after

    def _pending_and(self, rows: Rows) -> FloatArray:
        """Return the pending rows and more of them, in their room if there is one."""
        room: Room | None = self.__dict__.get("_room")
        held = len(self.pending)
        if room is not None and held + len(rows) <= len(room.buffer):
            found = room.append(held, rows)
            if found is not None:
                return found
        return np.concatenate([self.pending, rows])

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, and what was cached of them; the room is left behind."""
        return {name: held for name, held in self.__dict__.items() if name != "_room"}

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
                rows: Rows = self._pending_and(head)
                state = replace(state, n_seen=self.n_seen + done, pending=rows)
                if len(rows) == block:
                    empty = replace(state, n_seen=state.n_seen - block, pending=rows[:0])
                    if isinstance(head, CsrRows):
                        # as the others are read, in whatever batches: bits depend on that
                        rows = CsrRows.of_dense(rows)
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
