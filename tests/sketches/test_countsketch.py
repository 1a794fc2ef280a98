"""CountSketch: linear, the same bits in any batching, and estimates as good as proved.

Statements over seeds are tested on fixed ones, against binomial bounds.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts

from levsketch.sketches.countsketch import CountSketch, derived_seeds, median_depth

# A test that is right fails with about this probability, were its seeds random.
RARE = 1e-6
Z = scipy.stats.norm.isf(RARE / 2)
# Of the sketch with seed 42, computed once more in Python's integers.
ROWS = np.array([0, 1, 2, 10**12, 2**63 - 1])
BUCKETS = [[765, 777, 251, 77, 92], [763, 536, 749, 311, 495], [498, 46, 395, 971, 117]]
SIGNS = [[1, -1, 1, -1, -1], [1, 1, 1, -1, 1], [1, -1, -1, 1, -1]]

SKETCHES = st.builds(
    CountSketch,
    depth=st.sampled_from([1, 3, 5]),
    width=st.integers(1, 40),
    seed=st.integers(-(2**70), 2**70),
)


def integers(seed, n, c):
    """Return small whole numbers: every sum of them is exact."""
    return np.random.default_rng(seed).integers(-99, 100, (n, c)).astype(np.float64)


def sketched(sketch, X, index=None):
    table = sketch.empty(X.shape[1])
    sketch.scatter(table, np.arange(len(X)) if index is None else index, X)
    return table


def loop(sketch, X, index):
    """Return the table by its definition, one addition after the other."""
    table = sketch.empty(X.shape[1])
    buckets, signs = sketch.places(index)
    for i, r in itertools.product(range(len(X)), range(sketch.depth)):
        table[r, buckets[r, i]] += signs[r, i] * X[i]
    return table


@given(SKETCHES, st.integers(0, 60), st.integers(1, 3), st.integers(0, 2**62), st.data())
def test_any_batching_gives_the_bits_of_one_addition_after_the_other(sketch, n, c, first, data):
    X = np.random.default_rng(n).standard_normal((n, c)) * 10.0 ** np.arange(c)
    index = first + np.arange(n)
    table = sketch.empty(c)
    edges = [0, *data.draw(cuts(n)), n]
    for i, j in itertools.pairwise(edges):
        sketch.scatter(table, index[i:j], X[i:j])
    np.testing.assert_array_equal(table, loop(sketch, X, index))


@pytest.mark.parametrize("order", ["C", "F"])
def test_inner_blocks_and_layouts_do_not_change_a_bit(monkeypatch, order):
    sketch, index = CountSketch(3, 7, 1), np.arange(300)
    X = np.asarray(np.random.default_rng(0).standard_normal((300, 4)), order=order)
    expected = loop(sketch, X, index)
    for rows in (1, 7, 1000):
        monkeypatch.setattr("levsketch.sketches.countsketch._ROWS", rows)
        monkeypatch.setattr("levsketch.sketches.countsketch._NUMBERS", 30 * rows)
        table = sketched(sketch, X)
        np.testing.assert_array_equal(table, expected)
        np.testing.assert_array_equal(sketch.ones(5, 300), sketch.ones(0, 300) - sketch.ones(0, 5))
        estimates = np.median(
            [
                signs[:, None] * part[buckets]
                for part, buckets, signs in zip(table, *sketch.places(index), strict=True)
            ],
            axis=0,
        )
        np.testing.assert_array_equal(sketch.estimate(table, index), estimates)


@given(SKETCHES, st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**62))
def test_sketches_are_linear_and_a_constant_can_be_subtracted_afterwards(sketch, n, m, first):
    X, Y, index = integers(0, n, 2), integers(1, n, 2), first + np.arange(n)
    tables = [sketched(sketch, Z, index) for Z in (X, Y, X - 3 * Y, X - 7.0)]
    np.testing.assert_array_equal(tables[0] - 3 * tables[1], tables[2])
    ones = sketch.ones(first, first + n)
    np.testing.assert_array_equal(tables[0] - 7.0 * ones[:, :, None], tables[3])
    # places are those of the rows, whatever else is asked for
    more = [sketch.places(first + np.arange(n + m)), sketch.places(index[::-1])]
    for found, wide, turned in zip(sketch.places(index), *more, strict=True):
        np.testing.assert_array_equal(found, wide[:, :n])
        np.testing.assert_array_equal(found, turned[:, ::-1])


@given(SKETCHES, st.integers(-300, 300))
def test_a_single_row_comes_back_exactly_and_so_does_its_norm(sketch, power):
    X = np.array([[3.0, -4.0, 0.0]]) * 10.0**power
    table = sketched(sketch, X, np.array([123_456_789]))
    np.testing.assert_array_equal(sketch.estimate(table, np.array([123_456_789])), X)
    np.testing.assert_allclose(sketch.column_norms(table), np.abs(X[0]), rtol=4e-16)


def test_duplicate_rows_in_one_call_are_added():
    sketch = CountSketch(5, 64, 0)
    table = sketched(sketch, np.array([[1.0], [2.0], [4.0]]), np.array([9, 9, 9]))
    assert sketch.estimate(table, np.array([9])).tolist() == [[7.0]]


def test_places_are_these_on_every_machine():
    buckets, signs = CountSketch(3, 1000, 42).places(ROWS)
    assert buckets.tolist() == BUCKETS
    assert signs.tolist() == SIGNS
    assert buckets.dtype == np.int64
    assert derived_seeds(0, 2) == [6354449462685905, 5124397715592079]


@pytest.mark.parametrize("width", [1, 2, 7, 1000])
def test_buckets_and_signs_are_uniform_and_unrelated_across_rows_and_hash_rows(width):
    n = 100_000
    buckets, signs = CountSketch(3, width, 7).places(np.arange(n))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert buckets.min() >= 0
    assert buckets.max() < width
    cells = np.minimum(buckets, 9) * 2 + (signs > 0)
    size = 2 * min(width, 10)
    chance = np.bincount(np.minimum(np.arange(width), 9), minlength=size // 2).repeat(2) / width / 2
    pairs = [(cells[0], cells[1]), (cells[1], cells[2]), (cells[0][:-1], cells[0][1:])]
    for a, b in pairs:
        counts = np.bincount(a * size + b, minlength=size * size)
        expected = np.outer(chance, chance).ravel() * counts.sum()
        assert scipy.stats.chisquare(counts, expected).pvalue > RARE


@pytest.mark.parametrize("words", [1.0 - 2.0**-53, 2.0**-53])
@pytest.mark.parametrize("width", [1, 3, 4, 2**20 + 1, 3 * 2**40 - 1])
def test_the_extreme_numbers_have_places_inside_the_table(monkeypatch, words, width):
    monkeypatch.setattr(
        "levsketch.sketches.countsketch.uniforms", lambda seed, index: np.full(len(index), words)
    )
    buckets, _ = CountSketch(1, width, 0).places(np.arange(1))
    assert buckets[0, 0] == (width - 1 if words > 0.5 else 0)


def columns(n, k):
    """Return columns whose k largest entries stand out by none, some and all of the norm."""
    rng = np.random.default_rng(0)
    flat, heavy = rng.standard_normal((2, n))
    heavy[:k] += 10.0
    zipf = 1.0 / np.arange(1, n + 1)
    alone = np.zeros(n)
    alone[n // 2] = 1e150
    return np.stack([flat, heavy, zipf, alone, np.ones(n)], axis=1)


def tails(X, k):
    """Return the norms of columns without their k largest entries."""
    # relative to the largest that is left, whose square may overflow
    rest = np.sort(np.abs(X), axis=0)[: len(X) - k]
    top = rest.max(axis=0, initial=0.0)
    return top * np.linalg.norm(rest / np.where(top, top, 1.0), axis=0)


@pytest.mark.parametrize(("k", "eps", "failure"), [(3, 1.0, 0.2), (5, 0.25, 0.1)])
def test_estimates_of_all_rows_are_off_no_more_often_than_proved(k, eps, failure):
    n, trials = 400, 120
    X, index = columns(n, k), np.arange(n)
    allowed = math.sqrt(eps / k) * tails(X, k) + 1e-12 * np.abs(X).max(axis=0)
    failed = np.zeros(X.shape[1])
    shallow = 0
    for seed in range(trials):
        sketch = CountSketch.for_recovery(k, eps, n, failure, seed)
        table = sketched(sketch, X)
        off = np.abs(sketch.estimate(table, index) - X).max(axis=0)
        failed += off > allowed
        one = CountSketch(1, sketch.width, seed)
        off = np.abs(one.estimate(table[:1], index) - X).max(axis=0)
        shallow += off[0] > allowed[0]
    most = scipy.stats.binom.isf(RARE, trials, failure)
    assert (failed <= most).all()
    assert shallow > most  # a single hash row would not do


def test_sizes_for_recovery_are_the_smallest_that_the_proof_allows():
    sketch = CountSketch.for_recovery(5, 0.1, 10**6, 0.01, 3)
    assert (sketch.width, sketch.seed, sketch.cells) == (400, 3, 400 * sketch.depth)
    p = 5 * 11 / 400
    for depth, enough in ((sketch.depth, True), (sketch.depth - 2, False)):
        fails = scipy.stats.binom.sf(depth // 2, depth, p)
        assert bool(fails <= 1e-8) is enough


@given(st.floats(1e-6, 0.4999), st.floats(1e-300, 1.0))
def test_median_depths_are_minimal_and_below_chernoff(p, failure):
    depth = median_depth(p, failure)
    assert depth % 2 == 1
    assert depth <= max(1.0, 2 * math.log(failure) / math.log(4 * p * (1 - p)) + 2)
    half = (depth + 1) / 2
    assert scipy.special.betainc(half, half, p) <= failure
    if depth > 1:
        assert scipy.special.betainc(half - 1, half - 1, p) > failure


def test_squared_norms_have_the_moments_of_the_proof():
    x = np.random.default_rng(1).standard_normal((30, 1))
    width, trials = 8, 4000
    squares = np.array([np.sum(sketched(CountSketch(1, width, s), x) ** 2) for s in range(trials)])
    norm = float(np.sum(x**2))
    variance = 2 * (norm**2 - float(np.sum(x**4))) / width
    for values, mean in ((squares, norm), (np.square(squares - norm), variance)):
        assert abs(values.mean() - mean) <= Z * values.std() / math.sqrt(trials)


@pytest.mark.parametrize("failure", [0.3, 0.05])
def test_norms_are_off_no_more_often_than_stated(failure):
    X, trials = columns(300, 3), 300
    X[:, 3] /= 1e150  # for the plain norm of the test
    true = np.linalg.norm(X, axis=0)
    sketches = [CountSketch(5, 16, seed) for seed in range(trials)]
    found = np.array([s.column_norms(sketched(s, X)) for s in sketches])
    errors, bound = np.abs((found / true) ** 2 - 1), sketches[0].norm_error(failure)
    most = scipy.stats.binom.isf(RARE, trials, failure)
    assert (np.sum(errors > bound, axis=0) <= most).all()
    assert np.sum(errors[:, 0] > bound / 4) > most  # a quarter of it is no bound


def test_norms_of_no_rows_of_zeros_and_of_extreme_entries():
    sketch = CountSketch(3, 8, 0)
    X = np.array([[0.0, 1e300, 1e-300, 5e-324]])
    table = sketched(sketch, X)
    np.testing.assert_allclose(sketch.column_norms(table), X[0], rtol=1e-15)
    assert not sketch.column_norms(sketch.empty(2)).any()
    assert sketch.column_norms(sketch.empty(0)).shape == (0,)
    assert sketch.estimate(sketch.empty(2), np.zeros(0, np.int64)).shape == (0, 2)
    assert not sketch.ones(5, 5).any()


def test_sizes_that_make_no_sense_are_refused_by_name():
    for depth, width, text in ((0, 4, "depth must be at least 1, got 0"), (3, 0, "width must be")):
        with pytest.raises(ValueError, match=text):
            CountSketch(depth, width, 0)
    with pytest.raises(ValueError, match="depth must be odd, got 4"):
        CountSketch(4, 4, 0)
    with pytest.raises(TypeError, match="width must be a whole number"):
        CountSketch(3, 4.0, 0)
    with pytest.raises(ValueError, match=r"p must be below 1/2, got 0\.5"):
        median_depth(0.5, 0.1)
    for name in ("k", "eps", "n", "failure"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            CountSketch.for_recovery(
                **{"k": 2, "eps": 0.5, "n": 9, "failure": 0.1, "seed": 0, name: 0}
            )
    with pytest.raises(ValueError, match="failure must be in"):
        CountSketch(3, 4, 0).norm_error(0.0)
