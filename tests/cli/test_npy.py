"""Headers and rows of .npy files, and files that lie about themselves."""

import os
from pathlib import Path

import numpy as np
import pytest

from levsketch.cli.exits import IO_ERROR, NO_INPUT, CommandError
from levsketch.cli.npy import check_unchanged, read_header, read_matrix_header, read_rows

REAL_DTYPES = [
    "<f2",
    ">f2",
    "<f4",
    ">f4",
    "<f8",
    ">f8",
    "<i8",
    ">i4",
    "<i2",
    "i1",
    "u1",
    "<u8",
    "?",
]


@pytest.fixture
def saved(tmp_path):
    def save(array, name="k.npy"):
        np.save(tmp_path / name, array, allow_pickle=True)
        return str(tmp_path / name)

    return save


def problem_with(path):
    with pytest.raises(CommandError) as caught:
        read_matrix_header(path)
    assert caught.value.code == NO_INPUT
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("dtype", REAL_DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_real_dtype_and_order_comes_back_as_saved(saved, dtype, order):
    K = np.asarray(np.arange(35).reshape(7, 5) % 2, dtype=dtype, order=order)
    header = read_matrix_header(saved(K))
    assert (header.rows, header.columns, header.fortran) == (7, 5, order == "F")
    buffer = np.empty(3 * header.row_bytes, np.uint8)
    with open(header.path, "rb", buffering=0) as file:
        for first in (0, 4, 2):
            found = read_rows(file, header, first, 3, buffer)
            assert found.dtype == K.dtype
            np.testing.assert_array_equal(found, K[first : first + 3])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(4), "shape (4,)"),
        (np.zeros((2, 3, 4)), "shape (2, 3, 4)"),
        (np.float64(1.0), "shape ()"),
        (np.zeros((4, 0)), "no columns"),
        (np.zeros((2, 2), complex), "complex"),
        (np.zeros((2, 2), "U3"), "<U3"),
        (np.zeros((2, 2), "M8[s]"), "datetime64"),
        (np.zeros((2, 2), "V2"), "bfloat16"),
        (np.zeros((2, 2), [("a", "f4")]), "structured"),
        (np.zeros((2, 2), object), "never unpickled"),
        (np.zeros((2, 2), np.longdouble), "wider than float64"),
    ],
)
def test_what_is_no_matrix_of_real_numbers_is_refused(saved, array, words):
    assert words in problem_with(saved(array))


@pytest.mark.parametrize("cut", [0, 3, 6, 9, 60, 127, 128, 129, 200])
def test_a_file_cut_anywhere_is_refused(saved, cut):
    path = saved(np.ones((5, 3)))
    assert os.path.getsize(path) > cut
    os.truncate(path, cut)
    assert any(
        word in problem_with(path) for word in ("truncated", "not a .npy", "damaged", "vers")
    )


def test_bytes_after_the_array_are_refused(saved):
    path = saved(np.ones((5, 3)))
    with open(path, "ab") as file:
        file.write(b"x")
    assert "bytes follow the array" in problem_with(path)


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (b"(1000000000, 3)", "truncated"),
        (b"(9223372036854775807, 3)", "truncated"),
        (b"(99999999999999999999999999, 9)", "truncated"),
        (b"(-5, 3)", "impossible shape"),
        (b"(5.0, 3)", "damaged"),
        (b"(True, 15)", "impossible shape"),
        (b"((5, 3),)", "damaged"),
        (b"'abc'", "damaged"),
        (b"(" * 50, "damaged"),
        (b"__import__('os')", "damaged"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(saved, claim, words):
    path = saved(np.ones((5, 3)))
    raw = Path(path).read_bytes()
    at = raw.index(b"(5, 3)")
    header = raw[:at] + claim + raw[at + 6 : 127]
    header = header[:127].rstrip(b" ").ljust(127) + b"\n"
    Path(path).write_bytes(header[:128] + raw[128:])
    assert words in problem_with(path)


def test_paths_that_are_no_files_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in problem_with(str(tmp_path / "fifo"))
    assert "is a directory" in problem_with(str(tmp_path))
    assert "No such file" in problem_with(str(tmp_path / "none"))


def test_header_of_any_shape_can_be_described(saved):
    assert read_header(saved(np.zeros((2, 3, 4)))).shape == (2, 3, 4)


def test_truncation_and_changes_while_reading_are_noticed(saved):
    header = read_matrix_header(saved(np.ones((50, 3))))
    buffer = np.empty(50 * header.row_bytes, np.uint8)
    with open(header.path, "rb", buffering=0) as file:
        check_unchanged(file, header)
        os.utime(header.path, ns=(1, 1))
        with pytest.raises(CommandError, match="was changed while it was read") as caught:
            check_unchanged(file, header)
        assert caught.value.code == IO_ERROR
        os.truncate(header.path, 700)
        with pytest.raises(CommandError, match="was truncated while it was read") as caught:
            read_rows(file, header, 0, 50, buffer)
        assert caught.value.code == IO_ERROR


class Stingy:
    """A file that returns a few bytes at a time, as pipes and network disks may."""

    def __init__(self, file):
        self.file = file
        self.seek = file.seek

    def readinto(self, view):
        return self.file.readinto(view[:7])


@pytest.mark.parametrize("order", ["C", "F"])
def test_short_reads_are_continued(saved, order):
    K = np.asarray(np.random.default_rng(0).standard_normal((20, 3)), order=order)
    header = read_matrix_header(saved(K))
    buffer = np.empty(20 * header.row_bytes, np.uint8)
    with open(header.path, "rb", buffering=0) as file:
        np.testing.assert_array_equal(read_rows(Stingy(file), header, 0, 20, buffer), K)
