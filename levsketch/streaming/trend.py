"""Polynomials of a query, up to degree two: what of a sum of exponentials needs no landmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.linalg

from levsketch._typing import FloatArray

from .query_law import QueryLaw

# No exponent of a weight is larger: products of two such are still in range.
_LARGEST = 160.0
# Entries of products of two columns that are held at a time.
_ENTRIES = 1 << 21


class Hermite(NamedTuple):
    """Inner products with 1 (c,), z (d, c) and ``z z^T - I`` (d, d, c) under a law of queries.

    The polynomial with these is ``one + z first + (z^T second z - tr second) / 2``, a projection.
    """

    one: FloatArray
    first: FloatArray
    second: FloatArray

    def __add__(self, other: Hermite) -> Hermite:  # type: ignore[override]
        """Return the sum."""
        return Hermite(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: Hermite) -> Hermite:
        """Return the difference."""
        return Hermite(*(a - b for a, b in zip(self, other, strict=True)))

    def at(self, s: FloatArray, order: int) -> FloatArray:
        """Return the inner products (k, c) with ``exp(<z, s> - ||s||^2 / 2)``, up to an order."""
        found = np.broadcast_to(self.one, (len(s), len(self.one))).copy()
        if order >= 1:
            found += s @ self.first
        if order >= 2:
            found += 0.5 * _quadratic(s, self.second)
        return found


@dataclass(frozen=True, eq=False)
class Trend:
    """The c polynomials ``constant + q slope + q^T curvature q`` of degree ``order``.

    Attributes
    ----------
    order : int
        0, 1 or 2; what is of a higher degree is zero.
    constant, slope, curvature : (c,), (d, c) and (d (d + 1) / 2, c) arrays
        Curvature multiplies ``q_i q_j``, i <= j, row by row of the triangle; no rows below order 2.
    """

    order: int
    constant: FloatArray
    slope: FloatArray
    curvature: FloatArray

    @classmethod
    def empty(cls, order: int, d: int, columns: int) -> Trend:
        """Return zero."""
        pairs = d * (d + 1) // 2 if order == 2 else 0
        return cls(order, np.zeros(columns), np.zeros((d, columns)), np.zeros((pairs, columns)))

    @staticmethod
    def floats(order: int, d: int, columns: int) -> int:
        """Return how many numbers a trend of an order has."""
        return columns * (1, 1 + d, 1 + d + d * (d + 1) // 2)[order]

    @classmethod
    def of_hermite(cls, law: QueryLaw, order: int, found: Hermite) -> Trend:
        """Return the polynomial of an order with these inner products under a law."""
        d, c = found.first.shape
        trend = cls.empty(order, d, c)
        if order == 0:
            return replace(trend, constant=found.one)
        slope = _unwhitened(law, found.first)
        constant = found.one - law.mean @ slope
        if order == 1:
            return replace(trend, constant=constant, slope=slope)
        half = _unwhitened(law, found.second.reshape(d, d * c)).reshape(d, d, c).transpose(1, 0, 2)
        S = 0.5 * _unwhitened(law, half.reshape(d, d * c)).reshape(d, d, c)
        S = (S + S.transpose(1, 0, 2)) / 2.0
        bent = np.tensordot(law.mean, S, 1)
        constant = constant - 0.5 * np.trace(found.second) + law.mean @ bent
        upper = np.triu_indices(d)
        twice = np.where(upper[0] == upper[1], 1.0, 2.0)[:, None]
        return cls(order, constant, slope - 2.0 * bent, S[upper] * twice)

    @property
    def any(self) -> bool:
        """Whether this is not zero."""
        return bool(self.constant.any() or self.slope.any() or self.curvature.any())

    def mapped(self, move: Callable[[FloatArray], FloatArray], key: float = 1.0) -> Trend:
        """Return the trend with ``move`` applied to its columns, for queries times ``key``."""
        return Trend(
            self.order, move(self.constant), move(self.slope) * key, move(self.curvature) * key**2
        )

    def plus(self, other: Trend) -> Trend:
        """Return the sum of two trends of one order."""
        return Trend(
            self.order,
            self.constant + other.constant,
            self.slope + other.slope,
            self.curvature + other.curvature,
        )

    def values(self, Q: FloatArray) -> FloatArray:
        """Return the polynomials at queries (m, d): (m, c)."""
        found = self.constant + Q @ self.slope
        if self.order == 2:
            step = max(1, _ENTRIES // len(self.curvature))
            for i in range(0, len(Q), step):
                found[i : i + step] += _pairs(Q[i : i + step]) @ self.curvature
        return np.asarray(found)

    # -- the trend of another centre, where it reads times exp(<q, shift>)

    def hermite(self, law: QueryLaw, shift: FloatArray) -> Hermite:
        """Return the inner products of the trend times ``exp(<q, shift>)``."""
        f = self._in(law)
        x, t = law.coordinates(shift[None])
        u, w = x[0], float(np.exp(np.minimum(t[0] + x[0] @ x[0] / 2.0, _LARGEST)))
        slope = f.first + 2.0 * np.tensordot(u, f.second, 1)
        mean = f.at_point(u[None])[0] + np.trace(f.second)
        across = u[:, None, None] * slope[None]
        return Hermite(
            w * mean,
            w * (np.outer(u, mean) + slope),
            w * (np.outer(u, u)[:, :, None] * mean + across + across.transpose(1, 0, 2))
            + 2.0 * w * f.second,
        )

    def inner(
        self, law: QueryLaw, order: int, places: FloatArray, shift: FloatArray
    ) -> FloatArray:
        """Return the inner products (k, c) of the trend times ``exp(<q, shift>)`` with landmarks.

        With their functions over their norms, less what a trend of ``order`` knows of them.
        """
        f, known = self._in(law), self.hermite(law, shift)
        s, _ = law.coordinates(places)
        x, t = law.coordinates(shift[None])
        half = np.sum(s * s, axis=1) / 2.0
        power = np.minimum(t[0] + x[0] @ x[0] / 2.0 + s @ x[0] - half, _LARGEST)
        values = f.at_point(s + x[0]) + np.trace(f.second)
        return np.asarray(
            np.exp(power)[:, None] * values - np.exp(-half)[:, None] * known.at(s, order)
        )

    def _in(self, law: QueryLaw) -> _Polynomial:
        """Return the polynomial as one of z, ``q = mean + root z``."""
        d, c = self.slope.shape
        S = np.zeros((d, d, c))
        if self.order == 2:
            i, j = np.triu_indices(d)
            S[i, j] += self.curvature / 2.0
            S[j, i] += self.curvature / 2.0
        bent = np.tensordot(law.mean, S, 1)
        constant = self.constant + law.mean @ (self.slope + bent)
        first = law.root.T @ (self.slope + 2.0 * bent)
        inner = np.tensordot(law.root.T, S, 1)
        second = np.tensordot(law.root.T, inner.transpose(1, 0, 2), 1).transpose(1, 0, 2)
        return _Polynomial(constant, first, second)


class _Polynomial(NamedTuple):
    """``one + z first + z^T second z``."""

    one: FloatArray
    first: FloatArray
    second: FloatArray

    def at_point(self, z: FloatArray) -> FloatArray:
        """Return the values (k, c) at points (k, d)."""
        return self.one + z @ self.first + _quadratic(z, self.second)


def hermite_of_keys(
    x: FloatArray, t: FloatArray, weights: FloatArray, order: int
) -> Hermite:
    """Return the inner products of ``sum_j exp(<q, k_j>) b_j``, keys in coordinates of the law."""
    d, c = x.shape[1], weights.shape[1]
    w = np.exp(t + np.sum(x * x, axis=1) / 2.0)[:, None] * weights
    second = np.zeros((d, d, c))
    if order == 2:
        packed = np.zeros((d * (d + 1) // 2, c))
        step = max(1, _ENTRIES // len(packed))
        for i in range(0, len(x), step):
            packed += _pairs(x[i : i + step]).T @ w[i : i + step]
        upper = np.triu_indices(d)
        second[upper] = packed
        second[upper[::-1]] = packed
    return Hermite(np.sum(w, axis=0), x.T @ w, second)


def _pairs(X: FloatArray) -> FloatArray:
    """Return the products ``x_i x_j``, i <= j, of each row: (n, d (d + 1) / 2)."""
    i, j = np.triu_indices(X.shape[1])
    return np.asarray(X[:, i] * X[:, j])


def _quadratic(z: FloatArray, S: FloatArray) -> FloatArray:
    """Return ``z^T S z`` (k, c) of each row, for S (d, d, c) symmetric."""
    if not S.any():
        return np.zeros((len(z), S.shape[2]))
    i, j = np.triu_indices(len(S))
    twice = np.where(i == j, 1.0, 2.0)[:, None]
    step = max(1, _ENTRIES // len(i))
    parts = [_pairs(z[k : k + step]) @ (S[i, j] * twice) for k in range(0, len(z), step)]
    return np.concatenate(parts) if parts else np.zeros((0, S.shape[2]))


def _unwhitened(law: QueryLaw, columns: FloatArray) -> FloatArray:
    """Return ``root^-T columns``."""
    found = scipy.linalg.solve_triangular(
        law.root, columns, trans="T", lower=True, check_finite=False
    )
    return np.asarray(found)
