"""Queries whose exact outputs are kept along a stream: an error that is measured, not modelled."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from levsketch._typing import FloatArray
from levsketch.functions.softmax import combine, softmax_sums

from .attention_frame import Move

# Entries of probes beyond this cannot be those of a frame any more, see `Frame.queries`.
_LARGEST = 2.0**500


@dataclass(frozen=True, eq=False)
class Probes:
    """Exact softmax sums of a few queries over all keys seen.

    Attributes
    ----------
    queries : (m, d) array
    shift : (m,) array
        Largest logits; -inf before any key.
    sums : (m, c) array
        ``sum_j exp(<q, k_j> - shift) w_j [v_j, 1]``.
    """

    queries: FloatArray
    shift: FloatArray
    sums: FloatArray

    @classmethod
    def empty(cls, queries: FloatArray, columns: int) -> Probes:
        """Return the sums over no keys."""
        m = len(queries)
        return cls(queries, np.full(m, -np.inf), np.zeros((m, columns)))

    def __len__(self) -> int:
        return len(self.queries)

    def add(self, keys: FloatArray, weights: FloatArray) -> Probes:
        """Return the sums with those over more keys (n, d), weights (n, c).

        Each key must have a weight: the largest logit is that of one that counts.
        """
        found = combine(self.shift, self.sums, *softmax_sums(self.queries, keys, weights))
        return replace(self, shift=found[0], sums=found[1])

    def merge(self, other: Probes) -> Probes:
        """Return the sums over the keys of both, for the first queries that they share.

        ``other`` is in the same frame. No queries are left if any of them differ.
        """
        few = min(len(self), len(other))
        if not np.array_equal(self.queries[:few], other.queries[:few]):
            few = 0
        a, b = self.first(few), other.first(few)
        return Probes(a.queries, *combine(a.shift, a.sums, b.shift, b.sums))

    def moved(self, move: Move) -> Probes:
        """Return the probes in another frame: the same logits but for a constant each."""
        with np.errstate(over="ignore"):
            queries = self.queries / move.key_scale
        if not (np.abs(queries) <= _LARGEST).all():
            return self.first(0)
        sums = move.of_values(self.sums) * move.weight_scale
        return Probes(queries, self.shift + queries @ move.key_shift, sums)

    def times(self, factor: float) -> Probes:
        """Return the sums times a number; sums over no keys once they are zero."""
        sums = self.sums * factor
        return replace(self, sums=sums, shift=np.where(sums[:, -1] > 0.0, self.shift, -np.inf))

    def first(self, count: int) -> Probes:
        """Return the first probes alone."""
        return Probes(*(part[:count].copy() for part in (self.queries, self.shift, self.sums)))

    @property
    def outputs(self) -> FloatArray:
        """The exact attention outputs (m, c - 1); there must be keys."""
        return np.asarray(self.sums[:, :-1] / self.sums[:, -1:])
