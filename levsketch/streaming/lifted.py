"""A factor of lifted rows: ``sum_l <q, k_l>^p`` of every query, from D x D numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from levsketch._typing import BoolArray, FloatArray, IntArray, Rows
from levsketch.backends import Backend
from levsketch.linalg import (
    MAX_ERROR,
    NO_EXPONENT,
    UNIT_ROUNDOFF,
    Factor,
    Whitening,
    column_exponents,
    qr_roundoff,
    query_norms,
    scale_columns,
)
from levsketch.sketches.symmetric import SymmetricPower

from .factor import StreamFactor
from .rank import RowSpace

# Monomials of columns that outgrew the scale of the first block stay below this power of two;
# beyond it, all that is there is scaled down.
_HEADROOM = 400
# Lifted rows are made for this many numbers at a time.
_LIFTED_DOUBLES = 1 << 20


class Lift(Protocol):
    """A map with ``<apply(q), apply(k)> = <q, k>^degree``, exactly or in expectation."""

    @property
    def d(self) -> int:
        """Columns of rows."""

    @property
    def degree(self) -> int:
        """Half of p."""

    @property
    def size(self) -> int:
        """Columns of lifted rows."""

    def apply(self, rows: Rows) -> FloatArray:
        """Return the lifted rows (n, size)."""


@dataclass(frozen=True, eq=False)
class LiftedFactor:
    """Factor of lifted rows, after columns were scaled by ``2**-exponents``.

    Attributes
    ----------
    lift : Lift
    exact : bool
        Whether inner products of lifted rows are powers of inner products exactly; only
        then do leverage scores of lifted rows bound sensitivities.
    exponents : (d,) int64 array
    factor : StreamFactor
    prefix : Whitening or None
        Of the factor when its number of blocks was last a power of two.
    """

    lift: Lift
    exact: bool
    exponents: IntArray
    factor: StreamFactor
    prefix: Whitening | None

    @classmethod
    def empty(cls, lift: Lift, exact: bool, block: int) -> LiftedFactor:
        """Return the factor of no rows."""
        factor = StreamFactor.empty(lift.size, np.zeros(lift.size), block)
        # lifted rows are rounded, so their exact rank means nothing: none is looked for, and
        # only what float64 proves to have full rank is certified
        full = RowSpace.coordinates(np.ones(lift.size, np.bool_))
        return cls(
            lift,
            exact,
            np.full(lift.d, NO_EXPONENT, np.int64),
            replace(factor, space=full),
            None,
        )

    def run_length(self) -> int:
        """Return how many blocks may be absorbed together."""
        rows = max(1, _LIFTED_DOUBLES // self.lift.size // self.factor.block_rows)
        return min(rows, self.factor.run_length())

    def apply(self, rows: Rows) -> FloatArray:
        """Return lifted rows in the scale of the factor."""
        return self.lift.apply(scale_columns(rows, -np.where(self._seen, self.exponents, 0)))

    def absorb(self, backend: Backend, rows: Rows) -> LiftedFactor:
        """Return the factor with whole blocks of finite rows added, settled where that is due.

        There must be no more blocks than ``run_length`` says.
        """
        block = self.factor.block_rows
        state, starts = self, range(0, len(rows), block)
        alike = not any(self._outgrown(rows[i : i + block]).any() for i in starts)
        step = len(rows) if alike else block
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            state = state._scaled_for(part)
            leaves = state.factor.measure(backend, state.apply(part), state.prefix, 0)
            factor = state.factor.absorb(backend, leaves, len(part) // block)
            state = replace(state, factor=factor)
            if factor.settles():
                state = state._settled(backend)
        return state

    def absorb_short(self, backend: Backend, rows: Rows) -> LiftedFactor:
        """Return the factor with a short block of finite rows added."""
        state = self._scaled_for(rows)
        return replace(state, factor=state.factor.absorb_short(backend, state.apply(rows)))

    def merge(self, backend: Backend, other: LiftedFactor) -> LiftedFactor:
        """Return the factor of both streams, settled."""
        top = np.maximum(self.exponents, other.exponents)
        mine, theirs = self._at_scale(top), other._at_scale(top)
        factor = mine.factor.merge(backend, theirs.factor)
        return replace(mine, factor=factor)._settled(backend)

    def relative_error(self, whitening: Whitening) -> float:
        """Return what norms may be off by, relatively, besides what ``norms`` says is hidden.

        R factors have only the latter; Gram matrices are certified relatively.
        """
        if not self.factor.grams:
            return 0.0
        return whitening.error if whitening.certified else MAX_ERROR

    def whitening(self, backend: Backend) -> Whitening:
        """Return the whitening of all lifted rows."""
        return self.factor.whitening(backend)[0]

    def bounds_of(self, backend: Backend, whitening: Whitening, rows: Rows) -> FloatArray:
        """Return upper bounds on the sensitivities of rows that were seen: lifted leverage.

        ``whitening`` must be of this factor, or of it as it was earlier. Ones if it is not
        certified.
        """
        if not (self.exact and whitening.certified):
            return np.ones(len(rows))
        bounds = np.ones(len(rows))
        step = max(1, _LIFTED_DOUBLES // self.lift.size)
        for i in range(0, len(rows), step):
            lifted = self.apply(rows[i : i + step])
            found = whitening.upper_bounds(whitening.scores(backend, lifted))
            # a later row may use columns of which the whitening knows nothing
            found[(lifted[:, ~whitening.active] != 0).any(axis=1)] = 1.0
            bounds[i : i + step] = found
        return bounds

    def norms(self, whitening: Whitening, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return ``(sum_l <q, k_l>^p)^(1/2)`` for queries (m, d), and what rounding may hide.

        Queries are in the scale of the columns (multiplied by ``2**exponents``), with
        entries of at most one.
        """
        factor: Factor = whitening.factor
        moved = np.where(whitening.active, factor.exponents, 0)
        top = int(moved.max(initial=0))
        with np.errstate(under="ignore"):
            lifted = self.lift.apply(Q) * np.ldexp(1.0, np.maximum(moved - top, -1000))
        norms = query_norms(factor, lifted)
        # backward errors of the factor, of lifting and of the product; relative to the norm of
        # all rows, so that they hold whether or not the whitening is certified
        rounding = qr_roundoff(len(moved))
        rounding += 4 * (len(moved) + self.lift.degree) * UNIT_ROUNDOFF
        hidden = rounding * float(np.linalg.norm(factor.R)) * np.linalg.norm(lifted, axis=1)
        with np.errstate(over="ignore", under="ignore"):
            unit = np.ldexp(1.0, min(top, 500))
            return norms * unit, hidden * unit

    # -- inside

    @property
    def _seen(self) -> BoolArray:
        return np.asarray(self.exponents > NO_EXPONENT)

    def _settled(self, backend: Backend) -> LiftedFactor:
        return replace(self, prefix=self.whitening(backend))

    def _tops(self, rows: Rows) -> IntArray:
        found = column_exponents(rows)
        # a sketch mixes columns: only one power of two for all of them passes through
        return found if self.exact else np.full_like(found, found.max(initial=NO_EXPONENT))

    def _outgrown(self, rows: Rows) -> BoolArray:
        return np.asarray(
            self._tops(rows) > self.exponents + min(40, _HEADROOM // self.lift.degree)
        )

    def _scaled_for(self, rows: Rows) -> LiftedFactor:
        """Return the factor in a scale in which ``rows`` cannot overflow."""
        grown = self._outgrown(rows)
        if not grown.any():
            return self
        return self._at_scale(np.where(grown, self._tops(rows), self.exponents))

    def _at_scale(self, exponents: IntArray) -> LiftedFactor:
        """Return the factor for columns scaled by ``2**-exponents``, exact but for underflow."""
        if (exponents == self.exponents).all():
            return self
        if not self.factor.n_blocks:
            return replace(self, exponents=exponents)
        shift = np.where(self._seen, self.exponents - exponents, 0)
        if isinstance(self.lift, SymmetricPower):
            moved = self.lift.column_exponents(shift)
        else:
            moved = np.full(self.lift.size, self.lift.degree * shift.min())
        return replace(
            self,
            exponents=exponents,
            factor=self.factor.column_times(moved),
            prefix=None if self.prefix is None else _moved(self.prefix, moved),
        )


def _moved(found: Whitening, powers: IntArray) -> Whitening:
    """Return the whitening of rows whose columns are multiplied by ``2**powers``."""
    e = found.factor.exponents
    moved = np.where(found.active, e + powers, e)
    return replace(found, factor=found.factor._replace(exponents=moved))
