"""Moments of keys and values that are not kept, and what they say of softmax sums of any query."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from levsketch._typing import FloatArray
from levsketch.backends.cpu import serial_blas
from levsketch.linalg import UNIT_ROUNDOFF

from .extents import Ellipsoid, KeyExtent, ValueExtent, shaped
from .logit_spread import LogitSpread, logit_spread

# Weights that have decayed below this would lose digits to underflow.
_FAINTEST = 2.0**-900
# Square of the size below which entries of keys count as this large, for each row and each unit
# of the mean weight: what underflow takes from products, 2**-1074, is the rounding of no less.
_UNDERFLOW = 2.0**-1021
# Roundings of a row in a block besides the sum over the rows: of its weight and its products.
_OWN = 5


@dataclass(frozen=True, eq=False)
class KeyValueMoments:
    """First and second moments of weighted keys and values, and how far both reach. Immutable.

    Keys are relative to a centre that the caller fixes and queries are scaled already, so that
    logits are ``<q, k>``. The sums are algebra: they may be added, moved to another centre and
    multiplied. What they say of a query is certain, rounding included, see `spread`.

    Attributes
    ----------
    weight : float
        ``sum w`` over the rows; rows of weight zero are not there.
    count : int
        Rows that are in.
    key_sum, key_square : (d,) and (d, d) arrays
        ``sum w k`` and ``sum w k k^T``.
    value_sum, key_value : (d_v,) and (d, d_v) arrays
        ``sum w v`` and ``sum w k v^T``.
    magnitude : (d,) array
        At least ``sum w k^2``; more if the rows were summed elsewhere and then moved. Rounding is
        relative to it.
    extent : KeyExtent
        Bounds on ``<q, k>`` over all rows.
    value_extent : ValueExtent
        Box and ball of the values.
    roundings : int
        Roundings that a term of a sum has been through, at most.

    Notes
    -----
    ``size`` numbers for any number of rows; with d = d_v = 64: 8840. Entries of keys up to
    1e150 do not overflow; where sums do, bounds become infinite, never NaN. The certificates
    also hold for rows whose entries were rounded, up to four times, before they came here.

    Examples
    --------
    Attention to 4000 Gaussian keys from their moments alone:

    >>> import numpy as np
    >>> from levsketch.streaming.key_value_moments import KeyValueMoments
    >>> rng = np.random.default_rng(0)
    >>> K, V, q = rng.normal(size=(4000, 8)), rng.normal(size=(4000, 2)), rng.normal(size=8) / 6
    >>> log_normaliser, output = KeyValueMoments.empty(8, 2).add(K, V).closure(q[None])
    >>> bool(np.isclose(log_normaliser[0], np.log(np.exp(K @ q).sum()), atol=0.01))
    True
    """

    weight: float
    count: int
    key_sum: FloatArray
    key_square: FloatArray
    value_sum: FloatArray
    key_value: FloatArray
    magnitude: FloatArray
    extent: KeyExtent
    value_extent: ValueExtent
    roundings: int

    @classmethod
    def empty(cls, d: int, d_v: int) -> KeyValueMoments:
        """Return the moments of no rows."""
        zeros = np.zeros
        return cls(
            weight=0.0,
            count=0,
            key_sum=zeros(d),
            key_square=zeros((d, d)),
            value_sum=zeros(d_v),
            key_value=zeros((d, d_v)),
            magnitude=zeros(d),
            extent=KeyExtent.empty(d),
            value_extent=ValueExtent.empty(d_v),
            roundings=0,
        )

    @property
    def d(self) -> int:
        """Columns of the keys."""
        return len(self.key_sum)

    @property
    def d_v(self) -> int:
        """Columns of the values."""
        return len(self.value_sum)

    @staticmethod
    def floats(d: int, d_v: int) -> int:
        """Return how many numbers are held, symmetric and triangular matrices counted by half."""
        sums = 3 + 2 * d + d * (d + 1) // 2 + d_v + d * d_v
        return sums + KeyExtent.floats(d) + ValueExtent.floats(d_v)

    @property
    def size(self) -> int:
        """Numbers held."""
        return self.floats(self.d, self.d_v)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and numbers of the state."""
        sums = (self.key_sum, self.key_square, self.value_sum, self.key_value, self.magnitude)
        extents = self.extent.nbytes + self.value_extent.nbytes
        return 24 + sum(array.nbytes for array in sums) + extents

    @property
    def mean(self) -> FloatArray:
        """Mean of the keys (d,); zero without rows."""
        return self._per_weight(self.key_sum)

    @property
    def mean_value(self) -> FloatArray:
        """Mean of the values (d_v,); zero without rows."""
        return self._per_weight(self.value_sum)

    @property
    def covariance(self) -> FloatArray:
        """Covariance of the keys (d, d); zero without rows."""
        with np.errstate(all="ignore"):
            return np.asarray(self._per_weight(self.key_square) - np.outer(self.mean, self.mean))

    @property
    def cross_covariance(self) -> FloatArray:
        """Covariance of keys and values (d, d_v); zero without rows."""
        with np.errstate(all="ignore"):
            outer = np.outer(self.mean, self.mean_value)
            return np.asarray(self._per_weight(self.key_value) - outer)

    def add(
        self, keys: FloatArray, values: FloatArray, weights: FloatArray | None = None
    ) -> KeyValueMoments:
        """Return the moments with rows added; nothing is validated.

        Parameters
        ----------
        keys, values : (n, d) and (n, d_v) float64 arrays
            Finite; keys relative to the centre.
        weights : (n,) array, optional
            Finite and at least 0; ones if not given.

        Notes
        -----
        The bits depend on the blocks: hand over the same ones for the same bits. ``n d (2 d +
        d_v)`` multiplications, O(d^3) more when the ellipsoid of the extent is fitted anew.
        """
        if weights is not None:
            live = weights > 0.0
            if not live.all():
                keys, values, weights = keys[live], values[live], weights[live]
        if not len(keys):
            return self
        with serial_blas(), np.errstate(all="ignore"):
            if weights is None:
                roots = weighted = keys
                sums = keys.sum(axis=0), values.sum(axis=0), float(len(keys))
            else:
                roots, weighted = keys * np.sqrt(weights)[:, None], keys * weights[:, None]
                sums = weights @ keys, weights @ values, float(weights.sum())
            square = np.tril(roots.T @ roots)
            square += np.tril(square, -1).T
            state = replace(
                self,
                weight=self.weight + sums[2],
                count=self.count + len(keys),
                key_sum=self.key_sum + sums[0],
                key_square=self.key_square + square,
                value_sum=self.value_sum + sums[1],
                key_value=self.key_value + weighted.T @ values,
                magnitude=self.magnitude + np.diagonal(square),
                value_extent=self.value_extent.add(values),
                roundings=max(self.roundings, len(keys) + _OWN) + 1,
            )
            return replace(state, extent=self.extent.add(keys, state.shape))

    def merge(self, other: KeyValueMoments, shift: FloatArray | None = None) -> KeyValueMoments:
        """Return the moments of both, relative to the centre of this one.

        Parameters
        ----------
        other : KeyValueMoments
            Of keys and values with as many columns.
        shift : (d,) array, optional
            The centre of the other less that of this one; its rounding is the caller's.

        Raises
        ------
        ValueError
            If the numbers of columns differ.
        """
        for name, mine, theirs in (("keys", self.d, other.d), ("values", self.d_v, other.d_v)):
            if mine != theirs:
                raise ValueError(f"numbers of columns of {name} differ: {mine} and {theirs}.")
        if shift is not None:
            other = other._shifted(shift)
        if not other.count or not self.count:
            return self if self.count else other
        with serial_blas(), np.errstate(all="ignore"):
            state = KeyValueMoments(
                weight=self.weight + other.weight,
                count=self.count + other.count,
                key_sum=self.key_sum + other.key_sum,
                key_square=self.key_square + other.key_square,
                value_sum=self.value_sum + other.value_sum,
                key_value=self.key_value + other.key_value,
                magnitude=self.magnitude + other.magnitude,
                extent=self.extent,
                value_extent=self.value_extent.merge(other.value_extent),
                roundings=max(self.roundings, other.roundings) + 1,
            )
            return replace(state, extent=self.extent.merge(other.extent, state.shape))

    def moved(
        self,
        key: float,
        key_shift: FloatArray,
        value: float,
        value_shift: FloatArray,
        weight: float,
    ) -> KeyValueMoments:
        """Return the moments in other units: of keys ``k key + key_shift``, and so on.

        Exact but for rounding; the factors are positive powers of two.
        """
        if not self.count:
            return self
        with serial_blas(), np.errstate(all="ignore"):
            scaled = replace(
                self,
                key_sum=self.key_sum * key,
                key_square=self.key_square * key * key,
                value_sum=self.value_sum * value,
                key_value=self.key_value * key * value,
                magnitude=self.magnitude * key * key,
                extent=self.extent.scaled(key),
                value_extent=self.value_extent.moved(value, value_shift),
            )
            state = scaled.times(weight)._shifted(key_shift)
            return replace(
                state,
                value_sum=state.value_sum + state.weight * value_shift,
                key_value=state.key_value + np.outer(state.key_sum, value_shift),
                roundings=state.roundings + 5,  # two of them to subnormal numbers
            )

    def _shifted(self, shift: FloatArray) -> KeyValueMoments:
        if not self.count or not shift.any():
            return self
        with serial_blas(), np.errstate(all="ignore"):
            mixed = np.outer(shift, self.key_sum)
            own = self.weight * np.outer(shift, shift)
            far = np.sqrt(self.magnitude) + np.sqrt(self.weight) * np.abs(shift)
            return replace(
                self,
                key_sum=self.key_sum + self.weight * shift,
                key_square=self.key_square + (mixed + mixed.T) + own,
                key_value=self.key_value + np.outer(shift, self.value_sum),
                magnitude=far * far * (1.0 + 8.0 * UNIT_ROUNDOFF),
                extent=self.extent.moved(shift),
                roundings=self.roundings + 6,
            )

    def times(self, factor: float) -> KeyValueMoments:
        """Return the moments with all weights times ``factor`` > 0; nothing else changes.

        Raises
        ------
        ValueError
            If the weight of all rows falls below 2**-900.
        """
        if not self.count:
            return self
        weight = self.weight * factor
        if not weight >= _FAINTEST:
            raise ValueError(
                f"the rows would weigh {weight:g}, less than 2**-900: give new rows larger "
                "weights instead of old ones smaller."
            )
        return replace(
            self,
            weight=weight,
            key_sum=self.key_sum * factor,
            key_square=self.key_square * factor,
            value_sum=self.value_sum * factor,
            key_value=self.key_value * factor,
            magnitude=self.magnitude * factor,
            roundings=self.roundings + 1,
        )

    def shape(self) -> Ellipsoid | None:
        """Return an ellipsoid like the covariance of the keys; None after an overflow."""
        with np.errstate(all="ignore"):
            lost = np.sqrt(8.0 * self.sum_roundoff) * self._scale()
            return shaped(self.mean, self.covariance, lost)

    def leverages(self, keys: FloatArray) -> FloatArray:
        """Return affine leverage scores (n,) of keys (n, d) against the rows that are in.

        ``(1 + (k - mean)^T C^-1 (k - mean)) / weight``: ``sup (b + <q, k>)^2`` over all b and q
        for which ``sum_j w_j (b + <q, k_j>)^2 = 1``. Scale-free in each direction, like softmax
        not changed by a common shift of the keys, and what tells heavy keys. An estimate: C has
        a ridge of 2**-40 or more. Infinite without rows and after an overflow. O(n d^2 + d^3).
        """
        with serial_blas(), np.errstate(all="ignore"):
            shape = self.shape() if self.count else None
            if shape is None:
                return np.full(len(keys), np.inf)
            scores = (1.0 + shape.distances(keys) ** 2) / self.weight
        return np.where(np.isnan(scores), np.inf, scores)

    @property
    def sum_roundoff(self) -> float:
        """What a sum may be off by, relative to the same sum of absolute values."""
        terms = self.roundings * UNIT_ROUNDOFF
        return terms / (1.0 - terms)

    def spread(self, Q: FloatArray) -> LogitSpread:
        """Return what is certain of the logits of queries ``Q`` (m, d). ``O(m d^2)``."""
        with serial_blas(), np.errstate(all="ignore"):
            mean, covariance = self.mean, self.covariance
            sizes = self._scale(), self.weight, self.sum_roundoff
            return logit_spread(Q, mean, covariance, *sizes, self.extent)

    def closure(self, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return estimates of ``log sum_j w_j exp<q, k_j>`` (m,) and of the output (m, d_v).

        As if keys and values were jointly Gaussian: ``weight exp(<q, mean> + v / 2)`` with v the
        variance of the logits, and ``mean_value + C_kv^T q``. The first is kept within its
        certified bounds (Jensen is one), the second in the box of the values. Without rows,
        -inf and zeros. ``O(m d (d + d_v))``.
        """
        if not self.count:
            return np.full(len(Q), -np.inf), np.zeros((len(Q), self.d_v))
        found = self.spread(Q)
        with np.errstate(all="ignore"):
            normaliser = found.log_weight + found.mean + np.fmax(found.variance, 0.0) / 2.0
            output = self.linear_values(Q)
            output = np.where(np.isnan(output), self.mean_value, output)
        return (
            np.clip(normaliser, *found.log_sum_exp()),
            np.clip(output, self.value_extent.low, self.value_extent.high),
        )

    def linear_values(self, Q: FloatArray) -> FloatArray:
        """Return ``mean_value + C_kv^T q`` (m, d_v): values averaged with weights ``1 + x_j``."""
        with serial_blas(), np.errstate(all="ignore"):
            return np.asarray(Q @ self.cross_covariance + self.mean_value)

    def linear_values_error(self, Q: FloatArray) -> FloatArray:
        """Return what ``linear_values`` may be off by (m,), per ``value_extent.magnitude``."""
        with np.errstate(all="ignore"):
            size = 1.0 + np.abs(Q) @ self._scale() * 1.01
            return np.asarray((6.0 * self.sum_roundoff + (self.d + 20) * UNIT_ROUNDOFF) * size)

    # -- inside

    def _per_weight(self, sums: FloatArray) -> FloatArray:
        with np.errstate(all="ignore"):
            return np.asarray(sums / (self.weight if self.count else 1.0))

    def _scale(self) -> FloatArray:
        """Return the root mean square of each column (d,), not below what underflow may hide."""
        faint = np.sqrt(_UNDERFLOW * (self.count + self.roundings) / self.weight)
        root = np.sqrt(self.magnitude / self.weight)
        return np.asarray(root * (1.0 + self.sum_roundoff) + faint)
