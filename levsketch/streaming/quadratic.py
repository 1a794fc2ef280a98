"""Moments of second degree in the keys: exp as the parabola that suits a query's logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from levsketch._typing import FloatArray

# Products of two columns that are held at a time.
_ENTRIES = 1 << 21
# Beyond this variance of the logits a parabola follows exp nowhere; it stays what it is for this.
_MOST_VARIANCE = 3.0


@dataclass(frozen=True, eq=False)
class QuadraticMoments:
    """``sum_j w_j phi(k_j) [v_j, 1]`` with phi the monomials of degrees 0, 1 and 2. Immutable.

    Attributes
    ----------
    zeroth, first, second : (c,), (d, c) and (d (d + 1) / 2, c) arrays
        The last for the products ``k_i k_j``, i <= j, row by row of the triangle.

    Notes
    -----
    The logits of a query, ``m + x`` with m their mean and v the variance of x, are nearly normal
    where keys are many and none is heavy. The parabola that follows exp(x) best in the mean
    square under a normal law is its Hermite expansion, ``exp(v / 2) (1 + x + (x^2 - v) / 2)``.
    What it leaves is, for each query, not correlated with 1, x and x^2, so that little of it
    stays in an average over keys. (A fixed parabola in q does far worse: three times on
    Gaussian logits of deviation 0.5.)
    """

    zeroth: FloatArray
    first: FloatArray
    second: FloatArray

    @classmethod
    def empty(cls, d: int, columns: int) -> QuadraticMoments:
        """Return the moments of no rows."""
        zeros = np.zeros
        return cls(zeros(columns), zeros((d, columns)), zeros((d * (d + 1) // 2, columns)))

    @staticmethod
    def floats(d: int, columns: int) -> int:
        """Return how many numbers they are."""
        return columns * (1 + d + d * (d + 1) // 2)

    def add(self, keys: FloatArray, weights: FloatArray) -> QuadraticMoments:
        """Return the moments with those of keys (n, d) added, weights (n, c)."""
        second = self.second.copy()
        step = max(1, _ENTRIES // len(second))
        for i in range(0, len(keys), step):
            second += _pairs(keys[i : i + step]).T @ weights[i : i + step]
        return replace(
            self,
            zeroth=self.zeroth + weights.sum(axis=0),
            first=self.first + keys.T @ weights,
            second=second,
        )

    def times(self, factor: float) -> QuadraticMoments:
        """Return the moments times a number."""
        return QuadraticMoments(self.zeroth * factor, self.first * factor, self.second * factor)

    def plus(self, other: QuadraticMoments) -> QuadraticMoments:
        """Return the sum of both, of one frame."""
        return QuadraticMoments(
            self.zeroth + other.zeroth, self.first + other.first, self.second + other.second
        )

    def moved(
        self, key: float, shift: FloatArray, of_values: Callable[[FloatArray], FloatArray]
    ) -> QuadraticMoments:
        """Return the moments of keys ``k key + shift``, ``of_values`` applied to the columns."""
        i, j = np.triu_indices(len(shift))
        first, s = self.first * key, shift[:, None]
        mixed = s[i] * first[j] + s[j] * first[i] + (s[i] * s[j]) * self.zeroth
        return QuadraticMoments(
            of_values(self.zeroth),
            of_values(first + s * self.zeroth),
            of_values(self.second * key**2 + mixed),
        )

    def sums(
        self, Q: FloatArray, mean: FloatArray, variance: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return t (m,) and S (m, c) with ``sum_j exp(<q, k_j>) w_j [v_j, 1]`` near ``e^t S``.

        ``mean`` and ``variance`` (m,) are those of the logits. S need not be positive.
        """
        m, v = mean[:, None], np.clip(variance, 0.0, _MOST_VARIANCE)[:, None]
        second = np.empty((len(Q), len(self.zeroth)))
        i, j = np.triu_indices(Q.shape[1])
        twice = self.second * np.where(i == j, 1.0, 2.0)[:, None]
        step = max(1, _ENTRIES // len(twice))
        with np.errstate(over="ignore", invalid="ignore"):
            for k in range(0, len(Q), step):
                second[k : k + step] = _pairs(Q[k : k + step]) @ twice
            along = Q @ self.first
            x1 = along - m * self.zeroth
            x2 = second - 2.0 * m * along + m * m * self.zeroth
            return mean + v[:, 0] / 2.0, (1.0 - v / 2.0) * self.zeroth + x1 + x2 / 2.0


def _pairs(X: FloatArray) -> FloatArray:
    """Return the products ``x_i x_j``, i <= j, of each row: (n, d (d + 1) / 2)."""
    i, j = np.triu_indices(X.shape[1])
    return np.asarray(X[:, i] * X[:, j])
