"""Softmax attention over a stream of keys and values: the whole state between blocks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from levsketch._checks import check_finite, check_row_count
from levsketch._typing import FloatArray, Rows
from levsketch.backends import Backend
from levsketch.backends.cpu import serial_blas
from levsketch.functions.softmax import combine

from . import attention_budget
from .attention_frame import Frame
from .attention_model import FAINTEST, Exact, Model, augmented
from .blocks import BlockStream
from .landmarks import Landmarks
from .probes import Probes

_SMALLEST_BLOCK = 512
# Models of the rest are tried side by side for this many blocks, on this many probes.
_TRIAL_BLOCKS = 8
_TRIAL_PROBES = 64
# Laws of queries larger than this, in the unit of a frame, are as good as unknown.
_LARGEST_LAW = 2.0**400


class AttentionPolicy(NamedTuple):
    """What is asked of a stream; fixed from its first row."""

    n_keys: int
    max_memory: int | None
    residual: str
    decay: float
    scale: float | str
    random_state: int

    def floats(self, d: int, d_v: int) -> int:
        """Return the budget in numbers: as many as ``n_keys`` keys and values, or bytes / 8."""
        return self.n_keys * (d + d_v) if self.max_memory is None else max(1, self.max_memory // 8)


class QuerySample(NamedTuple):
    """What is remembered of sample queries: mean (d,), covariance (d, d), and some of them."""

    mean: FloatArray
    covariance: FloatArray
    some: FloatArray


class Memory(NamedTuple):
    """What is remembered of whole blocks, in one frame."""

    frame: Frame
    models: tuple[Model, ...]
    probes: Probes


@dataclass(frozen=True, eq=False)
class AttentionStream(BlockStream):
    """State after some rows [key | value | weight].

    Attributes
    ----------
    n_seen, dtype, pending :
        As in BlockStream; the rows as users passed them, in float64.
    policy : AttentionPolicy
    n_features, n_outputs : int
        Columns d of keys and d_v of values.
    queries : QuerySample or None
        In the units of logits: the scale is in them.
    frame : Frame or None
        None before the first block; then there is no model either.
    models : tuple of Model
        Up to three while they are tried, then one.
    probes : Probes or None

    Notes
    -----
    Whatever the batches, rows are absorbed in blocks of ``block_rows``: the state is the same
    bytes. Before the first block is full, and while the budget holds all rows, answers are exact.
    Rows of weight zero count as rows and are forgotten otherwise, as are those that weigh less than
    `FAINTEST` in the unit of the frame: 2**-890 of the heaviest of the first block.
    """

    policy: AttentionPolicy
    n_features: int
    n_outputs: int
    queries: QuerySample | None
    frame: Frame | None = None
    models: tuple[Model, ...] = ()
    probes: Probes | None = None

    @classmethod
    def empty(
        cls, policy: AttentionPolicy, d: int, d_v: int, queries: QuerySample | None
    ) -> AttentionStream:
        """Return the state of no rows."""
        return cls(0, "", np.zeros((0, d + d_v + 1)), policy, d, d_v, queries)

    @functools.cached_property
    def budget(self) -> attention_budget.Budget:
        """Sizes of what is remembered."""
        d, d_v = self.n_features, self.n_outputs
        return attention_budget.split(self.policy.floats(d, d_v), d, d_v)

    @property
    def block_rows(self) -> int:
        """Rows in a block."""
        rows = self.budget.floats // (self.n_features + self.n_outputs)
        return max(_SMALLEST_BLOCK, -(-rows // 64) * 64)

    def run_length(self) -> int:
        """Return how many blocks may be consumed together."""
        return 1

    @property
    def decided(self) -> bool:
        """Whether one model has been chosen."""
        return len(self.models) == 1

    @property
    def nbytes(self) -> int:
        """Bytes held: models, probes, the law of queries, and rows that do not fill a block."""
        held = sum(model.floats for model in self.models) * 8 + self.pending.nbytes
        if self.probes is not None:
            held += self.probes.queries.nbytes + self.probes.shift.nbytes + self.probes.sums.nbytes
        if self.queries is not None:
            held += sum(part.nbytes for part in self.queries)
        return held + 8 * (self.n_features + self.n_outputs)

    def update(self, backend: Backend, X: Rows) -> AttentionStream:
        """Return the state after the rows ``X``; see `BlockStream.update`.

        Raises
        ------
        OverflowError
            If entries grew by 2**300 since the first block.
        """
        state = super().update(backend, X)
        if state.frame is not None and state.has_weight:
            # rows that wait are looked at now: else their block would fail for good
            fresh = state.pending[max(0, len(state.pending) - len(X)) :]
            state.frame.inside(fresh[fresh[:, -1] > 0.0])
        return state

    def merge(self, backend: Backend, other: AttentionStream) -> AttentionStream:
        """Return the state of this stream followed by ``other``.

        Raises
        ------
        ValueError
            If they do not ask the same, or if the models of their rests do not add up.
        """
        for name in ("policy", "n_features", "n_outputs"):
            asked = getattr(self, name), getattr(other, name)
            if asked[0] != asked[1]:
                raise ValueError(f"{name} must agree to merge: {asked[0]} and {asked[1]}.")
        check_row_count(self.n_seen, other.n_seen)
        if other.n_seen == 0 or self.n_seen == 0:
            return self if other.n_seen == 0 else other
        if other.frame is None:
            return self.update(backend, other.pending)
        with serial_blas():
            left = self._flushed()._aged(other.n_seen - len(other.pending))
            memory = left._memory_with(other._memory_for(other.pending))
            merged = replace(left, pending=other.pending, **memory._asdict())
            return replace(merged, n_seen=self.n_seen + other.n_seen)._judged()

    def _memory_with(self, theirs: Memory) -> Memory:
        """Return what is remembered of these rows and of as many later ones."""
        mine, rows = self._memory_for(self.pending), self.n_seen
        if not any(model.has_weight for model in theirs.models):
            return mine
        if not self.has_weight:
            stay = theirs.frame.move(theirs.frame)
            law = self.law_of_queries(theirs.frame)
            moved = (m.with_law(law).moved(stay, rows) for m in theirs.models)
            return theirs._replace(models=tuple(moved))
        frame = mine.frame.joined(theirs.frame)
        here, there = frame.move(mine.frame), frame.move(theirs.frame)
        law = self.law_of_queries(frame)
        models = [
            (a if here.stays else a.with_law(law).moved(here, 0)).merge(b, there, rows)
            for a, b in self._pairs(theirs.models)
        ]
        probes = mine.probes.moved(here).merge(theirs.probes.moved(there))
        return Memory(frame, tuple(models), probes)

    def _pairs(self, others: tuple[Model, ...]) -> list[tuple[Model, Model]]:
        """Return models of this stream, each with one of the same kind."""
        for alike in (
            lambda a, b: (a.kind, a.order) == (b.kind, b.order),
            lambda a, b: a.kind == b.kind,
        ):
            pairs = [(a, b) for a in self.models for b in others if alike(a, b)]
            if pairs:
                return pairs
        # one has the closure alone, the other an embedding: moments are what both may have
        mine, theirs = self.models[0], others[0]
        if mine.moments is None or theirs.moments is None:
            raise ValueError(
                f"cannot merge: the model of the rest is {mine.kind!r} here and "
                f"{theirs.kind!r} in the other, as their probes chose; fit shards with "
                'residual="embedding" or residual="closure".'
            )
        capacity = max(self.budget.closure_keys, 0)
        return [(mine.as_closure(capacity), theirs.as_closure(capacity))]

    # -- blocks

    def _rows(self, backend: Backend, X: Rows, offset: int) -> FloatArray:
        return np.ascontiguousarray(X, np.float64)

    def _consume(self, backend: Backend, rows: FloatArray, offset: int) -> AttentionStream:
        block = rows[: self.block_rows]
        check_finite(block, offset=offset)
        return self._absorbed(block)._judged()

    def _flushed(self) -> AttentionStream:
        """Return the state with the pending rows absorbed as a short block."""
        rows = self.pending
        if not len(rows):
            return self
        empty = replace(self, pending=rows[:0], n_seen=self.n_seen - len(rows))
        return empty._absorbed(rows)

    def _absorbed(self, rows: FloatArray) -> AttentionStream:
        """Return the state after one block; there are no pending rows."""
        aged = self._aged(len(rows))
        frame, models, probes = aged._memory_for(rows)
        new = self._counted(frame, rows, self.n_seen)
        return replace(
            aged,
            n_seen=self.n_seen + len(rows),
            frame=frame,
            models=tuple(model.add(new) for model in models),
            probes=probes.add(new.keys, augmented(new.values, new.weights)),
        )

    def _counted(self, frame: Frame, rows: FloatArray, first: int) -> Exact:
        """Return rows, from number ``first`` on, that count: later ones make them older."""
        live = np.flatnonzero(rows[:, -1] > 0.0)
        keys, values, weights = frame.inside(rows[live])
        weights = weights * np.power(self.policy.decay, len(rows) - 1.0 - live)
        found = Exact(keys, values, weights, first + live)
        return found.taken(np.flatnonzero(weights >= FAINTEST))

    @property
    def has_weight(self) -> bool:
        """Whether any row of the whole blocks counts."""
        return any(model.has_weight for model in self.models)

    def _aged(self, rows: int) -> Self:
        """Return the state as it counts ``rows`` rows later."""
        if self.policy.decay == 1.0:
            return self
        factor = float(np.power(self.policy.decay, float(rows)))
        return replace(
            self,
            models=tuple(model.times(factor) for model in self.models),
            probes=None if self.probes is None else self.probes.times(factor),
        )

    def _memory_for(self, rows: FloatArray) -> Memory:
        """Return what is remembered; if no row counts yet, the beginnings that a block fixes."""
        if self.frame is None or self.probes is None or (not self.has_weight and rows[:, -1].any()):
            frame = Frame.of(rows, self.n_features)
            models = self._first_models(frame)
            count = max(self.budget.probes, _TRIAL_PROBES if len(models) > 1 else 0)
            keys, _, _ = frame.inside(rows[rows[:, -1] > 0.0])
            asked = self._probe_queries(
                frame, float(np.sum(keys * keys)) / max(1, len(keys)), count
            )
            return Memory(frame, models, Probes.empty(asked, self.n_outputs + 1))
        return Memory(self.frame, self.models, self.probes)

    def _first_models(self, frame: Frame) -> tuple[Model, ...]:
        """Return the models that are tried, of no rows."""
        d, d_v, budget = self.n_features, self.n_outputs, self.budget
        wanted, models = self.policy.residual, []
        if wanted in ("auto", "embedding"):
            law = self.law_of_queries(frame)
            for order, rows in budget.rows.items():
                model = Model.empty(
                    d,
                    d_v,
                    capacity=budget.heavy_keys,
                    threshold=d + 10.0 * np.sqrt(2.0 * d) + 20.0,
                    landmarks=Landmarks.empty(law, rows, order=order, d=d, columns=d_v + 1),
                    certified=budget.certified,
                )
                models.append(model)
        rooms = {"closure": budget.closure_keys, "polynomial": budget.polynomial_keys}
        for kind, room in rooms.items():
            if wanted == kind or (wanted == "auto" and room >= 0):
                model = Model.empty(
                    d,
                    d_v,
                    capacity=max(room, 0),
                    threshold=0.0,
                    landmarks=None,
                    certified=True,
                    polynomial=kind == "polynomial",
                )
                models.append(model)
        return tuple(models)

    def law_of_queries(self, frame: Frame) -> tuple[FloatArray, FloatArray] | None:
        """Return mean and covariance of the sample queries in a frame."""
        if self.queries is None:
            return None
        power = float(np.ldexp(1.0, np.clip(frame.key_power, -500, 500)))
        with np.errstate(over="ignore", under="ignore"):
            mean, covariance = self.queries.mean * power, self.queries.covariance * power**2
        largest = max(np.max(np.abs(mean)), np.sqrt(np.max(np.diagonal(covariance))))
        return (mean, covariance) if largest <= _LARGEST_LAW else None

    def _probe_queries(self, frame: Frame, size: float, count: int) -> FloatArray:
        """Return probes in the frame: some of the sample, or drawn for keys of this mean square."""
        if self.queries is not None:
            return frame.queries(self.queries.some[:count])
        draws = np.random.Generator(np.random.Philox(self.policy.random_state))
        # isotropic, the size a power of two in the units of users: shards of like keys draw the
        # same probes, and these can be merged
        power = -round(float(np.log2(size)) / 2.0) if size > 0 else 0
        return np.ldexp(draws.standard_normal((count, self.n_features)), power)

    def _judged(self) -> AttentionStream:
        """Return the state with the better model and few probes alone, once the trial is over."""
        probes, few = self.probes, self.budget.probes
        over = self.decided or self.n_seen >= _TRIAL_BLOCKS * self.block_rows
        if probes is None or not over or (self.decided and len(probes) <= few):
            return self
        best = self.best
        return self if best is None else replace(self, models=(best,), probes=probes.first(few))

    # -- answers

    @functools.cached_property
    def best(self) -> Model | None:
        """The model that answers: the one with the smaller error on the probes."""
        if len(self.models) < 2:
            return self.models[0] if self.models else None
        errors = [probe_error(model, self.probes) for model in self.models]
        return self.models[int(np.argmin(np.nan_to_num(errors, nan=np.inf)))]

    def waiting(self) -> Exact:
        """Return the pending rows that count, in the frame (of their own, if there is none yet)."""
        return self._counted(self.frame_or_own, self.pending, self.n_seen - len(self.pending))

    @functools.cached_property
    def frame_or_own(self) -> Frame:
        """The frame, or that of the pending rows while no other row counts."""
        if self.frame is not None and (self.has_weight or not self.pending[:, -1].any()):
            return self.frame
        return Frame.of(self.pending, self.n_features)

    @functools.cached_property
    def answering(self) -> tuple[Exact, Model | None]:
        """All keys that are answered exactly, and the model aged by the pending rows."""
        waiting, model = self.waiting(), self.best
        if model is None:
            return waiting, None
        if self.policy.decay != 1.0:
            model = model.times(float(np.power(self.policy.decay, float(len(self.pending)))))
        return model.exact.extended(waiting), model

    def sums(self, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return t (m,) and S (m, d_v + 1) of all rows, for queries in the frame."""
        exact, model = self.answering
        found = exact.sums(Q)
        return found if model is None else combine(*found, *model.rest(Q))


def probe_error(model: Model, probes: Probes | None) -> float:
    """Return the relative Frobenius error of a model's outputs on the probes; nan without any.

    Outputs are relative to the centre of the values in the frame.
    """
    if probes is None or not len(probes) or not model.has_weight:
        return float("nan")
    if not (probes.sums[:, -1] > 0.0).all():
        return float("nan")
    truth = probes.outputs
    _, sums = model.sums(probes.queries)
    error = float(np.linalg.norm(sums[:, :-1] / sums[:, -1:] - truth))
    size = float(np.linalg.norm(truth))
    return error / size if size > 0.0 else error
