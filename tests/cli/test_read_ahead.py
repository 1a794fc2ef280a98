"""Many files as one stream of blocks, in bounded memory, with a thread that always ends."""

import os
import threading
import tracemalloc
from contextlib import closing

import numpy as np
import pytest

from levsketch.cli.exits import DATA, IO_ERROR, CommandError
from levsketch.cli.npy import read_matrix_header
from levsketch.cli.read_ahead import (
    N_BUFFERS,
    Block,
    read_blocks,
    refuse_bad_values,
    rows_per_block,
)


@pytest.fixture
def files(tmp_path):
    """Return the headers of files with 50, 0, 1 and 30 rows, and all rows together."""
    K = np.random.default_rng(0).standard_normal((81, 4))
    for name, part in zip("abcd", np.split(K, [50, 50, 51]), strict=True):
        np.save(tmp_path / f"{name}.npy", part)
    return [read_matrix_header(str(tmp_path / f"{name}.npy")) for name in "abcd"], K


def readers():
    return [t for t in threading.enumerate() if t.name == "read-ahead"]


@pytest.mark.parametrize("block_bytes", [1, 32, 100, 1 << 20])
def test_all_rows_in_order_whatever_the_block_size(files, block_bytes):
    headers, K = files
    blocks = [(b.source, b.first, b.rows.copy()) for b in read_blocks(headers, block_bytes)]
    np.testing.assert_array_equal(np.concatenate([rows for _, _, rows in blocks]), K)
    for source, first, rows in blocks:
        assert 1 <= len(rows) <= max(1, block_bytes // 32)
        np.testing.assert_array_equal(rows, np.load(source.path)[first : first + len(rows)])
    assert readers() == []


def test_large_blocks_hold_whole_blocks_of_the_estimator(files):
    header = files[0][0]
    assert rows_per_block(header, 32 * 5000) == 4096
    assert rows_per_block(header, 32 * 1000) == 1000
    assert rows_per_block(header, 1) == 1


def test_no_more_buffers_than_promised_are_ever_alive(files):
    headers, _ = files
    addresses = {b.rows.__array_interface__["data"][0] for b in read_blocks(headers, 64)}
    assert len(addresses) == N_BUFFERS


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = str(tmp_path / "large.npy")
    np.save(path, np.ones((160_000, 16), np.float32))  # 10 MB
    headers = [read_matrix_header(path)]

    def peak(block_bytes):
        tracemalloc.start()
        try:
            assert sum(len(b.rows) for b in read_blocks(headers, block_bytes)) == 160_000
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(1 << 18) < N_BUFFERS * (1 << 18) + 200_000
    assert peak(1 << 24) > 10_000_000  # what is measured is what is read


def test_closing_early_ends_the_thread(files):
    with closing(read_blocks(files[0], 32)) as blocks:
        next(blocks)
        assert len(readers()) == 1
    assert readers() == []


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: os.truncate(path, 400), "was (truncated|changed) while it was read"),
        (lambda path: os.utime(path, ns=(5, 5)), "was changed while it was read"),
        (os.remove, "No such file"),
    ],
)
def test_harm_to_a_file_while_reading_is_an_error_that_names_it(files, harm, words):
    headers, _ = files
    last = headers[-1].path
    with closing(read_blocks(headers, 32)) as blocks:
        next(blocks)
        harm(last)
        with pytest.raises(CommandError, match=words) as caught:
            list(blocks)
    assert str(caught.value).startswith(f"{last}: ")
    assert readers() == []


def test_a_file_changed_before_its_turn_is_not_read_at_all(files):
    headers, _ = files
    os.utime(headers[-1].path, ns=(5, 5))
    seen = set()
    with closing(read_blocks(headers, 32)) as blocks:
        paths = (block.source.path for block in blocks)
        with pytest.raises(CommandError, match="was changed"):
            seen.update(paths)
    assert seen == {headers[0].path, headers[2].path}


def test_a_file_changed_during_its_turn_is_an_error_at_its_end(files):
    headers, _ = files
    with closing(read_blocks(headers[:1], 32)) as blocks:
        next(blocks)
        os.utime(headers[0].path, ns=(5, 5))
        with pytest.raises(CommandError, match="was changed") as caught:
            list(blocks)
    assert caught.value.code == IO_ERROR


def test_a_file_truncated_under_the_reader_is_an_error(files):
    headers, _ = files
    with closing(read_blocks(headers[:1], 32)) as blocks:
        next(blocks)
        os.truncate(headers[0].path, 128 + 10 * 32)
        with pytest.raises(CommandError, match="was truncated while it was read") as caught:
            list(blocks)
    assert caught.value.code == IO_ERROR


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "infinity")])
@pytest.mark.parametrize("order", ["C", "F"])
def test_bad_values_are_named_by_row_of_the_file(files, value, word, order):
    rows = np.array(np.ones((6, 4), ">f4"), order=order)
    refuse_bad_values(Block(files[0][0], 10, rows))
    rows[4, 2] = value
    rows[5, 0] = np.nan
    with pytest.raises(CommandError, match=f"a.npy: {word} at row 14, column 2 ") as caught:
        refuse_bad_values(Block(files[0][0], 10, rows))
    assert caught.value.code == DATA
