"""One law for every backend: the array-API fallback and the overrides agree to rounding."""

import numpy as np
import pytest
from foreign import LIBRARIES, host
from hypothesis import given
from hypothesis import strategies as st
from oracles import U

from levsketch.backends import Backend, CpuBackend, backend_for

BACKENDS = [Backend(), CpuBackend()]
DTYPES = [np.float64, np.float32]


def rows(n, d, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d", "block"), [(1, 1, 1), (5, 3, 2), (100, 7, 30), (64, 16, 64)])
def test_block_grams_agree(n, d, block, dtype):
    K = rows(n, d, dtype)
    expected = [
        K[i : i + block].astype(np.float64).T @ K[i : i + block].astype(np.float64)
        for i in range(0, n, block)
    ]
    for backend in BACKENDS:
        found = np.asarray(backend.block_grams(K, block))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=4 * n * U * np.square(K).sum())
        scale = np.linspace(0.0, 2.0, n)
        weighted = np.asarray(backend.block_grams(K, block, scale))
        again = np.asarray(backend.block_grams(K.astype(np.float64) * scale[:, None], block))
        np.testing.assert_allclose(weighted, again, rtol=0, atol=16 * n * U * np.square(K).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d", "c"), [(1, 1, 1), (50, 5, 5), (50, 5, 2), (3, 17, 17)])
def test_whitened_norms_agree(n, d, c, dtype):
    K, W = rows(n, d, dtype), rows(d, c, seed=1)
    for triangular in (False, True)[: 1 + (d == c)]:
        V = np.triu(W) if triangular else W
        expected = np.square(K.astype(np.float64) @ V).sum(axis=1)
        for backend in BACKENDS:
            found = np.asarray(backend.whitened_row_norms(K, V, triangular=triangular))
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d", "block"), [(1, 4, 1), (10, 4, 3), (100, 7, 50), (7, 7, 7)])
def test_qr_factors_agree_with_diagonals_that_are_not_negative(n, d, block, dtype):
    K = rows(n, d, dtype)
    found = [np.asarray(backend.qr_blocks(K, block)) for backend in BACKENDS]
    for factors in found:
        assert factors.shape == (-(-n // block), d, d)
        assert (np.diagonal(factors, axis1=1, axis2=2) >= 0).all()
        assert not np.tril(factors, -1).any()
        for i, R in enumerate(factors):
            part = K[i * block : (i + 1) * block].astype(np.float64)
            np.testing.assert_allclose(R.T @ R, part.T @ part, rtol=0, atol=1e-12 * n * d)


def test_no_rows_give_no_blocks_and_no_norms():
    cpu = CpuBackend()
    assert cpu.block_grams(np.zeros((0, 3)), 5).shape == (0, 3, 3)
    assert cpu.whitened_row_norms(np.zeros((0, 3)), np.eye(3)).shape == (0,)
    np.testing.assert_array_equal(cpu.whitened_row_norms(np.ones((4, 3)), np.zeros((3, 0))), 0.0)


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_fallback_works_in_every_library(name):
    convert = LIBRARIES[name]
    K, W = rows(20, 4), rows(4, 4, seed=2)
    fallback, cpu = Backend(), CpuBackend()
    for dtype in DTYPES:
        X = convert(K.astype(dtype))
        for found, expected in (
            (fallback.block_grams(X, 6), cpu.block_grams(K.astype(dtype), 6)),
            (fallback.qr_blocks(X, 6), cpu.qr_blocks(K.astype(dtype), 6)),
            (
                fallback.whitened_row_norms(X, convert(W)),
                cpu.whitened_row_norms(K.astype(dtype), W),
            ),
        ):
            assert type(found) is type(X)
            np.testing.assert_allclose(host(found), expected, rtol=1e-10, atol=1e-12)
        assert fallback.rows(X) is X
        assert fallback.rows(convert(np.ones((2, 2), np.int64))).dtype == convert(K).dtype


@given(
    st.sampled_from(
        [np.float16, np.float32, np.float64, np.int8, np.uint64, np.bool_, ">f4", "<f8"]
    )
)
def test_rows_are_exact_native_aligned_and_not_copied_without_need(dtype):
    X = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    found = CpuBackend().rows(X)
    expected = X.dtype.newbyteorder("=") if X.dtype.kind == "f" else np.float64
    assert found.dtype == expected
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.flags.aligned
    np.testing.assert_array_equal(found, X.astype(np.float64))
    assert (found is X) == (X.dtype == expected)


def test_every_array_has_a_backend():
    for X in (None, np.ones(3), [1.0], "x"):
        assert isinstance(backend_for(X), CpuBackend)
