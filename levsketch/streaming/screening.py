"""Bounds on scores that cost less than scores: most rows of a stream need no more.

Once columns have unit norm, W is a multiple of an isometry but for some directions in which it
is much larger, or much smaller. A few of these and the norm of a row bound its score ``||k W||^2``.
Where columns are not correlated the norm will do: d operations in place of d^2 / 2.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from scipy.linalg import lapack

from levsketch._typing import FloatArray, Rows
from levsketch.backends import Backend
from levsketch.linalg import QR_COHERENT, QR_CONSTANT, UNIT_ROUNDOFF, Whitening

# Directions at either end that are tried; kernels compute as many at once for the price of one.
# More than an eighth of the columns would cost half as much as the score itself.
_DIRECTIONS, _SHARE = (0, 16, 32), 8
# The mean bound is at most this share of the threshold, without directions and with them: else
# too many rows pass.
_USEFUL = (0.95, 0.7)
# A screen takes about the time of this many d^3 flops, and spares a row d^2 at most; until the next
# prefix there come about as many rows as were seen, so that these are at least as many times d.
_WORTH = 128
# Of power and subspace iterations; what they leave is in the bound, which is proved.
_ITERATIONS = 8
# Directions that are taken out leave this many times what they should: room for their errors.
_ABOVE = 1.1
# Rounding of all products is covered by this share of the bound, and by r.
_SLACK = 1e-3
# A prefix serves many blocks, and so do its screens, by number of directions.
_SCREENS: WeakKeyDictionary[Whitening, dict[int, Screen | None]] = WeakKeyDictionary()


class Screen(NamedTuple):
    """``||k W||^2 <= sum_j (rest_j k_j)^2 + ||k more||^2 - ||k less||^2``, computed or not.

    ``more`` and ``less`` are (d, c), ``rest`` (d,). ``mean`` is that of the bounds, over rows
    like those of the whitening, in units of the mean of their scores.
    """

    rest: FloatArray
    more: FloatArray
    less: FloatArray
    mean: float

    def bounds(self, backend: Backend, rows: Rows) -> FloatArray:
        """Return the bound (n,) for each of ``rows`` (n, d)."""
        found = np.asarray(backend.screened_row_norms(rows, self.more, self.rest))
        if self.less.shape[1]:
            with np.errstate(invalid="ignore"):
                found -= np.asarray(backend.whitened_row_norms(rows, self.less))
            found[np.isnan(found)] = np.inf
        return found * (1.0 + 3 * _SLACK)


def screen_for(prefix: Whitening, threshold: float, rows_seen: int) -> Screen | None:
    """Return a screen for rows like those of ``prefix`` that rarely passes ``threshold``.

    None where scores themselves cost no more. O(d^3), once for a prefix.
    """
    if not threshold > 0 or rows_seen < _WORTH * len(prefix.active):
        return None
    if prefix.folded() is None or not prefix.spans_coordinates:
        return None
    mean_score = prefix.rank / max(rows_seen, 1)
    for count in _DIRECTIONS:
        useful = _USEFUL[count > 0] * threshold
        if count * _SHARE > prefix.rank or mean_score > useful:
            return None
        known = _SCREENS.setdefault(prefix, {})
        if count not in known:
            known[count] = _screen(prefix, count)
        found = known[count]
        if found is not None and found.mean * mean_score <= useful:
            return found
    return None


def _screen(prefix: Whitening, count: int) -> Screen | None:
    """Return the screen of ``count`` directions at either end; None if none is proved."""
    active, d = prefix.active, len(prefix.active)
    norms = np.linalg.norm(prefix.factor.R, axis=0)[active]
    # of rows whose columns have unit norm: what correlates them is all that is left
    unit = prefix.factor.R[:, active] / norms
    V = prefix.matrix[active] * norms[:, None]
    left = V @ V.T
    around = np.zeros((len(norms), 0))  # long rows, for which W is small
    small, more = np.zeros(0), around
    if count:
        around = _leading(unit.T @ unit, count)
        small = _ABOVE * np.einsum("ij,ij->j", around, left @ around)
        more = V @ np.linalg.qr(V.T @ _leading(left, count))[0]
        left = left - more @ more.T  # less V times a projection: it is still positive
    about = _largest_eigenvalue(left)
    for factor in (1.0 + 1e-9, 1.02, 1.2, 1.5, 2.0):
        top = factor * about
        less = around * np.sqrt(np.maximum(top - small, 0.0))
        gap = top * np.eye(len(left)) - less @ less.T - left
        if lapack.dpotrf(gap, overwrite_a=True)[1] == 0:
            break
    else:
        return None
    top += 4 * (d + 4) * UNIT_ROUNDOFF * (float(np.sum(V * V)) + d * top)
    g = (QR_CONSTANT + QR_COHERENT * d) * UNIT_ROUNDOFF
    squares = top * (1 + 8 * g) + (1.0 + 1.0 / _SLACK) * g**2 * d * np.sum(V * V, axis=1)
    mean = float(np.sum(squares) + np.sum((unit @ more) ** 2) - np.sum((unit @ less) ** 2))
    down = np.zeros((d, 1))
    down[active, 0] = np.ldexp(1.0 / norms, -prefix.factor.exponents[active])
    wide = np.zeros((d, 1 + 2 * count))
    wide[active] = np.column_stack([np.sqrt(squares), more, less])
    wide *= down
    rest, more, less = np.split(wide, (1, 1 + count), axis=1)
    rest, more, less = rest[:, 0].copy(), more.copy(), less.copy()
    return Screen(rest, more, less, mean / prefix.rank)


def _leading(A: FloatArray, count: int) -> FloatArray:
    """Return about the eigenvectors (r, count) of the largest eigenvalues of A (r, r)."""
    Q = np.random.default_rng(0).standard_normal((len(A), min(count, len(A))))
    for _ in range(_ITERATIONS):
        Q = np.linalg.qr(A @ Q)[0]
    _, rotation = np.linalg.eigh(Q.T @ A @ Q)
    return np.asarray(Q @ rotation)


def _largest_eigenvalue(A: FloatArray) -> float:
    """Return about the largest eigenvalue of A (r, r), from below."""
    x, size = np.random.default_rng(1).standard_normal(len(A)), 1.0
    for _ in range(_ITERATIONS):
        x = A @ (x / size)
        size = float(np.linalg.norm(x))
        if not size > 0.0:
            return 0.0
    return size
