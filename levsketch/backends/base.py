"""The few operations over n rows, in array-API code: interface, oracle and fallback.

A backend is one place where the n rows live. Everything above it works with
what these operations return, which is small (d x d) or one number a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from .interchange import result_dtype


class Backend:
    """Operations over rows that any array-API library can do.

    Subclasses override what a profile shows slow and must agree with this
    class to rounding. Rows are (n, d), float32 or float64, or of what other types
    ``rows`` passes on; everything is accumulated and returned in float64.
    """

    name = "array_api"

    def rows(self, X: Any) -> Any:
        """Return ``X`` (n, d) as float32 or float64 rows, exactly where the type allows."""
        xp = array_namespace(X)
        return X if X.dtype in (xp.float32, xp.float64) else xp.astype(X, xp.float64)

    def scores_at_once(self, K: Any, ridge: float, intercept: bool) -> tuple[Any, list[Any]]:
        """Return room for scores (..., n) where rows live, and the problems still to be scored."""
        lead = K.shape[:-2]
        return np.empty(K.shape[:-1], result_dtype(K.dtype)), list(np.ndindex(*lead))

    def block_grams(self, K: Any, block: int, scale: Any = None) -> Any:
        """Return the Gram matrices (ceil(n / block), d, d) of consecutive row blocks.

        With ``scale`` (n,) row j is first multiplied by ``scale[j]``.
        """
        xp = array_namespace(K)
        rows = K if scale is None else self._wide(K) * scale[:, None]
        return xp.stack([B.T @ B for B in self._wide_blocks(rows, block)])

    def column_squares(self, K: Any, block: int, scale: Any = None) -> Any:
        """Return the diagonals (ceil(n / block), d) of ``block_grams``."""
        grams = self.block_grams(K, block, scale)
        xp = array_namespace(grams)
        return xp.stack([xp.linalg.diagonal(grams[b, ...]) for b in range(grams.shape[0])])

    def whitened_row_norms(self, K: Any, W: Any, *, triangular: bool = False) -> Any:
        """Return ``||k_j W||^2`` for every row, shape (n,); ``W`` is (d, c).

        Infinite where infinities cancel: nothing is known of that row, it may be anything.
        """
        xp = array_namespace(K)
        Z = self._wide(K) @ W
        norms = xp.sum(Z * Z, axis=-1)
        return xp.where(xp.isnan(norms), xp.asarray(xp.inf, dtype=norms.dtype), norms)

    def screened_row_norms(self, K: Any, M: Any, rest: Any) -> Any:
        """Return ``||k_j M||^2 + sum_i (rest_i k_ji)^2`` for every row; M (d, c), rest (d,)."""
        xp = array_namespace(K)
        rows = self._wide(K)
        Z = rows * rest
        norms = self.whitened_row_norms(rows, M) + xp.sum(Z * Z, axis=-1)
        return xp.where(xp.isnan(norms), xp.asarray(xp.inf, dtype=norms.dtype), norms)

    def whitened_block_grams(
        self, K: Any, W: Any, block: int, scale: Any = None, *, triangular: bool = False
    ) -> Any:
        """Return the Gram matrices (ceil(n / block), c, c) of the rows of ``K W`` by blocks.

        With ``scale`` (n,) row j is also multiplied by ``scale[j]``; ``W`` is (d, c).
        """
        xp = array_namespace(K)
        found = []
        for i in range(0, K.shape[0], block):
            Z = self._wide(K[i : i + block, :]) @ W
            Z = Z if scale is None else Z * scale[i : i + block, None]
            found.append(Z.T @ Z)
        return xp.stack(found)

    def qr_blocks(self, K: Any, block: int) -> Any:
        """Return R factors (ceil(n / block), d, d), diagonals >= 0, of consecutive row blocks."""
        xp = array_namespace(K)
        d = K.shape[1]
        factors = []
        for B in self._wide_blocks(K, block):
            R = xp.linalg.qr(B, mode="reduced").R
            short = d - R.shape[0]
            if short > 0:
                R = xp.concat([R, xp.zeros((short, d), dtype=R.dtype)], axis=0)
            sign = xp.where(xp.linalg.diagonal(R) < 0, -1.0, 1.0)
            factors.append(xp.astype(sign, R.dtype)[:, None] * R)
        return xp.stack(factors)

    def qr_pairs(self, R: Any) -> Any:
        """Return the R factors (m, d, d) of upper triangles R[0] on R[1], R[2] on R[3], ..."""
        xp, d = array_namespace(R), R.shape[-1]
        return self.qr_blocks(xp.reshape(R, (-1, d)), 2 * d)

    def roots_times(self, H: Any, R: Any) -> tuple[Any, Any]:
        """Return ``C R`` (m, d, d) for H[b] = C^T C, and for which b there is such a C.

        C and R are upper triangular; what is returned for other b means nothing.
        """
        xp = array_namespace(H)
        found, products = [], []
        for b in range(H.shape[0]):
            try:
                C = xp.linalg.cholesky(H[b, ...]).T
            except Exception:  # each library has a class of its own for it
                C = xp.full_like(R, xp.nan)
            good = bool(xp.all(xp.isfinite(C)))
            found.append(good)
            products.append(C @ R)
        return xp.stack(products), xp.asarray(found)

    def _wide_blocks(self, K: Any, block: int) -> Iterator[Any]:
        n = K.shape[0]
        for i in range(0, n, block):
            yield self._wide(K[i : min(i + block, n), :])

    @staticmethod
    def _wide(K: Any) -> Any:
        xp = array_namespace(K)
        return xp.astype(K, xp.float64)
