"""Landmarks with a trend: exact while there is room, then a projection, merged about any centre."""

import contextlib
import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import U
from quadrature import polynomials, projection, quadrature

from levsketch.backends.cpu import serial_blas
from levsketch.streaming.landmarks import Landmarks

SEEDS = st.integers(0, 2**32 - 1)
ORDERS = [0, 1]
# What the ridge of 1e-6 of kernel matrices takes from a projection.
RIDGE = 1e-3
SIZES = [0.0, 1e-150, 1e-9, 1.0, 30.0, 1e12, 1e90]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """BLAS as streams call it: on matrices this small, threads cost more than they save."""
    with serial_blas():
        yield


def weighted(rng, n, columns=3):
    """Return ``w [v, 1]`` for values near one in size."""
    w = rng.uniform(0.5, 2.0, (n, 1))
    return w * np.concatenate([rng.standard_normal((n, columns - 1)), np.ones((n, 1))], axis=1)


def known_law(rng, d):
    A = rng.standard_normal((d, d + 2))
    return 0.3 * rng.standard_normal(d), A @ A.T / d


def held(keys, weights, size, order=1, queries=None):
    empty = Landmarks.empty(queries, size, order=order, d=keys.shape[1], columns=weights.shape[1])
    return empty.add(keys, weights)


def values(state, Q):
    """Return F(q) as it is, (m, c)."""
    shift, sums = state.sums(Q)
    return sums * np.exp(shift)[:, None]


@contextlib.contextmanager
def law_in_use():
    """Yield a list of the laws, and of the keys far out under them, that compressions make."""
    made, make = [], Landmarks._fitting_law

    def noted(*args, **kwargs):
        made.append(make(*args, **kwargs))
        return made[-1]

    with mock.patch.object(Landmarks, "_fitting_law", noted):
        yield made


def finite(state):
    parts = (state.keys, state.weights, state.constant, state.slope)
    return all(np.isfinite(part).all() for part in parts)


@given(SEEDS, st.integers(0, 20), st.integers(1, 4))
def test_keys_are_kept_as_they_are_while_there_is_room(seed, n, d):
    rng = np.random.default_rng(seed)
    keys, weights, Q = rng.standard_normal((n, d)), weighted(rng, n), rng.standard_normal((5, d))
    state = held(keys[: n // 2], weights[: n // 2], 20).compressed()
    state = state.add(keys[n // 2 :], weights[n // 2 :]).compressed()
    assert not state.has_trend
    expected = np.exp(Q @ keys.T) @ weights
    rounding = (n + 64) * U * np.exp(Q @ keys.T) @ np.abs(weights)
    assert (np.abs(values(state, Q) - expected) <= rounding).all()
    assert len(state.keys) == n


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("told", [False, True])
def test_compressed_functions_are_projections_in_the_mean_square(order, d, told):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        keys, weights = rng.standard_normal((50, d)), weighted(rng, 50)
        full = held(keys, weights, 5, order, known_law(rng, d) if told else None)
        with law_in_use() as made:
            state = full.compressed()
        law, far = made[0]
        if far.any():
            continue
        assert len(state.keys) <= 5
        Q, Z, W = quadrature(law)
        F, found = np.exp(Q @ keys.T) @ weights, values(state, Q)
        basis = np.concatenate([polynomials(Z, order), np.exp(Q @ state.keys.T)], axis=1)
        best = projection(W, basis, F)
        size = np.sqrt(W @ F**2)
        left, off = (np.sqrt(W @ (part - F) ** 2) for part in (best, found))
        assert (off <= 1.05 * left + RIDGE * size.max()).all()
        # constants and linear functions are known exactly, whatever the landmarks
        known = (polynomials(Z, order) * W[:, None]).T @ (found - F)
        assert (np.abs(known) <= 1e-10 * size).all()
        assert (left <= 0.3 * d * size).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shift", [0.0, 0.3, 1.5])
def test_a_trend_about_another_centre_is_projected_where_it_stands(order, shift):
    compared = 0
    for seed, d, other_order in itertools.product(range(4), (1, 2), ORDERS):
        rng = np.random.default_rng(seed)
        moved = rng.standard_normal(d) * shift
        a, b = (
            held(rng.standard_normal((60, d)), weighted(rng, 60), 6, o).compressed()
            for o in (order, other_order)
        )
        with law_in_use() as made:
            together = a.merge(b, moved)
        assert together.order == order
        assert order > 0 or not together.slope.any()
        assert len(together.keys) <= 6
        law, far = made[0]
        if far.any():
            continue
        Q, Z, W = quadrature(law)
        F = values(a, Q) + values(b, Q) * np.exp(Q @ moved)[:, None]
        basis = np.concatenate([polynomials(Z, order), np.exp(Q @ together.keys.T)], axis=1)
        size, found = np.sqrt(W @ F**2), values(together, Q)
        left = np.sqrt(W @ (projection(W, basis, F) - F) ** 2)
        off = np.sqrt(W @ (found - F) ** 2)
        assert (off <= 1.05 * left + RIDGE * size.max()).all()
        known = (polynomials(Z, order) * W[:, None]).T @ (found - F)
        assert (np.abs(known) <= 1e-9 * size).all()
        compared += 1
    assert compared >= 8


@pytest.mark.parametrize("order", ORDERS)
def test_a_trend_makes_functions_of_its_degree_exact(order):
    """Without landmarks, what is left of keys of size h shrinks as h to the degree and one more."""
    rng = np.random.default_rng(0)
    keys, weights, Q = rng.standard_normal((40, 3)), weighted(rng, 40), rng.standard_normal((9, 3))
    queries = np.zeros(3), np.eye(3)
    errors = []
    for h in (1e-2, 1e-4):
        state = held(h * keys, weights, 0, order, queries).compressed()
        assert not len(state.keys)
        F = np.exp(h * Q @ keys.T) @ weights
        errors.append(np.abs(values(state, Q) - F).max() / np.abs(F).max())
    assert errors[0] < 0.1
    assert errors[1] < 4 * errors[0] * 1e-2 ** (order + 1) + 100 * U


@given(SEEDS, st.floats(1e-12, 1e12))
def test_everything_is_linear_in_the_weights(seed, factor):
    rng = np.random.default_rng(seed)
    keys, weights, Q = rng.standard_normal((30, 2)), weighted(rng, 30), rng.standard_normal((5, 2))
    state = held(keys, weights, 4).compressed()
    size = np.abs(values(state, Q)).max() + np.abs(state.weights).max() * np.exp(9)
    scaled = values(state.times(factor), Q)
    np.testing.assert_allclose(scaled, factor * values(state, Q), atol=1e-13 * factor * size)
    again = values(held(keys, factor * weights, 4).compressed(), Q)
    np.testing.assert_allclose(again, scaled, atol=1e-6 * factor * size)


def test_compression_again_changes_nothing():
    rng = np.random.default_rng(0)
    state = held(rng.standard_normal((30, 2)), weighted(rng, 30), 4).compressed()
    assert state.compressed() is state


@settings(max_examples=60)
@given(
    SEEDS,
    st.integers(1, 3),
    st.integers(0, 8),
    st.sampled_from(ORDERS),
    st.booleans(),
    st.lists(st.sampled_from(SIZES), min_size=1, max_size=4),
)
@example(0, 2, 4, 1, False, [0.0])  # zero over zero
@example(0, 2, 4, 1, True, [1.0, 1e12])  # law of a singular covariance
@example(0, 2, 4, 1, True, [1e-150])
def test_any_sizes_of_keys_give_finite_landmarks(seed, d, size, order, told, sizes):
    rng = np.random.default_rng(seed)
    n = 24
    scale = np.array(sizes)[rng.integers(0, len(sizes), n)]
    keys, weights = rng.standard_normal((n, d)) * scale[:, None], weighted(rng, n)
    queries = known_law(rng, d) if told else None
    state = held(keys, weights, size, order, queries).compressed()
    assert len(state.keys) <= size
    assert finite(state)
    merged = state.merge(state, rng.standard_normal(d) * sizes[0])
    assert len(merged.keys) <= size
    assert finite(merged)
    Q = rng.standard_normal((4, d)) * np.array([0.0, 1e-9, 1.0, 30.0])[:, None]
    for found in (state, merged):
        shift, sums = found.sums(Q)
        assert np.isfinite(sums).all()
        assert np.isfinite(shift).all()


def test_streams_of_one_key_each_merge_about_two_centres():
    """Neither has landmarks: there is nothing but two trends (which once was an error)."""
    one = held(np.zeros((30, 2)), np.ones((30, 1)), 4).compressed()
    assert not len(one.keys)
    shift, Q = np.array([0.7, -0.4]), np.random.default_rng(0).standard_normal((5, 2))
    merged = one.merge(one, shift)
    np.testing.assert_allclose(
        values(merged, Q)[:, 0], 30 + 30 * np.exp(Q @ shift), rtol=0.5, atol=1.0
    )
    for far in (1e3, 1e12):
        assert finite(one.merge(one, far * shift))


def test_keys_far_out_stay_as_they_are_but_no_more_than_half_of_the_landmarks():
    rng = np.random.default_rng(0)
    keys, weights = 0.1 * rng.standard_normal((100, 2)), weighted(rng, 100)
    for count in (1, 3, 10):
        keys[:count] = 50.0 * (1 + rng.random((count, 2)))
        weights[:count, -1] = 1e-3
        state = held(keys, weights, 6).compressed(fresh=100)
        kept = (state.keys[:, None] == keys[None, :count]).all(axis=2)
        assert min(count, 3) <= kept.any(axis=1).sum() <= 6
        for i, j in np.argwhere(kept)[: min(count, 3)]:
            np.testing.assert_array_equal(state.weights[i], weights[j])
