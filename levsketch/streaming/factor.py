"""What is remembered of the rows themselves: a d x d factor, built in a fixed tree.

The stream is cut into blocks of ``block_size(d)`` rows, whatever batches it
came in. A block leaves its Gram matrix if the rounding of that is certified to
be harmless, else its R factor; both are added up in a binary counter. So the
state depends on the rows alone, and its error does not grow with their number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from levsketch._checks import check_finite
from levsketch._typing import BoolArray, FloatArray, IntArray, Rows
from levsketch.backends import Backend, CpuBackend
from levsketch.backends.stored import StoredRows
from levsketch.linalg import (
    GRAM_RANGE,
    Factor,
    Whitening,
    diagonal_factor,
    factor_blocks,
    gram_factor,
    gram_roundoff,
    stack_factors,
    whiten,
)

from .counters import Counter, count_factors, count_matrices, count_up, joiner
from .leaves import GRAM_BUDGET, Leaves, factor_times, factors_where_needed, scaled_rows
from .rank import RowSpace

_SMALLEST_BLOCK = 1024
# Gram matrices of one batch of blocks: at most this many doubles at a time.
_GRAM_DOUBLES = 1 << 18
# A Gram matrix this many times beyond its budget is not tried.
_FAR = 16.0


def block_size(d: int) -> int:
    """Return the number of rows in a block: fixed, for it is part of the state's meaning."""
    return max(_SMALLEST_BLOCK, 2 * d)


def with_intercept(rows: Rows, intercept: bool, offset: int = 0) -> Rows:
    """Return rows (n, d), with a column of ones before them if ``intercept``.

    These are checked for NaN first (``offset`` numbers them), while columns still
    have the numbers that users know.
    """
    if not intercept:
        return rows
    check_finite(rows, offset=offset)
    if isinstance(rows, StoredRows):
        widened: Rows = rows.with_ones()
        return widened
    return np.concatenate([np.ones((len(rows), 1), rows.dtype), rows], axis=1)


@dataclass(frozen=True, eq=False)
class StreamFactor:
    """Factor of all whole blocks seen, plus an optional ridge.

    Attributes
    ----------
    ridge : (d,) array
        Added to the diagonal of the Gram matrix.
    n_blocks : int
        Whole blocks absorbed.
    grams, factors : counters of (level, value)
        Gram matrices (d, d) and R factors, each set summed in a binary counter.
    gram_error : float
        Proved bound on the relative error that the Gram matrices bring in.
    product_error : float
        Square of the bound on the relative error that products with whiteners bring in.
    space : RowSpace
        Exact row space of the blocks.
    block : int
        Rows in a block; 0 for ``block_size(d)``.

    Notes
    -----
    Rows may be weighted: ``scale`` multiplies each row before it is squared. The row
    space is always that of the rows as they were, so that no rounding touches it.
    """

    ridge: FloatArray
    n_blocks: int
    grams: Counter[FloatArray]
    factors: Counter[Factor]
    gram_error: float
    space: RowSpace
    block: int = 0
    product_error: float = 0.0

    @classmethod
    def empty(cls, d: int, ridge: FloatArray, block: int = 0) -> StreamFactor:
        """Return the factor of no rows; a ridge on a column makes it part of the row space."""
        return cls(ridge, 0, (), (), 0.0, RowSpace.coordinates(ridge > 0), block)

    @property
    def d(self) -> int:
        """Number of columns."""
        return len(self.ridge)

    @property
    def block_rows(self) -> int:
        """Number of rows in a block."""
        return self.block or block_size(self.d)

    def run_length(self) -> int:
        """Return how many blocks may be measured together before the next fixed settling."""
        upcoming = 1 << self.n_blocks.bit_length()  # the power of two above n_blocks
        return min(upcoming - self.n_blocks, max(2, _GRAM_DOUBLES // self.d**2), 64)

    def settles(self) -> bool:
        """Whether this many blocks is a power of two, when the prefix is looked at afresh."""
        return self.n_blocks & (self.n_blocks - 1) == 0

    def measure(
        self,
        backend: Backend,
        rows: Rows,
        prefix: Whitening | None,
        first_row: int,
        scale: FloatArray | None = None,
    ) -> Leaves:
        """Return what each whole block of ``rows`` adds, given the whitening of a prefix.

        Raises ValueError for the first non-finite entry (``first_row`` numbers
        the rows in the message).
        """
        block = self.block_rows
        count = len(rows) // block
        grams = np.empty((0, self.d, self.d))
        with np.errstate(over="ignore", invalid="ignore"):
            tried = True
            if prefix is not None and self._hopeless(prefix):  # then look at the squares alone
                diagonals = np.asarray(backend.column_squares(rows, block, scale))
                growth = prefix.gram_growth(diagonals, block)
                tried = bool((self.gram_error + growth <= GRAM_BUDGET).any())
            if tried:
                grams = np.asarray(backend.block_grams(rows, block, scale))
                diagonals = np.ascontiguousarray(np.diagonal(grams, axis1=1, axis2=2))
        in_range = self._check_range(rows, diagonals, block, first_row)
        if prefix is None:
            prefix = self._own_prefix(grams[0], block) if in_range[0] else None
        growth = np.full(count, np.inf)
        if prefix is not None:
            growth[in_range] = prefix.gram_growth(diagonals[in_range], block)
        factors, growth, products = factors_where_needed(
            backend,
            rows,
            scale,
            growth,
            prefix,
            np.where(in_range[:, None], diagonals, np.nan),
            spent=(self.gram_error, self.product_error),
        )
        spaces, grew, rising = self._spaces(rows, block, prefix)
        return Leaves(grams, factors, growth, products, spaces, grew, rising, prefix)

    def absorb(self, backend: Backend, leaves: Leaves, count: int) -> StreamFactor:
        """Return the factor with the first ``count`` measured blocks added."""
        grams, factors, error = self.grams, self.factors, self.gram_error
        product_error = self.product_error
        late = [factor for factor in leaves.factors[:count] if factor is not None]
        if not late:
            grams = count_matrices(grams, leaves.grams[:count])
        elif len(late) < count:
            plain = np.array([factor is None for factor in leaves.factors[:count]])
            grams = count_matrices(grams, leaves.grams[:count][plain])
        growth, products = leaves.growth[:count].tolist(), leaves.products[:count].tolist()
        for more, square in zip(growth, products, strict=True):
            if more < np.inf:
                error += more
                product_error += square
        if late:
            factors = count_factors(backend, factors, late)
        return replace(
            self,
            n_blocks=self.n_blocks + count,
            grams=grams,
            factors=factors,
            gram_error=error,
            product_error=product_error,
            space=leaves.spaces[count - 1],
        )

    def absorb_short(
        self, backend: Backend, rows: Rows, scale: FloatArray | None = None
    ) -> StreamFactor:
        """Return the factor with one block of any number of rows added, as its R factor."""
        part, power = scaled_rows(rows, scale)
        leaf = factor_times(factor_blocks(backend, part, len(rows))[0], power)
        return replace(
            self,
            n_blocks=self.n_blocks + 1,
            factors=count_up(self.factors, ((0, leaf),), joiner(backend)),
            space=self.space.absorb(rows)[0],
        )

    def times(self, power: int) -> StreamFactor:
        """Return the factor of all rows multiplied by ``2**power``, exactly."""
        return self.column_times(np.full(self.d, power))

    def column_times(self, powers: IntArray) -> StreamFactor:
        """Return the factor of rows whose columns are multiplied by ``2**powers``, exactly.

        A Gram matrix whose squares would leave float64's range becomes an R factor, whose
        exponents have no end.
        """
        grams: Counter[FloatArray] = ()
        factors, error = self.factors, self.gram_error
        low, high = GRAM_RANGE
        for level, G in self.grams:
            moved = _ldexp2(G, powers)
            sizes, was = np.diagonal(moved), np.diagonal(G) > 0
            if ((sizes[was] >= low) & (sizes[was] <= high)).all():
                grams = (*grams, (level, moved))
                continue
            root = gram_factor(G)
            if root is None:  # cannot happen within the budget; then nothing is certified
                return replace(self, grams=(), gram_error=np.inf)
            error += whiten(root, lambda: 0, gram_diagonal=np.diagonal(G)).error
            factors = count_up(factors, ((level, root),), joiner(CpuBackend()))
        return replace(
            self,
            grams=grams,
            factors=tuple((level, factor_times(factor, powers)) for level, factor in factors),
            gram_error=error,
        )

    def merge(self, backend: Backend, other: StreamFactor) -> StreamFactor:
        """Return the factor of both streams of rows."""
        return replace(
            self,
            n_blocks=self.n_blocks + other.n_blocks,
            grams=count_up(self.grams, other.grams, np.add),
            factors=count_up(self.factors, other.factors, joiner(backend)),
            gram_error=max(self.gram_error, other.gram_error),
            product_error=max(self.product_error, other.product_error),
            space=self.space.merge(other.space),
        )

    def whitening(
        self, backend: Backend, rows: Rows | None = None
    ) -> tuple[Whitening, RowSpace, BoolArray]:
        """Return the whitening of all blocks and of ``rows``, their space, and which rows grew it.

        The ridge counts as rows. Cost O((d + len(rows)) d^2).
        """
        parts: list[Factor] = []
        diagonal, error = None, self.gram_error + float(np.sqrt(self.product_error))
        shift = 0.0
        if self.grams:
            total = self.grams[0][1]
            for _, G in self.grams[1:]:
                total = total + G
            total = total + np.diag(self.ridge)
            gram = gram_factor(total)
            if gram is None:  # singular up to rounding: R factors may hold the other directions
                shift = 2.0 * gram_roundoff(self.block_rows, self.d) * self.d
                gram = gram_factor(total + np.diag(shift * np.diagonal(total)))
            if gram is None:  # cannot happen within the budget; then nothing is certified
                error = np.inf
                values, vectors = np.linalg.eigh(total)
                root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
                gram = factor_blocks(backend, root, self.d)[0]
            parts.append(gram)
            diagonal = np.diagonal(total)
        elif self.ridge.any():
            parts.append(diagonal_factor(np.sqrt(self.ridge)))
        parts += [factor for _, factor in self.factors]
        grew = np.zeros(0 if rows is None else len(rows), np.bool_)
        if rows is not None and len(rows):
            parts += factor_blocks(backend, rows, len(rows))
        if not parts:
            parts.append(diagonal_factor(np.zeros(self.d)))
        space: RowSpace | None = None

        def exact_rank() -> int:
            nonlocal space, grew
            if rows is None:
                space = self.space
            else:
                space, grew = self.space.absorb(rows)
            return space.rank

        found = whiten(
            stack_factors(backend, parts),
            exact_rank,
            gram_diagonal=diagonal,
            gram_error=error,
            gram_shift=shift,
        )
        if space is None:  # full rank on its columns was proved without it
            space = RowSpace.coordinates(found.active)
        return found, space, grew

    def _check_range(
        self, rows: Rows, diagonals: FloatArray, block: int, first_row: int
    ) -> BoolArray:
        """Return which blocks have squares inside float64's range; refuse NaN and inf."""
        low, high = GRAM_RANGE
        good = (diagonals >= low) & (diagonals <= high)
        for b in np.flatnonzero(~good.all(axis=1)):
            part = np.asarray(rows[b * block : (b + 1) * block])
            check_finite(part, offset=first_row + int(b) * block)
            # a zero on the diagonal is exact if the column is zero, else an underflow
            good[b] |= ~part.any(axis=0)
        return np.asarray(good.all(axis=1))

    def _hopeless(self, prefix: Whitening) -> bool:
        """Whether Gram matrices of blocks like those before would be far beyond their budget."""
        # what `Whitening.gram_growth` says of all rows of the prefix, shared out among blocks
        growth = gram_roundoff(self.block_rows, self.d) * self.d * prefix.condition**2
        return growth > _FAR * GRAM_BUDGET * max(self.n_blocks, 1)

    def _own_prefix(self, gram: FloatArray, block: int) -> Whitening | None:
        """Return the whitening of the first block by its own Gram matrix, if that is proved."""
        factor = gram_factor(gram + np.diag(self.ridge))
        if factor is None:
            return None
        found = whiten(factor, lambda: 0, gram_diagonal=np.diagonal(gram))
        growth = found.gram_growth(np.diagonal(gram)[None], block)[0]
        return found if growth <= GRAM_BUDGET else None

    def _spaces(
        self, rows: Rows, block: int, prefix: Whitening | None
    ) -> tuple[list[RowSpace], list[BoolArray], list[bool]]:
        """Return the row space after each block, which of its rows raised the rank, and if any."""
        spaces: list[RowSpace] = []
        grew: list[BoolArray] = []
        rising: list[bool] = []
        space = self.space
        if self.n_blocks == 0 and prefix is not None and prefix.spans_coordinates:
            # the first block has full rank on its columns, and that is proved
            space = space.merge(RowSpace.coordinates(prefix.active))
        count, none = len(rows) // block, np.zeros(block, np.bool_)
        for b in range(count):
            if space.rank == self.d:  # nothing raises it any more
                left = count - b
                return spaces + [space] * left, grew + [none] * left, rising + [False] * left
            space, rose = space.absorb(rows[b * block : (b + 1) * block])
            spaces.append(space)
            grew.append(rose)
            rising.append(bool(rose.any()))
        return spaces, grew, rising


def _ldexp2(G: FloatArray, powers: IntArray) -> FloatArray:
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(G, powers + powers[:, None]))
