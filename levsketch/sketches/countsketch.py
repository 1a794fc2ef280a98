"""CountSketch: a table from which single rows and the norm of a tall matrix can be told."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.special

from levsketch._checks import check_count, check_real
from levsketch._typing import FloatArray, IntArray

from .hashing import uniforms

# Rows whose cells are worked out at a time, and numbers of a table that are gathered at a
# time: 4 MB, about a cache.
_ROWS = 1 << 12
_NUMBERS = 1 << 19


@dataclass(frozen=True)
class CountSketch:
    """A random linear map of matrices with rows 0, 1, 2, ..., as many as there may be.

    Each of ``depth`` hash rows puts row i, times a random sign, into one of ``width``
    buckets. Nothing is stored but the seed: bucket and sign are pure functions of
    (seed, hash row, i).

    Attributes
    ----------
    depth : int
        Hash rows R, odd: estimates are medians over them.
    width : int
        Buckets W of each.
    seed : int
        Of any size; taken modulo 2**64.

    Notes
    -----
    The proofs in this file need buckets that are independent two by two, signs that are
    independent four by four, and hash rows that are independent of one another. Numbers of
    SplitMix64 behave so; that is measured, not proved. The rows must not depend on the seed.

    Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", ICALP 2002.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.sketches.countsketch import CountSketch
    >>> sketch = CountSketch(depth=5, width=64, seed=0)
    >>> table = sketch.empty(1)
    >>> X = np.zeros((1000, 1))
    >>> X[700] = 3.0
    >>> sketch.scatter(table, np.arange(1000), X)
    >>> sketch.estimate(table, np.array([700, 701])).tolist()
    [[3.0], [0.0]]
    """

    depth: int
    width: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("depth", "width"):
            check_count(name, getattr(self, name))
        if self.depth % 2 == 0:
            raise ValueError(f"depth must be odd, got {self.depth}: estimates are medians.")

    @classmethod
    def for_recovery(cls, k: int, eps: float, n: int, failure: float, seed: int) -> Self:
        """Return the sketch whose estimates of n rows serve k-sparse recovery.

        With probability at least 1 - failure over the seeds, all n estimates x^ of a column x
        that does not depend on the seed obey ::

            |x^_i - x_i| <= sqrt(eps / k) tail_k,

        tail_k the norm of the column without its k largest entries. The squared error of
        the 2k largest estimates is then at most ``(1 + 10 eps) tail_k^2``
        (`levsketch.algorithms.recovery`).

        Parameters
        ----------
        k : int
            Entries that are looked for.
        eps : float in (0, 1]
        n : int
            Rows.
        failure : float in (0, 1)
            For a column. For c columns at once, pass failure / c.
        seed : int

        Returns
        -------
        CountSketch
            ``W = ceil(8 k / eps)`` buckets, and the smallest odd R with
            ``P(Binomial(R, p) > R / 2) <= failure / n``, p = k (1 + 1 / eps) / W: at most
            ``ceil(2 log(n / failure) / log(1 / (4 p (1 - p))))`` or one more, which is 6.96
            log(n / failure) for eps = 1 and 2.68 log(n / failure) for eps = 0.1.

        Notes
        -----
        *Proof.* Let H be the places of the k largest entries. Hash row r estimates x_i by
        ``x_i + N``, N the signed sum of the other entries in the bucket of i. (1) With
        probability at most k / W, an entry of H other than i is in that bucket. (2) If none is,
        N sums entries outside H only, and the second moment of that sum is at most tail_k^2 / W:
        signs make the mixed terms vanish. By Chebyshev it exceeds ``sqrt(eps / k) tail_k``
        with probability at most k / (eps W). So the row fails with probability at most p, and
        the median fails only if more than half of the R independent rows do. The sum over
        n rows gives the claim.
        """
        k, n = check_count("k", k), check_count("n", n)
        eps = check_real("eps", eps, low=0.0, high=1.0, open_low=True)
        failure = check_real("failure", failure, low=0.0, high=1.0, open_low=True)
        width = math.ceil(8 * k / eps)
        return cls(median_depth(k * (1.0 + 1.0 / eps) / width, failure / n), width, seed)

    @property
    def cells(self) -> int:
        """Numbers a column takes, ``depth * width``."""
        return self.depth * self.width

    def empty(self, columns: int) -> FloatArray:
        """Return the table of no rows, zeros (depth, width, columns)."""
        return np.zeros((self.depth, self.width, columns))

    def places(self, index: IntArray) -> tuple[IntArray, FloatArray]:
        """Return bucket in [0, width) and sign, 1.0 or -1.0, of rows: two (depth, n) arrays."""
        seeds = derived_seeds(self.seed, self.depth)
        cell = np.empty((self.depth, len(index)), np.int64)
        for r, seed in enumerate(seeds):
            # below 2 W even after rounding: u <= 1 - 2**-53, and the next float below 2 W
            # is not nearer to 2 W than 2 W 2**-53
            cell[r] = uniforms(seed, index) * (2.0 * self.width)
        return np.asarray(cell >> 1, np.int64), np.asarray(1.0 - 2.0 * (cell & 1), np.float64)

    def scatter(self, table: FloatArray, index: IntArray, X: FloatArray) -> None:
        """Add rows ``X`` (n, c), numbered ``index`` (n,), to ``table`` (depth, width, c).

        Each cell is a sum in the order of the rows, one addition after the other: any
        batching of the same rows in the same order gives the same bits. O(n R c) time.
        """
        for i in range(0, len(index), _ROWS):
            rows = X[i : i + _ROWS]
            buckets, signs = self.places(index[i : i + _ROWS])
            for r in range(self.depth):
                # unlike a matrix product, ufunc.at keeps the order of the rows
                np.add.at(table[r], buckets[r], signs[r][:, None] * rows)

    def ones(self, start: int, stop: int) -> FloatArray:
        """Return the sketch (depth, width) of a column with ones in rows [start, stop).

        Whole numbers, exact. The sketch is linear: minus this, times a constant, is the sketch
        of the column minus the constant. O((stop - start) R) time, memory for a block of rows.
        """
        table = np.zeros((self.depth, self.width))
        for i in range(start, stop, _ROWS):
            buckets, signs = self.places(np.arange(i, min(stop, i + _ROWS)))
            for r in range(self.depth):
                table[r] += np.bincount(buckets[r], weights=signs[r], minlength=self.width)
        return table

    def estimate(self, table: FloatArray, index: IntArray) -> FloatArray:
        """Return estimates (n, c) of rows ``index`` (n,): medians over the hash rows.

        ``for_recovery`` has the error bound. O(n R c) time, memory for a block of rows
        besides the result.
        """
        out = np.empty((len(index), table.shape[2]))
        step = max(1, min(_ROWS, _NUMBERS // max(1, self.depth * table.shape[2])))
        for i in range(0, len(index), step):
            buckets, signs = self.places(index[i : i + step])
            found = np.empty((buckets.shape[1], table.shape[2], self.depth))
            for r in range(self.depth):
                np.multiply(table[r][buckets[r]], signs[r][:, None], out=found[:, :, r])
            found.partition(self.depth // 2, axis=2)
            out[i : i + step] = found[:, :, self.depth // 2]
        return out

    def column_norms(self, table: FloatArray) -> FloatArray:
        """Return estimates (c,) of the norms of the columns, within ``norm_error``.

        Roots of medians of the squared norms of the hash rows; no square over- or underflows
        that matters. O(R W c) time and memory.
        """
        top = np.abs(table).max(axis=(0, 1), initial=0.0)
        exponents = np.frexp(top)[1]
        with np.errstate(under="ignore"):
            squares = np.square(np.ldexp(table, -exponents)).sum(axis=1)
        middle = np.partition(squares, self.depth // 2, axis=0)[self.depth // 2]
        with np.errstate(over="ignore"):  # a norm may be beyond float64 where no entry is
            return np.asarray(np.ldexp(np.sqrt(middle), exponents))

    def norm_error(self, failure: float) -> float:
        """Return c with ``|estimate^2 / norm^2 - 1| <= c`` but for a probability ``failure``.

        For a column that does not depend on the seed; estimates of ``column_norms``.

        Notes
        -----
        The squared norm of a hash row is ``||x||^2 + sum_{i != j} [h_i = h_j] s_i s_j x_i x_j``.
        Signs leave, of the squares of the last sum, the pairs that agree: its mean is zero
        and its second moment ``2 (||x||^4 - sum_i x_i^4) / W``, at most 2 ||x||^4 / W. By
        Chebyshev a row is off by more than c with probability at most ``p = 2 / (W c^2)``, and the
        median only if more than half of the rows are: ``P(Binomial(R, p) > R / 2)``. The
        c returned makes that equal to ``failure``.
        """
        failure = check_real("failure", failure, low=0.0, high=1.0, open_low=True)
        half = (self.depth + 1) / 2
        p = float(scipy.special.betaincinv(half, half, failure))
        return math.sqrt(2.0 / (self.width * p))


def derived_seeds(seed: int, count: int) -> list[int]:
    """Return seeds of ``count`` hash functions that one seed determines."""
    return [int(u * 2.0**53) for u in uniforms(seed, np.arange(count))]


def median_depth(p: float, failure: float) -> int:
    """Return the smallest odd R whose median fails with probability at most ``failure``.

    Parameters
    ----------
    p : float in (0, 1/2)
        Probability that one of R independent numbers is off; the median is off only if
        more than half of them are.
    failure : float in (0, 1)

    Notes
    -----
    ``P(Binomial(R, p) >= (R + 1) / 2)`` for odd R is the incomplete beta function
    ``I_p((R + 1) / 2, (R + 1) / 2)``, and falls as R grows. By Chernoff's bound it is at
    most ``exp(-R D(1/2 || p)) = (4 p (1 - p))^(R / 2)``, which bounds the search.

    Examples
    --------
    >>> from levsketch.sketches.countsketch import median_depth
    >>> median_depth(0.25, 1e-8), median_depth(0.1375, 1e-8)
    (109, 43)
    """
    p = check_real("p", p, low=0.0, open_low=True)
    if p >= 0.5:
        raise ValueError(f"p must be below 1/2, got {p!r}: the median of such numbers is no use.")
    failure = check_real("failure", failure, low=0.0, high=1.0, open_low=True)
    most = math.ceil(2.0 * math.log(failure) / math.log(4.0 * p * (1.0 - p)))

    def suffices(half: int) -> bool:
        return bool(scipy.special.betainc(half + 1.0, half + 1.0, p) <= failure)

    return 2 * bisect.bisect_left(range(most + 1), True, key=suffices) + 1
