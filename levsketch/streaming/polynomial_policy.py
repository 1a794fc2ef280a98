"""What is asked of a stream of moments for attention, and what that takes."""

from __future__ import annotations

import math
from typing import NamedTuple

import scipy.fft

from levsketch.sketches.inner_product import INNER_PRODUCT_SKETCHES

from .features import MOST_ROWS, feature_maps
from .lifted import Lift
from .lp_policy import HIGHEST_DEGREE
from .monomials import monomial_count

# Within a block, a row does not count less than this times the next block's first.
_LEAST_WEIGHT_BITS = 400.0


class PolynomialPolicy(NamedTuple):
    """What is asked of a stream; fixed from its first row.

    Attributes
    ----------
    function : "softmax" or float
        A number is an even power p.
    degree : int
        Of the polynomials that stand for exp: even, at least 2. For powers, p.
    sketch : {"exact", "ams", "gaussian", "countsketch"}
        "exact": keys and values arrive together. Else the sketch that joins two streams.
    sketch_size : int
        Its rows m2; 0 for "exact".
    decay : float
        By how much a row counts less for each one that follows.
    scale : float or str
        Of the logits; queries come with it, so nothing here depends on it.
    floats : int
        Most numbers that tensors (or sketches) may take.
    seed : int
    """

    function: str | float
    degree: int
    sketch: str
    sketch_size: int
    decay: float
    scale: float | str
    floats: int
    seed: int

    @property
    def softmax(self) -> bool:
        """Whether f is exp, not a power."""
        return self.function == "softmax"

    @property
    def aligned(self) -> bool:
        """Whether each key arrives with its value."""
        return self.sketch == "exact"

    @property
    def lowest(self) -> int:
        """The lowest degree of which moments are needed."""
        return 0 if self.softmax else self.degree

    @property
    def block_rows(self) -> int:
        """Rows that are absorbed at a time: what is copied for a block is small beside its work."""
        rows = max(MOST_ROWS, -(-self.sketch_size // 64) * 64)
        if self.decay == 1.0:
            return rows
        return max(1, min(rows, int(_LEAST_WEIGHT_BITS / -math.log2(self.decay))))

    def check(self) -> None:
        """Refuse what no estimator would ask.

        Raises
        ------
        TypeError
            If a field has another type.
        ValueError
            If a field is out of range.
        """
        kinds: dict[type, tuple[object, ...]] = {
            str: (self.sketch,),
            int: (self.degree, self.sketch_size, self.floats, self.seed),
            float: (self.decay, 1.0 if self.softmax else self.function),
        }
        for kind, fields in kinds.items():
            if any(type(field) is not kind for field in fields):
                raise TypeError(f"a field of {self} is of the wrong type.")
        even = self.degree % 2 == 0 and 2 <= self.degree <= HIGHEST_DEGREE
        if not even or (not self.softmax and self.function != self.degree):
            name = "degree" if self.softmax else "function"
            raise ValueError(
                f"{name} must be an even number from 2 to {HIGHEST_DEGREE}, got "
                f"{self.degree if self.softmax else self.function!r}: moments of higher "
                "degrees have no digits left."
            )
        known = ("exact", *INNER_PRODUCT_SKETCHES)
        if self.sketch not in known or (self.sketch_size > 0) == self.aligned:
            raise ValueError(
                f"sketch must be one of {known}, with a sketch_size for all but the first, got "
                f"{self.sketch!r} and {self.sketch_size}."
            )
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"decay must be in (0, 1], got {self.decay!r}.")
        if not self.aligned and (self.decay != 1.0 or not self.softmax):
            what = f"decay={self.decay!r}" if self.softmax else f"function={self.function!r}"
            raise ValueError(
                f"sketch={self.sketch!r} cannot go with {what}: which key a value belongs to is "
                'told by its row number alone; use sketch="exact".'
            )
        if self.seed < 0 or self.floats < 1:
            raise ValueError(f"seed and floats must not be negative, got {self}.")

    def most_features(self, d: int, d_v: int) -> int:
        """Return up to how many monomials of a degree are exact, and how large sketches are.

        Raises
        ------
        ValueError
            If the moments do not fit in ``floats`` numbers, with what they take; for softmax
            also as sketches of d numbers a degree.
        """
        counts = [monomial_count(d, r) for r in range(self.lowest, self.degree + 1)]
        need = moment_floats(d, d_v, self.degree, sketch_size=self.sketch_size, lowest=self.lowest)
        if need <= self.floats:
            return max(counts)
        if not self.softmax:
            raise ValueError(
                f"function={self.function:g}: the {counts[0]} moments of degree {self.degree} of "
                f"d = {d} columns, for {d_v} columns of values, take {8 * need} bytes, more than "
                f"max_memory={8 * self.floats}; raise it, or take a smaller power."
            )
        room = self._features(d_v)
        most = _share(counts, room)
        if most < d:
            least = 8 * self._floats(d_v, 1 + self.degree * d)
            raise ValueError(
                f"degree={self.degree}: the {sum(counts)} monomials of d = {d} columns, for "
                f"{d_v} columns of values, take {8 * need} bytes, more than "
                f"max_memory={8 * self.floats}; sketched, they take {least} bytes at least."
            )
        return most

    def maps(self, d: int, d_v: int) -> tuple[Lift, ...]:
        """Return the feature map of each degree; ValueError as `most_features` says."""
        degrees = range(self.lowest, self.degree + 1)
        return feature_maps(d, degrees, self.most_features(d, d_v), self.seed)

    def _floats(self, d_v: int, features: int) -> int:
        if self.aligned:
            return features * (d_v + 1)
        return self.sketch_size * (features + d_v + 1) + features + d_v

    def _features(self, d_v: int) -> int:
        """Return how many features fit."""
        if self.aligned:
            return self.floats // (d_v + 1)
        return (self.floats - self._floats(d_v, 0)) // (self.sketch_size + 1)


def moment_floats(d: int, d_v: int, degree: int, *, sketch_size: int = 0, lowest: int = 0) -> int:
    """Return how many numbers exact moments of all degrees ``lowest ... degree`` take.

    ``t (d_v + 1)`` for t monomials; with a sketch of m2 = ``sketch_size`` rows
    ``m2 (t + d_v + 1) + t + d_v``. Nothing is allocated.

    Examples
    --------
    >>> from levsketch.streaming.polynomial import moment_floats
    >>> moment_floats(64, 64, 2), moment_floats(64, 64, 4, lowest=4)
    (139425, 49821200)
    """
    features = sum(monomial_count(d, r) for r in range(lowest, degree + 1))
    if not sketch_size:
        return features * (d_v + 1)
    return sketch_size * (features + d_v + 1) + features + d_v


def _share(counts: list[int], room: int) -> int:
    """Return the largest m, of fast transforms, with ``sum_r min(counts_r, m) <= room``."""
    left, most = room, 0
    for i, count in enumerate(sorted(counts)):
        most = left // (len(counts) - i)
        if most < count:
            break
        left -= count
    while most > 1 and scipy.fft.next_fast_len(most, real=True) != most:
        most -= 1
    return max(most, 0)
