"""Sparse recovery: the rows in which a sketched output leaves a constant, and what is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse

from levsketch._checks import check_count, check_finite
from levsketch._typing import BoolArray, FloatArray, IntArray
from levsketch.linalg import UNIT_ROUNDOFF
from levsketch.sketches.countsketch import CountSketch
from levsketch.streaming.output_sketch import OutputSketch, Ranges

# Rows that are estimated at a time, if no more are kept.
_ROWS = 1 << 12
# A column counts as sparse if recovery leaves at most this part of its norm. The estimates of
# both are within 12 % for all of 64 columns (output_sketch.py): a half is told from a whole.
_SPARSE = 0.5
# A cell sums about n / W rows one after the other, with partial sums of about the root of that
# many rows: what rounding adds has about (n / W) u of the norm of the column. This many times
# that, and the constant, and the recovery, are called exact.
_ROUNDING = 8.0


@dataclass(frozen=True, eq=False)
class Recovery:
    """An n x d_v output as a constant for each column plus a few entries, with what is lost.

    Attributes
    ----------
    entries : scipy.sparse.csc_array (n, d_v)
        What the recovered entries add to the constant; n is one more than the last row number.
    offset : (d_v,) array
        The constant of each column.
    tail : (d_v,) array
        Estimates of ``||y - offset - entries||``, what the recovery misses.
    norm : (d_v,) array
        Estimates of ``||y - offset||``, what the constant alone misses.
    ranges : tuple of (start, stop)
        Rows that the sketch has seen.

    Notes
    -----
    ``tail`` and ``norm`` come from a table whose hash functions had no part in the choice of
    entries and constants, so they are within `CountSketch.norm_error` of the truth however
    the choice was made. A column whose entries make nothing better (tail >= norm) has none.
    Both are zero, and there are no entries, where the constant misses no more than the rounding
    of the sums hides.
    """

    entries: scipy.sparse.csc_array
    offset: FloatArray
    tail: FloatArray
    norm: FloatArray
    ranges: Ranges

    @property
    def sparse(self) -> BoolArray:
        """Which columns are sparse beside their constant: tail at most half of norm, (d_v,)."""
        return np.asarray(self.tail <= _SPARSE * self.norm)

    def explain(self) -> str:
        """Return what was recovered and what was not, in a sentence or two.

        Examples
        --------
        >>> import numpy as np
        >>> from levsketch.algorithms.recovery import recover_columns
        >>> from levsketch.streaming.output_sketch import OutputSketch
        >>> Y = np.random.default_rng(0).standard_normal((2000, 3))
        >>> Y[:, 0] = 1.0
        >>> Y[7, 0] = 5.0
        >>> sketch = OutputSketch.make(3, depth=9, width=64, seed=0).update(Y)
        >>> recovery = recover_columns(sketch, k=4, offset_candidates=[np.ones(3)])
        >>> print(recovery.explain())
        1 of 3 columns is sparse beside its constant (recovery leaves at most half of what the \
constant misses). In the others, recovery leaves 100% (median) of what the constant misses; \
2 of them return the constant alone.
        >>> recovery.entries.toarray()[7].round(12).tolist()
        [4.0, 0.0, 0.0]
        """
        columns, sparse = len(self.offset), self.sparse
        found = int(sparse.sum())
        one = found == 1
        text = (
            f"{found} of {columns} columns {'is' if one else 'are'} sparse beside "
            f"{'its' if one else 'their'} constant (recovery leaves at most half of what the "
            "constant misses)."
        )
        if found == columns:
            return text
        left = float(np.median(self.tail[~sparse] / self.norm[~sparse]))
        bare = int((~sparse & (np.diff(self.entries.indptr) == 0)).sum())
        return (
            f"{text} In the other{'s' if columns - found > 1 else ''}, recovery leaves {left:.0%} "
            f"(median) of what the constant misses; {bare} of them "
            f"return{'s' if bare == 1 else ''} the constant alone."
        )

    def toarray(self) -> FloatArray:
        """Return the recovered output (n, d_v); NaN in rows that the sketch has not seen."""
        out = np.full(self.entries.shape, np.nan)
        for start, stop in self.ranges:
            out[start:stop] = self.offset
        return np.asarray(out + self.entries.toarray())


class _Found(NamedTuple):
    """Entries of all columns, by column: row numbers and values (m, d_v), and the constants."""

    rows: IntArray
    values: FloatArray
    offset: FloatArray


def recover_columns(
    sketch: OutputSketch, k: int, offset_candidates: Sequence[FloatArray] = ()
) -> Recovery:
    """Return the 2k largest entries of every column beside a constant, and what they miss.

    For each column the constant is the one, of 0, the mean of the rows seen and the
    candidates, that seems to leave the smallest tail.

    Parameters
    ----------
    sketch : OutputSketch
    k : int
        Sparsity that is hoped for: the bound compares with the best k entries.
    offset_candidates : sequence of (d_v,) arrays
        Further constants, such as the mean of the values, which is the attention
        output of the zero query.

    Returns
    -------
    Recovery

    Notes
    -----
    Let x be a column minus its constant, W the buckets of ``sketch.recovery`` and
    ``eps = 8 k / W``. If all estimates are within ``beta = sqrt(eps / k) tail_k`` (the event of
    `CountSketch.for_recovery`, which holds with probability 1 - failure for each constant that
    does not depend on the seed), then the recovered x' has ::

        ||x - x'||^2 <= (1 + 10 eps) tail_k^2,   tail_k = min over k-sparse z of ||x - z||.

    *Proof.* Let H hold the places of the k largest entries, S those of the 2k largest estimates.
    On S the error is at most ``2 k beta^2``. Off S it is ``tail_k^2 + ||x_{H - S}||^2 -
    ||x_{S - H}||^2``. Let a = |H - S| <= k; then |S - H| = k + a. Every i in H - S lost
    to every j in S - H, so ``|x_i| <= |x_j| + 2 beta``. With z the smallest |x_j| on S - H,
    the difference is at most ``a (z + 2 beta)^2 - (k + a) z^2 = 4 a beta z + 4 a beta^2 - k z^2
    <= 4 a^2 beta^2 / k + 4 a beta^2 <= 8 k beta^2``. Together ``tail_k^2 + 10 k beta^2``. With at
    most 2k rows, S is all of them, and the error at most ``2 k beta^2``.

    If tail_k = 0, the entries are exact up to rounding: relative to the largest entry of their
    bucket, which can hide much smaller ones.

    The constant is chosen by the tails that the recovery table itself tells. The choice of
    entries biases these, by 5 to 15 % in trials, for all constants alike; the tails that are
    returned have no such bias. The bound above holds for the constant chosen; that no other one
    would do much better is measured (benchmarks/quality/one_pass_theorem.py), not proved.

    O(n R d_v) time for each constant; memory for a block of rows, 2k entries a column and two
    copies of the tables, never n. Source: arXiv 2311.14652; Charikar, Chen and Farach-Colton,
    ICALP 2002.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.algorithms.recovery import recover_columns
    >>> from levsketch.streaming.output_sketch import OutputSketch
    >>> Y = np.full((1000, 2), 0.5)
    >>> Y[[3, 500], 1] = 2.0, -4.0
    >>> sketch = OutputSketch.make(2, depth=9, width=64, seed=0).update(Y)
    >>> found = recover_columns(sketch, k=2, offset_candidates=[np.array([0.5, 0.5])])
    >>> found.offset.tolist(), found.entries.nnz
    ([0.5, 0.5], 2)
    >>> bool(np.allclose(found.toarray(), Y))
    True
    """
    k = check_count("k", k)
    sketch = sketch.settled()
    constants = [np.zeros(sketch.d_v), *map(np.asarray, offset_candidates)]
    for i, constant in enumerate(constants[1:]):
        if constant.shape != (sketch.d_v,):
            raise ValueError(
                f"offset_candidates[{i}] must have shape ({sketch.d_v},), got {constant.shape}."
            )
        check_finite(constant[None], name=f"offset_candidates[{i}]")
    constants.append(sketch.mean)
    best = _best_constants(sketch, k, constants)
    table = _minus_constants(sketch.tail, sketch.tail_table, sketch.ranges, best.offset)
    norm = sketch.tail.column_norms(table)
    norm[norm <= _hidden(sketch)] = 0.0
    _take_out(sketch.tail, table, best)
    tail = sketch.tail.column_norms(table)
    best.values[:, tail >= norm] = 0.0
    n = sketch.ranges[-1][1] if sketch.ranges else 0
    return Recovery(_as_csc(best, n), best.offset, np.minimum(tail, norm), norm, sketch.ranges)


def _hidden(sketch: OutputSketch) -> FloatArray:
    """Return which norms (d_v,) the rounding of the sums can hide, about."""
    terms = 2.0 + sketch.n_rows / sketch.tail.width
    return _ROUNDING * UNIT_ROUNDOFF * terms * sketch.tail.column_norms(sketch.tail_table)


def _best_constants(sketch: OutputSketch, k: int, constants: list[FloatArray]) -> _Found:
    """Return what is found in each column beside the constant that leaves least."""
    best, least = None, np.full(sketch.d_v, np.inf)
    for offset in constants:
        table = _minus_constants(sketch.recovery, sketch.table, sketch.ranges, offset)
        rows, values = _largest(sketch, table, min(2 * k, sketch.n_rows))
        found = _Found(rows, values, offset.astype(np.float64))
        _take_out(sketch.recovery, table, found)
        left = sketch.recovery.column_norms(table)
        if best is None:
            best, least = found, left
            continue
        better = left < least
        best = _Found(*(np.where(better, new, old) for new, old in zip(found, best, strict=True)))
        least = np.where(better, left, least)
    assert best is not None  # zero is always tried
    return best


def _minus_constants(
    sketch: CountSketch, table: FloatArray, ranges: Ranges, offset: FloatArray
) -> FloatArray:
    """Return the table (R, W, c) of the rows minus a constant in each column."""
    if not offset.any():
        return table.copy()
    ones = np.zeros((sketch.depth, sketch.width))
    for start, stop in ranges:
        ones += sketch.ones(start, stop)
    return np.asarray(table - ones[:, :, None] * offset)


def _largest(sketch: OutputSketch, table: FloatArray, m: int) -> tuple[IntArray, FloatArray]:
    """Return row numbers and estimates (m, c) of the m largest estimates of each column."""
    columns = table.shape[2]
    rows, values = np.zeros((0, columns), np.int64), np.zeros((0, columns))
    step = max(_ROWS, m)  # selecting costs the rows that are kept once a block
    for start, stop in sketch.ranges:
        for i in range(start, stop, step):
            index = np.arange(i, min(stop, i + step))
            values = np.concatenate([values, sketch.recovery.estimate(table, index)])
            rows = np.concatenate([rows, np.repeat(index[:, None], columns, axis=1)])
            if len(values) > m:
                top = np.argpartition(-np.abs(values), m - 1, axis=0)[:m]
                values = np.take_along_axis(values, top, axis=0)
                rows = np.take_along_axis(rows, top, axis=0)
    return rows, values


def _take_out(sketch: CountSketch, table: FloatArray, found: _Found) -> None:
    """Subtract the sketch of found entries from a table (R, W, c)."""
    for c in range(table.shape[2]):
        sketch.scatter(table[:, :, c : c + 1], found.rows[:, c], -found.values[:, c : c + 1])


def _as_csc(found: _Found, n: int) -> scipy.sparse.csc_array:
    """Return the entries that are not zero as a matrix (n, c), ascending in each column."""
    order = np.argsort(found.rows, axis=0)
    rows = np.take_along_axis(found.rows, order, axis=0).T
    values = np.take_along_axis(found.values, order, axis=0).T
    kept = values != 0
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return scipy.sparse.csc_array((values[kept], rows[kept], indptr), shape=(n, len(values)))
