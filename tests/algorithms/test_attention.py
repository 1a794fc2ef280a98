"""attention: the output itself, at any size of anything, and what theory says about it."""

import numpy as np
import pytest
from attending import BLOCKS, FUNCTIONS, LONG, POWERS, SEEDS, blocks, check, drawn, reference
from fitting import quiet
from hypothesis import assume, example, given
from hypothesis import strategies as st
from oracles import U

from levsketch import attention, heavy_attention
from levsketch.functions import Huber, ScoreFunction, Tukey

EXTREME = st.one_of(
    st.integers(-3, 3).map(float),
    st.sampled_from([1e300, -1e300, 1e-300, -1e-300, 5e-324, 1.7e308, 1e154, 1e30, 0.1]),
)
# weight of a key, 0 as often as not
WEIGHTS = st.one_of(st.just(0.0), st.sampled_from([1.0, 2.0, 0.3, 1e-10, 1e10]))


@given(
    st.data(),
    SEEDS,
    *(st.integers(1, most) for most in (20, 60, 9, 4)),
    st.sampled_from([1e-3, 1.0, 30.0, 1e5]),
    BLOCKS,
)
def test_softmax_is_that_of_long_double_arithmetic(data, seed, m, n, d, d_v, spread, sizes):
    dtype = data.draw(st.sampled_from([np.float64, np.float32]))
    Q, K, V = drawn(seed, m, n, d, d_v, spread, dtype)
    scale = data.draw(st.sampled_from(["sqrt_d", 1.0, 0.3, 20]))
    w = data.draw(st.none() | st.lists(WEIGHTS, min_size=n, max_size=n).filter(any))
    with blocks(**sizes):
        found = attention(Q, K, V, scale=scale, sample_weight=w)
    assert found.dtype == dtype
    assert found.shape == (m, d_v)
    check(found, reference(Q, K, V, "softmax", scale, w), dtype == np.float32)


@given(st.data(), SEEDS, *(st.integers(1, most) for most in (10, 40, 5, 3)), BLOCKS)
@pytest.mark.parametrize("f", FUNCTIONS[1:], ids=str)
def test_other_functions_are_those_of_long_double_arithmetic(f, data, seed, m, n, d, d_v, sizes):
    Q, K, V = drawn(seed, m, n, d, d_v, data.draw(st.sampled_from([1e-3, 1.0, 100.0])))
    scale = data.draw(st.sampled_from(["sqrt_d", 1.0, 0.3]))
    w = data.draw(st.none() | st.lists(WEIGHTS, min_size=n, max_size=n).filter(any))
    with blocks(**sizes):
        found = attention(Q, K, V, f, scale=scale, sample_weight=w)
    zero = ~Q.any(axis=1) | ~np.any(K if w is None else K[np.array(w) > 0])
    np.testing.assert_array_equal(found[zero], 0.0)
    check(found, reference(Q, K, V, f, scale, w))


@st.composite
def extremes(draw):
    """Tiny queries, keys and values of extreme entries."""
    m, n, d = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    shapes = [(m, d), (n, d), (n, 2)]
    return [
        np.array(draw(st.lists(EXTREME, min_size=a * b, max_size=a * b))).reshape(a, b)
        for a, b in shapes
    ]


NAMES = [[1.0, 1e300], [2.0, 5e-324], [3.0, 1e-300]]


@given(extremes(), st.sampled_from(["sqrt_d", 1.0, 1e-300, 1e100, 0.1]), BLOCKS)
# moderate logits beside one that overflows, of either sign
@example(([[1e300]], [[-1e300], [1e-300], [2e-300]], NAMES), 1.0, {})
@example(([[1e300]], [[1e300], [1e-300], [2e-300]], NAMES), 1.0, {})
@example(([[1e300, 1e300, 1.0]], [[1e300, -1e300, 1.0], [0, 0, 2.0], [0, 0, 3.0]], NAMES), 1.0, {})
@example(([[1e300, 1e-300]], [[1e-300, 1e300], [1e-300, 0.0], [0.0, -1e300]], NAMES), 1.0, {})
@example(([[-1e200], [1e200]], [[1e200], [1.0000001e200], [2e200]], NAMES), 1.0, {})
@example(([[5e-324]], [[1e308], [-1e308], [0.0]], NAMES), 1e100, {})
@example(([[1e308]], [[1e-308], [2e-308], [1e308]], NAMES), 1e-300, {})
@example(([[1e300]], [[0.0], [0.0], [0.0]], NAMES), 1e100, {})
@example(([[1e300, 0.0]], [[0.0, 0.0], [1e-300, 0.0], [0.0, 1e300]], NAMES), 1e100, {})
@example(([[1e300]], [[1e300], [1e-300], [-1.0]], NAMES), 1e100, {})
@example(([[1.0]], [[0.0], [1e3], [0.0]], [[1.7e308, 1e300], [1e-300, -1.0], [0.0, 1.0]]), 1.0, {})
def test_softmax_of_entries_of_any_size_is_that_of_long_double_arithmetic(made, scale, sizes):
    Q, K, V = map(np.array, made)
    # long doubles of 64 bits, as doubles, would overflow here
    assume(np.finfo(LONG).maxexp > 4096)
    with blocks(**sizes):
        found = attention(Q, K, V, scale=scale)
    check(found, reference(Q, K, V, "softmax", scale))


@given(extremes(), BLOCKS)
@pytest.mark.parametrize("p", POWERS)
def test_powers_of_entries_of_any_size_are_those_of_long_double_arithmetic(p, made, sizes):
    assume(np.finfo(LONG).maxexp > 4096)
    with blocks(**sizes):
        found = attention(*made, p)
    check(found, reference(*made, p))


@pytest.mark.parametrize("size", [1e15, 1e150, 1e300, 1.7e308])
@pytest.mark.parametrize("scale", [1.0, 1e100])
def test_the_largest_of_huge_logits_takes_all_and_ties_share_it(size, scale):
    Q = np.array([[size, 0.0], [0.0, size], [-size, -size], [0.0, 0.0]])
    K = np.array([[1.0, 0.0], [3.0, 1.0], [3.0, -1.0], [-2.0, 1.0]]) * max(1.0, size / 8)
    V = np.array([[1.0, 0.0], [2.0, 1.0], [4.0, 1.0], [7.0, 1.0]])
    expected = [[3.0, 1.0], [4.5, 1.0], [7.0, 1.0], [3.5, 0.75]]
    for cut in ({}, {"pairs": 1, "entries": 1}, {"pairs": 8, "entries": 9}):
        with blocks(**cut):
            np.testing.assert_array_equal(attention(Q, K, V, scale=scale), expected)
            # ties share by their weights, and a key of weight zero is no tie
            found = attention(Q[:2], K, V, scale=scale, sample_weight=[1.0, 3.0, 1.0, 0.0])
            np.testing.assert_allclose(found, [[2.5, 1.0], [2.0, 1.0]], rtol=4 * U)


@pytest.mark.parametrize("scale", ["sqrt_d", 0.3, 1.0])
@pytest.mark.parametrize("size", [2.0**60, 2.0**1020])
def test_products_that_are_equal_without_rounding_share_the_weight(scale, size):
    rng = np.random.default_rng(0)
    K = rng.integers(-(10**6), 10**6, (30, 5)).astype(float)
    K[:, 4] = 1000 - K[:, :4].sum(axis=1)
    V = rng.standard_normal((30, 2))
    found = attention(np.full((1, 5), size), K, V, scale=scale)
    np.testing.assert_allclose(found[0], V.mean(axis=0), atol=64 * U)


@pytest.mark.parametrize("f", POWERS)
@pytest.mark.parametrize(("a", "b"), [(40, 40), (-900, 100), (990, 990), (-1020, -40), (0, 1000)])
def test_powers_do_not_depend_on_the_size_of_queries_and_keys(f, a, b):
    Q, K, V = drawn(0, 20, 50, 3, 2)
    Q, K = (np.round(1024 * X) / 1024 for X in (Q, K))  # so that none becomes denormal
    expected = attention(Q, K, V, f)
    np.testing.assert_array_equal(attention(np.ldexp(Q, a), np.ldexp(K, b), V, f), expected)
    np.testing.assert_array_equal(attention(Q, K, V, f, scale=1e-300), expected)
    # and each column of its own
    e = np.array([a, -a, b])
    found = attention(np.ldexp(Q, -e), np.ldexp(K, e), V, f)
    np.testing.assert_array_equal(found, expected)


def test_powers_of_huge_products_are_right():
    Q, K, V = np.array([[1e50, 0.0]]), np.array([[1e50, 1.0], [2e50, 1.0], [0.0, 1.0]]), np.eye(3)
    found = attention(Q, K, V, 8)
    np.testing.assert_allclose(found, [[1 / 257, 256 / 257, 0.0]], rtol=16 * U)
    found = attention(Q, K, V, 3000)
    np.testing.assert_array_equal(found, [[0.0, 1.0, 0.0]])


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
@pytest.mark.parametrize("power", [-1000, -400, 400, 1010])
def test_outputs_scale_with_their_values(f, power):
    Q, K, V = drawn(1, 20, 50, 3, 3)
    V = np.round(1024 * V) / 1024
    V[:, 0] = 0.0
    expected = attention(Q, K, V, f)
    with np.errstate(under="ignore"):
        found = attention(Q, K, np.ldexp(V, power), f)
        np.testing.assert_array_equal(found, np.ldexp(expected, power))


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_outputs_lie_between_the_values(f):
    rng = np.random.default_rng(2)
    Q, K, _ = drawn(2, 200, 100, 3, 1)
    Q = Q[Q.any(axis=1)]
    # constant columns come back to the bit, whatever the weights round
    for value in (0.1, -1.7976931348623157e308, 5e-324, 0.0):
        V = np.full((100, 2), value)
        np.testing.assert_array_equal(attention(Q, K, V, f), value)
        V = V.astype(np.float32) if abs(value) < 1e30 else V
        found = attention(Q.astype(np.float32), K.astype(np.float32), V, f)
        np.testing.assert_array_equal(found, V[0, 0])
    V = rng.choice([1.7e308, -1.7e308], (100, 2))
    assert np.isfinite(attention(Q, K, V, f)).all()


@given(SEEDS, st.sampled_from([1.0, 10.0, 1e4]), BLOCKS)
def test_softmax_does_not_change_when_all_keys_are_shifted(seed, size, sizes):
    Q, K, V = drawn(seed, 9, 40, 4, 2)
    shift = size * np.random.default_rng(seed).standard_normal(4)
    K, shift = (np.round(2.0**20 * X) / 2.0**20 for X in (K, shift))  # so that sums are exact
    with blocks(**sizes):
        found, expected = attention(Q, K + shift, V), attention(Q, K, V)
    tolerance = reference(Q, K + shift, V)[1] + reference(Q, K, V)[1]
    assert (np.abs(found - expected) <= tolerance).all()


@given(SEEDS, st.integers(1, 20), st.data(), BLOCKS)
@pytest.mark.parametrize("f", ["softmax", 1, 4, Huber()], ids=str)
def test_whole_weights_are_keys_that_are_repeated(f, seed, n, data, sizes):
    Q, K, V = drawn(seed, 6, n, 3, 2)
    w = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(any))
    repeated = np.repeat(K, w, axis=0), np.repeat(V, w, axis=0)
    with blocks(**sizes):
        found = attention(Q, K, V, f, sample_weight=w)
    expected = attention(Q, *repeated, f)
    tolerance = reference(Q, *repeated, f)[1]
    assert (np.abs(found - expected) <= 2 * tolerance).all()
    # only ratios count, and powers of two change no bit
    for factor in (2.0**-900, 2.0**1000):
        with blocks(**sizes):
            again = attention(Q, K, V, f, sample_weight=factor * np.array(w, float))
        np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize("w", [[1e-200, 1.0, 1.0], [1e-110, 1e300, 1e300], [1e-300, 1e100, 1e120]])
def test_weights_may_be_far_apart(w):
    K, V = np.array([[1e4], [-1e4], [0.0]]), np.array([[1e-300], [1.0], [2.0]])
    # the weight of the key that takes all does not matter
    np.testing.assert_array_equal(attention([[1.0]], K, V, sample_weight=w), [[1e-300]])
    np.testing.assert_array_equal(attention([[-1.0]], K, V, sample_weight=w), [[1.0]])


def test_weights_that_leave_no_digits_are_refused():
    K, V = np.ones((3, 1)), np.ones((3, 1))
    with pytest.raises(ValueError, match=r"must not span more than 2\*\*1400, got 1e\+300 and"):
        attention([[1.0]], K, V, sample_weight=[1e-300, 1e300, 0.0])


@pytest.mark.parametrize("f", ["softmax", 2, "huber"])
def test_leading_axes_are_problems_of_their_own(f):
    rng = np.random.default_rng(3)
    for lead in ((2,), (2, 3), (0,), (1, 1, 1)):
        Q = rng.standard_normal((*lead, 5, 3))
        K, V = rng.standard_normal((*lead, 30, 3)), rng.standard_normal((*lead, 30, 2))
        w, shared = rng.random((*lead, 30)), rng.random(30)
        found = attention(Q, K, V, f)
        weighted = attention(Q, K, V, f, sample_weight=w)
        alike = attention(Q, K, V, f, sample_weight=shared)
        assert found.shape == (*lead, 5, 2)
        for i in np.ndindex(lead):
            one = Q[i], K[i], V[i], f
            np.testing.assert_array_equal(found[i], attention(*one))
            np.testing.assert_array_equal(weighted[i], attention(*one, sample_weight=w[i]))
            np.testing.assert_array_equal(alike[i], attention(*one, sample_weight=shared))


@given(SEEDS, BLOCKS, st.randoms())
@pytest.mark.parametrize("f", ["softmax", 1, 4, Tukey()], ids=str)
def test_the_order_of_keys_does_not_matter(f, seed, sizes, random):
    Q, K, V = drawn(seed, 6, 30, 3, 2, 3.0)
    order = list(range(30))
    random.shuffle(order)
    with blocks(**sizes):
        found = attention(Q, K[order], V[order], f)
    tolerance = reference(Q, K, V, f)[1]
    assert (np.abs(found - attention(Q, K, V, f)) <= 2 * tolerance).all()


@pytest.mark.parametrize("p", [2, 1, 3, 4, 7.5])
def test_heavy_scores_of_all_keys_give_the_same_output(p):
    Q, K, V = drawn(8, 30, 60, 3, 2)
    Q = Q[Q.any(axis=1)]
    with quiet():
        scores = heavy_attention(Q, K, 1e-300, p)
    tolerance = reference(Q, K, V, p)[1]
    assert (np.abs(scores @ V - attention(Q, K, V, p)) <= 2 * tolerance).all()


@pytest.mark.parametrize("f", [1, 2, 3.5, "huber", "tukey"])
def test_queries_that_no_key_answers_give_rows_of_zeros(f):
    K = np.array([[1.0, 1.0, 0.0], [-2.0, -2.0, 0.0], [3.0, 3.0, 0.0]])
    Q = np.array([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 1e300], [1.0, 0.0, 0.0]])
    found = attention(Q, K, np.full((3, 2), 5.0), f)
    np.testing.assert_array_equal(found, [[0, 0], [0, 0], [0, 0], [5, 5]])
    np.testing.assert_array_equal(attention(Q, 0 * K, np.full((3, 2), 5.0), f), 0.0)
    # exp of nothing is one
    np.testing.assert_array_equal(attention(Q, 0 * K, np.full((3, 2), 5.0)), 5.0)


def test_a_new_function_may_be_homogeneous_with_any_factor():
    class Cubes(ScoreFunction):
        homogeneous = True

        def values(self, x):
            return 7.0 * x**3

    Q, K, V = drawn(10, 7, 30, 3, 2)
    for cut in ({}, {"pairs": 10, "entries": 30}):
        with blocks(**cut):
            found, expected = attention(Q, K, V, Cubes()), attention(Q, K, V, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
