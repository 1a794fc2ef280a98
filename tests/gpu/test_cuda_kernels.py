"""CUDA kernels by themselves: within their error model, with the same bytes each time."""

import numpy as np
import pytest

from levsketch.backends import cuda_kernels as kernels
from levsketch.backends.stored import Bfloat16Rows

TYPES = ["bfloat16", "float16", "float32", "float64"]
SHAPES = [(1, 64), (7, 3), (63, 17), (4097, 1), (4097, 96), (4097, 128), (333, 128), (5000, 200)]
U = 2.0**-53
STEP = 10 * 2.0**-23  # of fp32 sums, on any chip


def rows(cp, kind, heads, n, d, seed=0):
    """Return rows on the device as kernels take them, and their values."""
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((heads, n, d)) * np.exp(rng.standard_normal((heads, n, 1)))
    if kind == "bfloat16":
        bits = (K.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return cp.asarray(bits), Bfloat16Rows(bits).widened()
    K = K.astype(kind)
    return cp.asarray(K), K.astype(np.float64)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_gram_matrices_are_within_their_bound(cp, kind, n, d):
    K, exact = rows(cp, kind, 3, n, d)
    true = np.swapaxes(exact, 1, 2) @ exact
    norms = np.sqrt(np.diagonal(true, axis1=1, axis2=2))
    for wide in (None, True):
        G = kernels.gram(K, wide=wide).get()
        fast = kind in ("bfloat16", "float16") and wide is None and d <= kernels.MAX_COLUMNS
        gamma = (4 * STEP if fast else 0.0) + 2 * (n + 2) * U
        bound = gamma * norms[:, :, None] * norms[:, None, :]
        assert (np.abs(G - true) <= bound).all()
        np.testing.assert_array_equal(G, np.swapaxes(G, 1, 2))
        np.testing.assert_array_equal(G, kernels.gram(K, wide=wide).get())
    scale = np.random.default_rng(1).uniform(0, 2, (3, n))
    G = kernels.gram(K, cp.asarray(scale)).get()
    weighted = exact * scale[..., None]
    np.testing.assert_allclose(G, np.swapaxes(weighted, 1, 2) @ weighted, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("n", "d"), [(5000, 64), (3000, 17), (2048, 128)])
def test_blocks_have_their_own_bits_wherever_they_are(cp, kind, n, d):
    K, _ = rows(cp, kind, 2, n, d)
    together = kernels.block_grams(K, 1024, wide=True).get()
    for b in range(-(-n // 1024)):
        alone = kernels.block_grams(K[1:, b * 1024 : (b + 1) * 1024], 1024, wide=True).get()
        np.testing.assert_array_equal(together[1, b], alone[0, 0])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_norms_are_within_their_bound(cp, kind, n, d):
    K, exact = rows(cp, kind, 2, n, d)
    W = np.random.default_rng(2).standard_normal((2, d, d)) * np.exp(
        2 * np.random.default_rng(3).standard_normal((2, 1, d))
    )
    for M, triangular in ((W, False), (np.triu(W), True)):
        true = ((exact @ M) ** 2).sum(-1)
        absolute = ((np.abs(exact) @ np.abs(M)) ** 2).sum(-1)
        for wide in (None, True):
            out = cp.full((2, n), cp.nan, dtype=np.float64 if kind == "float64" else np.float32)
            found = kernels.row_norms(K, cp.asarray(M), triangular=triangular, wide=wide, out=out)
            fast = kind in ("bfloat16", "float16") and wide is None
            bound = 2e-5 if fast else 1e-12 if kind == "float64" else 2.4e-7
            assert (np.abs(found.get() - true) <= bound * absolute).all()


@pytest.mark.parametrize("d", [1, 3, 16, 17, 64, 96, 127, 128, 200])
def test_whiteners_invert_and_tell_how_well(cp, d):
    rng = np.random.default_rng(d)
    A = rng.standard_normal((5, 3 * d + 5, d)) * np.exp(5 * rng.standard_normal((5, 1, d)))
    G = np.swapaxes(A, 1, 2) @ A
    G[3] = 0.0
    found = kernels.whiten(cp.asarray(G))
    W, info, stats = found.W.get(), found.info.get(), found.stats.get()
    assert info[3] != 0
    for h in (0, 1, 2, 4):
        assert info[h] == 0
        D = np.sqrt(np.diagonal(G[h]))
        unit = (W[h].T / D) * D @ G[h] @ W[h]
        np.testing.assert_allclose(unit, np.eye(d), atol=1e-10)
        assert not np.tril(W[h], -1).any()
        scaled = D[:, None] * W[h]
        assert stats[h, 0] == pytest.approx((scaled**2).sum(), rel=1e-9)
        assert stats[h, 1] == pytest.approx((np.abs(scaled).sum(0) ** 2).sum(), rel=1e-9)


def test_what_is_too_large_for_fp32_is_seen(cp):
    K = cp.full((2, 100, 64), 6e4, dtype=np.float16)
    G = kernels.gram(K).get()
    assert np.isinf(G).any() or np.allclose(G, 3.6e11, rtol=1e-5)
    bits = cp.full((1, 100, 64), np.float32(1e20).view(np.uint32) >> 16, dtype=np.uint16)
    assert not np.isfinite(np.diagonal(kernels.gram(bits).get()[0])).any()


def test_no_rows_and_no_heads(cp):
    empty = cp.zeros((2, 0, 64), np.float32)
    assert not kernels.gram(empty).any()
    assert kernels.row_norms(empty, cp.zeros((2, 64, 64))).shape == (2, 0)
    assert kernels.gram(cp.zeros((0, 5, 8), np.float32)).shape == (0, 8, 8)
