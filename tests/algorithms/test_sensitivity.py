"""sensitivities: intervals that hold the truth, are narrow, and say so when they are not."""

import warnings
from fractions import Fraction

import convex
import numpy as np
import oracles
import pytest
import scipy.linalg
from foreign import LIBRARIES, host
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import U
from sklearn.exceptions import ConvergenceWarning
from solving import intervals, relative, whitened
from strategies import (
    conditioned,
    duplicates,
    gaussian,
    growing,
    heavy_tails,
    keys,
    low_rank,
    make,
    smooth,
    tiny_keys,
    zero_columns,
    zero_rows,
)

from levsketch import CertificationWarning, leverage_scores
from levsketch.algorithms import sensitivity
from levsketch.algorithms.sensitivity import (
    original_queries,
    refined_intervals,
    sensitivities,
)

POWERS = (1, 1.1, 1.5, 2, 2.5, 3, 4, 6, 8, 20)
powers = st.sampled_from(POWERS)
seeds = st.integers(0, 2**32 - 1)


# ---------------------------------------------------------------- they hold the truth


@given(tiny_keys(st.integers(-4, 4).map(float), max_rows=7, max_columns=3))
@example(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [1.0, 2.0]]))
def test_for_p_one_they_hold_the_value_of_rational_arithmetic(K):
    if oracles.exact_rank(K) < K.shape[1]:
        K = np.vstack([K, np.eye(K.shape[1])])
    low, high = intervals(K, 1)
    for a, exact, b in zip(low, convex.exact_l1(K), high, strict=True):
        assert Fraction(float(a)) <= exact <= Fraction(float(b))


@given(seeds, st.integers(3, 9), powers)
@settings(max_examples=60)
def test_they_hold_the_minimum_over_a_line(seed, n, p):
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((n, 2)) * np.exp(rng.uniform(0, 3) * rng.standard_normal((n, 1)))
    K[rng.random(n) < 0.2] = K[0]
    low, high = intervals(K, p)
    for j in rng.choice(n, 2):
        true = convex.golden(K, j, p)
        # what golden sections miss, and the long double rounding of the power
        assert low[j] <= true * (1 + 64 * p * oracles.WIDE)
        assert true <= high[j]


@pytest.mark.parametrize("p", POWERS)
def test_they_hold_the_minimum_over_a_plane(p):
    K = make(gaussian, 5, 9, 3).K
    low, high = intervals(K, p, [4], tol=1e-9)
    true = convex.golden(K, 4, p, steps=70)
    assert low[0] <= true * (1 + 1e-15)
    assert true <= high[0]


@pytest.mark.parametrize("kind", [gaussian, heavy_tails, duplicates, zero_rows])
def test_for_p_one_they_hold_what_a_linear_program_finds(kind):
    K = make(kind, 1, 40, 6).K
    if kind is heavy_tails:
        K = K / np.abs(K).max(axis=1, keepdims=True) * np.geomspace(1, 1e-3, len(K))[:, None]
    low, high = intervals(K, 1, np.arange(6))
    for j in np.flatnonzero(high):
        found = convex.linear_program(K, j)
        assert low[j] * (1 - 1e-6) <= found <= high[j] * (1 + 1e-6)


@pytest.mark.parametrize("p", [1.1, 1.5, 3, 6])
def test_they_hold_what_a_cone_program_finds(p):
    K = make(gaussian, 2, 50, 6).K
    low, high = intervals(K, p, [0, 1])
    for j in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cvxpy: inexact, deprecated
            found = convex.cone_program(K, j, p)
        assert low[j] * (1 - 1e-5) <= found <= high[j] * (1 + 1e-5)


@given(keys(max_rows=120), seeds, powers)
@settings(max_examples=60)
def test_no_query_of_an_adversary_is_above_them(made, seed, p):
    rng = np.random.default_rng(seed)
    basis = made.basis * np.ldexp(1.0, -np.frexp(np.abs(made.basis).max(axis=0, initial=1e-300))[1])
    j = int(rng.integers(len(basis)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, high = intervals(made.K, p, [j])
    assert convex.ascent(basis, j, p, rng, 1, 25) <= high[0]


@given(keys(max_rows=60), seeds, powers)
@settings(max_examples=80)
def test_the_bounds_hold_for_any_query_and_any_dual_vector(made, seed, p):
    # not only for the good ones that the methods find
    rng = np.random.default_rng(seed)
    _, rows = whitened(made.K)
    bounds = sensitivity._Bounds.of(rows, p)
    j = int(rng.integers(len(rows.Z)))
    if not rows.slack[j]:
        return
    target = sensitivity._targets(rows, j)
    best = refined_intervals(rows, np.array([j]), p, tol=1e-9, max_iter=60)
    s = rows.Z @ best.queries[0]
    y = np.sign(s) * np.abs(s / np.abs(s).max()) ** (p - 1)
    y += 10.0 ** rng.uniform(-9, 0) * rng.standard_normal(len(y))
    upper = np.ldexp(bounds.upper(target, y), target.exponent) ** p
    assert upper >= best.lower[0] * (1 - 1e-14)
    q = rng.standard_normal(rows.Z.shape[1])
    lower = np.ldexp(bounds.lower(target, q, rows.Z @ q), target.exponent) ** p
    assert lower <= best.upper[0] * (1 + 1e-14)
    assert lower <= convex.ratio(rows.Z, q, p)[j] * (1 + 1e-14)


# ---------------------------------------------------------------- laws


@given(keys(max_rows=200), seeds, powers)
@settings(max_examples=60)
def test_witnesses_attain_the_lower_bounds(made, seed, p):
    K = np.asarray(made.K, np.float64)
    found, rows = whitened(K)
    if not found.certified or np.abs(found.factor.exponents).max() > 900:
        return  # long doubles must be able to hold the keys as they are, and the queries
    few = np.random.default_rng(seed).choice(len(K), 3)
    best = refined_intervals(rows, few, p, tol=1e-6, max_iter=60)
    # a query's own rounding is amplified by the condition number
    slack = 1e-12 + 64 * p * U * len(K) * found.condition * K.shape[1]
    for j, q, low in zip(few, original_queries(found, best.queries), best.lower, strict=True):
        if low > 1e-290 and slack < 0.1:
            assert convex.ratio(K, q, p)[j] >= low * (1 - slack)


@given(keys(max_rows=200))
@settings(max_examples=60)
def test_for_p_two_they_are_the_leverage_scores(made):
    found, rows = whitened(made.K)
    oracle, slack = oracles.leverage(made.basis), oracles.slack(made.basis)
    if not found.certified or slack > 1e-3:
        return
    few = np.arange(len(rows.Z))[:: len(rows.Z) // 5 + 1]
    narrow = refined_intervals(rows, few, 2.0, tol=1e-9, max_iter=60)
    for low, high in [intervals(made.K, 2, few), (narrow.lower, narrow.upper)]:
        assert (low <= oracle[few] * (1 + slack) + 1e-290).all()
        assert (high >= oracle[few] * (1 - slack) - 1e-290).all()
    np.testing.assert_allclose(
        intervals(made.K, 2)[0], leverage_scores(made.K), rtol=3 * found.error + 1e-6, atol=1e-290
    )


@given(seeds, powers, st.integers(1, 5), st.sampled_from([1.0, -2.0, 0.01, 1e6]))
@settings(max_examples=40)
def test_a_row_m_times_or_scaled_changes_by_a_law(seed, p, copies, scale):
    # 1 / sigma = 1 + R, R the least of the other rows; copies add one each, scales divide R
    K = np.random.default_rng(seed).standard_normal((12, 3))
    plain = np.array(intervals(K, p, [0], tol=1e-9)).mean()
    expected = 1 / (copies + (1 / plain - 1) / abs(scale) ** p)
    more = np.vstack([scale * K[:1]] * copies + [K[1:]])
    low, high = intervals(more, p, np.arange(copies), tol=1e-9)
    # 1 / plain - 1 cancels where the row has nearly all
    slack = 1e-8 / (1 - min(plain, 1 - 1e-6)) if abs(scale) < 1 else 1e-8
    np.testing.assert_allclose(low, expected, rtol=slack)
    np.testing.assert_allclose(high, expected, rtol=slack)


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("kind", [gaussian, heavy_tails, zero_columns])
def test_maps_of_columns_and_orders_of_rows_do_not_matter(kind, p):
    # whole numbers, so that the map is exact
    K = np.round(np.clip(make(kind, 8, 80, 4).K, -(2.0**20), 2.0**20) * 2.0**20)
    unimodular = np.array([[1.0, 2, 0, 0], [0, 1, 0, 3], [0, 0, 1, 0], [1, 2, 0, 1]])
    order = np.random.default_rng(0).permutation(80)
    scaled = np.ldexp(K, np.array([300, -300, 0, 7]))
    few = np.arange(0, 80, 16)
    low, high = intervals(K, p, few, tol=1e-8)
    for other, rows in [(K @ unimodular, few), (scaled, few), (K[order], np.argsort(order)[few])]:
        a, b = intervals(other, p, rows, tol=1e-8)
        assert (a <= high).all()
        assert (low <= b).all()


@pytest.mark.parametrize("p", POWERS)
def test_their_sum_is_at_most_what_theory_allows(p):
    for kind in (gaussian, heavy_tails, duplicates):
        low, high = intervals(make(kind, 9, 60, 3).K, p)
        assert low.sum() <= 3 ** max(1, p / 2)
        assert high.sum() >= 1.0  # any query's shares add to one


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-300])
def test_lone_rows_have_one_at_any_size(p, size):
    K = make(gaussian, 4, 60, 3).K
    K[:, 2] = 0.0
    K[17], K[18] = [0.0, 0.0, size], 0.0
    low, high = intervals(K, p, [17, 18])
    assert low[0] >= 1 - 8 * p * (60 + 64) * U
    assert high[0] == 1.0
    assert low[1] == high[1] == 0.0


def test_rows_of_all_sizes_have_tiny_but_right_shares():
    # d = 1: the shares are known; the smallest underflow, and upper bounds are never below them
    K = 2.0 ** -np.arange(0, 900, 60, dtype=float)[:, None]
    low, high = intervals(K, 3)
    exact = [Fraction(2) ** (-3 * 60 * k) for k in range(len(K))]
    for a, share, b in zip(low, exact, high, strict=True):
        assert Fraction(float(a)) <= share / sum(exact) <= Fraction(float(b))
    assert relative(low[:5], high[:5]) <= 1e-6
    assert (intervals(np.zeros((3, 2)), 1.5)[1] == 0).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_keys_beyond_float64_are_warned_of_and_held():
    hopeless = np.array([[1.0, 1.0], [1.0, 1.0], [1e-200, -1e-200]])
    with pytest.warns(CertificationWarning):
        found = sensitivities(hopeless, 3)
    assert (found[:, 0] <= [0.5, 0.5, 1.0]).all()
    assert (found[:, 1] >= [0.5, 0.5, 1.0]).all()


# ---------------------------------------------------------------- rounding


@given(seeds, st.sampled_from([gaussian, conditioned, smooth, low_rank, growing]))
@settings(max_examples=25)
@example(1, smooth)
def test_whitened_rows_are_off_by_no_more_than_their_slack(seed, kind):
    K = make(kind, seed, 8, 4).K
    found, rows = whitened(K)
    W = found.matrix[:, found.active] if found.triangular else found.matrix
    scales = [Fraction(2) ** -int(e) for e in np.where(found.active, found.factor.exponents, 0)]
    columns = oracles.fractions(W.T)
    for row, z, slack in zip(oracles.fractions(K), rows.Z, rows.slack, strict=True):
        x = [a * s for a, s in zip(row, scales, strict=True)]
        exact = [sum(a * w for a, w in zip(x, column, strict=True)) for column in columns]
        off = sum((e - Fraction(float(v))) ** 2 for e, v in zip(exact, z, strict=True))
        assert off <= Fraction(float(slack)) ** 2
        assert slack <= 64 * U * np.linalg.norm(z) + 2.0**-20 * U * found.condition


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("change", ["this row less", "this row more", "others less", "others more"])
def test_they_hold_for_any_rows_within_the_slack(p, change):
    _, rows = whitened(make(gaussian, 13, 30, 3).K)
    j, part = 4, 1e-3
    scale = np.ones(30)
    scale[[j] if change.startswith("this") else np.arange(30) != j] += (
        part if change.endswith("more") else -part
    )
    # the error is where the rows differ, and a trace elsewhere: no slack is a zero row
    slack = np.linalg.norm(rows.Z, axis=1) * np.where(scale == 1, 1e-12, 1.001 * part)
    wide = refined_intervals(rows._replace(slack=slack), np.array([j]), p, tol=1e-9, max_iter=60)
    moved = rows._replace(Z=rows.Z * scale[:, None])
    true = refined_intervals(moved, np.array([j]), p, tol=1e-9, max_iter=60)
    assert wide.lower[0] <= true.lower[0] * (1 + 1e-9)
    assert true.upper[0] <= wide.upper[0] * (1 + 1e-9)
    assert wide.lower[0] >= true.lower[0] * (1 - 0.1 * p)


@pytest.mark.parametrize("p", POWERS)
def test_the_longest_query_of_norm_one_is_bounded(p):
    # columns of signs: a query of length one has all its products equal, the least p-norm for
    # p > 2; a single row has the least one for p < 2
    signs = scipy.linalg.hadamard(64)[:, :5] / 8.0
    lone = np.vstack([np.eye(5)[:1], signs[:, 1:] @ np.eye(5)[1:]])
    for Z in (signs, lone):
        rows = sensitivity.WhitenedRows(Z, np.full(len(Z), 1e-18))
        bound = sensitivity._Bounds.of(rows, p).embedding
        q = np.eye(5)[0]
        assert bound >= 1 / np.linalg.norm(Z @ q, ord=p) * (1 - 1e-15)
        assert bound <= len(Z) ** max(0, 0.5 - 1 / p) * (1 + 1e-12)


# ---------------------------------------------------------------- decisions


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("kind", [gaussian, heavy_tails, duplicates])
def test_decisions_are_right_and_come_early(kind, p, monkeypatch):
    K = make(kind, 6, 90, 4).K
    _, rows = whitened(K)
    few, steps = np.arange(0, 90, 3), []
    minimise = sensitivity.minimise

    def counted(*args):
        for iterate in minimise(*args):
            steps.append(1)
            yield iterate

    monkeypatch.setattr(sensitivity, "minimise", counted)
    full = refined_intervals(rows, few, p, tol=1e-9, max_iter=60)
    cost = len(steps)
    for eps in np.quantile(full.lower, [0.1, 0.5, 0.9]) * 1.001:
        steps.clear()
        quick = refined_intervals(rows, few, p, tol=1e-9, max_iter=60, decide=eps)
        decided = (quick.lower >= eps) | (quick.upper < eps)
        np.testing.assert_array_equal(quick.lower[decided] >= eps, full.lower[decided] >= eps)
        assert (quick.gaps[~decided] <= 1e-9).all()
        assert (quick.lower <= full.upper).all()
        assert (full.lower <= quick.upper).all()
        assert len(steps) <= 0.7 * cost


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.bool_])
def test_leading_axes_are_problems_of_their_own(dtype):
    K = np.random.default_rng(0).integers(0, 2, (2, 3, 12, 2)).astype(dtype)
    found = sensitivities(K, 3, [0, -1])
    assert found.shape == (2, 3, 2, 2)
    assert found.dtype == np.float64
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[i], sensitivities(K[i], 3, [0, 11]))
    assert sensitivities(K, 1, []).shape == (2, 3, 0, 2)
    assert sensitivities(K[:0], 1).shape == (0, 3, 12, 2)


@pytest.mark.parametrize("library", LIBRARIES)
def test_intervals_come_in_the_library_of_the_keys(library):
    K = LIBRARIES[library](np.eye(3))
    found = sensitivities(K, 1)
    assert type(found) is type(K)
    np.testing.assert_allclose(host(found), np.ones((3, 2)))


def test_wide_intervals_are_warned_of_once():
    K = make(gaussian, 7, 100, 5).K
    with pytest.warns(ConvergenceWarning, match="sensitivities have wider") as caught:
        found = sensitivities(np.stack([K, K]), 1, range(10), max_iter=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    sure = sensitivities(K, 1, range(10))
    assert (found[0, :, 0] <= sure[:, 1]).all()
    assert (found[0, :, 1] >= sure[:, 0]).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"p": 0.5}, ValueError, "not convex; use sensitivity_bounds"),
        ({"p": "2"}, TypeError, "p must be a real number"),
        ({"p": np.inf}, ValueError, "p must be in"),
        ({"tol": 0.0}, ValueError, "tol must be in"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
        ({"indices": [0, 3]}, IndexError, r"indices must be in \[-3, 3\), got 3 at position 1"),
        ({"indices": [-4]}, IndexError, "got -4 at position 0"),
        ({"indices": [0.0]}, ValueError, "indices must be integers"),
        ({"indices": 1}, ValueError, "indices must be integers"),
        ({"indices": [True, False, True]}, ValueError, "indices must be integers"),
        ({"K": [[1.0], [np.nan]]}, ValueError, "row 1, column 0"),
        ({"K": [1.0, 2.0]}, ValueError, "must have shape"),
        ({"K": [["a"]]}, TypeError, "real numbers"),
    ],
)
def test_errors_name_what_is_wrong(change, error, text):
    with pytest.raises(error, match=text):
        sensitivities(**({"K": np.eye(3), "p": 1.5} | change))
