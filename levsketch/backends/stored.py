"""Rows in forms that NumPy cannot compute with: kernels read them as they are."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from levsketch._typing import BoolArray, FloatArray


class StoredRows:
    """Base of n rows of d numbers that are widened a block at a time, never whole.

    They behave as an array as far as streams need it: shape, dtype, rows by slice or
    indices. ``np.asarray`` and arithmetic of NumPy see the float64 array; so only blocks may
    be given to these.

    Attributes
    ----------
    shape : (n, d)
        With leading axes before it where a subclass holds stacks of problems.
    dtype : float32 or float64
        Which holds every number of the rows exactly; that of results.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ndim: int = 2

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
        ones = np.ones((len(self), 1), self.dtype)
        return np.concatenate([ones, np.asarray(self, self.dtype)], axis=1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return ``widened()``, in ``dtype`` if one is named."""
        return self.widened().astype(np.float64 if dtype is None else dtype, copy=False)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """Return the (n, d) array of ``dtype``."""
        return self.widened().astype(dtype, copy=False)


class Bfloat16Rows(StoredRows):
    """Rows of bfloat16 numbers, as bits: those of the upper halves of float32 numbers.

    Parameters
    ----------
    bits : (..., n, d) uint16 array
        Read, never written. Leading axes are problems; an index of all of them gives one.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.backends.stored import Bfloat16Rows
    >>> Bfloat16Rows(np.array([[0x3F80, 0xC000]], np.uint16)).widened()
    array([[ 1., -2.]])
    """

    dtype = np.dtype(np.float32)

    def __init__(self, bits: npt.NDArray[np.uint16]) -> None:
        self.bits = bits
        self.shape = bits.shape
        self.ndim = bits.ndim

    def __getitem__(self, key: Any) -> Self:
        """Return the rows of a slice or an index array, or one problem of a stack."""
        return type(self)(self.bits[key])

    def not_finite(self) -> tuple[int, int, float] | None:
        """Return row, column and value of the first NaN or infinity."""
        return super().not_finite() if ((self.bits & 0x7F80) == 0x7F80).any() else None

    def widened(self) -> FloatArray:
        """Return the float64 array of all these rows, exactly."""
        return np.asarray(self, np.float64)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the rows in ``dtype``, by way of float32, in float64 if none is named."""
        wide = self.bits.astype(np.uint32)
        wide <<= 16
        with np.errstate(invalid="ignore"):  # of a signalling NaN: whoever looks will find it
            return wide.view(np.float32).astype(np.float64 if dtype is None else dtype, copy=False)
