"""Blocks of rows of many files as one stream, the next one read while one is worked on."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np

from levsketch._typing import Rows

from .exits import DATA, NO_INPUT, CommandError
from .npy import Buffer, NpyHeader, check_unchanged, read_rows

# One buffer is worked on while the other is filled; more would only cost memory.
N_BUFFERS = 2
# Whole blocks of the estimator (``block_size(d)``) go through without a copy.
_ALIGNED_ROWS = 1024


class Block(NamedTuple):
    """Some rows of one file; valid until the next block is asked for."""

    source: NpyHeader
    first: int
    rows: Rows


def rows_per_block(header: NpyHeader, block_bytes: int) -> int:
    """Return how many rows of a file are read at a time: one at least."""
    count = max(1, block_bytes // header.row_bytes)
    return count - count % _ALIGNED_ROWS if count > _ALIGNED_ROWS else count


def read_blocks(sources: Sequence[NpyHeader], block_bytes: int) -> Generator[Block, None, None]:
    """Yield the rows of all files in order, in blocks of about ``block_bytes``.

    A thread reads ahead by one block; memory is ``N_BUFFERS`` blocks, allocated
    once. Close the generator to stop the thread early.

    Raises
    ------
    CommandError
        For a file that cannot be read, ends early or was changed meanwhile.
    """
    largest = max(
        (min(s.rows, rows_per_block(s, block_bytes)) * s.row_bytes for s in sources), default=0
    )
    free: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[Block, Buffer] | BaseException | None] = queue.SimpleQueue()
    for _ in range(N_BUFFERS):
        free.put(np.empty(largest, np.uint8))
    reader = threading.Thread(
        target=_read_all, args=(sources, block_bytes, free, full), name="read-ahead", daemon=True
    )
    reader.start()
    try:
        while (item := full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            block, buffer = item
            yield block
            free.put(buffer)
    finally:
        free.put(None)
        reader.join()


def _read_all(
    sources: Sequence[NpyHeader],
    block_bytes: int,
    free: queue.SimpleQueue[Buffer | None],
    full: queue.SimpleQueue[tuple[Block, Buffer] | BaseException | None],
) -> None:
    """Fill free buffers until all files are read, or None comes instead of a buffer."""
    try:
        for source in sources:
            step = rows_per_block(source, block_bytes)
            with _opened(source) as file:
                check_unchanged(file, source)
                for first in range(0, source.rows, step):
                    buffer = free.get()
                    if buffer is None:
                        return
                    count = min(step, source.rows - first)
                    full.put(
                        (
                            Block(source, first, read_rows(file, source, first, count, buffer)),
                            buffer,
                        )
                    )
                check_unchanged(file, source)
        full.put(None)
    except BaseException as error:  # the other thread raises it
        full.put(error)


def _opened(source: NpyHeader) -> io.FileIO:
    try:
        return io.FileIO(source.path)
    except OSError as error:
        raise CommandError(NO_INPUT, f"{source.path}: {error.strerror or error}") from error


def refuse_bad_values(block: Block) -> None:
    """Raise CommandError (code 65) naming the first NaN or infinity of a block, if there is one."""
    if block.rows.dtype.kind != "f":
        return
    finite = np.isfinite(block.rows)
    if finite.all():
        return
    row, column = np.unravel_index(np.argmin(finite), finite.shape)
    kind = "NaN" if np.isnan(block.rows[row, column]) else "infinity"
    raise CommandError(
        DATA,
        f"{block.source.path}: {kind} at row {block.first + int(row)}, column {int(column)} "
        "of this file (rows and columns count from 0)",
    )
