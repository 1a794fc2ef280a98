"""The normal law of queries, and the kernel by which it compares keys.

A key is the function ``q -> exp(<q, k>)``. Under a normal law of q all inner products of such
functions, and of constant and linear ones, have closed forms: keys can be projected on the span
of a few others without ever drawing a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.linalg

from levsketch._typing import FloatArray
from levsketch.backends.exponentials import exp_remainder

# Logits of queries of unknown law are taken to have this variance over the keys.
_LOGIT_VARIANCE = 1.0
# A sample of queries says nothing of directions in which it has no spread: they get this share
# of the mean variance.
_FLOOR = 1e-3
# Queries that are all alike get this share of the square of their length, and logits that do not
# vary this variance: no mean is then more than 10**6 deviations out, which keeps ten digits.
_ALIKE, _CONSTANT = 1e-12, 1e-20
# Ridges of a matrix of unit diagonal, tried until there is a Cholesky factor.
_RIDGES = (0.0, 1e-15, 1e-13, 1e-11, 1e-9, 1e-6, 1e-3)


@dataclass(frozen=True, eq=False)
class QueryLaw:
    """A normal law of queries, tilted by the inverse square of the softmax normaliser.

    Attributes
    ----------
    mean : (d,) array
    root : (d, d) array
        Lower triangular, full rank; the covariance is ``root root^T``.

    Notes
    -----
    An attention output is a ratio N(q) / Z(q). Errors of N and Z count relative to Z, so that the
    squared error of the output, in the mean over queries, is an integral against the law of q
    times ``Z(q)^-2``. With keys of covariance C about zero, Z is near ``n exp(q^T C q / 2)``, and
    the product is normal again, of precision ``S^-1 + 2 C``. We take ``S^-1 + C``: halfway
    between both, the best of the powers 0.5, 1 and 2 of Z on heads of a trained encoder.

    With ``x = root^T k``, ``t = <mean, k>``, the function of a key has the norm
    ``exp(t + ||x||^2)``, and two functions over their norms have the inner product
    ``exp(-||x - y||^2 / 2)``: a Gaussian kernel.
    """

    mean: FloatArray
    root: FloatArray

    @classmethod
    def estimate(
        cls, covariance: FloatArray, queries: tuple[FloatArray, FloatArray] | None
    ) -> Self:
        """Return the tilted law, given the covariance of the keys (d, d) about their centre.

        ``queries`` are the mean (d,) and the covariance (d, d) of queries, if these are known.
        Otherwise they are taken as isotropic and centred, with logits of unit variance; of the
        laws tried on trained heads (isotropic, or like a power of the covariance of the keys)
        none was better over all.
        """
        d = len(covariance)
        trace = float(np.trace(covariance))
        if queries is None:
            mean = np.zeros(d)
            precision = np.eye(d) * ((trace if trace > 0 else 1.0) / _LOGIT_VARIANCE)
        else:
            mean, spread = queries
            floor = max(
                _FLOOR * float(np.trace(spread)) / d,
                _ALIKE * float(mean @ mean),
                _CONSTANT / max(trace, 1.0),
            )
            half = _root_of_inverse(spread + np.eye(d) * floor)
            precision = half @ half.T
        root = _root_of_inverse(precision + covariance)
        return cls(root @ (root.T @ (precision @ mean)), root)

    def coordinates(self, keys: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return ``x = root^T k`` (n, d) and ``t = <mean, k>`` (n,) of keys (n, d)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return keys @ self.root, keys @ self.mean

    def shrunk(self, factor: float) -> QueryLaw:
        """Return a narrower law: all ``||x||^2`` and ``t`` are ``factor`` times as large."""
        return QueryLaw(self.mean * factor, self.root * np.sqrt(factor))

    def to_query_space(self, constant: FloatArray, linear: FloatArray) -> tuple[FloatArray, ...]:
        """Return (a, A) with ``a + q A = constant + z linear`` for ``q = mean + root z``."""
        slope = scipy.linalg.solve_triangular(self.root, linear, trans="T", lower=True)
        return constant - self.mean @ slope, slope


def _root_of_inverse(A: FloatArray) -> FloatArray:
    """Return the lower triangular L, of full rank, with ``L L^T = A^-1``; A positive definite.

    A ridge, relative to the diagonal, is added where A is not so in float64.
    """
    scale = 1.0 / np.sqrt(np.diagonal(A))
    H = (A * scale[:, None] * scale)[::-1, ::-1]
    identity = np.eye(len(A))
    U: FloatArray = identity
    for ridge in _RIDGES:
        try:
            # backwards, a Cholesky factor is upper triangular, and so is its inverse
            U = np.asarray(np.linalg.cholesky(H + ridge * identity), np.float64)[::-1, ::-1]
            break
        except np.linalg.LinAlgError:
            continue
    inverse = scipy.linalg.solve_triangular(U, identity, check_finite=False)
    return np.asarray(inverse.T * scale[:, None])


@dataclass(frozen=True)
class RemainderKernel:
    """Inner products of the functions of keys, less what a trend knows of them exactly.

    The Hermite expansion of ``exp(<q, k>)`` under the law has the terms ``<z, x>^r / r!`` times
    ``exp(t + ||x||^2 / 2)``. A trend of order 0 (a constant) or 1 (a linear function of q) holds
    the first ones; the kernel is that of the others, for functions divided by the norm of the
    whole: ``(exp(<x, y>) - 1 - <x, y>) exp(-||x||^2 / 2 - ||y||^2 / 2)`` for order 1.
    """

    order: int

    def __call__(self, X: FloatArray, Y: FloatArray) -> FloatArray:
        """Return the kernel matrix (n, m) of coordinates (n, d) and (m, d)."""
        rows, columns = (np.exp(np.sum(Z * Z, axis=1) / -2.0) for Z in (X, Y))
        return exp_remainder(X @ Y.T, self.order, rows, columns)

    def diagonal(self, X: FloatArray) -> FloatArray:
        """Return the kernel of each row of ``X`` with itself, (n,)."""
        g = np.sum(X * X, axis=1)
        return exp_remainder(g[None], self.order, np.ones(1), np.exp(-g)).ravel()
