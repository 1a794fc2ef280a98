"""Saved states: one checksummed, versioned container of arrays. Never pickle.

Layout, little-endian: 8 bytes of magic, uint32 format version, uint64 length of
the header, the header (JSON, UTF-8, keys sorted), the arrays one after another
in C order, 32 bytes of SHA-256 over all before. The digest finds accidents; it
proves nothing about who wrote the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from levsketch._checks import LevsketchFormatError

MAGIC = b"LEVSKTCH"
VERSION = 1
_FIXED = struct.Struct("<8sIQ")
_DIGEST = 32
_DTYPES = {"<f8": 8, "<i8": 8, "<u8": 8, "|u1": 1, "|b1": 1}


def pack(kind: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Return the container of a state: its kind, JSON metadata and named arrays."""
    table = []
    for name in sorted(arrays):
        array = arrays[name]
        dtype = array.dtype.newbyteorder("<").str
        if dtype not in _DTYPES:
            raise TypeError(f"array {name!r} has dtype {array.dtype}, which no state holds.")
        table.append([name, dtype, list(array.shape)])
    header = json.dumps(
        {"arrays": table, "kind": kind, "meta": dict(meta)}, sort_keys=True, allow_nan=False
    ).encode()
    body = b"".join(
        np.ascontiguousarray(arrays[name]).astype(dtype, copy=False).tobytes()
        for name, dtype, _ in table
    )
    whole = _FIXED.pack(MAGIC, VERSION, len(header)) + header + body
    return whole + hashlib.sha256(whole).digest()


def unpack(data: bytes) -> tuple[str, dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Return kind, metadata and arrays of a container.

    Raises
    ------
    LevsketchFormatError
        If the bytes are not a whole container: wrong magic, newer version,
        truncated, extended, or any bit changed. Nothing is allocated from sizes
        that the bytes do not hold.
    """
    if len(data) < _FIXED.size + _DIGEST:
        raise LevsketchFormatError(f"{len(data)} bytes are too few for a levsketch state.")
    magic, version, header_size = _FIXED.unpack_from(data)
    if magic != MAGIC:
        raise LevsketchFormatError(f"not a levsketch state: it starts with {magic!r}.")
    if version < 1:
        raise LevsketchFormatError(f"format version {version} never existed.")
    if version > VERSION:
        raise LevsketchFormatError(
            f"the state has format version {version}; this levsketch reads up to {VERSION}: "
            "install a newer one."
        )
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise LevsketchFormatError("checksum mismatch: the state is damaged or truncated.")
    start = _FIXED.size + header_size
    if start > len(data) - _DIGEST:
        raise LevsketchFormatError(f"the header claims {header_size} bytes; there are fewer.")
    try:
        header = json.loads(data[_FIXED.size : start])
        kind, meta, table = header["kind"], header["meta"], header["arrays"]
        entries = [(str(name), str(dtype), tuple(shape)) for name, dtype, shape in table]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LevsketchFormatError(f"the header cannot be read: {error}.") from error
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, dtype, shape in entries:
        if name in arrays:
            raise LevsketchFormatError(f"the state has two arrays named {name!r}.")
        sane = len(shape) <= 3 and all(type(s) is int and 0 <= s <= len(data) for s in shape)
        if dtype not in _DTYPES or not sane:
            raise LevsketchFormatError(f"array {name!r} has type {dtype!r} and shape {shape}.")
        stop = start + math.prod(shape) * _DTYPES[dtype]
        if stop > len(data) - _DIGEST:
            raise LevsketchFormatError(f"array {name!r} of shape {shape} is larger than the state.")
        found = np.frombuffer(data[start:stop], dtype).reshape(shape)
        arrays[name] = found.astype(found.dtype.newbyteorder("="), copy=False)
        start = stop
    if start != len(data) - _DIGEST:
        raise LevsketchFormatError(f"{len(data) - _DIGEST - start} bytes follow the last array.")
    if not isinstance(kind, str) or not isinstance(meta, dict):
        raise LevsketchFormatError("the header does not name its kind.")
    return kind, meta, arrays


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``: all of it is there afterwards, or the old file still is.

    Raises OSError as the system words it; no temporary file is left behind.
    """
    target = Path(path)
    name = target.with_name(f".{os.getpid()}-{secrets.token_hex(8)}.tmp")
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must survive a crash, too
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
