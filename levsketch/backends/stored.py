"""Rows in forms that NumPy cannot compute with: kernels read them as they are."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from levsketch._typing import BoolArray, FloatArray


class StoredRows:
    """Base of n rows of d numbers that are widened a block at a time, never whole.

    They behave as an array as far as streams need it: shape, dtype, rows by slice or
    indices. ``np.asarray`` and arithmetic of NumPy see the float64 array; so only blocks may
    be given to these.

    Attributes
    ----------
    shape : (n, d)
    dtype : float32 or float64
        Which holds every number of the rows exactly; that of results.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    ndim = 2

    def __len__(self) -> int:
        """Return n."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> Self:
        """Return the rows of a slice or an index array; a slice copies nothing."""
        raise AssertionError("a subclass defines __getitem__")

    def widened(self) -> FloatArray:
        """Return the (n, d) float64 array of all these rows."""
        raise AssertionError("a subclass defines widened")

    def any(self, axis: int) -> BoolArray:
        """Return which columns (``axis=0``) or rows (``axis=1``) have a nonzero number."""
        return np.asarray(self.widened().any(axis=axis))

    def touching(self, columns: BoolArray) -> BoolArray:
        """Return which rows have a nonzero number in the columns of a mask (d,)."""
        return np.asarray(self.widened()[:, columns].any(axis=1))

    def not_finite(self) -> tuple[int, int, float] | None:
        """Return row, column and value of the first NaN or infinity."""
        wide = self.widened()
        for row, column in np.argwhere(~np.isfinite(wide)):
            return int(row), int(column), float(wide[row, column])
        return None

    def with_ones(self) -> Any:
        """Return the rows with a column of ones before them, in this form or as an array."""
        return np.concatenate([np.ones((len(self), 1)), self.widened()], axis=1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return ``widened()``, in ``dtype`` if one is named."""
        return self.widened().astype(np.float64 if dtype is None else dtype, copy=False)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """Return the (n, d) array of ``dtype``."""
        return self.widened().astype(dtype, copy=False)
