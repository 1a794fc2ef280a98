"""Sums of exponentials: any split of the keys gives the sums of them all, whatever the logits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import U

from levsketch.backends.cpu import serial_blas
from levsketch.functions import softmax
from levsketch.functions.softmax import combine, softmax_sums


def drawn(seed, n, size=1.0):
    """Return queries, keys and values with a column of ones."""
    rng = np.random.default_rng(seed)
    V = np.concatenate([rng.standard_normal((n, 2)), np.ones((n, 1))], axis=1)
    return size * rng.standard_normal((7, 3)), rng.standard_normal((n, 3)), V


def sums(Q, K, V):
    with serial_blas():
        return softmax_sums(Q, K, V)


def close(found, expected, V, rounding):
    """Compare shifts and sums, relative to the sums of absolute values."""
    np.testing.assert_allclose(found[0], expected[0], rtol=rounding)
    np.testing.assert_allclose(found[1], expected[1], atol=rounding * np.abs(V).sum())


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.01, 1.0, 300.0]))
def test_sums_are_those_of_long_double_arithmetic(seed, n, size):
    Q, K, V = drawn(seed, n, size)
    logits = Q.astype(np.longdouble) @ K.astype(np.longdouble).T
    shift = logits.max(axis=1)
    exact = np.exp(logits - shift[:, None]) @ V
    found = sums(Q, K, V)
    error = 8 * U * float((np.abs(Q) @ np.abs(K).T).max()) + (n + 8) * U
    np.testing.assert_allclose(found[0], shift.astype(float), atol=error)
    np.testing.assert_allclose(found[1], exact.astype(float), atol=2 * error * np.abs(V).sum())


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_two_parts_combine_to_the_whole(seed, n, more, swapped):
    Q, K, V = drawn(seed, n + more, 30.0)
    parts = [sums(Q, K[:n], V[:n]), sums(Q, K[n:], V[n:])]
    first, second = parts[::-1] if swapped else parts
    before = [x.copy() for x in (*first, *second)]
    found = combine(*first, *second)
    for x, y in zip((*first, *second), before, strict=True):
        np.testing.assert_array_equal(x, y)
    rounding = 32 * U * (n + more + float(np.abs(Q).max()))
    close(found, sums(Q, K, V), V, rounding)


@pytest.mark.parametrize("pairs", [1, 7, 50, 1000])
def test_block_boundaries_leave_no_trace(pairs, monkeypatch):
    Q, K, V = drawn(0, 300, 20.0)
    expected = sums(Q, K, V)
    monkeypatch.setattr(softmax, "BLOCK_PAIRS", pairs)
    close(sums(Q, K, V), expected, V, 400 * U)


def test_no_keys_are_the_neutral_element():
    Q, K, V = drawn(1, 20)
    whole, nothing = sums(Q, K, V), sums(Q, K[:0], V[:0])
    assert (nothing[0] == -np.inf).all()
    np.testing.assert_array_equal(nothing[1], 0.0)
    for found in (combine(*whole, *nothing), combine(*nothing, *whole)):
        np.testing.assert_array_equal(found[0], whole[0])
        np.testing.assert_array_equal(found[1], whole[1])
    found = combine(*nothing, *nothing)
    assert (found[0] == -np.inf).all()
    np.testing.assert_array_equal(found[1], 0.0)


@pytest.mark.parametrize("far", [800.0, 1e300, np.inf])
def test_the_larger_shift_wins_where_they_are_far_apart(far):
    one, other = np.array([[3.0, 1.0]]), np.array([[5.0, 1.0]])
    shift, total = combine(np.array([0.0]), one, np.array([far]), other)
    assert shift == far
    np.testing.assert_array_equal(total, other)
    shift, total = combine(np.array([far]), one, np.array([far]), other)
    np.testing.assert_array_equal(total, one + other)


def test_many_parts_may_be_combined_at_once():
    Q, K, V = drawn(2, 40)
    parts = [sums(Q, K[i : i + 10], V[i : i + 10]) for i in range(0, 40, 10)]
    shift, total = (np.stack(x) for x in zip(*parts, strict=True))
    pairs = combine(shift[:2], total[:2], shift[2:], total[2:])
    found = combine(pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1])
    close(found, sums(Q, K, V), V, 64 * U)


def test_what_numpy_is_told_about_errors_does_not_matter():
    Q, K, V = drawn(3, 40, 1e3)
    expected = sums(Q, K, V)
    with np.errstate(all="raise"):
        found = sums(Q, K, V)
        combine(*found, *found)
        combine(*found, *sums(Q, K[:0], V[:0]))
    np.testing.assert_array_equal(found[1], expected[1])
