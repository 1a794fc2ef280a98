"""What every key selector says about its set, read off one ``Selection``."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import scipy.sparse
from sklearn.base import TransformerMixin

from levsketch._checks import check_finite
from levsketch._typing import ArrayLike
from levsketch.algorithms.inputs import warn_uncertified
from levsketch.backends.csr import CsrRows
from levsketch.backends.interchange import like, result_dtype

from ._base import StreamEstimator


class KeySelector(TransformerMixin, StreamEstimator):  # type: ignore[misc]
    """Fitting, fitted attributes and row selection, for streams that have a ``selection``."""

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn the keys ``X``, forgetting earlier ones.

        Parameters
        ----------
        X : array (n, d)
            Keys: NumPy or anything it converts, DataFrame, or torch CPU tensor; for
            LeverageKeySelector also scipy.sparse.
        y : None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For NaN or infinity (with row and column), and for parameters out of range.
            The estimator is then as it was before.
        """
        return self._absorb(X, fresh=True)

    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn more keys; a stream in any batches gives the same state, byte for byte.

        Parameters
        ----------
        X : array (n, d)
            The next keys; n = 0 changes nothing.
        y : None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For NaN or infinity (with row and column) or another number of columns. No
            row of the batch is then absorbed.
        LevsketchStateError
            If a parameter changed since the stream began, or two threads are at it.
        """
        return self._absorb(X, fresh=False)

    # -- what was selected

    def _chosen(self, field: str) -> Any:
        """Return a field of the pool, for the selected keys only."""
        found = self._selected()
        return getattr(found, field)[found.selected]

    @property
    def indices_(self) -> Any:
        """Row numbers of the selected keys in the stream, ascending."""
        return self._out(self._chosen("index"))

    @property
    def keys_(self) -> Any:
        """The selected keys (m, d)."""
        keys = self._chosen("rows")[:, int(self._has_intercept) :]
        dtype = np.dtype(self._stream.dtype)
        return self._out(keys.astype(dtype if dtype.kind == "f" else np.float64))

    @property
    def scores_(self) -> Any:
        """Leverage scores (m,) of the selected keys against all rows seen."""
        return self._out(self._chosen("scores"))

    @property
    def guard_(self) -> Any:
        """Bounds (m,) on how far the true scores may lie above ``scores_``."""
        return self._out(self._chosen("upper") - self._chosen("scores"))

    @property
    def certified_(self) -> bool:
        """Whether float64 proves that no key is missing (``n_keys``: that these are the top)."""
        return bool(self._selected().certified)

    @property
    def unselected_bound_(self) -> float:
        """Upper bound on the score of every key outside the set; 1 if nothing is proved."""
        return float(self._selected().unselected_bound)

    @property
    def condition_number_(self) -> float:
        """Condition number of the keys after column scaling, up to a factor sqrt(d)."""
        return float(self._selected().whitening.condition)

    def get_support(self, indices: bool = False) -> Any:
        """Return a mask (n_samples_seen_,) of the selected rows, or their numbers.

        Parameters
        ----------
        indices : bool, default=False
            Return ``indices_`` instead of the mask.
        """
        found = self._chosen("index")
        if indices:
            return self._out(found)
        mask = np.zeros(self.n_samples_seen_, np.bool_)
        mask[found] = True
        return self._out(mask)

    def select(self, K: ArrayLike, V: ArrayLike | None = None) -> Any:
        """Return the selected rows of ``K`` (and of ``V``), arrays with all rows seen.

        Parameters
        ----------
        K : array (n_samples_seen_, ...), or scipy.sparse
        V : array (n_samples_seen_, ...), or scipy.sparse, optional

        Returns
        -------
        array (m, ...), or a pair of them if ``V`` is given
            In the library and dtype of the input; CSR if that is sparse.
        """
        index = self._chosen("index")
        taken = []
        for name, array in (("K", K), ("V", V)):
            if array is None:
                continue
            rows: Any = array if hasattr(array, "shape") else np.asarray(array)
            rows = rows.tocsr() if scipy.sparse.issparse(rows) else rows
            if rows.shape[0] != self.n_samples_seen_:
                raise ValueError(
                    f"{name} has {rows.shape[0]} rows, but {self.n_samples_seen_} were seen; "
                    "row numbers would not match."
                )
            taken.append(rows.iloc[index] if hasattr(rows, "iloc") else rows[like(index, rows)])
        return taken[0] if V is None else tuple(taken)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names "key<row>" of the columns of ``transform``."""
        index = self._chosen("index")
        return np.asarray([f"key{row}" for row in index], dtype=object)

    # -- inside

    @property
    def _has_intercept(self) -> bool:
        return bool(getattr(self._fitted_stream().policy, "intercept", False))

    def _queries(self, X: ArrayLike) -> tuple[Any, Any]:
        """Return queries as float64 with a zero for the intercept, and the dtype of results.

        Sparse queries come as rows that stay so: only blocks of them may be made dense.
        """
        self._fitted_stream()
        rows = self._validated(self, X, reset=False)
        check_finite(rows)
        if isinstance(rows, CsrRows):
            return rows.with_zeros() if self._has_intercept else rows, result_dtype(rows.dtype)
        Q = np.ascontiguousarray(rows, dtype=np.float64)
        if self._has_intercept:
            Q = np.concatenate([np.zeros((len(Q), 1)), Q], axis=1)
        return Q, result_dtype(rows.dtype)

    def _announce(self, stream: Any, *, fresh: bool) -> None:
        if fresh:  # else it may be far from its end: what is read off it will warn
            self._checked_selection(stream)

    @staticmethod
    def _checked_selection(stream: Any) -> Any:
        """Return the selection of a stream; on the first look, warn if float64 proves nothing."""
        known = "selection" in stream.__dict__
        found = stream.selection
        if not known and not found.whitening.certified:
            warn_uncertified(found.whitening)
        return found

    def _selected(self) -> Any:
        return self._checked_selection(self._fitted_stream())

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: dense finite input, float32 and float64 kept."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
