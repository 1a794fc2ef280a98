"""Attention scores for any f, from what a stream kept: exact, or within 1 +- delta."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from levsketch._checks import CertificationWarning, warn_caller
from levsketch._typing import BoolArray, FloatArray, IntArray
from levsketch.functions import ScoreFunction
from levsketch.linalg import (
    NO_EXPONENT,
    UNIT_ROUNDOFF,
    Whitening,
    column_exponents,
    scale_columns,
)
from levsketch.streaming.lifted import LiftedFactor
from levsketch.streaming.lp_selection import LpSelection

from .heavy import check_products, scaled_queries

# Products of this many (query, row) pairs are held at a time.
_PAIRS = 1 << 21
# A normaliser that is not known to within this factor is in doubt.
_DOUBT = 1.1


class _Scaled(NamedTuple):
    """Queries times a power of two each, against columns that are scaled the other way."""

    Q: FloatArray
    exponents: IntArray
    lengths: FloatArray


def lp_scores(
    selection: LpSelection, f: ScoreFunction, taken: BoolArray, Q: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return ``f(<q, k_j>) / sum_l f(<q, k_l>)`` for queries (m, d) and some rows of the pool.

    Parameters
    ----------
    selection : LpSelection
        It must have a normaliser: a lifted factor or an importance sample.
    f : ScoreFunction
    taken : bool array
        Mask over the pool: the keys asked for.
    Q : (m, d) array
        Finite. For f = |x|^p of any size: each is scaled by a power of two first.

    Returns
    -------
    scores, bounds : (m, k) arrays
        Zeros for the zero query, for queries that are, exactly, orthogonal to all keys, and
        for those so short that every f(<q, k>) underflows. ``bounds`` lie
        above the true scores by what rounding can hide; for an importance sample they bound
        the score with the estimated normaliser.

    Raises
    ------
    ValueError
        If products overflow and f is not a power.

    Warns
    -----
    CertificationWarning
        If a lifted factor cannot tell a normaliser to 10 %, with the number of such queries.
    """
    step = max(1, _PAIRS // max(1, len(selection.rows)))
    parts = [_scores(selection, f, taken, Q[i : i + step]) for i in range(0, len(Q), step)]
    doubtful = sum(part[2] for part in parts)
    if doubtful and selection.lifted is not None:
        warn_caller(
            f"the normalisers of {doubtful} queries may be off by more than 10 %: they are lost "
            "in the rounding of lifted keys. Their scores are upper-bounded by what the kept keys "
            "alone give; normaliser='sample' has no such loss.",
            CertificationWarning,
        )
    if not parts:
        none = np.zeros((0, int(taken.sum())))
        return none, none
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _scores(
    selection: LpSelection, f: ScoreFunction, taken: BoolArray, Q: FloatArray
) -> tuple[FloatArray, FloatArray, int]:
    """Return scores and bounds, and how many queries have a normaliser that is in doubt."""
    scaled = _scaled(selection, f, Q)
    rows = scale_columns(selection.rows, -scaled.exponents)
    with np.errstate(over="ignore", invalid="ignore"):
        products = np.abs(scaled.Q @ rows.T)
    check_products(products, f)
    rounding = (rows.shape[1] + 2) * UNIT_ROUNDOFF
    hidden = rounding * scaled.lengths[:, None] * np.linalg.norm(rows, axis=1)
    silent = _silent(selection, Q, products, hidden)
    # a power is taken relative to the largest product: no p over- or underflows there
    unit = np.ones(len(Q))
    if f.homogeneous:
        top = products.max(axis=1, initial=0.0)
        unit = np.where(top > 0, top, 1.0)
    hidden /= unit[:, None]
    products /= unit[:, None]
    values = f(products)
    # the rows at hand are part of the sum, whatever stands for the others
    low = f(np.maximum(products - hidden, 0.0))
    if selection.lifted is None:
        total = values @ selection.sample
        least = low @ selection.sample
        most = total
    else:
        total, below, most = _lifted_total(selection.lifted, selection.lift_whitening, scaled, unit)
        least = np.maximum(below, low.sum(axis=1))
        total = np.maximum(total, values.sum(axis=1))
    doubtful = int(((most > _DOUBT * least) & ~silent).sum())
    upper = selection.upper[taken]
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.nan_to_num(values[:, taken] / total[:, None], nan=0.0, posinf=np.inf)
        bounds = f(products[:, taken] + hidden[:, taken]) / least[:, None]
    scores[silent] = bounds[silent] = 0.0
    # fmin: 0 / 0 says nothing, but the bound of the sensitivity still holds
    return np.minimum(scores, upper), np.fmin(bounds, upper), doubtful


def _lifted_total(
    lifted: LiftedFactor, whitening: Whitening | None, scaled: _Scaled, unit: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the normaliser over ``unit^p`` by a lifted factor, and what it is at least and most.

    A sketch proves nothing: it is at least zero, and its own doubt is not this one.
    """
    if whitening is None:
        raise AssertionError("a lifted factor comes with its whitening")
    norms, hidden = lifted.norms(whitening, scaled.Q)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        scale = unit**-lifted.lift.degree
        total = np.square(norms * scale)
        least = np.square(np.maximum(norms - hidden, 0.0) * scale)
        most = np.square((norms + hidden) * scale) if lifted.exact else np.zeros(len(norms))
    error = lifted.relative_error(whitening)
    least *= (1.0 - error) ** 2 if lifted.exact else 0.0
    most *= (1.0 + error) ** 2
    return np.nan_to_num(total, nan=0.0), np.nan_to_num(least, nan=0.0, posinf=0.0), most


def _scaled(selection: LpSelection, f: ScoreFunction, Q: FloatArray) -> _Scaled:
    """Return queries scaled to entries of at most one in coordinates where columns are."""
    if not f.homogeneous:
        none = np.zeros(Q.shape[1], np.int64)
        with np.errstate(over="ignore"):
            return _Scaled(Q, none, np.linalg.norm(Q, axis=1))
    if selection.lifted is not None:
        e = selection.lifted.exponents
    else:
        e = column_exponents(selection.rows)
    seen = e > NO_EXPONENT
    e = np.where(seen, e, 0)
    scaled = scaled_queries(np.where(seen, Q, 0.0), e)
    return _Scaled(scaled, e, np.linalg.norm(scaled, axis=1))


def _silent(
    selection: LpSelection, Q: FloatArray, products: FloatArray, hidden: FloatArray
) -> BoolArray:
    """Return which queries are orthogonal to all keys; asked exactly where rounding may decide."""
    whitening, space = selection.whitening, selection.weighted.factor.space
    silent = np.zeros(len(Q), np.bool_)
    if whitening.rank < int(whitening.active.sum()):
        doubtful = np.flatnonzero((products <= 8 * hidden).all(axis=1))
        silent[doubtful] = space.orthogonal(Q[doubtful])
    else:
        silent[:] = ~Q[:, whitening.active].any(axis=1)
    return silent
