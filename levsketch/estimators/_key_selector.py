"""What every key selector says about its set, read off one ``Selection``."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import TransformerMixin

from levsketch._typing import ArrayLike
from levsketch.backends.interchange import like
from levsketch.streaming.keys import Selection

from ._base import StreamEstimator


class KeySelector(TransformerMixin, StreamEstimator):  # type: ignore[misc]
    """Fitted attributes and row selection, for estimators that define ``_selected``."""

    intercept: bool

    def _selected(self) -> Selection:
        raise AssertionError("a subclass defines _selected")

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
        keys = self._chosen("rows")[:, int(self.intercept) :]
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
        K : array (n_samples_seen_, ...)
        V : array (n_samples_seen_, ...), optional

        Returns
        -------
        array (m, ...), or a pair of them if ``V`` is given
            In the library and dtype of the input.
        """
        index = self._chosen("index")
        taken = []
        for name, array in (("K", K), ("V", V)):
            if array is None:
                continue
            rows = array if hasattr(array, "shape") else np.asarray(array)
            if len(rows) != self.n_samples_seen_:
                raise ValueError(
                    f"{name} has {len(rows)} rows, but {self.n_samples_seen_} were seen; "
                    "row numbers would not match."
                )
            taken.append(rows.iloc[index] if hasattr(rows, "iloc") else rows[like(index, rows)])
        return taken[0] if V is None else tuple(taken)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names "key<row>" of the columns of ``transform``."""
        index = self._chosen("index")
        return np.asarray([f"key{row}" for row in index], dtype=object)
