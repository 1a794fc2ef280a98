"""How far keys and values reach: bounds on <q, k>, and on averages of v, of all that went by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from levsketch._typing import FloatArray
from levsketch.linalg import UNIT_ROUNDOFF

# An ellipsoid is fitted anew when it has been stretched by more than this since it was fitted, and
# may then be larger by as much. Gaussian keys do that once or never; where 200 blocks drifted by
# 57 standard deviations, the bounds are 1.15 times those of the final covariance, else 2.1 times.
_STRETCH = 1.25
# Ridge of a correlation matrix, and by how much it grows until there is a Cholesky factor.
_JITTER, _JITTER_GROWTH = 2.0**-40, 16.0
# Sides of an ellipsoid are longer than this: keys of 2**500 can still be divided by them.
_SHORTEST = 2.0**-500
# More than underflow takes from the length of a solution.
_UNDERFLOW = 2.0**-900


class Ellipsoid(NamedTuple):
    """A set that holds keys: ``<q, k - centre> <= reach ||L^T q|| + u_d spill || |L|^T |q| ||``.

    Without rounding, this says that ``||L^-1 (k - centre)|| <= reach``. The second term is what
    rounding may hide, with ``u_d`` a multiple of the unit roundoff, see `roundoff`.

    Attributes
    ----------
    centre : (d,) array
    factor : (d, d) array
        L, lower triangular with a positive diagonal.
    reach, spill : float
        Infinite if nothing is known.
    """

    centre: FloatArray
    factor: FloatArray
    reach: float
    spill: float

    @property
    def known(self) -> bool:
        """Whether this bounds anything."""
        return bool(np.isfinite(self.reach + self.spill))

    def distances(self, rows: FloatArray) -> FloatArray:
        """Return ``||L^-1 (k - centre)||`` (n,) of rows (n, d), as computed."""
        return row_norms(_solved(self.factor, rows - self.centre))

    def around(self, rows: FloatArray) -> Ellipsoid:
        """Return the ellipsoid of the same shape that holds the rows (n, d), and they alone.

        From ``(L + E) y = k - centre`` with ``|E| <= u_d |L|``, as substitution solves it, and
        Cauchy-Schwarz: ``<q, k - centre> <= ||y|| (||L^T q|| + u_d || |L|^T |q| ||)``. The
        condition of L has no part in this.
        """
        reach = float(self.distances(rows).max(initial=0.0))
        reach = reach * (1.0 + roundoff(len(self.centre))) + _UNDERFLOW
        return self._reaching(reach, 2.0 * reach)

    def holding(self, other: Ellipsoid) -> Ellipsoid:
        """Return the ellipsoid of the shape of this one that holds all of the other.

        With T the solution of ``L T = L'``, ``||L'^T q|| <= ||T|| ||L^T q||``; what rounding
        hides grows with the Frobenius norm of T.
        """
        if not other.known:
            return self._reaching(np.inf, np.inf)
        u_d = roundoff(len(self.centre))
        T = _solved(self.factor, np.ascontiguousarray(other.factor.T)).T
        if not np.isfinite(T).all():
            return self._reaching(np.inf, np.inf)
        shift = self.around(other.centre[None])
        whole = float(np.linalg.norm(T)) * (1.0 + u_d)
        stretch = min(float(np.linalg.norm(T, 2)) * (1.0 + u_d), whole)
        reach = (other.reach * stretch + shift.reach) * (1.0 + u_d)
        spill = ((other.spill + 2.0 * other.reach) * whole + shift.spill) * (1.0 + u_d)
        return self._reaching(reach, max(spill, reach))

    def united(self, other: Ellipsoid) -> Ellipsoid:
        """Return what holds two ellipsoids of the same centre and shape."""
        return self._reaching(max(self.reach, other.reach), max(self.spill, other.spill))

    def moved(self, shift: FloatArray) -> Ellipsoid:
        """Return what holds the keys when each has moved by ``shift`` (d,)."""
        centre = self.centre + shift
        lost = (self.centre - (centre - shift)) + (shift - (centre - (centre - shift)))  # exact
        off = self._replace(centre=np.zeros_like(centre)).around(lost[None])
        reach = (self.reach + off.reach) * (1.0 + UNIT_ROUNDOFF)
        spill = (self.spill + off.spill) * (1.0 + UNIT_ROUNDOFF)
        return self._replace(centre=centre)._reaching(reach, spill)

    def scaled(self, factor: float) -> Ellipsoid:
        """Return what holds the keys times a power of two."""
        L, d = self.factor * factor, len(self.centre)
        if not (np.isfinite(L).all() and (np.diagonal(L) >= _SHORTEST).all()):
            return Ellipsoid(np.zeros(d), np.eye(d), np.inf, np.inf)
        # what the centre loses to underflow
        return Ellipsoid(self.centre * factor, L, self.reach + _UNDERFLOW, self.spill)

    def highest(self, Q: FloatArray) -> FloatArray:
        """Return bounds (m,) that ``<q, k>`` does not exceed for any key in here."""
        if not self.known:
            return np.full(len(Q), np.inf)
        A, u_d = np.abs(Q), roundoff(len(self.centre))
        across = row_norms(Q @ self.factor)
        hidden = (2.0 * self.reach + self.spill) * row_norms(A @ np.abs(self.factor))
        hidden += A @ np.abs(self.centre)
        return Q @ self.centre + (self.reach * across + 2.0 * u_d * hidden)

    def _reaching(self, reach: float, spill: float) -> Ellipsoid:
        known = np.isfinite(reach + spill)
        return self._replace(reach=reach if known else np.inf, spill=spill if known else np.inf)


def shaped(centre: FloatArray, covariance: FloatArray, floor: FloatArray) -> Ellipsoid | None:
    """Return an ellipsoid, of unknown reach, like that of a covariance matrix (d, d).

    Sides are at least ``floor`` (d,), and a ridge of 2**-40 or more is added after columns have
    unit length, until there is a Cholesky factor. None for what is not finite. O(d^3).
    """
    with np.errstate(all="ignore"):
        sides = np.maximum(np.sqrt(np.maximum(np.diagonal(covariance), 0.0)), floor)
        sides = np.maximum(sides, _SHORTEST)
        H = covariance / sides / sides[:, None]
    if not np.isfinite(H).all():
        return None
    identity, jitter = np.eye(len(H)), _JITTER
    while True:
        C, info = lapack.dpotrf(H + jitter * identity, lower=True, clean=True)
        if info == 0:
            return Ellipsoid(centre, C * sides[:, None], np.inf, np.inf)
        jitter *= _JITTER_GROWTH


@dataclass(frozen=True, eq=False)
class KeyExtent:
    """A ball, a box and an ellipsoid, each of which holds all keys seen. Immutable.

    The ball is around zero. The box is what serves a single column, or keys that lie to one side.
    The ellipsoid serves columns of different size, and correlated ones: for whatever scale of each
    direction it is the same. Its shape is that of the first rows, until others stretch it.

    Attributes
    ----------
    radius : float
        Of the ball; -inf without keys.
    low, high : (d,) arrays
        The box; ``inf`` and ``-inf`` without keys.
    ellipsoid : Ellipsoid
    fitted : float
        Its reach when its shape was last tried.
    """

    radius: float
    low: FloatArray
    high: FloatArray
    ellipsoid: Ellipsoid
    fitted: float

    @classmethod
    def empty(cls, d: int) -> KeyExtent:
        """Return the extent of no keys."""
        anything = Ellipsoid(np.zeros(d), np.eye(d), np.inf, np.inf)
        return cls(-np.inf, np.full(d, np.inf), np.full(d, -np.inf), anything, np.inf)

    @staticmethod
    def floats(d: int) -> int:
        """Return how many numbers are held, the triangular matrix counted by half."""
        return 4 + 3 * d + d * (d + 1) // 2

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        held = (self.low, self.high, self.ellipsoid.centre, self.ellipsoid.factor)
        return 32 + sum(array.nbytes for array in held)

    def add(self, rows: FloatArray, shape: Callable[[], Ellipsoid | None]) -> KeyExtent:
        """Return the extent of these keys and of the rows (n, d), n > 0.

        ``shape()`` gives the shape of an ellipsoid that would suit all of them.
        """
        with np.errstate(all="ignore"):
            radius = float(row_norms(rows).max()) * (1.0 + roundoff(rows.shape[1]))
            kept, fitted = self._stretched(rows, shape)
        return KeyExtent(
            max(self.radius, radius),
            np.minimum(self.low, rows.min(axis=0)),
            np.maximum(self.high, rows.max(axis=0)),
            kept,
            fitted,
        )

    def _stretched(
        self, rows: FloatArray, shape: Callable[[], Ellipsoid | None]
    ) -> tuple[Ellipsoid, float]:
        """Return an ellipsoid that also holds the rows, and its reach when it was fitted."""
        old = self.ellipsoid
        kept = old.united(old.around(rows)) if old.known else old
        if kept.known and kept.reach <= _STRETCH * self.fitted:
            return kept, self.fitted
        fresh = shape()
        if fresh is None or (self.radius >= 0.0 and not old.known):  # old keys are anywhere
            return kept, kept.reach
        held = fresh.around(rows)
        if old.known:
            held = held.united(fresh.holding(old))
        kept = _smallest(fresh, [kept, held])
        return kept, kept.reach

    def merge(self, other: KeyExtent, shape: Callable[[], Ellipsoid | None]) -> KeyExtent:
        """Return the extent of both, which have keys; ``shape`` is as for `add`."""
        mine, theirs = self.ellipsoid, other.ellipsoid
        with np.errstate(all="ignore"):
            found = [mine.united(mine.holding(theirs)), theirs.united(theirs.holding(mine))]
            fresh = shape()
            if fresh is not None:
                found.append(fresh.holding(mine).united(fresh.holding(theirs)))
            kept = _smallest(fresh, found)
        return KeyExtent(
            max(self.radius, other.radius),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            kept,
            kept.reach,
        )

    def moved(self, shift: FloatArray) -> KeyExtent:
        """Return the extent of the same keys when each has moved by ``shift`` (d,)."""
        if not shift.any() or self.radius < 0.0:
            return self
        with np.errstate(all="ignore"):
            far = float(row_norms(shift[None])[0]) * (1.0 + roundoff(len(shift)))
            return replace(
                self,
                radius=float(np.nextafter(self.radius + far, np.inf)),
                low=np.nextafter(self.low + shift, -np.inf),
                high=np.nextafter(self.high + shift, np.inf),
                ellipsoid=self.ellipsoid.moved(shift),
            )

    def scaled(self, factor: float) -> KeyExtent:
        """Return the extent of the same keys times a power of two."""
        if factor == 1.0:
            return self
        with np.errstate(all="ignore"):
            return KeyExtent(
                float(np.nextafter(self.radius * factor, np.inf)),
                np.nextafter(self.low * factor, -np.inf),
                np.nextafter(self.high * factor, np.inf),
                self.ellipsoid.scaled(factor),
                self.fitted,
            )

    def highest(self, Q: FloatArray) -> FloatArray:
        """Return bounds (m,) that ``<q, k>`` exceeds for no key seen, for queries (m, d).

        Rounding is in them; ``-inf`` without keys, ``inf`` where nothing is known. The smallest
        of three: ``radius ||q||``; the corner of the box that q points to; that of `Ellipsoid`.
        Lowest products are ``-highest(-Q)``. ``O(m d^2)``.
        """
        if self.radius < 0.0:
            return np.full(len(Q), -np.inf)
        u_d = roundoff(Q.shape[1])
        with np.errstate(all="ignore"):
            ball = self.radius * row_norms(Q) * (1.0 + u_d)
            box = np.maximum(Q, 0.0) @ self.high + np.minimum(Q, 0.0) @ self.low
            box += u_d * (np.abs(Q) @ np.maximum(np.abs(self.low), np.abs(self.high)))
            best = np.full(len(Q), np.inf)
            for bound in (ball, box, self.ellipsoid.highest(Q)):
                # NaN is inf - inf, and -inf an overflow: they say nothing
                best = np.where((bound < best) & (bound > -np.inf), bound, best)
        return best


@dataclass(frozen=True, eq=False)
class ValueExtent:
    """A box and a ball around zero that both hold all values seen. Immutable.

    Attributes
    ----------
    low, high : (d_v,) arrays
        ``inf`` and ``-inf`` without values.
    radius : float
    magnitude : (d_v,) array
        Largest ``|v|`` where the values were first seen, which may be more than it is now.
    """

    low: FloatArray
    high: FloatArray
    radius: float
    magnitude: FloatArray

    @classmethod
    def empty(cls, d_v: int) -> ValueExtent:
        """Return the extent of no values."""
        return cls(np.full(d_v, np.inf), np.full(d_v, -np.inf), 0.0, np.zeros(d_v))

    @staticmethod
    def floats(d_v: int) -> int:
        """Return how many numbers are held."""
        return 3 * d_v + 1

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 8 + self.low.nbytes + self.high.nbytes + self.magnitude.nbytes

    def add(self, values: FloatArray) -> ValueExtent:
        """Return the extent of these values and of more (n, d_v), n > 0."""
        low, high = values.min(axis=0), values.max(axis=0)
        radius = float(row_norms(values).max()) * (1.0 + roundoff(len(low)))
        return self.merge(ValueExtent(low, high, radius, np.maximum(np.abs(low), np.abs(high))))

    def merge(self, other: ValueExtent) -> ValueExtent:
        """Return the extent of both."""
        return ValueExtent(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            max(self.radius, other.radius),
            np.maximum(self.magnitude, other.magnitude),
        )

    def moved(self, scale: float, shift: FloatArray) -> ValueExtent:
        """Return the extent of ``v scale + shift``, with a positive power of two for scale."""
        if not shift.any():
            parts = self.low, self.high, self.radius, self.magnitude
            return ValueExtent(*(part * scale for part in parts))  # type: ignore[arg-type]
        far = float(row_norms(shift[None])[0])
        return ValueExtent(
            np.nextafter(self.low * scale + shift, -np.inf),
            np.nextafter(self.high * scale + shift, np.inf),
            (self.radius * scale + far) * (1.0 + roundoff(len(shift))),
            (self.magnitude * scale + np.abs(shift)) * (1.0 + 2.0 * UNIT_ROUNDOFF),
        )

    def farthest(self, rest: FloatArray, share: FloatArray) -> FloatArray:
        """Return ``max ||rest + share h||`` (m,) over h in box and ball, for ``rest`` (m, d_v).

        The corner of the box that is farthest column by column, or the ball if that says less.
        """
        f = share[:, None]
        corner = row_norms(np.maximum(np.abs(rest + f * self.high), np.abs(rest + f * self.low)))
        return np.asarray(np.fmin(corner, row_norms(rest) + share * self.radius))


def roundoff(d: int) -> float:
    """Return u_d: twice what the roundings of two products and a norm of d terms come to."""
    return (4.0 * d + 32.0) * UNIT_ROUNDOFF


def row_norms(X: FloatArray) -> FloatArray:
    """Return the length of each row, infinite or zero only where that is."""
    power = np.frexp(np.abs(X).max(axis=1, initial=0.0))[1]
    lengths = np.linalg.norm(np.ldexp(X, -power[:, None]), axis=1)
    return np.asarray(np.ldexp(lengths, power))


def _solved(L: FloatArray, rows: FloatArray) -> FloatArray:
    """Return ``rows L^-T`` (n, d)."""
    if not np.isfinite(L).all():
        return np.full_like(rows, np.inf)
    found = scipy.linalg.solve_triangular(L, rows.T, lower=True, check_finite=False)
    return np.asarray(found.T)


def _smallest(fresh: Ellipsoid | None, found: list[Ellipsoid]) -> Ellipsoid:
    """Return the one with the shortest expected reach for queries that whiten ``fresh``.

    The last has its shape, and is taken if it is not much worse: it will be stretched less.
    """
    if fresh is None:
        return min(found, key=lambda one: one.reach)
    sizes = []
    for one in found:
        size = one.reach * float(np.linalg.norm(_solved(fresh.factor, one.factor.T)))
        sizes.append(size if np.isfinite(size) else np.inf)
    sizes[-1] /= _STRETCH
    return found[int(np.argmin(sizes))]
