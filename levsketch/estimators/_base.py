"""What the estimators share: validation that changes nothing when it fails, merge, files."""

from __future__ import annotations

import copy
import os
import threading
from pathlib import Path
from types import NoneType
from typing import Any, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from levsketch._checks import LevsketchFormatError, LevsketchStateError
from levsketch._typing import ArrayLike, Rows
from levsketch.backends.csr import CsrRows, check_csc
from levsketch.backends.interchange import like, template_of, to_numpy
from levsketch.streaming import serialize
from levsketch.streaming.blocks import BlockStream

# Commits are compare-and-swap under this lock, so that of two threads that
# update one estimator at a time the second is told, and the first one's work stays.
_COMMIT = threading.Lock()
_KINDS: dict[str, type[StreamEstimator]] = {}
# What a fit leaves on the estimator; all of it is replaced in one step.
_FITTED = ("_stream", "_template", "_flat", "_asked", "n_features_in_", "feature_names_in_")
_TWO_THREADS = (
    "two threads called partial_fit on one estimator at the same time; the other one's rows are "
    "in, these are not."
)


class StreamEstimator(BaseEstimator):  # type: ignore[misc]
    """Base of estimators whose state is one immutable stream object, ``_stream``.

    A subclass says how a stream begins (``_empty_stream``), what must agree
    (``_policy``), and how a stream becomes metadata and arrays and back.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _KINDS[cls.__name__] = cls

    # -- what a subclass provides

    def _policy(self) -> Any:
        raise AssertionError("a subclass defines _policy")

    def _empty_stream(self, policy: Any, X: Rows) -> Any:
        """Return the stream of no rows, for rows like those of ``X``."""
        raise AssertionError("a subclass defines _empty_stream")

    def _updated(self, stream: Any, X: Rows) -> Any:
        raise AssertionError("a subclass defines _updated")

    def _finished(self, stream: Any, X: Rows) -> Any:
        """Return what all rows at hand, ``X``, can add to a stream of them; nothing by default."""
        return stream

    def _merged(self, mine: Any, other: Any) -> Any:
        raise AssertionError("a subclass defines _merged")

    def _announce(self, stream: Any, *, fresh: bool) -> None:
        """Warn of what users should know of ``stream``, before it is committed."""

    def _params_of(self, policy: Any) -> dict[str, Any]:
        """Return the constructor parameters that a policy holds."""
        held: dict[str, Any] = policy._asdict()
        return held

    def _restore(self, meta: Any) -> None:
        """Take over what saved metadata say of the estimator, not of its stream."""

    # -- fitting

    def _absorb(self, X: ArrayLike, *, fresh: bool) -> Self:
        """Add rows to the stream (``fresh``: to a new one): compute first, commit last."""
        if not fresh and self._appended(X):
            return self
        self._validate_params()
        policy = self._policy()
        before = None if fresh else getattr(self, "_stream", None)
        if before is not None and before.policy != policy:
            names = [k for k, v in policy._asdict().items() if getattr(before.policy, k) != v]
            raise LevsketchStateError(
                f"{', '.join(names)} changed between calls to partial_fit; "
                "call fit to begin anew, or set it back."
            )
        probe = copy.copy(self)
        if before is None:
            for name in _FITTED:
                probe.__dict__.pop(name, None)
        rows = self._taken(probe, X, reset=before is None, min_rows=int(fresh))
        stream = self._empty_stream(policy, rows) if before is None else before
        after = self._updated(stream, rows)
        if fresh:
            after = self._finished(after, rows)
        if before is None:
            self._remember(probe, X)
        if after is stream and not fresh:
            return self  # no rows: nothing happened
        probe._stream = after
        probe._asked = self._plain_params()
        self._announce(after, fresh=fresh)
        with _COMMIT:
            if not fresh and getattr(self, "_stream", None) is not before:
                raise LevsketchStateError(_TWO_THREADS)
            for name in _FITTED:
                self.__dict__.pop(name, None)
                if name in probe.__dict__:
                    self.__dict__[name] = probe.__dict__[name]
        return self

    def _appended(self, X: Any) -> bool:
        """Add rows that need no validation but that of their values.

        NumPy rows just as those before, and parameters that are the very objects which were
        valid then: all that validation could say is known. False if there is more to it.
        """
        mine = self.__dict__
        before = mine.get("_stream")
        if (
            type(X) is not np.ndarray
            or X.ndim != 2
            or not isinstance(before, BlockStream)
            or not X.flags.c_contiguous
            or not X.flags.aligned
            or X.shape[1] != mine.get("n_features_in_")
            or "feature_names_in_" in mine
            or mine.get("_template") is not None
        ):
            return False
        asked = mine.get("_asked")
        if asked is None or any(mine.get(name) is not value for name, value in asked):
            return False
        after = before.appended(X)
        if after is None:
            if not before.takes_rows_as_they_are or X.dtype.name != before.dtype or not len(X):
                return False
            after = self._updated(before, X)
        with _COMMIT:
            if mine.get("_stream") is not before:
                raise LevsketchStateError(_TWO_THREADS)
            mine["_stream"] = after
        return True

    def _plain_params(self) -> tuple[tuple[str, Any], ...] | None:
        """Return the parameters, or None if one is an object that may change inside."""
        held = tuple(self.get_params(deep=False).items())
        plain = all(type(value) in (bool, int, float, str, NoneType) for _, value in held)
        return held if plain else None

    @staticmethod
    def _remember(target: Any, X: Any) -> None:
        """Set on ``target`` what the form of the first rows says of results."""
        target._template = template_of(X)

    @staticmethod
    def _validated(target: Any, X: ArrayLike, *, reset: bool, min_rows: int = 0) -> Rows:
        """Return ``X`` as 2-D host rows of real numbers, not yet checked for NaN.

        Feature counts and names are set on, or compared with, ``target``.
        """
        sparse = getattr(target, "_takes_sparse", False)
        if sparse and issparse(X):
            check_csc("X", X)
        rows: Any = validate_data(
            target,
            to_numpy(X),
            reset=reset,
            accept_sparse=sparse and "csr",
            dtype="numeric",
            ensure_all_finite=False,
            ensure_min_samples=min_rows,
        )
        if rows.dtype.kind not in "fiub":
            raise ValueError(f"X must hold real numbers, got dtype {rows.dtype}.")
        return CsrRows.of("X", rows) if issparse(rows) else rows

    def _taken(self, target: Any, X: ArrayLike, *, reset: bool, min_rows: int = 0) -> Any:
        """Return ``X`` as rows that the stream takes, validated for and by ``target``."""
        return self._validated(target, X, reset=reset, min_rows=min_rows)

    def _fitted_stream(self) -> Any:
        check_is_fitted(self)
        return self._stream

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether any row has been seen."""
        return getattr(self, "_stream", None) is not None

    def _out(self, result: np.ndarray[Any, Any]) -> Any:
        """Return a fitted array in the library of the first rows fitted."""
        return result if self._template is None else like(result, self._template)

    @property
    def n_samples_seen_(self) -> int:
        """Number of rows seen since the last ``fit``."""
        return int(self._fitted_stream().n_seen)

    @property
    def nbytes_(self) -> int:
        """Bytes held by the state: independent of the number of rows seen."""
        return int(self._fitted_stream().nbytes)

    # -- merging

    def merge(self, other: Self) -> Self:
        """Return a new estimator that has seen the rows of this one, then those of ``other``.

        As good as fitting all rows, in O(d^3 + d^2 |U|) time whatever their number: no key is
        missing. Where sets are exact (LeverageKeySelector, or ``refine=True`` with a lift) they
        do not depend on order and grouping. Row numbers of ``other`` are shifted by
        ``n_samples_seen_``; ``a | b`` is short for ``a.merge(b)``. Merging with an
        estimator that has seen nothing changes nothing.

        Parameters
        ----------
        other : estimator of the same class and parameters

        Returns
        -------
        estimator
            New; it shares nothing that can change with either operand.

        Raises
        ------
        TypeError
            If ``other`` is of another class.
        ValueError
            If a parameter, the number of features or their names differ.
        """
        if type(other) is not type(self):
            raise TypeError(
                f"cannot merge {type(self).__name__} with {type(other).__name__}: "
                "both must be of one class."
            )
        # what parameters mean, not how they are spelt
        mine, theirs = self._policy()._asdict(), other._policy()._asdict()
        for name, value in mine.items():
            if value != theirs[name]:
                raise ValueError(
                    f"cannot merge: {name} is {value!r} here and {theirs[name]!r} in the other."
                )
        result = type(self)(**self.get_params())
        a, b = getattr(self, "_stream", None), getattr(other, "_stream", None)
        if a is not None and b is not None:
            self._check_same_features(other)
        source = self if a is not None else other
        for name in _FITTED:
            if name in source.__dict__:
                result.__dict__[name] = source.__dict__[name]
        if a is not None and b is not None:
            result._stream = self._merged(a, b)
        return result

    def __or__(self, other: Any) -> Any:
        """Return ``self.merge(other)``."""
        return self.merge(other) if isinstance(other, StreamEstimator) else NotImplemented

    def _check_same_features(self, other: Self) -> None:
        if self.n_features_in_ != other.n_features_in_:
            raise ValueError(
                f"cannot merge: n_features_in_ is {self.n_features_in_} here and "
                f"{other.n_features_in_} in the other."
            )
        a = getattr(self, "feature_names_in_", None)
        b = getattr(other, "feature_names_in_", None)
        if a is not None and b is not None and list(a) != list(b):
            different = [f"{x!r} / {y!r}" for x, y in zip(a, b, strict=True) if x != y]
            raise ValueError(f"cannot merge: feature names differ: {', '.join(different[:5])}.")
        if self._stream.policy != other._stream.policy:
            raise ValueError(
                "cannot merge: a parameter of one of the two was changed after it was fitted."
            )

    # -- files

    def to_bytes(self) -> bytes:
        """Return the state as one checksummed, versioned container (no pickle).

        The same rows in any batches, on any number of threads, give the same bytes.
        """
        stream = self._fitted_stream()
        meta, arrays = self._stream_arrays(stream)
        names = getattr(self, "feature_names_in_", None)
        whole = {
            "feature_names": None if names is None else [str(name) for name in names],
            # what these rows were seen with, whatever set_params has changed since; what
            # the policy does not hold has only its default
            "params": type(self)().get_params() | self._params_of(stream.policy),
            "stream": meta,
        }
        return serialize.pack(type(self).__name__, whole, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the estimator whose ``to_bytes`` gave ``data``.

        Raises
        ------
        LevsketchFormatError
            If the bytes are damaged, from a newer version, of another class, or
            hold values that no stream could have left.
        """
        kind, whole, arrays = serialize.unpack(data)
        found = _KINDS.get(kind)
        if found is None or not issubclass(found, cls):
            raise LevsketchFormatError(f"the state is a {kind!r}, not a {cls.__name__}.")
        try:
            result = found(**whole["params"])
            names, meta = whole["feature_names"], whole["stream"]
        except (KeyError, TypeError) as error:
            raise LevsketchFormatError(f"the state lacks or garbles a field: {error!r}.") from error
        stream = found._stream_from(meta, arrays)
        try:
            result._validate_params()
            agree = repr(result._policy()) == repr(stream.policy)  # types too
        except ValueError as error:
            raise LevsketchFormatError(f"the state has impossible parameters: {error}") from error
        named = names is None or (
            type(names) is list
            and len(names) == stream.n_features
            and all(type(name) is str for name in names)
        )
        if not agree or not named:
            raise LevsketchFormatError("the state is absurd: its fields contradict each other.")
        result._stream, result._template = stream, None
        result._restore(meta)
        result.n_features_in_ = stream.n_features
        if names is not None:
            result.feature_names_in_ = np.asarray(names, dtype=object)
        loaded: Self = result
        return loaded

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_bytes()`` to ``path``, whole or not at all; read it with ``lv.load``."""
        serialize.write_atomically(path, self.to_bytes())

    def _stream_arrays(self, stream: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        raise AssertionError("a subclass defines _stream_arrays")

    @classmethod
    def _stream_from(cls, meta: Any, arrays: Any) -> Any:
        raise AssertionError("a subclass defines _stream_from")


def load(path: str | os.PathLike[str]) -> StreamEstimator:
    """Return the estimator that ``save`` wrote to ``path``.

    The file is checked by its SHA-256 digest, which finds accidents but proves
    nothing about its author; nothing in it is executed.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    estimator
        Of the class that was saved; it can go on with ``partial_fit``.

    Raises
    ------
    LevsketchFormatError
        If the file is no whole levsketch state.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import levsketch as lv
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "keys.lev"
    >>> lv.LeverageKeySelector(eps=0.5).fit([[1.0], [1.0], [2.0]]).save(path)
    >>> lv.load(path).indices_
    array([2])
    """
    return StreamEstimator.from_bytes(Path(path).read_bytes())
