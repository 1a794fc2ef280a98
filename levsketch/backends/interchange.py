"""Arrays of other libraries: to host memory and back, without importing them first."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from .device import DeviceRows
from .stored import Bfloat16Rows, StoredRows

_CPU = 1  # kDLCPU of the DLPack standard


def is_foreign(X: Any) -> bool:
    """Tell whether ``X`` is an array of a library other than NumPy (torch, CuPy, JAX)."""
    return not isinstance(X, (np.ndarray, np.generic)) and hasattr(X, "__dlpack__")


def to_numpy(X: Any) -> Any:
    """Return a foreign array as a NumPy view (bfloat16: a float32 copy; a copy from a GPU).

    Others are returned unchanged.

    Raises
    ------
    TypeError
        If the array lives on a device other than the CPU or a GPU of CUDA, or is a dask array.
    """
    if type(X).__module__.partition(".")[0] == "dask":
        raise TypeError(
            "dask arrays are not supported in this version; pass blocks of rows to partial_fit."
        )
    if not is_foreign(X):
        if getattr(getattr(X, "dtype", None), "name", None) == "bfloat16":
            return X.astype(np.float32)
        return X
    kind = f"{type(X).__module__.partition('.')[0]} array"
    rows = DeviceRows.of(X)
    if rows is not None:
        return rows.on_host()
    if X.__dlpack_device__()[0] != _CPU:
        raise TypeError(
            f"got a {kind} on a device that is neither the CPU nor a GPU of CUDA: copy it to the "
            "CPU first (torch: x.cpu())."
        )
    if hasattr(X, "detach"):
        X = X.detach()
    if str(X.dtype) == "torch.bfloat16":
        X = X.float()  # exact: a bfloat16 is the upper half of a float32
    return np.from_dlpack(X)


def stored_rows(X: Any) -> StoredRows | None:
    """Return bfloat16 rows, or rows on a GPU, sharing their memory; None for any other array.

    Raises
    ------
    TypeError
        If the array lives on another device.
    """
    if is_foreign(X):
        rows = DeviceRows.of(X)
        if rows is not None:
            return rows
        if str(getattr(X, "dtype", None)) != "torch.bfloat16":
            return None
        # DLPack has the type, NumPy has not
        bits = to_numpy(X.detach().view(array_namespace(X).int16))
        return Bfloat16Rows(bits.view(np.uint16))
    if isinstance(X, np.ndarray) and X.dtype.name == "bfloat16":
        return Bfloat16Rows(np.asarray(X).view(np.uint16))
    return None


def template_of(X: Any) -> Any:
    """Return an empty array of the library and device of a foreign ``X``, else None."""
    return array_namespace(X).empty((0,), device=device(X)) if is_foreign(X) else None


def like(result: Any, template: Any) -> Any:
    """Return ``result`` in the library and on the device of ``template`` (else NumPy's).

    A result that is on the device already is not copied.
    """
    if not is_foreign(template):
        return result
    xp = array_namespace(template)
    if isinstance(result, np.ndarray):
        return xp.asarray(result, device=device(template))
    return result if type(result) is type(template) else xp.from_dlpack(result)


def rounded_up(bounds: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return upper bounds in a type that may be shorter, never below what they were."""
    with np.errstate(over="ignore"):
        short = bounds.astype(dtype)
    return np.where(short < bounds, np.nextafter(short, dtype.type(np.inf)), short)


def result_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of scores for rows of ``dtype``: float32 up to 32 bits, else float64.

    Scores of half-precision rows come in float32: with the 11 or 8 bits of the
    input they could not be compared with eps.
    """
    dtype = np.dtype(dtype)
    return np.dtype(np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64)
