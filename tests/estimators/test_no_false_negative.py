"""The first law: no key outside the set can get a score >= eps, from any query."""

import warnings

import numpy as np
import oracles
import pytest
from fitting import fit, missed, quiet
from hypothesis import assume, example, given
from hypothesis import strategies as st
from oracles import WIDE, U
from strategies import (
    conditioned,
    gaussian,
    growing,
    heavy_tails,
    ill_conditioned,
    keys,
    lone_axis,
    lone_in_hyperplane,
    low_rank,
    make,
    smooth,
)

from levsketch import CertificationWarning, LeverageKeySelector, heavy_attention, universal_set
from levsketch.linalg import certified_condition

EPS = st.sampled_from([1e-3, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0])


def truth(made):
    """Return the true scores of made keys and what the oracle may be off by, relatively."""
    slack = oracles.slack(made.basis)
    return oracles.leverage(made.basis), slack


def check(made, eps):
    scores, slack = truth(made)
    assume(slack < 0.1)  # else nobody knows the answer
    selector = fit(made.K, eps=eps, min_keys=0)
    if selector.certified_:
        assert missed(selector, scores, eps, slack).size == 0
    else:  # then the keys that are alone in a direction must still be there
        assert missed(selector, scores, 1 - 1e-9, slack).size == 0
    return selector


@given(keys(), EPS)
@example(make(lone_in_hyperplane, 0, 200, 3), 0.5)
@example(make(lone_axis, 1, 200, 3), 1.0)
@example(make(heavy_tails, 2, 200, 5), 0.05)
@example(make(growing, 3, 300, 4), 0.05)
def test_no_key_outside_the_set_has_a_score_of_eps(made, eps):
    check(made, eps)


@given(keys(max_rows=5000, max_columns=6), EPS)
@example(make(conditioned, 7, 5000, 6), 0.01)
def test_no_key_is_missed_in_streams_of_several_blocks(made, eps):
    check(made, eps)


@given(keys(max_rows=120, kinds=(gaussian, conditioned, low_rank, smooth)), st.data())
def test_no_key_is_missed_when_eps_is_its_very_score(made, data):
    scores, slack = truth(made)
    assume(slack < 1e-3)
    j = data.draw(st.integers(0, len(scores) - 1))
    eps = float(scores[j]) * (1 - slack)
    assume(eps > 1e-12)
    selector = fit(made.K, eps=min(1.0, eps), min_keys=0)
    assume(selector.certified_)
    assert j in selector.indices_


@pytest.mark.parametrize("kappa", [1e3, 1e9, 1e11])
def test_no_key_is_pruned_when_eps_is_its_very_score(kappa):
    # the last pruning falls on the last row: then only the guard keeps what rounds low
    K = ill_conditioned(np.random.default_rng(3), 2048, 4, kappa)
    true = oracles.leverage(K) * (1 - oracles.slack(K))
    for j in np.argsort(-true)[:40]:
        selector = fit(K, eps=float(true[j]), n_keys=None, min_keys=0)
        assert len(selector._stream.pending) == 0
        assert j in selector.indices_


@pytest.mark.parametrize("seed", range(12))
def test_rank_one_keys_are_not_missed_at_their_very_score(seed):
    # scores a_j^2 / ||a||^2 are known exactly; the sum over 100 columns rounds
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(3, 60)), int(rng.integers(60, 130))
    a, b = rng.integers(1, 51, n), rng.integers(-50, 51, d)
    K = np.outer(a, b).astype(float)
    total = int(a @ a)
    for j in range(n):
        below = np.nextafter(int(a[j]) ** 2 / total, 0)
        assert j in fit(K, eps=below, min_keys=0).indices_


@pytest.mark.parametrize("kappa", [1.0, 1e2, 1e5, 1e7, 1e9, 1e11, 1e13, 1e14])
@pytest.mark.parametrize("d", [3, 16])
def test_no_key_is_missed_up_to_condition_1e14(kappa, d):
    rng = np.random.default_rng(int(np.log10(kappa)) + 100 * d)
    K = ill_conditioned(rng, 3000, d, kappa)
    K[rng.integers(0, 3000, 5)] *= 30.0
    K[17] = 1.0 / kappa * rng.standard_normal(d)
    eps = 0.01
    selector = fit(K, eps=eps, min_keys=0)
    slack = oracles.slack(K)
    assert missed(selector, oracles.leverage(K), eps, slack).size == 0
    assert selector.certified_ or oracles.condition(K) > 0.9 * certified_condition(d)


def adversarial_queries(K, rng, count):
    """Random and key queries, singular vectors, and witnesses found by ascent, in long double."""
    n, d = K.shape
    V = np.linalg.svd(K, full_matrices=False)[2]
    Q = np.concatenate([rng.standard_normal((count, d)), K, V, np.eye(d)]).astype(np.longdouble)
    G = np.asarray(K, np.longdouble).T @ np.asarray(K, np.longdouble)
    climbed = []
    for j in rng.integers(0, n, count):
        q, k = rng.standard_normal(d).astype(np.longdouble), np.asarray(K[j], np.longdouble)
        for _ in range(30):  # exact line search along the gradient of <q, k>^2 / q^T G q
            g = k * (q @ G @ q) - (q @ k) * (G @ q)
            t = np.array([0.0, *_best_steps(q, g, k, G)], np.longdouble)
            points = q + t[:, None] * g
            values = (points @ k) ** 2 / np.einsum("ij,jk,ik->i", points, G, points)
            q = points[np.argmax(values)]
            q = q / np.sqrt(q @ q)
        climbed.append(q)
    return np.concatenate([Q, climbed])


def _best_steps(q, g, k, G):
    """Return the stationary step of (a + b t)^2 / (c + 2 e t + f t^2)."""
    a, b, c, e, f = q @ k, g @ k, q @ G @ q, q @ G @ g, g @ G @ g
    below = b * e - a * f
    return [(a * e - b * c) / below] if below != 0 else []


@pytest.mark.parametrize("kind", [gaussian, conditioned, heavy_tails, smooth, lone_axis])
@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_no_adversarial_query_gives_an_outside_key_eps(kind, eps):
    rng = np.random.default_rng(5)
    made = make(kind, 11, 150, 4)
    selector = fit(made.K, eps=eps, min_keys=0)
    outside = np.setdiff1d(np.arange(len(made.K)), selector.indices_)
    scores = oracles.attention(adversarial_queries(made.K, rng, 60), made.K)
    assert scores[:, outside].max(initial=0) < eps
    # the adversary is a good one: it gets close to the scores of what it attacks
    assert scores.max() > 0.5 * float(oracles.leverage(made.basis).max())


@pytest.mark.parametrize("size", [1e-12, 1e-100, 1e-300, 5e-324])
@pytest.mark.parametrize("n", [300, 20_000])
def test_a_key_alone_on_an_axis_is_certified_at_any_size(size, n):
    K = np.random.default_rng(0).standard_normal((n, 4))
    K[:, 2] = 0.0
    K[n // 2] = [0, 0, size, 0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="eps=.* promises", category=UserWarning)
        selector = LeverageKeySelector(eps=1.0).fit(K)
    assert selector.certified_
    assert selector.indices_.tolist() == [n // 2]
    np.testing.assert_allclose(selector.scores_, [1.0], rtol=8 * U)


@pytest.mark.parametrize("size", [2.0**-40, 2.0**-50, 2.0**-60, 1e-100, 1e-300])
@pytest.mark.parametrize("row", [0, 3, 1023, 1024, 9999, 19_999])
def test_a_key_alone_outside_a_hyperplane_is_kept_with_one_warning(size, row):
    K = np.random.default_rng(1).standard_normal((20_000, 3))
    K[:, 1] = K[:, 0]
    K[row] = [size, -size, 0.0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        selector = LeverageKeySelector(eps=0.5).fit(K)
        assert row in selector.indices_
        assert selector.heavy_scores([[1.0, -1.0, 0.0]]).toarray()[0, row] >= 0  # no new warning
    assert [w.category for w in caught] == [CertificationWarning] * (not selector.certified_)


@pytest.mark.parametrize("n", [60, 900, 1023, 3000])
@pytest.mark.parametrize("value", [1.0, 0.1, 0.7])
def test_a_key_alone_among_equal_keys_is_kept(n, value):
    # equal keys make the rounding of a QR coherent: it grows with their number
    for d in (2, 3, 7):
        for size in 2.0 ** -np.arange(38, 56):
            for row in (0, n // 2, n - 1):
                K = np.full((n, d), value)
                K[row] = 0.0
                K[row, :2] = size, -size
                assert row in fit(K, eps=0.9, min_keys=0).indices_


@pytest.mark.parametrize("lead", [10, 4096])
@pytest.mark.parametrize("size", [1e-20, 1e-290])
def test_a_key_that_becomes_alone_later_is_kept(size, lead):
    # well conditioned at first; then a flood of large keys in a hyperplane drowns it
    rng = np.random.default_rng(2)
    first = np.repeat(rng.standard_normal((lead, 1)), 2, axis=1)
    first[5] = [1.0, -1.0]
    flood = np.repeat(rng.standard_normal((9000, 1)), 2, axis=1)
    selector = fit(np.concatenate([size * first, flood]), eps=0.05)
    assert 5 in selector.indices_


@pytest.mark.parametrize("m", [1, 2, 3, 7, 10, 64, 1000])
def test_m_copies_are_kept_at_eps_one_over_m(m):
    rng = np.random.default_rng(m)
    direction = rng.standard_normal(3)
    K = np.concatenate([np.tile(direction, (m, 1)), [[1.0, 2.0, 3.0], [0.5, -1.0, 0.25]]])
    selector = fit(K, eps=1.0 / m, min_keys=0)
    assert set(range(m)) <= set(selector.indices_.tolist())


@given(keys(max_rows=60, max_columns=5), EPS)
def test_every_query_of_heavy_attention_gets_every_score_of_eps(made, eps):
    rng = np.random.default_rng(0)
    Q = np.concatenate([rng.standard_normal((10, made.K.shape[1])), made.K.astype(np.float64)])
    with quiet():
        entries = heavy_attention(Q, made.K, eps).tocoo()
        everywhere = universal_set(made.K, eps)
    found = np.zeros(entries.shape, bool)
    found[entries.coords] = True  # what float64 cannot tell from zero may be stored as zero
    exact = oracles.attention(Q, made.K)
    # products of opposite terms leave the oracle its own rounding of them
    products = np.abs(Q).astype(np.longdouble) @ np.abs(made.K.astype(np.longdouble)).T
    noise = 64 * (WIDE * products) ** 2 / (np.square(products).sum(axis=1, keepdims=True) + 1e-300)
    heavy = exact - noise >= eps * (1 + 64 * U)
    assert not (heavy & ~everywhere).any()
    assert not (heavy & ~found).any()
