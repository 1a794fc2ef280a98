"""Keys, values, weights and sample queries of one call, checked so that nothing changes."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_array, validate_data

from levsketch._checks import LevsketchStateError, check_finite
from levsketch._typing import FloatArray, Rows
from levsketch.backends.interchange import to_numpy

# Rows that are copied together: of 128 columns, 8 MB, which the allocator gives out again and
# again. (Of 67 MB each page was new to the process: copying took three times as long.)
_ROWS = 1 << 13


class Batch(NamedTuple):
    """What one call of fit or partial_fit brings."""

    keys: Any
    values: Any = None
    weights: Any = None
    queries: Any = None
    # "keys" or "values" when only one of the two streams goes on
    part: str = "both"

    def pieces(self) -> Iterator[FloatArray]:
        """Return rows [key | value | weight] of a checked batch in float64, some at a time."""
        for start in range(0, len(self.keys), _ROWS):
            part = slice(start, start + _ROWS)
            columns = self.keys[part], self.values[part], self.weights[part, None]
            yield np.concatenate(columns, axis=1, dtype=np.float64)


def checked(target: Any, batch: Batch, *, reset: bool, min_rows: int) -> Batch:
    """Return the batch as host arrays; counts and names of features are set on ``target``.

    ``min_rows`` is 1 for `fit`, which also refuses weights that are all zero.

    Raises
    ------
    ValueError
        As scikit-learn words it; for NaN and infinity with row, column and the array's name.
    """
    if batch.part == "values":
        return batch._replace(values=_checked_values(target, batch.values, reset, min_rows))
    keys = _numbers(
        validate_data(
            target,
            to_numpy(batch.keys),
            reset=reset,
            dtype="numeric",
            ensure_all_finite=False,
            ensure_min_samples=min_rows,
        ),
        "X",
    )
    if batch.part == "keys":
        return batch._replace(keys=keys)
    if batch.values is None:
        raise ValueError(
            f"This {type(target).__name__} estimator requires y to be passed, "
            "but the target y is None: pass the values of the keys."
        )
    values = _checked_values(target, batch.values, reset, min_rows)
    if len(values) != len(keys):
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: "
            f"{[len(keys), len(values)]}."
        )
    weights = _checked_weights(target, batch.weights, len(keys))
    if min_rows and not weights.any():
        raise ValueError("sample_weight must not be all zero: there would be nothing to average.")
    queries = batch.queries
    if queries is not None:
        if not reset:
            raise LevsketchStateError(
                "queries were fixed when the stream began; pass them with its first rows."
            )
        queries = _checked_queries(target, queries)
        if not len(keys):
            raise ValueError("queries come with the first rows of a stream, but X has none.")
    return Batch(keys, values, weights, queries)


def _checked_values(target: Any, y: Any, reset: bool, min_rows: int) -> Rows:
    """Return values (n, d_v), as many columns as ``target`` knows."""
    values = _numbers(_array(target, y, "y", min_rows), "y")
    if reset:
        target._flat = values.ndim == 1
    values = values[:, None] if values.ndim == 1 else values
    if values.shape[1] == 0:
        raise ValueError(f"y must have at least one column, got shape {values.shape}.")
    known = getattr(getattr(target, "_stream", None), "n_outputs", None)
    if known is not None and values.shape[1] != known:
        raise ValueError(
            f"y has {values.shape[1]} columns, but {type(target).__name__} is expecting {known}."
        )
    return values


def _checked_weights(target: Any, weights: Any, n: int) -> FloatArray:
    """Return weights (n,), finite and >= 0; one number stands for all."""
    if weights is None or isinstance(weights, numbers.Number):
        weights = np.full(n, 1.0 if weights is None else weights)
    found = _array(target, weights, "sample_weight", 0)
    if found.shape != (n,):
        raise ValueError(
            f"sample_weight must be a number or have shape ({n},), one for each row of X, got "
            f"shape {found.shape}."
        )
    found = _numbers(found, "sample_weight")
    wrong = np.flatnonzero(found < 0)
    if len(wrong):
        raise ValueError(f"sample_weight must be >= 0, got {found[wrong[0]]} at row {wrong[0]}.")
    weights_: FloatArray = found.astype(np.float64)
    return weights_


def _checked_queries(target: Any, Q: Any) -> FloatArray:
    """Return sample queries (m, d); their features must be those of the keys."""
    found = _numbers(_array(target, Q, "queries", 1, ensure_2d=True), "queries")
    d = target.n_features_in_
    if found.shape[1] != d:
        raise ValueError(
            f"queries has {found.shape[1]} features, but X has {d}: "
            f"{type(target).__name__} compares the two."
        )
    if hasattr(Q, "columns") and hasattr(target, "feature_names_in_"):
        validate_data(target, Q, reset=False, skip_check_array=True)
    return np.asarray(found, np.float64)


def _array(target: Any, X: Any, name: str, min_rows: int, *, ensure_2d: bool = False) -> Any:
    """Return a host array as scikit-learn takes it, not yet checked for NaN."""
    return check_array(
        to_numpy(X),
        ensure_2d=ensure_2d,
        dtype="numeric",
        ensure_all_finite=False,
        ensure_min_samples=min_rows,
        input_name=name,
        estimator=target,
    )


def _numbers(array: Any, name: str) -> Rows:
    """Return finite real numbers, which are finite in float64, too."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}.")
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} must be 1-D or 2-D, got shape {array.shape}.")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:  # long doubles
        with np.errstate(over="ignore", under="ignore"):
            array = array.astype(np.float64)
    check_finite(array if array.ndim == 2 else array[:, None], name=name)
    found: Rows = array
    return found
