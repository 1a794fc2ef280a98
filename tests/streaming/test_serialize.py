"""The container of saved states: whole or refused, whatever happened to its bytes."""

import errno
import hashlib
import json
import os
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levsketch import LevsketchFormatError
from levsketch.streaming import serialize
from levsketch.streaming.serialize import pack, unpack, write_atomically

ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    "b": np.array([-1, 2**62]),
    "c": np.array([2**64 - 1], np.uint64),
    "d": np.array([0, 255], np.uint8),
    "e": np.array([True, False]),
    "f": np.zeros((0, 4)),
    "g": np.array(3.5),
}
META = {"n": 2**80, "x": 0.1, "s": "ümlaut", "none": None, "list": [1, 2]}
DATA = pack("Thing", META, ARRAYS)
SIZE = struct.Struct("<8sIQ").size


def seal(body):
    """Return bytes with a valid digest."""
    return body + hashlib.sha256(body).digest()


def with_header(header, body=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return seal(struct.pack("<8sIQ", b"LEVSKTCH", serialize.VERSION, len(raw)) + raw + body)


def test_what_was_packed_comes_back():
    kind, meta, arrays = unpack(DATA)
    assert kind == "Thing"
    assert meta == META
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        np.testing.assert_array_equal(arrays[name], array)
    assert pack(kind, meta, arrays) == DATA


def test_order_layout_and_byte_order_of_arrays_do_not_change_the_bytes():
    turned = {
        name: array.astype(array.dtype.newbyteorder(">"), order="F")
        for name, array in reversed(ARRAYS.items())
    }
    assert pack("Thing", dict(reversed(META.items())), turned) == DATA


@pytest.mark.parametrize(
    "array", [np.array(["x"]), np.array([1j]), np.array([None]), np.float32([1])]
)
def test_other_types_are_not_packed(array):
    with pytest.raises(TypeError, match="array 'a' has dtype"):
        pack("Thing", {}, {"a": array})


def test_every_truncation_is_refused():
    for size in range(len(DATA)):
        with pytest.raises(LevsketchFormatError):
            unpack(DATA[:size])


def test_every_flipped_bit_is_refused():
    for place in range(len(DATA)):
        for bit in range(8):
            spoilt = bytearray(DATA)
            spoilt[place] ^= 1 << bit
            with pytest.raises(LevsketchFormatError):
                unpack(bytes(spoilt))


@given(st.binary(min_size=1, max_size=40))
def test_bytes_after_the_end_are_refused(more):
    with pytest.raises(LevsketchFormatError):
        unpack(DATA + more)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(LevsketchFormatError):
        unpack(data)


@given(st.binary(max_size=200))
def test_arbitrary_headers_with_a_valid_digest_are_refused(header):
    with pytest.raises(LevsketchFormatError):
        unpack(with_header(header))


def test_the_message_says_what_is_wrong():
    with pytest.raises(LevsketchFormatError, match="too few"):
        unpack(b"LEVSKTCH")
    with pytest.raises(LevsketchFormatError, match=r"not a levsketch state.*PNG"):
        unpack(b"\x89PNG\r\n\x1a\n" + DATA[8:])
    newer = DATA[:8] + struct.pack("<I", serialize.VERSION + 1) + DATA[12:]
    with pytest.raises(LevsketchFormatError, match=f"version {serialize.VERSION + 1}.*install"):
        unpack(newer)
    with pytest.raises(LevsketchFormatError, match="checksum"):
        unpack(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(LevsketchFormatError, match="follow the last array"):
        unpack(seal(DATA[:-32] + b"more"))


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_versions_that_this_one_cannot_read_are_refused_though_the_digest_is_valid(version):
    with pytest.raises(LevsketchFormatError, match="version"):
        unpack(seal(DATA[:8] + struct.pack("<I", version) + DATA[12:-32]))


GOOD = {"kind": "Thing", "meta": {}, "arrays": []}
SHAPES = [
    [2**63],
    [2**64],
    [10**30],
    [-1],
    [-1, -1],
    [2**32, 2**32],
    [0, 2**63],
    [0, 2**40, 2**40],
    [1] * 100,
    [0] * 65,
    [1.0],
    ["1"],
    [None],
    [True],
    [[1]],
    [2**31, 2**31, 2**31, 0],
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["<f8", "|u1"])
def test_headers_that_claim_absurd_sizes_are_refused_before_anything_is_allocated(shape, dtype):
    data = with_header(GOOD | {"arrays": [["a", dtype, shape]]}, bytes(8))
    tracemalloc.start()
    with pytest.raises(LevsketchFormatError):
        unpack(data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_header_lengths_beyond_the_file_are_refused(size):
    whole = bytearray(DATA[:-32])
    struct.pack_into("<Q", whole, 12, size)
    with pytest.raises(LevsketchFormatError):
        unpack(seal(bytes(whole)))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b"{" * 100_000,
        b"[" * 100_000,
        b"9" * 5000,
        GOOD | {"kind": None},
        GOOD | {"kind": 3},
        GOOD | {"kind": ["Thing"]},
        GOOD | {"meta": None},
        GOOD | {"meta": [1]},
        GOOD | {"arrays": None},
        GOOD | {"arrays": 3},
        GOOD | {"arrays": {"a": 1}},
        GOOD | {"arrays": [["a", "<f8"]]},
        GOOD | {"arrays": [["a", "<f8", 3]]},
        GOOD | {"arrays": [["a", "<f8", None]]},
        GOOD | {"arrays": [["a", "O", [0]]]},
        GOOD | {"arrays": [["a", "V8", [0]]]},
        GOOD | {"arrays": [["a", None, [0]]]},
        GOOD | {"arrays": [["a", "<f8", [0]]] * 2},
    ],
    ids=lambda header: repr(header)[:40],
)
def test_headers_of_other_kinds_are_refused(header):
    with pytest.raises(LevsketchFormatError):
        unpack(with_header(header))


def test_a_file_is_written_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "state.lev"
    write_atomically(path, b"old")
    write_atomically(str(path), DATA)
    assert path.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["state.lev"]


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "with space", ".hidden"])
def test_any_name_that_the_system_takes_can_be_written(tmp_path, name):
    write_atomically(tmp_path / name, b"new")
    assert [p.name for p in tmp_path.iterdir()] == [name]


class Failing:
    """A function that fails once it is called for the k-th time."""

    def __init__(self, function, code, k):
        self.function, self.code, self.left = function, code, k

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code))
        return self.function(*args, **kwargs)


class FullDisk:
    """A file on a disk that takes ``room`` bytes; flush is where buffered files notice."""

    def __init__(self, file, room):
        self.file, self.room, self.waiting = file, room, 0

    def write(self, data):
        self.waiting += len(data)
        return len(data)

    def flush(self):
        if self.waiting > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fileno(self):
        return self.file.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, code):
    path = tmp_path / "state.lev"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, Failing(getattr(os, call), code, 0))
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_atomically(path, DATA)
    monkeypatch.undo()
    assert caught.value.errno == code
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.lev"]


def test_a_full_disk_that_shows_only_when_flushed_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "state.lev"
    path.write_bytes(b"old")
    monkeypatch.setattr(
        os, "fdopen", lambda handle, mode, _open=os.fdopen: FullDisk(_open(handle, mode), 100)
    )
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, DATA)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.lev"]


def test_a_failing_directory_sync_leaves_a_whole_file(tmp_path, monkeypatch):
    # after the rename the new file is in place: it must be whole, and the error told
    path = tmp_path / "state.lev"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, errno.EIO, 1))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_atomically(path, DATA)
    monkeypatch.undo()
    assert path.read_bytes() in (b"old", DATA)
    assert [p.name for p in tmp_path.iterdir()] == ["state.lev"]


def test_no_handle_stays_open_when_writing_fails(tmp_path, monkeypatch):
    opened = []
    real_open, real_close = os.open, os.close
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(real_open(*a, **k)) or opened[-1])
    for call, k in (("fsync", 0), ("fsync", 1), ("replace", 0)):
        with monkeypatch.context() as context:
            context.setattr(os, call, Failing(getattr(os, call), errno.EIO, k))
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                write_atomically(tmp_path / "state.lev", DATA)
    monkeypatch.undo()
    for handle in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            real_close(handle)


def test_missing_folders_and_folders_are_refused_as_the_system_words_it(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "x", DATA)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", DATA)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
