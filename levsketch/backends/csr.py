"""Sparse rows, of which only the nonzero numbers are stored: what kernels read of scipy.sparse."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

import levsketch._kernels.sparse as sparse
from levsketch._typing import BoolArray, FloatArray, IntArray, Rows

from .stored import StoredRows


class CsrRows(StoredRows):
    """n rows of d numbers in compressed form: ascending columns in each row, no zeros stored.

    Slices share the arrays; the numbers of row j are ``values[start[j] : start[j + 1]]``.

    Attributes
    ----------
    values : float32 or float64 array
    columns : int32 or int64 array
    start : (n + 1,) int64 array
    """

    def __init__(self, values: Any, columns: Any, start: IntArray, d: int) -> None:
        self.values, self.columns, self.start = values, columns, start
        self.shape, self.dtype = (len(start) - 1, d), values.dtype

    @classmethod
    def of(cls, name: str, X: Any) -> CsrRows:
        """Return the rows of a scipy.sparse matrix or array of any format, which is not changed.

        Entries given twice are added up, as ``toarray`` does. CSR with ascending columns and no
        explicit zeros, float32 or float64, is not copied.

        Raises
        ------
        TypeError
            If its numbers are not real.
        ValueError
            If it has not two axes, or its indices lie outside its shape.
        """
        if len(X.shape) != 2:
            raise ValueError(f"{name} must have shape (n, d), got shape {X.shape}.")
        if X.dtype.kind not in "fiub":
            raise TypeError(f"{name} must hold real numbers, got dtype {X.dtype}.")
        check_csc(name, X)
        X = X.tocsr()
        start, columns, ascending = _checked_order(name, X, *X.shape)
        values = X.data[: start[-1]]
        if not ascending:
            merged = scipy.sparse.csr_array((values, columns, start), shape=X.shape, copy=True)
            merged.sum_duplicates()
            values, columns, start = merged.data, merged.indices, merged.indptr.astype(np.int64)
        dtype = (
            np.float32 if values.dtype.kind == "f" and values.dtype.itemsize <= 4 else np.float64
        )
        with np.errstate(over="ignore"):  # a long double may be infinite in float64: found later
            values = np.require(values, dtype=dtype, requirements=["C", "A"])
        kept = values != 0  # NaN, too
        if not kept.all():
            start = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[start]
            values, columns = values[kept], columns[kept]
        return cls(values, columns, start, X.shape[1])

    @classmethod
    def of_dense(cls, X: Rows) -> CsrRows:
        """Return the rows of an array (n, d) of float32 or float64."""
        rows, columns = np.nonzero(X)
        counts = np.bincount(rows, minlength=len(X))
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        columns = np.ascontiguousarray(columns, np.int64)
        return cls(np.ascontiguousarray(X[rows, columns]), columns, start, X.shape[1])

    @property
    def lengths(self) -> IntArray:
        """How many nonzero numbers each row has, (n,)."""
        return np.diff(self.start)

    def _own(self, array: Any) -> Any:
        """Return the part of ``values`` or ``columns`` that these rows hold."""
        return array[self.start[0] : self.start[-1]]

    def _row_numbers(self) -> IntArray:
        """Return the row of each stored number."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def __getitem__(self, key: Any) -> CsrRows:
        """Return the rows of a slice or an index array (or, for ``()``, all)."""
        d = self.shape[1]
        if isinstance(key, tuple) and not key:
            return self
        if isinstance(key, slice):
            first, last, step = key.indices(len(self))
            if step == 1:
                start = self.start[first : max(first, last) + 1]
                return CsrRows(self.values, self.columns, start, d)
            key = np.arange(first, last, step)
        key = np.asarray(key)
        key = np.flatnonzero(key) if key.dtype == np.bool_ else key
        counts = self.lengths[key]
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        taken = np.arange(start[-1]) + np.repeat(self.start[:-1][key] - start[:-1], counts)
        return CsrRows(self.values[taken], self.columns[taken], start, d)

    def widened(self) -> FloatArray:
        """Return the (n, d) float64 array of all these rows."""
        wide = np.zeros(self.shape)
        wide[self._row_numbers(), self._own(self.columns)] = self._own(self.values)
        return wide

    def any(self, axis: int) -> BoolArray:
        """Return which columns (``axis=0``) or rows (``axis=1``) have a nonzero number."""
        if axis:
            return self.lengths > 0
        found = np.zeros(self.shape[1], np.bool_)
        found[self._own(self.columns)] = True
        return found

    def touching(self, columns: BoolArray) -> BoolArray:
        """Return which rows have a nonzero number in the columns of a mask (d,)."""
        found = np.zeros(len(self), np.bool_)
        found[self._row_numbers()[columns[self._own(self.columns)]]] = True
        return found

    def not_finite(self) -> tuple[int, int, float] | None:
        """Return row, column and value of the first NaN or infinity."""
        values = self._own(self.values)
        finite = np.isfinite(values)
        if finite.all():
            return None
        place = int(self.start[0]) + int(np.argmin(finite))
        row = int(np.searchsorted(self.start, place, side="right")) - 1
        return row, int(self.columns[place]), float(self.values[place])

    def with_ones(self) -> CsrRows:
        """Return the rows with a column of ones before them."""
        start = self.start - self.start[0] + np.arange(len(self) + 1)
        others = np.ones(start[-1], np.bool_)
        others[start[:-1]] = False
        values = np.ones(len(others), self.values.dtype)
        columns = np.zeros(len(others), self.columns.dtype)
        values[others], columns[others] = self._own(self.values), self._own(self.columns) + 1
        return CsrRows(values, columns, start, self.shape[1] + 1)

    def row_squares(self, weights: FloatArray) -> FloatArray:
        """Return the sum of (weight_i k_ji)^2 (n,) over each row; infinite where infinite."""
        with np.errstate(over="ignore", under="ignore"):
            squares = (self._own(self.values) * weights[self._own(self.columns)]) ** 2
        found = np.bincount(self._row_numbers(), weights=squares, minlength=len(self))
        return np.asarray(found, np.float64)

    def with_zeros(self) -> CsrRows:
        """Return the rows with a column of zeros before them."""
        return CsrRows(self.values, self.columns + 1, self.start, self.shape[1] + 1)

    def columns_times(self, exponents: IntArray) -> CsrRows:
        """Return the rows in float64, columns times ``2**exponents``: infinite where that is."""
        values, powers = self._own(self.values), exponents[self._own(self.columns)]
        with np.errstate(over="ignore", under="ignore"):
            values = np.ldexp(values.astype(np.float64, copy=False), powers)
        return CsrRows(values, self._own(self.columns), self.start - self.start[0], self.shape[1])

    def cuts(self, most: int) -> list[int]:
        """Return row numbers 0 to n between which lie at most ``most`` numbers, or one row."""
        found = [0]
        while found[-1] < len(self):
            end = int(np.searchsorted(self.start, self.start[found[-1]] + most, side="right")) - 1
            found.append(min(max(end, found[-1] + 1), len(self)))
        return found


def check_csc(name: str, X: Any) -> None:
    """Raise ValueError if a CSC matrix, which scipy will convert, has indices outside its shape."""
    if X.format == "csc":
        _checked_order(name, X, *X.shape[::-1])


def _checked_order(name: str, X: Any, n: int, d: int) -> tuple[IntArray, Any, bool]:
    """Return ``indptr`` and ``indices`` as kernels read them, and whether each row's ascend.

    Refuses what would lead out of the arrays: they may have been changed after scipy saw them.
    """
    start = np.ascontiguousarray(X.indptr, np.int64)
    columns = np.asarray(X.indices)
    if columns.dtype not in (np.int32, np.int64):
        columns = columns.astype(np.int64)
    columns = np.require(columns[: len(X.data)], requirements=["C", "A"])
    found = sparse.order(columns, start, d) if len(start) == n + 1 else -1
    if found < 0:
        raise ValueError(
            f"{name} of shape {X.shape} is a sparse matrix with indices outside its shape, or "
            "indptr that does not rise from 0 to their number."
        )
    return start, columns[: start[-1]], found == 1
