"""Kernels of sparse rows: right, on every instruction set, whatever rows they come with."""

import numpy as np
import pytest
import scipy.sparse
from oracles import U

from levsketch._kernels import blocks, sparse

CHOSEN = blocks.tiles_name()
LEVELS = [name for name in ("baseline", "avx2", "avx512") if blocks.select_tiles(name)]
blocks.select_tiles(CHOSEN)
# Widths around the vector and panel sizes of each level.
WIDTHS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130]
every_level = pytest.mark.parametrize("level", LEVELS)
every_type = pytest.mark.parametrize(
    ("dtype", "index"),
    [
        (np.float64, np.int32),
        (np.float64, np.int64),
        (np.float32, np.int32),
        (np.float32, np.int64),
    ],
)


def draw(n, d, dtype=np.float64, share=0.3, seed=0):
    """Return a dense array (n, d) with zeros, rows of all zeros among them."""
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((n, d)) * np.exp(3 * rng.standard_normal((n, 1)))
    return (K * (rng.random((n, d)) < share)).astype(dtype)


def arrays(K, index=np.int32):
    X = scipy.sparse.csr_array(K)
    return X.data, X.indices.astype(index), X.indptr.astype(np.int64)


def grams(K, block, level, index=np.int32, scale=(), threads=1, which=None):
    out = np.full((-(-len(K) // block), K.shape[1], K.shape[1]), np.nan)
    which = np.arange(len(out)) if which is None else np.asarray(which, np.int64)
    sparse.block_grams(*arrays(K, index), np.array(scale, float), which, block, out, level, threads)
    return out


def norms(K, W, level, triangular=False, index=np.int32, threads=1, most=None):
    out = np.full(len(K), np.nan)
    most = K.shape[1] if most is None else most
    W = np.ascontiguousarray(W)
    sparse.whitened_row_norms(*arrays(K, index), W, triangular, most, out, level, threads)
    return out


def wide(K):
    return K.astype(np.longdouble)


@every_level
@every_type
@pytest.mark.parametrize("d", WIDTHS)
def test_gram_matrices_are_right_to_the_rounding_of_their_sums(level, dtype, index, d):
    for n, block in ((1, 1), (5, 7), (300, 100), (1030, 1024)):
        K, scale = draw(n, d, dtype, seed=n), np.random.default_rng(n).uniform(0, 3, n)
        for factors in ((), scale):
            rows = K if not len(factors) else K * scale[:, None]
            for b, G in enumerate(grams(K, block, level, index, factors)):
                part = wide(rows[b * block : (b + 1) * block])
                # gamma_n |K|^T |K|, entry by entry
                bound = len(part) * U * (np.abs(part).T @ np.abs(part)) + 1e-320
                assert (np.abs(G - part.T @ part) <= bound).all()
                np.testing.assert_array_equal(G, G.T)


@every_level
@every_type
@pytest.mark.parametrize("d", WIDTHS)
def test_whitened_norms_are_right_to_the_rounding_of_their_sums(level, dtype, index, d):
    rng = np.random.default_rng(d)
    for n in (1, 50, 600):
        K = draw(n, d, dtype, seed=n)
        for c, triangular in ((d, True), (d, False), (max(1, d // 2), False)):
            W = rng.standard_normal((d, c))
            W = np.triu(W) if triangular else W
            true = np.square(wide(K) @ wide(W)).sum(axis=1)
            size = np.square(np.abs(wide(K)) @ np.abs(wide(W))).sum(axis=1)
            error = np.abs(norms(K, W, level, triangular, index) - true)
            assert (error <= 4 * (d + c) * U * size).all()


@every_level
@pytest.mark.parametrize("d", WIDTHS)
def test_a_row_and_a_block_have_the_same_bits_in_any_company(level, d):
    K, W = draw(700, d), np.triu(draw(d, d, share=1.0, seed=2))
    together = norms(K, W, level, True)
    for first in (1, 13, 255, 256, 300):
        np.testing.assert_array_equal(norms(K[first:], W, level, True), together[first:])
    alone = np.concatenate([norms(K[i : i + 1], W, level, True) for i in range(len(K))])
    np.testing.assert_array_equal(together, alone)
    whole = grams(K, 100, level)
    for b, G in enumerate(whole):
        np.testing.assert_array_equal(grams(K[b * 100 : (b + 1) * 100], 100, level)[0], G)
    for threads in (2, 3):
        np.testing.assert_array_equal(norms(K, W, level, True, threads=threads), together)
        np.testing.assert_array_equal(grams(K, 100, level, threads=threads), whole)


@every_level
def test_types_of_numbers_and_of_columns_do_not_change_a_bit(level):
    K, W = draw(500, 33, np.float32), np.triu(draw(33, 33, share=1.0, seed=2))
    for dtype in (np.float32, np.float64):
        for index in (np.int32, np.int64):
            X = K.astype(dtype)
            np.testing.assert_array_equal(grams(X, 128, level, index), grams(K, 128, level))
            np.testing.assert_array_equal(norms(X, W, level, True, index), norms(K, W, level, True))


@every_level
def test_only_what_was_asked_for_is_written(level):
    K = draw(500, 20)
    found = grams(K, 100, level, which=[3, 1])
    assert np.isnan(found[[0, 2, 4]]).all()
    np.testing.assert_array_equal(found[[1, 3]], grams(K, 100, level)[[1, 3]])
    counts, W = (K != 0).sum(axis=1), draw(20, 20, share=1.0)
    few = norms(K, W, level, most=5)
    assert np.isnan(few[counts > 5]).all()
    np.testing.assert_array_equal(few[counts <= 5], norms(K, W, level)[counts <= 5])


@every_level
def test_infinities_that_cancel_leave_infinity(level):
    K, W = np.zeros((3, 20)), np.ones((20, 20))
    K[0, [2, 5]], K[1, 7], K[2, 3] = (np.inf, -np.inf), np.nan, 1.0
    assert norms(K, W, level).tolist() == [np.inf, np.inf, 20.0]


def test_no_rows_and_rows_of_nothing():
    assert (grams(np.zeros((5, 3)), 5, "baseline") == 0).all()
    assert norms(np.zeros((5, 3)), np.eye(3), "baseline").tolist() == [0.0] * 5
    assert norms(np.zeros((0, 3)), np.eye(3), "baseline").shape == (0,)
    with pytest.raises(ValueError, match="no kernels for 'avx1024'"):
        norms(np.zeros((5, 3)), np.eye(3), "avx1024")


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_order_tells_ascending_rows_from_others_and_from_bad_ones(index):
    def order(columns, start, d=4):
        return sparse.order(np.array(columns, index), np.array(start, np.int64), d)

    assert order([0, 3, 1, 2], [0, 2, 2, 4]) == 1
    assert order([], [0, 0]) == order([], [0]) == 1
    assert order([3, 0], [0, 2]) == order([1, 1], [0, 2]) == 0
    assert order([3, 0], [0, 1, 2]) == 1  # in rows of their own
    bad = [
        ([0, 4], [0, 2]),
        ([-1, 2], [0, 2]),
        ([2, 1, 9], [0, 2, 3]),
        ([0, 1], [0, 3]),
        ([0, 1], [0, 2, 1]),
        ([0, 1], [1, 2]),
        ([0, 1], [0, -1, 2]),
        ([0, 1], [0, 2**62]),
    ]
    for columns, start in bad:
        assert order(columns, start) == -1
    assert order([0, 1, 7], [0, 2]) == 1  # what follows the last row belongs to none
