"""Binary counters: sums in a tree that depends on the order of the terms alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from levsketch._typing import FloatArray
from levsketch.backends import Backend
from levsketch.linalg import Factor, scale_columns, stack_factors

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


def count_factors(
    backend: Backend, counter: Counter[Factor], factors: list[Factor]
) -> Counter[Factor]:
    """Return the counter of R factors after each of ``factors`` was counted in at level 0.

    The same bits as one at a time, but the QRs of one level of a tree in one call.
    """
    done = 0
    while done < len(factors):
        level = (len(factors) - done).bit_length() - 1
        if counter:
            level = min(level, counter[-1][0])
        part = factors[done : done + (1 << level)]
        done += len(part)
        for _ in range(level):
            part = _stacked_pairs(backend, part)
        counter = count_up(counter, ((level, part[0]),), joiner(backend))
    return counter


def joiner(backend: Backend) -> Callable[[Factor, Factor], Factor]:
    """Return what adds up two factors: that of the one stacked on the other."""
    return lambda older, newer: stack_factors(backend, (older, newer))


def _stacked_pairs(backend: Backend, factors: list[Factor]) -> list[Factor]:
    """Return the factors of each two neighbours stacked on one another."""
    e = np.stack([f.exponents for f in factors])
    e = np.maximum(e[0::2], e[1::2])
    rows = [
        f.R if (f.exponents == common).all() else scale_columns(f.R, f.exponents - common)
        for f, common in zip(factors, np.repeat(e, 2, axis=0), strict=True)
    ]
    found = backend.qr_pairs(np.stack(rows))
    return [Factor(R, common) for R, common in zip(found, e, strict=True)]
