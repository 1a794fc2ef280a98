"""Array libraries that are installed here, by name: functions that convert.

The laws over this list run on NumPy and on whichever of array-api-strict and torch are there.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np


def _strict(X: np.ndarray) -> Any:
    import array_api_strict

    return array_api_strict.asarray(X)


def _torch(X: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(X))


OTHERS: dict[str, Callable[[np.ndarray], Any]] = {
    name: convert
    for name, convert in (("array_api_strict", _strict), ("torch", _torch))
    if importlib.util.find_spec(name)
}
LIBRARIES = {"numpy": np.ascontiguousarray} | OTHERS


def host(X: Any) -> np.ndarray:
    """Return an array of any of these libraries as a NumPy array."""
    return np.asarray(X) if isinstance(X, (np.ndarray, np.generic)) else np.from_dlpack(X)
