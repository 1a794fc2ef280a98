"""What is remembered of the rows that a stream of moments has absorbed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from levsketch._typing import FloatArray
from levsketch.sketches.inner_product import make_sketch

from .attention_frame import Frame
from .attention_model import augmented
from .key_value_moments import KeyValueMoments
from .moment_frames import aged, with_values_of
from .moments import MomentTensors
from .polynomial_policy import PolynomialPolicy
from .unaligned import UnalignedMoments

# Weights that are smaller than those of the first block by more than this are refused, and so is a
# merge with entries larger by more, as `Frame` refuses rows: products stay in range.
_ROOM = 300


@dataclass(frozen=True, eq=False)
class PolynomialMemory:
    """Moments, and how far keys and values reach. Immutable.

    Attributes
    ----------
    policy : PolynomialPolicy
    center : (d,) array or None
        What is taken from the keys, if that is fixed beforehand; else their mean in the first
        block.
    frame : Frame or None
        Of the first block that has a weight; None before. Without keys for powers, whose
        center is zero, and without values if keys and values are not aligned.
    moments : MomentTensors, UnalignedMoments or None
        Of keys as users passed them, less the center. Values and weights are in the frame; values
        that are not aligned are as users passed them.
    reach : KeyValueMoments
        Of keys, values and weights in the frame: it bounds logits and errors. Its weights do not
        decay. Without values if these are not aligned; of no rows for powers.
    low, high : (d_v,) arrays
        Box of the values, as users passed them; ``inf`` and ``-inf`` without any.
    """

    policy: PolynomialPolicy
    center: FloatArray | None
    frame: Frame | None
    moments: MomentTensors | UnalignedMoments | None
    reach: KeyValueMoments
    low: FloatArray
    high: FloatArray

    @classmethod
    def empty(
        cls,
        policy: PolynomialPolicy,
        d: int,
        d_v: int,
        center: FloatArray | None = None,
        first_row: int = 0,
    ) -> PolynomialMemory:
        """Return the memory of no rows; ValueError for policies that are none, or do not fit."""
        policy.check()
        maps = policy.maps(d, d_v)
        moments = None
        if not policy.aligned:
            psi = make_sketch(policy.sketch, policy.sketch_size, policy.seed)
            moments = UnalignedMoments.empty(psi, maps, np.zeros(d), d_v, first_row)
        return cls(
            policy,
            center if policy.softmax else np.zeros(d),
            None,
            moments,
            KeyValueMoments.empty(d, d_v if policy.aligned else 0),
            np.full(d_v, np.inf),
            np.full(d_v, -np.inf),
        )

    @property
    def d(self) -> int:
        """Columns of the keys."""
        return self.reach.d

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        held = self.low.nbytes + self.high.nbytes + self.reach.nbytes
        if self.frame is not None:
            held += self.frame.key_centre.nbytes + self.frame.value_centre.nbytes
        if self.center is not None:
            held += self.center.nbytes
        return held + (0 if self.moments is None else self.moments.nbytes)

    def framed(self, rows: FloatArray) -> Frame:
        """Return the frame, or that which these would fix as the first block."""
        if self.frame is not None:
            return self.frame
        if not self.policy.softmax:
            return Frame.of(rows[:, self.d :], 0)
        frame = Frame.of(rows, self.d)
        if self.center is None:
            return frame
        with np.errstate(over="ignore", under="ignore"):
            return replace(frame, key_centre=np.ldexp(self.center, -frame.key_power))

    def add(self, rows: FloatArray, ages: FloatArray) -> PolynomialMemory:
        """Return the memory with rows [key | value | weight], of which ``ages`` others follow each.

        Without values (but with weights, of 1) if these are not aligned. All weights are positive.
        The bits depend on the blocks.

        Raises
        ------
        OverflowError
            As `inside`.
        """
        if not len(rows):
            return self
        state = self if self.frame is not None else self._begun(rows)
        moments, K = state.moments, rows[:, : self.d]
        keys, values, weights = inside(state.framed(rows), rows)
        if moments is None:
            raise AssertionError("what has begun has moments")
        if self.policy.softmax:
            state = replace(state, reach=self.reach.add(keys, values, weights))
        if isinstance(moments, UnalignedMoments):
            return replace(state, moments=moments.update_keys(K))
        summed = augmented(values, weights * self.policy.decay**ages)
        return replace(state, moments=moments.update(K, summed)).boxed(rows[:, self.d : -1])

    def add_values(self, V: FloatArray) -> PolynomialMemory:
        """Return the memory with values (n, d_v) that are not aligned."""
        if not isinstance(self.moments, UnalignedMoments):
            raise AssertionError("aligned values come with their keys")
        return replace(self, moments=self.moments.update_values(V))

    def boxed(self, V: FloatArray) -> PolynomialMemory:
        """Return the memory with values (n, d_v) in its box."""
        if not len(V):
            return self
        low, high = np.minimum(self.low, V.min(axis=0)), np.maximum(self.high, V.max(axis=0))
        return replace(self, low=low, high=high)

    def aged(self, rows: int) -> PolynomialMemory:
        """Return the memory when so many rows have gone by."""
        if not isinstance(self.moments, MomentTensors):
            return self
        return replace(self, moments=aged(self.moments, self.policy.decay, rows))

    def centred_like(self, other: PolynomialMemory) -> PolynomialMemory:
        """Return the memory with the center of another one, if that has any and this has none."""
        if self.frame is not None or other.frame is None or other.moments is None:
            return self
        return replace(self, center=other.moments.center)

    def joined(self, other: PolynomialMemory) -> PolynomialMemory:
        """Return the memory of both; neither counts less than it does.

        Raises
        ------
        ValueError
            If sketches have centers of their own, or rows do not follow one another.
        OverflowError
            If entries or weights of the other are larger by 2**300.
        """
        mine, theirs = self.moments, other.moments
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        if isinstance(mine, UnalignedMoments) and isinstance(theirs, UnalignedMoments):
            if self.frame is None:  # it has values alone
                mine = replace(mine, center=theirs.center)
            elif other.frame is None:
                theirs = replace(theirs, center=mine.center)
            both = replace(self, moments=mine.merge(theirs), low=low, high=high)
            if self.frame is None:
                return replace(both, frame=other.frame, reach=other.reach)
        elif self.frame is None:
            return other
        else:
            both = replace(self, low=low, high=high)
        if self.frame is None or other.frame is None:
            return both
        _check_alike(self.frame, other.frame)
        if isinstance(mine, MomentTensors) and isinstance(theirs, MomentTensors):
            moved = with_values_of(theirs, self.frame, other.frame)
            both = replace(both, moments=mine.merge(moved))
        reach = self.reach.merge(_moved(other.reach, self.frame, other.frame))
        return replace(both, reach=reach)

    def _begun(self, rows: FloatArray) -> PolynomialMemory:
        """Return the memory with what a first block fixes."""
        frame, center = self.framed(rows), self.center
        if center is None:
            center = np.ldexp(frame.key_centre, frame.key_power)
        if isinstance(self.moments, UnalignedMoments):
            return replace(self, frame=frame, moments=replace(self.moments, center=center))
        maps = self.policy.maps(self.d, len(self.low))
        return replace(
            self, frame=frame, moments=MomentTensors.empty(maps, center, len(self.low) + 1)
        )


def inside(frame: Frame, rows: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return keys, values and weights of rows in a frame, which may lack columns on the left.

    Raises
    ------
    OverflowError
        If entries or weights grew by more than 2**300 since the first block, or weights fell so; if
        keys less their center are not finite.
    """
    width = len(frame.key_centre) + len(frame.value_centre) + 1
    keys, values, weights = frame.inside(rows[:, rows.shape[1] - width :])
    if weights.min(initial=np.inf) < 2.0**-_ROOM:
        raise OverflowError(
            f"sample_weight fell by a factor of more than 2**{_ROOM} since the first block of the "
            "stream; let weights that small be zero."
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(np.ldexp(keys, frame.key_power)).all():
            raise OverflowError("keys differ by more than the range of float64.")
    return keys, values, weights


def _check_alike(mine: Frame, theirs: Frame) -> None:
    """Refuse to merge what is far larger than all that is there, and weights far from these."""
    for name, one, other in (
        ("keys", mine.key_power, theirs.key_power),
        ("values", mine.value_power, theirs.value_power),
        ("sample_weight", mine.weight_power, theirs.weight_power),
    ):
        if other - one > _ROOM or (name == "sample_weight" and one - other > _ROOM):
            raise OverflowError(
                f"cannot merge: {name} of the first blocks are below 2**{one} here and 2**{other} "
                f"in the other, more than 2**{_ROOM} apart."
            )


def _moved(reach: KeyValueMoments, mine: Frame, theirs: Frame) -> KeyValueMoments:
    """Return moments in the frame ``theirs`` as they read in ``mine``."""
    if not reach.count:
        return reach
    key, value, weight = (
        float(np.ldexp(1.0, power))
        for power in (
            theirs.key_power - mine.key_power,
            theirs.value_power - mine.value_power,
            theirs.weight_power - mine.weight_power,
        )
    )
    spread = float(np.ldexp(1.0, mine.spread_power - theirs.spread_power))
    values = np.ldexp(theirs.value_centre * value - mine.value_centre, mine.spread_power)
    keys = theirs.key_centre * key - mine.key_centre
    return reach.moved(key, keys, value * spread, values, weight)
