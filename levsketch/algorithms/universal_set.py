"""Universal sets: the keys that can reach a score eps for some query at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from levsketch._checks import check_p, check_real, most_keys, not_reduced_text, warn_caller
from levsketch._typing import ArrayLike, Rows
from levsketch.backends import Backend, backend_for
from levsketch.backends.interchange import like
from levsketch.functions import Power, ScoreFunction, make_function
from levsketch.streaming.keys import KeyStream, Policy, Selection

from .inputs import keys_of, stacked, warn_uncertified
from .sensitivity_bounds import bounds_of_rows


def select_keys(backend: Backend, K: Rows, eps: float) -> Selection:
    """Return the selection of one problem ``K`` (n, d), warning if it is not certified."""
    policy = Policy(eps=eps, n_keys=None, min_keys=0, intercept=False, ridge=0.0)
    selection = KeyStream.empty(policy, K.shape[1]).update(backend, K).selection
    if not selection.certified:
        warn_uncertified(selection.whitening)
    return selection


def universal_set(
    K: ArrayLike, eps: float, p: float = 2, *, function: ScoreFunction | str | None = None
) -> Any:
    """Return the mask of the keys that some query can give a score >= eps.

    For f(x) = x^2 these are the keys with leverage score >= eps: no other key
    reaches eps for any query, and each of these does for its own. A key whose
    computed score is below eps by less than its proved error is kept. For other f
    they are the keys whose certified bound (`sensitivity_bounds`) reaches eps: none is
    missed, some may be in that no query lifts to eps.

    Parameters
    ----------
    K : array (..., n, d), or scipy.sparse (n, d) for p = 2
        Keys; leading axes are independent problems (batch, heads). float16, float32,
        float64 and, for p = 2, bfloat16 are read as they are.
    eps : float in (0, 1]
        Threshold on the scores.
    p : float > 0
        Exponent of f(x) = |x|^p.
    function : ScoreFunction or its name, optional
        Another f, of at most quadratic growth; ``p`` is then not used.

    Returns
    -------
    bool array (..., n)
        In the library of ``K``. ``mask.sum(-1) <= d / eps`` up to the error bound, for p = 2.

    Raises
    ------
    ValueError
        For NaN or infinity (with row and column), eps outside (0, 1], p <= 0.

    Warns
    -----
    CertificationWarning
        If the keys are too ill-conditioned for float64 to prove the set.
    UserWarning
        If d / eps >= n (d^(p/2) / eps for p > 2), where the bound on the size of the set
        says nothing.

    Notes
    -----
    For p = 2 one pass, O(n d^2) time, O(d^2 + d (d / eps + block)) memory besides the
    mask. Otherwise as `sensitivity_bounds`, about ten passes. Source: "LevAttention",
    arXiv 2410.05462, sections 2 and 3.

    See Also
    --------
    LpSensitivitySelector : The set for any f in one pass, exact with ``refine=True``.

    Examples
    --------
    >>> import numpy as np
    >>> import levsketch as lv
    >>> K = np.vstack([np.ones((99, 2)), [[1.0, -1.0]]])
    >>> np.flatnonzero(lv.universal_set(K, eps=0.05))
    array([99])
    >>> np.flatnonzero(lv.universal_set(K, eps=0.05, p=4))
    array([99])
    """
    f = Power(check_p(p)) if function is None else make_function(function)
    squares = isinstance(f, Power) and f.p == 2.0
    eps = check_real("eps", eps, low=0.0, high=1.0, open_low=True)
    keys = keys_of("K", K) if squares else stacked("K", K)
    n, d = keys.shape[-2:]
    exponent = f.p if isinstance(f, Power) else 2.0
    if most_keys(d, eps, exponent) >= n:
        warn_caller(not_reduced_text(d, eps, n, exponent))
    backend = backend_for(keys)
    mask = np.zeros(keys.shape[:-1], dtype=np.bool_)
    for i in np.ndindex(keys.shape[:-2]):
        if squares:
            selection = select_keys(backend, keys[i], eps)
            mask[i][selection.index[selection.universal]] = True
        else:
            mask[i] = bounds_of_rows(backend, keys[i], f) >= eps
    return like(mask, K)
