"""Errors in one voice: the parameter, the value found, the value allowed, the place."""

from __future__ import annotations

import math
import numbers
import os
import sys
import warnings
from typing import Any

import numpy as np

MAX_ROWS = 2**63 - 1


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


def check_p(p: Any) -> None:
    """Refuse every exponent but 2, the one whose sensitivities are leverage scores."""
    number = check_real("p", p, low=0.0, open_low=True)
    if number != 2.0:
        raise ValueError(f"p must be 2 in this version (leverage scores), got {p!r}.")


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


def check_finite(X: np.ndarray[Any, Any], *, name: str = "X", offset: int = 0) -> None:
    """Raise ValueError naming the first NaN or infinity of ``X`` (n, d) by row and column.

    ``offset`` is the row number, in what the user passed, of the first row of ``X``.
    """
    finite = np.isfinite(X)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    kind = "NaN" if np.isnan(X[row, column]) else "infinity (inf)"
    raise ValueError(
        f"Input {name} contains {kind} at row {offset + int(row)}, column {int(column)}; "
        "every value must be finite."
    )


def not_reduced_text(d: int, eps: float, n: int) -> str:
    """Return the warning for an ``eps`` at which the size bound does not bite."""
    return (
        f"eps={eps:g} promises at most d/eps = {d / eps:.0f} keys, not fewer than the n = {n} "
        "rows given: the universal set may be everything."
    )


def uncertified_text(condition: float, limit: float) -> str:
    """Return the warning for keys whose condition number is beyond certification."""
    return (
        f"the keys have condition number about {condition:.1e} after column scaling; float64 "
        f"certifies up to about {limit:.1e}. The set was enlarged (every key within a factor "
        "of 4 of eps is in it), but is not proved; a small ridge would make it so."
    )
