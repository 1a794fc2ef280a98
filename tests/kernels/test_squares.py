"""Squares of columns and rows: the first the diagonal of a Gram matrix, to the bit."""

import numpy as np
import pytest
from kernel_rows import STORED, WIDTHS, bits, draw, grams, wide
from oracles import U

from levsketch._kernels import blocks


def column_squares(K, block, threads=1, scale=()):
    out = np.full((-(-len(K) // block), K.shape[1]), np.nan)
    blocks.column_squares(bits(K), np.array(scale, float), block, out, threads)
    return out


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("d", WIDTHS)
def test_squares_of_columns_are_the_diagonal_to_the_bit(level, d, dtype):
    for n, block in ((1, 1), (128, 128), (129, 129), (300, 100), (1030, 1024)):
        K = draw(n, d, dtype, seed=n)
        weights = np.random.default_rng(n).uniform(0, 3, n)
        for scale in ((), weights):
            diagonal = np.diagonal(grams(K, block, scale=scale), axis1=1, axis2=2)
            for threads in (1, 2):
                found = column_squares(K, block, threads, scale)
                np.testing.assert_array_equal(found, diagonal)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("d", WIDTHS)
def test_weighted_squares_of_rows_are_added_to_what_is_there(level, d, dtype):
    K = draw(1601, d, dtype)
    weights = np.random.default_rng(d).uniform(0, 3, d)
    exact = np.sum((wide(K) * weights) ** 2, axis=1)
    out = np.ones(len(K))
    blocks.add_row_squares(bits(K), weights, out, 1)
    assert (np.abs(out - (1 + exact)) <= (d + 3) * U * (1 + exact)).all()
    again = np.ones(len(K))
    blocks.add_row_squares(bits(K), weights, again, 2)
    np.testing.assert_array_equal(out, again)
    # a row's number does not depend on the rows before it
    part = np.ones(7)
    blocks.add_row_squares(bits(K[-7:]), weights, part, 1)
    np.testing.assert_array_equal(part, out[-7:])


def test_a_sum_that_is_no_number_is_infinite(level):
    K = np.array([[np.inf, 1.0], [np.nan, 1.0], [1.0, 1.0]])
    out = np.zeros(3)
    blocks.add_row_squares(K, np.array([0.0, 1.0]), out, 1)
    np.testing.assert_array_equal(out, [np.inf, np.inf, 1.0])
