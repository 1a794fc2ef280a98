"""Plug-in: one file, one f of f(<q, k>)."""

from .base import REGISTRY, ScoreFunction, make_function
from .certificates import Certificate
from .huber import Huber
from .power import Power
from .tukey import Tukey

__all__ = [
    "REGISTRY",
    "Certificate",
    "Huber",
    "Power",
    "ScoreFunction",
    "Tukey",
    "make_function",
]
