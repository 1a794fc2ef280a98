"""The streaming state of a selector for any f: proofs about all rows, and the rows kept.

True sensitivities never rise when rows are appended, and a bound that was proved for some
of the rows holds for all. So a row is dropped for good once any bound on it is below eps;
its smallest bound so far is what counts. Rows are also kept for the importance sample that
estimates normalisers: row j stays while its own random number is below ``rate * bound_j``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from levsketch._checks import check_row_count
from levsketch._typing import BoolArray, FloatArray, IntArray, Rows
from levsketch.backends import Backend
from levsketch.backends.cpu import CpuBackend, serial_blas
from levsketch.linalg import Whitening
from levsketch.sketches.hashing import row_salt, uniforms
from levsketch.sketches.symmetric import SymmetricPower

from .blocks import BlockStream
from .candidates import best, mask_of
from .factor import block_size
from .lifted import LiftedFactor
from .lp_policy import LpPolicy, sampling_rate
from .pool import Pool
from .weighted import Absorbed, WeightedFactor

# Rows that may reach eps may pile up to this many blocks before bounds are taken afresh.
_CAPACITY_BLOCKS = 8


class Refined(NamedTuple):
    """Rows whose sensitivity was found within intervals when ``n_seen`` rows were there.

    Upper ends hold for ever, lower ends until more rows come. ``queries`` (r, d) attain
    the lower ends.
    """

    numbers: IntArray
    intervals: FloatArray
    queries: FloatArray
    n_seen: int

    @classmethod
    def none(cls, d: int) -> Refined:
        """Return no rows of d columns."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros((0, d)), 0)

    def applied(self, pool: Pool, n_seen: int) -> Pool:
        """Return the pool with the bounds that are known from here."""
        if not len(self.numbers):
            return pool
        _, mine, theirs = np.intersect1d(
            pool.index, self.numbers, assume_unique=True, return_indices=True
        )
        bounds, lower = pool.bounds.copy(), pool.lower.copy()
        bounds[mine] = np.minimum(bounds[mine], self.intervals[theirs, 1])
        if n_seen == self.n_seen:
            lower[mine] = np.minimum(self.intervals[theirs, 0], bounds[mine])
        return replace(pool, bounds=bounds, lower=lower)

    def joined(self, other: Refined, shift: int) -> Refined:
        """Return what stays known of two streams after one another: upper ends."""
        numbers = np.concatenate([self.numbers, other.numbers + shift])
        return Refined(
            numbers,
            np.concatenate([self.intervals, other.intervals]),
            np.concatenate([self.queries, other.queries]),
            0,
        )


@dataclass(frozen=True, eq=False)
class LpSelection:
    """What a stream says at one moment, all rows seen counted.

    ``universal`` and ``selected`` are masks over the rows of ``pool``; ``sample`` holds for
    each of these 1 / (the probability to be in the importance sample), 0 outside it.
    """

    weighted: WeightedFactor
    lifted: LiftedFactor | None
    lift_whitening: Whitening | None
    pool: Pool
    sample: FloatArray
    universal: BoolArray
    selected: BoolArray
    certified: bool
    unselected_bound: float

    @property
    def whitening(self) -> Whitening:
        """Of the weighted rows."""
        found = self.weighted.prefix
        if found is None:
            raise AssertionError("a selection is taken of a settled state")
        return found

    @property
    def rows(self) -> FloatArray:
        """Rows of the pool, in stream order."""
        return self.pool.rows

    @property
    def index(self) -> IntArray:
        """Their numbers."""
        return self.pool.index

    @property
    def upper(self) -> FloatArray:
        """Upper bounds on their sensitivities."""
        return self.pool.bounds

    @property
    def lower(self) -> FloatArray:
        """Lower bounds, 0 where none is known."""
        return self.pool.lower

    @property
    def scores(self) -> FloatArray:
        """What is known best of a sensitivity: attained values, else upper bounds."""
        return np.where(self.pool.lower > 0, self.pool.lower, self.pool.bounds)


@dataclass(frozen=True, eq=False)
class LpStream(BlockStream):
    """State after some rows; memory does not grow with their number.

    Attributes
    ----------
    n_seen, dtype, pending :
        As in BlockStream.
    policy : LpPolicy
    weighted : WeightedFactor
        Bounds for every row, from d x d numbers.
    lifted : LiftedFactor or None
        The normaliser for even p, from D x D numbers.
    pool : Pool
        Rows kept, with the smallest bound that was proved for each.
    refined : Refined
        Intervals found by convex optimisation.
    """

    policy: LpPolicy
    weighted: WeightedFactor
    lifted: LiftedFactor | None
    pool: Pool
    refined: Refined

    @classmethod
    def empty(cls, policy: LpPolicy, d: int) -> LpStream:
        """Return the state of no rows of d columns."""
        lift = policy.lift_for(d)
        block = block_size(d if lift is None else max(d, lift.size))
        certificate = policy.score_function.certificate
        lifted = None
        if lift is not None:
            lifted = LiftedFactor.empty(lift, isinstance(lift, SymmetricPower), block)
        return cls(
            0,
            "",
            np.zeros((0, d)),
            policy,
            WeightedFactor.empty(certificate, d, block),
            lifted,
            Pool.empty(d),
            Refined.none(d),
        )

    @property
    def d(self) -> int:
        """Number of columns."""
        return self.weighted.factor.d

    @property
    def n_features(self) -> int:
        """Number of columns, by the name that estimators use."""
        return self.d

    @property
    def block_rows(self) -> int:
        """Rows in a block."""
        return self.weighted.factor.block_rows

    @property
    def normaliser(self) -> str:
        """How sums over all rows are known: "lift", "tensorsketch", "sample" or "none"."""
        if self.lifted is None:
            return "none" if self.policy.normaliser is None else "sample"
        return "lift" if self.lifted.exact else "tensorsketch"

    @property
    def rate(self) -> float:
        """Sampling rate of the importance sample, 0 where the normaliser needs none."""
        if self.lifted is not None or self.policy.normaliser is None:
            return 0.0
        return sampling_rate(self.policy.delta, self.policy.failure_probability)

    def run_length(self) -> int:
        """Return how many blocks may be consumed together."""
        own = self.weighted.run_length()
        return own if self.lifted is None else min(own, self.lifted.run_length())

    def merge(self, backend: Backend, other: LpStream) -> LpStream:
        """Return the state of this stream followed by ``other``, which must ask the same."""
        check_row_count(self.n_seen, other.n_seen)
        if other.n_seen == 0 or self.n_seen == 0:
            return self if other.n_seen == 0 else other
        with serial_blas():
            left = self._flushed(backend)
            state = replace(
                left,
                n_seen=self.n_seen + other.n_seen,
                dtype=np.result_type(self.dtype, other.dtype).name,
                pending=other.pending,
                refined=self.refined.joined(other.refined, self.n_seen),
            )
            if other.weighted.factor.n_blocks == 0:
                return state._settled(backend)
            weighted, power = left.weighted.merge(backend, other.weighted)
            lifted = left.lifted
            if lifted is not None and other.lifted is not None:
                lifted = lifted.merge(backend, other.lifted)
            pool = left.pool.joined(other.pool.times(power), self.n_seen)
            state = replace(state, weighted=weighted, lifted=lifted, pool=pool)
            return state._pruned(backend)

    @functools.cached_property
    def selection(self) -> LpSelection:
        """The set, its bounds and its certificate, for all rows seen so far."""
        backend = CpuBackend()
        with serial_blas():
            state = self._flushed(backend)._settled(backend)
            pool, whitening = state.pool, None
            if state.lifted is not None:
                whitening = state.lifted.whitening(backend)
                if self.policy.bound == "auto":
                    pool = pool.bounded(state.lifted.bounds_of(backend, whitening, pool.rows))
        pool = self.refined.applied(pool, self.n_seen)
        return select(state, whitening, pool)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays of the state."""
        arrays: list[Any] = [self.pending, *self.pool.arrays(), *self.refined[:3]]
        for part in (self.weighted, self.lifted):
            if part is None:
                continue
            factor = part.factor
            arrays += [G for _, G in factor.grams]
            arrays += [array for _, held in factor.factors for array in held]
            if part.prefix is not None:
                arrays += [*part.prefix.factor, part.prefix.matrix]
        arrays.append(self.weighted.factor.space.basis)
        return int(sum(a.nbytes for a in arrays))

    # -- inside

    def _consume(self, backend: Backend, rows: Rows, offset: int) -> LpStream:
        """Return the state after one or more whole blocks; there must be no pending rows."""
        done = self.weighted.absorb(backend, rows, offset)
        state = self._taken(backend, rows[: done.blocks * self.block_rows], done, self.n_seen)
        crowded = state.pool.heavy(self.policy.eps) > max(
            _CAPACITY_BLOCKS * self.block_rows, 2 * self.pool.kept
        )
        due = done.rose.any() or crowded or state.weighted.settles()
        return state._settled(backend) if due else state

    def _taken(self, backend: Backend, rows: Rows, done: Absorbed, first: int) -> LpStream:
        """Return the state with absorbed rows in the pool, as far as they can matter."""
        policy, pool, n = self.policy, self.pool, len(rows)
        index = first + np.arange(n)
        tickets = np.ones(n)
        if self.rate:
            tickets = uniforms(policy.random_state, index, row_salt(rows))
        hopeful = done.bounds >= np.minimum(policy.eps, pool.floor)
        hopeful |= tickets < self.rate * done.bounds
        hopeful |= done.rose
        lost = float(done.bounds[~hopeful].max(initial=0.0))
        taken = np.flatnonzero(hopeful)
        lifted = self.lifted
        if lifted is not None:
            whole = n == done.blocks * self.block_rows
            lifted = (lifted.absorb if whole else lifted.absorb_short)(backend, rows)
        pool = pool.extended(
            rows[taken],
            index[taken],
            done.weights[taken],
            done.bounds[taken],
            tickets[taken],
            done.rose[taken],
            lost,
        )
        check_memory(policy, pool)
        return replace(self, n_seen=first + n, weighted=done.weighted, lifted=lifted, pool=pool)

    def _settled(self, backend: Backend) -> LpStream:
        """Return the state with fresh bounds, and without the rows that they rule out."""
        if not self.weighted.factor.n_blocks:
            return self
        weighted, power = self.weighted.settled(backend)
        pool = self.pool.times(power)
        return replace(self, weighted=weighted, pool=pool)._pruned(backend)

    def _pruned(self, backend: Backend) -> LpStream:
        policy, weighted = self.policy, self.weighted
        pool = self.pool.bounded(weighted.bounds_of(backend, self.pool.rows, self.pool.weights))
        lifted = self.lifted
        lifting = lifted is not None and policy.bound == "auto" and lifted.factor.settles()
        if lifting and lifted is not None and lifted.prefix is not None:
            pool = pool.bounded(lifted.bounds_of(backend, lifted.prefix, pool.rows))
        order = best(pool.bounds, policy.pool_size)
        top = mask_of(order, len(pool))
        heavy = pool.bounds >= policy.eps
        keep = heavy | top | (pool.tickets < self.rate * pool.bounds)
        sound = pool.sound
        most = max(_CAPACITY_BLOCKS * self.block_rows, 2 * pool.kept)
        if not weighted.certified:
            keep |= pool.rose
            if heavy.sum() > most and weighted.prefix is not None:
                # noise may be heavy everywhere: memory asks for the lightest half to go
                guess = np.minimum(weighted.prefix.scores(backend, pool.rows), 1.0)
                guess[pool.rose | ((pool.bounds < 1.0) & heavy)] = np.inf
                keep &= mask_of(best(guess, most // 2), len(pool)) | np.isinf(guess) | top
                sound = False
        floor = float(pool.bounds[order[-1]]) if len(order) == policy.pool_size else 0.0
        pool = pool.kept_only(keep, floor, int((heavy & keep).sum()), sound, weighted.certified)
        return replace(self, pool=pool)

    def _flushed(self, backend: Backend) -> LpStream:
        """Return the state with the pending rows absorbed as a short block."""
        if not len(self.pending):
            return self
        first = self.n_seen - len(self.pending)
        done = self.weighted.absorb_alone(backend, self.pending, 0)
        empty = replace(self, pending=self.pending[:0])
        return empty._taken(backend, self.pending, done, first)


def select(state: LpStream, lift_whitening: Whitening | None, pool: Pool) -> LpSelection:
    """Return what a pool of bounded rows amounts to: the set, topped up or cut to n_keys."""
    policy, weighted = state.policy, state.weighted
    universal = pool.bounds >= policy.eps
    universal &= pool.bounds > 0
    order = best(pool.bounds, len(pool))
    size = policy.n_keys
    if size is None:
        selected = universal.copy()
        if selected.sum() < policy.min_keys:
            selected[order[: policy.min_keys]] = True
        proved = True
    else:
        selected = mask_of(order[:size], len(pool))
        rival = max(float(pool.bounds[~selected].max(initial=0.0)), pool.dropped_bound)
        proved = bool(pool.lower[selected].min(initial=1.0) >= rival)
    sound = weighted.certified and pool.sound
    out = max(float(pool.bounds[~selected].max(initial=0.0)), pool.dropped_bound)
    return LpSelection(
        weighted,
        state.lifted,
        lift_whitening,
        pool,
        sample_weights(policy.eps, state.rate, state.pool),
        universal,
        selected,
        certified=sound and proved,
        unselected_bound=out if sound else 1.0,
    )


def sample_weights(eps: float, rate: float, pool: Pool) -> FloatArray:
    """Return 1 / (chance to be in the importance sample) for rows of it, else 0.

    Rows that may reach eps are in with certainty. Bounds must not depend on tickets.
    """
    if not rate:
        return np.zeros(len(pool))
    chance = np.where(pool.bounds >= eps, 1.0, np.minimum(1.0, rate * pool.bounds))
    taken = (chance == 1.0) | (pool.tickets < rate * pool.bounds)
    with np.errstate(divide="ignore"):
        return np.where(taken & (chance > 0), 1.0 / chance, 0.0)


def check_memory(policy: LpPolicy, pool: Pool) -> None:
    """Refuse a pool that takes more than the policy allows, saying what fills it."""
    size = sum(a.nbytes for a in pool.arrays())
    if size <= policy.max_memory:
        return
    heavy = pool.heavy(policy.eps)
    raise ValueError(
        f"the rows to keep take {size} bytes, more than max_memory={policy.max_memory}: {heavy} "
        f"rows may reach eps={policy.eps:g}, {len(pool) - heavy} are for the normaliser. Raise "
        "max_memory, eps or delta, or set normaliser=None."
    )
