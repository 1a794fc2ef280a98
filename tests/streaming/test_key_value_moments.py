"""Moments of keys and values: sums by any route, heavy keys, and the Gaussian closure."""

from dataclasses import fields

import adversary
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import U, exact_leverage
from strategies import cuts

from levsketch.streaming.key_value_moments import KeyValueMoments

SUMS = ["weight", "key_sum", "key_square", "value_sum", "key_value"]


def moments_of(K, V, w=None):
    return KeyValueMoments.empty(K.shape[1], V.shape[1]).add(K, V, w)


def whole_numbers(rng, n, d, d_v):
    return (rng.integers(-50, 51, size).astype(float) for size in ((n, d), (n, d_v)))


def same_sums(a, b):
    for name in SUMS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.count == b.count


def close_sums(a, b):
    """Compare sums as far as either vouches for its rounding."""
    off = 1.01 * (a.sum_roundoff + b.sum_roundoff)
    sizes = np.sqrt(np.maximum(a.magnitude, b.magnitude)) + 2.0**-500  # for what underflows
    values = np.maximum(a.value_extent.magnitude, b.value_extent.magnitude)
    root = np.sqrt(a.weight)
    for name, room in [
        ("weight", a.weight),
        ("key_sum", root * sizes),
        ("key_square", sizes[:, None] * sizes),
        ("value_sum", a.weight * values),
        ("key_value", root * sizes[:, None] * values),
    ]:
        difference = np.abs(getattr(a, name) - getattr(b, name))
        assert (difference <= off * room).all(), name


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 5), st.integers(0, 3), st.data()
)
def test_sums_of_whole_numbers_are_exact_by_any_route(seed, n, d, d_v, data):
    rng = np.random.default_rng(seed)
    K, V = whole_numbers(rng, n, d, d_v)
    w = rng.integers(0, 4, n).astype(float) ** 2
    whole = moments_of(K, V, w)
    assert whole.count == np.count_nonzero(w)
    np.testing.assert_array_equal(whole.key_square, (K * w[:, None]).T @ K)
    np.testing.assert_array_equal(whole.key_value, (K * w[:, None]).T @ V)
    parts = np.split(np.arange(n), data.draw(cuts(n)))
    one_by_one = KeyValueMoments.empty(d, d_v)
    for p in parts:
        one_by_one = one_by_one.add(K[p], V[p], w[p])
    same_sums(one_by_one, whole)
    # each part about a centre of its own, merged in another order
    centres = rng.integers(-99, 100, (len(parts), d)).astype(float)
    order = rng.permutation(len(parts))
    first, merged = centres[order[0]], KeyValueMoments.empty(d, d_v)
    for i in order:
        p = parts[i]
        part = moments_of(K[p] - centres[i], V[p], w[p])
        merged = merged.merge(part, centres[i] - first)
    same_sums(merged.merge(KeyValueMoments.empty(d, d_v)), moments_of(K - first, V, w))
    np.testing.assert_array_equal(merged.value_extent.low, whole.value_extent.low)
    np.testing.assert_array_equal(merged.value_extent.high, whole.value_extent.high)


@given(adversary.rows(m=1))
def test_sums_are_as_far_off_as_they_say(rows):
    K, V, w, rng = rows.K, rows.V, rows.w, np.random.default_rng(rows.seed)
    whole, there = moments_of(K, V, w), KeyValueMoments.empty(K.shape[1], V.shape[1])
    shift = rng.standard_normal(K.shape[1]) * np.abs(K).max()
    shift -= (K[0] + shift) - (K[0] + shift)
    back = there
    for p in np.split(np.arange(len(K)), rows.cuts):
        there = there.add(K[p], V[p], w[p])
        back = back.merge(moments_of(K[p], V[p], w[p]).moved(1.0, shift, 1.0, 0 * V[0], 1.0))
    close_sums(there, whole)
    close_sums(back.moved(1.0, -shift, 1.0, 0 * V[0], 1.0), whole)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_moved_moments_are_those_of_moved_rows(seed, n):
    rng = np.random.default_rng(seed)
    K, V = whole_numbers(rng, n, 3, 2)
    key_shift, value_shift = rng.integers(-9, 10, (2, 3)).astype(float)
    found = moments_of(K, V).moved(0.5, key_shift, 4.0, value_shift[:2], 4.0)
    keys, values = K * 0.5 + key_shift, V * 4.0 + value_shift[:2]
    expected = moments_of(keys, values, np.full(n, 4.0))
    same_sums(found, expected)
    assert (found.value_extent.low <= values.min(axis=0)).all()
    assert (found.value_extent.high >= values.max(axis=0)).all()
    assert (found.magnitude >= expected.magnitude).all()


def test_decay_multiplies_weights_and_leaves_extents():
    rng = np.random.default_rng(0)
    K, V = whole_numbers(rng, 50, 4, 2)
    old = moments_of(K[:20], V[:20])
    both = old.times(0.25).add(K[20:], V[20:])
    w = np.where(np.arange(50) < 20, 0.25, 1.0)
    same_sums(both, moments_of(K, V, w))
    assert old.times(0.25).extent is old.extent
    faint = old.times(2.0**-890)
    with pytest.raises(ValueError, match=r"less than 2\*\*-900"):
        faint.times(2.0**-20)
    assert KeyValueMoments.empty(2, 2).times(0.0).count == 0


def test_rows_without_weight_leave_no_trace():
    rng = np.random.default_rng(1)
    K, V = rng.standard_normal((30, 3)), rng.standard_normal((30, 2))
    w = np.where(rng.random(30) < 0.5, rng.random(30), 0.0)
    far = np.where(w[:, None] > 0, K, 1e9)
    found, expected = moments_of(far, V, w), moments_of(K[w > 0], V[w > 0], w[w > 0])
    same_sums(found, expected)
    assert found.extent.radius == expected.extent.radius
    none = KeyValueMoments.empty(3, 2)
    assert none.add(K, V, np.zeros(30)) is none


def test_nothing_given_is_written_to_and_nothing_returned_is_shared():
    rng = np.random.default_rng(2)
    K, V, w = rng.standard_normal((30, 3)), rng.standard_normal((30, 2)), rng.random(30)
    before = [x.copy() for x in (K, V, w)]
    one = moments_of(K, V, w)
    kept = {f.name: np.copy(getattr(one, f.name)) for f in fields(one) if f.name in SUMS}
    one.add(K, V).merge(one, K[0]).times(0.5).moved(2.0, K[0], 1.0, V[0], 1.0)
    one.closure(K)
    for x, y in zip((K, V, w), before, strict=True):
        np.testing.assert_array_equal(x, y)
    for name, value in kept.items():
        np.testing.assert_array_equal(getattr(one, name), value)


def test_other_numbers_of_columns_are_refused():
    with pytest.raises(ValueError, match="columns of keys differ: 2 and 3"):
        KeyValueMoments.empty(2, 1).merge(KeyValueMoments.empty(3, 1))
    with pytest.raises(ValueError, match="columns of values differ: 1 and 2"):
        KeyValueMoments.empty(2, 1).merge(KeyValueMoments.empty(2, 2))


def test_the_size_is_that_of_the_state_and_does_not_grow():
    rng = np.random.default_rng(3)
    moments = KeyValueMoments.empty(64, 64)
    assert moments.size == KeyValueMoments.floats(64, 64) == 8840
    sizes = set()
    for _ in range(5):
        moments = moments.add(rng.standard_normal((100, 64)), rng.standard_normal((100, 64)))
        sizes.add(moments.nbytes)
    # the two triangles that size leaves out are held
    assert sizes == {8 * (moments.size + 64 * 63)}


# -- heavy keys


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(1, 3))
def test_leverages_are_exact_affine_leverages(seed, n, d):
    rng = np.random.default_rng(seed)
    K = np.concatenate([np.eye(d + 1, d), rng.integers(-4, 5, (n, d)).astype(float)])
    found = moments_of(K, K).leverages(K)
    exact = [float(x) for x in exact_leverage(K, intercept=True)]
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    np.testing.assert_allclose(moments_of(K, K, np.full(len(K), 4.0)).leverages(K), found / 4)


def test_leverages_know_neither_shift_nor_scale():
    rng = np.random.default_rng(4)
    K = rng.standard_normal((200, 4))
    plain = moments_of(K, K).leverages(K)
    other = K * [1e-60, 1e60, 1.0, 3.0]
    np.testing.assert_allclose(moments_of(other, K).leverages(other), plain, rtol=1e-9)
    np.testing.assert_allclose(moments_of(K + 10, K).leverages(K + 10), plain, rtol=1e-7)
    assert (KeyValueMoments.empty(4, 4).leverages(K) == np.inf).all()


# -- the closure


def gauss_hermite(d, nodes=60):
    """Return points and weights with the moments of the standard normal law."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(*[x] * d, indexing="ij"), axis=-1).reshape(-1, d)
    weights = np.stack(np.meshgrid(*[w] * d, indexing="ij"), axis=-1).reshape(-1, d).prod(axis=1)
    return grid, weights / weights.sum()


@pytest.mark.parametrize("d", [1, 2])
def test_the_closure_is_exact_for_gaussian_keys_and_values(d):
    rng = np.random.default_rng(5)
    points, weights = gauss_hermite(d)
    mixing, mean, slope = (
        rng.standard_normal((d, d)),
        rng.standard_normal(d),
        rng.standard_normal((d, 3)),
    )
    K = np.tile(points @ mixing.T + mean, (2, 1))
    noise = np.repeat([[1.0], [-1.0]], len(points), axis=0)  # independent of the keys
    V = K @ slope + 2.0 + noise
    moments = moments_of(K, V, np.tile(weights, 2))
    Q = rng.standard_normal((50, d)) / 2
    exact = adversary.truth(Q, K, V, np.tile(weights, 2))
    log_normaliser, outputs = moments.closure(Q)
    np.testing.assert_allclose(log_normaliser, exact.log_normaliser.astype(float), atol=1e-12)
    np.testing.assert_allclose(outputs, exact.outputs.astype(float), atol=1e-11)


@given(adversary.rows(m=100))
def test_the_closure_stays_within_bounds_and_box(rows):
    moments = moments_of(rows.K, rows.V, rows.w)
    with np.errstate(all="raise", under="ignore"):
        log_normaliser, outputs = moments.closure(rows.Q)
    lower, upper = moments.spread(rows.Q).log_sum_exp()
    assert np.isfinite(log_normaliser).all()
    assert ((lower <= log_normaliser) & (log_normaliser <= upper)).all()
    live = rows.w > 0
    assert (outputs >= rows.V[live].min(axis=0)).all()
    assert (outputs <= rows.V[live].max(axis=0)).all()
    # at the query zero all is known
    assert log_normaliser[0] == pytest.approx(np.log(rows.w.sum()), abs=1e-12)
    room = 64 * U * np.abs(rows.V).max() * len(rows.V)
    np.testing.assert_allclose(outputs[0], rows.w @ rows.V / rows.w.sum(), atol=room)


def test_without_rows_the_closure_is_nothing():
    log_normaliser, outputs = KeyValueMoments.empty(2, 3).closure(np.ones((4, 2)))
    np.testing.assert_array_equal(log_normaliser, -np.inf)
    np.testing.assert_array_equal(outputs, np.zeros((4, 3)))


def test_keys_of_1e150_leave_no_nan():
    rng = np.random.default_rng(6)
    K, V = 1e150 * rng.standard_normal((100, 4)), rng.standard_normal((100, 2))
    with np.errstate(all="raise", under="ignore"):
        moments = moments_of(K, V).add(K, V).merge(moments_of(K, V), K[0])
        assert np.isfinite(moments.leverages(K)).all()
        Q = np.concatenate([np.eye(4) * size for size in (1e-300, 1e-150, 1.0, 1e150, 1e300)])
        log_normaliser, outputs = moments.closure(Q)
        lower, upper = moments.spread(Q).log_sum_exp()
    assert not np.isnan(np.concatenate([lower, upper])).any()
    assert np.isfinite(log_normaliser).all()
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(log_normaliser[:4], np.log(300.0), atol=1e-10)
