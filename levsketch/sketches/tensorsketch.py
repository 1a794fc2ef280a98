"""TensorSketch: short vectors whose inner products are powers of those of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from levsketch._checks import check_real
from levsketch._typing import FloatArray, IntArray, Rows

# Numbers of the sketches, and of their transforms, that are worked on at a time: 4 MB,
# about a cache.
_CHUNK = 1 << 19


@dataclass(frozen=True, eq=False)
class TensorSketch:
    """A random linear map of degree-r tensor powers: ``E <TS(q), TS(k)> = <q, k>^r``.

    TS(k) is the circular convolution of r CountSketches of k, taken by FFT: a CountSketch
    of the tensor power of k, which has d^r entries, without forming that.

    Attributes
    ----------
    d : int
        Columns of the rows.
    degree : int
        The power r >= 1.
    size : int
        Entries m of a sketch.
    buckets : (degree, d) int64 array
        Bucket in [0, size) of each column, for each of the r CountSketches.
    signs : (degree, d) int8 array
        Sign of each column, 1 or -1, for each of them.

    Notes
    -----
    All entries of the tables are independent and uniform, which is more than the proofs
    need (signs four by four, buckets two by two). Pham and Pagh, KDD 2013; Avron, Nguyen
    and Woodruff, NeurIPS 2014, who prove ``E (<TS(q), TS(k)> - <q, k>^r)^2 <= (2 + 3^r) / m
    ||q||^(2r) ||k||^(2r)``. `variance` has a smaller constant, with its proof.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.sketches.tensorsketch import TensorSketch
    >>> q, k = np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 1.0]])
    >>> seeds = [TensorSketch.make(3, degree=2, size=64, seed=i) for i in range(400)]
    >>> pairs = [sketch.apply(np.stack([q, k])) for sketch in seeds]
    >>> bool(abs(np.mean([a @ b for a, b in pairs]) - (q @ k) ** 2) < 1)
    True
    """

    d: int
    degree: int
    size: int
    buckets: IntArray
    signs: npt.NDArray[np.int8]

    @classmethod
    def make(cls, d: int, degree: int, size: int, seed: int) -> Self:
        """Return the sketch that a seed >= 0 determines, the same on any machine.

        Raises
        ------
        ValueError
            If d, degree or size is below 1.
        """
        for name, value in (("d", d), ("degree", degree), ("size", size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}.")
        # raw words: NumPy keeps these for ever, but may change how integers are drawn
        raw = np.random.Philox(seed).random_raw(degree * d).reshape(degree, d)
        # the remainder favours some buckets by at most size / 2**63
        buckets = ((raw >> np.uint64(1)) % np.uint64(size)).astype(np.int64)
        signs = (1 - 2 * (raw & np.uint64(1)).astype(np.int8)).astype(np.int8)
        for table in (buckets, signs):
            table.flags.writeable = False
        return cls(d, degree, size, buckets, signs)

    def apply(self, rows: Rows) -> FloatArray:
        """Return the sketches of ``rows`` (n, d), shape (n, size), float64.

        Every sketch depends on its own row alone. O(n r (d + m log m)) time, O(m)
        memory besides the result and a chunk of it. The r-th powers of the row norms
        must be within the range of float64.

        Raises
        ------
        ValueError
            If the rows do not have d columns.
        """
        if rows.ndim != 2 or rows.shape[1] != self.d:
            raise ValueError(f"rows must have shape (n, {self.d}), got {rows.shape}.")
        out = np.empty((len(rows), self.size))
        step = max(1, _CHUNK // self.size)
        for i in range(0, len(rows), step):
            block = np.asarray(rows[i : i + step], np.float64)
            if self.degree == 1:
                out[i : i + step] = self._count_sketch(block, 0)
                continue
            # numpy.fft transforms one row after the other: none feels its company
            product = np.fft.rfft(self._count_sketch(block, 0))
            for j in range(1, self.degree):
                product *= np.fft.rfft(self._count_sketch(block, j))
            out[i : i + step] = np.fft.irfft(product, n=self.size)
        return out

    @property
    def variance(self) -> float:
        """V with ``E (<TS(q), TS(k)> - <q, k>^r)^2 <= V ||q||^(2r) ||k||^(2r)`` over the seeds.

        ``V = ((m - z)(2^(r+1) - 2) + z (3^r - 1)) / m^2`` with z = 1 for odd m and 2 for even
        ones: less than 3^r / m, and near 2^(r+1) / m for large m.

        Notes
        -----
        <TS(q), TS(k)> is the mean over the m frequencies f of products of r factors
        ``Q_j(f) conj(K_j(f))``, the transforms of the CountSketches. For two frequencies
        f and g, the factors j have the product moment ``s^2 + A [f = g] + B [f = -g]``,
        with s = <q, k>, e = sum_c q_c^2 k_c^2, A = ||q||^2 ||k||^2 - e and B = s^2 - e: signs
        leave only terms whose four columns agree two and two, and random buckets only
        those of them whose frequencies cancel. Tables are independent, so the sum of the r-th
        powers over all (f, g) is exact, ::

            E (<TS(q), TS(k)> - s^r)^2 = ((m - z)(D(A) + D(B)) + z D(A + B)) / m^2,

        with D(x) = (s^2 + x)^r - s^(2r) and z the number of f modulo m with 2 f = 0. With
        s^2 and e at most N = ||q||^2 ||k||^2, D(A) and D(B) are at most (2^r - 1) N^r,
        and D(A + B) at most (3^r - 1) N^r.
        """
        r, m, z = self.degree, self.size, 2 - self.size % 2
        return ((m - z) * (2.0 ** (r + 1) - 2.0) + z * (3.0**r - 1.0)) / m**2

    def error_bound(self, failure: float) -> float:
        """Return c, the relative error of a query's norm that is exceeded with ``failure``.

        For a query q and keys k_l that do not depend on the seed, with probability at
        least 1 - failure, ::

            | sqrt(sum_l <TS(q), TS(k_l)>^2) - sqrt(sum_l <q, k_l>^(2r)) |
                <= c ||q||^r sqrt(sum_l ||k_l||^(2r))

        Parameters
        ----------
        failure : float in (0, 1]
            Probability over the seeds, for each query.

        Returns
        -------
        float
            ``sqrt(variance / failure)``.

        Notes
        -----
        Let x_l = <TS(q), TS(k_l)> and y_l = <q, k_l>^r. The left side is at most ||x - y||
        by the triangle inequality, and E ||x - y||^2 <= V ||q||^(2r) sum_l ||k_l||^(2r),
        term by term. Markov's inequality: ||x - y||^2 exceeds 1 / failure times its mean
        with probability at most failure.
        """
        failure = check_real("failure", failure, low=0.0, high=1.0, open_low=True)
        return float(np.sqrt(self.variance / failure))

    def _count_sketch(self, rows: FloatArray, j: int) -> FloatArray:
        """Return CountSketch j of rows (n, d), shape (n, size)."""
        out = np.zeros((len(rows), self.size))
        # column by column: the sums of a row have one order, whatever rows come with it
        for c in range(self.d):
            out[:, self.buckets[j, c]] += self.signs[j, c] * rows[:, c]
        return out
