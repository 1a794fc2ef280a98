"""Bounds on sensitivities: never below what a query attains, and not far above it."""

import itertools
import warnings
from itertools import combinations

import numpy as np
import oracles
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracles import WIDE, U
from strategies import duplicates, gaussian, heavy_tails, keys, lone_axis, low_rank, make, zero_rows

from levsketch import (
    CertificationWarning,
    LeverageKeySelector,
    heavy_attention,
    leverage_scores,
    sensitivity_bounds,
    universal_set,
)
from levsketch.algorithms.leverage import whitening_of
from levsketch.algorithms.lewis import fit_lewis
from levsketch.algorithms.sensitivity import sensitivities
from levsketch.algorithms.sensitivity_bounds import (
    leave_one_out_bounds,
    leverage_bounds,
    lewis_bounds,
    lift_bounds,
)
from levsketch.backends import CpuBackend
from levsketch.functions import Huber, Power, Tukey

CPU = CpuBackend()
SMALL = [0.1, 0.3, 0.5, 0.9]
CONVEX = [1.0, 1.2, 1.5, 1.9, 2.0, 2.005, 2.5, 3.0, 4.0, 6.0, 8.0, 20.0]
FUNCTIONS = [Huber(), Huber(0.01), Tukey(), Tukey(100.0)]
EXPONENTS = [*SMALL, *CONVEX]


def quiet_bounds(K, p=2.0, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CertificationWarning)
        return sensitivity_bounds(K, p, **kwargs)


def shares(K, f, Q):
    """Return what ``f(<q, k_j>) / sum_l f(<q, k_l>)`` is at least: queries (m, d) to (m, n).

    In long double; what its rounding may hide is taken off above and added below.
    """
    products = np.abs(Q.astype(np.longdouble) @ K.astype(np.longdouble).T)
    hidden = 4 * WIDE * (np.abs(Q).astype(np.longdouble) @ np.abs(K).astype(np.longdouble).T)
    ends = [np.maximum(products - hidden, 0), products + hidden]
    if f.homogeneous:
        top = np.where(products.max(axis=1) > 0, products.max(axis=1), 1)[:, None]
        least, most = ((x / top) ** np.longdouble(f.p) for x in ends)
    else:
        least, most = (f(np.minimum(x, 1e300).astype(np.float64)) for x in ends)
    total = most.sum(axis=1, keepdims=True) - most + least
    return np.asarray(least / np.where(total > 0, total, 1), float)


def attained(K, f, seed=0, steps=25):
    """Return the largest share (n,) that a search over queries finds for each row.

    For p <= 1 some best query is orthogonal to d - 1 independent rows: these come first.
    """
    rng = np.random.default_rng(seed)
    K = K[:, K.any(axis=0)].astype(np.float64)
    n, d = K.shape
    if not d:
        return np.zeros(n)
    scale = 2.0 ** -np.frexp(np.abs(K).max(axis=0))[1]
    K = K * scale
    alive = np.flatnonzero(K.any(axis=1))
    chosen = list(itertools.islice(combinations(rng.permutation(alive), d - 1), 300))
    vertices = [np.linalg.svd(K[list(rows)])[2][-1] for rows in chosen] if d > 1 else []
    parts = [rng.standard_normal((30, d)), np.eye(d), K[alive], *([vertices] if vertices else [])]
    for v in (np.ones(n), 1 / np.maximum(np.linalg.norm(K, axis=1), 1e-100) ** 2):
        parts.append(K[alive] @ np.linalg.pinv((K * v[:, None]).T @ K))
    Q = np.concatenate(parts)
    if not f.homogeneous:
        sizes = np.abs(Q @ K.T)
        top = np.maximum(sizes.max(axis=1, keepdims=True), 1e-300)
        low = np.where(sizes > 1e-12 * top, sizes, np.inf).min(axis=1, keepdims=True)
        Q = Q[top[:, 0] > 1e-290]
        top, low = top[top[:, 0] > 1e-290], low[top[:, 0] > 1e-290]
        Q = np.concatenate([Q / s * x for s in (top, low) for x in (0.01, 0.3, 1, 3, 30, 1e9)])
    found = shares(K, f, Q)
    best, at = found.max(axis=0), Q[found.argmax(axis=0)].copy()
    for step in np.geomspace(0.5, 1e-3, steps):
        tried = at * (1 + step * rng.standard_normal(at.shape)) + (
            step * np.linalg.norm(at, axis=1, keepdims=True) * rng.standard_normal(at.shape)
        )
        value = np.diagonal(shares(K, f, tried))
        better = value > best
        best = np.maximum(best, value)
        at[better] = tried[better]
    return best


def truth(K, f):
    """Return lower bounds (n,) on the sensitivities of rows, close to them for small d."""
    best = attained(K, f)
    if f.homogeneous and f.p >= 1.0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            best = np.maximum(best, sensitivities(K, f.p, tol=1e-4, max_iter=40)[:, 0])
    return best


def check(made, f):
    K = made.K.astype(np.float64)
    bounds = quiet_bounds(K, **({"p": f.p} if f.homogeneous else {"function": f}))
    # a product and a power round; below 1e-290 squares leave the range
    lost = 64 * max(1.0, f.p if f.homogeneous else 2.0) * U
    # the basis has the same products, and no query that is orthogonal to all of them
    assert (truth(made.basis.astype(np.float64), f) * (1 - lost) <= bounds + 1e-290).all()
    assert (bounds <= 1).all()
    assert (bounds >= 0).all()
    assert (bounds[~K.any(axis=1)] == 0).all()
    assert (bounds[K.any(axis=1)] > 0).all()


@pytest.mark.parametrize("p", EXPONENTS)
@settings(max_examples=10, deadline=None)
@given(keys(max_rows=25, max_columns=3))
@example(make(heavy_tails, 5, 25, 2))
@example(make(low_rank, 1, 25, 3))
@example(make(lone_axis, 1, 25, 2))
def test_no_query_gives_a_power_more_than_its_bound(p, made):
    check(made, Power(p))


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
@settings(max_examples=10, deadline=None)
@given(keys(max_rows=25, max_columns=3))
@example(make(heavy_tails, 5, 25, 2))
@example(make(lone_axis, 1, 25, 2))
def test_no_query_gives_a_function_more_than_its_bound(f, made):
    assume(np.abs(made.K.astype(np.float64)).max() < 1e150)
    check(made, f)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("m", [1, 2, 3, 10])
def test_m_equal_keys_have_a_bound_of_one_over_m_at_least(p, m):
    # every query gives each of them 1/m
    K = np.repeat([[1.0, 3.0]], m, axis=0)
    assert (quiet_bounds(K, p) >= (1 - 4 * U) / m).all()
    assert (quiet_bounds(np.concatenate([K, np.eye(2)]), p)[:m] >= (1 - 4 * U) / (m + 2)).all()


@pytest.mark.parametrize("p", EXPONENTS)
def test_bounds_hold_in_one_dimension_for_rows_of_any_size(p):
    for a in ([1, 3], [1, 1, 1e-3], 10.0 ** np.arange(-150, 151, 25), [1, *[1e-170] * 5]):
        a = np.asarray(a, float)
        logs = p * np.log(np.abs(a).astype(np.longdouble))
        share = np.exp(logs - logs.max())
        bounds = quiet_bounds(a[:, None], p)
        assert (bounds >= np.asarray(share / share.sum(), float) * (1 - 1e3 * p * U) - 1e-300).all()


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_functions_with_a_scale_hold_in_one_dimension_for_queries_of_any_length(f):
    for a in ([1, 3], [1, 1], [1, 1, 1e-3], [1, 1, 1e-170], [1e-100, 1, 1e100], [1, 2, 3, 4]):
        a = np.asarray(a, float)
        q = np.geomspace(1e-300, 1e300, 12_001)
        with np.errstate(over="ignore", under="ignore"):
            values = f(np.minimum(q[:, None] * a, 1e300))
        values = values[values.sum(axis=1) > 1e-280]  # below, squares underflow
        attained = (values / values.sum(axis=1, keepdims=True)).max(axis=0)
        assert (quiet_bounds(a[:, None], function=f) >= attained * (1 - 64 * U)).all()


@pytest.mark.parametrize("p", [0.3, 0.5, 1.0, 1.5, 1.99, 2.5, 3.0, 4.0, 8.0])
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_leaving_a_row_out_is_never_worse_than_counting_it(p, seed, steps):
    K = make(heavy_tails if seed % 2 else gaussian, seed, 60, 3).K
    fit = fit_lewis(CPU, K, p, 1e-9, steps + 1)
    assume(fit.whitening.certified and (fit.weights > 0).all())
    less, plain = leave_one_out_bounds(fit, p), lewis_bounds(fit, p)
    assert (less <= plain * (1 + 1e4 * U * max(p, 2))).all()
    assert (plain >= attained(K, Power(p), steps=5) * (1 - 1e3 * U)).all()
    assert (less >= attained(K, Power(p), steps=5) * (1 - 1e3 * U)).all()


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 3.0, 4.0])
@pytest.mark.parametrize("n", [2, 5, 40])
def test_bounds_of_unconverged_weights_hold(p, n):
    K = np.random.default_rng(n).standard_normal((n, 2)) ** 3
    best = truth(K, Power(p))
    for steps in (1, 2, 5, 40):
        fit = fit_lewis(CPU, K, p, 1e-12, steps)
        for bound in (lewis_bounds, leave_one_out_bounds):
            assert (bound(fit, p) >= best * (1 - 1e4 * U)).all()


@pytest.mark.parametrize("p", EXPONENTS)
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bounds_from_leverage_alone_hold(p, seed):
    K = make(gaussian, seed, 20, 2).K
    assert (leverage_bounds(leverage_scores(K), p) >= truth(K, Power(p)) * (1 - 1e4 * U)).all()


@pytest.mark.parametrize("p", [4.0, 6.0, 8.0])
def test_bounds_by_lifted_rows_hold_and_are_the_best_for_many_rows(p):
    rng = np.random.default_rng(1)
    K = rng.standard_normal((1500, 2))
    K[7] *= 4
    lifted = lift_bounds(CPU, K, p)
    rows = np.argsort(-lifted)[:12]
    low = sensitivities(K, p, indices=rows, tol=1e-4)[:, 0]
    assert (lifted[rows] >= low).all()
    assert lifted.sum() <= (p / 2 + 1) * 1.01  # columns of the lift
    assert (sensitivity_bounds(K, p) <= lifted).all()
    assert (lift_bounds(CPU, K[:2], p) == 1).all()  # more columns than rows: nothing is proved


@pytest.mark.parametrize("p", [4.0, 8.0])
def test_lifted_rows_that_cannot_be_certified_bound_nothing_falsely(p):
    K = np.random.default_rng(2).standard_normal((400, 3))
    K[:, 2] = K[:, 1]
    assert (lift_bounds(CPU, K, p) == 1).all()
    assert (quiet_bounds(K, p)[:20] >= truth(K, Power(p))[:20] * (1 - 1e4 * U)).all()


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("kind", [gaussian, heavy_tails, duplicates, zero_rows, low_rank])
def test_totals_are_within_the_dimension_that_theory_allows(p, kind):
    made = make(kind, 3, 3000, 4)
    total = quiet_bounds(made.K, p).sum()
    most = made.rank ** max(1.0, p / 2)
    if p == 2.005:
        most *= 3000**0.0025  # all masses are one there
    elif p < 2:
        most *= np.exp((2 / p - 1) * 0.01)  # weights stop within one percent in c^(p/2)
    assert total <= 1.03 * most


@pytest.mark.parametrize("p", EXPONENTS)
def test_bounds_are_within_a_small_factor_of_what_is_attained(p):
    # so that the laws above are not about ones
    K = np.random.default_rng(4).standard_normal((25, 2))
    K[3] *= 5
    best = truth(K, Power(p))
    assert (quiet_bounds(K, p) <= 3 * best * 2 ** max(0, p / 2 - 1)).all()
    assert quiet_bounds(K, p)[3] <= min(1, 2.5 * best[3])


def test_bounds_for_squares_are_leverage_scores():
    for kind in (gaussian, heavy_tails, low_rank, zero_rows):
        K = make(kind, 6, 2000, 4).K
        error = whitening_of(CPU, K).error
        np.testing.assert_allclose(
            sensitivity_bounds(K), leverage_scores(K), rtol=4 * error, atol=1e-300
        )
        assert (sensitivity_bounds(K) >= leverage_scores(K)).all()


@pytest.mark.parametrize("p", EXPONENTS)
def test_a_lone_row_has_the_bound_one_and_zero_rows_zero(p):
    K = np.random.default_rng(7).standard_normal((2000, 3))
    K[:, 2] = 0
    K[5] = [0, 0, 1e-200]
    K[9] = 0
    for f in ({"p": p}, {"function": "huber"}):
        bounds = sensitivity_bounds(K, **f)
        assert bounds[5] == pytest.approx(1, rel=1e-9)
        assert bounds[9] == 0
        assert (sensitivity_bounds(np.zeros((4, 2)), **f) == 0).all()
        assert sensitivity_bounds(np.ones((1, 3)), **f)[0] == pytest.approx(1, rel=1e-9)
        np.testing.assert_allclose(sensitivity_bounds(np.eye(3)[:2], **f), 1, rtol=1e-9)


@pytest.mark.parametrize("f", [{"p": p} for p in EXPONENTS] + [{"function": "tukey"}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_narrow_bounds_are_rounded_up(f, dtype):
    K = np.random.default_rng(8).standard_normal((500, 3)).astype(dtype)
    K[:50] *= dtype(1e-4)
    narrow, wide = sensitivity_bounds(K, **f), sensitivity_bounds(K.astype(np.float64), **f)
    assert narrow.dtype == np.float32
    assert (narrow >= wide).all()
    assert (narrow <= wide * (1 + 2.0**-22) + 1e-44).all()


@pytest.mark.parametrize("f", [{"p": 0.5}, {"p": 1}, {"p": 4}, {"function": "huber"}], ids=str)
def test_bounds_do_not_depend_on_the_basis(f):
    rng = np.random.default_rng(9)
    K, M = rng.standard_normal((400, 3)), rng.standard_normal((3, 3))
    expected = sensitivity_bounds(K, **f)
    # certified bounds widen with the condition number; weights stop within one percent
    for other in (K @ M, 1e-120 * K, K * [1e50, 1, 1e-50]):
        np.testing.assert_allclose(sensitivity_bounds(other, **f), expected, rtol=1e-6)


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, 4.0])
def test_uncertified_rows_have_bounds_of_one_and_a_warning(p):
    K = np.array([[1.0, 1.0], [1.0, 1.0], [1e-17, -1e-17], [0.0, 0.0]])
    with pytest.warns(CertificationWarning):
        assert sensitivity_bounds(K, p).tolist() == [1, 1, 1, 0]


@settings(max_examples=15, deadline=None)
@given(keys(max_rows=25, max_columns=3), st.sampled_from(EXPONENTS), st.sampled_from([0.05, 0.4]))
def test_universal_sets_and_heavy_scores_miss_nothing(made, p, eps):
    K, f = made.K.astype(np.float64), Power(p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inside = universal_set(K, eps, p)
        Q = np.random.default_rng(0).standard_normal((20, K.shape[1]))
        entries = heavy_attention(Q, K, eps, p).tocoo()
    assert inside[attained(made.basis, f) >= eps * (1 + 1e-9)].all()
    stored = np.zeros((20, len(K)), bool)
    stored[entries.coords] = True
    assert stored[shares(K, f, Q) >= eps * (1 + 1e-9)].all()
    if p == 2.0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept = LeverageKeySelector(eps=eps, min_keys=0).fit(K).indices_
        np.testing.assert_array_equal(np.flatnonzero(inside), kept)


def test_stacks_are_independent_problems():
    K = np.random.default_rng(10).standard_normal((2, 2, 50, 3))
    for f in ({"p": 1}, {"p": 4}, {"function": "tukey"}):
        bounds = sensitivity_bounds(K, **f)
        for i in np.ndindex(2, 2):
            np.testing.assert_array_equal(bounds[i], sensitivity_bounds(K[i], **f))


@pytest.mark.parametrize("size", [1e-306, 1e-150, 1e150, 1e308])
@pytest.mark.parametrize("f", [{"p": p} for p in (0.3, 1, 3, 8)] + [{"function": "huber"}], ids=str)
def test_rows_at_the_ends_of_the_range_are_like_others(f, size):
    K = np.random.default_rng(11).uniform(-1, 1, (1500, 3))
    expected = sensitivity_bounds(K, **f)
    # subnormal numbers keep fewer bits
    np.testing.assert_allclose(sensitivity_bounds(K * size, **f), expected, rtol=1e-6)


def test_errors_name_what_is_wrong():
    K = np.ones((3, 2))
    for p in (0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="p must be in"):
            sensitivity_bounds(K, p)
    with pytest.raises(ValueError, match="function must be one of"):
        sensitivity_bounds(K, function="cauchy")
    for f in ({"p": 1}, {"p": 4}, {"function": "huber"}):
        bad = np.ones((2500, 2))
        bad[2400, 1] = np.nan
        with pytest.raises(ValueError, match="NaN at row 2400, column 1"):
            sensitivity_bounds(bad, **f)


def test_the_search_comes_close_to_the_truth():
    # else the laws above say little: for p = 2 leverage, for p >= 1 the proved intervals
    for p in (1.0, 1.5, 2.0, 4.0):
        K = np.random.default_rng(12).standard_normal((20, 2))
        exact = sensitivities(K, p).mean(axis=1)
        best = attained(K, Power(p))
        assert (best >= 0.98 * exact).all()
        assert (best <= exact * (1 + 1e-5)).all()
    np.testing.assert_allclose(oracles.leverage(K), sensitivities(K, 2.0)[:, 1], rtol=1e-9)


def test_functions_that_are_not_zero_at_zero_are_refused():
    class Lifted(Huber):
        def values(self, x):
            return 1.0 + x**2

    with pytest.raises(ValueError, match=r"f\(0\) = 0"):
        sensitivity_bounds([[0.0], [1.0]], function=Lifted())


@pytest.mark.parametrize("p", [200, 1e4])
def test_large_exponents_bound_what_is_there(p):
    K = np.concatenate([np.random.default_rng(0).standard_normal((2000, 2)), [[0.0, 9.0]]])
    bounds = quiet_bounds(K, p=p)
    assert bounds[-1] > 0.99
    assert np.isfinite(bounds).all()
