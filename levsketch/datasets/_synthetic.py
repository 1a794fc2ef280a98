"""Keys and queries with a known answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Bunch, check_random_state

from levsketch._checks import check_real


def make_planted_attention(
    n_samples: int = 1000,
    n_features: int = 16,
    *,
    n_relevant: int = 8,
    noise: float = 0.1,
    n_queries: int = 100,
    n_active: int = 3,
    query_noise: float = 0.05,
    random_state: Any = None,
) -> Bunch:
    """Return keys of which a few are relevant, and queries that look for those.

    Relevant keys are rows of norm one in general position; all others together are a
    matrix of spectral norm ``noise``. Each query is a random combination of
    ``n_active`` relevant keys plus noise.

    Parameters
    ----------
    n_samples, n_features : int
        Number n of keys and their dimension d.
    n_relevant : int
        At most ``n_features`` and less than ``n_samples``.
    noise : float > 0
        Spectral norm nu of the irrelevant keys.
    n_queries, n_active : int
        Number of queries, and of relevant keys that each combines.
    query_noise : float >= 0
        Norm of the random vector added to each query (a query has norm about one).
    random_state : int, RandomState or None

    Returns
    -------
    Bunch
        ``K`` (n, d) and ``Q`` (n_queries, d), float64; ``relevant``
        (n_relevant,) row numbers, ascending; ``relevant_bound``, below which no
        relevant key has its leverage score; ``irrelevant_bound``, above which no other
        key has it. Any eps between recovers ``relevant`` when the first is larger.

    Notes
    -----
    With S the relevant rows, their scores are at least ``s^2 / (s^2 + nu^2)`` with s the
    smallest singular value of S; another key k has at most ``||k||^2 / lambda_min``
    of the Gram matrix. The planted model of "LevAttention", arXiv 2410.05462.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch import datasets, leverage_scores
    >>> planted = datasets.make_planted_attention(random_state=0)
    >>> scores = leverage_scores(planted.K)
    >>> bool(scores[planted.relevant].min() >= planted.relevant_bound)
    True
    """
    if not 1 <= n_relevant <= min(n_features, n_samples - 1):
        raise ValueError(
            f"n_relevant must be in [1, min(n_features, n_samples - 1)] = "
            f"[1, {min(n_features, n_samples - 1)}], got {n_relevant}."
        )
    if not 1 <= n_active <= n_relevant:
        raise ValueError(
            f"n_active must be in [1, n_relevant] = [1, {n_relevant}], got {n_active}."
        )
    noise = check_real("noise", noise, low=0.0, open_low=True)
    query_noise = check_real("query_noise", query_noise, low=0.0)
    rng = check_random_state(random_state)

    S = rng.standard_normal((n_relevant, n_features))
    S /= np.linalg.norm(S, axis=1, keepdims=True)
    N = rng.standard_normal((n_samples - n_relevant, n_features))
    N *= noise / np.linalg.norm(N, 2)
    relevant = np.sort(rng.choice(n_samples, n_relevant, replace=False))
    keys = np.empty((n_samples, n_features))
    keys[relevant] = S
    others = np.delete(np.arange(n_samples), relevant)
    keys[others] = N

    weights = np.zeros((n_queries, n_relevant))
    for row in weights:
        chosen = rng.choice(n_relevant, n_active, replace=False)
        row[chosen] = rng.choice([-1.0, 1.0], n_active) * rng.uniform(0.5, 1.0, n_active)
    queries = weights @ S
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    error = rng.standard_normal(queries.shape)
    queries += query_noise * error / np.linalg.norm(error, axis=1, keepdims=True)

    smallest = np.linalg.svd(S, compute_uv=False)[-1]
    least = np.linalg.svd(keys, compute_uv=False)[-1] if n_samples >= n_features else 0.0
    largest = np.max(np.sum(N * N, axis=1))
    return Bunch(
        K=keys,
        Q=queries,
        relevant=relevant,
        relevant_bound=float(smallest**2 / (smallest**2 + noise**2)),
        irrelevant_bound=float(min(1.0, largest / least**2)) if least > 0 else 1.0,
    )


def make_ill_conditioned_keys(
    n_samples: int = 1000,
    n_features: int = 16,
    *,
    condition: float = 1e10,
    lone: float | None = None,
    rotate: bool = True,
    random_state: Any = None,
) -> Bunch:
    """Return keys with a prescribed condition number, and perhaps one alone in its direction.

    Parameters
    ----------
    n_samples, n_features : int
        Number n of keys and their dimension d, n > d.
    condition : float >= 1
        Singular values fall geometrically from 1 to 1 / condition.
    lone : float > 0, optional
        Norm of one key that alone has a component in one more direction: its leverage
        score is 1 (with ``rotate``: up to the rounding of the other keys' entries, so
        choose it well above 1e-16). The other keys then span d - 1 dimensions.
    rotate : bool, default=True
        Apply a random rotation, so that no column shows the structure.
    random_state : int, RandomState or None

    Returns
    -------
    Bunch
        ``K`` (n, d) float64; ``lone_row``, the row number of the lone key or None.

    Examples
    --------
    >>> from levsketch import datasets, leverage_scores
    >>> made = datasets.make_ill_conditioned_keys(lone=1e-300, rotate=False, random_state=0)
    >>> float(leverage_scores(made.K)[made.lone_row].round(12))
    1.0
    """
    if not n_features < n_samples:
        raise ValueError(f"n_samples must be above n_features = {n_features}, got {n_samples}.")
    condition = check_real("condition", condition, low=1.0)
    rng = check_random_state(random_state)
    rank = n_features - (lone is not None)
    if rank < 1:
        raise ValueError("n_features must be at least 2 for a lone key.")
    U = np.linalg.qr(rng.standard_normal((n_samples - (lone is not None), rank)))[0]
    mixed = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    keys = (U * np.geomspace(1.0, 1.0 / condition, rank)) @ mixed.T
    lone_row = None
    if lone is not None:
        lone = check_real("lone", lone, low=0.0, open_low=True)
        lone_row = int(rng.randint(n_samples))
        alone = np.zeros(n_features)
        alone[-1] = lone
        keys = np.column_stack([keys, np.zeros(n_samples - 1)])
        keys = np.insert(keys, lone_row, alone, axis=0)
    if rotate:
        keys = keys @ np.linalg.qr(rng.standard_normal((n_features, n_features)))[0]
    return Bunch(K=keys, lone_row=lone_row)
