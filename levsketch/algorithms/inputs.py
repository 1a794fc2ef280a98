"""What the functions take: stacks of problems in any library, and what they warn of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse

from levsketch._checks import CertificationWarning, check_real, uncertified_text, warn_caller
from levsketch._typing import ArrayLike
from levsketch.backends.csr import CsrRows
from levsketch.backends.interchange import stored_rows, to_numpy
from levsketch.linalg import Whitening, certified_condition


def stacked(name: str, X: ArrayLike, *, stored: bool = False) -> Any:
    """Return ``X`` as a host array (..., n, d) of real numbers, not checked for NaN.

    With ``stored`` bfloat16 arrays come as rows that share their memory, else as float32.
    """
    if scipy.sparse.issparse(X):
        raise TypeError(
            f"{name} is a sparse matrix; this version takes dense rows here: pass {name}.toarray() "
            "(leverage_scores, universal_set with p = 2 and LeverageKeySelector take sparse ones)."
        )
    host: Any = stored_rows(X) if stored else None
    if host is None:
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


def keys_of(name: str, X: ArrayLike) -> Any:
    """Return ``X`` as `stacked` does, but rows that kernels read in their own form in that."""
    if not scipy.sparse.issparse(X):
        return stacked(name, X, stored=True)
    rows = CsrRows.of(name, X)
    if 0 in rows.shape:
        raise ValueError(f"{name} must have at least one row and column, got shape {rows.shape}.")
    return rows


# Far beyond it, `FarLogits` may lose what a logit needs.
_MAX_SCALE = 1e100


def checked_scale(scale: Any, d: int) -> float:
    """Return the factor of the products <q, k>: a number, or 1 / sqrt(d) for "sqrt_d"."""
    if isinstance(scale, str):
        if scale != "sqrt_d":
            raise ValueError(f'scale must be "sqrt_d" or a number > 0, got {scale!r}.')
        return 1.0 / math.sqrt(d)
    return check_real("scale", scale, low=0.0, high=_MAX_SCALE, open_low=True)


def check_problems(Q: Any, K: Any, V: Any) -> None:
    """Raise unless queries, keys and values belong to the same problems."""
    if Q.shape[:-2] != K.shape[:-2] or Q.shape[-1] != K.shape[-1]:
        raise ValueError(
            f"Q of shape {Q.shape} and K of shape {K.shape} must agree in their leading axes and "
            "in their last one."
        )
    if V.shape[:-1] != K.shape[:-1]:
        raise ValueError(
            f"V of shape {V.shape} and K of shape {K.shape} must agree in all axes but the last."
        )


def warn_uncertified(whitening: Whitening) -> None:
    """Warn that float64 could not prove a result, with the condition number."""
    text = uncertified_text(whitening.condition, certified_condition(len(whitening.active)))
    warn_caller(text, CertificationWarning)
