"""The symmetric power of a vector: ``<q, k>^r`` as one inner product, exactly."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from math import comb, factorial, prod

import numpy as np
import numpy.typing as npt

from levsketch._typing import FloatArray, Rows


@dataclass(frozen=True)
class SymmetricPower:
    """Monomials of one degree, each times the root of its multinomial coefficient.

    ``<apply(q), apply(k)> = <q, k>^degree``: the lift of arXiv 2410.05462 for even p,
    with degree p/2.

    Attributes
    ----------
    d : int
        Columns of the rows.
    degree : int
        At least 1.
    """

    d: int
    degree: int

    @property
    def size(self) -> int:
        """Number of monomials, ``C(d + degree - 1, degree)``."""
        return comb(self.d + self.degree - 1, self.degree)

    @functools.cached_property
    def variables(self) -> npt.NDArray[np.int64]:
        """Which columns each monomial multiplies, ascending: (size, degree)."""
        found = itertools.combinations_with_replacement(range(self.d), self.degree)
        return np.array(list(found), np.int64).reshape(self.size, self.degree)

    @functools.cached_property
    def weights(self) -> FloatArray:
        """Roots of the multinomial coefficients, (size,)."""
        counts = [
            prod(factorial(len(list(same))) for _, same in itertools.groupby(row))
            for row in self.variables.tolist()
        ]
        return np.sqrt(factorial(self.degree) / np.array(counts, float))

    def apply(self, rows: Rows) -> FloatArray:
        """Return the lifted rows (n, size) of ``rows`` (n, d), in float64.

        The monomials of one degree follow from those of the degree below: with a first
        variable a, they are column a times all monomials in variables from a on, which stand
        at the end of that list. n * size products for the last degree.
        """
        wide = np.asarray(rows, np.float64)
        lifted = wide
        with np.errstate(over="ignore", under="ignore"):
            for degree in range(2, self.degree + 1):
                lower, lifted = lifted, np.empty((len(wide), comb(self.d + degree - 1, degree)))
                at = 0
                for a in range(self.d):
                    count = comb(self.d - a + degree - 2, degree - 1)
                    np.multiply(
                        wide[:, a, None],
                        lower[:, lower.shape[1] - count :],
                        out=lifted[:, at : at + count],
                    )
                    at += count
            return lifted * self.weights if self.degree > 1 else lifted

    def column_exponents(self, exponents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return by which powers of two monomials change when columns do: (size,)."""
        return np.asarray(exponents[self.variables].sum(axis=1))

    def jacobian(self, q: FloatArray) -> FloatArray:
        """Return the derivatives (size, d) of ``apply(q)`` for one vector q (d,)."""
        out = np.zeros((self.size, self.d))
        lines = np.arange(self.size)
        for t in range(self.degree):
            others = np.delete(self.variables, t, axis=1)
            np.add.at(out, (lines, self.variables[:, t]), self.weights * q[others].prod(axis=1))
        return out

    def contracted_hessian(self, q: FloatArray, w: FloatArray) -> FloatArray:
        """Return the second derivatives (d, d) of ``<w, apply(q)>`` for w (size,)."""
        out = np.zeros((self.d, self.d))
        for t, u in itertools.permutations(range(self.degree), 2):
            others = np.delete(self.variables, (t, u), axis=1)
            values = self.weights * w * q[others].prod(axis=1)
            np.add.at(out, (self.variables[:, t], self.variables[:, u]), values)
        return out
