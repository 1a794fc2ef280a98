"""Feature maps with ``<phi(q), phi(k)> = <q, k>^r``, and lifting by them, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from levsketch._typing import FloatArray, IntArray, Rows
from levsketch.linalg import NO_EXPONENT, UNIT_ROUNDOFF, scale_columns
from levsketch.sketches.countsketch import derived_seeds
from levsketch.sketches.symmetric import SymmetricPower
from levsketch.sketches.tensorsketch import TensorSketch

from .lifted import Lift
from .monomials import monomial_count, monomial_exponents, monomial_groups, multinomials

# Rows that are lifted at a time: so many that matrix products run at full speed, so few that
# the monomials of all degrees but the highest take 4 MB.
MOST_ROWS, _LEAST_ROWS = 512, 64
_LIFTED_DOUBLES = 1 << 19
# Units of roundoff of a fast Fourier transform, relative to the norm, for each level. Radix 2
# has 5 (Higham, Accuracy and Stability, section 24.1); for other sizes this is measured.
_FFT_ROUNDOFF = 16.0
# Squares of entries below this underflow.
_FAINT = 1e-140


@dataclass(frozen=True)
class Constant:
    """The feature map of degree 0: every row is mapped to 1."""

    d: int
    degree: int = 0
    size: int = 1

    def apply(self, rows: Rows) -> FloatArray:
        """Return ones (n, 1)."""
        return np.ones((len(rows), 1))


def feature_maps(d: int, degrees: Sequence[int], most: int, seed: int) -> tuple[Lift, ...]:
    """Return a map for each degree: exact up to ``most`` monomials, else a sketch of that size.

    ``degrees`` must ascend. The sketches of different degrees are independent.
    """
    seeds = derived_seeds(seed, max(degrees) + 1)
    maps: list[Lift] = []
    for r in degrees:
        if r == 0:
            maps.append(Constant(d))
        elif monomial_count(d, r) <= most:
            maps.append(SymmetricPower(d, r))
        else:
            maps.append(TensorSketch.make(d, r, most, seeds[r]))
    return tuple(maps)


def same_map(one: Lift, other: Lift) -> bool:
    """Return whether two maps are the same function."""
    if isinstance(one, TensorSketch) and isinstance(other, TensorSketch):
        return (
            one.size == other.size
            and np.array_equal(one.buckets, other.buckets)
            and np.array_equal(one.signs, other.signs)
        )
    return one == other


def chunk_rows(maps: Sequence[Lift]) -> int:
    """Return how many rows are lifted at a time."""
    lower = [
        monomial_count(lift.d, lift.degree - 1)
        for lift in maps
        if isinstance(lift, SymmetricPower) and lift.degree > 1
    ]
    sketched = [lift.size for lift in maps if isinstance(lift, TensorSketch)]
    return min(MOST_ROWS, max(_LEAST_ROWS, _LIFTED_DOUBLES // max([1, *lower, *sketched])))


class Scaled(NamedTuple):
    """Rows (n, d) with columns times powers of two, and with one power for all columns.

    The first are for symmetric powers; sketches mix columns, so only one power passes
    through them. They are the same array where no map is a sketch.
    """

    rows: FloatArray
    even: FloatArray

    def lengths(self, maps: Sequence[Lift]) -> FloatArray:
        """Return ``||x||^r`` of every row for every map, (len(maps), n): 1-norms for sketches."""
        # an upper bound, also where squares underflow
        largest = np.abs(self.rows).max(axis=1, initial=0.0)
        norms = np.sqrt(np.einsum("ij,ij->i", self.rows, self.rows))
        norms += np.sqrt(self.rows.shape[1]) * np.minimum(largest, _FAINT)
        sums = np.abs(self.even).sum(axis=1)
        return np.stack(
            [(sums if isinstance(lift, TensorSketch) else norms) ** lift.degree for lift in maps]
        )

    def part(self, rows: slice) -> Scaled:
        """Return some of the rows."""
        return Scaled(self.rows[rows], self.even[rows])

    def features(self, maps: Sequence[Lift]) -> Iterator[tuple[int, slice, FloatArray]]:
        """Return an iterator over (number of the map, places, features (count, n)).

        Features of symmetric powers are monomials without coefficients. Blocks are valid
        until the next step.
        """
        exact = {lift.degree: r for r, lift in enumerate(maps) if isinstance(lift, SymmetricPower)}
        columns = np.ascontiguousarray(self.rows.T)
        for degree, places, block in monomial_groups(columns, sorted(exact)):
            yield exact[degree], places, block
        for r, lift in enumerate(maps):
            if not isinstance(lift, SymmetricPower):
                yield r, slice(0, lift.size), lift.apply(self.even).T


def scaled_keys(maps: Sequence[Lift], keys: FloatArray, exponents: IntArray) -> Scaled:
    """Return keys times ``2**-exponents``, and times ``2**-max(exponents)``."""
    seen = exponents > NO_EXPONENT
    rows = scale_columns(keys, -np.where(seen, exponents, 0))
    if not _mixes(maps):
        return Scaled(rows, rows)
    return Scaled(rows, scale_columns(keys, np.full_like(exponents, -highest(exponents))))


def scaled_queries(
    maps: Sequence[Lift], Q: FloatArray, exponents: IntArray
) -> tuple[Scaled, IntArray]:
    """Return the queries to keys scaled so, with entries of at most one, and powers of two.

    The power of sums of map r, (m, len(maps)): they are to be multiplied by 2**power.
    """
    rows, tops = _queries(Q, exponents, exponents)
    even, even_tops = rows, tops
    if _mixes(maps):
        even, even_tops = _queries(Q, exponents, np.full_like(exponents, highest(exponents)))
    powers = [
        lift.degree * (even_tops if isinstance(lift, TensorSketch) else tops) for lift in maps
    ]
    return Scaled(rows, even), np.stack(powers, axis=1)


def feature_exponents(lift: Lift, old: IntArray, new: IntArray) -> IntArray:
    """Return by which powers of two features change when columns go from old to new exponents."""
    if isinstance(lift, SymmetricPower):
        # features of a column without entries are zero
        return monomial_exponents(np.where(old > NO_EXPONENT, old - new, 0), lift.degree)
    return np.full(lift.size, lift.degree * (highest(old) - highest(new)))


def length_exponents(lift: Lift, old: IntArray, new: IntArray) -> int:
    """Return the power of two by which ``||x||^r`` changes at most."""
    if isinstance(lift, SymmetricPower):
        return lift.degree * int(np.max((old - new)[old > NO_EXPONENT], initial=NO_EXPONENT))
    return lift.degree * (highest(old) - highest(new))


def highest(exponents: IntArray) -> int:
    """Return the largest exponent of a column that has entries; 0 if none has."""
    seen = exponents[exponents > NO_EXPONENT]
    return int(seen.max()) if len(seen) else 0


def query_weights(lift: Lift) -> FloatArray:
    """Return by what the features of a query are multiplied, (size,)."""
    if isinstance(lift, SymmetricPower):
        return multinomials(lift.d, lift.degree)
    return np.ones(lift.size)


def roundoff(lift: Lift, additions: int) -> float:
    """Return the error of a contraction, relative to ``||q||^r sum_l ||x_l||^r |v_l|``.

    Proved for monomials: each of a product has r - 1 multiplications for the key, as many for
    the query, r subtractions of the center, and the coefficient; the product with the value
    and the sums follow. Norms themselves are within 1 %. For a sketch: d additions and
    r + 1 transforms on either side, relative to 1-norms, which bound those of convolutions.
    """
    steps = additions + lift.size + 3.0 * lift.degree + 8.0
    if isinstance(lift, TensorSketch):
        transforms = 2.0 * (lift.degree + 1.0) * _FFT_ROUNDOFF * np.log2(2.0 * lift.size)
        steps += transforms + 2.0 * lift.d * lift.degree
    share = steps * UNIT_ROUNDOFF
    return float(1.01 * share / (1.0 - share)) if share < 0.005 else float(np.inf)


def _mixes(maps: Sequence[Lift]) -> bool:
    return any(isinstance(lift, TensorSketch) for lift in maps)


def _queries(Q: FloatArray, seen: IntArray, exponents: IntArray) -> tuple[FloatArray, IntArray]:
    """Return ``Q * 2**exponents`` over the power of two above its largest entry, and that power."""
    mantissa, own = np.frexp(np.where(seen > NO_EXPONENT, Q, 0.0))
    moved = np.where(mantissa != 0, own + exponents, 2 * NO_EXPONENT)
    tops = moved.max(axis=1, initial=2 * NO_EXPONENT)
    tops = np.where(tops > 2 * NO_EXPONENT, tops, 0)
    with np.errstate(under="ignore"):
        return np.ldexp(mantissa, moved - tops[:, None]), tops.astype(np.int64)
