"""Moment tensors: sums over all keys of powers of products, exact but for rounding."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import WIDE, U

from levsketch.functions.exp_polynomial import exp_polynomial
from levsketch.sketches.tensorsketch import TensorSketch
from levsketch.streaming.features import feature_maps
from levsketch.streaming.moments import MomentTensors, recentred

DEGREES = [[0, 1, 2], [4], [2, 3, 6], [0, 1, 2, 3, 4, 5, 6], [1], [0], [8]]
SIZES = [1.0, 1e-100, 1e100, 1e-300, 1e300]


def maps_of(d, degrees, most=10**6, seed=0):
    return feature_maps(d, degrees, most, seed)


def summed(maps, blocks, center=0.0, columns=None):
    """Return the moments of blocks (K, Va)."""
    d = maps[0].d
    columns = blocks[0][1].shape[1] if columns is None else columns
    state = MomentTensors.empty(maps, np.zeros(d) + center, columns)
    for K, Va in blocks:
        state = state.update(K, Va)
    return state


def brute(K, Va, Q, center, degrees, powers, value_powers):
    """Return sums in long double in the scale of a contraction, and the sums of their sizes."""
    wide = np.longdouble
    keys, Q = K.astype(wide) - np.asarray(center, wide), Q.astype(wide)
    products, sizes = Q @ keys.T, np.abs(Q) @ np.abs(keys.T)
    out = []
    with np.errstate(under="ignore"):
        for rows, values in ((products, Va.astype(wide)), (sizes, np.abs(Va.astype(wide)))):
            # powers of long doubles are slow
            powers_of = list(itertools.accumulate([rows] * max(degrees), np.multiply))
            ones = np.ones_like(rows)
            found = np.stack([[ones, *powers_of][r] @ values for r in degrees], axis=1)
            out.append(np.ldexp(found, -(powers[:, :, None] + value_powers)))
    return out


def check(state, K, Va, Q, center=0.0, translated=False):
    """Compare contractions with brute force, within what the state says of its rounding."""
    found = state.contract_scaled(Q)
    K, Va = np.asarray(K, np.float64), np.asarray(Va)
    true, size = brute(K, Va, Q, center, state.degrees, found.powers, found.value_powers)
    oracle = 8 * (len(K) + 8 * Q.shape[1]) * WIDE * size + 2.0**-1000
    error = np.abs(found.values - true)
    assert (error <= found.rounding + oracle).all()
    if not translated:  # as seen: a few roundings of terms that may cancel
        usual = 64 * (1 + max(state.degrees)) * np.sqrt(state.depth + 10) * U
        assert (error <= usual * size + oracle).all()
    plain = np.asarray(found.plain(true.astype(float)))
    bound = state.rounding(Q)
    assert (bound >= found.plain(found.rounding)).all()
    inside = np.isfinite(plain)
    near = np.abs(state.contract(Q) - np.where(inside, plain, 0)) <= bound * 1.01 + 1e-300
    assert (near | ~inside).all()


def data(rng, n, d, c=3):
    Va = rng.standard_normal((n, c))
    Va[:, -1] = rng.random(n)
    return rng.standard_normal((n, d)), Va


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 90), st.sampled_from(DEGREES))
@example(0, 1, 1, [8])
@example(1, 2, 80, [0, 1, 2, 3, 4, 5, 6])
def test_contractions_are_sums_over_all_keys_in_any_scale(seed, d, n, degrees):
    rng = np.random.default_rng(seed)
    K, Va = data(rng, n, d)
    K *= np.exp(rng.uniform(0, 4) * rng.standard_normal((n, 1)))
    K *= rng.choice([1, 1, 0], (n, 1)) * rng.choice(SIZES, d)
    Va *= rng.choice([1, 1, 0], (n, 1)) * rng.choice(SIZES[:3], 3)
    center = rng.standard_normal(d) * rng.choice([0, 1]) * np.abs(K).max(axis=0)
    cut = int(rng.integers(0, n + 1))
    state = summed(maps_of(d, degrees), [(K[:cut], Va[:cut]), (K[cut:], Va[cut:])], center)
    Q = np.concatenate([rng.standard_normal((4, d)) / (np.abs(K).max(axis=0) + 1e-300), np.eye(d)])
    check(state, K, Va, np.concatenate([Q, np.zeros((1, d))]), center)
    assert state.n_rows == Va.any(axis=1).sum()


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("d", [1, 3])
def test_many_rows_in_many_chunks(d, degrees):
    rng = np.random.default_rng(0)
    K, Va = data(rng, 3000, d)
    state = summed(maps_of(d, degrees), [(K[:1300], Va[:1300]), (K[1300:], Va[1300:])])
    assert state.depth == -(-1300 // 512) + -(-1700 // 512)
    check(state, K, Va, rng.standard_normal((20, d)))


@pytest.mark.parametrize("degrees", DEGREES)
def test_many_queries_in_many_chunks(degrees):
    rng = np.random.default_rng(0)
    K, Va = data(rng, 30, 2)
    check(summed(maps_of(2, degrees), [(K, Va)]), K, Va, rng.standard_normal((1100, 2)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([2, 4, 6]))
def test_attention_outputs_of_whole_numbers_are_correctly_rounded_fractions(seed, d, p):
    rng = np.random.default_rng(seed)
    K = rng.integers(-4, 5, (7, d)).astype(float)
    V, q = rng.integers(-9, 10, (7, 2)).astype(float), rng.integers(-3, 4, d).astype(float)
    state = summed(maps_of(d, [p]), [(K, np.column_stack([V, np.ones(7)]))])
    found = state.contract_scaled(q[None]).averages(0)[0]
    weights = [int(x) ** p for x in K @ q]
    total = sum(weights)
    for c in range(2):
        top = sum(w * int(v) for w, v in zip(weights, V[:, c], strict=True))
        assert found[c] == (float(Fraction(top, total)) if total else 0.0)


@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize(
    "sizes", [[1e100] * 3, [1e-100] * 3, [1e-100, 1, 1e100], [1e300, 1, 1e-300]]
)
@pytest.mark.parametrize("value", [1.0, 1e300, 1e-300])
def test_attention_outputs_do_not_depend_on_the_scale(p, sizes, value):
    rng = np.random.default_rng(1)
    K, V, Q = (
        rng.standard_normal((50, 3)),
        rng.standard_normal((50, 2)),
        rng.standard_normal((9, 3)),
    )
    Va = np.column_stack([V * value, np.ones(50)])
    state = summed(maps_of(3, [p]), [(K[:20] * sizes, Va[:20]), (K[20:] * sizes, Va[20:])])
    for length in (1.0, 1e-200, 1e200):
        with np.errstate(over="ignore", under="ignore"):
            queries = Q * length / sizes
        usable = np.isfinite(queries).all(axis=1) & (np.abs(queries) > 1e-290).all(axis=1)
        found = state.contract_scaled(queries[usable]).averages(0)
        weights = (Q @ K.T)[usable] ** p
        true = weights @ (V * value) / weights.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found, true, rtol=1e-10, atol=1e-12 * value)


def test_queries_that_see_no_key_have_sums_and_averages_of_zero():
    K, Va = np.array([[1.0, 0.0], [2.0, 0.0]]), np.ones((2, 2))
    state = summed(maps_of(2, [0, 2]), [(K, Va)])
    Q = np.array([[0.0, 1e300], [0.0, 0.0], [5e-324, 1.0]])
    np.testing.assert_array_equal(state.contract(Q)[:2, 1], 0)
    np.testing.assert_array_equal(state.contract(Q)[:, 0], 2)
    np.testing.assert_array_equal(state.contract_scaled(Q).averages(1)[:2], 0)
    np.testing.assert_array_equal(state.contract_scaled(Q).averages(1)[2], 1)
    none = MomentTensors.empty(maps_of(2, [0, 2]), np.zeros(2), 2)
    np.testing.assert_array_equal(none.contract(Q), 0)
    np.testing.assert_array_equal(none.contract_scaled(Q).averages(1), 0)


def test_rows_of_weight_zero_do_not_move_the_scale():
    rng = np.random.default_rng(2)
    K, Va = data(rng, 40, 2)
    far = np.full((3, 2), 1e300)
    maps = maps_of(2, [0, 1, 2, 8])
    plain = summed(maps, [(K, Va)])
    mixed = summed(maps, [(np.concatenate([far, K]), np.concatenate([np.zeros((3, 3)), Va]))])
    assert same_bytes(plain, mixed)


def same_bytes(a, b):
    arrays = [(*m.tensors, m.exponents, m.value_exponents, m.lengths, m.center) for m in (a, b)]
    alike = all(x.tobytes() == y.tobytes() for x, y in zip(*arrays, strict=True))
    return alike and (a.n_rows, a.depth) == (b.n_rows, b.depth)


@pytest.mark.parametrize("most", [10**6, 7])
def test_the_same_blocks_leave_the_same_bytes_in_any_layout(most):
    rng = np.random.default_rng(3)
    K, Va = data(rng, 700, 3)
    K = K.astype(np.float32)
    maps = maps_of(3, [0, 1, 2, 4], most)
    first = summed(maps, [(K, Va)], 0.5)
    assert same_bytes(first, summed(maps, [(K.astype(np.float64), Va)], 0.5))
    assert same_bytes(first, summed(maps, [(np.asfortranarray(K), np.asfortranarray(Va))], 0.5))
    wide = np.repeat(K, 2, axis=0)[::2], np.repeat(Va, 2, axis=1)[:, ::2]
    assert same_bytes(first, summed(maps, [wide], 0.5))


def test_updates_and_merges_leave_the_old_state_alone():
    rng = np.random.default_rng(4)
    K, Va = data(rng, 30, 2)
    state = summed(maps_of(2, [0, 1, 2]), [(K, Va)])
    copies = [T.copy() for T in state.tensors]
    state.update(K * 1e9, Va)
    state.merge(summed(state.maps, [(K * 1e9, Va)], 1.0))
    state.times(0.3)
    assert all((T == C).all() for T, C in zip(state.tensors, copies, strict=True))
    assert state.update(K[:0], Va[:0]) is state
    assert state.nbytes >= 8 * state.size == 8 * 3 * (1 + 2 + 3)


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.sampled_from([[0], [0, 1, 2], [0, 1, 2, 3, 4, 5, 6]]),
    st.permutations(range(3)),
)
def test_merges_in_any_order_and_around_any_centers_are_of_all_rows(seed, d, degrees, order):
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1.0, 1e-100, 1e100], d)
    parts, states = [], []
    for _ in range(3):
        K, Va = data(rng, int(rng.integers(1, 30)), d)
        K = (K + 2 * rng.standard_normal(d)) * sizes * rng.choice([1.0, 1e-3])
        center = rng.choice([0.0, 1.0]) * K[0]
        parts.append((K, Va))
        states.append((summed(maps_of(d, degrees), [(K, Va)], center), center))
    (a, center), (b, _), (c, _) = (states[i] for i in order)
    K, Va = (np.concatenate(x) for x in zip(*parts, strict=True))
    Q = np.concatenate([rng.standard_normal((5, d)) / sizes, np.eye(d)])
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c))):
        np.testing.assert_array_equal(merged.center, center)
        assert merged.n_rows == len(K)
        check(merged, K, Va, Q, center, translated=True)


@pytest.mark.parametrize("degrees", [[4], [0, 2], [1, 2, 3]])
def test_equal_centers_merge_whatever_the_degrees(degrees):
    rng = np.random.default_rng(5)
    (K, Va), (L, Vb) = data(rng, 50, 3), data(rng, 20, 3)
    maps = maps_of(3, degrees)
    center = rng.standard_normal(3)
    merged = summed(maps, [(K, Va)], center).merge(summed(maps, [(L * 1e50, Vb)], center))
    both = np.concatenate([K, L * 1e50]), np.concatenate([Va, Vb])
    check(merged, *both, rng.standard_normal((5, 3)), center)
    other = summed(maps, [(L, Vb)], center + 1)
    with pytest.raises(ValueError, match="center differs"):
        merged.merge(other)


def test_an_empty_state_is_the_identity_of_merging():
    K, Va = data(np.random.default_rng(6), 9, 2)
    state = summed(maps_of(2, [2]), [(K, Va)], 1.0)
    empty = MomentTensors.empty(state.maps, np.zeros(2), 3)
    assert state.merge(empty) is state
    assert empty.merge(state) is state
    twice = state.merge(state)
    np.testing.assert_array_equal(twice.tensors[0], 2 * state.tensors[0])
    assert twice.n_rows == 18


def test_other_kinds_do_not_merge():
    K, Va = data(np.random.default_rng(7), 9, 2)
    state = summed(maps_of(2, [0, 3], 3), [(K, Va)])
    for other, match in (
        (summed(maps_of(2, [0, 2]), [(K, Va)]), "degrees differ"),
        (summed(maps_of(2, [0, 3], 3, 1), [(K, Va)]), "maps of degree 3 differ"),
        (summed(maps_of(2, [0, 3]), [(K, Va)]), "maps of degree 3 differ"),
        (summed(maps_of(2, [0, 3], 3), [(K, Va[:, :2])]), "columns of values differ: 3 and 2"),
        (summed(maps_of(3, [0, 3], 3), [(np.ones((9, 3)), Va)]), "columns of keys differ: 2 and 3"),
        (summed(state.maps, [(K, Va)], 1.0), "center differs.*TensorSketch"),
    ):
        with pytest.raises(ValueError, match=match):
            state.merge(other)


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(1e-3, 1), min_size=1, max_size=6))
def test_decay_multiplies_all_sums(seed, factors):
    rng = np.random.default_rng(seed)
    K, Va = data(rng, 20, 2)
    state, weights = MomentTensors.empty(maps_of(2, [0, 1, 2]), np.zeros(2), 3), np.zeros(0)
    for factor in factors:
        state = state.times(factor).update(K, Va)
        weights = np.concatenate([weights * factor, np.ones(20)])
    whole = np.tile(K, (len(factors), 1)), np.tile(Va, (len(factors), 1)) * weights[:, None]
    check(state, *whole, rng.standard_normal((5, 2)))


def test_decay_by_powers_of_two_is_exact_and_nothing_vanishes():
    K, Va = data(np.random.default_rng(8), 20, 2)
    state = summed(maps_of(2, [0, 1, 2]), [(K, Va)])
    Q = np.random.default_rng(9).standard_normal((4, 2))
    before = state.contract_scaled(Q)
    halved = state.times(0.25)
    np.testing.assert_array_equal(halved.contract(Q), 0.25 * state.contract(Q))
    for _ in range(3000):
        halved = halved.times(0.25)
    np.testing.assert_array_equal(halved.contract_scaled(Q).values, before.values)
    decayed = state
    for _ in range(9000):
        decayed = decayed.times(0.7)
    found = decayed.contract_scaled(Q)
    # relative to the sums that may cancel; each factor rounds once
    np.testing.assert_allclose(
        found.averages(2) * before.values[:, 2, -1:],
        before.averages(2) * before.values[:, 2, -1:],
        atol=9000 * 8 * U * np.abs(before.values).max(),
    )
    exponents = np.log2(np.abs(found.values[:, 0])) + found.value_powers
    expected = np.log2(np.abs(before.values[:, 0])) + before.value_powers + 9000 * np.log2(0.7)
    np.testing.assert_allclose(exponents, expected, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_recentred_sums_are_those_of_shifted_products(seed, g):
    rng = np.random.default_rng(seed)
    K, Va = data(rng, 30, 2)
    state = summed(maps_of(2, list(range(g + 1))), [(K, Va)])
    Q = rng.standard_normal((6, 2))
    shift = Q @ K.mean(axis=0)
    contracted = state.contract(Q)
    found = recentred(contracted, shift)
    powers = (Q @ K.T - shift[:, None])[:, None] ** np.arange(g + 1)[:, None]
    bound = recentred(state.rounding(Q), -np.abs(shift))
    bound += (g + 4) * U * recentred(np.abs(contracted), -np.abs(shift))
    sizes = (np.abs(Q) @ np.abs(K.T) + np.abs(shift)[:, None])[:, None] ** np.arange(g + 1)[:, None]
    oracle = 40 * U * (sizes @ np.abs(Va))
    assert (np.abs(found - powers @ Va) <= bound + oracle).all()
    np.testing.assert_array_equal(recentred(contracted, np.zeros(6)), contracted)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 2, 4, 6]), st.floats(0.1, 3))
def test_softmax_outputs_by_the_best_polynomial_are_as_near_as_its_error_says(seed, g, reach):
    # with p = e^s (1 + delta), |delta| <= E, the outputs differ by sum e^s delta (v - y) over
    # sum p: at most E / (1 - E) times the mean deviation of the values
    rng = np.random.default_rng(seed)
    K, V = rng.standard_normal((40, 2)) + 3, rng.standard_normal((40, 2)) + 5
    state = summed(maps_of(2, range(g + 1)), [(K, np.column_stack([V, np.ones(40)]))], 2.5)
    Q = rng.standard_normal((3, 2))
    logits = Q @ K.T
    middle = (logits.max(axis=1) + logits.min(axis=1)) / 2
    width = (logits.max(axis=1) - logits.min(axis=1)) / 2
    Q, logits, middle = ((x.T * (reach / width)).T for x in (Q, logits, middle))
    sums = recentred(state.contract(Q), middle - Q @ state.center)
    for row, s, power_sums in zip(logits, middle, sums, strict=True):
        p, error = exp_polynomial(g, float(np.abs(row - s).max()))
        found = p @ power_sums
        weights = np.exp(row - s) / np.exp(row - s).sum()
        y = weights @ V
        bound = error / (1 - error) * (weights @ np.abs(V - y))
        assert (np.abs(found[:-1] / found[-1] - y) <= bound * (1 + 1e-9) + 1e-9).all()


def norms_of(K, Va, state, degrees):
    """Return ``sum_l ||x_l||^r |v_l|`` in the scale of a state, in long double."""
    e = np.where(state.exponents > -4000, state.exponents, 0)
    x = np.ldexp(K.astype(np.longdouble) - state.center, -e)
    v = np.ldexp(np.abs(Va).astype(np.longdouble), -state.value_exponents)
    norms = np.sqrt((x * x).sum(axis=1))
    return np.stack([norms**r @ v for r in degrees])


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(0, 6))
def test_lengths_bound_sums_of_norms_through_all_that_may_happen(seed, d, g):
    rng = np.random.default_rng(seed)
    (K, Va), (L, Vb), (M, Vc) = (data(rng, 9, d) for _ in range(3))
    L, Vb = L * rng.choice([1.0, 1e-9, 1e9], d), Vb * rng.choice([1.0, 1e-9, 1e9], 3)
    M = M + 5 * rng.standard_normal(d)
    degrees = list(range(g + 1))
    first = summed(maps_of(d, degrees), [(K, Va), (L, Vb)]).times(0.3)
    for state in (
        first.merge(summed(first.maps, [(M, Vc)], M[0])),
        first.merge(summed(first.maps, [(M, Vc)], np.zeros(d))),
    ):
        rows = np.concatenate([K, L, M]), np.concatenate([0.3 * Va, 0.3 * Vb, Vc])
        true = norms_of(*rows, state, degrees)
        assert (state.lengths >= true * (1 - 1e-12)).all()
        largest = np.stack([np.abs(T).max(axis=0) for T in state.tensors])
        assert (state.lengths >= largest * (1 - 1e-12)).all()


@pytest.mark.parametrize("scale", [1e-50, 1e50, 1e150])
def test_the_rounding_bound_does_not_outgrow_the_sums_when_keys_grow(scale):
    rng = np.random.default_rng(13)
    K, Va = data(rng, 100, 3)
    maps = maps_of(3, [1, 2, 4])
    state = summed(maps, [(K, Va), (K * scale, Va)])
    alone = summed(maps, [(K * max(scale, 1.0), Va)])
    Q = rng.standard_normal((5, 3)) / max(scale, 1.0)
    # of twice as many rows and additions, but all that matters is in one half
    assert (state.rounding(Q) <= 2.1 * alone.rounding(Q)).all()


@pytest.mark.parametrize("spread", [1e-100, 1e-300])
@pytest.mark.parametrize("far", [1.0, 1e200])
def test_merging_keys_that_are_near_to_centers_far_apart(spread, far):
    # in the scale of either part the other is out of range
    rng = np.random.default_rng(14)
    K, Va = data(rng, 20, 2)
    maps = maps_of(2, [0, 1, 2, 3, 4, 5, 6])
    a = summed(maps, [(K * spread, Va)], 0.0)
    b = summed(maps, [(np.full((20, 2), far), Va)], far)
    rows = np.concatenate([K * spread, np.full((20, 2), far)]), np.concatenate([Va, Va])
    check(a.merge(b), *rows, rng.standard_normal((5, 2)) / far, 0.0, translated=True)
    check(b.merge(a), *rows, rng.standard_normal((5, 2)) / far, far, translated=True)


def test_the_rounding_bound_allows_for_underflow():
    # what is left of the sum is a subnormal number, with fewer digits
    K, Va = np.array([[0.7], [2.0**-200]]), np.array([[1.3 * 2.0**-1060], [1.0]])
    state = summed(maps_of(1, [8]), [(K, Va)])
    found = state.contract_scaled(np.array([[1.0]]))
    true = sum(Fraction(k) ** 8 * Fraction(v) for k, v in zip(K[:, 0], Va[:, 0], strict=True))
    true /= Fraction(2) ** int(found.powers[0, 0] + found.value_powers[0])
    assert Fraction(found.values[0, 0, 0]) != true
    assert abs(Fraction(found.values[0, 0, 0]) - true) <= Fraction(found.rounding[0, 0, 0])


def test_the_rounding_bound_says_something():
    rng = np.random.default_rng(10)
    K, Va = data(rng, 5000, 8)
    state = summed(maps_of(8, [0, 1, 2]), [(K, Va)])
    Q = rng.standard_normal((50, 8)) / 8
    # whose products are about one
    relative = state.rounding(Q)[:, :, -1] / Va[:, -1].sum()
    assert relative.max() < 1e-11


@pytest.mark.parametrize("n", [1, 40])
def test_sketches_give_the_products_of_sketched_rows(n):
    rng = np.random.default_rng(11)
    K, Va = data(rng, n, 5)
    sketch = TensorSketch.make(5, 3, 16, 1)
    state = summed([sketch], [(K * 1e100, Va)])
    Q = rng.standard_normal((6, 5)) * 1e-100
    true = sketch.apply(Q * 1e100) @ (sketch.apply(K).T @ Va)
    assert (np.abs(state.contract(Q)[:, 0] - true) <= 2 * state.rounding(Q)[:, 0]).all()
    assert state.rounding(Q).max() < 1e-7


def test_sketched_sums_are_right_on_average():
    rng = np.random.default_rng(12)
    K, Va = data(rng, 30, 4)
    q = rng.standard_normal((1, 4))
    true = ((K @ q[0]) ** 3) @ Va
    found = np.array(
        [summed(maps_of(4, [3], 19, s), [(K, Va)]).contract(q)[0, 0] for s in range(300)]
    )
    spread = found.std(axis=0) / np.sqrt(300)
    assert (np.abs(found.mean(axis=0) - true) < 5 * spread).all()


def test_memory_is_what_the_documentation_says():
    for degrees, megabytes in (([0, 1, 2], 1.1), ([0, 1, 2, 3], 25), ([0, 1, 2, 3, 4], 424)):
        size = sum(comb(64 + r - 1, r) for r in degrees) * 65 * 8
        assert size / 1e6 == pytest.approx(megabytes, rel=0.05)
