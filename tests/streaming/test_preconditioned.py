"""Preconditioned Cholesky QR: the factors of ill-conditioned blocks, within their error bounds."""

import numpy as np
import oracles
import pytest
from strategies import ill_conditioned

import levsketch.streaming.factor as stream_factor
import levsketch.streaming.leaves as leaves
from levsketch import LeverageKeySelector
from levsketch.algorithms.leverage import whitening_of
from levsketch.backends import Backend, CpuBackend, backend_for
from levsketch.linalg import Factor, gram_roundoff, qr_roundoff
from levsketch.streaming.factor import StreamFactor, block_size
from levsketch.streaming.leaves import GRAM_BUDGET
from levsketch.streaming.preconditioned import PRODUCT_BUDGET, whitened_factors

CPU = CpuBackend()
LONG = np.longdouble


def diagonals(K, block):
    return np.square(K).reshape(-1, block, K.shape[1]).sum(axis=1)


def whitened(K, prefix, scale=None):
    block = block_size(K.shape[1])
    weighted = K if scale is None else K * scale[:, None]
    return whitened_factors(CPU, K, scale, block, prefix, diagonals(weighted, block))


def blocks_like(kappa, d, count, seed=0):
    """Return rows with the singular values of ``ill_conditioned``, alike in every block."""
    draws = np.random.default_rng(seed)
    rotation = np.linalg.qr(draws.standard_normal((d, d)))[0]
    rows = draws.standard_normal((count * block_size(d), d))
    return (rows * np.geomspace(1.0, 1.0 / kappa, d)) @ rotation


def through_whitened_blocks(K):
    """Return the factor of the whole blocks of ``K`` if none but the first went through QR."""
    d, block = K.shape[1], block_size(K.shape[1])
    factor, prefix = StreamFactor.empty(d, np.zeros(d)), None
    for first in range(0, len(K), block):
        found = factor.measure(CPU, K[first : first + block], prefix, first)
        if first:
            assert found.factors[0] is not None
            assert np.isfinite(found.growth[0])
        factor = factor.absorb(CPU, found, 1)
        if factor.settles():
            prefix = factor.whitening(CPU)[0]
    return factor


@pytest.mark.parametrize("d", [2, 3, 12, 33])
@pytest.mark.parametrize("kappa", [1e6, 1e8, 1e10])
def test_scores_by_way_of_whitened_blocks_are_within_their_bounds(d, kappa):
    K = blocks_like(kappa, d, 9)
    factor = through_whitened_blocks(K)
    assert 0.0 < factor.product_error <= PRODUCT_BUDGET**2
    assert 0.0 < factor.gram_error <= GRAM_BUDGET
    found = factor.whitening(CPU)[0]
    assert found.certified
    true, slack = oracles.leverage(K), oracles.slack(K)
    scores = found.scores(CPU, K)
    assert (true * (1 - slack) <= found.upper_bounds(scores)).all()
    assert (true * (1 + slack) >= found.lower_bounds(scores)).all()
    # and about as accurate as Householder QR is
    loss = np.abs(scores / true - 1).max()
    assert loss <= 2 * qr_roundoff(d) * found.condition + slack


@pytest.mark.parametrize("kappa", [1e2, 1e6, 1e9])
def test_each_block_keeps_its_norms_within_the_bounds_of_that_block(kappa):
    d, draws = 7, np.random.default_rng(3)
    K = blocks_like(kappa, d, 5)
    K[block_size(d) * 3 :] *= 100.0
    prefix = whitening_of(CPU, K[: block_size(d)])
    for scale in (None, draws.uniform(0.1, 3, len(K))):
        found = whitened(K, prefix, scale)
        weighted = K.astype(LONG) if scale is None else K.astype(LONG) * scale[:, None]
        for b, factor in enumerate(found.factors):
            rows = weighted[b * block_size(d) : (b + 1) * block_size(d)]
            # queries that make the small directions count, in long double
            x = prefix.folded() @ draws.standard_normal((d, 300))
            y = np.linalg.norm(
                prefix.factor.R @ np.ldexp(x, prefix.factor.exponents[:, None]), axis=0
            )
            mine = np.sqrt(
                np.square(factor.R.astype(LONG) @ np.ldexp(x, factor.exponents[:, None])).sum(0)
            )
            true = np.sqrt(np.square(rows @ x.astype(LONG)).sum(axis=0))
            allowed = np.sqrt(found.products[b]) * y + found.growth[b] * y**2 / true
            assert (np.abs(mine - true) <= allowed).all()


def test_runs_of_blocks_and_single_blocks_leave_the_same_bits():
    K = blocks_like(1e8, 5, 64)
    block = block_size(5)
    alone = through_whitened_blocks(K)
    together, prefix, done = StreamFactor.empty(5, np.zeros(5)), None, 0
    while done < len(K):
        count = together.run_length()
        found = together.measure(CPU, K[done : done + count * block], prefix, done)
        together, done = together.absorb(CPU, found, count), done + count * block
        if together.settles():
            prefix = together.whitening(CPU)[0]
    assert together.product_error == alone.product_error
    assert together.gram_error == alone.gram_error
    for (level, mine), (other, theirs) in zip(together.factors, alone.factors, strict=True):
        assert level == other
        assert mine.R.tobytes() == theirs.R.tobytes()


def test_budgets_that_run_out_leave_the_rest_to_householder_qr(monkeypatch):
    K = blocks_like(1e8, 4, 17)
    once = through_whitened_blocks(K).product_error
    monkeypatch.setattr(leaves, "PRODUCT_BUDGET", float(np.sqrt(once / 2)))
    d, block = 4, block_size(4)
    factor, prefix, kinds = StreamFactor.empty(d, np.zeros(d)), None, []
    for first in range(0, len(K), block):
        found = factor.measure(CPU, K[first : first + block], prefix, first)
        kinds.append(bool(np.isfinite(found.growth[0])))
        factor = factor.absorb(CPU, found, 1)
        if factor.settles():
            prefix = factor.whitening(CPU)[0]
    assert kinds[1]
    assert not all(kinds[1:])
    assert factor.product_error <= once / 2
    true, slack = oracles.leverage(K), oracles.slack(K)
    bound = factor.whitening(CPU)[0].upper_bounds(factor.whitening(CPU)[0].scores(CPU, K))
    assert (true * (1 - slack) <= bound).all()


def test_what_a_prefix_says_nothing_of_is_refused():
    d, draws = 4, np.random.default_rng(0)
    K = draws.standard_normal((block_size(d), d))
    K[:, 2] = 0.0
    prefix = whitening_of(CPU, K)
    assert whitened(K, prefix).factors[0] is not None  # a zero column is no obstacle
    K[5, 2] = 1.0
    assert whitened(K, prefix).factors == [None]  # one that was zero is
    deficient = np.repeat(draws.standard_normal((block_size(d), 1)), d, axis=1)
    assert whitened(deficient, whitening_of(CPU, deficient)).factors == [None]
    other = draws.standard_normal((block_size(d), d))
    far = whitening_of(CPU, other * 1e-12)
    assert whitened(other, far).growth[0] > GRAM_BUDGET  # rows far beyond their prefix


def test_infinities_and_the_ends_of_the_range_are_refused():
    d, draws = 3, np.random.default_rng(1)
    K = draws.standard_normal((block_size(d), d))
    prefix = whitening_of(CPU, K)
    with np.errstate(over="ignore"):
        found = whitened(K * 1e200, prefix)
    assert found.factors == [None]
    assert np.isinf(found.growth).all()
    assert whitened(K * 1e-200, whitening_of(CPU, K * 1e-200)).factors == [None]


def test_the_fallback_of_the_backend_agrees():
    K = blocks_like(1e6, 6, 2)
    block, prefix = block_size(6), whitening_of(CPU, K)
    mine = whitened_factors(CPU, K, None, block, prefix, diagonals(K, block))
    plain = whitened_factors(Backend(), K, None, block, prefix, diagonals(K, block))
    for a, b in zip(mine.factors, plain.factors, strict=True):
        assert isinstance(a, Factor)
        np.testing.assert_allclose(a.R, b.R, atol=1e-9 * np.abs(a.R).max())
    np.testing.assert_allclose(mine.growth, plain.growth, rtol=1e-6)
    assert gram_roundoff(block, 6) < mine.growth.min()


def test_keys_of_rising_condition_stay_certified():
    d = 8
    K = np.concatenate([blocks_like(10.0**k, d, 3, seed=k) for k in (0, 4, 8, 11)])
    found = whitening_of(CPU, K)
    assert found.certified
    true, slack = oracles.leverage(K), oracles.slack(K)
    assert (true * (1 - slack) <= found.upper_bounds(found.scores(CPU, K))).all()
    lone = ill_conditioned(np.random.default_rng(2), 5 * block_size(d), d, 1e10)
    lone[-1, 0] += 1.0  # in the last block, a direction of its own
    found = whitening_of(CPU, lone)
    true, slack = oracles.leverage(lone), oracles.slack(lone)
    assert (true * (1 - slack) <= found.upper_bounds(found.scores(CPU, lone))).all()


def test_whether_gram_matrices_were_tried_in_vain_does_not_show(monkeypatch):
    # alike, ever worse, and ever better: the guess by the rows before is right, and wrong
    d = 6
    alike = blocks_like(1e10, d, 12)
    block = block_size(d)
    fading = np.concatenate([alike, np.random.default_rng(1).standard_normal((6 * block, d))])
    backend = type(backend_for(alike))
    multiplied, block_grams = [], backend.block_grams

    def counting(self, K, *args):
        multiplied.append(len(K))
        return block_grams(self, K, *args)

    monkeypatch.setattr(backend, "block_grams", counting)
    for K, spared in ((alike, 10), (fading, 6), (fading[::-1].copy(), 0)):
        saved, counts = [], []
        for far in (0.0, 16.0, np.inf):
            monkeypatch.setattr(stream_factor, "_FAR", far)
            multiplied.clear()
            saved.append(LeverageKeySelector(eps=0.05).fit(K).to_bytes())
            counts.append(sum(multiplied))
        assert saved[0] == saved[1] == saved[2]
        assert counts[2] >= len(K) // block * block
        assert counts[0] <= counts[1] <= counts[2] - spared * block
