"""What is remembered of an output whose rows stream by once: tables, no rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from levsketch._checks import check_count, check_finite, check_row_count
from levsketch._typing import FloatArray, Rows
from levsketch.sketches.countsketch import CountSketch

# Hash rows and buckets of the table that tells norms. A squared norm is then within 16 % with
# probability 0.99, and of 64 columns all are within 24 % with that probability (proved:
# `CountSketch.norm_error`); its standard deviation on dense columns is 2.5 % (measured).
TAIL_DEPTH = 9
TAIL_WIDTH = 512
# The seed of the second table lies this far from that of the first, so that neighbouring
# seeds share no table. Any large odd number would do: seeds are hashed.
_APART = 0x6A09E667F3BCC909

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class OutputSketch:
    """Two linear sketches of an n x d_v output, one to recover rows from, one to tell the rest.

    The second has hash functions of its own: what is recovered from the first does not
    depend on them, so the norm of what is left is estimated without a bias of selection.

    Attributes
    ----------
    recovery, tail : CountSketch
        The maps.
    table, tail_table : (depth, width, d_v) arrays
        What they make of the rows so far, but for ``pending``.
    sums : (d_v,) array
        Sums of the columns so far, but for ``pending``.
    ranges : tuple of (start, stop)
        Row numbers seen, ascending and apart: one range unless shards are missing.
    next_row : int
        Number of the row that comes next.
    pending : (m, d_v) array
        The last rows, fewer than a block: tables are copied once a block.

    Notes
    -----
    ``(R W + R' W' + 1) d_v`` numbers and less than ``max(W, 256)`` rows, for any n. Cells are sums
    in the order of the rows, so the state is the same, byte for byte, in any batching.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.streaming.output_sketch import OutputSketch
    >>> Y = np.arange(12.0).reshape(6, 2)
    >>> whole = OutputSketch.make(2, depth=3, width=8, seed=0).update(Y)
    >>> first = OutputSketch.make(2, depth=3, width=8, seed=0).update(Y[:4])
    >>> second = OutputSketch.make(2, depth=3, width=8, seed=0, first_row=4).update(Y[4:])
    >>> both = second.merge(first)
    >>> both.ranges, both.mean.tolist() == whole.mean.tolist() == [5.0, 6.0]
    (((0, 6),), True)
    """

    recovery: CountSketch
    tail: CountSketch
    table: FloatArray
    tail_table: FloatArray
    sums: FloatArray
    ranges: Ranges
    next_row: int
    pending: FloatArray

    @classmethod
    def make(
        cls,
        d_v: int,
        *,
        depth: int,
        width: int,
        seed: int,
        first_row: int = 0,
        tail_depth: int = TAIL_DEPTH,
        tail_width: int = TAIL_WIDTH,
    ) -> Self:
        """Return the state of no rows.

        Parameters
        ----------
        d_v : int
            Columns of the output.
        depth, width, tail_depth, tail_width : int
            Of the two tables; depths are odd. `CountSketch.for_recovery` proposes the first two.
        seed : int
            Only sketches of the same seed can be merged.
        first_row : int
            Number of the first row, for a shard that begins elsewhere.
        """
        d_v = check_count("d_v", d_v)
        if first_row < 0:
            raise ValueError(f"first_row must be at least 0, got {first_row!r}.")
        recovery = CountSketch(depth, width, seed)
        tail = CountSketch(tail_depth, tail_width, seed + _APART)
        tables, nothing = (recovery.empty(d_v), tail.empty(d_v)), np.zeros((0, d_v))
        return cls(recovery, tail, *tables, np.zeros(d_v), (), first_row, nothing)._checked()

    @property
    def d_v(self) -> int:
        """Columns of the output."""
        return len(self.sums)

    @property
    def n_rows(self) -> int:
        """Rows seen."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def mean(self) -> FloatArray:
        """Means of the columns, (d_v,); zeros before the first row."""
        return _added(self.sums, self.pending) / max(1, self.n_rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, pending rows included."""
        arrays = (self.table, self.tail_table, self.sums, self.pending)
        return sum(array.nbytes for array in arrays)

    @property
    def block_rows(self) -> int:
        """Rows of a block, ``max(width, 256)``: adding one takes longer than copying the table."""
        return max(self.recovery.width, 256)

    def update(self, Y: Rows) -> Self:
        """Return the state after the rows ``Y`` (n, d_v) of any real dtype; numbers follow on.

        Raises
        ------
        ValueError
            For another width, NaN or infinity (with row and column of ``Y``).
        OverflowError
            If sums leave the range of float64. Outputs of attention are averages of values,
            so this takes values near 1e308 over the number of rows.
        """
        if Y.ndim != 2 or Y.shape[1] != self.d_v:
            raise ValueError(f"Y must have shape (n, {self.d_v}), got {Y.shape}.")
        n = len(Y)
        if n == 0:
            return self
        check_row_count(self.next_row, n)
        rows = np.asarray(Y, np.float64)
        check_finite(rows, name="Y")
        start, stop = self.next_row, self.next_row + n
        ranges = _union(self.ranges, ((start, stop),))
        together = np.concatenate([self.pending, rows])
        ripe = len(together) // self.block_rows * self.block_rows
        state = replace(self, ranges=ranges, next_row=stop, pending=together)
        return state._absorbed(ripe)

    def settled(self) -> Self:
        """Return the same state with no pending rows."""
        return self._absorbed(len(self.pending))

    def merge(self, other: Self) -> Self:
        """Return the state of the rows of both. The next row is the later of theirs.

        Merging in another order gives the same up to rounding. A state of no rows adds
        nothing.

        Raises
        ------
        ValueError
            If the sketches, the widths or the seeds differ, or a row number is in both.
        """
        for name in ("recovery", "tail", "d_v"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"{name} must agree to merge: {mine} and {theirs}.")
        if not other.ranges:
            return self
        if not self.ranges:
            return other
        ranges = _union(self.ranges, other.ranges)
        a, b = self.settled(), other.settled()
        with np.errstate(over="ignore", invalid="ignore"):
            merged = replace(
                a,
                table=a.table + b.table,
                tail_table=a.tail_table + b.tail_table,
                sums=a.sums + b.sums,
                ranges=ranges,
                next_row=max(a.next_row, b.next_row),
            )
        return merged._checked()

    def _absorbed(self, count: int) -> Self:
        """Return the state with the first ``count`` pending rows in the tables."""
        if not count:
            self.pending.flags.writeable = False
            return self
        rows = self.pending[:count]
        first = self.next_row - len(self.pending)
        index = np.arange(first, first + count)
        table, tail_table = self.table.copy(), self.tail_table.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            self.recovery.scatter(table, index, rows)
            self.tail.scatter(tail_table, index, rows)
            sums = _added(self.sums, rows)
        after = replace(
            self,
            table=table,
            tail_table=tail_table,
            sums=sums,
            pending=self.pending[count:].copy(),
        )
        return after._checked()

    def _checked(self) -> Self:
        """Return the state, its arrays read-only, if all its sums are finite."""
        for array in (self.table, self.tail_table, self.sums):
            if not np.isfinite(array).all():
                raise OverflowError("sums of the outputs leave the range of float64.")
            array.flags.writeable = False
        self.pending.flags.writeable = False
        return self


def _added(sums: FloatArray, rows: FloatArray) -> FloatArray:
    """Return sums (c,) plus rows (m, c), one after the other: ``sum`` would pair its terms."""
    total = sums[None].copy()
    np.add.at(total, np.zeros(len(rows), np.int64), rows)
    return np.asarray(total[0])


def _union(one: Ranges, other: Ranges) -> Ranges:
    """Return ranges that together cover what two lists cover, which must share no row."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(one + other):
        if merged and start < merged[-1][1]:
            raise ValueError(f"row {start} is in both sketches: each row counts once.")
        if merged and start == merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)
