"""One file, one place where the n rows live."""

from .base import Backend
from .config import backend_asked
from .cpu import CpuBackend
from .csr import CsrRows
from .cuda import CudaBackend
from .device import DeviceRows

_CPU, _CUDA = CpuBackend(), CudaBackend()


def backend_for(X: object) -> CpuBackend:
    """Return the backend that computes with ``X``: on the device where it is, unless asked for.

    `levsketch.config_context` asks; rows are then moved, run by run. Sparse rows, which only the
    CPU takes by their nonzeros, stay.
    """
    if isinstance(X, CsrRows):
        return _CPU
    asked = backend_asked()
    on_device = isinstance(X, DeviceRows) if asked == "auto" else asked == "cuda"
    return _CUDA if on_device else _CPU


__all__ = ["Backend", "CpuBackend", "CudaBackend", "backend_for"]
