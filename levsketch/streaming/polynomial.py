"""Attention by moments over a stream of keys and values: the whole state between blocks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from levsketch._checks import LevsketchStateError, check_finite, check_row_count
from levsketch._typing import FloatArray, Rows
from levsketch.backends import Backend
from levsketch.backends.cpu import CpuBackend, serial_blas

from .blocks import BlockStream
from .polynomial_answering import Answering, apart, together
from .polynomial_memory import PolynomialMemory, inside
from .polynomial_policy import PolynomialPolicy, moment_floats
from .unaligned import UnalignedMoments

__all__ = ["PolynomialPolicy", "PolynomialStream", "moment_floats"]


@dataclass(frozen=True, eq=False)
class PolynomialStream(BlockStream):
    """State after some rows [key | value | weight].

    Attributes
    ----------
    n_seen, dtype, pending :
        As in BlockStream; rows as users passed them, in float64. Of keys alone if keys and
        values are not aligned.
    policy : PolynomialPolicy
    n_features, n_outputs : int
        Columns d of keys and d_v of values.
    memory : PolynomialMemory
        Of the rows that were absorbed.
    late : (m, d_v) array
        Values that do not fill a block, if they are not aligned.

    Notes
    -----
    Whatever the batches, rows are absorbed in blocks of ``block_rows``: the state is the same
    bytes. Rows that wait are answered exactly, hence all rows before the first block is full.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.algorithms import polynomial_attention
    >>> from levsketch.backends.cpu import CpuBackend
    >>> from levsketch.streaming.polynomial import PolynomialPolicy, PolynomialStream
    >>> policy = PolynomialPolicy("softmax", 4, "exact", 0, 1.0, 1.0, 10**6, 0)
    >>> rng = np.random.default_rng(0)
    >>> K, Q = rng.normal(size=(5000, 6)), rng.normal(size=(3, 6)) / 6
    >>> V = np.tanh(K[:, :2])
    >>> rows = np.column_stack([K, V, np.ones(len(K))])
    >>> stream = PolynomialStream.empty(policy, 6, 2).update(CpuBackend(), rows)
    >>> weights = np.exp(Q @ K.T)
    >>> exact = weights @ V / weights.sum(axis=1, keepdims=True)
    >>> found, _ = polynomial_attention.outputs(stream, Q)
    >>> bool(np.abs(found - exact).max() < 1e-3)
    True
    """

    policy: PolynomialPolicy
    n_features: int
    n_outputs: int
    memory: PolynomialMemory
    late: FloatArray

    @classmethod
    def empty(
        cls,
        policy: PolynomialPolicy,
        d: int,
        d_v: int,
        *,
        center: FloatArray | None = None,
        first_row: int = 0,
    ) -> PolynomialStream:
        """Return the state of no rows.

        Parameters
        ----------
        policy : PolynomialPolicy
        d, d_v : int
        center : (d,) array, optional
            Taken from the keys; their mean in the first block if not given. Streams whose
            features or rows are sketched can only be merged if they have the same.
        first_row : int
            Number of the first row, for a part of a stream that is not aligned.

        Raises
        ------
        ValueError
            For an impossible policy, and for one that needs more numbers than it has: before
            anything is allocated.
        """
        memory = PolynomialMemory.empty(policy, d, d_v, center, first_row)
        pending = np.zeros((0, d + d_v + 1 if policy.aligned else d))
        return cls(0, "", pending, policy, d, d_v, memory, np.zeros((0, d_v)))

    @property
    def block_rows(self) -> int:
        """Rows in a block."""
        return self.policy.block_rows

    def run_length(self) -> int:
        """Return how many blocks may be consumed together."""
        return 1

    @property
    def n_values(self) -> int:
        """Values seen: as many as keys, unless both have streams of their own."""
        moments = self.memory.moments
        if isinstance(moments, UnalignedMoments):
            return moments.n_values + len(self.late)
        return self.n_seen

    @property
    def nbytes(self) -> int:
        """Bytes held: moments, bounds, and rows that do not fill a block."""
        return self.memory.nbytes + self.pending.nbytes + self.late.nbytes

    # -- rows

    def update(self, backend: Backend, X: Rows) -> PolynomialStream:
        """Return the state after the rows ``X`` (n, d + d_v + 1) [key | value | weight].

        The same state, byte for byte, for the same rows in any batches.

        Raises
        ------
        ValueError
            For NaN or infinity, naming row and column; for weights other than 1 if keys and values
            are not aligned.
        OverflowError
            If entries or weights grew by 2**300 since the first block, or weights fell so.
        """
        if self.policy.aligned:
            return super().update(backend, X)._checked()
        d, odd = self.n_features, np.flatnonzero(X[:, -1] != 1.0)
        if len(odd):
            raise ValueError(
                f"sample_weight must be 1 with sketch={self.policy.sketch!r}, got "
                f"{X[odd[0], -1]!r} at row {odd[0]}: what a key weighs its value would not know; "
                'use sketch="exact".'
            )
        return self.update_keys(X[:, :d]).update_values(X[:, d:-1])

    def update_keys(self, K: Rows) -> PolynomialStream:
        """Return the state after keys ``K`` (n, d) whose values come apart, before or after.

        Raises
        ------
        ValueError
            If keys and values are aligned; for another number of columns, NaN and infinity.
        OverflowError
            If entries grew by 2**300 since the first block.
        """
        self._check_side("K", K, self.n_features)
        return super().update(CpuBackend(), K)._checked()

    def update_values(self, V: Rows) -> PolynomialStream:
        """Return the state after values ``V`` (n, d_v) whose keys come apart, before or after.

        Raises
        ------
        ValueError
            If keys and values are aligned; for another number of columns, NaN and infinity.
        """
        self._check_side("V", V, self.n_outputs)
        n, block, late, done = len(V), self.block_rows, self.late, 0
        check_row_count(self.n_values, n)
        rows = np.ascontiguousarray(V, np.float64)
        check_finite(rows, name="V")
        memory = self.memory.boxed(rows)
        with serial_blas():
            while len(late) + n - done >= block:
                stop = done + block - len(late)
                memory = memory.add_values(np.concatenate([late, rows[done:stop]]))
                late, done = late[:0], stop
        return replace(self, memory=memory, late=np.concatenate([late, rows[done:]]))

    def merge(self, backend: Backend, other: PolynomialStream) -> PolynomialStream:
        """Return the state of this stream followed by ``other``, which must ask the same.

        Sums are added: without decay the order matters for rounding only. Rows that are
        not aligned have numbers, so ``other`` may also be the part before this one.

        Raises
        ------
        ValueError
            If policies or numbers of columns differ; for sketches with centers of their own, and
            for parts that do not follow one another.
        OverflowError
            If entries or weights of the other are larger by 2**300.
        """
        for name in ("policy", "n_features", "n_outputs"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"{name} must agree to merge: {mine} and {theirs}.")
        check_row_count(self.n_seen, other.n_seen)
        if not (other.n_seen or other.n_values):
            return self
        if not (self.n_seen or self.n_values):
            return other
        if self.policy.aligned and len(other.pending) == other.n_seen:
            return self.update(backend, other.pending)
        with serial_blas():
            left = self._centred_like(other)._flushed()
            if self.policy.aligned:
                old = left.memory.aged(other.n_seen - len(other.pending))
                merged = replace(left, memory=old.joined(other.memory), pending=other.pending)
            else:
                # rows that wait may be in the middle of both
                right = other._centred_like(left)._flushed()
                merged = replace(left, memory=left.memory.joined(right.memory))
        kinds = [dtype for dtype in (self.dtype, other.dtype) if dtype]
        dtype = np.result_type(*kinds).name if kinds else ""
        return replace(merged, n_seen=self.n_seen + other.n_seen, dtype=dtype)._checked()

    # -- answers

    @functools.cached_property
    def answering(self) -> Answering:
        """What answers queries now.

        Raises
        ------
        ValueError
            If no row has a weight.
        LevsketchStateError
            If keys and values have not brought the same rows.
        """
        if self.policy.aligned:
            rows, ages = self._live(self.pending)
            return together(self.memory, rows, ages, len(self.pending))
        if self.n_seen != self.n_values:
            raise LevsketchStateError(
                f"{self.n_seen} keys and {self.n_values} values have come: hand over the rest."
            )
        if not self.n_seen:
            raise ValueError("no rows have been seen: there is nothing to average.")
        # parts of which one had keys alone leave blocks that do not begin together
        even = len(self.pending) == len(self.late)
        state = self if even else self._flushed()
        return apart(state.memory, state.pending, state.late)

    # -- inside

    def _rows(self, backend: Backend, X: Rows, offset: int) -> FloatArray:
        return np.ascontiguousarray(X, np.float64)

    def _consume(self, backend: Backend, rows: FloatArray, offset: int) -> PolynomialStream:
        block = rows[: self.block_rows]
        check_finite(block, offset=offset)
        return self._absorbed(block)

    def _absorbed(self, block: FloatArray) -> PolynomialStream:
        """Return the state after one block; there are no pending rows."""
        rows, ages = self._live(block)
        memory = self.memory.aged(len(block)).add(rows, ages)
        return replace(self, n_seen=self.n_seen + len(block), memory=memory)

    def _live(self, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return rows that have a weight (1 if these are keys), and how many rows follow each."""
        if not self.policy.aligned:
            rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        live = rows[:, -1] > 0.0
        return rows[live], np.arange(len(rows) - 1, -1, -1.0)[live]

    def _checked(self) -> PolynomialStream:
        """Return the state if no row that waits is out of range: its block would fail for good."""
        rows, _ = self._live(self.pending)
        if len(rows):
            inside(self.memory.framed(rows), rows)
        return self

    def _flushed(self) -> PolynomialStream:
        """Return the state with all rows that wait absorbed, as short blocks."""
        state, rows = self, self.pending
        if len(rows):
            state = replace(self, pending=rows[:0], n_seen=self.n_seen - len(rows))
            state = state._absorbed(rows)
        if not len(self.late):
            return state
        return replace(state, memory=state.memory.add_values(self.late), late=self.late[:0])

    def _centred_like(self, other: PolynomialStream) -> PolynomialStream:
        return replace(self, memory=self.memory.centred_like(other.memory))

    def _check_side(self, name: str, X: Rows, columns: int) -> None:
        """Refuse one side of rows that are aligned, and another number of columns."""
        if self.policy.aligned:
            raise ValueError(
                'with sketch="exact", keys and values arrive together; "ams", "gaussian" and '
                '"countsketch" join two streams.'
            )
        if X.ndim != 2 or X.shape[1] != columns:
            raise ValueError(f"{name} must have shape (n, {columns}), got {X.shape}.")
