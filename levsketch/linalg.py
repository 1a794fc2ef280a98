"""Small d x d work: scaled triangular factors, and whitening with a certified error.

A factor is a pair (R, e): the upper triangular matrix ``R * 2**e``, column by
column. Powers of two keep every column of R near one, so that keys of size
1e300, 1e-300 or both lose nothing to overflow; scaling by them is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from levsketch._typing import BoolArray, FloatArray, IntArray, Rows
from levsketch.backends import Backend
from levsketch.backends.csr import CsrRows

UNIT_ROUNDOFF = 2.0**-53
# Relative error of the R-factor path, in units of roundoff times sqrt(d) times the
# condition number, is QR_CONSTANT plus QR_COHERENT for each term of the longest inner
# product. The first is what rounding at random makes, with a margin of four; the second
# what equal terms make, whose roundings all go one way (rows that repeat: 1/8 is seen).
# Both are calibrated (docs/theory), not proved.
QR_CONSTANT = 16.0
QR_COHERENT = 0.25
# A whitening whose relative error bound is larger than this certifies nothing.
MAX_ERROR = 0.5
# Exponent of a column without entries: below that of any float64.
NO_EXPONENT = -5000
# Squares of columns whose Gram diagonal lies in this range neither overflow
# nor underflow; others go through the R factor.
GRAM_RANGE = (1e-200, 1e200)
# Largest exponent that can be folded into a whitener without over/underflow.
_FOLDABLE = 400
# Squares below this may have lost digits to underflow.
_FAINT = 2.0**-1000


class Factor(NamedTuple):
    """The upper triangular matrix ``R * 2**exponents`` (d, d), column by column."""

    R: FloatArray
    exponents: IntArray


def scale_columns(X: Rows, exponents: IntArray) -> FloatArray:
    """Return ``X * 2**exponents`` (n, d) in float64, infinite or zero only where that is."""
    # in two steps: one factor alone may leave the range of float64
    half = np.clip(exponents // 2, -1000, 1000)
    rest = np.clip(exponents - half, -1000, 1000)
    with np.errstate(over="ignore", under="ignore"):
        scaled: FloatArray = X * np.ldexp(1.0, half)
        scaled *= np.ldexp(1.0, rest)
    return scaled


def column_exponents(X: Rows) -> IntArray:
    """Return e (d,) with ``max |X[:, c]|`` in [2**(e-1), 2**e); NO_EXPONENT for zero columns."""
    top = np.abs(X).max(axis=0, initial=0).astype(np.float64)
    return np.where(top > 0, np.frexp(top)[1], NO_EXPONENT).astype(np.int64)


def piece_size(d: int) -> int:
    """Return how many rows one Householder QR takes: a power of two, at least 2 d and 64."""
    return max(64, 1 << (2 * d - 1).bit_length())


def factor_blocks(backend: Backend, rows: Rows, block: int) -> list[Factor]:
    """Return the R factors of consecutive row blocks, each scaled by its own exponents.

    A block is factored in pieces, and these in a tree: equal rows round all the same
    way, and the error of one QR of n such rows grows with n.
    """
    d = rows.shape[1]
    starts = range(0, rows.shape[0], block)
    exponents = [column_exponents(rows[i : i + block]) for i in starts]
    scaled = np.concatenate(
        [scale_columns(rows[i : i + block], -e) for i, e in zip(starts, exponents, strict=True)]
    )
    piece = piece_size(d)
    if len(starts) > 1 and block % piece:
        piece = block  # pieces must not reach over the edge of a block
    factors = backend.qr_blocks(scaled, piece)
    while len(factors) > len(starts):
        factors = backend.qr_blocks(factors.reshape(-1, d), 2 * d)
    return [Factor(R, e) for R, e in zip(factors, exponents, strict=True)]


def stack_factors(backend: Backend, factors: Sequence[Factor]) -> Factor:
    """Return the R factor of factors stacked on one another, by one Householder QR."""
    if len(factors) == 1:
        return factors[0]
    exponents = np.max([f.exponents for f in factors], axis=0)
    scaled = [scale_columns(f.R, f.exponents - exponents) for f in factors]
    if len(scaled) == 2:
        return Factor(backend.qr_pairs(np.stack(scaled))[0], exponents)
    stacked = np.concatenate(scaled)
    return Factor(backend.qr_blocks(stacked, stacked.shape[0])[0], exponents)


def diagonal_factor(values: FloatArray) -> Factor:
    """Return the factor of a diagonal matrix with entries ``values`` >= 0."""
    mantissa, exponents = np.frexp(values)
    return Factor(np.diag(mantissa), np.where(values > 0, exponents, NO_EXPONENT).astype(np.int64))


def gram_factor(G: FloatArray) -> Factor | None:
    """Return the Cholesky factor of G (d, d), zero columns allowed; None if it breaks down."""
    diagonal = np.diagonal(G)
    active = diagonal > 0
    exponents = np.where(active, np.frexp(np.sqrt(diagonal))[1], NO_EXPONENT).astype(np.int64)
    down = np.ldexp(1.0, -exponents[active])
    all_of_them = bool(active.all())
    part = G if all_of_them else G[np.ix_(active, active)]
    C, info = lapack.dpotrf((part * down * down[:, None]).T, clean=True, overwrite_a=True)
    if info != 0:
        return None
    if all_of_them:
        return Factor(np.ascontiguousarray(C), exponents)
    R = np.zeros_like(G)
    R[np.ix_(active, active)] = C
    return Factor(R, exponents)


def unscaled_queries(queries: FloatArray, exponents: IntArray) -> FloatArray:
    """Return ``queries * 2**-exponents`` (m, d), each halved as often as needed not to overflow.

    The queries to keys that are those to keys whose columns were scaled by ``2**-exponents``;
    scores do not depend on their length.
    """
    mantissa, own = np.frexp(queries)
    top = np.max(np.where(mantissa != 0, own - exponents, 0), axis=1, keepdims=True, initial=0)
    return scale_columns(mantissa, own - exponents - np.maximum(top - 1000, 0))


def query_norms(factor: Factor, scaled_queries: FloatArray) -> FloatArray:
    """Return ``||R q||`` for queries (m, d) already multiplied by ``2**exponents``."""
    return np.asarray(np.linalg.norm(scaled_queries @ factor.R.T, axis=1))


@dataclass(frozen=True, eq=False)
class Whitening:
    """How to turn a row into its leverage score against the rows of a factor.

    With W = ``matrix`` (d, c), the score of k is ``||(k 2**-exponents) W||^2``:
    W is the inverse of R, or that of as many columns as the exact rank, when this is
    smaller than the number of nonzero columns: they determine the others.

    Attributes
    ----------
    factor : Factor
        The factor that was inverted.
    matrix : (d, c) array
        W, in scaled coordinates; rows of zero columns are zero.
    triangular : bool
        Whether W is upper triangular.
    rank : int
        Exact rank of the rows (proved by W itself or by the row space given).
    active : (d,) bool array
        Columns with a nonzero entry.
    condition : float
        ``||W||_F`` after columns have unit norm, at least 1: within sqrt(d) of the
        condition number; infinite if a direction is lost to rounding.
    error : float
        Bound e on the relative error of a whitened norm: true scores lie in
        ``score / (1 + e)^2`` to ``score / (1 - e)^2``. Not certified above 1/2.
    """

    factor: Factor
    matrix: FloatArray
    triangular: bool
    rank: int
    active: BoolArray
    condition: float
    error: float

    @property
    def certified(self) -> bool:
        """Whether the error bound says anything."""
        return self.error <= MAX_ERROR

    @property
    def spans_coordinates(self) -> bool:
        """Whether the row space is, provably, all vectors on the active columns."""
        return self.certified and self.rank == int(self.active.sum())

    @property
    def deflation(self) -> float:
        """``(1 - e)^2``: a computed score over this is an upper bound on the true one."""
        return (1.0 - min(self.error, MAX_ERROR)) ** 2

    def folded(self) -> FloatArray | None:
        """Return W for rows as they are, not scaled; None if that could leave float64's range."""
        e = np.where(self.active, self.factor.exponents, 0)
        if np.abs(e).max(initial=0) > _FOLDABLE:
            return None
        return np.asarray(self.matrix * np.ldexp(1.0, -e)[:, None])

    @functools.cached_property
    def _row_squares(self) -> FloatArray:
        return np.asarray(np.sum(self.matrix**2, axis=1))

    def scores(self, backend: Backend, rows: Rows) -> FloatArray:
        """Return the computed score of each row of ``rows`` (n, d), shape (n,)."""
        W = self.folded()
        if W is None:
            W = self.matrix
            powers = -np.where(self.active, self.factor.exponents, 0)
            sparse = isinstance(rows, CsrRows)
            rows = rows.columns_times(powers) if sparse else scale_columns(rows, powers)
        return np.asarray(backend.whitened_row_norms(rows, W, triangular=self.triangular))

    def values(self, backend: Backend, rows: Rows) -> FloatArray:
        """Return upper bounds on ``k^T G^+ k`` for rows in the row space, not cut at 1.

        Positive for every row that is not zero, though squares may underflow.
        """
        return above_underflow(self.scores(backend, rows) / self.deflation, rows)

    def upper_bounds(self, scores: FloatArray) -> FloatArray:
        """Return bounds, at most 1, that no true score of the rows seen exceeds."""
        return np.minimum(scores / self.deflation, 1.0)

    def lower_bounds(self, scores: FloatArray) -> FloatArray:
        """Return bounds that every true score reaches."""
        return np.minimum(scores, 1.0) / (1.0 + self.error) ** 2

    def gram_growth(self, diagonals: FloatArray, block: int) -> FloatArray:
        """Return, for each block, how much its Gram rounding can add to the relative error.

        A computed Gram matrix of ``block`` rows is off by at most ``gamma
        ||k_a|| ||k_b||`` in entry (a, b), hence by ``gamma d ||D x||^2`` in x^T G x,
        with D the column norms (``diagonals`` (b, d), squared). ``||D x|| <=
        ||D W||_F ||R x||``, and ||R x|| only grows as rows arrive: the bound holds
        for ever (dividing by the deflation allows for R having been computed).
        Infinite where the block has columns that W has not, or W has no
        full rank on its columns.
        """
        d = diagonals.shape[1]
        if not self.spans_coordinates:
            return np.full(len(diagonals), np.inf)
        e = np.where(self.active, self.factor.exponents, 0)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            weights = self._row_squares * np.ldexp(1.0, -2 * e)
            # row by row: the bits of a BLAS product depend on how many blocks came together
            shares = np.sum(np.ascontiguousarray(diagonals) * weights, axis=1)
            growth = gram_roundoff(block, d) * d / self.deflation * shares
        foreign = (diagonals[:, ~self.active] != 0).any(axis=1)
        return np.where(foreign | ~np.isfinite(growth), np.inf, growth)


def above_underflow(values: FloatArray, rows: Rows) -> FloatArray:
    """Return squares ``values`` of rows, raised to the least that is certain unless a row is 0."""
    faint = np.flatnonzero(values < _FAINT)
    values[faint] = np.where(rows[faint].any(axis=1), _FAINT, 0.0)
    return values


def qr_roundoff(d: int) -> float:
    """Return the relative error of an R factor of d columns, for condition number one."""
    terms = piece_size(d) + d  # of an inner product in a QR, and of one in k W
    return (QR_CONSTANT + QR_COHERENT * terms) * UNIT_ROUNDOFF * float(np.sqrt(d))


def certified_condition(d: int) -> float:
    """Return up to which ``Whitening.condition`` R factors are certified."""
    return MAX_ERROR / qr_roundoff(d)


def gram_roundoff(block: int, d: int) -> float:
    """Return gamma of a Gram matrix of ``block`` rows, its sums in a tree and its factorisation.

    The 74 are 64 levels of the tree, the weights of two rows, and a few to spare.
    """
    terms = (block + d + 74) * UNIT_ROUNDOFF
    return terms / (1.0 - terms)


def whiten(
    factor: Factor,
    exact_rank: Callable[[], int],
    *,
    gram_diagonal: FloatArray | None = None,
    gram_error: float = 0.0,
    gram_shift: float = 0.0,
) -> Whitening:
    """Return the whitening of a factor, with its rank and relative error bound.

    Parameters
    ----------
    factor : Factor
        Of all rows.
    exact_rank : callable
        Called only when float64 cannot prove full rank on the nonzero columns.
    gram_diagonal, gram_error : (d,) array and float
        Diagonal of, and relative error in, the part that came as a Gram matrix.
    gram_shift : float
        The share of its diagonal that was added to it, so that it had a Cholesky factor.

    Notes
    -----
    With unit columns, K + dK = Q R and ``||dK||_F <= c u sqrt(d)``, so that
    ``| ||R x|| / ||K x|| - 1 | <= c u sqrt(d) ||W||_F``; the same holds for the
    product with W, whose inner products have d terms. The Gram part is relative by
    construction. Cost O(d^3).
    """
    R, d = factor.R, factor.R.shape[0]
    roundoff = qr_roundoff(d)
    norms = np.linalg.norm(R, axis=0)
    active = norms > 0
    count = int(active.sum())
    if not count:
        return Whitening(factor, np.zeros((d, d)), True, 0, active, 1.0, 0.0)
    unit = R[:, active] / norms[active]
    if count < d:  # without the zero columns the rest is triangular no more
        unit = np.linalg.qr(unit, mode="r")
    bound = functools.partial(
        _error_bound,
        norms=np.ldexp(norms[active], np.minimum(factor.exponents[active], 900)),
        roundoff=roundoff,
        gram_diagonal=None if gram_diagonal is None else gram_diagonal[active],
        gram_error=gram_error,
        gram_shift=gram_shift,
    )
    W, rank, triangular = _triangular_inverse(unit), count, True
    error = bound(W)
    if error > MAX_ERROR:
        rank = min(exact_rank(), count)
        if rank < count or not np.isfinite(error):
            rank, W = _deficient_inverse(unit, rank, roundoff)
            triangular = False
            error = bound(W) if W.shape[1] == rank else np.inf
    condition = max(1.0, float(np.linalg.norm(W))) if W.shape[1] == rank else np.inf
    matrix = W / norms[active][:, None]
    if count < d:
        W, matrix = matrix, np.zeros((d, d if triangular else W.shape[1]))
        matrix[np.ix_(active, active) if triangular else active] = W
    return Whitening(factor, matrix, triangular, rank, active, condition, error)


def _error_bound(
    W: FloatArray,
    *,
    norms: FloatArray,
    roundoff: float,
    gram_diagonal: FloatArray | None,
    gram_error: float,
    gram_shift: float,
) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        # the floor is what the additions in k W may round, however few directions W has
        d = len(norms)
        error = gram_error + roundoff * max(float(np.linalg.norm(W)), float(np.sqrt(d)))
        if gram_diagonal is not None:
            # the Cholesky factorisation of the Gram part rounds once more
            share = np.sum((W * (np.sqrt(gram_diagonal) / norms)[:, None]) ** 2)
            error += (gram_roundoff(0, d) * d + gram_shift) * float(share)
    return error if np.isfinite(error) else np.inf


def _triangular_inverse(R: FloatArray) -> FloatArray:
    """Return the inverse W of an upper triangular matrix; all infinite if it is singular.

    Column by column, so that the residual of ``R W`` (not of ``W R``, as from
    LAPACK's trtri) is at the level of ``u |R| |W|``: only then is ``k W`` as accurate
    as a triangular solve. The other inverse was seen wrong by 1e4 times the bound.
    """
    if not np.diagonal(R).all():
        return np.full_like(R, np.inf)
    inverse, _ = lapack.dtrtrs(np.asfortranarray(R), np.eye(len(R)).T, overwrite_b=True)
    return np.triu(inverse)


def _deficient_inverse(R: FloatArray, rank: int, roundoff: float) -> tuple[int, FloatArray]:
    """Return the rank and a whitener (c, k) of rows of deficient rank, k <= rank.

    In a row space of dimension r, r independent columns determine the others: the
    inverse of the factor of these alone whitens every row. R (c, c) has unit columns;
    pivoting picks the columns. More columns that rounding leaves independent refute a
    smaller ``rank``; k is less than the rank where a direction is lost to rounding.
    (A singular value decomposition would do, too, but stops at 50 units of roundoff.)
    """
    T, pivots = scipy.linalg.qr(R, mode="r", pivoting=True)
    sizes = np.abs(np.diagonal(T))
    usable = int(np.sum(sizes > sizes[0] * UNIT_ROUNDOFF))
    inverse = _triangular_inverse(T[:usable, :usable])
    norms = np.sqrt(np.cumsum(np.sum(inverse**2, axis=0)))  # of all leading blocks
    rank = max(rank, int(np.sum(2 * roundoff * norms <= MAX_ERROR)))
    keep = min(rank, usable)
    W = np.zeros((len(R), keep))
    W[pivots[:keep]] = inverse[:keep, :keep]
    return rank, W
