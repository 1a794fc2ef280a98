"""The symmetric power: inner products of lifted rows are powers of inner products."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import U

from levsketch.sketches.symmetric import SymmetricPower

SHAPES = [(1, 1), (1, 6), (2, 1), (2, 2), (2, 7), (3, 2), (3, 3), (5, 2), (5, 4), (9, 2), (4, 5)]
ENTRIES = st.floats(-4, 4, width=32)


def dot(a, b):
    return sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True))


@given(st.data(), st.sampled_from(SHAPES))
@example(None, (3, 3))
def test_products_of_lifted_rows_are_powers_of_products(data, shape):
    d, degree = shape
    if data is None:
        q, k = np.array([1.0, -1.0, 0.5]), np.array([1.0, 1.0, 3.0])
    else:
        q, k = (np.array(data.draw(st.lists(ENTRIES, min_size=d, max_size=d))) for _ in range(2))
    lift = SymmetricPower(d, degree)
    found = dot(lift.apply(q[None])[0], lift.apply(k[None])[0])
    true = dot(q, k) ** degree
    # of each monomial, degree products and a root are rounded; terms may cancel
    size = float(dot(np.abs(q), np.abs(k))) ** degree
    assert abs(float(found - true)) <= (2 * degree + 8) * U * size + 1e-300


@pytest.mark.parametrize("shape", SHAPES)
def test_monomials_come_in_ascending_order_each_once(shape):
    d, degree = shape
    lift = SymmetricPower(d, degree)
    rows = lift.variables.tolist()
    assert len(rows) == lift.size == math.comb(d + degree - 1, degree)
    assert rows == sorted(rows)
    assert all(row == sorted(row) for row in rows)
    assert len({tuple(row) for row in rows}) == lift.size
    # as many ordered choices of variables as each stands for
    counts = [len(set(itertools.permutations(row))) for row in rows]
    np.testing.assert_allclose(lift.weights**2, counts, rtol=4 * U)


@pytest.mark.parametrize("shape", SHAPES)
def test_lifted_rows_are_weighted_products_of_their_columns(shape):
    d, degree = shape
    lift = SymmetricPower(d, degree)
    K = np.random.default_rng(0).standard_normal((20, d))
    plain = np.prod(K[:, lift.variables], axis=2) * lift.weights
    np.testing.assert_allclose(lift.apply(K), plain, rtol=(degree + 2) * U)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_row_is_lifted_to_the_same_bits_in_any_company(shape, dtype):
    lift = SymmetricPower(*shape)
    K = np.random.default_rng(1).standard_normal((37, shape[0])).astype(dtype)
    whole = lift.apply(K)
    assert whole.dtype == np.float64
    assert whole.shape == (37, lift.size)
    np.testing.assert_array_equal(whole, np.concatenate([lift.apply(row[None]) for row in K]))
    np.testing.assert_array_equal(whole[::3], lift.apply(K[::3]))
    np.testing.assert_array_equal(whole, lift.apply(K.astype(np.float64)))


@given(st.sampled_from(SHAPES), st.integers(0, 2**32 - 1))
def test_scaling_columns_by_powers_of_two_scales_monomials_exactly(shape, seed):
    lift, rng = SymmetricPower(*shape), np.random.default_rng(seed)
    K = rng.standard_normal((5, shape[0]))
    e = rng.integers(-40, 41, shape[0])
    moved = lift.column_exponents(e)
    assert moved.shape == (lift.size,)
    np.testing.assert_array_equal(lift.apply(np.ldexp(K, e)), np.ldexp(lift.apply(K), moved))


def test_the_first_degree_changes_nothing():
    K = np.random.default_rng(2).standard_normal((4, 3))
    np.testing.assert_array_equal(SymmetricPower(3, 1).apply(K), K)
    assert SymmetricPower(3, 2).apply(np.zeros((0, 3))).shape == (0, 6)
