"""What is asked of a stream of keys for any f, and what that costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from levsketch.functions import Power, ScoreFunction, make_function
from levsketch.sketches.symmetric import SymmetricPower
from levsketch.sketches.tensorsketch import TensorSketch

# Rows beyond n_keys and min_keys that stay in the pool, as for leverage scores.
_SPARE = 16
# normaliser="auto" lifts up to this many columns: beyond, a pass costs more than a thousand
# times a leverage pass.
LIFT_COLUMNS = 1000
# Matrices of a lifted factor: binary counters of up to 24 levels, and room to add them up.
_LIFT_COPIES = 28
# Monomials of a higher degree have no digits left, and their number of terms no end.
HIGHEST_DEGREE = 20
# A sampling rate at which every row is in.
_ALL = 1e200


class LpPolicy(NamedTuple):
    """What is asked of a stream, by the names of the estimator; fixed from its first row.

    ``function`` is a spec (``ScoreFunction.spec``) or None for the power p; ``max_memory``
    is in bytes.
    """

    p: float
    eps: float
    function: Any
    bound: str
    refine: bool
    delta: float
    failure_probability: float
    normaliser: str | None
    sketch_size: int
    max_memory: int
    n_keys: int | None
    min_keys: int
    random_state: int

    @property
    def pool_size(self) -> int:
        """How many of the best rows are kept besides those with a bound >= eps."""
        return 2 * max(self.min_keys, self.n_keys or 0) + _SPARE

    @property
    def score_function(self) -> ScoreFunction:
        """The function f."""
        return Power(self.p) if self.function is None else make_function(self.function)

    def check_types(self) -> None:
        """Refuse, by TypeError, fields whose types no estimator would have left here."""
        kinds = {
            float: (self.p, self.eps, self.delta, self.failure_probability),
            int: (self.sketch_size, self.max_memory, self.min_keys, self.random_state),
            bool: (self.refine,),
            str: (self.bound,),
        }
        wrong = [v for kind, values in kinds.items() for v in values if type(v) is not kind]
        if wrong or not (self.normaliser is None or type(self.normaliser) is str):
            raise TypeError(f"a parameter has an impossible value: {(wrong or self.normaliser)!r}")
        if not (0.0 < self.p < math.inf and self.sketch_size > 0 and self.random_state >= 0):
            raise TypeError("a parameter is out of range")

    def check(self) -> None:
        """Refuse a combination that asks for what does not exist."""
        if self.lift_degree > HIGHEST_DEGREE and self.normaliser in ("lift", "tensorsketch"):
            raise ValueError(
                f"p must be at most {2 * HIGHEST_DEGREE} for normaliser={self.normaliser!r}, got "
                f"{self.p:g}; use 'sample'."
            )
        if self.normaliser in ("lift", "tensorsketch") and not self.lift_degree:
            what = f"p={self.p:g}" if self.function is None else f"function={self.function[0]!r}"
            raise ValueError(
                f"normaliser={self.normaliser!r} needs an even p, got {what}; "
                "use 'sample' or 'auto'."
            )
        if self.refine and (self.function is not None or self.p < 1.0):
            raise ValueError(
                "refine=True needs f(x) = |x|^p with p >= 1, where sensitivities are convex "
                f"problems, got p={self.p:g}, function={self.function!r}."
            )

    @property
    def lift_degree(self) -> int:
        """p/2 where that is a whole number, else 0: there the normaliser is a polynomial."""
        even = self.function is None and self.p % 2.0 == 0.0
        return int(self.p // 2.0) if even else 0

    def lift_for(self, d: int) -> SymmetricPower | TensorSketch | None:
        """Return the map whose factor gives the normaliser of rows of d columns, if any.

        Raises ValueError, with the estimate, if it takes more than ``max_memory``.
        """
        if not self.lift_degree or self.normaliser in ("sample", None):
            return None
        if self.normaliser == "tensorsketch":
            check_lift_memory(self.sketch_size, self.max_memory, "sketch_size")
            return TensorSketch.make(d, self.lift_degree, self.sketch_size, self.random_state)
        lift = SymmetricPower(d, self.lift_degree)
        if self.normaliser == "auto" and (
            self.lift_degree > HIGHEST_DEGREE or lift.size > LIFT_COLUMNS
        ):
            return None
        check_lift_memory(lift.size, self.max_memory, f"d = {d} and p = {self.p:g}")
        return lift


def sampling_rate(delta: float, failure: float) -> float:
    """Return rows per unit of total sensitivity for ``1 +- delta``, except with chance ``failure``.

    Row l is in with probability ``min(1, rate * bound_l)`` and weighs the inverse of that. Of
    the normaliser Z of a query, no row adds more than ``Z / rate`` to the estimate, and the
    variance is at most ``Z^2 / rate``: Bernstein's inequality gives the rate.
    """
    if delta < 1e-100:
        return _ALL
    return min(2.0 * (1.0 + delta / 3.0) * math.log(2.0 / failure) / delta**2, _ALL)


def lift_bytes(size: int) -> int:
    """Return what a factor of ``size`` columns takes after 10^11 rows, at work."""
    return 8 * size * size * _LIFT_COPIES


def check_lift_memory(size: int, limit: int, what: str) -> None:
    """Refuse a factor of lifted rows that would take more than ``limit`` bytes."""
    need = lift_bytes(size)
    if need > limit:
        raise ValueError(
            f"the factor of lifted rows has {size} columns for {what} and may take {need} bytes, "
            f"more than max_memory={limit}; use normaliser='sample' or 'tensorsketch', or raise "
            "max_memory."
        )
