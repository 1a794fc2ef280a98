"""Universal sets: the keys that can reach a score eps for some query at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from levsketch._checks import (
    CertificationWarning,
    check_p,
    check_real,
    not_reduced_text,
    uncertified_text,
    warn_caller,
)
from levsketch._typing import ArrayLike, Rows
from levsketch.backends import Backend, backend_for
from levsketch.backends.interchange import like, to_numpy
from levsketch.linalg import Whitening, certified_condition
from levsketch.streaming.keys import KeyStream, Policy, Selection


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


def select_keys(backend: Backend, K: Rows, eps: float) -> Selection:
    """Return the selection of one problem ``K`` (n, d), warning if it is not certified."""
    policy = Policy(eps=eps, n_keys=None, min_keys=0, intercept=False, ridge=0.0)
    selection = KeyStream.empty(policy, K.shape[1]).update(backend, K).selection
    if not selection.certified:
        warn_uncertified(selection.whitening)
    return selection


def universal_set(K: ArrayLike, eps: float, p: float = 2) -> Any:
    """Return the mask of the keys that some query can give a score >= eps.

    For f(x) = x^2 these are the keys with leverage score >= eps: no other key
    reaches eps for any query, and each of these does for its own. A key whose
    computed score is below eps by less than its proved error is kept.

    Parameters
    ----------
    K : array (..., n, d)
        Keys; leading axes are independent problems (batch, heads).
    eps : float in (0, 1]
        Threshold on the scores.
    p : float
        Exponent of f(x) = |x|^p; 2 in this version.

    Returns
    -------
    bool array (..., n)
        In the library of ``K``. ``mask.sum(-1) <= d / eps`` up to the error bound.

    Raises
    ------
    ValueError
        For NaN or infinity (with row and column), or eps outside (0, 1].

    Warns
    -----
    CertificationWarning
        If the keys are too ill-conditioned for float64 to prove the set.
    UserWarning
        If d / eps >= n, where the bound on the size of the set says nothing.

    Notes
    -----
    One pass, O(n d^2) time, O(d^2 + d (d / eps + block)) memory besides the
    mask. Source: "LevAttention", arXiv 2410.05462, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> import levsketch as lv
    >>> K = np.vstack([np.ones((99, 2)), [[1.0, -1.0]]])
    >>> np.flatnonzero(lv.universal_set(K, eps=0.05))
    array([99])
    """
    check_p(p)
    eps = check_real("eps", eps, low=0.0, high=1.0, open_low=True)
    keys = stacked("K", K)
    n, d = keys.shape[-2:]
    if d / eps >= n:
        warn_caller(not_reduced_text(d, eps, n))
    backend = backend_for(keys)
    mask = np.zeros(keys.shape[:-1], dtype=np.bool_)
    for i in np.ndindex(keys.shape[:-2]):
        selection = select_keys(backend, keys[i], eps)
        mask[i][selection.index[selection.universal]] = True
    return like(mask, K)
