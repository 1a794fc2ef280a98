"""Moments of keys and values: ``sum_l <q, k_l - center>^r v_l`` of any query, from one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np

from levsketch._typing import FloatArray, IntArray, Rows
from levsketch.backends.cpu import serial_blas
from levsketch.linalg import NO_EXPONENT, UNIT_ROUNDOFF, column_exponents, scale_columns
from levsketch.sketches.tensorsketch import TensorSketch

from .contraction import Contraction
from .features import (
    MOST_ROWS,
    chunk_rows,
    feature_exponents,
    length_exponents,
    query_weights,
    roundoff,
    same_map,
    scaled_keys,
    scaled_queries,
)
from .lifted import Lift
from .monomials import translated

# Exponent of a column of values without entries; decay may lower others without end.
NO_VALUES = -(2**40)
# What underflow may take from a sum, for each row, where the query and the largest keys have
# entries near one: 2**-1074 for each monomial, times coefficients up to 20!.
_UNDERFLOW = 2.0**-960
# Tensors that decay below this are scaled up again, so that they lose no digits.
_SMALL = 2.0**-200


@dataclass(frozen=True, eq=False)
class MomentTensors:
    """Sums over keys and values, one for each monomial (or sketched one) of chosen degrees.

    A query then has ``sum_l <q, k_l - center>^r v_l`` by one inner product for each degree:
    exactly with `SymmetricPower`, in expectation with `TensorSketch`. Immutable.

    Attributes
    ----------
    maps : tuple of Lift
        One for each degree, ascending: `Constant`, `SymmetricPower` or `TensorSketch`
        (`feature_maps` makes them).
    center : (d,) float64 array
        What is subtracted from the keys. Softmax does not depend on it, and sums of
        powers have less to cancel near the mean of the keys; see also `recentred`.
    tensors : tuple of (size_r, c) arrays
        ``sum_l x_l^alpha v_l`` for the monomials alpha of a symmetric power, ``sum_l TS(x_l) v_l``
        for a sketch, with x_l the centred key times ``2**-exponents`` and v_l the value times
        ``2**-value_exponents``. (Multinomial coefficients are left to the query: without
        their roots, sums of whole numbers are exact.)
    exponents, value_exponents : (d,) and (c,) int64 arrays
        Scales of the columns. Sketches mix these, and use the largest for all.
    lengths : (len(maps), c) array
        ``sum_l ||x_l||^r |v_l|`` or an upper bound (1-norms for a sketch): what rounding is
        relative to. Infinite where nothing is known of it.
    n_rows : int
        Rows that are in, but those whose values are all zero.
    depth : int
        Roundings that a term has been through since its chunk was summed, at most.

    Notes
    -----
    Memory is ``size`` numbers for any number of rows: with d = 64 and c = 65, 1.1, 25 and
    424 MB for all degrees up to 2, 3 and 4. Columns are scaled by their largest entry, so keys of
    1e100, 1e-100, or both in different columns neither overflow nor vanish. arXiv
    2311.14652, with exact moments in place of sketches where keys and values arrive together.

    Examples
    --------
    Attention outputs for f = x^4, from 126 numbers for each of two columns:

    >>> import numpy as np
    >>> from levsketch.streaming.features import feature_maps
    >>> from levsketch.streaming.moments import MomentTensors
    >>> rng = np.random.default_rng(0)
    >>> K, v, q = rng.normal(size=(500, 6)), rng.normal(size=(500, 1)), rng.normal(size=6)
    >>> moments = MomentTensors.empty(feature_maps(6, [4], most=1000, seed=0), np.zeros(6), 2)
    >>> moments = moments.update(K, np.hstack([v, np.ones((500, 1))]))
    >>> output = moments.contract_scaled(q[None]).averages(0)
    >>> bool(np.isclose(output[0, 0], np.average(v[:, 0], weights=(K @ q) ** 4)))
    True
    """

    maps: tuple[Lift, ...]
    center: FloatArray
    tensors: tuple[FloatArray, ...]
    exponents: IntArray
    value_exponents: IntArray
    lengths: FloatArray
    n_rows: int
    depth: int

    @classmethod
    def empty(cls, maps: Sequence[Lift], center: FloatArray, columns: int) -> MomentTensors:
        """Return the moments of no rows, for values of so many columns."""
        return cls(
            tuple(maps),
            np.array(center, np.float64),
            tuple(np.zeros((lift.size, columns)) for lift in maps),
            np.full(len(center), NO_EXPONENT, np.int64),
            np.full(columns, NO_VALUES, np.int64),
            np.zeros((len(maps), columns)),
            0,
            0,
        )

    @property
    def degrees(self) -> tuple[int, ...]:
        """The degree of each tensor."""
        return tuple(lift.degree for lift in self.maps)

    @property
    def size(self) -> int:
        """Numbers in the tensors."""
        return sum(T.size for T in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of the state."""
        held = (self.center, self.exponents, self.value_exponents, self.lengths, *self.tensors)
        return sum(array.nbytes for array in held)

    def update(self, K: Rows, Va: FloatArray) -> MomentTensors:
        """Return the moments with one block of rows added; nothing is validated.

        Parameters
        ----------
        K : (n, d) finite rows
            Differences to the center must be finite, too.
        Va : (n, c) float64 array
            Values, each row times its weight; by convention, the last column is the weight.
            Rows of zeros are skipped: they do not even move the scale.

        Notes
        -----
        The bits depend on the blocks: hand over the same ones for the same bits. ``2 n size``
        operations on one thread. For degrees 0 to 2 of 64 columns and c = 65 that makes 140000
        rows a second where BLAS does 49 Gflop/s, which is 0.8 of that; 7000 up to degree 3.
        Besides a copy of the tensors, lifted rows take 6 MB at most, or 64 rows of the
        monomials of the last degree but one.
        """
        Va = np.ascontiguousarray(Va, np.float64)
        live = Va.any(axis=1)
        if not live.all():
            K, Va = K[live], Va[live]
        if not len(K):
            return self
        keys = np.subtract(K, self.center, dtype=np.float64, order="C")
        state = self._at_scale(
            np.maximum(self.exponents, column_exponents(keys)),
            np.maximum(self.value_exponents, value_exponents(Va)),
        )
        tensors = tuple(T.copy() for T in state.tensors)
        lengths, step = state.lengths.copy(), chunk_rows(self.maps)
        with serial_blas(), np.errstate(under="ignore"):
            for i in range(0, len(K), step):
                values = scale_columns(Va[i : i + step], -state.value_exponents)
                scaled = scaled_keys(self.maps, keys[i : i + step], state.exponents)
                for r, places, block in scaled.features(self.maps):
                    tensors[r][places] += block @ values
                lengths += scaled.lengths(self.maps) @ np.abs(values)
        return replace(
            state,
            tensors=tensors,
            lengths=lengths,
            n_rows=self.n_rows + len(K),
            depth=self.depth + -(-len(K) // step),
        )

    def contract(self, Q: FloatArray) -> FloatArray:
        """Return ``sum_l <q, k_l - center>^r v_l`` for queries ``Q`` (m, d): (m, len(maps), c)."""
        found = self.contract_scaled(Q)
        return found.plain(found.values)

    def rounding(self, Q: FloatArray) -> FloatArray:
        """Return bounds on the rounding errors of ``contract(Q)``, of the same shape.

        Proved for symmetric powers: each term ``multinomial q^alpha x_l^alpha v_l`` goes through at
        most N roundings, and the terms of a degree add up, in size, to at most ``||q||^r
        lengths``; so the error is at most ``N u / (1 - N u)`` times that. N is the rows of a
        chunk, plus ``depth``, plus the number of monomials, plus a few. What is seen is far
        smaller. For a sketch: of its own value, not of the sum that it estimates.
        """
        found = self.contract_scaled(Q)
        return np.asarray(np.nextafter(found.plain(found.rounding), np.inf))

    def contract_scaled(self, Q: FloatArray) -> Contraction:
        """Return the sums of ``contract`` and their rounding as scaled numbers.

        ``2 m size`` operations; memory for a copy of the tensors and a chunk of lifted queries.
        """
        scaled, powers = scaled_queries(self.maps, Q, self.exponents)
        weighted = [
            T * query_weights(lift)[:, None]
            for lift, T in zip(self.maps, self.tensors, strict=True)
        ]
        values, step = np.zeros((len(Q), *self.lengths.shape)), chunk_rows(self.maps)
        with serial_blas(), np.errstate(under="ignore", invalid="ignore"):
            for i in range(0, len(Q), step):
                part = slice(i, i + step)
                for r, places, block in scaled.part(part).features(self.maps):
                    values[part, r] += block.T @ weighted[r][places]
            additions = min(self.n_rows, MOST_ROWS) + self.depth
            shares = np.array([roundoff(lift, additions) for lift in self.maps])
            hidden = scaled.lengths(self.maps).T[:, :, None] * (shares[:, None] * self.lengths)
        hidden = np.where(np.isnan(hidden), np.inf, hidden) + _UNDERFLOW * (self.n_rows + 1)
        seen = self.value_exponents > NO_VALUES
        return Contraction(values, hidden, powers, np.where(seen, self.value_exponents, 0))

    def merge(self, other: MomentTensors) -> MomentTensors:
        """Return the moments of both, around the center of this one if it has any rows.

        Around different centers, the tensors of the other are translated: an algebraic
        identity, but one that needs symmetric powers of all degrees up to the highest. Its
        terms may cancel where centers are further apart than keys from theirs: digits are
        lost as if the other's keys were that long, and ``lengths`` say so.

        Raises
        ------
        ValueError
            If maps or numbers of columns differ, or centers do and these are no such maps.
        """
        self._check_alike(other)
        if not other.n_rows:
            return self
        if not self.n_rows:
            return other
        apart = other.center - self.center
        exponents = np.maximum(self.exponents, other.exponents)
        if apart.any():
            other._check_translatable()
            exponents = np.maximum(exponents, column_exponents(apart[None]))
        ends = np.maximum(self.value_exponents, other.value_exponents)
        mine = self._at_scale(exponents, ends)
        theirs = other._at_scale(exponents, ends)._translated(apart)
        return replace(
            mine,
            tensors=tuple(A + B for A, B in zip(mine.tensors, theirs.tensors, strict=True)),
            lengths=mine.lengths + theirs.lengths,
            n_rows=mine.n_rows + theirs.n_rows,
            depth=max(mine.depth, theirs.depth) + 1,
        )

    def times(self, factor: float) -> MomentTensors:
        """Return the moments with values times ``factor`` > 0; a power of two rounds nothing."""
        if not self.n_rows:
            return self
        mantissa, power = math.frexp(factor)
        if mantissa == 0.5:
            mantissa, power = 1.0, power - 1
        seen = self.value_exponents > NO_VALUES
        state = replace(
            self,
            tensors=tuple(T * mantissa for T in self.tensors),
            lengths=self.lengths * mantissa,
            value_exponents=np.where(seen, self.value_exponents + power, NO_VALUES),
            depth=self.depth + 1,
        )
        top = state.lengths.max(axis=0)  # which no entry of a tensor exceeds
        faint = np.where((top > 0) & (top < _SMALL), np.frexp(top)[1], 0)
        return state._at_scale(state.exponents, state.value_exponents + faint)

    # -- inside

    def _at_scale(self, exponents: IntArray, ends: IntArray) -> MomentTensors:
        """Return the same moments in another scale: exact but for underflow."""
        if (exponents == self.exponents).all() and (ends == self.value_exponents).all():
            return self
        down = np.where(self.value_exponents > NO_VALUES, self.value_exponents - ends, 0)
        tensors, lengths = [], []
        with np.errstate(under="ignore"):
            for lift, T, sizes in zip(self.maps, self.tensors, self.lengths, strict=True):
                moved = feature_exponents(lift, self.exponents, exponents)
                tensors.append(np.ldexp(T, moved[:, None] + down))
                most = length_exponents(lift, self.exponents, exponents)
                lengths.append(np.ldexp(sizes, most + down))
        return replace(
            self,
            tensors=tuple(tensors),
            lengths=np.stack(lengths),
            exponents=exponents,
            value_exponents=ends,
        )

    def _translated(self, apart: FloatArray) -> MomentTensors:
        """Return moments around ``center - apart``, in a scale where that is not large."""
        if not apart.any():
            return self
        shift = scale_columns(apart[None], -np.where(apart != 0, self.exponents, 0))
        far = float(np.linalg.norm(shift)) * (1.0 + 4.0 * len(apart) * UNIT_ROUNDOFF)
        top = self.degrees[-1]
        return replace(
            self,
            center=self.center - apart,
            tensors=tuple(translated(self.tensors, shift[0])),
            lengths=np.stack(
                [
                    sum(comb(r, j) * far ** (r - j) * self.lengths[j] for j in range(r + 1))
                    for r in self.degrees
                ]
            ),
            depth=self.depth + (len(apart) + 3) * top + 3,
        )

    def _check_alike(self, other: MomentTensors) -> None:
        """Refuse moments of another kind."""
        if self.degrees != other.degrees:
            raise ValueError(f"degrees differ: {self.degrees} and {other.degrees}.")
        for name, mine, theirs in (
            ("numbers of columns of keys", len(self.center), len(other.center)),
            ("numbers of columns of values", self.lengths.shape[1], other.lengths.shape[1]),
        ):
            if mine != theirs:
                raise ValueError(f"{name} differ: {mine} and {theirs}.")
        for one, another in zip(self.maps, other.maps, strict=True):
            if not same_map(one, another):
                raise ValueError(f"maps of degree {one.degree} differ, or their seeds do.")

    def _check_translatable(self) -> None:
        """Refuse maps that know no translation."""
        gaps = self.degrees != tuple(range(len(self.maps)))
        if gaps or any(isinstance(lift, TensorSketch) for lift in self.maps):
            raise ValueError(
                "center differs, and only exact moments of all degrees 0 ... g can be "
                f"translated, not these: {[type(lift).__name__ for lift in self.maps]} of degrees "
                f"{list(self.degrees)}; give both streams the same center."
            )


def value_exponents(Va: FloatArray) -> IntArray:
    """Return the scale of each column of a block of values, (c,)."""
    found = column_exponents(Va)
    return np.where(found > NO_EXPONENT, found, NO_VALUES)


def recentred(contracted: FloatArray, shift: FloatArray) -> FloatArray:
    """Return ``sum_l (x_l - s)^r v_l`` from ``sum_l x_l^j v_l``, j = 0 ... g; one s a query.

    With x = <q, k - center> and s = <q, mean - center>, keys are centred at any mean at
    query time.

    Parameters
    ----------
    contracted : (m, g + 1, c) array
        Of all degrees 0 ... g.
    shift : (m,) array
        The s of each query.

    Returns
    -------
    (m, g + 1, c) array

    Notes
    -----
    The binomial theorem. If entries are off by at most ``bound``, those of the result are off
    by at most ``recentred(bound, -abs(shift))``, plus g + 4 roundings of terms that add up to
    ``recentred(abs(contracted), -abs(shift))``.
    """
    out = np.empty_like(contracted)
    powers = (-shift[:, None]) ** np.arange(contracted.shape[1])
    for r in range(contracted.shape[1]):
        ways = np.array([comb(r, j) for j in range(r + 1)], np.float64)
        out[:, r] = np.einsum("mj,mjc->mc", powers[:, r::-1] * ways, contracted[:, : r + 1])
    return out
