"""The exact row space of a stream: rank without a tolerance."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import levsketch._kernels.modular as modular
from levsketch._checks import LevsketchFormatError
from levsketch._typing import BoolArray, FloatArray, Rows
from levsketch.backends.stored import StoredRows

# Rows are looked at in chunks, so that none is widened whole, and of so few that a signal is seen
# within a tenth of a second: a row that raises the rank costs d^2.
_CHUNK, _WORK = 4096, 1 << 25


def _chunk(d: int) -> int:
    return max(1, min(_CHUNK, _WORK // d**2))


def _touching(rows: Rows, columns: BoolArray) -> BoolArray:
    """Return which rows have a nonzero number in the columns of a mask (d,)."""
    if isinstance(rows, StoredRows):
        return rows.touching(columns)
    return np.asarray(rows[:, columns].any(axis=1))


@dataclass(frozen=True, eq=False)
class RowSpace:
    """Row space of all rows seen, as an echelon form modulo the prime 2**61 - 31.

    A float64 is an integer times a power of two, so elimination modulo a prime
    is exact. The rank found is never above the true one, and below it only if
    the prime divides every maximal minor, or a random vector hides a row
    (chance 4e-19 a row).

    Attributes
    ----------
    basis : (d, d) uint64 array
        The row with pivot column c at index c.
    pivots : (d,) uint8 array
        Which rows of ``basis`` are present.
    """

    basis: npt.NDArray[np.uint64]
    pivots: npt.NDArray[np.uint8]

    @classmethod
    def empty(cls, d: int) -> RowSpace:
        """Return the space {0}."""
        return cls(np.zeros((d, d), np.uint64), np.zeros(d, np.uint8))

    @classmethod
    def coordinates(cls, active: BoolArray) -> RowSpace:
        """Return the space of all vectors that are zero outside the columns ``active``."""
        return cls(np.diag(active.astype(np.uint64)), active.astype(np.uint8))

    @functools.cached_property
    def rank(self) -> int:
        """Dimension of the space."""
        return int(self.pivots.sum())

    @functools.cached_property
    def is_coordinates(self) -> bool:
        """Whether the space is all vectors on some columns; then a look at the columns decides."""
        return bool((self.basis == np.diag(self.pivots.astype(np.uint64))).all())

    def absorb(self, rows: Rows) -> tuple[RowSpace, BoolArray]:
        """Return the space with ``rows`` (n, d) added, and which rows raised its rank."""
        n, d = rows.shape
        grew = np.zeros(n, np.uint8)
        if self.rank == d or (self.is_coordinates and not _touching(rows, self.pivots == 0).any()):
            return self, grew.view(np.bool_)
        basis, pivots = self.basis.copy(), self.pivots.copy()
        step = _chunk(d)
        for i in range(0, n, step):
            wide = np.ascontiguousarray(rows[i : i + step], dtype=np.float64)
            modular.absorb_rows(wide, basis, pivots, grew[i : i + step])
        return (RowSpace(basis, pivots) if grew.any() else self), grew.view(np.bool_)

    def merge(self, other: RowSpace) -> RowSpace:
        """Return the sum of two row spaces."""
        basis, pivots = self.basis.copy(), self.pivots.copy()
        modular.absorb_basis(other.basis, other.pivots, basis, pivots)
        return RowSpace(basis, pivots)

    def outside(self, rows: Rows) -> BoolArray:
        """Return which rows (n, d) are not in the space."""
        n, d = rows.shape
        out = np.zeros(n, np.uint8)
        if self.rank < d:
            if self.is_coordinates:
                return _touching(rows, self.pivots == 0)
            step = _chunk(d)
            for i in range(0, n, step):
                wide = np.ascontiguousarray(rows[i : i + step], dtype=np.float64)
                modular.rows_outside(wide, self.basis, self.pivots, out[i : i + step])
        return out.view(np.bool_)

    def orthogonal(self, queries: FloatArray) -> BoolArray:
        """Return which queries (m, d) have product zero with every row, exactly."""
        out = np.zeros(len(queries), np.uint8)
        wide = np.ascontiguousarray(queries, dtype=np.float64)
        modular.queries_orthogonal(wide, self.basis, self.pivots, out)
        return out.view(np.bool_)

    def to_arrays(self) -> dict[str, Any]:
        """Return the arrays that define the space."""
        return {"basis": self.basis, "pivots": self.pivots}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], d: int) -> RowSpace:
        """Return the space saved by ``to_arrays``, refusing what no stream could have left."""
        basis, pivots = arrays["basis"], arrays["pivots"]
        wrong = (
            basis.shape != (d, d)
            or pivots.shape != (d,)
            or basis.dtype != np.uint64
            or pivots.dtype != np.uint8
            or (pivots > 1).any()
            or (basis >= np.uint64(2**61 - 31)).any()
            or basis[pivots == 0].any()
            or (np.tril(basis, -1)).any()
            or (np.diagonal(basis) != pivots).any()
            or np.triu(basis, 1)[:, pivots == 1].any()
        )
        if wrong:
            raise LevsketchFormatError("the saved row space is not an echelon form.")
        return cls(basis, pivots)
