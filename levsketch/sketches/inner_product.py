"""Inner-product sketches: short vectors whose products estimate those of vectors of any length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.special

from levsketch._checks import check_count, check_real
from levsketch._typing import FloatArray, IntArray
from levsketch.backends.cpu import serial_blas

from .countsketch import CountSketch, derived_seeds
from .hashing import uniforms

# Entries of Psi that are held at a time: 8 MB.
_ENTRIES = 1 << 20
# Random bits that a number of `uniforms` has.
_BITS = 52


@dataclass(frozen=True)
class InnerProductSketch:
    """A random matrix Psi (size, n), for any n, with ``E <Psi a, Psi b> = <a, b>``.

    Entry (s, i) is a pure function of the seed, s and i, so vectors a and b that arrive in
    different streams, in any order, are met by the same matrix. None of it is stored.

    Attributes
    ----------
    size : int
        Rows m of Psi.
    seed : int
        Of any size; taken modulo 2**64.

    Notes
    -----
    For every sketch in this file, and vectors that do not depend on the seed, ::

        E (<Psi a, Psi b> - <a, b>)^2 <= (||a||^2 ||b||^2 + <a, b>^2) / m <= 2/m ||a||^2 ||b||^2.

    The proofs need signs or numbers that are independent four by four, and buckets that are
    so two by two. Numbers of SplitMix64 behave so; that is measured, not proved.
    """

    size: int
    seed: int

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_count("size", self.size)

    def entries(self, index: IntArray) -> FloatArray:
        """Return columns ``index`` (n,) of Psi, shape (size, n)."""
        raise AssertionError("a subclass defines entries")

    def project(self, index: IntArray, X: FloatArray) -> FloatArray:
        """Return ``Psi[:, index] @ X`` for rows ``X`` (n, c) numbered ``index`` (n,): (size, c).

        Sums over the rows of a stream are sums of these. Matrix products round by their
        shape: for the same bits in any batching call with the same fixed blocks. O(n m c) time,
        memory for a block of Psi besides the result; BLAS runs on one thread.
        """
        out = np.zeros((self.size, X.shape[1]))
        step = max(1, _ENTRIES // self.size)
        with serial_blas():
            for i in range(0, len(index), step):
                out += self.entries(index[i : i + step]) @ X[i : i + step]
        return out

    def error_bound(self, failure: float) -> float:
        """Return c with ``||A Psi^T Psi b - A b|| <= c ||A||_F ||b||`` but for ``failure``.

        For a matrix A and a vector b that do not depend on the seed; a matrix of one row is
        one inner product. ``sqrt(2 / (m failure))``: the second moments of the entries of the
        error add up to at most 2/m ||A||_F^2 ||b||^2, and Markov's inequality does the rest.
        """
        failure = check_real("failure", failure, low=0.0, high=1.0, open_low=True)
        return math.sqrt(2.0 / (self.size * failure))


@dataclass(frozen=True)
class SignSketch(InnerProductSketch):
    """Random signs over the root of m: the sketch of Alon, Matias and Szegedy ("AMS").

    Notes
    -----
    One row g of signs: ``E <g, a>^2 <g, b>^2 = sum_{ijkl} E[g_i g_j g_k g_l] a_i a_j b_k b_l``, and
    the mean of the signs is 1 if they pair up, else 0. The pairs (ij)(kl), (ik)(jl) and
    (il)(jk) give ``||a||^2 ||b||^2 + 2 <a, b>^2``; all four equal were counted three times instead
    of once, so ``2 sum_i a_i^2 b_i^2`` goes. Minus the square of the mean <a, b>, over m
    independent rows::

        variance = (||a||^2 ||b||^2 + <a, b>^2 - 2 sum_i a_i^2 b_i^2) / m.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.sketches.inner_product import SignSketch
    >>> SignSketch(size=4, seed=0).entries(np.array([0, 1, 10**15])).tolist()
    [[-0.5, -0.5, -0.5], [0.5, -0.5, -0.5], [-0.5, -0.5, 0.5], [-0.5, -0.5, -0.5]]
    """

    name = "ams"

    def entries(self, index: IntArray) -> FloatArray:
        """Return columns ``index`` (n,) of Psi, shape (size, n); 52 signs from one number."""
        out = np.empty((self.size, len(index)))
        scale = 1.0 / math.sqrt(self.size)
        for w, seed in enumerate(derived_seeds(self.seed, -(-self.size // _BITS))):
            word = (uniforms(seed, index) * 2.0**_BITS).astype(np.int64)
            for bit in range(min(_BITS, self.size - w * _BITS)):
                np.multiply(scale, 1 - 2 * ((word >> bit) & 1), out=out[w * _BITS + bit])
        return out


@dataclass(frozen=True)
class GaussianSketch(InnerProductSketch):
    """Standard normal numbers over the root of m.

    Notes
    -----
    One row g of independent standard normal numbers: by Isserlis' theorem the three pairings give
    ``E <g, a>^2 <g, b>^2 = ||a||^2 ||b||^2 + 2 <a, b>^2``, so ::

        variance = (||a||^2 ||b||^2 + <a, b>^2) / m.

    Numbers are the inverse normal distribution function of hashed uniform ones, at most
    8.3 in size: the cut is below the rounding of any second moment. Their last bits are those of
    ``scipy.special.ndtri`` on the machine.
    """

    name = "gaussian"

    def entries(self, index: IntArray) -> FloatArray:
        """Return columns ``index`` (n,) of Psi, shape (size, n)."""
        out = np.empty((self.size, len(index)))
        for s, seed in enumerate(derived_seeds(self.seed, self.size)):
            scipy.special.ndtri(uniforms(seed, index), out=out[s])
        out /= math.sqrt(self.size)
        return out

    def error_bound(self, failure: float) -> float:
        """Return c with ``||A Psi^T Psi b - A b|| <= c ||A||_F ||b||`` but for ``failure``.

        As for the other sketches, or, with x = log(3 / failure) and ``y = x / m``, ::

            m c^2 = (2 sqrt(x) + 2 sqrt(x y))^2 + (1 + sqrt(2 x))^2 (1 + 2 sqrt(y) + 2 y),

        if that is less: it grows with the logarithm of 1 / failure only.

        Notes
        -----
        Let b be a unit vector, and write A = alpha b^T + A' with A' b = 0. The error is ``alpha
        (||Psi b||^2 - 1) + A' Psi^T Psi b``. m ||Psi b||^2 has a chi-square distribution: with
        probability 1 - 2 exp(-x) it is within ``2 sqrt(m x) + 2 x`` of m (Laurent and
        Massart, Annals of Statistics 2000, lemma 1). Given Psi b, which is independent of A'
        Psi^T, the second term is ``||Psi b|| / sqrt(m) A' g`` for a standard normal g. ``||A' g||``
        has a mean of at most ||A'||_F and a Lipschitz constant of at most that, so with probability
        1 - exp(-x) it is at most ``||A'||_F (1 + sqrt(2 x))`` (concentration of Gaussian
        measure). Cauchy and Schwarz: ``||alpha||^2 + ||A'||_F^2 = ||A||_F^2``.
        """
        by_markov = super().error_bound(failure)
        x = math.log(3.0 / failure)
        y = x / self.size
        along = 2.0 * math.sqrt(x) + 2.0 * math.sqrt(x * y)
        across = (1.0 + math.sqrt(2.0 * x)) * math.sqrt(1.0 + 2.0 * math.sqrt(y) + 2.0 * y)
        return min(by_markov, math.hypot(along, across) / math.sqrt(self.size))


@dataclass(frozen=True)
class BucketSketch(InnerProductSketch):
    """One hash row of a CountSketch: one entry, 1 or -1, in each column of Psi.

    ``project`` takes O(n c) time, whatever the size.

    Notes
    -----
    ``<Psi a, Psi b> = <a, b> + sum_{i != j} [h_i = h_j] s_i s_j a_i b_j``. In the square of the
    sum, signs leave of all pairs of pairs those that are the same (i, j) or swapped (j, i),
    and two rows share a bucket with probability 1/m::

        variance = (||a||^2 ||b||^2 + <a, b>^2 - 2 sum_i a_i^2 b_i^2) / m,

    as for signs. But single large products can collide: only the variance is bounded, not, as
    for the others, the tails.
    """

    name = "countsketch"

    @property
    def _sketch(self) -> CountSketch:
        return CountSketch(1, self.size, self.seed)

    def entries(self, index: IntArray) -> FloatArray:
        """Return columns ``index`` (n,) of Psi, shape (size, n)."""
        out = np.zeros((self.size, len(index)))
        buckets, signs = self._sketch.places(index)
        out[buckets[0], np.arange(len(index))] = signs[0]
        return out

    def project(self, index: IntArray, X: FloatArray) -> FloatArray:
        """Return ``Psi[:, index] @ X`` for rows ``X`` (n, c) numbered ``index`` (n,): (size, c)."""
        table = self._sketch.empty(X.shape[1])
        self._sketch.scatter(table, index, X)
        return np.asarray(table[0])


INNER_PRODUCT_SKETCHES: dict[str, type[InnerProductSketch]] = {
    kind.name: kind for kind in (SignSketch, GaussianSketch, BucketSketch)
}


def make_sketch(name: str, size: int, seed: int) -> InnerProductSketch:
    """Return the inner-product sketch of a name: "ams", "gaussian" or "countsketch".

    Raises
    ------
    ValueError
        If the name is unknown or size below 1.
    """
    if name not in INNER_PRODUCT_SKETCHES:
        known = ", ".join(map(repr, INNER_PRODUCT_SKETCHES))
        raise ValueError(f"sketch must be one of {known}, got {name!r}.")
    return INNER_PRODUCT_SKETCHES[name](size, seed)
