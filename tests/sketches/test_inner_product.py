"""Inner-product sketches: unbiased, with the variance of their proofs, pure functions of rows."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import U

from levsketch.sketches.inner_product import (
    INNER_PRODUCT_SKETCHES,
    BucketSketch,
    GaussianSketch,
    SignSketch,
    make_sketch,
)

NAMES = sorted(INNER_PRODUCT_SKETCHES)
# A test that is right fails with about this probability, were its seeds random.
RARE = 1e-6
Z = scipy.stats.norm.isf(RARE / 2)
A, B = np.random.default_rng(0).standard_normal((2, 12))
B = B + 0.7 * A  # an inner product that is not small


def products(name, size, trials, a=A, b=B):
    index = np.arange(len(a))
    pairs = np.stack([a, b], axis=1)
    sketches = (make_sketch(name, size, seed).project(index, pairs) for seed in range(trials))
    return np.array([x[:, 0] @ x[:, 1] for x in sketches])


def variance(name, a, b, size):
    """Return the exact variance of <Psi a, Psi b>."""
    squares = 0.0 if name == "gaussian" else 2 * float(np.sum(a**2 * b**2))
    return float((a @ a) * (b @ b) + (a @ b) ** 2 - squares) / size


def deviates(values, mean):
    """Tell whether the mean of ``values`` is not ``mean``, by the central limit theorem."""
    return abs(values.mean() - mean) > Z * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 8])
def test_products_are_unbiased_with_the_exact_variance(name, size):
    found = products(name, size, 1200)
    assert not deviates(found, A @ B)
    assert not deviates(np.square(found - A @ B), variance(name, A, B, size))


@pytest.mark.parametrize("name", NAMES)
def test_the_common_bound_is_attained_up_to_a_constant(name):
    # equal vectors, many entries: nothing is lost to equal squares
    a = np.ones(300)
    assert variance(name, a, a, 10) >= 0.99 * 2 / 10 * (a @ a) ** 2
    spread = np.square(products(name, 10, 1000, a, a) - 300.0)
    assert not deviates(spread, variance(name, a, a, 10))


FAULTS = {
    "scaled": lambda x: x * 1.2,
    "one row": lambda x: np.repeat(x[:1], len(x), axis=0),
    "absolute": np.abs,
}


@pytest.mark.parametrize(
    ("name", "fault"),
    # one row of the last may be all zeros
    [pair for pair in itertools.product(NAMES, FAULTS) if pair != ("countsketch", "one row")],
)
def test_a_fault_in_the_entries_shows_in_a_moment(name, fault):
    index, size = np.arange(12), 8
    entries = (FAULTS[fault](make_sketch(name, size, s).entries(index)) for s in range(1500))
    found = np.array([(psi @ A) @ (psi @ B) for psi in entries])
    shows = deviates(found, A @ B) or deviates(np.square(found - A @ B), variance(name, A, B, size))
    assert shows


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)
@given(st.integers(1, 130), st.integers(0, 20), st.integers(0, 2**62), st.integers(-5, 2**65))
def test_entries_are_pure_functions_of_seed_and_row(name, size, n, first, seed):
    sketch, index = make_sketch(name, size, seed), first + np.arange(n)
    psi = sketch.entries(index)
    assert psi.shape == (size, n)
    np.testing.assert_array_equal(sketch.entries(index[::-1]), psi[:, ::-1])
    for i in range(0, n, 7):
        np.testing.assert_array_equal(sketch.entries(index[i : i + 1])[:, 0], psi[:, i])
    X = np.random.default_rng(0).integers(-9, 10, (n, 3)).astype(np.float64)
    found = sketch.project(index, X)
    assert found.shape == (size, 3)
    np.testing.assert_allclose(found, psi @ X, rtol=0, atol=64 * U * 9 * (n + 1) * 9)


@pytest.mark.parametrize("name", NAMES)
def test_shards_add_up_and_blocks_bound_the_memory(monkeypatch, name):
    rng = np.random.default_rng(0)
    sketch, X, index = make_sketch(name, 60, 5), rng.standard_normal((500, 3)), np.arange(500)
    whole = sketch.project(index, X)
    tolerance = 500 * U * np.abs(sketch.entries(index)) @ np.abs(X)
    order = rng.permutation(500)
    parts = [sketch.project(order[i::3], X[order[i::3]]) for i in range(3)]
    assert (np.abs(sum(parts) - whole) <= tolerance).all()
    held = []
    kind = type(sketch)
    entries = kind.entries
    monkeypatch.setattr(
        kind, "entries", lambda self, at: (held.append(len(at)), entries(self, at))[1]
    )
    monkeypatch.setattr("levsketch.sketches.inner_product._ENTRIES", 600)
    assert (np.abs(sketch.project(index, X) - whole) <= tolerance).all()
    assert max(held, default=0) <= 10
    np.testing.assert_array_equal(sketch.project(index, X), sketch.project(index, X))


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_psi_and_seeds_are_unrelated(name):
    index = np.arange(20_000)
    psi = make_sketch(name, 120, 3).entries(index)
    other = make_sketch(name, 120, 4).entries(index)
    pairs = [(psi[a], psi[b]) for a, b in ((0, 1), (0, 51), (0, 52), (51, 52), (103, 104))]
    pairs += [(psi[0], other[0]), (psi[1], other[0]), (psi[7, :-1], psi[7, 1:])]
    for a, b in pairs:
        values = a * b
        assert not deviates(values, 0.0)
        if name == "gaussian":
            assert not deviates(np.square(values), 1 / 120**2)


@pytest.mark.parametrize("name", NAMES)
def test_entries_have_the_law_they_should(name):
    psi = make_sketch(name, 60, 1).entries(np.arange(4000))
    if name == "gaussian":
        assert scipy.stats.kstest(psi.ravel() * math.sqrt(60), "norm").pvalue > RARE
    elif name == "ams":
        np.testing.assert_allclose(np.abs(psi), 1 / math.sqrt(60), rtol=4 * U)
        counts = np.sum(psi > 0, axis=1)
        assert (np.abs(counts - 2000) <= Z * math.sqrt(1000)).all()
    else:
        assert (np.abs(psi).sum(axis=0) == 1).all()
        counts = np.abs(psi).sum(axis=1)
        assert scipy.stats.chisquare(counts).pvalue > RARE


@pytest.mark.parametrize("name", NAMES)
def test_the_error_bound_fails_no_more_often_than_stated(name):
    rng, size, trials = np.random.default_rng(2), 24, 800
    b = 1.0 + rng.standard_normal(50)
    weights = np.exp(0.5 * rng.standard_normal((30, 50)))
    weights /= weights.sum(axis=1, keepdims=True)
    # rows of attention, b itself, and one entry alone, where collisions hurt most
    parts = [weights, b[None], np.eye(50)[:1]]
    both = np.concatenate([*parts, b[None]]).T
    sketches = (make_sketch(name, size, s).project(np.arange(50), both) for s in range(trials))
    off = np.array([x[:, :-1].T @ x[:, -1] - both[:, :-1].T @ b for x in sketches])
    for part, errors in zip(parts, np.split(off, [30, 31], axis=1), strict=True):
        relative = np.linalg.norm(errors, axis=1) / np.linalg.norm(part) / np.linalg.norm(b)
        for failure in (0.3, 0.02):
            failed = np.sum(relative > make_sketch(name, size, 0).error_bound(failure))
            assert failed <= scipy.stats.binom.isf(RARE, trials, failure)


def test_gaussian_bounds_grow_with_the_logarithm_of_the_failure():
    for size, failure in itertools.product((10, 1000), (0.5, 1e-3, 1e-9)):
        markov = SignSketch(size, 0).error_bound(failure)
        assert markov == math.sqrt(2 / (size * failure))
        assert GaussianSketch(size, 0).error_bound(failure) <= markov
    assert GaussianSketch(10**6, 0).error_bound(1e-9) < 1.4e-2
    for wrong in (0.0, 1.5, np.nan):
        with pytest.raises(ValueError, match="failure must be in"):
            BucketSketch(3, 0).error_bound(wrong)


def test_names_and_sizes_are_checked():
    assert isinstance(make_sketch("ams", 3, 0), SignSketch)
    assert make_sketch("gaussian", 3, 0) == GaussianSketch(3, 0)
    assert make_sketch("gaussian", 3, 0) != SignSketch(3, 0)
    with pytest.raises(ValueError, match=r"sketch must be one of 'ams', .* got 'srht'"):
        make_sketch("srht", 3, 0)
    for name in NAMES:
        with pytest.raises(ValueError, match="size must be at least 1, got 0"):
            make_sketch(name, 0, 0)
