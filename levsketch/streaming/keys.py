"""The whole streaming state: a factor of all rows, and the rows that can still matter.

The sensitivity of a row never rises when rows are appended, so a row may be
dropped for ever once its score in a prefix is below eps: the final set equals
the one of all rows at once. Every decision falls at a fixed block boundary,
so the state is the same bytes for any batching and any thread count.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from levsketch._checks import check_row_count
from levsketch._typing import BoolArray, FloatArray, IntArray, Rows
from levsketch.backends import Backend
from levsketch.backends.cpu import CpuBackend, serial_blas
from levsketch.linalg import Whitening

from .blocks import BlockStream
from .candidates import Candidates, best, mask_of
from .factor import StreamFactor, block_size, with_intercept
from .rank import RowSpace
from .screening import screen_for

# Candidates may pile up to this many blocks before they are pruned.
_CAPACITY_BLOCKS = 8
# Rows beyond n_keys and min_keys that stay in the pool, so that the best of
# the stream are rarely lost to a later change of order.
_SPARE = 16
# If more than one row in so many passes the screen, all are scored.
_MANY = 4


class Policy(NamedTuple):
    """What is asked of a stream; fixed from its first row."""

    eps: float
    n_keys: int | None
    min_keys: int
    intercept: bool
    ridge: float

    @property
    def pool_size(self) -> int:
        """How many of the best rows are kept besides those with a score >= eps."""
        return 2 * max(self.min_keys, self.n_keys or 0) + _SPARE


@dataclass(frozen=True, eq=False)
class Selection:
    """What a stream says at one moment.

    ``rows``, ``index``, ``scores``, ``upper`` belong to the pool, in stream
    order; ``universal`` and ``selected`` are masks over it.
    """

    whitening: Whitening
    space: RowSpace
    rows: FloatArray
    index: IntArray
    scores: FloatArray
    upper: FloatArray
    universal: BoolArray
    selected: BoolArray
    certified: bool
    unselected_bound: float


@dataclass(frozen=True, eq=False)
class KeyStream(BlockStream):
    """State after some rows: O(d^2) numbers for all of them, and the candidates.

    ``update`` costs 2 n d^2 flops where Gram matrices are certified, about 4 n d^2 in
    LAPACK where not, and O(d^2 + d (d/eps + block)) memory.

    Attributes
    ----------
    n_seen, dtype, pending :
        As in BlockStream; pending rows have the column of the intercept.
    policy : Policy
    n_features : int
        Columns of the rows that users pass; one less than d with an intercept.
    factor : StreamFactor
        Of all whole blocks.
    prefix : Whitening or None
        Of the blocks at the last settling; new rows are screened with it.
    candidates : Candidates
    """

    policy: Policy
    n_features: int
    factor: StreamFactor
    prefix: Whitening | None
    candidates: Candidates

    @classmethod
    def empty(cls, policy: Policy, n_features: int) -> KeyStream:
        """Return the state of no rows."""
        d = n_features + int(policy.intercept)
        ridge = np.full(d, policy.ridge)
        if policy.intercept:
            ridge[0] = 0.0
        factor = StreamFactor.empty(d, ridge)
        none = np.zeros((0, d))
        return cls(0, "", none, policy, n_features, factor, None, Candidates.empty(d))

    @property
    def d(self) -> int:
        """Columns inside, with the one of the intercept."""
        return self.factor.d

    @property
    def block_rows(self) -> int:
        """Rows in a block."""
        return block_size(self.d)

    @property
    def takes_rows_as_they_are(self) -> bool:
        """Whether pending rows are those that users pass: without an intercept."""
        return not self.policy.intercept

    def run_length(self) -> int:
        """Return how many blocks may be consumed together."""
        return self.factor.run_length()

    def merge(self, backend: Backend, other: KeyStream) -> KeyStream:
        """Return the state of this stream followed by ``other``, which must ask the same."""
        check_row_count(self.n_seen, other.n_seen)
        if other.n_seen == 0 or self.n_seen == 0:
            return self if other.n_seen == 0 else other
        with serial_blas():
            left = self._flushed(backend)
            mine, theirs = left.candidates, other.candidates
            rows, index = mine.extended(theirs.rows, theirs.index + self.n_seen)
            both = replace(
                mine,
                rows=rows,
                index=index,
                protected=np.concatenate([mine.protected, theirs.protected + self.n_seen]),
                dropped_bound=max(mine.dropped_bound, theirs.dropped_bound),
                sound=mine.sound and theirs.sound,
            )
            state = replace(
                self,
                n_seen=self.n_seen + other.n_seen,
                dtype=np.result_type(self.dtype, other.dtype).name,
                pending=other.pending,
                factor=left.factor.merge(backend, other.factor),
                candidates=both,
            )
            return state._settled(backend) if state.factor.n_blocks else state

    @functools.cached_property
    def selection(self) -> Selection:
        """The set, its scores and its certificate, for all rows seen so far."""
        backend = CpuBackend()
        held = self.candidates
        with serial_blas():
            whitening, space, grew = self.factor.whitening(backend, self.pending)
            first = self.n_seen - len(self.pending)
            rows, index = held.extended(self.pending, first + np.arange(len(self.pending)))
            raw = whitening.scores(backend, rows)
        protected = np.concatenate([held.protected, first + np.flatnonzero(grew)])
        scores, upper = np.minimum(raw, 1.0), whitening.upper_bounds(raw)
        universal = upper >= self.policy.eps
        if not whitening.certified:
            # what was heavy, or brought a direction of its own, may be heavy still
            doubtful = np.isin(index, protected)
            upper[doubtful], universal[doubtful] = 1.0, True
        order = best(scores, len(scores))
        size = self.policy.n_keys
        if size is None:
            selected = universal.copy()
            size = self.policy.min_keys
            if selected.sum() < size:
                selected[order[:size]] = True
            proved = True
        else:
            selected = mask_of(order[:size], len(scores))
            last = order[min(size, len(order)) - 1]
            rivals = ~selected & (rows != rows[last]).any(axis=1)  # a copy of the last is as good
            rival = max(float(upper[rivals].max(initial=0.0)), held.dropped_bound)
            proved = float(whitening.lower_bounds(scores[last])) >= rival
        sound = whitening.certified and held.sound
        out = max(float(upper[~selected].max(initial=0.0)), held.dropped_bound)
        return Selection(
            whitening,
            space,
            rows,
            index,
            scores,
            upper,
            universal,
            selected,
            certified=sound and proved,
            unselected_bound=out if sound else 1.0,
        )

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays of the state."""
        held = self.candidates
        arrays = [self.pending, held.rows, held.index, held.protected, self.factor.space.basis]
        arrays += [G for _, G in self.factor.grams]
        arrays += [array for _, factor in self.factor.factors for array in factor]
        if self.prefix is not None:
            arrays += [*self.prefix.factor, self.prefix.matrix]
        return sum(a.nbytes for a in arrays)

    def _rows(self, backend: Backend, X: Rows, offset: int) -> Rows:
        """Return rows as the kernels read them, with the column of the intercept."""
        return with_intercept(backend.rows(X), self.policy.intercept, offset)

    def _capacity(self) -> int:
        """Return how many candidates may pile up before they are pruned."""
        return max(_CAPACITY_BLOCKS * block_size(self.d), 2 * self.candidates.kept)

    def _consume(self, backend: Backend, rows: Rows, offset: int) -> KeyStream:
        """Return the state after one or more whole blocks, up to the first settling.

        There must be no pending rows. ``offset`` numbers the rows in errors.
        """
        block, held, capacity = block_size(self.d), self.candidates, self._capacity()
        leaves = self.factor.measure(backend, rows, self.prefix, offset)
        hopeful, bounds = self._screen(backend, rows)
        waiting, count, grew, full = len(held), 0, False, False
        while count < len(rows) // block and not (grew or full):
            here = hopeful[count * block : (count + 1) * block]
            grew = leaves.rising[count]
            if grew:  # the prefix does not span these rows: it says nothing of them
                here[:] = True
            waiting += int(here.sum())
            full = waiting > capacity
            count += 1
        hopeful, bounds = hopeful[: count * block], bounds[: count * block]
        taken, rose = np.flatnonzero(hopeful), np.flatnonzero(np.concatenate(leaves.grew[:count]))
        new_rows, new_index = held.extended(rows[taken], self.n_seen + taken)
        state = replace(
            self,
            n_seen=self.n_seen + count * block,
            factor=self.factor.absorb(backend, leaves, count),
            candidates=replace(
                held,
                rows=new_rows,
                index=new_index,
                protected=np.concatenate([held.protected, self.n_seen + rose]),
                dropped_bound=max(held.dropped_bound, float(bounds[~hopeful].max(initial=0.0))),
            ),
        )
        return state._settled(backend) if grew or full or state.factor.settles() else state

    def _screen(self, backend: Backend, rows: Rows) -> tuple[BoolArray, FloatArray]:
        """Return which new rows can still matter, and an upper bound on the score of each.

        A row k with ``x = k^T G^-1 k`` in the prefix has the score ``x / (1 + x)``
        once it is added, and no later score of it is larger.
        """
        if self.prefix is None or not self.prefix.certified:
            return np.ones(len(rows), np.bool_), np.ones(len(rows))
        threshold = min(self.policy.eps, self.candidates.floor)
        least = min(threshold, self.candidates.dropped_bound)
        x = self._ahead(backend, self.prefix, rows, least)
        with np.errstate(invalid="ignore"):
            bounds = np.where(np.isinf(x), 1.0, x / (1.0 + x))
        return bounds >= threshold, bounds

    def _ahead(self, backend: Backend, prefix: Whitening, rows: Rows, least: float) -> FloatArray:
        """Return upper bounds x on ``k^T G^-1 k`` in the prefix, from scores unless small.

        Rows that a cheap bound shows to be out, and to change nothing of what is known of the
        others that are, get 0: so the state does not depend on which rows these were.
        """
        screen = screen_for(prefix, least, self.n_seen)
        if screen is None:
            return prefix.scores(backend, rows) / prefix.deflation
        x = screen.bounds(backend, rows) / prefix.deflation
        with np.errstate(invalid="ignore"):
            near = np.flatnonzero(~(x / (1.0 + x) < least))
        if len(near) * _MANY > len(rows):
            return prefix.scores(backend, rows) / prefix.deflation
        x[:] = 0.0
        x[near] = prefix.scores(backend, rows[near]) / prefix.deflation
        return x

    def _settled(self, backend: Backend) -> KeyStream:
        """Return the state with a fresh prefix, and without the rows that it rules out."""
        prefix, space, _ = self.factor.whitening(backend)
        held, policy = self.candidates, self.policy
        raw = prefix.scores(backend, held.rows)
        scores, upper = np.minimum(raw, 1.0), prefix.upper_bounds(raw)
        order = best(scores, policy.pool_size)
        heavy, top = upper >= policy.eps, mask_of(order, len(held))
        keep = heavy | top
        if not prefix.certified:
            # noise may score high everywhere, but no more rows than these can be heavy
            most = int(min(self.d / policy.eps / prefix.deflation, len(held))) + 1
            keep = (heavy & mask_of(best(scores, most), len(held))) | top
            keep |= np.isin(held.index, held.protected)
            if len(held) <= self._capacity():
                keep[:] = True  # nothing goes without proof, unless memory asks for it
        return replace(
            self,
            factor=replace(self.factor, space=space),
            prefix=prefix,
            candidates=replace(
                held,
                rows=held.rows[keep],
                index=held.index[keep],
                protected=held.index[upper >= policy.eps] if prefix.certified else held.protected,
                dropped_bound=max(held.dropped_bound, float(upper[~keep].max(initial=0.0))),
                floor=float(scores[order[-1]]) if len(order) == policy.pool_size else 0.0,
                kept=held.kept if keep.all() else int(keep.sum()),
                sound=held.sound and (prefix.certified or bool(keep.all())),
            ),
        )

    def _flushed(self, backend: Backend) -> KeyStream:
        """Return the state with the pending rows absorbed as a short block."""
        if not len(self.pending):
            return self
        first = self.n_seen - len(self.pending)
        rows, index = self.candidates.extended(self.pending, first + np.arange(len(self.pending)))
        _, grew = self.factor.space.absorb(self.pending)
        protected = np.concatenate([self.candidates.protected, first + np.flatnonzero(grew)])
        return replace(
            self,
            pending=self.pending[:0],
            factor=self.factor.absorb_short(backend, self.pending),
            candidates=replace(self.candidates, rows=rows, index=index, protected=protected),
        )
