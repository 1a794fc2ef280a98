"""Where zero is and how large one is, for the keys, values and weights of a stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from levsketch._typing import FloatArray

# Rows may grow by this power of two beyond those of the first block.
_ROOM = 300
_LARGEST_QUERY = 500
# Factors between frames are not smaller than this power of two: products with them are zero by
# then, and divisions still work.
_LEAST_FACTOR = -1000
# Where the mean of a column is this many median deviations from its median, it says where a few
# outliers are: all others would lose these digits to it.
_ASTRAY = 2.0**10
_LARGEST = np.finfo(np.float64).max


class Move(NamedTuple):
    """How another frame's keys, values and weights read in this one; scales are powers of two."""

    key_scale: float
    key_shift: FloatArray
    value_scale: float
    value_shift: FloatArray
    weight_scale: float

    @property
    def stays(self) -> bool:
        """Whether everything reads as it is."""
        scales = {self.key_scale, self.value_scale, self.weight_scale}
        return scales == {1.0} and not self.key_shift.any() and not self.value_shift.any()

    def of_values(self, columns: FloatArray) -> FloatArray:
        """Return rows whose columns are [value, one] times coefficients; weights stay."""
        moved = self.value_scale * columns[..., :-1] + columns[..., -1:] * self.value_shift
        return np.concatenate([moved, columns[..., -1:]], axis=-1)


@dataclass(frozen=True, eq=False)
class Frame:
    """Shifts by the means of the first block, and scales by powers of two, fixed from then on.

    Softmax does not change when all keys are shifted, nor when keys are halved and queries
    doubled; outputs follow the values. In the frame, keys and values have zero mean and sizes
    near one, so that nothing over- or underflows and no digits are lost to a common offset.

    Attributes
    ----------
    key_power, value_power, weight_power, spread_power : int
        Powers of two that keys, values and weights are divided by, and that centred values
        are multiplied by.
    key_centre, value_centre : (d,) and (d_v,) arrays
        In units of these powers.
    """

    key_power: int
    value_power: int
    weight_power: int
    spread_power: int
    key_centre: FloatArray
    value_centre: FloatArray

    @classmethod
    def of(cls, rows: FloatArray, d: int) -> Self:
        """Return the frame of a first block: rows [key | value | weight], (n, d + d_v + 1).

        Rows of weight zero have no part in it, unless there are no others. A column whose mean is
        far out because of a few outliers is centred at its median.
        """
        live = rows[:, -1] > 0.0
        rows = rows[live] if live.any() else rows
        parts = rows[:, :d], rows[:, d:-1], rows[:, -1:]
        key, value, weight = (int(np.frexp(np.max(np.abs(p), initial=0.0))[1]) for p in parts)
        keys, values = np.ldexp(parts[0], -key), np.ldexp(parts[1], -value)
        centre, spread = _centre(values), 0
        squares = np.sum(np.square(values - centre), axis=1)
        size = float(np.sqrt(np.sum(squares) / max(1, len(rows))))
        if size > 2.0**-50:  # else values are constant up to rounding
            spread = -int(np.frexp(size)[1])
        return cls(key, value, weight, spread, _centre(keys), centre)

    def inside(self, rows: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return keys, values and weights of rows in the frame.

        Raises
        ------
        OverflowError
            If they have grown out of the range of float64 since the first block.
        """
        d = len(self.key_centre)
        with np.errstate(over="ignore", under="ignore"):
            keys = np.ldexp(rows[:, :d], -self.key_power)
            values = np.ldexp(rows[:, d:-1], -self.value_power)
            weights = np.ldexp(rows[:, -1], -self.weight_power)
        for name, part in (("keys", keys), ("values", values), ("sample_weight", weights)):
            if np.max(np.abs(part), initial=0.0) > 2.0**_ROOM:
                raise OverflowError(
                    f"{name} grew by a factor of more than 2**{_ROOM} since the first block of "
                    "the stream; scale them, or begin with the large ones."
                )
        values = np.ldexp(values - self.value_centre, self.spread_power)
        return keys - self.key_centre, values, weights

    def joined(self, other: Self) -> Self:
        """Return the frame, in the larger units of both: there the rows of neither overflow."""
        powers = [
            max(getattr(self, name), getattr(other, name))
            for name in ("key_power", "value_power", "weight_power")
        ]
        return replace(
            self,
            key_power=powers[0],
            value_power=powers[1],
            weight_power=powers[2],
            key_centre=np.ldexp(self.key_centre, self.key_power - powers[0]),
            value_centre=np.ldexp(self.value_centre, self.value_power - powers[1]),
        )

    def move(self, other: Self) -> Move:
        """Return how what is in the frame ``other`` reads in this one."""
        key, value = other.key_power - self.key_power, other.value_power - self.value_power
        stretch = value + self.spread_power - other.spread_power
        with np.errstate(under="ignore"):
            key_shift = np.ldexp(other.key_centre, key) - self.key_centre
            value_shift = np.ldexp(other.value_centre, value) - self.value_centre
        weight = other.weight_power - self.weight_power
        scales = [float(np.ldexp(1.0, max(p, _LEAST_FACTOR))) for p in (key, stretch, weight)]
        value_shift = np.ldexp(value_shift, self.spread_power)
        return Move(scales[0], key_shift, scales[1], value_shift, scales[2])

    def queries(self, Q: FloatArray) -> FloatArray:
        """Return queries (m, d) for keys in the frame: logits change by a constant each.

        Those beyond float64's range become shorter; softmax then is one-hot in either length.
        """
        top = np.frexp(np.max(np.abs(Q), axis=1, initial=0.0))[1]
        power = np.minimum(self.key_power, _LARGEST_QUERY - top.astype(np.int64))
        with np.errstate(under="ignore"):
            return np.asarray(np.ldexp(Q, power[:, None]))

    def outputs(self, Y: FloatArray) -> FloatArray:
        """Return outputs (m, d_v) in the units of the values."""
        with np.errstate(over="ignore", under="ignore"):
            found = np.ldexp(np.ldexp(Y, -self.spread_power) + self.value_centre, self.value_power)
        # of values near the largest number, rounding may make infinity
        return np.asarray(np.clip(found, -_LARGEST, _LARGEST))

    def lengths(self, errors: FloatArray) -> FloatArray:
        """Return lengths of differences of outputs in the units of the values."""
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.ldexp(errors, self.value_power - self.spread_power))


def _centre(columns: FloatArray) -> FloatArray:
    """Return the mean of each column (c,), or the median where a few outliers drag that away."""
    n = len(columns)
    if n == 0:
        return np.zeros(columns.shape[1])
    mean = columns.mean(axis=0)
    middle = np.sort(columns, axis=0)[n // 2]
    apart = np.sort(np.abs(columns - middle), axis=0)
    # the median of those that are not zero: rows that share the middle have no digits to lose
    place = np.minimum((np.count_nonzero(apart == 0.0, axis=0) + n) // 2, n - 1)
    typical = np.take_along_axis(apart, place[None], axis=0)[0]
    return np.asarray(np.where(np.abs(mean - middle) > _ASTRAY * typical, middle, mean))
