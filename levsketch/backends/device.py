"""Rows in the memory of a GPU, as the CUDA kernels read them; CuPy is imported for the first."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from levsketch._typing import BoolArray, FloatArray

from .stored import Bfloat16Rows, StoredRows

_CUDA = 2  # kDLCUDA of the DLPack standard
_NO_CUPY = (
    "arrays on a GPU need CuPy: pip install 'levsketch[gpu-cuda13]' (or gpu-cuda12, for drivers of "
    "CUDA 12)."
)
# bfloat16 bits: all but the sign, the exponent, and the number one
_SIZE, _EXPONENT, _ONE = 0x7FFF, 0x7F80, 0x3F80


def cupy() -> Any:
    """Return the module CuPy, or raise ImportError that says how to get it."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(_NO_CUPY) from error
    return cupy


def gpu_names() -> list[str]:
    """Return the names of the GPUs that CuPy can use; none without it."""
    try:
        check_device()
    except (ImportError, RuntimeError):
        return []
    cp = cupy()
    count = cp.cuda.runtime.getDeviceCount()
    return [cp.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]


def check_device() -> None:
    """Raise unless there are CuPy and a GPU that it can use."""
    cp = cupy()
    try:
        count = cp.cuda.runtime.getDeviceCount()
    except cp.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"CuPy finds no GPU that it can use: {error}.") from error
    if not count:
        raise RuntimeError("CuPy finds no GPU.")


class DeviceRows(StoredRows):
    """Rows (..., n, d) on a GPU; slices and problems of a stack share their memory.

    Parameters
    ----------
    array : CuPy array (..., n, d) of float16, float32 or float64, or uint16
        The last for the bits of bfloat16 numbers, which is what no other rows are.
    """

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape, self.ndim = array.shape, array.ndim
        self.dtype = np.dtype(np.float64 if array.dtype == np.float64 else np.float32)

    @classmethod
    def of(cls, X: Any) -> DeviceRows | None:
        """Return an array of CuPy, or of another library on a GPU, as rows; None for others.

        float16, bfloat16, float32 and float64 are not copied; other real types become float64.

        Raises
        ------
        ImportError
            If it lives on a GPU and there is no CuPy.
        TypeError
            If its numbers are not real.
        """
        if not hasattr(X, "__dlpack_device__") or int(X.__dlpack_device__()[0]) != _CUDA:
            return None
        cp = cupy()
        if hasattr(X, "detach"):  # torch
            X = X.detach()
            bits = X.element_size() == 2 and "bfloat16" in str(X.dtype)
            X = cp.from_dlpack(X.view(_int16_of(X)) if bits else X)
            array = X.view(np.uint16) if bits else X
        else:
            array = cp.from_dlpack(X) if not isinstance(X, cp.ndarray) else X
            if array.dtype.name == "bfloat16":
                return cls(array.view(np.uint16))
            bits = False
        if not bits and array.dtype.kind not in "fiub":
            raise TypeError(f"X must hold real numbers, got dtype {array.dtype}.")
        if not bits and (array.dtype.kind != "f" or array.dtype.itemsize > 8):
            array = array.astype(np.float64)
        return cls(array)

    @property
    def _bits(self) -> bool:
        return bool(self.array.dtype == np.uint16)

    def __getitem__(self, key: Any) -> Self:
        """Return the rows of a slice or an index array, or one problem of a stack."""
        with self.array.device:
            return type(self)(self.array[key])

    def wide(self) -> Any:
        """Return the rows as a float64 array on their device."""
        with self.array.device:
            if self._bits:
                bits = self.array.astype(np.uint32) << np.uint32(16)
                return bits.view(np.float32).astype(np.float64)
            return self.array.astype(np.float64, copy=False)

    def widened(self) -> FloatArray:
        """Return the float64 array of all these rows in host memory."""
        host = self.array.get()
        return Bfloat16Rows(host).widened() if self._bits else host.astype(np.float64, copy=False)

    def on_host(self) -> Any:
        """Return the rows in host memory, in a type that NumPy has: bfloat16 as float32."""
        host = self.array.get()
        if not self._bits:
            return host
        return Bfloat16Rows(host).widened().astype(np.float32)

    def _nonzero(self) -> Any:
        return (self.array & np.uint16(_SIZE)) != 0 if self._bits else self.array != 0

    def any(self, axis: int) -> BoolArray:
        """Return which columns (``axis=0``) or rows (``axis=1``) have a nonzero number."""
        with self.array.device:
            return np.asarray(self._nonzero().any(axis=axis).get())

    def touching(self, columns: BoolArray) -> BoolArray:
        """Return which rows have a nonzero number in the columns of a mask (d,)."""
        with self.array.device:
            wanted = np.flatnonzero(columns)
            return np.asarray(type(self)(self.array[:, wanted])._nonzero().any(axis=1).get())

    def not_finite(self) -> tuple[int, int, float] | None:
        """Return row, column and value of the first NaN or infinity."""
        cp = cupy()
        with self.array.device:
            if self._bits:
                wrong = (self.array & np.uint16(_EXPONENT)) == _EXPONENT
            else:
                wrong = ~cp.isfinite(self.array)
            if not bool(wrong.any()):
                return None
            row, column = divmod(int(wrong.argmax()), self.shape[1])
            return row, column, float(self[row : row + 1].widened()[0, column])

    def with_ones(self) -> Self:
        """Return the rows with a column of ones before them, on their device."""
        cp = cupy()
        with self.array.device:
            ones = cp.full((len(self), 1), _ONE if self._bits else 1, self.array.dtype)
            return type(self)(cp.concatenate([ones, self.array], axis=1))


def _int16_of(tensor: Any) -> Any:
    """Return torch's int16, without importing torch."""
    import sys

    return sys.modules["torch"].int16
