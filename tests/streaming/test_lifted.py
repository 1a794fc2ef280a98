"""Lifted factors: the normaliser of an even power, exact but for rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import U

from levsketch.algorithms.heavy import scaled_queries
from levsketch.backends import CpuBackend
from levsketch.linalg import NO_EXPONENT
from levsketch.sketches.symmetric import SymmetricPower
from levsketch.sketches.tensorsketch import TensorSketch
from levsketch.streaming.lifted import LiftedFactor

CPU = CpuBackend()
EVEN = [2, 4, 6, 8]
BLOCK = 64


def absorbed(K, p, block=BLOCK, state=None):
    """Return the factor of rows K, whole blocks first, as a stream hands them over."""
    if state is None:
        state = LiftedFactor.empty(SymmetricPower(K.shape[1], p // 2), True, block)
    done = 0
    while len(K) - done >= block:
        count = min((len(K) - done) // block, state.run_length())
        state = state.absorb(CPU, K[done : done + count * block])
        done += count * block
    return state if done == len(K) else state.absorb_short(CPU, K[done:])


def asked(state, Q):
    """Return norms, and what rounding may hide, in units of ``2**-top`` a query."""
    e = np.where(state.exponents > NO_EXPONENT, state.exponents, 0)
    Q = np.where(state.exponents > NO_EXPONENT, Q, 0.0)
    scaled = scaled_queries(Q, e)
    mantissa, own = np.frexp(Q)
    top = np.max(np.where(mantissa != 0, own + e, -(10**6)), axis=1, initial=-(10**6))
    norms, hidden = state.norms(state.whitening(CPU), scaled)
    return norms, hidden, top


def brute(K, Q, top, p):
    """Return ``(sum_l <q 2**-top, k_l>^p)^(1/2)`` in long double, and the sum of sizes."""
    with np.errstate(under="ignore"):
        Q = np.ldexp(Q.astype(np.longdouble), -np.where(top > -(10**5), top, 0)[:, None])
        products, sizes = (
            Q @ K.T.astype(np.longdouble),
            np.abs(Q) @ np.abs(K.T.astype(np.longdouble)),
        )
        return np.sqrt((products**p).sum(axis=1)), np.sqrt((sizes**p).sum(axis=1))


def check(state, K, Q, p):
    norms, hidden, top = asked(state, Q)
    true, size = brute(K, Q, top, p)
    error = np.abs(norms - true).astype(float)
    columns = state.lift.size
    # relative to the size of terms that may cancel: sums of p/2 products, a QR and a norm
    assert (error <= 64 * (p + columns) * U * size.astype(float)).all()
    # and within what the factor itself says of rounding and of its blocks
    assert (error <= 1.01 * hidden + 2e-4 * norms + 64 * (p + columns) * U * norms).all()


QUERIES = np.random.default_rng(99).standard_normal((12, 3))


@pytest.mark.parametrize("p", EVEN)
@pytest.mark.parametrize("n", [1, 10, 64, 1000, 5000])
def test_norms_are_sums_over_all_rows(p, n):
    K = np.random.default_rng(n).standard_normal((n, 3))
    check(absorbed(K, p), K, np.concatenate([QUERIES, np.eye(3), K[:5], np.zeros((1, 3))]), p)


@pytest.mark.parametrize("p", EVEN)
@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e300])
def test_queries_of_any_size_are_answered_alike(p, size):
    K = np.random.default_rng(0).standard_normal((500, 3))
    check(absorbed(K, p), K, size * QUERIES, p)
    # each column of a query its own size
    check(absorbed(K, p), K, QUERIES * [size, 1, 1 / size], p)


@pytest.mark.parametrize("p", EVEN)
@pytest.mark.parametrize(
    "sizes", [[1e-150] * 3, [1e150] * 3, [1e-150, 1, 1e150], [1e-300, 1, 1e300]]
)
def test_keys_of_any_size_are_summed_alike(p, sizes):
    K = np.random.default_rng(1).standard_normal((700, 3)) * sizes
    check(absorbed(K, p), K, np.concatenate([QUERIES / sizes, QUERIES, np.eye(3)]), p)


@pytest.mark.parametrize("p", EVEN)
@pytest.mark.parametrize("late", [1, 65, 640])
def test_columns_that_appear_late_are_in(p, late):
    K = np.random.default_rng(2).standard_normal((700, 3))
    K[:late, 1] = 0
    check(absorbed(K, p), K, np.concatenate([QUERIES, np.eye(3)]), p)


@pytest.mark.parametrize("p", EVEN)
@pytest.mark.parametrize("powers", [[60, 60, 60], [60, 0, -60], [0, 300, 0], [41, 39, 40]])
def test_columns_that_grow_in_mid_stream_are_in(p, powers):
    K = np.random.default_rng(3).standard_normal((900, 3))
    K[400:] = np.ldexp(K[400:], powers)
    sizes = np.ldexp(1.0, np.maximum(powers, 0))
    check(absorbed(K, p), K, np.concatenate([QUERIES / sizes, QUERIES, np.eye(3)]), p)


@pytest.mark.parametrize("p", [2, 4, 8, 60])
def test_rows_that_grow_by_less_than_the_headroom_do_not_overflow(p):
    # 2^39 to a degree of 30 is beyond the range
    K = np.random.default_rng(4).standard_normal((300, 1))
    K[150:] *= 2.0**39
    state = absorbed(K, p)
    norms, _, top = asked(state, np.ones((1, 1)))
    true, _ = brute(K, np.ones((1, 1)), top, p)
    np.testing.assert_allclose(norms, true.astype(float), rtol=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from(EVEN), st.integers(1, 4))
def test_any_batches_and_scales_leave_a_right_sum(seed, p, d):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 600))
    K = rng.standard_normal((n, d)) * np.exp(rng.uniform(0, 5) * rng.standard_normal((n, 1)))
    K = np.ldexp(K, rng.integers(-60, 60, d) * (rng.random((n, 1)) < 0.3))
    Q = rng.standard_normal((6, d))
    check(absorbed(K, p), K, np.concatenate([Q, Q / np.abs(K).max(axis=0)]), p)


@pytest.mark.parametrize("p", EVEN)
def test_blocks_handed_over_one_by_one_leave_the_same_bits(p):
    rng = np.random.default_rng(5)
    K = rng.standard_normal((64 * 40, 3))
    K[64 * 17 + 5 :] *= 2.0**55
    whole, one_by_one = absorbed(K, p), None
    for i in range(0, len(K), BLOCK):
        one_by_one = absorbed(K[i : i + BLOCK], p, state=one_by_one)
    np.testing.assert_array_equal(whole.exponents, one_by_one.exponents)
    assert whole.factor.gram_error == one_by_one.factor.gram_error
    for (level, G), (other, H) in zip(whole.factor.grams, one_by_one.factor.grams, strict=True):
        assert level == other
        np.testing.assert_array_equal(G, H)
    pairs = zip(whole.factor.factors, one_by_one.factor.factors, strict=True)
    for (level, (R, e)), (other, (S, f)) in pairs:
        assert level == other
        np.testing.assert_array_equal(R, S)
        np.testing.assert_array_equal(e, f)


@pytest.mark.parametrize("p", EVEN)
@pytest.mark.parametrize("size", [1.0, 1e-100, 1e100])
def test_merged_factors_are_those_of_all_rows(p, size):
    rng = np.random.default_rng(6)
    A, B = rng.standard_normal((300, 3)), size * rng.standard_normal((900, 3))
    B[:, 2] = 0
    K = np.concatenate([A, B])
    Q = np.concatenate([QUERIES, QUERIES / max(1.0, size), np.eye(3)])
    for first, second in ((A, B), (B, A)):
        check(absorbed(first, p).merge(CPU, absorbed(second, p)), K, Q, p)


@pytest.mark.parametrize("p", EVEN)
def test_integers_of_deficient_rank_have_norms_of_rounding_for_orthogonal_queries(p):
    K = np.random.default_rng(7).integers(-4, 5, (800, 2)) @ np.array([[1.0, 1, 0], [0, 1, 1]])
    state = absorbed(K, p)
    check(state, K, np.concatenate([QUERIES, [[1.0, -1, 1]]]), p)
    norms, hidden, _ = asked(state, np.array([[1.0, -1.0, 1.0]]))
    assert norms[0] <= hidden[0]


@pytest.mark.parametrize("p", [4, 8])
def test_bounds_of_lifted_rows_are_at_least_what_their_own_query_gives(p):
    rng = np.random.default_rng(8)
    K = rng.standard_normal((1000, 2)) * np.exp(rng.standard_normal((1000, 1)))
    state = absorbed(K, p)
    bounds = state.bounds_of(CPU, state.whitening(CPU), K)
    Q = np.concatenate([K, K @ np.linalg.pinv(K.T @ K), rng.standard_normal((500, 2))])
    values = (Q @ K.T).astype(np.longdouble) ** p
    attained = (values / values.sum(axis=1, keepdims=True)).max(axis=0)
    assert (bounds >= attained.astype(float) * (1 - 1e4 * U)).all()
    assert bounds.sum() <= state.lift.size * 1.001
    # bounds against earlier rows hold too
    earlier = absorbed(K[:640], p)
    old = earlier.bounds_of(CPU, earlier.whitening(CPU), K)
    assert (old >= attained.astype(float) * (1 - 1e4 * U)).all()


def test_rows_in_columns_that_a_whitening_has_not_seen_are_not_bounded_by_it():
    K = np.random.default_rng(9).standard_normal((640, 2)) * [1, 0]
    state = absorbed(K, 4)
    assert state.bounds_of(CPU, state.whitening(CPU), np.array([[1.0, 1e-3], [0.0, 1.0]]))[1] == 1
    later = absorbed(np.random.default_rng(10).standard_normal((64, 2)), 4, state=state)
    bounds = later.bounds_of(CPU, state.whitening(CPU), np.array([[1.0, 1e-3], [1.0, 0.0]]))
    assert bounds[0] == 1
    assert bounds[1] < 0.1


def test_a_sketch_proves_no_bound():
    K = np.random.default_rng(11).standard_normal((500, 3))
    state = LiftedFactor.empty(TensorSketch.make(3, 2, 32, 0), False, 64)
    state = absorbed(K, 4, state=state)
    assert (state.bounds_of(CPU, state.whitening(CPU), K) == 1).all()
    norms, _, top = asked(state, QUERIES)
    true, _ = brute(K, QUERIES, top, 4)
    # an error of order ||q||^2 ||K K^T||_F / sqrt(size), not relative to the sum
    assert 0.3 < np.median(norms / true.astype(float)) < 3
