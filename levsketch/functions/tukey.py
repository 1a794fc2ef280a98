"""Tukey's biweight: squares near zero, constant far from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from levsketch._typing import FloatArray

from .base import ScoreFunction


@dataclass(frozen=True)
class Tukey(ScoreFunction):
    """``f(x) = 1 - (1 - (x / threshold)^2)^3`` up to the threshold, 1 beyond it.

    A concave function of x^2, so ``f(y)/f(x) <= (y/x)^2``. It is bounded: no score of a key
    outgrows those of the others, however long the query. Source: A. E. Beaton and J. W.
    Tukey, The fitting of power series, Technometrics 16, 1974.

    Parameters
    ----------
    threshold : float > 0, default=4.685
        From where on f is constant, in the units of ``<q, k>``.
    """

    name: ClassVar[str] = "tukey"
    threshold: float = 4.685

    def values(self, x: FloatArray) -> FloatArray:
        """Return f(x) for x >= 0."""
        with np.errstate(over="ignore", under="ignore"):
            t = np.square(np.minimum(x / self.threshold, 1.0))
            return np.asarray(t * (3.0 - t * (3.0 - t)))  # 1 - (1-t)^3 without cancellation
