"""What stands behind StreamingAttentionSketch: which stream, which policy, merging and files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from levsketch._checks import (
    LevsketchFormatError,
    LevsketchStateError,
    check_finite,
    check_memory_size,
    warn_caller,
)
from levsketch._typing import ArrayLike, FloatArray, IntArray
from levsketch.algorithms import attention_sketch, polynomial_attention
from levsketch.algorithms.inputs import checked_scale
from levsketch.backends import backend_for
from levsketch.backends.interchange import like, result_dtype, template_of
from levsketch.sketches.tensorsketch import TensorSketch
from levsketch.streaming import attention_io, polynomial_io
from levsketch.streaming.attention import AttentionPolicy, AttentionStream
from levsketch.streaming.key_value_moments import KeyValueMoments
from levsketch.streaming.polynomial import PolynomialPolicy, PolynomialStream
from levsketch.streaming.quadratic import QuadraticMoments
from levsketch.streaming.query_sample import query_sample, scaled_queries

from ._attention_input import Batch, checked
from ._base import StreamEstimator

# Queries of a stream are answered in blocks of so many: products of other sizes have other bits.
_QUERIES = 1024
# What moments may take unless told otherwise.
_MOST_MEMORY = 2**30


class AttentionEstimator(StreamEstimator):
    """Plumbing between batches of keys and values and the two kinds of streams."""

    # -- parameters

    def _policy(self) -> AttentionPolicy | PolynomialPolicy:
        bytes_ = None
        if self.max_memory is not None:
            bytes_ = check_memory_size("max_memory", self.max_memory)
        scale = self.scale if isinstance(self.scale, str) else checked_scale(self.scale, 1)
        softmax = self.function == "softmax"
        if self.sketch is None and softmax:
            return AttentionPolicy(
                n_keys=int(self.n_keys),
                max_memory=bytes_,
                residual=str(self.residual),
                decay=float(self.decay),
                scale=scale,
                random_state=int(self.random_state),
            )
        degree = self.degree if softmax else self.function
        if degree % 2 != 0:
            name = "degree" if softmax else "function"
            why = (
                "an odd Taylor polynomial of exp can be negative"
                if softmax
                else "moments are exact for even powers only"
            )
            raise ValueError(f"{name} must be an even number >= 2, got {degree!r}: {why}.")
        if not softmax and self.sketch not in (None, "exact"):
            raise ValueError(
                f"sketch={self.sketch!r} is for softmax; function={self.function!r} is exact: "
                "leave sketch=None."
            )
        policy = PolynomialPolicy(
            function="softmax" if softmax else float(self.function),
            degree=int(degree),
            sketch=self.sketch or "exact",
            sketch_size=int(self.sketch_size) if self.sketch not in (None, "exact") else 0,
            decay=float(self.decay),
            scale=scale,
            floats=max(1, (bytes_ or _MOST_MEMORY) // 8),
            seed=int(self.random_state),
        )
        policy.check()
        return policy

    def _params_of(self, policy: Any) -> dict[str, Any]:
        held: dict[str, Any] = {}
        if isinstance(self.sparsity, (int, np.integer)) and self.sparsity >= 1:
            held["sparsity"] = int(self.sparsity)  # no stream depends on it
        if isinstance(policy, AttentionPolicy):
            return held | policy._asdict()
        held |= {
            "function": policy.function,
            "sketch": policy.sketch if policy.softmax else None,
            "decay": policy.decay,
            "scale": policy.scale,
            "max_memory": policy.floats * 8,
            "random_state": policy.seed,
        }
        if policy.softmax:
            held["degree"] = policy.degree
        if policy.sketch_size:
            held["sketch_size"] = policy.sketch_size
        return held

    def _differences(self, one: Any, other: Any) -> list[tuple[str, Any, Any]]:
        """Return the parameters in which two policies differ, with both values.

        Another function, or no sketch where there is one, stands alone: the others then mean
        something else.
        """
        default = type(self)().get_params()
        a, b = (default | self._params_of(policy) for policy in (one, other))
        names = [name for name in a if a[name] != b[name]]
        if "function" in names or type(one) is not type(other):
            names = ["function" if "function" in names else "sketch"]
        return [(name, a[name], b[name]) for name in names]

    # -- fitting

    def _absorb(self, X: ArrayLike, *, fresh: bool) -> Self:
        before = None if fresh else getattr(self, "_stream", None)
        if before is not None:  # policies of two kinds have no fields in common
            self._validate_params()
            changed = [name for name, _, _ in self._differences(before.policy, self._policy())]
            if changed:
                raise LevsketchStateError(
                    f"{', '.join(changed)} changed between calls to partial_fit; "
                    "call fit to begin anew, or set it back."
                )
        return super()._absorb(X, fresh=fresh)

    @staticmethod
    def _validated(target: Any, X: Any, *, reset: bool, min_rows: int = 0) -> Any:
        if isinstance(X, Batch):
            return checked(target, X, reset=reset, min_rows=min_rows)
        return StreamEstimator._validated(target, X, reset=reset, min_rows=min_rows)

    @staticmethod
    def _remember(target: Any, X: Batch) -> None:
        target._template = template_of(X.keys)

    def _empty_stream(self, policy: Any, X: Any) -> AttentionStream | PolynomialStream:
        if X.part != "both":
            self._check_apart(policy)
            raise LevsketchStateError(
                "begin with partial_fit of at least one key with its value, which tells the "
                "numbers of columns; then either stream may run ahead of the other."
            )
        d, d_v = X.keys.shape[1], X.values.shape[1]
        if isinstance(policy, AttentionPolicy):
            _check_memory(policy, d, d_v)
            known = query_sample(X.queries, checked_scale(policy.scale, d))
            return AttentionStream.empty(policy, d, d_v, known)
        return PolynomialStream.empty(policy, d, d_v)

    def _updated(self, stream: Any, X: Any) -> Any:
        if X.part == "both":
            for rows in X.pieces():
                stream = stream.update(backend_for(None), rows)
            return stream
        self._check_apart(stream.policy)
        if X.part == "keys":
            rows = np.asarray(X.keys, np.float64)
            return stream.update_keys(rows) if len(rows) else stream
        rows = np.asarray(X.values, np.float64)
        return stream.update_values(rows) if len(rows) else stream

    @staticmethod
    def _check_apart(policy: Any) -> None:
        """Refuse keys without values, and values without keys, where they are not sketched."""
        if isinstance(policy, AttentionPolicy) or policy.aligned:
            found = None if isinstance(policy, AttentionPolicy) else policy.sketch
            raise ValueError(
                'keys and values may come apart only if they are sketched: sketch must be "ams", '
                f'"gaussian" or "countsketch", got {found!r}.'
            )

    # -- merging

    def merge(self, other: Self) -> Self:
        """Return a new estimator that has seen the rows of this one, then those of ``other``.

        Models of what is not kept are added and compressed once more: as approximate as one
        stream, and moments (``sketch="exact"``, powers) but for rounding the same. Row numbers of
        ``other`` are shifted by ``n_samples_seen_``; with ``decay``, its rows are the newer
        ones. Sample queries, and the dtype of ``indices_``, are those of this one. Merging with
        an estimator that has seen nothing changes nothing; ``a | b`` is short for ``a.merge(b)``.

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
            If a parameter, or features or their names, or the number of outputs differ. With
            ``sketch`` "ams", "gaussian" or "countsketch" whatever they are: the rows of both
            have the same numbers, so the same random signs; nor if ``max_memory`` was too little
            for monomials as they are. And if the probes of two shards chose models that cannot be
            added; ``residual`` then says which.
        """
        if type(other) is type(self):
            for name, mine, theirs in self._differences(self._policy(), other._policy()):
                raise ValueError(
                    f"cannot merge: {name} is {mine!r} here and {theirs!r} in the other."
                )
        return super().merge(other)

    def _merged(self, mine: Any, other: Any) -> Any:
        if mine.n_outputs != other.n_outputs:
            raise ValueError(
                f"cannot merge: n_outputs_ is {mine.n_outputs} here and {other.n_outputs} in the "
                "other."
            )
        if isinstance(mine, PolynomialStream) and not mine.policy.aligned:
            raise ValueError(
                f"cannot merge: with sketch={mine.policy.sketch!r} the rows of both streams are "
                'numbered from 0 and would share their random signs; use sketch="exact".'
            )
        if _sketched_apart(mine, other):
            raise ValueError(
                f"cannot merge: max_memory={8 * mine.policy.floats} is too little for the "
                f"monomials of degree={mine.policy.degree}, which are sketched about the mean of "
                "the first rows of each stream; raise it, or lower the degree."
            )
        return mine.merge(backend_for(None), other)

    # -- answers

    def _queries(self, stream: Any, X: ArrayLike) -> tuple[FloatArray, np.dtype[Any]]:
        """Return queries with the scale in them, and the dtype of results."""
        rows = StreamEstimator._validated(self, X, reset=False)
        check_finite(rows)
        with np.errstate(over="ignore"):
            Q = np.asarray(rows, np.float64)
        check_finite(Q)  # a long double may be infinite by now
        scale = checked_scale(stream.policy.scale, stream.n_features)
        return scaled_queries(Q, scale), result_dtype(rows.dtype)

    def _answered(self, X: ArrayLike) -> Any:
        """Return outputs (m, d_v) in the library and the dtype that queries ask for."""
        stream = self._fitted_stream()
        Q, dtype = self._queries(stream, X)
        found, beyond = self._outputs(stream, Q)
        self._tell(stream, beyond, len(Q))
        most = np.finfo(dtype).max  # float32 queries may meet values beyond it
        return like(np.clip(found, -most, most).astype(dtype, copy=False), X)

    def _output_blocks(self, stream: Any, Q_blocks: Any) -> Iterator[FloatArray]:
        """Return outputs of queries that stream by: the same bits, in whatever blocks they come."""
        held, beyond, count = np.zeros((0, stream.n_features)), 0, 0
        for block in [Q_blocks] if hasattr(Q_blocks, "shape") else Q_blocks:
            held = np.concatenate([held, self._queries(stream, block)[0]])
            whole = len(held) // _QUERIES * _QUERIES
            if whole:
                found, more = self._outputs(stream, held[:whole])
                held, beyond, count = held[whole:], beyond + more, count + whole
                yield found
        found, more = self._outputs(stream, held)
        yield found
        self._tell(stream, beyond + more, count + len(held))

    @staticmethod
    def _outputs(stream: Any, Q: FloatArray) -> tuple[FloatArray, int]:
        """Return outputs, and how many queries are beyond the range of polynomials."""
        if isinstance(stream, AttentionStream):
            return attention_sketch.outputs(stream, Q), 0
        return polynomial_attention.outputs(stream, Q)

    @staticmethod
    def _tell(stream: Any, beyond: int, count: int) -> None:
        """Warn of queries beyond the range of polynomials."""
        if beyond:
            warn_caller(
                f"{beyond} of {count} queries may have logits that no polynomial of degree "
                f"{stream.policy.degree} follows: their outputs are inside the box of the "
                "values, and nothing more is certified (error_bound tells)."
            )

    # -- files

    def _stream_arrays(self, stream: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        engine = attention_io if isinstance(stream, AttentionStream) else polynomial_io
        meta, arrays = engine.to_arrays(stream)
        return meta | {"kind": type(stream).__name__, "flat": bool(self._flat)}, arrays

    @classmethod
    def _stream_from(cls, meta: Any, arrays: Any) -> Any:
        kinds = {"AttentionStream": attention_io, "PolynomialStream": polynomial_io}
        kind = meta.get("kind") if isinstance(meta, dict) else None
        engine = kinds.get(kind) if isinstance(kind, str) else None
        if engine is None or type(meta.get("flat")) is not bool:
            raise LevsketchFormatError("the state does not say which kind of stream it holds.")
        stream = engine.from_arrays(meta, arrays)
        if meta["flat"] and stream.n_outputs != 1:
            raise LevsketchFormatError("the state is absurd: flat values of several columns.")
        return stream

    def _restore(self, meta: Any) -> None:
        self._flat = meta["flat"]


def _check_memory(policy: AttentionPolicy, d: int, d_v: int) -> None:
    """Refuse a budget in bytes that has no room for the smallest sketch."""
    # frame, mean, box of the values; then moments, or one landmark and a constant trend
    held = 2 * d + 3 * d_v + 1
    if policy.residual in ("closure", "polynomial"):
        held += KeyValueMoments.floats(d, d_v)
        held += QuadraticMoments.floats(d, d_v + 1) if policy.residual == "polynomial" else 0
    else:
        held += d + 2 * (d_v + 1)
    if policy.max_memory is not None and policy.max_memory < 8 * held:
        raise ValueError(
            f"max_memory={policy.max_memory}: the smallest sketch of d = {d} columns of keys and "
            f"{d_v} of values takes {8 * held} bytes with residual={policy.residual!r}."
        )


def _sketched_apart(one: Any, other: Any) -> bool:
    """Return whether two streams of moments have sketched monomials about different centers."""
    if not isinstance(one, PolynomialStream):
        return False
    a, b = one.memory.moments, other.memory.moments
    if a is None or b is None or np.array_equal(a.center, b.center):
        return False
    return any(isinstance(lift, TensorSketch) for lift in a.maps)


def engine_of(stream: AttentionStream | PolynomialStream) -> Any:
    """Return the functions that answer for a kind of stream."""
    return attention_sketch if isinstance(stream, AttentionStream) else polynomial_attention


def kept_rows(stream: AttentionStream | PolynomialStream) -> IntArray:
    """Return the numbers of the rows that are kept as they are, ascending."""
    if isinstance(stream, AttentionStream):
        return np.sort(stream.answering[0].index)
    rows = stream.pending
    if not stream.policy.softmax:  # these are only looked at as moments
        rows = rows[:0]
    counts = rows[:, -1] > 0.0 if stream.policy.aligned else np.ones(len(rows), np.bool_)
    return np.asarray(stream.n_seen - len(rows) + np.flatnonzero(counts), np.int64)
