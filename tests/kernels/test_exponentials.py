"""Exponentials and their passes: right to the rounding, on every level, wherever numbers lie."""

import mpmath
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import U

from levsketch._kernels import blocks, exponentials
from levsketch.backends.cpu import use_instruction_set
from levsketch.backends.exponentials import exp

CHOSEN = blocks.tiles_name()  # by LEVSKETCH_SIMD, if that is set: the other tests need it so
LEVELS = [name for name in ("baseline", "avx2", "avx512") if blocks.select_tiles(name)]
use_instruction_set(CHOSEN)
LARGEST, SMALLEST = 709.782712893384, -745.1332191019411  # exp is finite, and not zero, up to here
LOG2 = float(np.log(2.0))
FENCE = 8


@pytest.fixture(params=LEVELS)
def level(request):
    use_instruction_set(request.param)
    yield request.param
    use_instruction_set(CHOSEN)


def hard_arguments(seed=0):
    """Return arguments of all sizes, and both neighbours of where the reduction changes its k."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(-745, np.log(750), 20_000)) * rng.choice([-1, 1], 20_000)
    halves = (np.arange(-1076, 1025) + 0.5) * LOG2
    whole = np.arange(-1075, 1025) * LOG2
    exact = np.concatenate([halves, whole])
    near = [exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf)]
    spread = rng.uniform(-745.2, 709.8, 100_000), rng.uniform(-1, 1, 50_000)
    denormal = rng.uniform(-745.2, -707.0, 20_000)
    return np.concatenate([sizes, *near, *spread, denormal])


def ulps(found, x):
    """Return the errors of exponentials in units of the last place, given a long double exp."""
    finite = x <= LARGEST
    truth = np.exp(x[finite].astype(np.longdouble))
    places = np.maximum(np.frexp(truth)[1] - 53, -1074)
    return np.ldexp(np.abs(found[finite].astype(np.longdouble) - truth), -places)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider")
def test_exponentials_are_within_one_unit_in_the_last_place(level):
    x = hard_arguments()
    assert ulps(exp(x.copy()), x).max() < 1.0  # at most 0.98


def test_exponentials_are_those_of_mpmath(level):
    x = hard_arguments(1)[::97]
    x = x[(x > SMALLEST) & (x < LARGEST)]
    found = exp(x.copy())
    with mpmath.workdps(40):
        for a, y in zip(x, found, strict=True):
            off = abs(mpmath.mpf(float(y)) - mpmath.exp(mpmath.mpf(float(a))))
            assert off < np.spacing(y), a


def test_ends_and_special_values(level):
    beyond = np.nextafter(LARGEST, np.inf), np.nextafter(SMALLEST, -np.inf)
    huge = np.finfo(float).max
    x = np.array([LARGEST, beyond[0], 710.0, 1e4, huge, np.inf])
    found = exp(x.copy())
    assert np.isfinite(found[0])
    np.testing.assert_array_equal(found[1:], np.inf)
    x = np.array([SMALLEST, beyond[1], -746.0, -1e4, -huge, -np.inf])
    np.testing.assert_array_equal(exp(x.copy()), [5e-324, 0, 0, 0, 0, 0])
    assert np.isnan(exp(np.array([np.nan, -np.nan]))).all()
    tiny = [0.0, -0.0, 5e-324, -5e-324, 1e-308, U / 4, -U / 4]
    np.testing.assert_array_equal(exp(np.array(tiny)), 1.0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_depend_on_no_place_and_nothing_else_is_written(level, threads):
    x = hard_arguments(2)
    whole = exp(x.copy())
    for n in [*range(40), 1000, 20_001]:
        for offset in range(0, 9):
            held = np.full(FENCE + offset + n + FENCE, 7.25)
            part = held[FENCE + offset : FENCE + offset + n]
            part[:] = x[:n]
            exponentials.exp(part, level, threads)
            np.testing.assert_array_equal(part, whole[:n])
            outside = np.delete(held, np.s_[FENCE + offset : FENCE + offset + n])
            np.testing.assert_array_equal(outside, 7.25)


def fenced(A):
    """Return a copy of a matrix in the middle of a buffer, and a check of what is around it."""
    held = np.full(A.size + 2 * FENCE + 1, 7.25)
    inside = held[FENCE + 1 : FENCE + 1 + A.size].reshape(A.shape)
    inside[:] = A

    def untouched():
        around = np.concatenate([held[: FENCE + 1], held[FENCE + 1 + A.size :]])
        return bool((around == 7.25).all())

    return inside, untouched


@pytest.mark.parametrize("scale", [1.0, 0.7, 2.0**-40])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 31, 32, 33, 64, 67, 300])
def test_softmax_weights_are_those_of_numpy(level, n, scale):
    A = np.random.default_rng(n).standard_normal((5, n)) * 30
    A[1] = -3.0
    A[2] -= 1e300
    found, untouched = fenced(A)
    top = np.full(5, np.nan)
    exponentials.softmax(found, scale, top, level, 2)
    logits = A * scale
    np.testing.assert_array_equal(top, logits.max(axis=1))
    np.testing.assert_array_equal(found, exp(np.ascontiguousarray(logits - top[:, None])))
    np.testing.assert_array_equal(found.max(axis=1), 1.0)
    assert untouched()


def test_a_nan_is_told_and_no_weight_is_zero(level):
    for n in (1, 5, 8, 40, 71):
        for j in range(n):
            A = np.zeros((2, n))
            A[0, j], A[1, (j + 1) % n] = np.nan, -np.inf
            top = np.empty(2)
            exponentials.softmax(A, 0.5, top, level, 1)
            assert np.isnan(top[0])
            assert np.isnan(A[0]).all()
            if n > 1:
                np.testing.assert_array_equal(A[1], np.arange(n) != (j + 1) % n)


@pytest.mark.parametrize("order", [0, 1])
def test_remainders_lose_no_digits(level, order):
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(-300, np.log(700), 600)) * rng.choice([-1, 1], 600)
    g = np.concatenate([sizes, rng.uniform(-1, 1, 600), [0.0, LOG2 / 2, -LOG2 / 2, 320.0, -320.0]])
    found = g[None].copy()
    exponentials.remainder(found, order, np.ones(1), np.ones(len(g)), level, 1)
    with mpmath.workdps(700):
        for a, y in zip(g, found[0], strict=True):
            truth = mpmath.expm1(mpmath.mpf(float(a))) - order * mpmath.mpf(float(a))
            # beyond log(2) / 2 at most 2.8 (of 12) times a remainder is taken off again
            assert abs(float(y) - truth) <= 40 * U * abs(truth) + 5e-324, a


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 8), (5, 33), (40, 100)])
def test_remainders_are_scaled_by_row_and_column(level, shape, threads):
    rng = np.random.default_rng(shape[1])
    A, rows, columns = (rng.standard_normal(s) for s in (shape, shape[0], shape[1]))
    found, untouched = fenced(A)
    exponentials.remainder(found, 1, rows, columns, level, threads)
    for i in range(shape[0]):
        for j in range(shape[1]):
            one = A[i : i + 1, j : j + 1].copy()
            exponentials.remainder(one, 1, rows[i : i + 1], columns[j : j + 1], level, 1)
            assert one[0, 0] == found[i, j]
    assert untouched()


def pursuit(seed, n, c, k, b):
    """Return a Gram matrix, values for all rows, and the numbers of k + b rows to take in."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, max(n, k + b) + 2))
    return X @ X.T, rng.standard_normal((c, n)), rng.permutation(n)[: k + b]


@given(st.integers(0, 2**32 - 1), st.integers(1, 140), st.integers(1, 9), st.integers(0, 16))
@example(0, 64, 3, 6)
@example(0, 65, 3, 7)
@example(0, 128, 1, 16)
def test_a_step_of_the_pursuit_is_a_step_of_cholesky(seed, n, c, b):
    b = min(b, n // 2)
    k = min(9, n - b) if n > 4 else 0
    H, inner, which = pursuit(seed, n, c, k, b)
    root = np.empty((k, n))
    if k:
        L = np.linalg.cholesky(H[np.ix_(which[:k], which[:k])])
        root = np.linalg.solve(L, H[which[:k]])
    new = which[k:]
    seen = np.ascontiguousarray(root[:, new])
    block = H[np.ix_(new, new)] - seen.T @ seen
    lower = np.linalg.cholesky(block) if b else np.empty((0, 0))
    rest = inner - (np.linalg.solve(L, inner[:, which[:k]].T).T @ root if k else 0.0)
    known = np.linalg.solve(lower, rest[:, new].T) if b else np.empty((0, c))
    left = np.diagonal(H) - np.sum(root * root, axis=0)
    fresh = np.linalg.solve(lower, H[new] - seen.T @ root) if b else np.empty((0, n))
    expected = rest - known.T @ fresh
    remains = np.maximum(left - np.sum(fresh * fresh, axis=0), 0.0)
    floor = 1e-9 * np.diagonal(H).max()
    inverted = lower.copy()
    np.fill_diagonal(inverted, 1.0 / np.diagonal(lower))
    results = []
    for level in LEVELS:
        for threads in (1, 2):
            both = np.concatenate([root, H[new]])
            (held, untouched), (values, apart) = fenced(both), fenced(rest)
            own, gain = left.copy(), np.full(n, np.nan)
            exponentials.pursue(
                held, seen, inverted, known, values, own, floor, gain, level, threads
            )
            assert untouched()
            assert apart()
            np.testing.assert_array_equal(held[:k], root)
            condition = np.linalg.cond(H)
            size = 1e3 * U * condition * np.abs(H).max()
            np.testing.assert_allclose(held[k:], fresh, atol=size)
            np.testing.assert_allclose(
                values, expected, atol=size * (1 + np.abs(known).max(initial=0))
            )
            np.testing.assert_allclose(own, remains, atol=size)
            squares = np.sum(values * values, axis=0)
            wanted = np.where(own > floor, squares / np.maximum(own, floor), 0.0)
            np.testing.assert_allclose(gain, wanted, rtol=100 * U)
            results.append([held.copy(), values.copy(), own, gain])
    for i in range(0, len(results), 2):
        for one, two in zip(results[i], results[i + 1], strict=True):
            np.testing.assert_array_equal(one, two)


@given(st.integers(0, 2**32 - 1), st.integers(1, 64), st.integers(1, 5), st.integers(1, 16))
def test_few_rows_are_taken_greedily(seed, n, c, count):
    H, rest, _ = pursuit(seed, n, c, 0, 0)
    count = min(count, n)
    for level in LEVELS:
        which, L, known = np.empty(count, np.intp), np.zeros((count, count)), np.empty((count, c))
        work = np.empty(n * (2 + count))
        found = exponentials.take(H.copy(), rest.copy(), 1e-9, work, which, L, known, level)
        own, left = H.copy(), rest.copy()
        assert found == count == len(set(which))
        for i in which:
            gain = np.sum(left * left, axis=0) / np.maximum(np.diagonal(own), 1e-9)
            assert gain[i] >= gain.max() * (1 - 1e-6)
            left = left - np.outer(left[:, i], own[i] / own[i, i])
            own = own - np.outer(own[i], own[i] / own[i, i])
            own[i], own[:, i], left[:, i] = 0.0, 0.0, 0.0
        lower = L.copy()
        np.fill_diagonal(lower, 1.0 / np.diagonal(L))
        condition = np.linalg.cond(H)
        inside = H[np.ix_(which, which)]
        np.testing.assert_allclose(lower @ lower.T, inside, atol=100 * U * np.abs(H).max())
        atol = 1e3 * U * condition * np.abs(rest).max()
        np.testing.assert_allclose(lower @ known, rest[:, which].T, atol=atol)


def test_unknown_levels_are_refused():
    with pytest.raises(ValueError, match="sse9"):
        exponentials.exp(np.ones(3), "sse9", 1)
