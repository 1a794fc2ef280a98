"""Huber's function: squares near zero, absolute values far from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from levsketch._typing import FloatArray

from .base import ScoreFunction


@dataclass(frozen=True)
class Huber(ScoreFunction):
    """``f(x) = x^2 / 2`` for ``|x| <= threshold``, else ``threshold (|x| - threshold / 2)``.

    A concave function of x^2, so ``f(y)/f(x) <= (y/x)^2``. Source: P. J. Huber, Robust
    estimation of a location parameter, Annals of Mathematical Statistics 35, 1964.

    Parameters
    ----------
    threshold : float > 0, default=1.345
        Where squares end, in the units of ``<q, k>``.
    """

    name: ClassVar[str] = "huber"
    threshold: float = 1.345

    def values(self, x: FloatArray) -> FloatArray:
        """Return f(x) for x >= 0."""
        near = np.minimum(x, self.threshold)
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(near * (x - near / 2))
