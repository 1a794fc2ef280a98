"""Rows that stay as they are stored: the numbers, the bits and the memory of their arrays."""

import ml_dtypes
import numpy as np
import pytest

from levsketch.backends import CpuBackend
from levsketch.backends.stored import Bfloat16Rows, StoredRows

BITS = np.random.default_rng(0).integers(0, 0x7F00, (3000, 7), np.uint16)
ARRAY = BITS.view(ml_dtypes.bfloat16).astype(np.float32)


def test_every_bfloat16_number_is_widened_exactly():
    every = np.arange(1 << 16, dtype=np.uint16)[:, None]
    with np.errstate(invalid="ignore"):  # signalling NaN
        expected = every.view(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_array_equal(Bfloat16Rows(every).widened(), expected)
    np.testing.assert_array_equal(np.signbit(Bfloat16Rows(every)), np.signbit(expected))


def test_rows_behave_as_their_array():
    rows = Bfloat16Rows(BITS)
    assert isinstance(rows, StoredRows)
    assert (len(rows), rows.shape, rows.ndim, rows.dtype) == (3000, (3000, 7), 2, np.float32)
    for key in (slice(3, 9), slice(None, None, -2), np.array([5, 1, 5]), slice(0, 0)):
        assert isinstance(rows[key], Bfloat16Rows)
        np.testing.assert_array_equal(np.asarray(rows[key]), ARRAY[key])
    assert np.shares_memory(rows[5:70].bits, BITS)
    assert np.asarray(rows).dtype == np.float64
    for dtype in (np.float32, np.float64):
        for found in (np.asarray(rows, dtype), rows.astype(dtype, copy=False)):
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, ARRAY)
    np.testing.assert_array_equal(2.0 * np.ones(7) * rows, 2.0 * ARRAY.astype(np.float64))


def test_an_index_of_all_leading_axes_gives_one_problem():
    stack = Bfloat16Rows(BITS.reshape(2, 3, 500, 7))
    assert (stack.shape, stack.ndim) == ((2, 3, 500, 7), 4)
    assert stack[1, 2].shape == (500, 7)
    np.testing.assert_array_equal(np.asarray(stack[1, 2]), ARRAY[2500:])


def test_rows_are_passed_on_and_copied_only_where_kernels_could_not_read_them():
    rows, backend = Bfloat16Rows(BITS), CpuBackend()
    assert backend.rows(rows) is rows
    part = rows[10:20]
    assert backend.rows(part) is part
    far = Bfloat16Rows(BITS.T)
    found = backend.rows(far)
    assert found.bits.flags.c_contiguous
    np.testing.assert_array_equal(np.asarray(found), ARRAY.T)
    raw = np.frombuffer(b"x" + BITS[:9].tobytes(), np.uint8)[1:]
    odd = Bfloat16Rows(raw.view(np.uint16).reshape(9, 7))
    assert not odd.bits.flags.aligned
    assert backend.rows(odd).bits.flags.aligned
    np.testing.assert_array_equal(np.asarray(backend.rows(odd)), ARRAY[:9])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_operations_have_the_bits_of_a_single_precision_copy(dtype):
    rng = np.random.default_rng(1)
    K, W = rng.standard_normal((3000, 7)).astype(dtype), np.triu(rng.standard_normal((7, 7)))
    rows = K if dtype is np.float16 else Bfloat16Rows(K.view(np.uint16))
    wide, scale, backend = K.astype(np.float32), rng.uniform(0, 2, 3000), CpuBackend()
    operations = [
        lambda X: backend.block_grams(X, 1024),
        lambda X: backend.block_grams(X, 1024, scale),
        lambda X: backend.whitened_row_norms(X, W, triangular=True),
        lambda X: backend.whitened_block_grams(X, W, 1024),
        lambda X: backend.whitened_block_grams(X, W, 1024, scale, triangular=True),
        lambda X: backend.qr_blocks(X, 1024),
    ]
    for operation in operations:
        assert operation(rows).tobytes() == operation(wide).tobytes()
