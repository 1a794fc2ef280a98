"""Outputs: refused before the work, or written whole."""

import errno
import os

import pytest

from levsketch.cli import output
from levsketch.cli.exits import CANNOT_CREATE, IO_ERROR, CommandError


def refusal(path, **options):
    options.setdefault("overwrite", False)
    with pytest.raises(CommandError) as caught:
        output.check_output(str(path), **options)
    assert caught.value.code == CANNOT_CREATE
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_an_existing_file_needs_leave(tmp_path):
    path = tmp_path / "o.npz"
    output.check_output(str(path), overwrite=False)
    path.write_bytes(b"old")
    assert "--overwrite" in refusal(path)
    output.check_output(str(path), overwrite=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["o.npz"]


def test_what_can_never_be_replaced(tmp_path):
    (tmp_path / "in.npy").write_bytes(b"keys")
    (tmp_path / "link").symlink_to(tmp_path / "in.npy")
    for name in ("in.npy", "link"):
        text = refusal(tmp_path / name, overwrite=True, inputs=[str(tmp_path / "in.npy")])
        assert "one of the input files" in text
    assert "not a regular file" in refusal(tmp_path, overwrite=True)
    assert "not a regular file" in refusal("/dev/null", overwrite=True)


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    assert "no folder" in refusal(tmp_path / "none" / "o.npz")

    def read_only(**kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(output.tempfile, "TemporaryFile", read_only)
    assert "Read-only file system" in refusal(tmp_path / "o.npz")


def test_writing_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    output.write_output(str(tmp_path / "link"), b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, IO_ERROR), (errno.EIO, IO_ERROR), (errno.EACCES, 73)]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, number, code):
    path = tmp_path / "o.npz"
    path.write_bytes(b"old")

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CommandError, match=r"o\.npz: ") as caught:
        output.write_output(str(path), b"new")
    assert caught.value.code == code
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["o.npz"]


def test_sizes_and_counts_read_well():
    assert [output.size_text(n) for n in (0, 1023, 1536, 5 << 40)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "5.0 TiB",
    ]
    assert output.count_text(1, "key") == "1 key"
    assert output.count_text(2000, "key") == "2,000 keys"
    assert output.finite_or_none(float("inf")) is None
