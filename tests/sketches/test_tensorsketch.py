"""TensorSketch: unbiased, with the second moment of its proof, and the same bits in any batching.

Statements over seeds are tested on fixed ones. The oracle is the exact second moment.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from oracles import U
from strategies import cuts

from levsketch.sketches.tensorsketch import TensorSketch

SIZES = [1, 2, 3, 8, 15, 32]
# A test that is right fails with about this probability, were its seeds random.
RARE = 1e-6
Z = scipy.stats.norm.isf(RARE / 2)
# Of the sketch with seed 42, when this test was written.
BUCKETS = [[645, 776, 945, 341, 488, 62], [128, 638, 355, 441, 647, 323]]
SIGNS = [[1, 1, 1, 1, -1, 1], [1, -1, -1, 1, 1, -1]]
Q, K = np.random.default_rng(0).standard_normal((2, 4))


def second_moment(q, k, r, m):
    """Return the exact ``E (<TS(q), TS(k)> - <q, k>^r)^2``: the sum over pairs of frequencies."""
    s2, e = (q @ k) ** 2, ((q * k) ** 2).sum()
    total = 0.0
    for f, g in itertools.product(range(m), repeat=2):
        same, opposite = f == g, (f + g) % m == 0
        factor = s2 + same * ((q @ q) * (k @ k) - e) + opposite * (s2 - e)
        total += factor**r - s2**r
    return total / m**2


def products(sketches, q, k):
    pairs = (sketch.apply(np.stack([q, k])) for sketch in sketches)
    return np.array([a @ b for a, b in pairs])


def drawn(degree, size, count, d=4):
    return [TensorSketch.make(d, degree, size, seed) for seed in range(count)]


def deviates(values, mean):
    """Tell whether the mean of ``values`` is not ``mean``, by the central limit theorem."""
    return abs(values.mean() - mean) > Z * values.std() / np.sqrt(len(values))


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_products_are_unbiased_with_the_exact_second_moment(degree, size):
    found = products(drawn(degree, size, 3000), Q, K)
    assert not deviates(found, (Q @ K) ** degree)
    assert not deviates(np.square(found - (Q @ K) ** degree), second_moment(Q, K, degree, size))


@given(
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["any", "equal", "orthogonal", "one entry"]),
)
def test_no_pair_has_a_larger_second_moment_than_proved(degree, size, d, seed, kind):
    q, k = np.random.default_rng(seed).standard_normal((2, d))
    if kind == "equal":
        k = q
    elif kind == "orthogonal":
        k = np.abs(k) * np.where(np.arange(d) % 2, 1, -1)
        q = np.abs(q)
    elif kind == "one entry":
        q[1:] = k[:-1] = 0.0
    exact = second_moment(q, k, degree, size)
    norms = ((q @ q) * (k @ k)) ** degree
    sketch = TensorSketch.make(d, degree, size, 0)
    assert exact <= sketch.variance * norms * (1 + 1e-12)
    assert sketch.variance <= (3.0**degree - 1) / size  # less than (2 + 3^r) / m


def test_the_variance_is_attained_up_to_a_constant():
    # equal entries, many columns: e is small beside N, and every difference of powers is whole
    q = np.ones(1000)
    for degree, size in itertools.product((1, 2, 3), (1, 2, 9, 16)):
        sketch = TensorSketch.make(1, degree, size, 0)
        exact = second_moment(q, q, degree, size) / 1000.0 ** (2 * degree)
        assert 0.99 * sketch.variance <= exact <= sketch.variance


def relative_errors(sketches, query, keys):
    """Return the errors of the norm of the products, in units of ``error_bound``."""
    degree = sketches[0].degree
    true = np.linalg.norm((keys @ query) ** degree)
    scale = np.linalg.norm(query) ** degree
    scale *= np.sqrt((np.linalg.norm(keys, axis=1) ** (2 * degree)).sum())
    sketched = (sketch.apply(np.vstack([query, keys])) for sketch in sketches)
    return np.array([abs(np.linalg.norm(S[1:] @ S[0]) - true) / scale for S in sketched])


@pytest.mark.parametrize(
    ("degree", "size", "failure"), [(1, 16, 0.1), (2, 64, 0.1), (3, 129, 0.2), (2, 32, 0.5)]
)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_the_error_bound_fails_no_more_often_than_stated(degree, size, failure, spread):
    trials = 1500
    query = np.ones(20)
    keys = query + spread * np.random.default_rng(degree).standard_normal((10, 20))
    sketches = drawn(degree, size, trials, d=20)
    errors, bound = relative_errors(sketches, query, keys), sketches[0].error_bound(failure)
    most = scipy.stats.binom.isf(RARE, trials, failure)
    assert np.sum(errors > bound) <= most
    if spread < 1 and failure < 0.5:
        assert np.sum(errors > 0.2 * bound) > most  # a fifth of it is no bound


def test_the_error_bound_is_the_one_of_markov():
    sketch = TensorSketch.make(3, 2, 100, 0)
    assert sketch.variance == (98 * 6 + 2 * 8) / 100**2
    assert sketch.error_bound(0.25) == np.sqrt(sketch.variance / 0.25)
    for wrong in (0.0, 1.5, np.nan):
        with pytest.raises(ValueError, match="failure must be in"):
            sketch.error_bound(wrong)


def same_table(sketch):
    return {
        "buckets": np.repeat(sketch.buckets[:1], sketch.degree, axis=0),
        "signs": np.repeat(sketch.signs[:1], sketch.degree, axis=0),
    }


FAULTS = {
    "no signs": lambda sketch: {"signs": np.ones_like(sketch.signs)},
    "one sign a column": lambda sketch: {"signs": same_table(sketch)["signs"]},
    "one table for all factors": same_table,
    "one bucket": lambda sketch: {"buckets": np.zeros_like(sketch.buckets)},
    "half of the buckets": lambda sketch: {"buckets": sketch.buckets // 2},
    "signs from buckets": lambda sketch: {"signs": (1 - 2 * (sketch.buckets % 2)).astype(np.int8)},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_tables_shows_in_a_moment(name):
    faulty = [dataclasses.replace(s, **FAULTS[name](s)) for s in drawn(2, 16, 3000)]
    found = products(faulty, Q, K)
    shows = deviates(found, (Q @ K) ** 2) or deviates(
        np.square(found - (Q @ K) ** 2), second_moment(Q, K, 2, 16)
    )
    assert shows


def tables(sketch):
    """Return the CountSketch matrices (degree, d, size) of the tables."""
    S = np.zeros((sketch.degree, sketch.d, sketch.size))
    for j, c in np.ndindex(sketch.degree, sketch.d):
        S[j, c, sketch.buckets[j, c]] = sketch.signs[j, c]
    return S


@given(
    st.integers(1, 6), st.integers(1, 4), st.sampled_from(SIZES), st.integers(0, 2**32), st.data()
)
def test_a_sketch_is_the_convolution_of_its_count_sketches(d, degree, size, seed, data):
    rows = data.draw(st.integers(0, 5).map(lambda n: np.random.default_rng(n).random((n, d))))
    sketch = TensorSketch.make(d, degree, size, seed)
    expected = np.zeros((len(rows), size))
    expected[:, 0] = 1.0
    for S in tables(sketch):
        factor = rows @ S
        expected = sum(
            np.roll(expected, shift, axis=1) * factor[:, [shift]] for shift in range(size)
        )
    found = sketch.apply(rows)
    assert found.shape == (len(rows), size)
    scale = np.abs(rows).sum(axis=1, keepdims=True) ** degree
    assert (np.abs(found - expected) <= 64 * degree * U * np.log2(2 * size) * scale).all()


def test_degree_one_is_a_count_sketch_and_linear():
    sketch = TensorSketch.make(5, 1, 7, 3)
    rows = np.random.default_rng(0).integers(-9, 9, (40, 5)).astype(np.float64)
    np.testing.assert_array_equal(sketch.apply(rows), rows @ tables(sketch)[0])
    np.testing.assert_array_equal(
        sketch.apply(rows[:20] + 2 * rows[20:]),
        sketch.apply(rows[:20]) + 2 * sketch.apply(rows[20:]),
    )


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_powers_of_two_come_out_to_the_power_of_the_degree(degree):
    sketch = TensorSketch.make(5, degree, 12, 3)
    rows = np.random.default_rng(0).standard_normal((9, 5))
    np.testing.assert_array_equal(sketch.apply(8.0 * rows), 8.0**degree * sketch.apply(rows))
    np.testing.assert_array_equal(sketch.apply(-rows), (-1.0) ** degree * sketch.apply(rows))


def test_unit_vectors_have_unit_sketches():
    # one entry, 1 or -1, in the bucket that is the sum of the buckets
    sketch = TensorSketch.make(6, 3, 10, 1)
    expected = np.zeros((6, 10))
    expected[np.arange(6), sketch.buckets.sum(axis=0) % 10] = sketch.signs.prod(axis=0)
    np.testing.assert_allclose(sketch.apply(np.eye(6)), expected, atol=32 * U)


@given(st.integers(1, 4), st.sampled_from([1, 5, 16, 64, 97]), st.data())
def test_a_row_has_the_same_bits_in_any_company(degree, size, data):
    rows = np.random.default_rng(0).standard_normal((60, 7))
    sketch = TensorSketch.make(7, degree, size, 11)
    together = sketch.apply(rows)
    edges = [0, *data.draw(cuts(60)), 60]
    apart = [sketch.apply(rows[i:j]) for i, j in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(apart), together)


@pytest.mark.parametrize("chunk", [1, 100, 1000])
def test_chunks_do_not_change_a_bit(monkeypatch, chunk):
    rows = np.random.default_rng(0).standard_normal((200, 5))
    sketch = TensorSketch.make(5, 2, 33, 0)
    expected = sketch.apply(rows)
    monkeypatch.setattr("levsketch.sketches.tensorsketch._CHUNK", chunk)
    np.testing.assert_array_equal(sketch.apply(rows), expected)


def test_single_precision_rows_give_the_bits_of_their_double_copy():
    rows = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    sketch = TensorSketch.make(5, 3, 20, 0)
    found = sketch.apply(rows)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, sketch.apply(rows.astype(np.float64)))
    np.testing.assert_array_equal(found, sketch.apply(np.asfortranarray(rows)))


def test_seeds_determine_the_tables_for_ever():
    sketch, again = (TensorSketch.make(6, 2, 1000, 42) for _ in range(2))
    np.testing.assert_array_equal(sketch.buckets, again.buckets)
    np.testing.assert_array_equal(sketch.signs, again.signs)
    assert sketch.buckets.tolist() == BUCKETS
    assert sketch.signs.tolist() == SIGNS
    assert sketch.buckets.dtype == np.int64
    assert sketch.signs.dtype == np.int8
    other = TensorSketch.make(6, 2, 1000, 43)
    assert (other.buckets != sketch.buckets).any()


def test_tables_are_uniform_and_independent_of_one_another():
    sketch = TensorSketch.make(20_000, 2, 10, 5)
    joint = (sketch.buckets * 2 + (sketch.signs > 0)).astype(np.int64)
    counts = np.bincount(joint[0] * 20 + joint[1], minlength=400)
    assert scipy.stats.chisquare(counts).pvalue > RARE
    counts = np.bincount(joint[0, :-1] * 20 + joint[0, 1:], minlength=400)
    assert scipy.stats.chisquare(counts).pvalue > RARE


def test_sketches_are_frozen():
    sketch = TensorSketch.make(3, 2, 4, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sketch.size = 5
    with pytest.raises(ValueError, match="read-only"):
        sketch.signs[0, 0] = 1


@pytest.mark.parametrize("name", ["d", "degree", "size"])
def test_sizes_below_one_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1, got 0"):
        TensorSketch.make(**{"d": 3, "degree": 2, "size": 4, "seed": 0, name: 0})


@pytest.mark.parametrize("shape", [(3,), (4, 2), (2, 4, 3)])
def test_rows_of_another_width_are_refused(shape):
    with pytest.raises(ValueError, match=r"rows must have shape \(n, 3\)"):
        TensorSketch.make(3, 2, 4, 0).apply(np.zeros(shape))
