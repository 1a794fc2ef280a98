"""Coresets: a weighted sample of rows in which the rows that matter are never missed."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from levsketch._typing import ArrayLike, FloatArray, IntArray
from levsketch.backends.interchange import like, result_dtype, to_numpy

# Smallest normal float64: its inverse is finite.
_TINY = 2.0**-1022


def sample_rows(
    K: ArrayLike,
    scores: ArrayLike,
    size: int,
    random_state: Any = None,
    *,
    return_indices: bool = False,
) -> Any:
    """Return a weighted sample of rows that stands for all of them: ``size`` rows, their weights.

    Row l is in with probability ``pi_l = min(1, c scores_l)``, where c makes these sum to
    ``size``, and then has the weight 1 / pi_l: for every function f that is zero where
    the score is, the weighted sum of f over the sample has the sum of f over all rows
    as its mean. Rows with pi_l = 1 are always in, with weight 1.

    Parameters
    ----------
    K : array (n, ...)
        Rows: NumPy, torch, a DataFrame, nested lists. Only the sampled ones are read.
    scores : array (n,)
        Importance of each row, finite, >= 0, not all zero; only ratios count. Upper bounds
        on the sensitivities give the guarantee below.
    size : int >= 1
        Number of rows wanted.
    random_state : int, RandomState or None
        As in scikit-learn. The sample depends on it, on the scores and on their order.
    return_indices : bool
        Return the row numbers, too.

    Returns
    -------
    rows : array (m, ...)
        The sampled rows, in their order, in the library and type of ``K``; m is ``size``,
        or the number of positive scores if that is smaller.
    weights : array (m,)
        In the library of ``K``; float32 if K has at most 32 bits, else float64.
    indices : int64 array (m,)
        Their row numbers, ascending; only with ``return_indices``.

    Raises
    ------
    ValueError
        For scores that are negative or not finite (with their row), all zero, or not one
        for each row, and for a size below 1.

    Notes
    -----
    Rows meet in the rounds of a knockout tournament, in their order: of two rows with
    probabilities a and b one ends at 0 or 1 and the other takes the rest of a + b, at random
    such that both keep their means (pivotal sampling: Deville and Tille, Biometrika 1998;
    Srinivasan, FOCS 2001). The number of rows is fixed, neighbours seldom come both (which
    helps where they are alike), and probabilities are exact up to rounding, 2**-53 a round.

    **For every f >= 0, sums are as concentrated as if each row were drawn independently.**
    For x_l = exp(t f_l / pi_l) - 1, all of one sign, and current probabilities p_l, a duel
    changes ``P = prod_l (1 + p_l x_l)`` only in p_i and p_j, by D and -D of mean zero: the
    mean of P changes by ``-E D^2 x_i x_j <= 0`` times the other factors. At the end P is
    exp(t sum), at the start it is the moment generating function of independent
    draws. So each bound from that function holds, Bernstein's too, for each order of rows.

    **One query.** Let ``scores_l >= max_q |<q, k_l>|^p / ||K q||_p^p``, with the sum S. For a
    fixed q, terms of the sample are at most ``||K q||_p^p / c`` unless pi_l = 1, c is at least
    size / S, and Bernstein gives ``sum w_l |<q, k_l>|^p`` within 1 +- delta of
    ``||K q||_p^p`` with probability 1 - phi, if ``size >= 2 (1 + delta/3) ln(2/phi) S /
    delta^2``.

    **All queries at once**, for p >= 1: ``size = O(S (d log(1/delta) + log(1/phi)) /
    delta^2)``, with a constant that depends on p, from this and a net of the unit ball
    of ``||K q||_p``. For independent draws by Lewis weights (as scores, S = d)
    O~(d^max(1, p/2) / delta^2) is known to do: Cohen and Peng, STOC 2015; Woodruff and
    Yasuda, ICML 2023, have sharper bounds for sensitivities. Those proofs are not of this
    design.

    O(n + size log(size)) time and O(n) memory besides ``K``.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.algorithms.coreset import sample_rows
    >>> K = np.array([[9.0], [1.0], [1.0], [1.0], [1.0], [1.0]])
    >>> rows, weights = sample_rows(K, scores=[9, 1, 1, 1, 1, 1], size=3, random_state=0)
    >>> rows.ravel(), weights
    (array([9., 1., 1.]), array([1. , 2.5, 2.5]))
    >>> float(weights @ rows.ravel()), float(K.sum())
    (14.0, 14.0)
    """
    rows = K if hasattr(K, "shape") else np.asarray(K)
    values = _checked_scores(scores, int(rows.shape[0]) if rows.shape else 0)
    pi = inclusion_probabilities(values, _checked_size(size))
    index = pivotal_sample(pi, check_random_state(random_state))
    taken = rows.iloc[index] if hasattr(rows, "iloc") else rows[like(index, rows)]
    dtype = result_dtype(np.asarray(to_numpy(taken)).dtype)
    weights = like((1.0 / pi[index]).astype(dtype), rows)
    return (taken, weights, like(index, rows)) if return_indices else (taken, weights)


def inclusion_probabilities(scores: FloatArray, size: int) -> FloatArray:
    """Return ``min(1, c scores)`` with the sum ``size``, or 1 for all positive scores if fewer.

    Scores (n,) must be finite, >= 0 and not all zero. Positive ones get positive results.
    """
    positive = scores > 0
    n, count = len(scores), int(positive.sum())
    if size >= count:
        return positive.astype(np.float64)
    # sums must not overflow; what underflows on the way stays positive
    scaled = np.ldexp(scores, 900 - int(np.frexp(scores.max())[1]))
    scaled = np.maximum(scaled, np.where(positive, _TINY, 0.0))
    # only the largest scores can reach 1: with m of them there, the others share size - m
    parted = np.partition(scaled, n - size)
    top = np.sort(parted[n - size :])
    tails = (parted[: n - size].sum() + np.cumsum(top))[::-1]  # without the m largest
    fits = top[::-1] * np.arange(size, 0, -1) <= tails
    fits[-1] = True  # the last of them always does, whatever rounding says
    m = int(np.argmax(fits))
    pi = np.minimum(scaled, tails[m]) / tails[m] * (size - m)
    return np.asarray(np.clip(pi, np.where(positive, _TINY, 0.0), 1.0))


def pivotal_sample(pi: FloatArray, rng: np.random.RandomState) -> IntArray:
    """Return the row numbers, ascending, of a random set with the inclusion probabilities ``pi``.

    Its size is the sum of ``pi`` (n,), which must be an integer up to rounding.
    """
    chosen = [np.flatnonzero(pi >= 1.0)]
    unit = np.flatnonzero((pi > 0.0) & (pi < 1.0))
    p = pi[unit]
    while len(unit) > 1:
        half = len(unit) // 2
        a, b = p[: 2 * half : 2], p[1 : 2 * half : 2]
        # a + b - 1 with one rounding: 1 - max(a, b) is exact where the result is not negative
        excess = np.minimum(a, b) - (1.0 - np.maximum(a, b))
        over = excess >= 0.0
        # the chance that the first row is ahead: gets 1 (over), or everything (not over)
        part = np.where(over, 1.0 - b, a)
        whole = np.where(over, (1.0 - a) + (1.0 - b), a + b)
        # in (0, 1]: a chance of 0 never comes true, one of 1 always
        draws = 1.0 - rng.random_sample(half)
        first = draws <= part / whole
        left, right = unit[: 2 * half : 2], unit[1 : 2 * half : 2]
        ahead, behind = np.where(first, left, right), np.where(first, right, left)
        chosen.append(ahead[over])
        unit = np.concatenate([np.where(over, behind, ahead), unit[2 * half :]])
        p = np.concatenate([np.where(over, excess, a + b), p[2 * half :]])
        # sums that rounded to 1 are decided
        chosen.append(unit[p >= 1.0])
        open_ = (p > 0.0) & (p < 1.0)
        unit, p = unit[open_], p[open_]
    # the probability of the last row is 0 or 1 but for rounding: the sum tells which
    missing = round(float(pi.sum())) - sum(map(len, chosen))
    chosen.append(unit[: max(missing, 0)])
    return np.sort(np.concatenate(chosen))


def _checked_scores(scores: ArrayLike, n: int) -> FloatArray:
    """Return the scores of n rows as float64, or raise ValueError."""
    values = np.asarray(to_numpy(scores))
    if values.dtype.kind not in "fiub":
        raise TypeError(f"scores must hold real numbers, got dtype {values.dtype}.")
    if values.shape != (n,):
        raise ValueError(
            f"scores must have shape ({n},), one for each row of K, got {values.shape}."
        )
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"scores must be finite and >= 0, got {values[row]} at row {row}.")
    if not values.any():
        raise ValueError("scores must not all be zero: there would be nothing to sample.")
    return values.astype(np.float64)


def _checked_size(size: Any) -> int:
    """Return ``size`` as an int >= 1, or raise."""
    if isinstance(size, bool) or not isinstance(size, numbers.Integral):
        raise TypeError(f"size must be an int, got {type(size).__name__} {size!r}.")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    return int(size)
