"""Files that the command writes: refused before the work begins, or written whole."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from levsketch.streaming.serialize import write_atomically

from .exits import CANNOT_CREATE, IO_ERROR, CommandError

# Errors of a device, not of a name: the output could be created, but not filled.
_DEVICE_ERRORS = {errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG}


def check_output(path: str, *, overwrite: bool, inputs: Iterable[str] = ()) -> None:
    """Refuse (code 73) an output that could not be written once the work is done.

    Parameters
    ----------
    path : str
    overwrite : bool
        Whether an existing regular file may be replaced.
    inputs : iterable of str
        Existing files that the output must not be.
    """
    target = Path(path).resolve()
    if target.exists():
        if not stat.S_ISREG(target.stat().st_mode):
            raise CommandError(CANNOT_CREATE, f"{path}: is not a regular file")
        if any(os.path.samefile(target, source) for source in inputs):
            raise CommandError(CANNOT_CREATE, f"{path}: is one of the input files")
        if not overwrite:
            raise CommandError(CANNOT_CREATE, f"{path}: exists; --overwrite replaces it")
    if not target.parent.is_dir():
        raise CommandError(CANNOT_CREATE, f"{path}: there is no folder {target.parent}")
    try:
        # permissions alone would not tell of a read-only file system
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise CommandError(CANNOT_CREATE, f"{path}: {error.strerror or error}") from error


def write_output(path: str, data: bytes) -> None:
    """Write ``data`` whole, or leave what was there; through a link, to what it points to."""
    try:
        write_atomically(Path(path).resolve(), data)
    except OSError as error:
        code = IO_ERROR if error.errno in _DEVICE_ERRORS else CANNOT_CREATE
        raise CommandError(code, f"{path}: {error.strerror or error}") from error


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Return an uncompressed .npz of named arrays: the same arrays, the same bytes."""
    buffer = io.BytesIO()
    # NumPy stamps every member with 1980-01-01, not with the time of day
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def print_facts(facts: Mapping[str, object]) -> None:
    """Print aligned ``name  value`` lines to stdout; long values are never wrapped."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {value}")


def print_json(found: Mapping[str, object]) -> None:
    """Print one JSON object on one line; numbers that JSON does not have must be None by now."""
    print(json.dumps(found, allow_nan=False))


def finite_or_none(value: float) -> float | None:
    """Return a number for JSON, which knows no infinity: None instead."""
    return float(value) if np.isfinite(value) else None


def count_text(number: int, noun: str) -> str:
    """Return "1 key" or "2,000 keys"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_text(size: float) -> str:
    """Return a number of bytes in a readable unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
