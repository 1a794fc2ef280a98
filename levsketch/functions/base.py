"""What every score function is: values, how fast it may grow, and what proves a key small.

One file, one f. A new function is a frozen dataclass that derives from ``ScoreFunction``
(docs/how_to/add_a_function); nothing else in levsketch needs to know it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from levsketch._typing import FloatArray

from .certificates import CappedCertificate, Certificate

REGISTRY: dict[str, type[ScoreFunction]] = {}


@dataclass(frozen=True)
class ScoreFunction:
    """An even function f >= 0, non-decreasing in |x|, with ``f(y)/f(x) <= growth (y/x)^2``.

    For y >= x > 0, and f(0) = 0. A subclass gives a ``name``, ``values``, and its parameters
    as fields of plain numbers; ``growth`` is 1 whenever f is a concave function of x^2.

    Under these conditions the sensitivity of key j,
    ``sup_q f(<q, k_j>) / sum_l f(<q, k_l>)``, is at most ``growth`` times its capped
    sensitivity ``sup_q 1 / sum_l min(1, <q, k_l>^2 / <q, k_j>^2)``, which does not depend on f.
    """

    name: ClassVar[str] = ""
    growth: ClassVar[float] = 1.0
    # f(a x) = |a|^p f(x): queries may be scaled to any length
    homogeneous: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):  # its own: a subclass must not replace what it derives from
            REGISTRY[cls.name] = cls

    def __post_init__(self) -> None:
        """Refuse parameters that are no positive finite numbers."""
        for key, value in asdict(self).items():
            if not (isinstance(value, (int, float)) and 0 < value < np.inf):
                raise ValueError(f"{self.name}: {key} must be a positive number, got {value!r}.")

    def __call__(self, x: Any) -> FloatArray:
        """Return f(x) for an array of any shape, in float64."""
        return self.values(np.abs(np.asarray(x, np.float64)))

    def values(self, x: FloatArray) -> FloatArray:
        """Return f(x) for an array x >= 0."""
        raise AssertionError("a subclass defines values")

    @property
    def certificate(self) -> Certificate:
        """How sums of f are bounded from below by a weighted Gram matrix."""
        return CappedCertificate(self.growth)

    def spec(self) -> list[Any]:
        """Return name and parameters as plain JSON."""
        return [self.name, {key: float(value) for key, value in asdict(self).items()}]


def make_function(spec: Any) -> ScoreFunction:
    """Return the function that ``spec`` names: an instance, a name, or what ``spec()`` gave.

    Raises
    ------
    ValueError
        For an unknown name or a parameter out of range.
    TypeError
        For anything that is not a function, a name or a pair.
    """
    if isinstance(spec, ScoreFunction):
        if spec(0.0) != 0.0:
            raise ValueError(f"function must have f(0) = 0, got {spec!r} with {spec(0.0)}.")
        return spec
    name: Any = spec if isinstance(spec, str) else None
    params: Any = {}
    if isinstance(spec, (list, tuple)) and len(spec) == 2 and isinstance(spec[1], dict):
        name, params = spec
    if not isinstance(name, str):
        raise TypeError(
            f"function must be a name or a ScoreFunction, got {type(spec).__name__} {spec!r}."
        )
    found = REGISTRY.get(name)
    if found is None:
        raise ValueError(f"function must be one of {sorted(REGISTRY)}, got {name!r}.")
    try:
        return make_function(found(**params))
    except (TypeError, ValueError) as error:
        raise ValueError(f"function={spec!r} is not possible: {error}") from error
