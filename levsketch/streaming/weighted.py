"""A weighted factor of all rows, from which bounds on sensitivities are read for ever.

The weights of a row are fixed when it arrives, from its value against the rows before it,
so one pass suffices; the certificate (functions/certificates.py) says which weights are
admissible and what they prove. Appending rows lets no bound become invalid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from levsketch._checks import check_finite
from levsketch._typing import BoolArray, FloatArray, Rows
from levsketch.backends import Backend
from levsketch.functions.certificates import ROUNDING, Certificate, among_all
from levsketch.linalg import Whitening, stack_factors, whiten

from .factor import StreamFactor
from .rank import RowSpace

# Damped Lewis steps for rows of which no prefix tells anything: the first block, and one
# that raises the rank. The bounds hold after any number; these bring them within percents.
_STEPS = 14
# Weights are scaled by at most this power of 4 at a time.
_POWERS = 150.0
# A block whose values, cut at 1, sum to more than this times the rank is new to the prefix.
_NOVELTY = 3.0
# The level is kept near one by exact powers of two once it leaves this range.
_RANGE = 1e100
_SUM_ROUNDING = 1.0 + ROUNDING


class Absorbed(NamedTuple):
    """What a run of blocks did: how many went in, and what is known of their rows."""

    weighted: WeightedFactor
    blocks: int
    weights: FloatArray  # v of each row
    bounds: FloatArray  # upper bound on the sensitivity of each row; 1 if none
    rose: BoolArray  # whether the row raised the exact rank
    joint: bool  # whether weights were sought together: then it is time to settle


@dataclass(frozen=True, eq=False)
class WeightedFactor:
    """State of a certificate after some blocks of rows.

    Attributes
    ----------
    certificate : Certificate
    factor : StreamFactor
        Of the rows times the roots of their weights.
    level : float
        Of all rows: for an additive certificate the sum of their parts, else their
        maximum, with values against ``prefix``.
    prefix : Whitening or None
        Of the factor at the last settling.
    prefix_level : float
        Level at the last settling.
    sound : bool
        False once weights had to rest on values that were not certified; additive
        certificates do not mind.
    """

    certificate: Certificate
    factor: StreamFactor
    level: float
    prefix: Whitening | None
    prefix_level: float
    sound: bool = True

    @classmethod
    def empty(cls, certificate: Certificate, d: int, block: int) -> WeightedFactor:
        """Return the state of no rows."""
        return cls(certificate, StreamFactor.empty(d, np.zeros(d), block), 0.0, None, 0.0)

    @property
    def certified(self) -> bool:
        """Whether the bounds of ``bounds_of`` say anything."""
        return self.sound and self.prefix is not None and self.prefix.certified

    def settles(self) -> bool:
        """Whether it is time for a fresh prefix: after 1, 2, 3, 4, 6, 8, 12, ... blocks."""
        n = self.factor.n_blocks
        return n == 1 or n & (n - 1) == 0 or (n % 3 == 0 and (n // 3) & (n // 3 - 1) == 0)

    def run_length(self) -> int:
        """Return how many blocks may be absorbed before the next settling."""
        n = self.factor.n_blocks
        top = 1 << n.bit_length()
        middle = 3 * top // 4
        upcoming = middle if 2 <= n < middle else top
        return min(upcoming - n, self.factor.run_length())

    def absorb(self, backend: Backend, rows: Rows, offset: int) -> Absorbed:
        """Return what the first of the whole blocks ``rows`` bring.

        A block of which the prefix says nothing is taken alone: one that raises the rank, or
        whose rows outgrow it.
        """
        block = self.factor.block_rows
        if self.prefix is not None:
            values = self.prefix.values(backend, rows)
            v = self.certificate.weights(values, self.prefix_level, self.prefix.rank)
            leaves = self.factor.measure(backend, rows, self.prefix, offset, np.sqrt(v))
            new = [
                rises or self._outgrown(values[b * block : (b + 1) * block])
                for b, rises in enumerate(leaves.rising)
            ]
            count = new.index(True) if True in new else len(new)
            if count:
                n = count * block
                v, values = v[:n], values[:n]
                return Absorbed(
                    self._grown(self.factor.absorb(backend, leaves, count), v, values),
                    count,
                    v,
                    self._screened(values),
                    np.zeros(n, np.bool_),
                    False,
                )
        return self.absorb_alone(backend, rows[:block], offset)

    def absorb_alone(self, backend: Backend, rows: Rows, offset: int) -> Absorbed:
        """Return what one block of any length brings, its weights sought together."""
        check_finite(rows, offset=offset)
        space, rose = self.factor.space.absorb(rows)
        if self.prefix is not None and not rose.any():
            values = self.prefix.values(backend, rows)
            if not self._outgrown(values):
                v = self.certificate.weights(values, self.prefix_level, self.prefix.rank)
                factor = self.factor.absorb_short(backend, rows, np.sqrt(v))
                grown = self._grown(factor, v, values)
                return Absorbed(grown, 1, v, self._screened(values), rose, False)
        factor, found, v, values = self._joint(backend, rows, space)
        rule, parts = self.certificate, self.certificate.parts(v, values)
        if rule.additive:
            level, sound = self.level + float(parts.sum()), self.sound
        else:
            old = self._shrunk(self.prefix, self.level, found)
            level = max(old, float(parts.max(initial=0.0)) * _SUM_ROUNDING)
            sound = self.sound and found.certified
        after = replace(self, factor=factor, level=level, prefix=found, sound=sound)
        return Absorbed(after, 1, v, np.ones(len(rows)), rose, True)

    def settled(self, backend: Backend) -> tuple[WeightedFactor, int]:
        """Return the state with a fresh prefix, and the power of 4 its weights were scaled by."""
        prefix, space, _ = self.factor.whitening(backend)
        level, sound = self.level, self.sound
        if not self.certificate.additive:
            level = self._shrunk(self.prefix, level, prefix)
            sound = sound and prefix.certified
        after = replace(
            self,
            factor=replace(self.factor, space=space),
            level=level,
            prefix=prefix,
            prefix_level=level * _SUM_ROUNDING,
            sound=sound,
        )
        if 0 < level < np.inf and not 1 / _RANGE <= level <= _RANGE:
            power = after._power_to(1.0)
            if power:
                again, more = after.times(power).settled(backend)
                return again, power + more
        return after, 0

    def bounds_of(self, backend: Backend, rows: Rows, v: FloatArray) -> FloatArray:
        """Return upper bounds on the sensitivities of rows that are in the factor.

        ``v`` (n,) are their weights. Ones if nothing is certified.
        """
        if not self.certified or self.prefix is None:
            return np.ones(len(rows))
        c = self.prefix.values(backend, rows)
        return np.minimum(self.certificate.shares(c, v, self.prefix_level), 1.0)

    def sums_of(self, backend: Backend, rows: Rows) -> FloatArray:
        """Return bounds u (n,) on ``sup_q f(<q, x>) / sum_l f(<q, k_l>)`` for any rows x.

        Infinite for rows outside the row space, and if nothing is certified.
        """
        if not self.certified or self.prefix is None:
            return np.full(len(rows), np.inf)
        c = self.prefix.values(backend, rows)
        u = self.certificate.bounds(c, self.prefix_level)
        u[self.factor.space.outside(rows)] = np.inf
        return u

    def times(self, power: int) -> WeightedFactor:
        """Return the same proof with all weights multiplied by ``4**power``; not settled."""
        rule, prefix = self.certificate, self.prefix
        if prefix is not None:
            e = prefix.factor.exponents
            moved = np.where(prefix.active, e + power, e)
            prefix = replace(prefix, factor=prefix.factor._replace(exponents=moved))
        return replace(
            self,
            factor=self.factor.times(power),
            level=rule.times(self.level, power),
            prefix=prefix,
            prefix_level=rule.times(self.prefix_level, power),
        )

    def merge(self, backend: Backend, other: WeightedFactor) -> tuple[WeightedFactor, int]:
        """Return the state of both streams, and the power of 4 the weights of ``other`` took.

        Neither must be empty. Any relative scale of the two is valid; one is sought that
        makes the bounds small. The result is settled.
        """
        power = self._balance(backend, other)
        theirs = other.times(power)
        factor = self.factor.merge(backend, theirs.factor)
        prefix, space, _ = factor.whitening(backend)
        sound = self.sound and other.sound
        if self.certificate.additive:
            level = self.level + theirs.level
        else:
            level = max(
                self._shrunk(self.prefix, self.level, prefix),
                self._shrunk(theirs.prefix, theirs.level, prefix),
            )
            sound = sound and prefix.certified
        merged = replace(
            self,
            factor=replace(factor, space=space),
            level=level,
            prefix=prefix,
            prefix_level=level * _SUM_ROUNDING,
            sound=sound,
        )
        return merged, power

    # -- inside

    def _outgrown(self, values: FloatArray) -> bool:
        """Whether rows have more leverage of their own than a few times the rank allows.

        Against a prefix of as many rows like them their values sum to about the rank.
        """
        if self.prefix is None or not self.prefix.certified:
            return False
        return float(np.minimum(values, 1.0).sum()) > _NOVELTY * max(self.prefix.rank, 1)

    def _grown(self, factor: StreamFactor, v: FloatArray, values: FloatArray) -> WeightedFactor:
        """Return the state with a factor that has more rows, weighted against the prefix."""
        rule, block = self.certificate, self.factor.block_rows
        parts, level = rule.parts(v, values), self.level
        if rule.additive:
            for first in range(0, len(parts), block):  # the same sums for any batching
                level += float(parts[first : first + block].sum())
        else:  # weights are chosen not to raise it; this covers their rounding
            level = max(level, float(parts.max(initial=0.0)))
        return replace(self, factor=factor, level=level)

    def _screened(self, values: FloatArray) -> FloatArray:
        """Return bounds on rows that are not in the prefix: u / (1 + u) in their own company."""
        if not self.certified:
            return np.ones(len(values))
        return among_all(self.certificate.bounds(values, self.prefix_level))

    def _joint(
        self, backend: Backend, rows: Rows, space: RowSpace
    ) -> tuple[StreamFactor, Whitening, FloatArray, FloatArray]:
        """Return factor, its whitening, weights and values of a block, by damped Lewis steps."""
        # no row but zeros so far leaves no level to go by
        rule, first = self.certificate, not self.level > 0.0
        if first or self.prefix is None:
            v = np.ones(len(rows))
        else:
            outside = self.factor.space.outside(rows)
            c = self.prefix.values(backend, rows)
            c[outside] = np.inf
            v = rule.weights(c, self.level, space.rank)
            if not rule.additive:  # what has no value yet is in by itself
                v[np.isinf(c)] = 1.0
        level = rule.first_level(space.rank, len(rows)) if first else self.level
        for step in range(_STEPS):
            factor = self.factor.absorb_short(backend, rows, np.sqrt(v))
            found, _, _ = factor.whitening(backend)
            c = found.values(backend, rows)
            if step == _STEPS - 1:
                break
            if rule.additive:
                level = (0.0 if first else self.level) + float(rule.parts(v, c).sum())
            with np.errstate(under="ignore", over="ignore"):
                v = v ** (1.0 - rule.damping) * rule.weights(c, level, space.rank) ** rule.damping
        return factor, found, v, c

    @staticmethod
    def _shrunk_ratio(old: Whitening, new: Whitening) -> float:
        """Return a bound on ``sup_k c_new(k) / c_old(k)`` over the row space of the old one."""
        both = np.where(old.active, old.factor.exponents - new.factor.exponents, 0)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            M = (old.factor.R * np.ldexp(1.0, np.clip(both, -2000, 2000))) @ new.matrix
            if not np.isfinite(M).all():
                return 1.0
            size = float(np.linalg.norm(M, 2)) ** 2 / (old.deflation * new.deflation)
        return min(1.0, size * _SUM_ROUNDING)

    def _shrunk(self, old: Whitening | None, level: float, new: Whitening) -> float:
        """Return a level that held against ``old``, for values against ``new``."""
        if old is None or not (old.certified and new.certified):
            return level
        return self.certificate.shrunk(level, self._shrunk_ratio(old, new))

    def _power_to(self, level: float) -> int:
        """Return the power of 4 that brings the own level nearest to ``level``."""
        unit = np.log2(self.certificate.times(1.0, 1))  # log2 of what one power does
        if unit == 0.0 or not 0 < self.level < np.inf or not 0 < level < np.inf:
            return 0
        return self._within(float(np.log2(level) - np.log2(self.level)) / unit)

    def _within(self, power: float) -> int:
        """Return a power of 4 for the weights that leaves levels and Gram matrices in range."""
        unit = abs(float(np.log2(self.certificate.times(1.0, 1))))
        most = min(_POWERS, 300.0 / unit) if unit else 0.0
        return int(np.rint(np.clip(power, -most, most)))

    def _balance(self, backend: Backend, other: WeightedFactor) -> int:
        """Return the power of 4 for the weights of ``other`` that makes the joint bounds small."""
        rule = self.certificate
        if not rule.additive:
            return other._power_to(self.level)
        unit = np.log2(rule.times(1.0, 1))
        sane = all(0 < level < np.inf for level in (self.level, other.level))
        if unit == 0.0 or not sane:
            return 0
        parts = [f.whitening(backend)[0].factor for f in (self.factor, other.factor)]
        power = 0.0
        for _ in range(12):
            # Lewis weights of the two factors as wholes: alpha = (tr(G^-1 G_e) / S_e)^(p/2)
            k = self._within(power)
            moved = parts[1]._replace(exponents=parts[1].exponents + k)
            joint = whiten(stack_factors(backend, [parts[0], moved]), lambda: 0)
            alphas = []
            for part, level in ((parts[0], self.level), (moved, rule.times(other.level, k))):
                both = np.where(part.R.any(axis=0), part.exponents - joint.factor.exponents, 0)
                with np.errstate(all="ignore"):
                    M = (part.R * np.ldexp(1.0, np.clip(both, -1000, 0))) @ joint.matrix
                    alphas.append(float(np.sum(M * M) / np.float64(level)))
            if not (np.isfinite(alphas).all() and min(alphas) > 0):
                return k
            # alpha^(1-2/p) is what v takes, with unit = 2p / (p-2)
            step = rule.damping * (np.log2(alphas[1]) - np.log2(alphas[0])) / (unit - 2.0)
            if abs(step) < 0.25:
                return k
            power = k + step
        return self._within(power)
