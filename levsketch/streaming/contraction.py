"""What the sums of a query are, in a range that float64 has not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from levsketch._typing import FloatArray, IntArray


class Contraction(NamedTuple):
    """Sums for queries as scaled numbers, of any range: ``values * 2**(powers + value_powers)``.

    ``values`` and ``rounding``, a bound on their errors, are (m, len(maps), c); ``powers``
    (m, len(maps)) and ``value_powers`` (c,) are int64.
    """

    values: FloatArray
    rounding: FloatArray
    powers: IntArray
    value_powers: IntArray

    def plain(self, numbers: FloatArray) -> FloatArray:
        """Return ``numbers`` in this scale as ordinary floats, infinite or zero where they are."""
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.ldexp(numbers, self.powers[:, :, None] + self.value_powers))

    def averages(self, which: int) -> FloatArray:
        """Return the sums of map number ``which`` over their last column, (m, c - 1).

        With weights in the last column of the values: attention outputs for f = x^r, also
        where the sums themselves leave the range of float64. Zeros where the last sum is zero.
        """
        N, Z = self.values[:, which, :-1], self.values[:, which, -1:]
        with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
            ratios = np.where(Z == 0, 0.0, N / Z)
            return np.asarray(np.ldexp(ratios, self.value_powers[:-1] - self.value_powers[-1]))
