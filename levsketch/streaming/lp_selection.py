"""What a stream of keys for any f says at one moment: the set, and what is known of each key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from levsketch._typing import BoolArray, FloatArray, IntArray
from levsketch.linalg import Whitening

from .candidates import best, mask_of
from .lifted import LiftedFactor
from .lp_policy import LpPolicy
from .pool import Pool
from .weighted import WeightedFactor


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

    def with_pool(self, policy: LpPolicy, pool: Pool) -> LpSelection:
        """Return what is said once more is known of the same rows."""
        return select(policy, self.weighted, self.lifted, self.lift_whitening, self.sample, pool)

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


def select(
    policy: LpPolicy,
    weighted: WeightedFactor,
    lifted: LiftedFactor | None,
    lift_whitening: Whitening | None,
    sample: FloatArray,
    pool: Pool,
) -> LpSelection:
    """Return what a pool of bounded rows amounts to: the set, topped up or cut to n_keys."""
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
        lifted,
        lift_whitening,
        pool,
        sample,
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
