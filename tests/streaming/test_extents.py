"""Extents: no product with a key that went by is outside, and no average of values farther."""

import adversary
import numpy as np
import pytest
from adversary import WIDER
from hypothesis import given
from hypothesis import strategies as st
from oracles import U

from levsketch.streaming.extents import KeyExtent, ValueExtent, row_norms, shaped
from levsketch.streaming.key_value_moments import KeyValueMoments

NONE = np.zeros((0, 0))


def shape_of(*parts):
    """Return what gives an ellipsoid like all these rows."""
    rows = np.concatenate(parts)
    floor = 1e-7 * np.sqrt(np.mean(rows**2, axis=0))
    return lambda: shaped(
        rows.mean(axis=0), np.cov(rows.T, bias=True).reshape(2 * [len(floor)]), floor
    )


def extent_of(*parts):
    extent = KeyExtent.empty(parts[0].shape[1])
    for i, rows in enumerate(parts):
        extent = extent.add(rows, shape_of(*parts[: i + 1]))
    return extent


def highest(Q, K):
    """Return the largest products in long double, and what they may be off by."""
    Q, K = Q.astype(WIDER), np.asarray(K, WIDER)
    hidden = (Q.shape[1] + 2) * adversary.WIDE * (np.abs(Q) @ np.abs(K).max(axis=0))
    return (Q @ K.T).max(axis=1), hidden + 2.0**-1000  # products that underflow do not matter


@given(adversary.rows(m=200), st.booleans(), st.integers(-3, 9), st.integers(-30, 30))
def test_no_product_is_outside_wherever_keys_come_from(rows, moved, far, power):
    rng = np.random.default_rng(rows.seed)
    K, Q, d = rows.K, rows.Q, rows.K.shape[1]
    parts = [p for p in np.split(K, rows.cuts) if len(p)]
    extent, exact = extent_of(*parts), K.astype(WIDER)
    if moved:
        shift = rng.standard_normal(d) * 10.0**far
        first, scale = parts[0], 2.0**power
        extent = extent_of(first).merge(extent.scaled(scale).moved(shift), shape_of(first))
        exact = np.concatenate([first, exact * scale + shift])
    for sign in (1.0, -1.0):
        top, hidden = highest(sign * Q, exact)
        with np.errstate(all="raise", under="ignore"):
            found = extent.highest(sign * Q)
        assert not np.isnan(found).any()
        assert (top <= found + hidden).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_each_of_ball_box_and_ellipsoid_holds_all_keys(seed, d):
    rng = np.random.default_rng(seed)
    K, Q = (
        rng.standard_normal((60, d)) * 10.0 ** rng.uniform(-9, 9, d),
        rng.standard_normal((50, d)),
    )
    extent = extent_of(K[:30], K[30:])
    everywhere = np.full(d, np.inf)
    alone = [
        KeyExtent(extent.radius, -everywhere, everywhere, KeyExtent.empty(d).ellipsoid, 0.0),
        KeyExtent(np.inf, extent.low, extent.high, KeyExtent.empty(d).ellipsoid, 0.0),
        KeyExtent(np.inf, -everywhere, everywhere, extent.ellipsoid, 0.0),
    ]
    top, hidden = highest(Q, K)
    bounds = np.array([one.highest(Q) for one in alone])
    assert np.isfinite(bounds).all()
    assert (top <= bounds + hidden).all()
    np.testing.assert_array_equal(bounds.min(axis=0), extent.highest(Q))


def test_an_interval_is_exact():
    K = np.array([[3.0], [5.0], [4.0]])
    extent = extent_of(K)
    np.testing.assert_allclose(extent.highest(np.array([[2.0], [-2.0]])), [10.0, -6.0], rtol=1e-13)


def test_ellipsoids_know_no_scale():
    rng = np.random.default_rng(0)
    K, Q = rng.standard_normal((500, 5)), rng.standard_normal((100, 5))
    powers = 2.0 ** np.array([-40, 0, 40, 7, -3])
    plain, scaled = extent_of(K).ellipsoid, extent_of(K * powers).ellipsoid
    np.testing.assert_allclose(scaled.highest(Q / powers), plain.highest(Q), rtol=1e-12)
    mixing = np.linalg.qr(rng.standard_normal((5, 5)))[0] * [1e-3, 1, 1, 1, 10]
    mixed = extent_of(K @ mixing.T).ellipsoid
    np.testing.assert_allclose(
        mixed.highest(Q @ np.linalg.inv(mixing)), plain.highest(Q), rtol=1e-3
    )


def drifting(rng, blocks):
    return [rng.standard_normal((200, 8)) + i / 10 for i in range(blocks)]


@pytest.mark.parametrize(
    ("parts", "most"),
    [
        # as good as an ellipsoid that has seen all rows
        (lambda rng: [rng.standard_normal((200, 8)) for _ in range(30)], 1.05),
        (lambda rng: [rng.standard_normal((n, 8)) for n in [5] + 30 * [200]], 1.05),
        (lambda rng: drifting(rng, 60), 1.7),
    ],
    ids=["alike", "few first", "drift"],
)
def test_an_ellipsoid_of_the_first_rows_serves_the_others(parts, most):
    rng = np.random.default_rng(1)
    parts = parts(rng)
    K, extent = np.concatenate(parts), extent_of(*parts)
    mean, covariance = K.mean(axis=0), np.cov(K.T)
    Q = rng.standard_normal((300, 8)) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    late = extent_of(K).ellipsoid
    reach = np.median((extent.highest(Q) - Q @ mean) / (late.highest(Q) - Q @ mean))
    assert reach < most


def test_an_ellipsoid_that_was_lost_to_overflow_is_no_more():
    huge = KeyExtent.empty(2).add(np.array([[1e200, 0.0]]), lambda: None)
    assert not huge.ellipsoid.known
    later = huge.add(np.eye(2), shape_of(np.eye(2)))
    assert not later.ellipsoid.known
    assert later.highest(np.array([[1.0, 1.0]]))[0] >= 1e200
    both = extent_of(np.eye(2)).merge(huge, shape_of(np.eye(2)))
    assert both.highest(np.array([[1.0, 1.0]]))[0] >= 1e200
    gone = extent_of(np.eye(2)).scaled(2.0**-600)
    assert not gone.ellipsoid.known
    assert gone.highest(np.array([[1.0, 1.0]]))[0] >= 2.0**-600


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0, 1))
def test_the_farthest_average_is_at_a_corner_or_in_the_ball(seed, d_v, share):
    rng = np.random.default_rng(seed)
    V, rest = rng.standard_normal((20, d_v)), 3 * rng.standard_normal((5, d_v))
    extent = ValueExtent.empty(d_v).add(V[:8]).add(V[8:])
    corners = np.stack(np.meshgrid(*zip(extent.low, extent.high, strict=True)), -1).reshape(-1, d_v)
    reach = [np.linalg.norm(r + share * corners, axis=1).max() for r in rest]
    ball = np.linalg.norm(rest, axis=1) + share * np.linalg.norm(V, axis=1).max()
    found = extent.farthest(rest, np.full(5, share))
    np.testing.assert_allclose(found, np.minimum(reach, ball), rtol=1e-13)
    averages = rng.dirichlet(np.ones(20), 50) @ V
    for r, far in zip(rest, found, strict=True):
        assert (np.linalg.norm(r + share * averages, axis=1) <= far * (1 + 8 * U)).all()


def test_values_that_move_stay_inside():
    rng = np.random.default_rng(2)
    V, shift = rng.standard_normal((50, 3)), np.array([1e3, -1.0, 0.0])
    whole = ValueExtent.empty(3).add(V).moved(0.25, shift)
    moved = V * 0.25 + shift
    assert (whole.low <= moved.min(axis=0)).all()
    assert (whole.high >= moved.max(axis=0)).all()
    assert whole.radius >= np.linalg.norm(moved, axis=1).max()
    assert whole.radius <= np.linalg.norm(shift) + 2.0
    assert (whole.magnitude >= np.abs(moved).max(axis=0)).all()


def test_lengths_of_rows_neither_over_nor_underflow():
    X = np.array([[3e200, 4e200], [3e-200, 4e-200], [0.0, 0.0], [3.0, -4.0]])
    with np.errstate(all="raise", under="ignore"):
        found = row_norms(X)
    np.testing.assert_allclose(found, [5e200, 5e-200, 0.0, 5.0], rtol=1e-15)
    np.testing.assert_array_equal(row_norms(np.zeros((2, 0))), 0.0)


def test_how_much_is_held():
    extent = extent_of(np.eye(3))
    assert KeyExtent.floats(3) == 4 + 9 + 6
    assert extent.nbytes == 8 * (4 + 9 + 9)
    assert ValueExtent.floats(3) * 8 == ValueExtent.empty(3).nbytes
    assert KeyValueMoments.empty(3, 0).add(np.eye(3), np.zeros((3, 0))).extent.radius >= 1.0
