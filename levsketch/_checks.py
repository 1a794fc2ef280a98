"""Errors in one voice: the parameter, the value found, the value allowed, the place."""

from __future__ import annotations

import math
import numbers
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_ROWS = 2**63 - 1
# Numbers that are looked at together: rows in forms that must be widened for it stay small.
_LOOK = 1 << 18


class LevsketchFormatError(ValueError):
    """A file or byte string is not a whole, valid levsketch state."""


class LevsketchStateError(RuntimeError):
    """A fitted object was used in a way that its state does not allow."""


class CertificationWarning(UserWarning):
    """A result is conservative, but could not be proved in working precision."""


def check_real(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
) -> float:
    """Return ``value`` as a float inside [low, high] ((low, high] with ``open_low``)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__} {value!r}.")
    number = float(value)
    inside = (number > low if open_low else number >= low) and number <= high
    if not inside or math.isnan(number) or math.isinf(number):
        bracket = "(" if open_low else "["
        end = ")" if math.isinf(high) else "]"
        raise ValueError(f"{name} must be in {bracket}{low:g}, {high:g}{end}, got {value!r}.")
    return number


def check_count(name: str, value: Any) -> int:
    """Return ``value`` as an int >= 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__} {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}.")
    return int(value)


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """Return ``value``, one of the strings ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return str(value)


def check_p(p: Any) -> float:
    """Return the exponent of f(x) = |x|^p as a float > 0."""
    return check_real("p", p, low=0.0, open_low=True)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def check_memory_size(name: str, value: Any) -> int:
    """Return a number of bytes >= 1 from an int or a size such as "500MB" or "1GiB"."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]i?|) *b?", value.strip().lower(), re.ASCII)
        number = float(match[1]) * _UNITS[match[2]] if match else 0.0
    else:
        whole = isinstance(value, int) and not isinstance(value, bool)
        number = float(min(value, MAX_ROWS)) if whole else check_real(name, value)
    size = int(min(number, MAX_ROWS))
    if size < 1:
        raise ValueError(f'{name} must be a number of bytes or a size like "1GiB", got {value!r}.')
    return size


def check_row_count(seen: int, more: int) -> None:
    """Refuse streams whose row numbers would not fit int64."""
    if seen + more > MAX_ROWS:
        raise OverflowError(
            f"the stream would have {seen + more} rows; row numbers end at 2**63 - 1."
        )


def warn_caller(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line, outside this package, that led here."""
    package, level, frame = os.path.join(os.path.dirname(__file__), ""), 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def check_finite(X: Any, *, name: str = "X", offset: int = 0) -> None:
    """Raise ValueError naming the first NaN or infinity of ``X`` (n, d) by row and column.

    ``offset`` is the row number, in what the user passed, of the first row of ``X``.
    """
    step = max(1, _LOOK // max(1, X.shape[1]))
    for first in range(0, len(X), step):
        part = X[first : first + step]
        if isinstance(part, np.ndarray):
            finite = np.isfinite(part)
            if finite.all():
                continue
            row, column = np.argwhere(~finite)[0]
            value = part[row, column]
        else:  # rows in a form of their own look themselves
            found = part.not_finite()
            if found is None:
                continue
            row, column, value = found
        kind = "NaN" if np.isnan(value) else "infinity (inf)"
        raise ValueError(
            f"Input {name} contains {kind} at row {offset + first + int(row)}, "
            f"column {int(column)}; every value must be finite."
        )


def is_finite(X: Any) -> bool:
    """Return whether rows (n, d) hold neither NaN nor infinity."""
    try:
        check_finite(X)
    except ValueError:
        return False
    return True


def most_keys(d: int, eps: float, p: float = 2.0) -> float:
    """Return how many keys can reach ``eps`` at most, for f(x) = |x|^p."""
    power = max(1.0, p / 2.0)
    return math.inf if power * math.log(d) > 600.0 else d**power / eps


def not_reduced_text(d: int, eps: float, n: int, p: float = 2.0) -> str:
    """Return the warning for an ``eps`` at which the size bound does not bite."""
    name = "d/eps" if p <= 2.0 else f"d^{p / 2.0:g}/eps"
    most = most_keys(d, eps, p)
    return (
        f"eps={eps:g} promises at most {name} = {most:.0f} keys, not fewer than the n = {n} "
        "rows given: the universal set may be everything."
    )


UNSOUND_TEXT = (
    "the keys have condition numbers that were beyond certification earlier in the stream: the "
    "set was enlarged, but is not proved, nor is the accuracy of estimated normalisers."
)


def uncertified_text(condition: float, limit: float) -> str:
    """Return the warning for keys whose condition number is beyond certification."""
    return (
        f"the keys have condition number about {condition:.1e} after column scaling; float64 "
        f"certifies up to about {limit:.1e}. The set was enlarged (every key within a factor "
        "of 4 of eps is in it), but is not proved; a small ridge would make it so."
    )
