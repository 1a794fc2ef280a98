"""set.npz: the selected keys as arrays that anyone can open, and the state they came from.

An uncompressed .npz without pickle. ``state`` holds the estimator's own
checksummed bytes as uint8; everything else can be recomputed from it and is
there for people and other programs.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from levsketch import LeverageKeySelector
from levsketch.streaming import serialize

from .exits import NO_INPUT, CommandError
from .npy import NpyHeader, parse_header
from .output import npz_bytes

SET_VERSION = 1
_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError,
    KeyError, struct.error, OSError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A selector read from a file, and what the file is.

    Attributes
    ----------
    kind : {"set", "state"}
    selector : LeverageKeySelector
    format_version : int
        Of the state inside.
    files : list of (str, int)
        For a set: the input files and the row number at which each begins.
    size : int
        Bytes of the file.
    """

    kind: str
    selector: LeverageKeySelector
    format_version: int
    files: list[tuple[str, int]]
    size: int


def set_bytes(selector: LeverageKeySelector, sources: Sequence[NpyHeader]) -> bytes:
    """Return the bytes of set.npz: the same selection and files, the same bytes."""
    counts = np.array([source.rows for source in sources], np.int64)
    return npz_bytes(
        {
            "indices": selector.indices_,
            "keys": selector.keys_,
            "scores": selector.scores_,
            "guard": selector.guard_,
            "witnesses": selector.witness_queries(),
            "files": np.array([source.path for source in sources], dtype=np.str_),
            "first_rows": np.cumsum(counts) - counts,
            "n_samples_seen": np.int64(selector.n_samples_seen_),
            "certified": np.bool_(selector.certified_),
            "set_version": np.int64(SET_VERSION),
            "state": np.frombuffer(selector.to_bytes(), np.uint8),
        }
    )


def kind_of(path: str) -> str:
    """Return "npz", "state" or "npy" by the first bytes of a file (code 66 for another)."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CommandError(NO_INPUT, f"{path}: is not a regular file")
        with open(path, "rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise CommandError(NO_INPUT, f"{path}: {error.strerror or error}") from error
    for kind, start in (("npz", _ZIP_MAGIC), ("state", serialize.MAGIC), ("npy", b"\x93NUMPY")):
        if magic.startswith(start):
            return kind
    raise CommandError(
        NO_INPUT,
        f"{path}: is no set, no saved state and no .npy file (or its beginning is damaged)",
    )


def load_set(path: str) -> Loaded:
    """Return the selector in a set.npz or in a saved state, checked whole (code 66 else)."""
    kind = kind_of(path)
    try:
        if kind == "npz":
            members = read_members(path, ("state", "files", "first_rows"))
            data = members["state"].tobytes()
            files = [
                (str(name), int(row))
                for name, row in zip(members["files"], members["first_rows"], strict=True)
            ]
        elif kind == "state":
            with open(path, "rb") as file:
                data = file.read()
            files = []
        else:
            raise CommandError(NO_INPUT, f"{path}: is a .npy file; needed is a set or saved state")
        selector = LeverageKeySelector.from_bytes(data)
    except (ValueError, TypeError) as error:  # LevsketchFormatError, or members that disagree
        raise CommandError(NO_INPUT, f"{path}: {error}") from error
    except OSError as error:
        raise CommandError(NO_INPUT, f"{path}: {error.strerror or error}") from error
    version = int.from_bytes(data[8:12], "little")
    name = "set" if kind == "npz" else "state"
    return Loaded(name, selector, version, files, os.path.getsize(path))


def member_headers(path: str) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return dtype and shape of every array of a .npz whose checksums all match (code 66 else)."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            if broken is not None:
                raise ValueError(f"{broken} does not match its checksum")
            found = {}
            for name in archive.namelist():
                with archive.open(name) as file:
                    dtype, shape, _ = parse_header(file)
                found[name.removesuffix(".npy")] = dtype, shape
            return found
    except _ZIP_ERRORS as error:
        raise CommandError(NO_INPUT, f"{path}: damaged .npz: {error}") from error


def read_members(path: str, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Return some small arrays of a set.npz, after checking the whole file (code 66 else)."""
    present = member_headers(path)
    if "state" not in present:
        raise CommandError(NO_INPUT, f"{path}: is a .npz, but no set of keys (it has no state)")
    missing = [name for name in names if name not in present]
    if missing:
        raise CommandError(NO_INPUT, f"{path}: is no whole set: it lacks {', '.join(missing)}")
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array_from(archive, f"{name}.npy") for name in names}
    except _ZIP_ERRORS as error:
        raise CommandError(NO_INPUT, f"{path}: damaged .npz: {error}") from error


def _array_from(archive: zipfile.ZipFile, member: str) -> np.ndarray[Any, Any]:
    """Return an array of a .npz: its size comes from the bytes there are, never from a header."""
    if archive.getinfo(member).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member} is compressed, as no set is")
    data = archive.read(member)
    file = io.BytesIO(data)
    dtype, shape, _ = parse_header(file)
    if dtype.hasobject:
        raise ValueError(f"{member} holds Python objects, which are never unpickled")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
