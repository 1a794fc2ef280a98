"""Binary counters: sums in a tree that depends on the order of the terms alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from levsketch._typing import FloatArray

T = TypeVar("T")
Counter = tuple[tuple[int, T], ...]


def count_up(counter: Counter[T], more: Counter[T], add: Callable[[T, T], T]) -> Counter[T]:
    """Return a binary counter with the entries ``more`` (level, value) counted in."""
    entries = list(counter)
    for level, value in more:
        while entries and entries[-1][0] <= level:
            held, last = entries.pop()
            value, level = add(last, value), max(held, level) + 1
        entries.append((level, value))
    return tuple(entries)


def count_matrices(counter: Counter[FloatArray], matrices: FloatArray) -> Counter[FloatArray]:
    """Return the counter after each of ``matrices`` (m, d, d) was counted in at level 0.

    The same bits as one at a time: as many as fill a level below the last entry are added up
    in their tree at once. The entries hold no view of ``matrices``.
    """
    done = 0
    while done < len(matrices):
        level = (len(matrices) - done).bit_length() - 1
        if counter:
            level = min(level, counter[-1][0])
        part = matrices[done : done + (1 << level)]
        done += len(part)
        for _ in range(level):
            part = part[0::2] + part[1::2]
        whole = part[0] if level else part[0].copy()
        counter = count_up(counter, ((level, whole),), np.add)
    return counter
