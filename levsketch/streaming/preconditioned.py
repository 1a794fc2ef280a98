"""R factors of ill-conditioned blocks from a Gram matrix after all: of whitened rows.

The rows of a block that is like its prefix are well conditioned once multiplied by the inverse W
of the prefix's factor R. Their Gram matrix H loses nothing that matters, and its Cholesky factor
times R is the factor of the block: preconditioned Cholesky QR, 2 n d^2 flops in
kernels as fast as matrix products, where Householder QR takes as many at a tenth of the speed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from levsketch._typing import BoolArray, FloatArray, Rows
from levsketch.backends import Backend
from levsketch.linalg import (
    QR_COHERENT,
    QR_CONSTANT,
    UNIT_ROUNDOFF,
    Factor,
    Whitening,
    gram_factor,
    gram_roundoff,
)

# All products with W together may move the norm of a query by this much, relatively.
PRODUCT_BUDGET = 0.05


class Whitened(NamedTuple):
    """What Gram matrices of whitened blocks give, block by block.

    ``factors`` are None, and the bounds infinite, where they give nothing. ``growth`` (k,)
    bounds what the roundings of H add to the relative error of squared norms; the squares
    ``products`` (k,) add up to that of the error in norms which the products with W make.
    """

    factors: list[Factor | None]
    growth: FloatArray
    products: FloatArray


def whitened_factors(
    backend: Backend,
    rows: Rows,
    scale: FloatArray | None,
    block: int,
    prefix: Whitening,
    diagonals: FloatArray,
) -> Whitened:
    """Return the factors of consecutive blocks of ``rows`` (n, d) by way of a prefix.

    ``diagonals`` (k, d) are the diagonals of their Gram matrices, weights included.

    Notes
    -----
    Let M = K R^-1 and y = R x for a block K and any x. Computed are Z = K W + E with
    ``|E| <= g |K| |W|``, H = Z^T Z to ``gamma ||z_a|| ||z_b||`` in each entry, its Cholesky
    factor C, and C R to ``g |C| |R|``. With ``R W = I + F, |F| <= g |R| |W|``:

    * ``||Z R x - K x|| = ||M F y + E y|| <= (||M|| ||F||_F + ||E||_F) ||y||``, with
      ``||E||_F <= g sum_j ||K e_j|| ||W_j:||`` and ``||M||^2 <= ||H||_1``; the rounding of C R
      is at most ``||C|| g || |R| |W| ||_F ||y||`` once more.
    * ``| ||C y||^2 - ||Z y||^2 | <= gamma d tr(H) ||y||^2``.

    ``||y||`` is at most the norm of x in the prefix over (1 - e), and that in all rows is no
    less, however many arrive. Errors of blocks add up in squares: by Cauchy-Schwarz
    ``sum_b ||K_b x|| e_b ||y|| <= ||K x|| (sum_b e_b^2)^(1/2) ||y||``. g is that of
    `levsketch.linalg.qr_roundoff` for inner products of d terms, calibrated likewise.
    """
    count, d = diagonals.shape
    nothing = Whitened([None] * count, np.full(count, np.inf), np.full(count, np.inf))
    W = prefix.folded() if prefix.spans_coordinates else None
    if W is None:
        return nothing
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        grams = np.asarray(
            backend.whitened_block_grams(rows, W, block, scale, triangular=prefix.triangular)
        )
        g = (QR_CONSTANT + QR_COHERENT * d) * UNIT_ROUNDOFF
        # row by row: the bits of a BLAS product depend on how many blocks came together
        columns = np.sum(np.sqrt(diagonals) * np.linalg.norm(W, axis=1), axis=1)
        around = float(np.linalg.norm(np.abs(prefix.factor.R) @ np.abs(prefix.matrix)))
        sizes = np.abs(grams).sum(axis=1).max(axis=1)
        products = 2.0 * g**2 * (columns**2 + 2.0 * around**2 * sizes) / prefix.deflation
        traces = np.trace(grams, axis1=1, axis2=2)
        growth = gram_roundoff(block, d) * d * traces / prefix.deflation
    usable = np.isfinite(growth) & np.isfinite(products) & ~_foreign(prefix, diagonals)
    factors: list[Factor | None] = [None] * count
    triangles, found = backend.roots_times(grams, prefix.factor.R)
    for b in np.flatnonzero(usable).tolist():
        if found[b]:
            factors[b] = prefix.factor._replace(R=np.asarray(triangles[b]).copy())
        else:  # a column without entries
            factors[b] = _factor(grams[b], prefix)
    usable = np.array([factor is not None for factor in factors])
    return Whitened(factors, np.where(usable, growth, np.inf), np.where(usable, products, np.inf))


def _foreign(prefix: Whitening, diagonals: FloatArray) -> BoolArray:
    """Return which blocks have columns that the prefix has not."""
    return np.asarray((diagonals[:, ~prefix.active] != 0).any(axis=1))


def _factor(H: FloatArray, prefix: Whitening) -> Factor | None:
    """Return ``C R`` for the Cholesky factor C of H, or None if there is none."""
    root = gram_factor(H)
    if root is None:
        return None
    C = np.ldexp(root.R, root.exponents)
    return prefix.factor._replace(R=np.triu(C @ prefix.factor.R))
