"""f(x) = |x|^p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from levsketch._typing import FloatArray

from .base import ScoreFunction
from .certificates import Certificate, HoelderCertificate, LewisCertificate


@dataclass(frozen=True)
class Power(ScoreFunction):
    """``f(x) = |x|^p`` for any p > 0: scores of lp attention.

    Parameters
    ----------
    p : float > 0
    """

    name: ClassVar[str] = "power"
    homogeneous: ClassVar[bool] = True
    p: float = 2.0

    def values(self, x: FloatArray) -> FloatArray:
        """Return ``x^p`` for x >= 0."""
        with np.errstate(under="ignore", over="ignore"):
            return np.asarray(x**self.p)

    @property
    def certificate(self) -> Certificate:
        """Hoelder's inequality for p >= 2, Lewis's for p < 2."""
        return HoelderCertificate(self.p) if self.p >= 2.0 else LewisCertificate(self.p)
