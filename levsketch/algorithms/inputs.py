"""What the functions take: stacks of problems in any library, and what they warn of."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from levsketch._checks import CertificationWarning, uncertified_text, warn_caller
from levsketch._typing import ArrayLike
from levsketch.backends.interchange import to_numpy
from levsketch.linalg import Whitening, certified_condition


def stacked(name: str, X: ArrayLike) -> Any:
    """Return ``X`` as a host array (..., n, d) of real numbers, not checked for NaN."""
    if scipy.sparse.issparse(X):
        raise TypeError(
            f"{name} is a sparse matrix; this version takes dense rows: pass {name}.toarray(), or "
            "give blocks of rows, made dense one at a time, to LeverageKeySelector.partial_fit."
        )
    host = np.asarray(to_numpy(X))
    if host.dtype.kind == "O":
        host = host.astype(np.float64)
    if host.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {host.dtype}.")
    if host.ndim < 2:
        raise ValueError(f"{name} must have shape (..., n, d), got shape {host.shape}.")
    if 0 in host.shape[-2:]:
        raise ValueError(f"{name} must have at least one row and column, got shape {host.shape}.")
    return host


def warn_uncertified(whitening: Whitening) -> None:
    """Warn that float64 could not prove a result, with the condition number."""
    text = uncertified_text(whitening.condition, certified_condition(len(whitening.active)))
    warn_caller(text, CertificationWarning)
