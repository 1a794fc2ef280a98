"""Row-tile kernels: right, on every instruction set, with the same bits however rows are split."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_rows import CHOSEN, HALVES, LEVELS, STORED, WIDTHS, bits, draw, grams, wide
from oracles import U

from levsketch._kernels import blocks
from levsketch.backends.cpu import serial_blas, use_instruction_set


def norms(K, W, triangular=False, threads=1):
    out = np.full(len(K), np.nan)
    blocks.whitened_row_norms(bits(K), np.ascontiguousarray(W), triangular, out, threads)
    return out


def factors(K, block, threads=1):
    out = np.full((-(-len(K) // block), K.shape[1], K.shape[1]), np.nan)
    with serial_blas():
        blocks.qr_blocks(K, block, out, threads)
    return out


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("d", WIDTHS)
def test_gram_matrices_are_right_to_the_rounding_of_their_sums(level, d, dtype):
    for n, block in ((1, 1), (5, 7), (128, 128), (129, 129), (300, 100), (1030, 1024)):
        K = draw(n, d, dtype, seed=n)
        found = grams(K, block)
        for b, G in enumerate(found):
            part = wide(K[b * block : (b + 1) * block])
            # gamma_n |K|^T |K|, entry by entry
            bound = len(part) * U * (np.abs(part).T @ np.abs(part)) + 1e-320
            assert (np.abs(G - part.T @ part) <= bound).all()
            np.testing.assert_array_equal(G, G.T)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("d", WIDTHS)
def test_gram_matrices_of_weighted_rows_are_those_of_the_rows_multiplied_first(level, d, dtype):
    for n, block in ((1, 1), (129, 129), (1030, 512)):
        K = draw(n, d, dtype, seed=n)
        scale = np.random.default_rng(n).uniform(0, 3, n)
        found = grams(K, block, scale=scale)
        np.testing.assert_array_equal(found, grams(K * scale[:, None], block))
        np.testing.assert_array_equal(found, grams(K, block, threads=2, scale=scale))


def whitened_grams(K, W, block, triangular=False, threads=1, scale=()):
    out = np.full((-(-len(K) // block), W.shape[1], W.shape[1]), np.nan)
    W, scale = np.ascontiguousarray(W), np.array(scale, float)
    blocks.whitened_block_grams(bits(K), scale, W, triangular, block, out, threads)
    return out


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("d", WIDTHS)
def test_whitened_gram_matrices_are_right_to_the_rounding_of_their_sums(level, d, dtype):
    draws = np.random.default_rng(d)
    for n, block in ((1, 1), (5, 7), (13, 13), (121, 121), (129, 129), (300, 100)):
        K, scale = draw(n, d, dtype, seed=n), draws.uniform(0, 3, n)
        for c, triangular in ((d, True), (d, False), (max(1, d // 2), False)):
            W = draws.standard_normal((d, c))
            W = np.triu(W) if triangular else W
            for factors in ((), scale):
                found = whitened_grams(K, W, block, triangular, 1, factors)
                again = whitened_grams(K, W, block, triangular, 2, factors)
                np.testing.assert_array_equal(found, again)
                weighted = wide(K) * wide(scale)[:, None] if len(factors) else wide(K)
                for b, G in enumerate(found):
                    Z = weighted[b * block : (b + 1) * block] @ wide(W)
                    size = np.abs(weighted[b * block : (b + 1) * block]) @ np.abs(wide(W))
                    bound = (2 * d + len(Z) + 4) * U * (size.T @ size) + 1e-320
                    assert (np.abs(G - Z.T @ Z) <= bound).all()
                    np.testing.assert_array_equal(G, G.T)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("d", WIDTHS)
def test_whitened_norms_are_right_to_the_rounding_of_their_sums(level, d, dtype):
    rng = np.random.default_rng(d)
    for n in (1, 3, 11, 12, 13, 24, 50):
        K = draw(n, d, dtype, seed=n)
        for c, triangular in ((d, True), (d, False), (max(1, d // 2), False)):
            W = rng.standard_normal((d, c))
            W = np.triu(W) if triangular else W
            true = np.square(wide(K) @ wide(W)).sum(axis=1)
            size = np.square(np.abs(wide(K)) @ np.abs(wide(W))).sum(axis=1)
            error = np.abs(norms(K, W, triangular) - true)
            assert (error <= 4 * (d + c) * U * size).all()


def test_below_the_diagonal_of_a_triangular_whitener_nothing_is_used_but_zeros(level):
    for d in WIDTHS:
        K, W = draw(30, d, np.float64), np.triu(draw(d, d, np.float64, seed=1))
        np.testing.assert_allclose(norms(K, W, True), norms(K, W, False), rtol=1e-13)


@pytest.mark.parametrize("d", WIDTHS)
def test_a_row_has_the_same_norm_in_any_company(level, d):
    # alone, at any place of a group, in groups that are full or not
    W = draw(d, d, np.float64, seed=2)
    for dtype in STORED:
        K = draw(61, d, dtype)
        together = norms(K, W)
        alone = np.concatenate([norms(K[i : i + 1], W) for i in range(len(K))])
        np.testing.assert_array_equal(together, alone)
        for first in range(13):
            np.testing.assert_array_equal(norms(K[first:], W), together[first:])


@pytest.mark.parametrize("dtype", [np.float32, *HALVES])
@pytest.mark.parametrize("d", WIDTHS)
def test_narrow_rows_give_the_bits_of_their_double_copy(level, d, dtype):
    K = draw(333, d, dtype)
    wide, scale = K.astype(np.float64), np.linspace(0, 3, 333)
    W = np.triu(draw(d, d, np.float64, seed=3))
    for factors in ((), scale):
        np.testing.assert_array_equal(grams(K, 100, 1, factors), grams(wide, 100, 1, factors))
    for triangular in (True, False):
        np.testing.assert_array_equal(norms(K, W, triangular), norms(wide, W, triangular))
        np.testing.assert_array_equal(
            whitened_grams(K, W, 100, triangular, 1, scale),
            whitened_grams(wide, W, 100, triangular, 1, scale),
        )


def patterns(dtype, finite):
    """Return all numbers of a type of 16 bits that are finite, or all that are not."""
    found = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return found[np.isfinite(found) == finite]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("columns", [1, 2, 4, 32])
def test_every_finite_half_is_widened_exactly(level, dtype, columns):
    # a column of ones shows them in the first row of the Gram matrix of one row
    x = patterns(dtype, finite=True).reshape(-1, columns)
    for place in (0, columns):
        K = np.insert(x, place, 1, axis=1)
        found = [
            grams(K, 1),
            grams(K, 1, scale=np.ones(len(K))),
            whitened_grams(K, np.eye(columns + 1), 1),
        ]
        for G in found:
            np.testing.assert_array_equal(G[:, place], K.astype(np.float64))
        squares = np.square(K.astype(np.float64))
        for c in range(columns + 1):
            np.testing.assert_array_equal(norms(K, np.eye(columns + 1)[:, [c]]), squares[:, c])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("columns", [1, 17])
def test_halves_that_are_not_finite_stay_so(level, dtype, columns):
    x = patterns(dtype, finite=False)
    K = np.repeat(x[:, None], columns, axis=1)
    with np.errstate(invalid="ignore"):
        expected = np.where(np.isnan(x), np.nan, np.inf)
    for G in (grams(K, 1), whitened_grams(K, np.ones((columns, 1)), 1)):
        np.testing.assert_array_equal(np.diagonal(G, axis1=1, axis2=2)[:, -1], expected)


@pytest.mark.parametrize("d", [1, 5, 16, 33])
def test_thread_counts_do_not_change_a_bit(level, d):
    K, W = draw(5000, d, np.float64), draw(d, d, np.float64, seed=4)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(grams(K, 700), grams(K, 700, threads))
        np.testing.assert_array_equal(norms(K, W), norms(K, W, threads=threads))
        np.testing.assert_array_equal(factors(K, 700), factors(K, 700, threads))


@pytest.mark.parametrize("d", [1, 5, 16, 33])
def test_a_block_has_the_same_gram_and_factor_in_any_company(level, d):
    K = draw(1024 * 3, d, np.float64)
    together, triangles = grams(K, 1024), factors(K, 1024)
    for b in range(3):
        part = K[b * 1024 : (b + 1) * 1024].copy()
        np.testing.assert_array_equal(grams(part, 1024)[0], together[b])
        np.testing.assert_array_equal(factors(part, 1024)[0], triangles[b])


@pytest.mark.parametrize("d", [1, 3, 8, 40])
@pytest.mark.parametrize("n", [1, 2, 39, 100])
def test_qr_blocks_are_triangular_with_the_gram_matrix_of_their_rows(n, d):
    K = draw(n, d, np.float64)
    for b, R in enumerate(factors(K, 50)):
        part = wide(K[b * 50 : (b + 1) * 50])
        sizes = np.sqrt(np.square(part).sum(axis=0))
        error = np.abs(wide(R).T @ wide(R) - part.T @ part)
        assert (error <= 30 * U * np.sqrt(d) * np.outer(sizes, sizes)).all()
        assert (np.tril(R, -1) == 0).all()
        assert (np.diagonal(R) >= 0).all()


@pytest.mark.parametrize("d", [1, 3, 16, 17, 40])
def test_qr_of_two_triangles_is_that_of_their_rows(d):
    R = np.triu(draw(6 * d, d, np.float64).reshape(6, d, d))
    R[4, d // 2] = R[5, d // 2] = 0.0  # and of rank less than d
    for threads in (1, 2):
        out = np.full((3, d, d), np.nan)
        with serial_blas():
            blocks.qr_pairs(R, out, threads)
        for b, found in enumerate(out):
            part = wide(R[2 * b : 2 * b + 2].reshape(-1, d))
            sizes = np.sqrt(np.square(part).sum(axis=0))
            error = np.abs(wide(found).T @ wide(found) - part.T @ part)
            assert (error <= 30 * U * np.sqrt(d) * np.outer(sizes, sizes)).all()
            assert (np.tril(found, -1) == 0).all()
            assert (np.diagonal(found) >= 0).all()


@pytest.mark.parametrize("d", [1, 3, 16, 17, 40])
def test_cholesky_factors_times_a_triangle_have_the_right_gram_matrix(d):
    H, R = grams(draw(3 * 100, d, np.float64), 100), np.triu(draw(d, d, np.float64, seed=1))
    H[1, -1, -1] = -1.0  # no factor
    for threads in (1, 2):
        out, found = np.full((3, d, d), np.nan), np.full(3, 9, np.uint8)
        with serial_blas():
            blocks.roots_times(H, R, out, found, threads)
        assert found.tolist() == [1, 0, 1]
        for b in (0, 2):
            sizes = np.sqrt(np.diagonal(H[b])) @ np.abs(R)
            error = np.abs(wide(out[b]).T @ wide(out[b]) - wide(R).T @ wide(H[b]) @ wide(R))
            assert (error <= 10 * d * U * np.outer(sizes, sizes)).all()
            assert (np.tril(out[b], -1) == 0).all()


@pytest.mark.parametrize("d", WIDTHS)
def test_nothing_outside_the_rows_is_read_or_written(level, d):
    # neighbours are NaN: one read of them would show, one write over them, too
    fence = np.full((40, d), np.nan)
    for dtype in STORED:
        buffer = np.concatenate([fence, draw(37, d, np.float64), fence]).astype(dtype)
        inside, W = buffer[40:77], draw(d, d, np.float64, seed=5)
        out = np.full(37 + 2 * 40, -1.0)
        blocks.whitened_row_norms(bits(inside), W, False, out[40:77], 1)
        assert np.isfinite(out[40:77]).all()
        assert (out[:40] == -1).all()
        assert (out[77:] == -1).all()
        assert np.isfinite(grams(inside, 20)).all()
        assert np.isfinite(whitened_grams(inside, W, 20)).all()
        assert np.isnan(buffer[:40]).all()


@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 90), st.integers(0, 99))
@example(16, 128, 128, 0)
def test_all_levels_agree_to_rounding(d, n, block, seed):
    K, W = draw(n, d, np.float64, seed), draw(d, d, np.float64, seed + 1)
    found = []
    for name in LEVELS:
        use_instruction_set(name)
        found.append((grams(K, block), norms(K, W)))
    use_instruction_set(CHOSEN)
    size = np.abs(K) @ np.abs(W)
    for G, x in found[1:]:
        np.testing.assert_allclose(G, found[0][0], rtol=1e-12, atol=1e-12 * np.square(K).sum())
        assert (np.abs(x - found[0][1]) <= 1e-13 * np.square(size).sum(axis=1)).all()


def test_unknown_levels_are_refused_and_change_nothing():
    before = blocks.tiles_name()
    with pytest.raises(ImportError, match=r"avx1024.*known are baseline"):
        use_instruction_set("avx1024")
    assert blocks.tiles_name() == before
