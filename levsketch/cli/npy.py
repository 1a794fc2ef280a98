"""Matrices in .npy files, read in blocks of rows by plain reads.

Never by mmap: a mapped file that is truncated meanwhile kills the process with
SIGBUS, a read returns fewer bytes. Nothing is believed of a header that the
size of the file does not confirm, and nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import stat
import tokenize
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from levsketch._typing import Rows

from .exits import IO_ERROR, NO_INPUT, CommandError

Buffer = np.ndarray[Any, np.dtype[np.uint8]]
# What tells one state of a file from another: inode, size, time of the last change.
Stamp = tuple[int, int, int]
# A header that is no header makes NumPy's parser raise any of these.
_PARSE_ERRORS = (
    ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError, KeyError,
)  # fmt: skip


@dataclass(frozen=True)
class NpyHeader:
    """What a whole .npy file says of itself, confirmed by its size.

    Attributes
    ----------
    path : str
    dtype : dtype
    shape : tuple of int
    fortran : bool
        Whether columns, not rows, are contiguous.
    start : int
        Offset of the first entry in bytes.
    stamp : tuple
        By which a later change of the file is noticed.
    """

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int
    stamp: Stamp

    @property
    def rows(self) -> int:
        """Number of rows of a matrix."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Number of columns of a matrix."""
        return self.shape[1]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a matrix."""
        return self.columns * self.dtype.itemsize


def parse_header(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Return dtype, shape and Fortran order from the start of an open .npy file.

    Raises ValueError, in words for users, if there is no such header.
    """
    readers: dict[tuple[int, ...], Callable[[IO[bytes]], Any]] = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }
    if file.read(6) != npy_format.MAGIC_PREFIX:
        raise ValueError("not a .npy file (it does not start with \\x93NUMPY)")
    version = tuple(file.read(2))
    reader = readers.get(version)
    if reader is None:
        raise ValueError(f"has .npy format version {version}, which holds no plain matrix")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers of Python 2 are read as well
            shape, fortran, dtype = reader(file)
    except _PARSE_ERRORS as error:
        raise ValueError("its .npy header is damaged") from error
    if any(type(extent) is not int or extent < 0 for extent in shape):
        raise ValueError(f"its header claims the impossible shape {shape}")
    return dtype, shape, fortran


def read_header(path: str) -> NpyHeader:
    """Return the header of a .npy file, after comparing it with the size of the file.

    Raises
    ------
    CommandError
        With code 66 and one line that names the path: missing, unreadable, not a
        regular file, no header, or fewer or more bytes than the header claims.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):  # opening a FIFO would wait for ever
            what = "a directory" if stat.S_ISDIR(kind) else "not a regular file"
            raise CommandError(NO_INPUT, f"{path}: is {what}")
        with open(path, "rb") as file:
            dtype, shape, fortran = parse_header(file)
            start, found = file.tell(), stamp_of(file)
    except OSError as error:
        raise CommandError(NO_INPUT, f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CommandError(NO_INPUT, f"{path}: {error}") from error
    if dtype.hasobject:
        raise CommandError(
            NO_INPUT,
            f"{path}: holds Python objects (dtype {dtype}), which are never unpickled; "
            "save it with K.astype(np.float64)",
        )
    expected, size = start + math.prod(shape) * dtype.itemsize, found[1]
    if size != expected:
        raise CommandError(
            NO_INPUT,
            f"{path}: has {size} bytes, but its header (shape {shape}, {dtype}) calls for "
            f"{expected}: {'truncated' if size < expected else 'bytes follow the array'}",
        )
    return NpyHeader(path, dtype, shape, fortran, start, found)


def matrix_problem(header: NpyHeader) -> str | None:
    """Return why the file is no matrix of real numbers that can be read, or None."""
    dtype = header.dtype
    if len(header.shape) != 2:
        return f"has shape {header.shape}; needed is a matrix (rows, columns)"
    if header.columns == 0:
        return f"has shape {header.shape}: no columns"
    if dtype.names is not None:
        return (
            f"has the structured dtype {dtype}; convert it with "
            "numpy.lib.recfunctions.structured_to_unstructured"
        )
    if dtype.kind == "V":
        return f"has dtype {dtype} (bfloat16?); save it with K.astype(np.float32)"
    if dtype.kind == "c":
        return f"has complex dtype {dtype}; needed are real numbers"
    if dtype.kind not in "fiub":
        return f"has dtype {dtype}; needed are real numbers"
    if dtype.itemsize > 8:
        return f"has dtype {dtype}, wider than float64; save it with K.astype(np.float64)"
    return None


def read_matrix_header(path: str) -> NpyHeader:
    """Return the header of a .npy file that is a matrix of real numbers (error code 66 else)."""
    header = read_header(path)
    problem = matrix_problem(header)
    if problem is not None:
        raise CommandError(NO_INPUT, f"{path}: {problem}")
    return header


def stamp_of(file: IO[bytes]) -> Stamp:
    """Return the stamp of an open file."""
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_unchanged(file: IO[bytes], header: NpyHeader) -> None:
    """Refuse (code 74) a file that is not any more what its header was checked against."""
    if stamp_of(file) != header.stamp:
        raise CommandError(IO_ERROR, f"{header.path}: was changed while it was read")


def read_rows(file: IO[bytes], header: NpyHeader, first: int, count: int, buffer: Buffer) -> Rows:
    """Return rows ``first`` to ``first + count`` of a matrix, as a view into ``buffer``.

    Parameters
    ----------
    file : unbuffered binary file
    header : NpyHeader
    first, count : int
    buffer : uint8 array
        At least ``count * header.row_bytes`` long.

    Raises
    ------
    CommandError
        With code 74 if the file cannot be read or ends early.
    """
    size, width = header.dtype.itemsize, header.columns
    try:
        if not header.fortran:
            file.seek(header.start + first * header.row_bytes)
            _fill(file, header, buffer[: count * header.row_bytes])
        else:
            for column in range(width):
                file.seek(header.start + (column * header.rows + first) * size)
                _fill(file, header, buffer[column * count * size : (column + 1) * count * size])
    except OSError as error:
        raise CommandError(IO_ERROR, f"{header.path}: {error.strerror or error}") from error
    flat = buffer[: count * header.row_bytes].view(header.dtype)
    return flat.reshape(width, count).T if header.fortran else flat.reshape(count, width)


def _fill(file: IO[bytes], header: NpyHeader, part: Buffer) -> None:
    """Read until ``part`` is full: a single read may return fewer bytes than there are."""
    view, done = memoryview(part), 0
    while done < len(view):
        got = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise CommandError(IO_ERROR, f"{header.path}: was truncated while it was read")
        done += got
