"""Moments of keys and values that arrive in two streams, not together: sketched over the rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from levsketch._checks import LevsketchStateError, check_row_count
from levsketch._typing import FloatArray, IntArray, Rows
from levsketch.backends.cpu import serial_blas
from levsketch.linalg import NO_EXPONENT, column_exponents, scale_columns
from levsketch.sketches.inner_product import InnerProductSketch

from .features import (
    chunk_rows,
    feature_exponents,
    length_exponents,
    same_map,
    scaled_keys,
)
from .lifted import Lift
from .moments import NO_VALUES, MomentTensors, value_exponents


@dataclass(frozen=True, eq=False)
class UnalignedMoments:
    """Sketches of ``sum_l phi_r(k_l) v_l^T`` for keys and values of which each has its own stream.

    With a random matrix Psi (m2, n) of ``E Psi^T Psi = I``, the products ``(Psi phi_r(K))^T Psi V``
    estimate the moments; which key a value belongs to is told by the row number alone.
    What needs no partner is exact: the sums of features (hence every normaliser) and the
    sum of the values.

    Attributes
    ----------
    sketch : InnerProductSketch
        Psi.
    maps : tuple of Lift
        One for each degree, ascending, as in `MomentTensors`.
    center : (d,) float64 array
        Subtracted from the keys: known in advance, for the running mean of one stream
        comes too late for the other.
    features : (m2 + 1, sum of sizes) array
        Psi times the features of the keys (scaled by ``2**-exponents``), and below it their sums.
    ones : (m2,) array
        Psi times ones, over the rows of the keys.
    values : (m2 + 1, d_v) array
        Psi times the values (scaled by ``2**-value_exponents``), and below it their sums.
    exponents, value_exponents : (d,) and (d_v,) int64 arrays
        Scales of the columns.
    lengths : (len(maps),) array
        ``sum_l ||x_l||^r`` of the scaled keys, or an upper bound.
    key_rows, value_rows : (int, int)
        Number of the first row that is in, and of the first that is not yet.

    Notes
    -----
    arXiv 2311.14652 takes ``phi(K)^T Psi^T Psi V`` whole. Here the means are taken out first, ``A =
    1 a^T + A_c`` for the features and ``V = 1 v^T + V_c``, so that with exact sums ::

        A^T V = n a v^T + A_c^T V_c,    A_c^T V_c ~ (Psi A_c)^T (Psi V_c),

    and Psi 1 is all that is needed to sketch the centred columns. The estimate stays
    unbiased, and its variance for a query and a column of V, at most ``2/m2 ||A_c phi(q)||^2
    ||V_c||^2``, has the spreads of weights and values in place of their sizes: see `deviations`.
    Degree 0 is exact.
    """

    sketch: InnerProductSketch
    maps: tuple[Lift, ...]
    center: FloatArray
    features: FloatArray
    ones: FloatArray
    values: FloatArray
    exponents: IntArray
    value_exponents: IntArray
    lengths: FloatArray
    key_rows: tuple[int, int]
    value_rows: tuple[int, int]

    @classmethod
    def empty(
        cls,
        sketch: InnerProductSketch,
        maps: Sequence[Lift],
        center: FloatArray,
        columns: int,
        first_row: int = 0,
    ) -> UnalignedMoments:
        """Return the moments of no rows, for values of so many columns.

        Parts of a stream may be summed apart and merged: each has the number of its first row.
        """
        return cls(
            sketch,
            tuple(maps),
            np.array(center, np.float64),
            np.zeros((sketch.size + 1, sum(lift.size for lift in maps))),
            np.zeros(sketch.size),
            np.zeros((sketch.size + 1, columns)),
            np.full(len(center), NO_EXPONENT, np.int64),
            np.full(columns, NO_VALUES, np.int64),
            np.zeros(len(maps)),
            (first_row, first_row),
            (first_row, first_row),
        )

    @property
    def n_keys(self) -> int:
        """Keys that are in."""
        return self.key_rows[1] - self.key_rows[0]

    @property
    def n_values(self) -> int:
        """Values that are in."""
        return self.value_rows[1] - self.value_rows[0]

    @property
    def size(self) -> int:
        """Numbers in the sketches."""
        return self.features.size + self.ones.size + self.values.size

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of the state."""
        held = (self.features, self.ones, self.values, self.center, self.lengths)
        return sum(a.nbytes for a in (*held, self.exponents, self.value_exponents))

    def update_keys(self, K: Rows) -> UnalignedMoments:
        """Return the state after one more block of keys (n, d); nothing is validated.

        ``2 n m2`` operations for each feature with dense Psi, n with "countsketch". The bits
        depend on the blocks, as in `MomentTensors.update`.
        """
        if not len(K):
            return self
        start, stop = self.key_rows
        check_row_count(stop, len(K))
        keys = np.subtract(K, self.center, dtype=np.float64, order="C")
        state = self._at_scale(
            np.maximum(self.exponents, column_exponents(keys)), self.value_exponents
        )
        places = state._places()
        features, ones = state.features.copy(), state.ones.copy()
        lengths, step = state.lengths.copy(), chunk_rows(self.maps)
        with serial_blas(), np.errstate(under="ignore"):
            for i in range(0, len(K), step):
                scaled = scaled_keys(self.maps, keys[i : i + step], state.exponents)
                n = len(scaled.rows)
                # one product with Psi for all degrees: its columns are made once
                lifted = np.ones((n, features.shape[1] + 1))
                for r, where, block in scaled.features(self.maps):
                    begin = places[r].start
                    lifted[:, begin + where.start : begin + where.stop] = block.T
                projected = self.sketch.project(np.arange(stop + i, stop + i + n), lifted)
                features[:-1] += projected[:, :-1]
                features[-1] += lifted[:, :-1].sum(axis=0)
                ones += projected[:, -1]
                lengths += scaled.lengths(self.maps).sum(axis=1)
        return replace(
            state,
            features=features,
            ones=ones,
            lengths=lengths,
            key_rows=(start, stop + len(K)),
        )

    def update_values(self, V: Rows) -> UnalignedMoments:
        """Return the state after one more block of values (n, d_v); nothing is validated."""
        if not len(V):
            return self
        start, stop = self.value_rows
        check_row_count(stop, len(V))
        wide = np.ascontiguousarray(V, np.float64)
        ends = np.maximum(self.value_exponents, value_exponents(wide))
        state = self._at_scale(self.exponents, ends)
        scaled = scale_columns(wide, -ends)
        index = np.arange(stop, stop + len(V))
        added = np.vstack([self.sketch.project(index, scaled), scaled.sum(axis=0)])
        return replace(state, values=state.values + added, value_rows=(start, stop + len(V)))

    def merge(self, other: UnalignedMoments) -> UnalignedMoments:
        """Return the state of both: of keys, and of values, parts that follow one another.

        Raises
        ------
        ValueError
            If sketches, maps, centers or numbers of columns differ, or if the rows of one do not
            go on where those of the other end (then a shard is missing, or was there before).
        """
        self._check_alike(other)
        key_rows = _joined("keys", self.key_rows, other.key_rows)
        value_rows = _joined("values", self.value_rows, other.value_rows)
        exponents = np.maximum(self.exponents, other.exponents)
        ends = np.maximum(self.value_exponents, other.value_exponents)
        mine, theirs = self._at_scale(exponents, ends), other._at_scale(exponents, ends)
        return replace(
            mine,
            features=mine.features + theirs.features,
            ones=mine.ones + theirs.ones,
            values=mine.values + theirs.values,
            lengths=mine.lengths + theirs.lengths,
            key_rows=key_rows,
            value_rows=value_rows,
        )

    def tensors(self) -> MomentTensors:
        """Return the estimated moments, with a column of ones, which is exact, after the values.

        Their ``rounding`` is that of the last column; where it is infinite, in the others, the
        error is that of the sketch, which is far larger.

        Raises
        ------
        LevsketchStateError
            If the streams have not brought the same rows.
        """
        A, V = self._centred()
        sums = self.features[-1]
        mean = self.values[-1] / max(self.n_values, 1)
        numerators = np.outer(sums, mean)
        with serial_blas(), np.errstate(under="ignore"):
            numerators += A.T @ V
        whole = np.column_stack([numerators, sums])
        unknown = np.full((len(self.maps), V.shape[1]), np.inf if self.n_keys else 0.0)
        return MomentTensors(
            self.maps,
            self.center,
            tuple(whole[where] for where in self._places()),
            self.exponents,
            np.append(self.value_exponents, 0 if self.n_keys else NO_VALUES),
            np.column_stack([unknown, self.lengths]),
            self.n_keys,
            # a plain sum of as many chunks as there may have been, and of merged parts
            self.n_keys,
        )

    def deviations(self, Q: FloatArray, coefficients: FloatArray) -> FloatArray:
        """Return estimated standard deviations of the numerators of polynomials, (m, d_v).

        Parameters
        ----------
        Q : (m, d) array
        coefficients : (m, len(maps)) or (len(maps),) array
            The numerator is ``sum_l p(<q, k_l - center>) v_l``, p with these coefficients.

        Returns
        -------
        (m, d_v) array
            ``sqrt(2 / m2) ||p_c|| ||v_c||``, where p_c are the n values of p without their mean
            and v_c is the centred column of values. Both norms are those of their
            sketches, right to about ``1 / sqrt(m2)``. Over the seeds, the error exceeds t
            deviations with a probability of at most about 1 / t^2.

        Raises
        ------
        LevsketchStateError
            If the streams have not brought the same rows.
        """
        A, V = self._centred()
        ends = np.zeros(len(A), np.int64)
        unknown = np.full((len(self.maps), len(A)), np.inf)
        tensors = tuple(np.ascontiguousarray(A[:, where].T) for where in self._places())
        sketched = MomentTensors(
            self.maps, self.center, tensors, self.exponents, ends, unknown, self.n_keys, 0
        ).contract(Q)
        weights = np.broadcast_to(coefficients, (len(Q), len(self.maps)))
        spread = np.linalg.norm(np.einsum("mr,mrs->ms", weights, sketched), axis=1)
        sizes = np.ldexp(np.linalg.norm(V, axis=0), np.maximum(self.value_exponents, NO_EXPONENT))
        return np.asarray(np.sqrt(2.0 / self.sketch.size) * np.outer(spread, sizes))

    # -- inside

    def _places(self) -> list[slice]:
        ends = np.cumsum([0, *(lift.size for lift in self.maps)]).tolist()
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    def _centred(self) -> tuple[FloatArray, FloatArray]:
        """Return Psi times features and values without their means, for whole streams."""
        if self.key_rows != self.value_rows and (self.n_keys or self.n_values):
            raise LevsketchStateError(
                f"keys and values are of different rows: {self.n_keys} keys from row "
                f"{self.key_rows[0]} on, {self.n_values} values from row {self.value_rows[0]} on; "
                "hand over the rest first."
            )
        n = max(self.n_keys, 1)
        A = self.features[:-1] - np.outer(self.ones, self.features[-1] / n)
        return A, self.values[:-1] - np.outer(self.ones, self.values[-1] / n)

    def _at_scale(self, exponents: IntArray, ends: IntArray) -> UnalignedMoments:
        """Return the same state in another scale: exact but for underflow."""
        if (exponents == self.exponents).all() and (ends == self.value_exponents).all():
            return self
        moved = [feature_exponents(lift, self.exponents, exponents) for lift in self.maps]
        most = [length_exponents(lift, self.exponents, exponents) for lift in self.maps]
        down = np.where(self.value_exponents > NO_VALUES, self.value_exponents - ends, 0)
        with np.errstate(under="ignore"):
            return replace(
                self,
                features=np.ldexp(self.features, np.concatenate(moved)),
                values=np.ldexp(self.values, down),
                lengths=np.ldexp(self.lengths, most),
                exponents=exponents,
                value_exponents=ends,
            )

    def _check_alike(self, other: UnalignedMoments) -> None:
        """Refuse another kind of state."""
        degrees = tuple(lift.degree for lift in self.maps)
        theirs = tuple(lift.degree for lift in other.maps)
        for name, mine, its in (
            ("sketch", self.sketch, other.sketch),
            ("degrees", degrees, theirs),
            ("numbers of columns of keys", len(self.center), len(other.center)),
            ("numbers of columns of values", self.values.shape[1], other.values.shape[1]),
        ):
            if mine != its:
                raise ValueError(f"{name} differ: {mine} and {its}.")
        if not all(map(same_map, self.maps, other.maps)):
            raise ValueError("maps differ, or their seeds do.")
        if (self.center != other.center).any():
            raise ValueError("center differs; give all parts of a stream the same one.")


def _joined(what: str, one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Return the range of rows of two parts of a stream that follow one another."""
    if other[0] == other[1]:
        return one
    if one[0] == one[1]:
        return other
    if one[1] == other[0]:
        return (one[0], other[1])
    if other[1] == one[0]:
        return (other[0], one[1])
    raise ValueError(
        f"first_row: {what} of rows {one[0]} to {one[1] - 1} and of rows {other[0]} to "
        f"{other[1] - 1} do not follow one another."
    )
