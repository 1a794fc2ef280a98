"""Exact rank by elimination modulo a prime, against rational arithmetic."""

from fractions import Fraction

import numpy as np
import oracles
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import tiny_keys

from levsketch._kernels import modular

P = 2**61 - 31
FLOATS = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True)


def absorb(X, d=None):
    d = X.shape[1] if d is None else d
    basis, pivots = np.zeros((d, d), np.uint64), np.zeros(d, np.uint8)
    grew = np.full(len(X), 9, np.uint8)
    modular.absorb_rows(np.ascontiguousarray(X, np.float64), basis, pivots, grew)
    return basis, pivots, grew


def residue(x):
    """Return the image of a float modulo P, by Python integers."""
    f = Fraction(x)
    return f.numerator * pow(f.denominator, -1, P) % P


@given(FLOATS)
@example(5e-324)
@example(-5e-324)
@example(2.2250738585072014e-308)
@example(2.225073858507201e-308)
@example(1.7976931348623157e308)
@example(-0.0)
def test_the_image_of_a_float_is_its_fraction_modulo_the_prime(x):
    # the row (1, x) has the echelon form (1, image of x)
    basis, pivots, _ = absorb(np.array([[1.0, x]]))
    assert pivots.tolist() == [1, 0]
    assert basis[0].tolist() == [1, residue(x)]


@given(tiny_keys(entries=st.one_of(st.integers(-3, 3).map(float), FLOATS)))
def test_the_rank_is_the_exact_one(K):
    _, pivots, grew = absorb(K)
    assert pivots.sum() == grew.sum() == oracles.exact_rank(K)


@given(tiny_keys(entries=st.integers(-2, 2).map(float), max_rows=7, max_columns=5))
def test_a_row_raises_the_rank_exactly_when_it_is_outside_those_before(K):
    _, _, grew = absorb(K)
    for i in range(len(K)):
        before = oracles.exact_rank(K[:i]) if i else 0
        assert grew[i] == oracles.exact_rank(K[: i + 1]) - before


@given(tiny_keys(entries=st.integers(-2, 2).map(float), max_rows=7), st.randoms())
def test_the_echelon_form_depends_on_the_space_alone(K, random):
    basis, pivots, _ = absorb(K)
    order = list(range(len(K)))
    random.shuffle(order)
    mixed = np.concatenate([K[order], K.sum(axis=0, keepdims=True), 3 * K[:1]])
    again, again_pivots, _ = absorb(mixed)
    np.testing.assert_array_equal(again, basis)
    np.testing.assert_array_equal(again_pivots, pivots)


@given(tiny_keys(entries=st.integers(-2, 2).map(float)), tiny_keys(st.integers(-2, 2).map(float)))
def test_the_sum_of_two_spaces_is_the_space_of_both_lists_of_rows(A, B):
    assume(A.shape[1] == B.shape[1])
    basis, pivots, _ = absorb(A)
    other, other_pivots, _ = absorb(B)
    modular.absorb_basis(other, other_pivots, basis, pivots)
    both, both_pivots, _ = absorb(np.concatenate([A, B]))
    np.testing.assert_array_equal(basis, both)
    np.testing.assert_array_equal(pivots, both_pivots)


@given(tiny_keys(), tiny_keys())
def test_rows_outside_are_those_that_are_no_combination(K, X):
    assume(K.shape[1] == X.shape[1])
    basis, pivots, _ = absorb(K)
    assume(pivots.sum() == oracles.exact_rank(K))  # the prime divides no minor by accident
    out = np.full(len(X), 9, np.uint8)
    modular.rows_outside(X, basis, pivots, out)
    for x, outside in zip(X, out, strict=True):
        if outside == oracles.in_row_space(x, K):
            # an accident, then: the minors with x are multiples of the prime
            assert oracles.exact_rank(np.vstack([K, x])) > absorb(np.vstack([K, x]))[1].sum()


@given(tiny_keys(entries=st.integers(-2, 2).map(float), max_columns=3))
def test_orthogonal_queries_have_product_zero_with_every_row(K):
    basis, pivots, _ = absorb(K)
    grid = np.stack(np.meshgrid(*[np.arange(-2.0, 3)] * K.shape[1]), -1).reshape(-1, K.shape[1])
    out = np.full(len(grid), 9, np.uint8)
    modular.queries_orthogonal(grid, basis, pivots, out)
    np.testing.assert_array_equal(out, ~(grid @ K.T).any(axis=1))


@pytest.mark.parametrize("d", [1, 5, 40])
def test_powers_of_two_between_rows_do_not_hide_a_direction(d):
    # modulo 2**61 - 1, rows that differ by 2**61 would be equal
    K = np.ldexp(np.ones((d, d)), 61 * np.eye(d, dtype=int))
    _, pivots, _ = absorb(K)
    assert pivots.sum() == d


@pytest.mark.parametrize("r", [1, 3, 17])
def test_integer_products_have_the_rank_of_their_factors(r):
    rng = np.random.default_rng(r)
    left, right = rng.integers(-9, 10, (3000, r)), rng.integers(-9, 10, (r, 20))
    _, pivots, grew = absorb((left @ right).astype(float))
    assert pivots.sum() == r
    assert np.flatnonzero(grew).max() < 100  # random rows span their space soon
