"""Rows that a stream keeps, each with the smallest bound on its sensitivity so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from levsketch._typing import BoolArray, FloatArray, IntArray, Rows

NO_FLOOR = -1.0


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows kept so far, with what is known of the rows that were not.

    Attributes
    ----------
    rows : (m, d) float64 array
    index : (m,) int64 array
        Row numbers in the stream, ascending.
    weights : (m,) array
        Weights v with which the rows are in the factor.
    bounds, lower : (m,) arrays
        Sensitivities lie between them; ``lower`` holds until more rows arrive.
    tickets : (m,) array
        Random numbers in (0, 1): a row is sampled while its own is below rate * bound.
    rose : (m,) bool array
        Rows that raised the exact rank since bounds were last certified.
    dropped_bound : float
        No row that was dropped can have a sensitivity above this.
    floor : float
        Later rows whose bound is not above this are not among the best that a top-up would
        take; NO_FLOOR while there are too few rows to say.
    kept : int
        How many rows with a bound >= eps the last pruning left.
    sound : bool
        False once a row had to be dropped without proof.
    """

    rows: FloatArray
    index: IntArray
    weights: FloatArray
    bounds: FloatArray
    lower: FloatArray
    tickets: FloatArray
    rose: BoolArray
    dropped_bound: float = 0.0
    floor: float = NO_FLOOR
    kept: int = 0
    sound: bool = True

    @classmethod
    def empty(cls, d: int) -> Pool:
        """Return a pool of no rows of d columns."""
        none = np.zeros(0)
        return cls(
            np.zeros((0, d)), np.zeros(0, np.int64), none, none, none, none, np.zeros(0, np.bool_)
        )

    def __len__(self) -> int:
        """Return the number of rows held."""
        return len(self.index)

    def arrays(self) -> tuple[np.ndarray[Any, Any], ...]:
        """Return the arrays held."""
        return (
            self.rows,
            self.index,
            self.weights,
            self.bounds,
            self.lower,
            self.tickets,
            self.rose,
        )

    def heavy(self, eps: float) -> int:
        """Return how many rows may reach eps."""
        return int((self.bounds >= eps).sum())

    def extended(
        self,
        rows: Rows,
        index: IntArray,
        weights: FloatArray,
        bounds: FloatArray,
        tickets: FloatArray,
        rose: BoolArray,
        lost: float,
    ) -> Pool:
        """Return the pool with rows appended; ``lost`` bounds those left out.

        More rows make ``lower`` bounds invalid: they return to zero.
        """
        cat = np.concatenate
        return replace(
            self,
            rows=cat([self.rows, rows.astype(np.float64, copy=False)]),
            index=cat([self.index, index]),
            weights=cat([self.weights, weights]),
            bounds=cat([self.bounds, bounds]),
            lower=np.zeros(len(self) + len(index)),
            tickets=cat([self.tickets, tickets]),
            rose=cat([self.rose, rose]),
            dropped_bound=max(self.dropped_bound, lost),
        )

    def joined(self, other: Pool, shift: int) -> Pool:
        """Return this pool with the rows of ``other``, row numbers shifted, after its own."""
        both = self.extended(
            other.rows,
            other.index + shift,
            other.weights,
            other.bounds,
            other.tickets,
            other.rose,
            other.dropped_bound,
        )
        return replace(
            both, kept=self.kept + other.kept, floor=NO_FLOOR, sound=self.sound and other.sound
        )

    def bounded(self, bounds: FloatArray) -> Pool:
        """Return the pool with bounds lowered to ``bounds`` where these are smaller."""
        return replace(self, bounds=np.minimum(self.bounds, bounds))

    def times(self, power: int) -> Pool:
        """Return the pool after all weights were multiplied by ``4**power``."""
        if not power:
            return self
        with np.errstate(over="ignore", under="ignore"):
            return replace(self, weights=np.ldexp(self.weights, 2 * power))

    def kept_only(
        self, keep: BoolArray, floor: float, kept: int, sound: bool, certified: bool
    ) -> Pool:
        """Return the pool of the rows ``keep``; once certified, no row needs protection."""
        return replace(
            self,
            rows=self.rows[keep],
            index=self.index[keep],
            weights=self.weights[keep],
            bounds=self.bounds[keep],
            lower=self.lower[keep],
            tickets=self.tickets[keep],
            rose=self.rose[keep] & (not certified),
            dropped_bound=max(self.dropped_bound, float(self.bounds[~keep].max(initial=0.0))),
            floor=floor,
            kept=kept,
            sound=sound,
        )
