"""What an attention sketch remembers of whole blocks: exact keys, and a model of the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from levsketch._typing import BoolArray, FloatArray, IntArray
from levsketch.functions.softmax import combine, softmax_sums

from .attention_frame import Move
from .key_value_moments import KeyValueMoments
from .landmarks import Landmarks
from .quadratic import QuadraticMoments

# Rows that weigh less than this, in the unit of the frame, count as none: sums of what they
# weigh times squares of keys would underflow. Larger than what `KeyValueMoments` refuses.
FAINTEST = 2.0**-890
# More than any leverage that matters; products with weights stay finite.
_MOST_LEVERAGE = 1e200


def augmented(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return ``w_j [v_j, 1]``, (n, d_v + 1)."""
    return np.concatenate([values, np.ones((len(values), 1))], axis=1) * weights[:, None]


@dataclass(frozen=True, eq=False)
class Exact:
    """Keys that are kept as they are: (n, d), (n, d_v), (n,) and row numbers (n,)."""

    keys: FloatArray
    values: FloatArray
    weights: FloatArray
    index: IntArray

    @classmethod
    def empty(cls, d: int, d_v: int) -> Self:
        """Return no keys."""
        return cls(np.zeros((0, d)), np.zeros((0, d_v)), np.zeros(0), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    def extended(self, other: Self) -> Self:
        """Return both, one after the other."""
        return type(self)(
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.values, other.values]),
            np.concatenate([self.weights, other.weights]),
            np.concatenate([self.index, other.index]),
        )

    def taken(self, which: BoolArray | IntArray) -> Self:
        """Return some of the keys."""
        return type(self)(
            self.keys[which], self.values[which], self.weights[which], self.index[which]
        )

    def moved(self, move: Move, rows: int) -> Self:
        """Return the keys in another frame, their numbers shifted by ``rows``; weights stay."""
        return type(self)(
            self.keys * move.key_scale + move.key_shift,
            self.values * move.value_scale + move.value_shift,
            self.weights,
            self.index + rows,
        )

    def sums(self, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return t (m,) and S (m, d_v + 1) with ``sum_j w_j exp(<q, k_j>) [v_j, 1] = e^t S``."""
        return softmax_sums(Q, self.keys, augmented(self.values, self.weights))


@dataclass(frozen=True, eq=False)
class Model:
    """Exact keys, the heaviest ones, and the others ("the rest") by a model.

    Attributes
    ----------
    exact : Exact
    capacity : int
        Most exact keys.
    threshold : float
        Least leverage score, times the number of rows, of an exact key.
    landmarks : Landmarks or None
        Embedding of the rest; None for the Gaussian closure of ``moments``, or a polynomial.
    rows : int
        Most landmarks and exact keys together.
    moments : KeyValueMoments or None
        Of the rest: closure and certificate. None: nothing is certified.
    mass : float
        Sum of the weights of the rest.
    key_sum : (d,) array
        Weighted sum of the keys of the rest.
    low, high : (d_v,) arrays
        The box of the values of the rest.
    quadratic : QuadraticMoments or None
        Of the rest, if exp is taken for a parabola.
    """

    exact: Exact
    capacity: int
    threshold: float
    landmarks: Landmarks | None
    rows: int
    moments: KeyValueMoments | None
    mass: float
    key_sum: FloatArray
    low: FloatArray
    high: FloatArray
    quadratic: QuadraticMoments | None = None

    @classmethod
    def empty(
        cls,
        d: int,
        d_v: int,
        *,
        capacity: int,
        threshold: float,
        landmarks: Landmarks | None,
        certified: bool,
        polynomial: bool = False,
    ) -> Self:
        """Return the model of no rows."""
        return cls(
            Exact.empty(d, d_v),
            capacity,
            threshold,
            landmarks,
            0 if landmarks is None else landmarks.size,
            KeyValueMoments.empty(d, d_v) if certified else None,
            0.0,
            np.zeros(d),
            np.full(d_v, np.inf),
            np.full(d_v, -np.inf),
            QuadraticMoments.empty(d, d_v + 1) if polynomial else None,
        )

    @property
    def kind(self) -> str:
        """Name of the model of the rest."""
        if self.landmarks is not None:
            return "embedding"
        return "closure" if self.quadratic is None else "polynomial"

    @property
    def order(self) -> int | None:
        """Order of the trend of an embedding."""
        return None if self.landmarks is None else self.landmarks.order

    def add(self, new: Exact) -> Self:
        """Return the model with more rows: the heaviest of all stay exact, others join the rest.

        Each of them has a weight of `FAINTEST` or more.
        """
        if not len(new):
            return self
        pool = self.exact.extended(new)
        keep = self._heaviest(pool)
        rest, landmarks = pool.taken(~keep), self.landmarks
        if landmarks is not None:
            room = replace(landmarks, size=self.rows - int(keep.sum()))
            landmarks = room.add(rest.keys, augmented(rest.values, rest.weights))
            landmarks = landmarks.compressed(len(rest))
        state = replace(self, exact=pool.taken(keep), landmarks=landmarks)
        if not len(rest):
            return state
        moments, quadratic = self.moments, self.quadratic
        if moments is not None:
            moments = moments.add(rest.keys, rest.values, rest.weights)
        if quadratic is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                quadratic = quadratic.add(rest.keys, augmented(rest.values, rest.weights))
        return replace(
            state,
            moments=moments,
            quadratic=quadratic,
            mass=self.mass + float(rest.weights.sum()),
            key_sum=self.key_sum + rest.weights @ rest.keys,
            low=np.minimum(self.low, rest.values.min(axis=0)),
            high=np.maximum(self.high, rest.values.max(axis=0)),
        )

    def _heaviest(self, pool: Exact) -> BoolArray:
        """Return the mask of the rows that stay exact: the largest affine leverage scores."""
        keep = np.zeros(len(pool), np.bool_)
        if self.capacity == 0 or self.moments is None:
            return keep
        everything = self.moments.add(pool.keys, pool.values, pool.weights)
        leverages = np.minimum(everything.leverages(pool.keys), _MOST_LEVERAGE)
        order = np.lexsort((pool.index, -leverages * pool.weights))[: self.capacity]
        keep[order] = leverages[order] * everything.weight >= self.threshold
        return keep

    @property
    def has_weight(self) -> bool:
        """Whether any row counts."""
        return self.mass > 0.0 or len(self.exact) > 0

    def times(self, factor: float) -> Self:
        """Return the model with all weights times a number: old rows count less.

        Those that weigh less than `FAINTEST` then are forgotten.
        """
        if factor == 1.0:
            return self
        with np.errstate(under="ignore"):
            weights = self.exact.weights * factor
        exact = replace(self.exact, weights=weights)
        exact = exact.taken(np.flatnonzero(weights >= FAINTEST))
        if not self.mass * factor >= FAINTEST:
            return replace(self._emptied(), exact=exact)
        return replace(
            self,
            exact=exact,
            landmarks=None if self.landmarks is None else self.landmarks.times(factor),
            moments=None if self.moments is None else self.moments.times(factor),
            quadratic=None if self.quadratic is None else self.quadratic.times(factor),
            mass=self.mass * factor,
            key_sum=self.key_sum * factor,
        )

    def merge(self, other: Self, move: Move, rows: int) -> Self:
        """Return the model of both; ``other`` is in another frame, its rows after ``rows`` more."""
        other = other.times(move.weight_scale)
        joined = self._with_rest(other, move) if other.mass else self
        return joined.add(other.exact.moved(move, rows))

    def moved(self, move: Move, rows: int) -> Self:
        """Return the model in another frame, the numbers of its rows shifted by ``rows``."""
        return self._emptied().merge(self, move, rows)

    def with_law(self, queries: tuple[FloatArray, FloatArray] | None) -> Self:
        """Return the model with another law of queries for what comes."""
        if self.landmarks is None:
            return self
        return replace(self, landmarks=replace(self.landmarks, queries=queries))

    def as_closure(self, capacity: int) -> Self:
        """Return the model whose rest is known by its moments alone; there must be moments."""
        return replace(
            self, landmarks=None, quadratic=None, rows=0, capacity=capacity, threshold=0.0
        )

    def _emptied(self) -> Self:
        """Return the same model of no rows."""
        landmarks = self.landmarks
        if landmarks is not None:
            sizes = {"order": landmarks.order, "d": len(self.key_sum), "columns": len(self.low) + 1}
            landmarks = Landmarks.empty(landmarks.queries, self.rows, **sizes)
        return self.empty(
            len(self.key_sum),
            len(self.low),
            capacity=self.capacity,
            threshold=self.threshold,
            landmarks=landmarks,
            certified=self.moments is not None,
            polynomial=self.quadratic is not None,
        )

    def _with_rest(self, other: Self, move: Move) -> Self:
        """Return the model with the rest of another one, in another frame, which is not empty."""
        landmarks, moments = self.landmarks, self.moments
        if landmarks is not None and other.landmarks is not None:
            theirs = replace(
                other.landmarks,
                keys=other.landmarks.keys * move.key_scale,
                weights=move.of_values(other.landmarks.weights),
                constant=move.of_values(other.landmarks.constant),
                slope=move.of_values(other.landmarks.slope) * move.key_scale,
            )
            landmarks = landmarks.merge(theirs, move.key_shift)
        if moments is not None and other.moments is not None:
            moved = (move.key_scale, move.key_shift, move.value_scale, move.value_shift, 1.0)
            moments = moments.merge(other.moments.moved(*moved))
        quadratic = self.quadratic
        if quadratic is not None and other.quadratic is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                theirs_ = other.quadratic.moved(move.key_scale, move.key_shift, move.of_values)
                quadratic = quadratic.plus(theirs_)
        key_sum = other.key_sum * move.key_scale + other.mass * move.key_shift
        return replace(
            self,
            landmarks=landmarks,
            moments=moments,
            quadratic=quadratic,
            mass=self.mass + other.mass,
            key_sum=self.key_sum + key_sum,
            low=np.minimum(self.low, other.low * move.value_scale + move.value_shift),
            high=np.maximum(self.high, other.high * move.value_scale + move.value_shift),
        )

    # -- answers

    def rest(self, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return t (m,) and S (m, d_v + 1) of the model of the rest; the last column is ones.

        Its normaliser is at least Jensen's bound, ``mass exp(<q, mean>)``, and its output is in
        the box of the values.
        """
        log_normaliser, values = np.full(len(Q), -np.inf), np.zeros((len(Q), len(self.low)))
        if self.mass > 0.0 and self.landmarks is not None:
            log_normaliser, values = self._floored(Q, *self.landmarks.sums(Q))
        elif self.mass > 0.0 and self.moments is not None and self.quadratic is not None:
            found = self.moments.spread(Q)
            sums = self.quadratic.sums(Q, found.mean, found.variance)
            log_normaliser, values = self._floored(Q, *sums)
        elif self.mass > 0.0 and self.moments is not None:
            log_normaliser, values = self.moments.closure(Q)
        some = np.full((len(Q), 1), float(self.mass > 0.0))
        return log_normaliser, np.concatenate([values, some], axis=1)

    def _floored(
        self, Q: FloatArray, shift: FloatArray, sums: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return logarithms of the normaliser (m,) and outputs (m, d_v) from estimated sums.

        Where the estimate has only a share of Jensen's bound it is wrong at least by the rest: its
        output is taken times the square of the share, towards the centre of the values.
        """
        floor = np.log(self.mass) + Q @ (self.key_sum / self.mass)
        with np.errstate(all="ignore"):
            total = np.where(np.isfinite(sums[:, -1]), sums[:, -1], 0.0)
            log_normaliser = shift + np.log(np.maximum(total, 0.0))
            share = np.exp(np.minimum(2.0 * (log_normaliser - floor), 0.0))
            values = np.nan_to_num(sums[:, :-1] / total[:, None] * share[:, None])
            return np.maximum(log_normaliser, floor), np.clip(values, self.low, self.high)

    def sums(self, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return t (m,) and S (m, d_v + 1) of all rows."""
        return combine(*self.exact.sums(Q), *self.rest(Q))

    @property
    def answers_exactly(self) -> bool:
        """Whether every row that counts is an exact key: then the answer is certain."""
        return self.mass == 0.0

    @property
    def floats(self) -> int:
        """Numbers held."""
        d, d_v = len(self.key_sum), len(self.low)
        held = len(self.exact) * (d + d_v + 1) + d + 2 * d_v + 1
        held += 0 if self.moments is None else self.moments.size
        held += 0 if self.quadratic is None else QuadraticMoments.floats(d, d_v + 1)
        if self.landmarks is not None:
            found = self.landmarks
            held += Landmarks.floats(len(found.keys), found.order, d, d_v + 1)
        return held
