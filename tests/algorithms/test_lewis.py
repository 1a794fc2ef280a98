"""Lewis weights: the fixed point, whatever the rows."""

import warnings

import numpy as np
import oracles
import pytest
import scipy.sparse
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracles import U
from sklearn.exceptions import ConvergenceWarning
from strategies import conditioned, gaussian, keys, low_rank, make, zero_columns, zero_rows

from levsketch import CertificationWarning, leverage_scores, lewis_weights
from levsketch.algorithms.leverage import whitening_of
from levsketch.algorithms.lewis import fit_lewis
from levsketch.backends import CpuBackend

CPU = CpuBackend()
EXPONENTS = [0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 20.0]
TOL = 1e-9


def solved(K, p, tol=TOL):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        w = lewis_weights(K, p, tol=tol, max_iter=1000)
    # what float64 cannot certify need not converge either
    kinds = [x.category for x in caught]
    if CertificationWarning in kinds:
        raise CertificationWarning
    assert not kinds, caught[0].message
    return w


def error(p, tol=TOL):
    """Return how far weights are from the fixed point at most, relatively, near it.

    What is left after a step that changes nothing by more than ``tol``: the iteration
    contracts by ``|p - 2| / (p + 2)``.
    """
    return 4 * tol / (1 - abs(p - 2) / (p + 2)) + 1e3 * U


@pytest.mark.parametrize("p", EXPONENTS)
@settings(max_examples=12)
@given(keys(max_rows=150, max_columns=5))
@example(make(low_rank, 0, 150, 5))
@example(make(zero_rows, 1, 150, 4))
def test_weights_are_leverage_scores_of_the_rows_that_they_scale(p, made):
    K = made.K.astype(np.float64)
    rounding = whitening_of(CPU, K).error
    assume(rounding < 1e-11)  # hides no step of size TOL
    sizes = (np.abs(K) / np.maximum(np.abs(K).max(axis=0), 1e-320)).max(axis=1)
    # test_rows_of_any_size_have_their_weight_in_one_dimension is about rows smaller than this
    assume((sizes[sizes > 0] > 1e-100).all())
    try:
        w = solved(K, p)
    except CertificationWarning:
        return
    zero = ~made.K.any(axis=1)
    assert (w[zero] == 0).all()
    assume((w[~zero] > 1e-100).all())
    basis = made.basis[~zero].astype(np.longdouble)
    scale = np.asarray(w[~zero], np.longdouble) ** np.longdouble(0.5 - 1 / p)
    scaled = basis * scale[:, None]
    off = oracles.slack(scaled)
    assume(off < 1e-6)
    tau = oracles.leverage(scaled)
    # the residual is that of c^(p/2) / w, a power p/2 of tau / w
    np.testing.assert_allclose(
        np.log(np.asarray(tau / w[~zero], float)),
        0,
        atol=(2 / p) * (TOL + 64 * rounding) + 64 * off,
    )
    assert w.sum() == pytest.approx(made.rank, rel=(2 / p) * (TOL + 64 * rounding) + 64 * off)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("n", [40, 3000])
def test_weights_sum_to_the_exact_rank(p, n):
    for kind in (gaussian, low_rank, zero_rows, zero_columns):
        made = make(kind, 3, n, 4)
        assert solved(made.K, p).sum() == pytest.approx(made.rank, rel=error(p) * 2 / p)


def test_weights_for_squares_are_leverage_scores():
    for kind in (gaussian, low_rank, zero_rows, conditioned):
        K = make(kind, 4, 2000, 5).K
        np.testing.assert_array_equal(lewis_weights(K, 2.0, max_iter=1), leverage_scores(K))


@pytest.mark.parametrize("p", EXPONENTS)
def test_weights_do_not_depend_on_the_basis_nor_on_the_order(p):
    rng = np.random.default_rng(5)
    K, M = rng.standard_normal((200, 4)), rng.standard_normal((4, 4))
    w = solved(K, p)
    limit = error(p) + 1e3 * U * np.linalg.cond(M) * max(1, p)
    np.testing.assert_allclose(solved(K @ M, p), w, rtol=limit)
    np.testing.assert_allclose(solved(1e-120 * K, p), w, rtol=limit)
    order = rng.permutation(200)
    np.testing.assert_allclose(solved(K[order], p), w[order], rtol=limit)
    np.testing.assert_allclose(solved(K * [1e80, 1, 1e-80, 3], p), w, rtol=limit)
    more = np.concatenate([K, np.zeros((9, 4))])
    np.testing.assert_allclose(solved(more, p), np.append(w, np.zeros(9)), rtol=limit)


@pytest.mark.parametrize("p", EXPONENTS)
def test_copies_share_the_weight_of_one_row_that_is_as_much(p):
    rng = np.random.default_rng(6)
    K, m = rng.standard_normal((30, 3)), 5
    several = np.concatenate([K, np.tile(K[:1], (m - 1, 1)), -K[1:2]])
    w = solved(several, p)
    for j, copies in ((0, [0, *range(30, 29 + m)]), (1, [1, 29 + m])):
        np.testing.assert_allclose(w[copies], w[j], rtol=error(p))
    # m copies of k add as much to any sum of |<q, k>|^p as m^(1/p) k
    one = K.copy()
    one[0] *= m ** (1 / p)
    one[1] *= 2 ** (1 / p)
    np.testing.assert_allclose(solved(one, p), w[:30] * [m, 2, *[1] * 28], rtol=error(p) + 64 * U)


@pytest.mark.parametrize("p", EXPONENTS)
def test_rows_of_any_size_have_their_weight_in_one_dimension(p):
    # there w_j is |a_j|^p over the sum of them
    a = np.concatenate([10.0 ** np.arange(-150, 151, 10), -(10.0 ** np.arange(140, 151)), [0.0]])
    logs = p * np.log(np.abs(a[:-1]), dtype=np.longdouble)
    true = np.append(np.exp(logs - logs.max() - np.log(np.exp(logs - logs.max()).sum())), 0)
    w = solved(a[:, None], p)
    seen = true > 1e-290  # else the weight itself underflows
    np.testing.assert_allclose(w[seen], true[seen].astype(float), rtol=error(p) + 1e5 * U)
    assert (w[~seen] <= 1e-289).all()
    assert w[-1] == 0


@pytest.mark.parametrize("p", EXPONENTS)
def test_heavy_tails_keep_the_sum_and_a_lone_row_its_one(p):
    rng = np.random.default_rng(7)
    most = 345 if p > 0.1 else 40  # 1e-150 to 1e150; w^(1-2/p) must stay in float64's range
    sizes = np.exp(rng.uniform(-most, most, (2000, 1)))
    K = rng.standard_normal((2000, 3)) * sizes
    assert solved(K, p).sum() == pytest.approx(3, rel=error(p) * 2 / p)
    if p > 0.1:  # there the weights of squares differ by 50^19, which no float64 can certify
        lone = np.concatenate([np.ones((50, 2)), [[1.0, 1.0 + 2.0**-20]]])
        assert solved(lone, p)[-1] == pytest.approx(1, rel=error(p) + 2**21 * 1e3 * U)
    axis = rng.standard_normal((500, 3)) * [1, 1, 0]
    axis[77] = [0, 0, 1e-300]
    assert solved(axis, p)[77] == pytest.approx(1, rel=error(p))


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 5), (3, 7), (7, 7)])
@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, 8.0])
def test_independent_rows_weigh_one(n, d, p):
    K = np.random.default_rng(8).standard_normal((n, d))
    np.testing.assert_allclose(solved(K, p), 1, rtol=error(p))
    np.testing.assert_allclose(solved(np.repeat(K, 3, axis=0), p), 1 / 3, rtol=error(p))


@pytest.mark.parametrize("p", EXPONENTS)
def test_zero_rows_weigh_nothing_and_all_zeros_are_fine(p):
    np.testing.assert_array_equal(solved(np.zeros((5, 2)), p), np.zeros(5))


def test_very_small_exponents_weigh_almost_alike():
    # as p goes to zero, |x|^p goes to one: no weight may vanish
    w = solved(np.random.default_rng(9).standard_normal((1000, 2)), 0.01, tol=1e-3)
    assert w.sum() == pytest.approx(2, rel=0.3)  # e^(2 tol / p)
    assert w.min() > 1e-4
    assert w.max() < 1e-2


# At a rate of |p-2|/(p+2) a step; from weights that are all equal.
STEPS = {1.0: 21, 3.0: 16, 4.0: 23, 6.0: 37, 8.0: 50}


@pytest.mark.parametrize("p", STEPS)
def test_a_few_dozen_steps_converge(p):
    K = np.random.default_rng(10).standard_normal((1000, 8))
    fit = fit_lewis(CPU, K, p, 1e-10, 500)
    assert abs(fit.steps - STEPS[p]) <= 4
    assert fit.residual <= 1e-10
    tails = K * np.exp(3 * np.random.default_rng(11).standard_normal((1000, 1)))
    assert fit_lewis(CPU, tails, p, 1e-10, 500).steps <= 1.3 * STEPS[p] + 4


@pytest.mark.parametrize("p", [0.3, 1.0, 1.5, 2.5, 4.0, 8.0])
def test_each_step_contracts_at_the_proved_rate_near_the_solution(p):
    K = np.random.default_rng(12).standard_normal((300, 4))
    first = fit_lewis(CPU, K, p, 1e-30, 12).residual
    later = fit_lewis(CPU, K, p, 1e-30, 17).residual
    assert later <= first * (abs(p - 2) / (p + 2)) ** 5 * 1.2 + 1e3 * U


def test_too_few_steps_warn_with_the_residual_and_give_usable_weights():
    K = np.random.default_rng(13).standard_normal((400, 3)) ** 5
    with pytest.warns(ConvergenceWarning, match=r"p=8 .* tol=1e-09 in max_iter=3 .* by (\d)"):
        w = lewis_weights(K, 8, tol=TOL, max_iter=3)
    assert (w > 0).all()
    fit = fit_lewis(CPU, K, 8.0, TOL, 3)
    tau = oracles.leverage(K * np.sqrt(fit.squares)[:, None])
    np.testing.assert_allclose(fit.values * fit.squares, np.asarray(tau, float), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.bool_])
def test_narrow_types_are_worked_in_double_and_given_back_narrow(dtype):
    K = (4 * np.random.default_rng(14).standard_normal((300, 3))).astype(dtype)
    w = lewis_weights(K, 3)
    assert w.dtype == leverage_scores(K).dtype
    assert (w.dtype == np.float32) == (dtype in (np.float16, np.float32))
    wide = lewis_weights(K.astype(np.float64), 3)
    np.testing.assert_array_equal(w, wide.astype(w.dtype))


def test_stacks_are_independent_problems():
    K = np.random.default_rng(15).standard_normal((2, 3, 60, 4))
    w = lewis_weights(K, 1)
    assert w.shape == (2, 3, 60)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(w[i], lewis_weights(K[i], 1))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 1.5, 3.0, 4.0]))
def test_integer_rows_of_deficient_rank_have_the_weights_of_their_coordinates(seed, p):
    made = make(low_rank, seed, 60, 5)
    full = made.basis[:, np.abs(made.basis).max(axis=0) > 0]
    limit = error(p) + 1e6 * U
    np.testing.assert_allclose(solved(made.K, p), solved(full, p), rtol=limit)


def test_a_million_to_one_block_of_rows_is_no_harder_than_one():
    K = np.random.default_rng(16).standard_normal((5000, 3))
    K[2500:] *= 1e6
    w = solved(K, 4)
    assert w.sum() == pytest.approx(3, rel=error(4))
    # seen from afar the small rows are nothing
    np.testing.assert_allclose(w[2500:], solved(K[2500:], 4), rtol=1e-5)


@pytest.mark.parametrize("p", [0, -1.0, np.nan, np.inf])
def test_exponents_must_be_positive_and_finite(p):
    with pytest.raises(ValueError, match=r"p must be in \(0, inf\)"):
        lewis_weights(np.ones((3, 2)), p)


def test_what_cannot_be_weighed_is_refused_by_name():
    K = np.ones((30, 2))
    for wrong in ("3", None, True):
        with pytest.raises(TypeError, match="p must be a real number"):
            lewis_weights(K, wrong)
    for wrong in (0, -3, 2.5, True, np.inf):
        with pytest.raises((TypeError, ValueError), match="max_iter must be"):
            lewis_weights(K, 1, max_iter=wrong)
    for wrong in (0.0, -1e-3, np.nan):
        with pytest.raises(ValueError, match="tol must be in"):
            lewis_weights(K, 1, tol=wrong)
    with pytest.raises(ValueError, match=r"K must have shape \(\.\.\., n, d\)"):
        lewis_weights(K[0], 1)
    with pytest.raises(ValueError, match="at least one row"):
        lewis_weights(K[:0], 1)
    with pytest.raises(TypeError, match="sparse"):
        lewis_weights(scipy.sparse.csr_array(K), 1)
    for value, kind in ((np.nan, "NaN"), (-np.inf, "infinity")):
        for p in (0.5, 2, 4):
            bad = np.ones((3000, 2))
            bad[2100, 1] = value
            with pytest.raises(ValueError, match=f"{kind}.*row 2100, column 1"):
                lewis_weights(bad, p)


def test_max_iter_of_any_integer_type_is_a_number():
    K = np.random.default_rng(17).standard_normal((30, 2))
    np.testing.assert_array_equal(lewis_weights(K, 1, max_iter=np.int64(200)), lewis_weights(K, 1))
