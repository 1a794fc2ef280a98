"""Rows that may still be in the universal set: the buffer that pruning keeps small."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from levsketch._typing import BoolArray, FloatArray, IntArray, Rows


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows kept so far, with what is known of the rows that were not.

    Attributes
    ----------
    rows : (m, d) float64 array
    index : (m,) int64 array
        Row numbers in the stream, ascending.
    protected : (r,) int64 array
        Numbers of the rows that only a certified score may rule out: those with a
        score >= eps when scores were last certified, and those that have raised the
        exact rank since.
    dropped_bound : float
        No row that was dropped can have a score above this.
    floor : float
        Scores below this are not among the best that a top-up would take.
    kept : int
        How many rows the last pruning left.
    sound : bool
        False once a row had to be dropped on a score that was not certified.
    """

    rows: FloatArray
    index: IntArray
    protected: IntArray
    dropped_bound: float = 0.0
    floor: float = 0.0
    kept: int = 0
    sound: bool = True

    @classmethod
    def empty(cls, d: int) -> Candidates:
        """Return no candidates for rows of d columns."""
        none = np.zeros(0, np.int64)
        return cls(np.zeros((0, d)), none, none)

    def __len__(self) -> int:
        """Return the number of rows held."""
        return len(self.index)

    def extended(self, rows: Rows, index: IntArray) -> tuple[FloatArray, IntArray]:
        """Return rows and row numbers with more of them appended."""
        return (
            np.concatenate([self.rows, rows.astype(np.float64, copy=False)]),
            np.concatenate([self.index, index]),
        )


def best(scores: FloatArray, size: int) -> IntArray:
    """Return the positions of the ``size`` largest scores, earlier rows first among equals."""
    return np.argsort(-scores, kind="stable")[:size].astype(np.int64)


def mask_of(positions: IntArray, length: int) -> BoolArray:
    """Return the boolean mask (length,) that is True at ``positions``."""
    mask = np.zeros(length, np.bool_)
    mask[positions] = True
    return mask
