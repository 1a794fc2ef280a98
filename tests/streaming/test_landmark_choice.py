"""Landmarks: chosen greedily, better than chance, with the coefficients of projections."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import U

from levsketch.backends.cpu import serial_blas
from levsketch.streaming import landmark_choice
from levsketch.streaming.landmark_choice import (
    KernelMatrix,
    emphasis,
    products,
    projected,
)
from levsketch.streaming.query_law import RemainderKernel

SEEDS = st.integers(0, 2**32 - 1)
ORDERS = [0, 1]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """BLAS as streams call it: on matrices this small, threads cost more than they save."""
    with serial_blas():
        yield


def drawn(seed, n, d=2, columns=3, size=1.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * size, rng.standard_normal((n, columns))


def chosen(kernel, X, B, size):
    matrix = KernelMatrix(kernel, X)
    return landmark_choice.chosen(matrix, matrix.times(B), size)


def explained(kernel, X, B, which):
    """Return the squared norm of the projection of the functions on those of some rows."""
    if not len(which):
        return 0.0
    H, target = kernel(X[which], X[which]), kernel(X[which], X) @ B
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    good = values > 1e-12 * values.max()
    parts = vectors[:, good].T @ target
    return float((parts**2 / values[good, None]).sum())


def apart(kernel, X, which):
    """Return the squared distance of each function from the span of some, and the largest norm."""
    unit = np.eye(len(X))
    left = [norm(kernel, X, e) - explained(kernel, X, e, which) for e in unit[:, :, None]]
    return np.array(left), kernel.diagonal(X).max()


def norm(kernel, X, B):
    return float(np.sum(B * (kernel(X, X) @ B)))


def norm_of(array):
    return float(np.linalg.norm(array))


@settings(max_examples=40)
@given(SEEDS, st.integers(2, 14), st.integers(1, 3), st.sampled_from(ORDERS))
def test_each_row_explains_the_most_of_what_is_left(seed, n, d, order):
    kernel, (X, B) = RemainderKernel(order), drawn(seed, n, d)
    size = min(n, 6)
    found = chosen(kernel, X, B, size)
    whole = norm(kernel, X, B)
    for k, row in enumerate(found):
        before = found[:k]
        left, top = apart(kernel, X, before)
        # rounding decides over rows whose functions are nearly those chosen
        free = np.flatnonzero(left > 1e-6 * top)
        gains = {j: explained(kernel, X, B, [*before, j]) for j in {row, *free}}
        assert gains[row] >= max(gains.values()) - 2e-5 * whole
    assert len(set(found)) == len(found) <= size
    # fewer rows only if they explain everything
    assert len(found) == size or explained(kernel, X, B, found) >= (1 - 1e-6) * whole


@pytest.mark.parametrize("order", ORDERS)
def test_chosen_rows_beat_random_ones_of_the_same_number(order):
    kernel, wins = RemainderKernel(order), 0
    for seed in range(30):
        X, B = drawn(seed, 120, 3)
        rng = np.random.default_rng(seed)
        left = norm(kernel, X, B) - explained(kernel, X, B, chosen(kernel, X, B, 15))
        rival = norm(kernel, X, B) - explained(kernel, X, B, rng.choice(120, 15, replace=False))
        wins += left < 0.8 * rival
    assert wins >= 28  # all 30 did, and left at most 0.57 of it


@pytest.mark.parametrize("order", ORDERS)
def test_taking_several_rows_at_a_time_costs_little(order, monkeypatch):
    kernel, losses = RemainderKernel(order), []
    for seed in range(3):
        X, B = drawn(seed, 300, 4)
        several = chosen(kernel, X, B, 96)  # three at a time
        with monkeypatch.context() as patched:
            patched.setattr(landmark_choice, "_MOST_AT_ONCE", 1)
            single = chosen(kernel, X, B, 96)
        assert len(set(several)) == len(several) == 96
        whole = norm(kernel, X, B)
        lefts = [whole - explained(kernel, X, B, which) for which in (several, single)]
        losses.append((max(lefts[0], 0.0) + 1e-12 * whole) / (max(lefts[1], 0.0) + 1e-12 * whole))
    assert np.median(losses) < 1.1  # at most 1.04


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5), st.integers(1, 40), st.sampled_from(ORDERS))
def test_copies_of_a_row_are_taken_once(seed, distinct, copies, order):
    X, _ = drawn(seed, distinct, 3)
    rng = np.random.default_rng(seed)
    which = np.concatenate([np.arange(distinct), rng.integers(0, distinct, copies)])
    found = chosen(RemainderKernel(order), X[which], rng.standard_normal((len(which), 2)), 30)
    assert len(set(which[found])) == len(found)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [0, 1, 5, 70])
@pytest.mark.parametrize("scale", [0.0, 1e-160, 1e-100, 1e-30, 1.0, 4.0])
def test_any_sizes_and_scales_give_rows_and_finite_coefficients(order, size, scale):
    kernel = RemainderKernel(order)
    X, B = drawn(0, 90, 2, size=scale)
    for rows, weights in ((X, B), (X, 0.0 * B), (X, 1e-200 * B), (X[:0], B[:0]), (X[:1], B[:1])):
        found = chosen(kernel, rows, weights, size)
        assert len(set(found)) == len(found) <= size
        S = rows[found]
        y, value = projected(kernel, S, products(kernel, S, rows, weights))
        assert y.shape == (len(S), 3)
        assert np.isfinite(y).all()
        assert np.isfinite(value)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 12), st.sampled_from(ORDERS), st.sampled_from([0.3, 1.0, 2.0]))
@example(0, 12, 1, 0.3)
def test_coefficients_are_those_of_the_projection(seed, k, order, size):
    kernel, (X, B) = RemainderKernel(order), drawn(seed, 40, 3, size=size)
    S = X[:k]
    target = kernel(S, X) @ B
    y, value = projected(kernel, S, target)
    H = kernel(S, S)
    scale = np.sqrt(np.diagonal(H))
    # what is left is orthogonal to the functions but for a ridge of 1e-6, which acts twice
    values, vectors = np.linalg.eigh(H / scale / scale[:, None])
    rest, wanted = (vectors.T @ (part / scale[:, None]) for part in (target - H @ y, target))
    damped = (1e-6 / (np.maximum(values, 0.0) + 1e-6)) ** 2
    assert (np.abs(rest) <= 1.01 * damped[:, None] * np.abs(wanted) + 1e-9 * norm_of(wanted)).all()
    squares = emphasis(3) ** 2 @ np.sum(y * (2 * target - H @ y), axis=0)
    np.testing.assert_allclose(value, squares, rtol=1e-9)
    assert 0.0 <= value <= (1 + 1e-9) * norm(kernel, X, B * emphasis(3))


@pytest.mark.parametrize("pairs", [1, 30, 1 << 20])
def test_products_need_no_whole_kernel_matrix(pairs, monkeypatch):
    monkeypatch.setattr(landmark_choice, "_PAIRS", pairs)
    (X, _), (Y, B), kernel = drawn(0, 17), drawn(1, 25), RemainderKernel(1)
    np.testing.assert_allclose(products(kernel, X, Y, B), kernel(X, Y) @ B, atol=200 * U)
    assert products(kernel, X[:0], Y, B).shape == (0, 3)


def test_errors_of_the_normaliser_count_less_than_those_of_values():
    np.testing.assert_array_equal(emphasis(3), [1.0, 1.0, 0.3])
