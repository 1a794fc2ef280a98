"""The streaming state of a selector for any f: proofs about all rows, and the rows kept.

True sensitivities never rise when rows are appended, and a bound that was proved for some
of the rows holds for all. So a row is dropped for good once any bound on it is below eps;
its smallest bound so far is what counts. Rows are also kept for the importance sample that
estimates normalisers: row j stays while its own random number is below ``rate * bound_j``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from levsketch._checks import check_row_count
from levsketch._typing import Rows
from levsketch.backends import Backend
from levsketch.backends.cpu import CpuBackend, serial_blas
from levsketch.sketches.hashing import row_salt, uniforms
from levsketch.sketches.symmetric import SymmetricPower

from .blocks import BlockStream
from .candidates import best, mask_of
from .factor import block_size
from .lifted import LiftedFactor
from .lp_policy import LpPolicy, sampling_rate
from .lp_selection import LpSelection, Refined, sample_weights, select
from .pool import NO_FLOOR, Pool
from .weighted import Absorbed, WeightedFactor

# Rows that may reach eps may pile up to this many blocks before bounds are taken afresh.
_CAPACITY_BLOCKS = 8


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
        # no more than can come before the pool is crowded: that is asked at every block
        room = (self._crowd - self.pool.heavy(self.policy.eps)) // self.block_rows
        own = min(self.weighted.run_length(), max(1, room))
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
            lifted = left.lifted
            if lifted is not None and other.lifted is not None:
                lifted = lifted.merge(backend, other.lifted)
            if other.weighted.factor.n_blocks == 0:
                return replace(state, lifted=lifted)._settled(backend)
            weighted, power = left.weighted.merge(backend, other.weighted)
            pool = left.pool.joined(other.pool.times(power), self.n_seen)
            state = replace(state, weighted=weighted, lifted=lifted, pool=pool)._pruned(backend)
            check_memory(self.policy, state.pool)
            return state

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
        sample = sample_weights(self.policy.eps, self.rate, state.pool)
        pool = self.refined.applied(pool, self.n_seen)
        return select(self.policy, state.weighted, state.lifted, whitening, sample, pool)

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

    @property
    def _crowd(self) -> int:
        """How many rows that may reach eps can pile up before bounds are taken afresh.

        Without certified bounds all rows may, so their number says nothing.
        """
        least = _CAPACITY_BLOCKS * self.block_rows
        return max(least, 2 * self.pool.kept) if self.weighted.certified else least

    def _consume(self, backend: Backend, rows: Rows, offset: int) -> LpStream:
        """Return the state after one or more whole blocks; there must be no pending rows."""
        done = self.weighted.absorb(backend, rows, offset)
        state = self._taken(backend, rows[: done.blocks * self.block_rows], done, self.n_seen)
        crowded = state.pool.heavy(self.policy.eps) > self._crowd
        # the rows that wait for their block are looked at, but not yet kept
        check_memory(self.policy, state.pool)
        due = done.joint or crowded or state.weighted.settles()
        return state._settled(backend) if due else state

    def _taken(self, backend: Backend, rows: Rows, done: Absorbed, first: int) -> LpStream:
        """Return the state with absorbed rows in the pool, as far as they can matter."""
        policy, pool, n = self.policy, self.pool, len(rows)
        index = first + np.arange(n)
        tickets = np.ones(n)
        if self.rate:
            tickets = uniforms(policy.random_state, index, row_salt(rows))
        # among equal bounds earlier rows are better: there may be very many at one level
        hopeful = (done.bounds >= policy.eps) | (done.bounds > pool.floor)
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
        most = self._crowd
        if not weighted.certified:
            keep |= pool.rose
            if heavy.sum() > most and weighted.prefix is not None:
                # noise may be heavy everywhere: memory asks for the lightest half to go
                guess = np.minimum(weighted.prefix.scores(backend, pool.rows), 1.0)
                guess[pool.rose | ((pool.bounds < 1.0) & heavy)] = np.inf
                keep &= mask_of(best(guess, most // 2), len(pool)) | np.isinf(guess) | top
                sound = False
        floor = float(pool.bounds[order[-1]]) if len(order) == policy.pool_size else NO_FLOOR
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
