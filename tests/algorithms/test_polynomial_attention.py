"""Attention from moments: no certificate is ever violated, powers are exact, scales are free."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import WIDE, U
from scipy.stats import binom

from levsketch.algorithms import softmax_moments
from levsketch.algorithms.polynomial_attention import answers, covered_mass, error_bound, outputs
from levsketch.backends.cpu import CpuBackend
from levsketch.streaming.polynomial import PolynomialPolicy, PolynomialStream

BACKEND = CpuBackend()
WIDTH = 4  # columns of keys
KINDS = ["normal", "far", "clusters", "heavy", "outlier", "alike", "drift", "flat", "binary"]


def asked(function="softmax", degree=2, sketch="exact", size=0, decay=1.0, floats=10**6, seed=0):
    return PolynomialPolicy(function, degree, sketch, size, decay, 1.0, floats, seed)


def streamed(policy, K, V, w=None, batches=1):
    X = np.column_stack([K, V, np.ones(len(K)) if w is None else w])
    state = PolynomialStream.empty(policy, K.shape[1], V.shape[1])
    for part in np.array_split(X, batches):
        state = state.update(BACKEND, part)
    return state


def keys_of(kind, n, rng, d=WIDTH):
    K = rng.standard_normal((n, d))
    if kind == "far":
        return K + 10.0 ** rng.uniform(0, 5)
    if kind == "clusters":
        return 3 * rng.standard_normal((5, d))[rng.integers(0, 5, n)] + K / 10
    if kind == "heavy":
        return K / np.sqrt(rng.chisquare(3, (n, 1)) / 3)
    if kind == "outlier":
        K[rng.integers(n)] *= 20
    if kind == "alike":
        return np.repeat(K[:1], n, axis=0)
    if kind == "drift":
        return K + np.linspace(0, 5, n)[:, None]
    if kind == "flat":
        return K * 10.0 ** -np.arange(0, 3 * d, 3.0)
    if kind == "binary":
        return np.sign(K)
    return K


def queries_of(K, rng, m=60):
    """Return queries of many lengths, many of them in directions that are bad for the keys."""
    d = K.shape[1]
    apart = K - K.mean(axis=0)
    _, vectors = np.linalg.eigh(apart.T @ apart)
    far = apart[np.argmax(np.linalg.norm(apart, axis=1))]
    pool = [*rng.standard_normal((m, d)), *vectors.T, *-vectors.T, far, -far, K.mean(axis=0)]
    Q = np.array(pool)[rng.integers(0, len(pool), m)]
    reach = np.abs(Q @ apart.T).max(axis=1, keepdims=True)
    Q = Q / np.where(reach > 0, reach, 1.0) * 10.0 ** rng.uniform(-3, 1.5, (m, 1))
    Q[0] = 0.0
    return Q


def truth(K, V, Q, w=None, power=None):
    """Return outputs in long double, and what they may themselves be off by."""
    wide = np.longdouble
    Q, center = Q.astype(wide), K.astype(wide).mean(axis=0)
    if power is None:
        x = Q @ (K - center).T
        weights = np.exp(x - x.max(axis=1, keepdims=True))
        loss = 4 * WIDE * (np.abs(Q) @ np.abs(K - center).T + np.abs(x)).max(axis=1)
    else:
        x = Q @ K.T.astype(wide)
        top = np.abs(x).max(axis=1, keepdims=True)
        square = (x / np.where(top > 0, top, 1)) ** 2
        weights = functools.reduce(np.multiply, [square] * (power // 2))
        loss = np.full(len(Q), WIDE)
    weights = weights if w is None else weights * w
    total = weights.sum(axis=1, keepdims=True)
    Y = (weights @ V) / np.where(total > 0, total, 1)
    size = np.linalg.norm(np.abs(V).max(axis=0))
    return Y, (loss + 16 * len(K) * WIDE) * size


def distance(found, true):
    return np.linalg.norm((found - true).astype(np.float64), axis=1)


def values_of(K, rng, columns=3):
    V = np.tanh(K @ rng.standard_normal((K.shape[1], columns)))
    return (V + 0.2 * rng.standard_normal(V.shape)) * [1, 10, 1e-3] + [0, 0, 1e5]


# -- softmax


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 4, 6]),
    st.sampled_from([1, 300, 512, 700, 1500]),
    st.sampled_from(["plain", "weights", "decay"]),
)
@example(0, 2, 1500, "decay")
def test_no_certificate_is_violated(kind, seed, degree, n, rows):
    # 9 kinds x 20 examples x 60 queries
    rng = np.random.default_rng(seed)
    K, w, decay = keys_of(kind, n, rng), np.ones(n), 1.0
    V, Q = values_of(K, rng), queries_of(K, rng)
    if rows == "weights":
        w = np.where(rng.random(n) < 0.3, 0.0, 10.0 ** rng.uniform(-4, 4, n))
        w[0] = 1.0
    if rows == "decay":
        decay = float(rng.choice([0.9, 0.999]))
    state = streamed(asked(degree=degree, decay=decay), K, V, w, batches=int(rng.integers(1, 4)))
    found = answers(state, Q)
    true, loss = truth(K, V, Q, w * decay ** np.arange(n - 1, -1, -1.0))
    assert (distance(found.outputs, true) <= found.bounds + loss).all()
    live = V[w > 0]
    assert (found.outputs >= live.min(axis=0)).all()
    assert (found.outputs <= live.max(axis=0)).all()
    # what is asked one by one is the same
    Y, beyond = outputs(state, Q)
    assert (found.outputs == Y).all()
    assert beyond == found.beyond.sum()
    assert (error_bound(state, Q) == found.bounds).all()
    if n < 512:
        assert (covered_mass(state, Q) == 1).all()
        assert not beyond
        size = np.linalg.norm(np.abs(V).max(axis=0))
        # of exact sums no more is lost than logits lose
        logits = np.abs(Q) @ np.abs(K - K.mean(axis=0)).max(axis=0) + 1
        far = np.abs(Q) @ np.abs(K).max(axis=0) + 1
        assert (found.bounds <= 1e4 * U * size * (logits + far)).all()
    else:
        assert (covered_mass(state, Q) == 0).all()


@pytest.mark.parametrize("degree", [2, 4, 6])
def test_errors_are_as_small_as_the_degree_promises(degree):
    rng = np.random.default_rng(1)
    K = rng.standard_normal((5000, WIDTH))
    V, Q = np.tanh(K[:, :2]), rng.standard_normal((200, WIDTH)) * 0.5 / 2
    found = answers(streamed(asked(degree=degree), K, V), Q)
    true, _ = truth(K, V, Q)
    error = distance(found.outputs, true)
    # measured: 8e-4, 2e-5, 5e-7 and .23, .01, 5e-4
    assert np.median(error) <= {2: 2e-3, 4: 4e-5, 6: 1e-6}[degree]
    assert np.median(found.bounds) <= {2: 0.5, 4: 0.02, 6: 1e-3}[degree]
    assert found.beyond.mean() <= 0.05


def test_each_of_two_polynomials_is_better_for_some_logits(monkeypatch):
    rng = np.random.default_rng(2)
    Q, without = np.linspace(0.1, 1.0, 10)[:, None], {}
    for kind, K in (
        ("normal", rng.standard_normal((4000, 1))),
        ("ends", np.sign(rng.standard_normal((4000, 1)))),
    ):
        V = np.tanh(K)
        state, (true, _) = streamed(asked(degree=4), K, V), truth(K, V, Q)

        def error(state=state, true=true):
            return np.median(distance(answers(state, Q).outputs, true))

        both = error()
        with monkeypatch.context() as patch:  # without the polynomial of an interval
            patch.setattr(softmax_moments, "_USEFUL", -100)
            without[kind, "interval"] = error() / both
        with monkeypatch.context() as patch:  # without that of a normal law
            nothing = np.zeros((len(Q), 5))
            patch.setattr(softmax_moments, "hermite_polynomials", lambda *_, p=nothing: p)
            without[kind, "normal"] = error() / both
    assert without["normal", "interval"] == without["ends", "normal"] == 1.0
    assert without["normal", "normal"] > 10
    assert without["ends", "interval"] > 100


def test_queries_beyond_all_polynomials_are_counted_and_stay_in_the_box():
    rng = np.random.default_rng(3)
    K = rng.standard_normal((2000, WIDTH))
    V = values_of(K, rng)
    Q = rng.standard_normal((50, WIDTH)) * np.repeat([0.01, 1e3, 1e30, 1e200, 1e307], 10)[:, None]
    state = streamed(asked(degree=4), K, V)
    found = answers(state, Q)  # warnings are errors
    assert found.beyond.tolist() == [False] * 10 + [True] * 40
    assert outputs(state, Q)[1] == 40
    assert np.isfinite(found.outputs).all()
    assert (found.bounds <= np.linalg.norm(np.ptp(V, axis=0)) * (1 + 1e-9)).all()
    true = V[np.argmax(Q[10:].astype(np.longdouble) @ K.T.astype(np.longdouble), axis=1)]
    assert (distance(found.outputs[20:], true[10:]) <= found.bounds[20:]).all()


@pytest.mark.parametrize("decay", [1.0, 0.99])
def test_before_the_first_block_is_full_all_is_exact(decay):
    rng = np.random.default_rng(4)
    K, V = rng.standard_normal((511, WIDTH)), rng.standard_normal((511, 2))
    Q = 3 * rng.standard_normal((40, WIDTH))
    state = streamed(asked(decay=decay), K, V, batches=7)
    true, _ = truth(K, V, Q, decay ** np.arange(510, -1, -1.0))
    found = answers(state, Q)
    assert (distance(found.outputs, true) <= 1e-13).all()
    assert (found.bounds <= 1e-11).all()
    assert (covered_mass(state, Q) == 1.0).all()


@pytest.mark.parametrize("function", ["softmax", 2.0])
@pytest.mark.parametrize("rows", [100, 2000])
@pytest.mark.parametrize("power", [-900, -332, 332, 700])
def test_values_and_weights_of_any_size_give_the_same_digits(function, rows, power):
    rng = np.random.default_rng(5)
    K = rng.standard_normal((rows, WIDTH))
    V, Q, w = values_of(K, rng)[:, :2], queries_of(K, rng), rng.random(rows)
    plain = answers(streamed(asked(function), K, V, w), Q)
    scaled = answers(streamed(asked(function), K, np.ldexp(V, power), np.ldexp(w, -power)), Q)
    assert np.ldexp(scaled.outputs, -power).tobytes() == plain.outputs.tobytes()
    np.testing.assert_allclose(np.ldexp(scaled.bounds, -power), plain.bounds, rtol=1e-12)
    # columns that differ by 1e200
    mixed = V * [1e100, 1e-100]
    true, loss = truth(K, mixed, Q, w, power=None if function == "softmax" else 2)
    found = answers(streamed(asked(function), K, mixed, w), Q)
    assert (distance(found.outputs, true) <= found.bounds + loss).all()
    apart = np.abs((found.outputs - plain.outputs * [1e100, 1e-100]) / [1e100, 1e-100])
    assert (apart <= 1e-9 * np.abs(V).max()).all()


@pytest.mark.parametrize("power", [-900, 332, 900])
def test_keys_of_any_size_give_the_same_digits(power):
    rng = np.random.default_rng(6)
    K = rng.standard_normal((1300, WIDTH))
    V, Q = values_of(K, rng), queries_of(K, rng)
    for function in ("softmax", 4.0):
        policy = asked(function, 4)
        plain = answers(streamed(policy, K, V), Q)
        scaled = answers(streamed(policy, np.ldexp(K, power), V), np.ldexp(Q, -power))
        assert scaled.outputs.tobytes() == plain.outputs.tobytes()
        np.testing.assert_allclose(scaled.bounds, plain.bounds, rtol=1e-12)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    from levsketch.algorithms import polynomial_attention

    rng = np.random.default_rng(7)
    K = rng.standard_normal((1000, WIDTH))
    state, Q = streamed(asked(degree=4), K, values_of(K, rng)), rng.standard_normal((3000, WIDTH))
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(polynomial_attention, "thread_count", lambda work, n=threads: n)
        found.append(answers(state, Q))
    for other in found[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found[0], other, strict=True))
    # nor do other queries matter, but for how they are cut
    assert answers(state, Q[:1024]).outputs.tobytes() == found[0].outputs[:1024].tobytes()


def test_shards_merged_in_any_order_answer_alike():
    rng = np.random.default_rng(8)
    K = rng.standard_normal((2400, WIDTH)) + np.linspace(0, 2, 2400)[:, None]
    V, Q = values_of(K, rng), queries_of(K, rng)
    for policy, power in ((asked(degree=4), None), (asked(4.0, 4), 4)):
        true, loss = truth(K, V, Q, power=power)
        once = answers(streamed(policy, K, V), Q).outputs
        parts = [streamed(policy, K[a:b], V[a:b]) for a, b in ((0, 700), (700, 1800), (1800, 2400))]
        for one, two, three in itertools.permutations(parts):
            for merged in (
                one.merge(BACKEND, two).merge(BACKEND, three),
                one.merge(BACKEND, two.merge(BACKEND, three)),
            ):
                found = answers(merged, Q)
                assert (distance(found.outputs, true) <= found.bounds + loss).all()
                if power is not None:
                    assert (np.abs(found.outputs - once) <= 1e-9).all()


# -- powers


@pytest.mark.parametrize("p", [2, 4, 6])
@pytest.mark.parametrize("n", [1, 513, 100_000])
def test_powers_are_exact_for_any_number_of_rows(p, n):
    rng = np.random.default_rng(9)
    K = rng.standard_normal((n, WIDTH))
    V, Q = values_of(K, rng), rng.standard_normal((20, WIDTH)) * 10.0 ** rng.uniform(-9, 9, (20, 1))
    state = streamed(asked(float(p), p), K, V, batches=3)
    true, loss = truth(K, V, Q, power=p)
    found = answers(state, Q)
    error = distance(found.outputs, true)
    assert (error <= found.bounds + loss).all()
    # relative to the spread of values, which are centred: but 1e5 is rounded like any number
    if n > 1:
        assert (error <= 1e-11 * np.linalg.norm(V.std(axis=0)) + 8 * U * 1e5).all()
        assert (found.bounds <= 1e-3).all()
    assert not found.beyond.any()
    assert (covered_mass(state, Q) == 1.0).all()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 6]), st.sampled_from([1, 600, 1500]))
@example(0, 2, 600)
def test_no_certificate_of_powers_is_violated(kind, seed, p, n):
    # 9 kinds x 10 examples x 60 queries
    rng = np.random.default_rng(seed)
    K, decay = keys_of(kind, n, rng), float(rng.choice([1.0, 0.99]))
    V, Q = values_of(K, rng), queries_of(K, rng)
    w = np.where(rng.random(n) < 0.3, 0.0, rng.random(n) + 1e-3)
    w[-1] = 1.0
    state = streamed(asked(float(p), p, decay=decay), K, V, w, batches=3)
    found = answers(state, Q)
    true, loss = truth(K, V, Q, w * decay ** np.arange(n - 1, -1, -1.0), power=p)
    assert (distance(found.outputs, true) <= found.bounds + loss).all()
    assert (found.outputs[0] == 0).all()
    assert found.bounds[0] == 0.0


def test_queries_orthogonal_to_all_keys_have_zeros():
    K = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [-3.0, -3.0, 0.0]] * 300)
    V = np.arange(900.0)[:, None] + 7
    Q = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 5.0]])
    for p in (2, 4):
        found = answers(streamed(asked(float(p), p), K, V), Q)
        true, loss = truth(K, V, Q, power=p)
        assert found.outputs[:3].tolist() == [[0.0]] * 3
        assert found.bounds[1:3].tolist() == [0.0, 0.0]
        # the first is zero by cancellation, which float64 cannot prove
        assert (distance(found.outputs, true) <= found.bounds + loss).all()
        assert found.bounds[0] >= 906
        assert found.bounds[3] <= 1e-7


def test_a_key_alone_in_its_direction_answers_for_it():
    rng = np.random.default_rng(10)
    K = np.column_stack([rng.standard_normal((2000, 2)), np.zeros(2000)])
    K[700] = [0.0, 0.0, 1e-250]
    V = rng.standard_normal((2000, 2))
    for p, decay in ((2, 1.0), (4, 1.0), (2, 0.99)):
        state = streamed(asked(float(p), p, decay=decay), K, V)
        found = answers(state, np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1e300]]))
        np.testing.assert_allclose(found.outputs, np.repeat(V[700:701], 2, axis=0), rtol=1e-12)
        # for all that is known, other keys may have lost as much to rounding
        assert (found.bounds <= 1e-5).all()


# -- sketches


@pytest.mark.parametrize("sketch", ["ams", "gaussian", "countsketch"])
def test_sketched_rows_answer_within_a_few_deviations(sketch):
    rng = np.random.default_rng(11)
    K = rng.standard_normal((700, WIDTH))
    V, Q = np.tanh(K[:, :2]) + 5, rng.standard_normal((10, WIDTH)) * 0.25
    true, _ = truth(K, V, Q)
    size, seeds = 200, 20
    weights = np.exp(Q @ (K - K.mean(axis=0)).T)
    spread = np.linalg.norm(weights - weights.mean(axis=1, keepdims=True), axis=1)
    deviation = np.sqrt(2 / size) * spread / weights.sum(axis=1)
    deviation = deviation * np.linalg.norm(V - V.mean(axis=0))
    misses = 0
    for seed in range(seeds):
        found = answers(streamed(asked(degree=4, sketch=sketch, size=size, seed=seed), K, V), Q)
        misses += int((distance(found.outputs, true) > 3 * deviation + 1e-3).sum())
        assert (distance(found.outputs, true) <= found.bounds).all()
        assert not found.beyond.any()
    # Chebyshev's inequality: each with probability 1/9 at most; queries of one seed are not
    # independent, so that seeds are counted as if all ten went together
    assert misses <= 10 * binom.ppf(1 - 1e-6, seeds, 1 / 9)


def test_rows_of_a_stream_that_is_not_aligned_are_exact_while_they_wait():
    rng = np.random.default_rng(12)
    K, V = rng.standard_normal((300, WIDTH)), rng.standard_normal((300, 2)) * 1e300
    Q = rng.standard_normal((20, WIDTH))
    state = PolynomialStream.empty(asked(sketch="ams", size=9), WIDTH, 2)
    state = state.update_values(V).update_keys(K)
    true, _ = truth(K, V / 1e300, Q)
    found = answers(state, Q)
    assert (distance(found.outputs / 1e300, true) <= 1e-13).all()
    assert (found.bounds <= 1e-10 * 1e300).all()


def test_sketched_features_are_certified_by_moments_alone():
    rng = np.random.default_rng(13)
    K = rng.standard_normal((3000, 12))
    V, Q = values_of(K, rng), rng.standard_normal((40, 12)) / 12
    state = streamed(asked(degree=4, floats=4 * 400), K, V)
    assert state.memory.moments.size <= 1600
    found, (true, loss) = answers(state, Q), truth(K, V, Q)
    error = distance(found.outputs, true)
    assert (error <= found.bounds + loss).all()
    assert np.median(error) <= 0.1 * np.linalg.norm(V.std(axis=0))
    # and with all features both are smaller
    exact = answers(streamed(asked(degree=4), K, V), Q)
    assert np.median(distance(exact.outputs, true)) <= np.median(error) / 10
    assert (exact.bounds < found.bounds).all()
