"""Certificates: what they prove holds for any admissible weights and any query."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import U

from levsketch.functions import Huber, Power, Tukey

HOELDER = [2.0, 2.005, 2.5, 3.0, 4.0, 8.0, 20.0]
LEWIS = [0.3, 0.5, 1.0, 1.5, 1.99]
FUNCTIONS = [Power(p) for p in HOELDER + LEWIS] + [Huber(), Tukey()]
# What powers of up to ten, and a pseudo-inverse of a few columns, round.
ROUNDING = 1e4 * U


def queries(K, f, rng):
    """Return many queries (m, d): random ones, vertices, and the best of squares, of any length."""
    n, d = K.shape
    pairs = list(combinations(range(n), d - 1))[:200]
    vertices = [np.linalg.svd(K[list(rows)])[2][-1] for rows in pairs] if d > 1 else []
    Q = np.concatenate(
        [rng.standard_normal((20, d)), K @ np.linalg.pinv(K.T @ K), *[vertices or K]]
    )
    if f.homogeneous:
        return Q
    sizes = np.abs(Q @ K.T).max(axis=1, keepdims=True)
    return np.concatenate([Q / sizes * x for x in np.geomspace(1e-2, 1e6, 12)])


def shares(K, f, Q):
    """Return ``f(<q, k_j>) / sum_l f(<q, k_l>)`` for queries (m, d), shape (m, n)."""
    products = np.abs(Q @ K.T)
    if f.homogeneous:
        products /= products.max(axis=1, keepdims=True)
    values = f(products)
    return values / values.sum(axis=1, keepdims=True)


def attained(K, f, rng, steps=40):
    """Return the largest share (n,) that a search finds for each row."""
    Q = queries(K, f, rng)
    found = shares(K, f, Q)
    best, at = found.max(axis=0), Q[found.argmax(axis=0)]
    for step in np.geomspace(0.5, 1e-3, steps):
        noise = step * rng.standard_normal((8, *at.shape))
        tried = at + noise * np.linalg.norm(at, axis=1, keepdims=True)
        value = np.stack([np.diagonal(shares(K, f, Q)) for Q in tried])
        winner = value.argmax(axis=0)
        better = value.max(axis=0) > best
        best = np.maximum(best, value.max(axis=0))
        at[better] = tried[winner, np.arange(len(at))][better]
    return best


def weights(f, rng, n):
    """Return admissible weights that have converged to nothing."""
    v = np.exp(rng.uniform(0, 4) * rng.standard_normal(n))
    if f.homogeneous and f.p == 2.005:
        return np.ones(n)  # the only admissible ones so close to squares
    if f.homogeneous and f.p == 2.0:
        return np.ones(n)
    return v if f.homogeneous else np.minimum(v, 1.0)


def values_and_level(f, K, v):
    rule = f.certificate
    c = np.einsum("ij,jk,ik->i", K, np.linalg.pinv((K * v[:, None]).T @ K), K)
    parts = rule.parts(v, c)
    return c, float(parts.sum() if rule.additive else parts.max())


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(4, 14))
@example(0, 1, 4)
@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_no_query_beats_the_bound_of_any_admissible_weights(f, seed, d, n):
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((n, d)) * np.exp(rng.uniform(0, 2) * rng.standard_normal((n, 1)))
    v = weights(f, rng, n)
    u = f.certificate.bounds(*values_and_level(f, K, v))
    assert (attained(K, f, rng) <= u * (1 + ROUNDING)).all()


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_bounds_are_sharp_for_the_best_weights_in_one_dimension(f):
    a = np.array([0.3, 1.0, -2.0, 5.0, 1.0])
    if f.homogeneous:
        v = np.ones(5) if f.p < 2.01 and f.p >= 2.0 else np.abs(a) ** (f.p - 2.0)
        true = np.abs(a) ** f.p / (np.abs(a) ** f.p).sum()
        u = f.certificate.bounds(*values_and_level(f, a[:, None], v))
        # unit weights lose up to n^(p/2 - 1) between 2 and 2.01
        slack = 5**0.005 if f.p == 2.005 else 1 + ROUNDING
        assert (u >= true * (1 - ROUNDING)).all()
        assert (u <= true * slack).all()
        return
    for j in range(5):
        v = np.minimum(1.0, a[j] ** 2 / a**2)
        u = f.certificate.bounds(*values_and_level(f, a[:, None], v))
        assert u[j] == pytest.approx(1 / np.minimum(1, a**2 / a[j] ** 2).sum(), rel=ROUNDING)


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
@pytest.mark.parametrize("power", [-30, -1, 0, 2, 40])
def test_multiplying_all_weights_by_a_power_of_four_changes_no_bound(f, power):
    rng = np.random.default_rng(1)
    K, rule = rng.standard_normal((12, 3)), f.certificate
    v = weights(f, rng, 12)
    c, level = values_and_level(f, K, v)
    if rule.times(1.0, 1) != 1.0:  # else masses are one, or values v c
        moved, scaled = v * 4.0**power, c * 4.0**-power
        parts = rule.parts(moved, scaled)
        total = parts.sum() if rule.additive else parts.max()
        # v^(p/(p-2)) magnifies the rounding of v
        np.testing.assert_allclose(rule.times(level, power), total, rtol=ROUNDING)
        again = rule.bounds(scaled, rule.times(level, power))
        np.testing.assert_allclose(again, rule.bounds(c, level), rtol=ROUNDING)
    assert rule.times(level, 0) == level


@pytest.mark.parametrize("p", [2.02, 2.5, 3.0, 4.0, 20.0, 0.3, 1.0, 1.99])
@pytest.mark.parametrize("power", [-(10**5), -600, 600, 10**5])
def test_levels_that_leave_the_range_become_zero_or_infinite(p, power):
    # shards of 1e-100 and 1e100 are brought together by such powers
    level = Power(p).certificate.times(1.0, power)
    assert level >= 0
    assert (level > 1) == (power > 0)


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
@pytest.mark.parametrize("ratio", [1.0, 0.7, 1e-9])
def test_shrunk_is_the_level_of_smaller_values(f, ratio):
    rng = np.random.default_rng(2)
    rule, v, c = f.certificate, weights(f, rng, 20), rng.uniform(0.1, 1, 20)
    parts = [rule.parts(v, x) for x in (c, ratio * c)]
    old, new = (p.sum() if rule.additive else p.max() for p in parts)
    np.testing.assert_allclose(rule.shrunk(old, ratio), new, rtol=ROUNDING)


EXTREME = np.array([0.0, 5e-324, 1e-310, 1e-160, 1e-9, 1.0, 1e9, 1e160, 1e300, np.inf])


@pytest.mark.parametrize("f", [*FUNCTIONS, Power(0.01), Power(300.0)], ids=str)
@pytest.mark.parametrize("level", [1e-90, 0.01, 1.0, 1e90])
def test_weights_are_admissible_whatever_the_values(f, level):
    rule, rank = f.certificate, 3
    v = rule.weights(EXTREME, level, rank)
    assert np.isfinite(v).all()
    assert (v >= 0).all()
    parts = rule.parts(v, EXTREME)
    # p/(p-2) up to 200 magnifies the rounding of v and of the level
    magnified = f.p / (f.p - 2) if f.homogeneous and f.p > 2.01 else 4
    slack = 1 + 16 * U * magnified * (8 + np.log(1e90))
    if rule.additive:
        most = level / rank if f.p > 2.01 else 1.0
        assert (parts <= most * slack).all()
    else:
        assert (parts <= level * slack).all()
    if not f.homogeneous:
        assert (v <= 1).all()


@pytest.mark.parametrize("f", [*FUNCTIONS, Power(0.01), Power(300.0)], ids=str)
def test_bounds_are_numbers_and_nothing_known_is_infinite(f):
    # NaN would compare as below any eps
    for level in (0.0, 1e-300, 1.0, 1e300, np.inf):
        u = f.certificate.bounds(EXTREME, level)
        assert not np.isnan(u).any()
        assert u[-1] == np.inf
        assert (u >= 0).all()
    assert np.isinf(f.certificate.bounds(EXTREME[1:], np.inf)).all() or f.spec()[1] == {"p": 2.0}
