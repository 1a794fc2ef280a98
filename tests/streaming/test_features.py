"""Feature maps and scaled rows: what both sides of an inner product see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import U

from levsketch.linalg import NO_EXPONENT, column_exponents
from levsketch.sketches.symmetric import SymmetricPower
from levsketch.sketches.tensorsketch import TensorSketch
from levsketch.streaming.features import (
    Constant,
    chunk_rows,
    feature_exponents,
    feature_maps,
    highest,
    length_exponents,
    query_weights,
    same_map,
    scaled_keys,
    scaled_queries,
)

MAPS = feature_maps(3, [0, 1, 2, 4], most=10, seed=0)


def gathered(maps, scaled):
    """Return the features (size, n) of every map."""
    out = [np.full((lift.size, len(scaled.rows)), np.nan) for lift in maps]
    for r, places, block in scaled.features(maps):
        out[r][places] = block
    return out


def test_maps_are_exact_up_to_a_size_and_sketches_of_that_size_beyond():
    assert [type(lift) for lift in MAPS] == [Constant, SymmetricPower, SymmetricPower, TensorSketch]
    assert [lift.degree for lift in MAPS] == [0, 1, 2, 4]
    assert [lift.size for lift in MAPS] == [1, 3, 6, 10]


def test_maps_are_the_same_only_with_the_same_tables():
    for r, lift in enumerate(feature_maps(3, [0, 1, 2, 4], most=10, seed=0)):
        assert same_map(lift, MAPS[r])
        assert not any(same_map(lift, other) for i, other in enumerate(MAPS) if i != r)
    assert not same_map(feature_maps(3, [0, 1, 2, 4], most=10, seed=1)[3], MAPS[3])
    assert not same_map(feature_maps(3, [4], most=9, seed=0)[0], MAPS[3])
    # sketches of different degrees share no tables
    two, three = feature_maps(9, [2, 3], most=8, seed=0)
    assert not (two.buckets[0] == three.buckets[0]).all()


@given(st.integers(0, 2**32 - 1), st.floats(-300, 300), st.floats(-300, 300))
def test_products_of_features_are_powers_of_products_in_any_scale(seed, key_scale, query_scale):
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-abs(key_scale), abs(key_scale), 3)
    K, q = rng.standard_normal((5, 3)) * sizes, rng.standard_normal((2, 3)) / sizes
    q *= 10.0 ** (query_scale / 300)
    e = column_exponents(K)
    maps = MAPS[:3]
    keys = gathered(maps, scaled_keys(maps, K, e))
    scaled, powers = scaled_queries(maps, q, e)
    assert np.abs(scaled.rows).max() < 1
    assert np.abs(scaled.rows).max() >= 0.5
    terms = [A * query_weights(lift)[:, None] for A, lift in zip(keys, maps, strict=True)]
    for r, (lift, A, B) in enumerate(zip(maps, gathered(maps, scaled), terms, strict=True)):
        found = np.ldexp(A.T @ B, powers[:, r, None])
        products = (q[:, None] * K[None]).sum(axis=2)
        largest = np.abs(q[:, None] * K[None]).sum(axis=2)
        np.testing.assert_array_less(
            np.abs(found - products**lift.degree), 32 * U * largest**lift.degree + 1e-300
        )


def test_sketches_see_one_scale_for_all_columns():
    K = np.array([[1e100, 1.0, 0.0], [3e99, -2.0, 0.0]])
    e = column_exponents(K)
    assert highest(e) == e[0]
    scaled = scaled_keys(MAPS, K, e)
    np.testing.assert_array_equal(scaled.even, np.ldexp(K, -e[0]))
    np.testing.assert_array_equal(scaled.rows[:, 1], np.ldexp(K[:, 1], -e[1]))
    np.testing.assert_array_equal(scaled.rows[:, 2], 0)
    q, powers = scaled_queries(MAPS, np.array([[1.0, 1e100, 5.0], [0.0, 0.0, 5.0]]), e)
    np.testing.assert_array_equal(powers[0] % np.array([1, 1, 2, 4]), 0)
    # a column without keys counts for nothing
    np.testing.assert_array_equal(q.rows[1], 0)
    np.testing.assert_array_equal(powers[1], 0)
    assert highest(np.full(3, NO_EXPONENT)) == 0


@pytest.mark.parametrize("tiny", [1.0, 1e-100, 1e-160, 1e-300])
def test_lengths_bound_norms_though_squares_underflow(tiny):
    rows = np.array([[3.0, 0.0, -4.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]) * tiny
    found = scaled_keys(MAPS, rows, np.zeros(3, np.int64)).lengths(MAPS)
    np.testing.assert_array_equal(found[0], 1)
    assert (found[1] >= np.array([5.0, 0.0, 3**0.5]) * tiny * (1 - 4 * U)).all()
    assert (found[1] <= np.array([5.0, 0.0, 3**0.5]) * tiny * (1 + 4 * U) + 2e-140).all()
    np.testing.assert_allclose(found[3], (np.array([7.0, 0.0, 3.0]) * tiny) ** 4, rtol=8 * U)


def test_features_move_by_the_exponents_of_their_columns():
    rng = np.random.default_rng(2)
    K = rng.standard_normal((4, 3)) * [1, 1, 0]
    old = np.array([1, 2, NO_EXPONENT])
    new = np.array([4, 2, NO_EXPONENT])
    before, after = (gathered(MAPS, scaled_keys(MAPS, K, e)) for e in (old, new))
    for lift, A, B in zip(MAPS, before, after, strict=True):
        moved = feature_exponents(lift, old, new)
        np.testing.assert_allclose(np.ldexp(A, moved[:, None]), B, atol=1e-14)
    assert [length_exponents(lift, old, new) for lift in MAPS] == [0, 0, 0, -8]


def test_chunks_hold_a_bounded_number_of_lifted_entries():
    for d, degrees in ((64, [0, 1, 2]), (64, [3]), (64, [4]), (8, [6])):
        maps = feature_maps(d, degrees, most=10**8, seed=0)
        lower = SymmetricPower(d, max(degrees) - 1).size
        assert 64 <= chunk_rows(maps) <= 512
        assert chunk_rows(maps) * lower <= max(1 << 19, 64 * lower)
    assert chunk_rows(feature_maps(64, [4], most=4096, seed=0)) == 128
    assert chunk_rows([Constant(3)]) == 512
