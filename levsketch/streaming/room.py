"""Room for the rows of a stream that do not fill a block yet, shared by its successive states."""

from __future__ import annotations

import threading

import numpy as np

from levsketch._typing import FloatArray, Rows

_CLAIMS = threading.Lock()


class Room:
    """A buffer to which states append in turn, each seeing the rows up to its own end.

    States stay immutable: of two that go on from one state only the first may append in
    place, the other one gets a room of its own.
    """

    __slots__ = ("buffer", "taken")

    def __init__(self, rows: FloatArray, size: int) -> None:
        self.buffer = np.empty((size, rows.shape[1]))
        self.buffer[: len(rows)] = rows
        self.taken = len(rows)

    def append(self, end: int, rows: Rows) -> FloatArray | None:
        """Return the first ``end`` rows and ``rows`` after them; None if others follow there.

        There must be room for them.
        """
        with _CLAIMS:
            if self.taken != end:
                return None
            self.taken = last = end + len(rows)
        self.buffer[end:last] = rows
        return self.buffer[:last]
