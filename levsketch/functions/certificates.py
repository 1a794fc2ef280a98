"""What a weighted Gram matrix proves about sums of f over all rows.

With weights v_l >= 0 and ``G = sum_l v_l k_l k_l^T``, write ``c_j = k_j^T G^+ k_j``, so that
``<q, k_j>^2 <= c_j ||q||_G^2`` for every q. A certificate turns c_j into an upper bound u_j on
``sup_q f(<q, k_j>) / sum_l f(<q, k_l>)``, the sum over the rows that are in G. The bound
holds for any admissible weights, converged or not; good weights make it small. If row j is
not in G, then its sensitivity among all rows is at most u/(1+u), for it counts itself
exactly. A row in G may be taken out first: ``shares`` says what is left then.

Each certificate keeps one number beside G, its ``level``. Written out, with proofs, in
docs/theory ("Sensitivities for other f").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from levsketch._typing import FloatArray

# Squared row factors outside this range are cut: the certificates allow smaller weights
# everywhere, and p >= 2 any weights at all.
_LARGEST, _SMALLEST = 1e250, 1e-250
# Between p = 2 and this, weights w^(1 - 2/p) say nothing that 1 does not.
NEARLY_TWO = 2.01
# Sums behind a level round by at most a unit a block: this covers 2^33 rows in the worst case,
# and far more where roundings do not all go one way.
ROUNDING = 1e-9


class Certificate(Protocol):
    """Rules of one family of functions; see the module's head for the notation."""

    @property
    def additive(self) -> bool:
        """Whether ``level`` is a sum over rows, else a maximum over them."""

    @property
    def damping(self) -> float:
        """Exponent theta of the damped iteration ``v <- v^(1-theta) target^theta``."""

    def first_level(self, rank: int, n: int) -> float:
        """Return the level with which the weights of the first n rows are sought."""

    def weights(self, c: FloatArray, level: float, rank: int) -> FloatArray:
        """Return weights v for rows with the values ``c`` against the rows before them."""

    def parts(self, v: FloatArray, c: FloatArray) -> FloatArray:
        """Return what each row contributes to the level (to its sum or its maximum)."""

    def shrunk(self, level: float, ratio: float) -> float:
        """Return the level once every c has fallen to at most ``ratio <= 1`` of what it was."""

    def times(self, level: float, power: int) -> float:
        """Return the level of rows whose weights are multiplied by ``4**power``."""

    def bounds(self, c: FloatArray, level: FloatArray | float) -> FloatArray:
        """Return the upper bounds u on ``sup_q f(<q, k_j>) / sum_l f(<q, k_l>)``."""

    def shares(self, c: FloatArray, v: FloatArray, level: float) -> FloatArray:
        """Return upper bounds on the sensitivities of rows that are in G with weights v."""


def among_all(u: FloatArray) -> FloatArray:
    """Return u / (1 + u): what a row can take of a sum that it is part of."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(u), 1.0, u / (1.0 + u))


def _over_the_rest(u: FloatArray, c: FloatArray, v: FloatArray) -> FloatArray:
    """Return u / (1 - v c): without row j, G shrinks by no more than this anywhere."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rest = 1.0 - v * c
        return np.where(rest > 0, u / rest, np.where(u > 0, np.inf, 0.0))


def _known(u: FloatArray) -> FloatArray:
    """Return u, infinite where it came out as NaN: nothing is known there."""
    return np.where(np.isnan(u), np.inf, u)


def _exp2(level: float, power: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(level * np.exp2(power))


def _cut(v: FloatArray) -> FloatArray:
    return np.clip(np.nan_to_num(v, nan=0.0, posinf=_LARGEST), 0.0, _LARGEST)


@dataclass(frozen=True)
class HoelderCertificate:
    """|x|^p for p >= 2: ``sum_l |s_l|^p >= ||q||_G^p / S^(p/2-1)`` with S the sum of masses.

    Weights are ``v = w^(1-2/p)`` for masses w >= 0; by Hoelder's inequality
    ``sum v s^2 <= (sum w)^(1-2/p) (sum |s|^p)^(2/p)``. The best w are Lewis weights (Cohen
    and Peng, 2015). The level is S.
    """

    p: float
    additive: bool = True

    @property
    def damping(self) -> float:
        """4 / (p + 2): the iteration contracts for every p, where theta = 1 stops at p = 4."""
        return 4.0 / (self.p + 2.0)

    @property
    def _flat(self) -> bool:
        return self.p < NEARLY_TWO

    def first_level(self, rank: int, n: int) -> float:
        """Return the total of Lewis weights, or n where all masses are one."""
        return float(n if self._flat else rank)

    def weights(self, c: FloatArray, level: float, rank: int) -> FloatArray:
        """Return the Lewis map, scaled to the level: no row takes more than 1/rank of it."""
        if self._flat:
            return np.ones_like(c)
        a = 1.0 - 2.0 / self.p
        share = level / max(rank, 1)
        with np.errstate(over="ignore", under="ignore"):
            mass = share * np.minimum(1.0, share**a * c) ** (self.p / 2.0)
            return _cut(mass**a)

    def parts(self, v: FloatArray, c: FloatArray) -> FloatArray:
        """Return the masses w = v^(p/(p-2))."""
        if self._flat:
            return np.ones_like(v)
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(v ** (self.p / (self.p - 2.0)))

    def shrunk(self, level: float, ratio: float) -> float:
        """Return the same level: a sum of masses does not depend on c."""
        return level

    def times(self, level: float, power: int) -> float:
        """Return the level after ``v <- 4**power v``; only where masses are not all one."""
        return level if self._flat else _exp2(level, 2.0 * power * self.p / (self.p - 2.0))

    def bounds(self, c: FloatArray, level: FloatArray | float) -> FloatArray:
        """Return ``c^(p/2) S^(p/2-1)``."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            # a base that does not change with the scale of the weights
            u = (c * np.maximum(level, 0.0) ** (1.0 - 2.0 / self.p)) ** (self.p / 2.0)
        return _known(u)

    def shares(self, c: FloatArray, v: FloatArray, level: float) -> FloatArray:
        """Return the bound among all other rows, leave-one-out, as one among all.

        Without row j its value is ``c / (1 - v c)`` (Sherman and Morrison, 1950), and the
        mass is S - w.
        """
        # near p = 2 a mass cannot be told from its v, and counts for nothing
        others = level if self._flat else level - self.parts(v, c) * (1.0 - ROUNDING)
        return among_all(self.bounds(_over_the_rest(c, c, v), others))


@dataclass(frozen=True)
class LewisCertificate:
    """|x|^p for p < 2: ``sum_l |s_l|^p >= ||q||_G^p / B`` with ``B = max_l v_l c_l^(1-p/2)``.

    Because ``v s^2 = (v |s|^(2-p)) |s|^p`` and ``|s_l|^(2-p) <= c_l^(1-p/2) ||q||_G^(2-p)``.
    Appending rows makes c smaller, so B never grows. The level is B.
    """

    p: float
    additive: bool = False

    @property
    def damping(self) -> float:
        """4 / (p + 2), at most 1."""
        return min(1.0, 4.0 / (self.p + 2.0))

    @property
    def _e(self) -> float:
        return 1.0 - self.p / 2.0

    def first_level(self, rank: int, n: int) -> float:
        """Return 1, the level of converged Lewis weights."""
        return 1.0

    def weights(self, c: FloatArray, level: float, rank: int) -> FloatArray:
        """Return the largest weights that do not raise the level; 0 for rows of zeros."""
        with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
            power = c**-self._e
            v = level * power
            # a small level may bring back what overflowed alone, less accurately
            far = np.isinf(power) & (c > 0)
            v[far] = np.exp(np.log(level) - self._e * np.log(c[far])) * (1.0 - ROUNDING)
            return np.where(c > 0, _cut(v), 0.0)

    def parts(self, v: FloatArray, c: FloatArray) -> FloatArray:
        """Return ``v c^(1-p/2)``."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.where(v > 0, v * c**self._e, 0.0)

    def shrunk(self, level: float, ratio: float) -> float:
        """Return the level for values c that have fallen by ``ratio``."""
        return float(level * ratio**self._e)

    def times(self, level: float, power: int) -> float:
        """Return the level after ``v <- 4**power v`` and ``c <- 4**-power c``."""
        return _exp2(level, power * self.p)

    def bounds(self, c: FloatArray, level: FloatArray | float) -> FloatArray:
        """Return ``B c^(p/2)``."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return _known(level * c ** (self.p / 2.0))

    def shares(self, c: FloatArray, v: FloatArray, level: float) -> FloatArray:
        """Return the smaller of ``B c^(p/2)`` and the bound among all other rows.

        Without row j every value, not only its own, may grow by ``1 / (1 - v_j c_j)``: the
        two powers of that, p/2 in the bound and 1 - p/2 in B, make one.
        """
        u = self.bounds(c, level)
        return np.minimum(u, among_all(_over_the_rest(u, c, v)))


@dataclass(frozen=True)
class CappedCertificate:
    """f of at most quadratic growth: ``sum_l min(1, s_l^2) >= min(||q||_G^2, 1/b)``.

    For weights ``v <= 1`` with ``v_l c_l <= b``: as long as ``||q||_G^2 <= 1/b``, each
    ``v_l s_l^2 <= v_l c_l ||q||_G^2 <= 1``, so ``min(1, s_l^2) >= v_l s_l^2``; a longer q only
    raises the left side. Scaled to ``s_j = 1``, where ``||q||_G^2 >= 1/c_j``, this bounds the
    capped sensitivity by ``max(c_j, b)``. The level is b.
    """

    growth: float
    additive: bool = False

    @property
    def damping(self) -> float:
        """1/2: values v c are then pulled towards one height from both sides."""
        return 0.5

    def first_level(self, rank: int, n: int) -> float:
        """Return twice the mean leverage, from where single rows begin to stand out."""
        return min(1.0, 2.0 * rank / n)

    def weights(self, c: FloatArray, level: float, rank: int) -> FloatArray:
        """Return ``min(1, b / c)``."""
        with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
            return np.where(c > 0, np.minimum(1.0, level / c), 1.0)

    def parts(self, v: FloatArray, c: FloatArray) -> FloatArray:
        """Return ``v c``."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.where(v > 0, v * c, 0.0)

    def shrunk(self, level: float, ratio: float) -> float:
        """Return the level for values c that have fallen by ``ratio``."""
        return float(level * ratio)

    def times(self, level: float, power: int) -> float:
        """Return the same level: v c does not change."""
        return level

    def bounds(self, c: FloatArray, level: FloatArray | float) -> FloatArray:
        """Return ``growth max(c, b)``."""
        return np.where(c == 0, 0.0, _known(self.growth * np.maximum(c, level)))

    def shares(self, c: FloatArray, v: FloatArray, level: float) -> FloatArray:
        """Return the smaller of ``growth max(c, b)`` and the bound among all other rows.

        Without row j, both c_j and b may grow by ``1 / (1 - v_j c_j)``.
        """
        u = self.bounds(c, level)
        return np.minimum(u, among_all(_over_the_rest(u, c, v)))
