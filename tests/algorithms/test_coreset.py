"""sample_rows: exact inclusion probabilities, fixed size, and sums as sharp as independent draws.

Statements over random states are tested on fixed ones, against binomial bounds.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from foreign import LIBRARIES, host
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import U
from strategies import heavy_tails, make

from levsketch import leverage_scores
from levsketch.algorithms.coreset import inclusion_probabilities, pivotal_sample, sample_rows

# A test that is right fails with about this probability, were its seeds random.
RARE = 1e-6
SCORES = st.lists(
    st.one_of(
        st.floats(0, 1e3),
        st.sampled_from([0.0, 1.0, 1e-3, 5e-324, 1e-300, 1e300, 1.7e308, 1 / 3]),
    ),
    min_size=1,
    max_size=30,
).filter(any)
K = make(heavy_tails, 3, 400, 3).K


def samples(scores, size, count, pivotal=pivotal_sample):
    """Return masks (count, n) of samples of as many seeds."""
    pi = inclusion_probabilities(np.asarray(scores, np.float64), size)
    masks = np.zeros((count, len(pi)), np.bool_)
    for seed, mask in enumerate(masks):
        mask[pivotal(pi, np.random.RandomState(seed))] = True
    return masks, pi


def wrong_counts(masks, pi):
    """Tell whether some rows come too often, or too seldom, for their probability."""
    counts, trials = masks.sum(axis=0), len(masks)
    level = RARE / len(pi)
    return bool(
        (counts > scipy.stats.binom.isf(level, trials, pi)).any()
        or (counts < scipy.stats.binom.ppf(level, trials, pi)).any()
    )


@given(SCORES, st.integers(1, 35))
@example([1.0, 1.0, 1.0, 1e-300], 3)
@example([1.7e308, 5e-324, 5e-324], 2)
@example([1.0, 1.0, 2.2e-309, 1e300], 2)
@example([5e-324, 5e-324, 5e-324], 2)
@example([1.0, 1.0 - 2.0**-53, 2.0**-53, 2.0**-53], 2)
def test_probabilities_are_proportional_up_to_one_and_sum_to_the_size(scores, size):
    scores = np.array(scores)
    positive = scores > 0
    pi = inclusion_probabilities(scores, size)
    assert ((pi > 0) == positive).all()
    assert pi.max() <= 1.0
    assert abs(pi.sum() - min(size, positive.sum())) <= 8 * len(pi) * U * size
    # the same constant for all rows below 1, and no row at 1 that it does not carry there
    # (scores that are 2**1900 times smaller than the largest may underflow on the way)
    with np.errstate(divide="ignore"):
        below = (pi < 1) & (np.log2(scores) > np.log2(scores.max()) - 1900) & (pi > 1e-300)
    with np.errstate(over="ignore"):
        constants = pi[below] / scores[below]
    if below.any() and np.isfinite(constants).all():
        assert np.ptp(constants) <= 8 * U * constants.max()
        sure = pi == 1
        assert (scores[sure] * constants.max() >= 1 - 64 * len(pi) * U * size).all()


@given(SCORES, st.integers(1, 35), st.integers(0, 2**32 - 1))
@example([1.0, 1.0, 1.0, 1e-300], 3, 0)
@example([1.7e308, 5e-324, 5e-324], 2, 0)
def test_samples_have_the_size_asked_for_and_the_weights_of_their_probabilities(scores, size, seed):
    scores = np.array(scores)
    rows = np.arange(3.0 * len(scores)).reshape(-1, 3)
    taken, weights, index = sample_rows(rows, scores, size, seed, return_indices=True)
    assert len(index) == min(size, np.sum(scores > 0))
    assert (np.diff(index) > 0).all()
    assert (scores[index] > 0).all()
    np.testing.assert_array_equal(taken, rows[index])
    pi = inclusion_probabilities(scores, size)
    np.testing.assert_array_equal(weights, 1 / pi[index])
    assert set(np.flatnonzero(pi == 1)) <= set(index)
    assert (weights >= 1).all()
    assert np.isfinite(weights).all()


LADDER = 1.5 ** np.arange(11)
PROFILES = {
    "ladder": (LADDER, 4),
    "one large": ([100, 1, 1, 1, 1, 1, 1], 3),
    "equal": (np.ones(9), 4),
    "two": ([1.0, 3.0], 1),
    "nearly sure": ([1, 1, 1, 1, 1e-2], 4),
    "mostly rare": (np.r_[np.full(40, 1e-3), 1, 1, 1], 2),
}


@pytest.mark.parametrize("name", PROFILES)
def test_rows_come_as_often_as_their_probability_says(name):
    masks, pi = samples(*PROFILES[name], 4000)
    assert not wrong_counts(masks, pi)
    assert (masks.sum(axis=1) == PROFILES[name][1]).all()


def by_size(pi, rng):
    """Draw without replacement with probabilities proportional to ``pi``: a common mistake."""
    return rng.choice(len(pi), round(pi.sum()), replace=False, p=pi / pi.sum())


def larger_wins(pi, rng):
    return np.argsort(-pi)[: round(pi.sum())]


def with_a_coin(pi, rng):
    """Play the tournament with fair coins."""

    class Coin:
        def random_sample(self, n):
            return np.where(rng.random_sample(n) < 0.5, 1.0 - 1e-12, 1e-12)

    return pivotal_sample(pi, Coin())


@pytest.mark.parametrize("fault", [by_size, larger_wins, with_a_coin])
def test_wrong_designs_are_told_apart(fault):
    masks, pi = samples(LADDER, 4, 4000, fault)
    assert wrong_counts(masks, pi)


def test_weighted_sums_are_unbiased():
    rng = np.random.default_rng(0)
    masks, pi = samples(LADDER, 4, 4000)
    for values in (rng.standard_normal(11), LADDER**2, np.ones(11)):
        sums = masks @ (values / pi)
        error = abs(sums.mean() - values.sum()) * np.sqrt(len(sums))
        assert error <= scipy.stats.norm.isf(RARE / 2) * sums.std()


@pytest.mark.parametrize("seed", range(4))
def test_no_pair_of_rows_attracts_and_sums_vary_less_than_with_independent_draws(seed):
    rng = np.random.default_rng(seed)
    scores = np.exp(2 * rng.standard_normal(12))
    masks, pi = samples(scores, 5, 4000)
    for i, j in itertools.combinations(range(12), 2):
        both = np.sum(masks[:, i] & masks[:, j])
        assert both <= scipy.stats.binom.isf(RARE / 66, len(masks), pi[i] * pi[j])
    masks, scores, pi = masks[:, pi < 1], scores[pi < 1], pi[pi < 1]
    for values in (scores, np.sqrt(scores), rng.exponential(size=len(pi))):
        terms = values / pi
        independent = np.sum(terms**2 * pi * (1 - pi))
        errors = masks @ terms - values.sum()
        assert not is_larger(errors**2, independent)
        # the moment generating function of the proof, both signs
        for t in np.array([-1, 1]) / np.sqrt(independent):
            bound = np.prod(1 + pi * np.expm1(t * terms)) * np.exp(-t * values.sum())
            assert not is_larger(np.exp(t * errors), bound)


def is_larger(values, bound):
    """Tell whether the mean of ``values`` is above ``bound``, by the central limit theorem."""
    return values.mean() > bound + scipy.stats.norm.isf(RARE) * values.std() / np.sqrt(len(values))


# Rows of one direction each, 100 of every one, shuffled: sensitivities 1/100 for every p > 0.
AXES = np.repeat(np.eye(10), 100, axis=0)[np.random.default_rng(0).permutation(1000)]


def failures(keys, query, scores, size, delta, trials=1500):
    """Return how often ``||K q||_2^2`` of the sample is off by more than the share ``delta``."""
    values = (keys @ query) ** 2
    failed = 0
    for seed in range(trials):
        _, weights, index = sample_rows(keys, scores, size, seed, return_indices=True)
        failed += abs(weights @ values[index] - values.sum()) > delta * values.sum()
    return failed


def stated_size(total, delta, phi):
    return int(np.ceil(2 * (1 + delta / 3) * np.log(2 / phi) * total / delta**2))


@pytest.mark.parametrize(("delta", "phi"), [(0.5, 0.2), (0.4, 0.5), (0.8, 0.05)])
def test_the_stated_size_gives_the_stated_accuracy_for_a_fixed_query(delta, phi):
    most = scipy.stats.binom.isf(RARE, 1500, phi)
    size = stated_size(10.0, delta, phi)
    assert size < 500
    assert failures(AXES, np.eye(10)[0], np.full(1000, 0.01), size, delta) <= most
    # a twentieth of it does not: the test can fail
    assert failures(AXES, np.eye(10)[0], np.full(1000, 0.01), size // 20, delta) > most
    # leverage scores are the sensitivities of p = 2, and their sum is the rank
    size = stated_size(3.0, delta, phi)
    most = scipy.stats.binom.isf(RARE, 400, phi)
    for query in np.vstack([np.eye(3), np.linalg.pinv(K.T @ K) @ K[5]]):
        assert failures(K, query, leverage_scores(K), size, delta, 400) <= most


def test_scores_that_bound_nothing_give_no_accuracy():
    query = np.linalg.pinv(K.T @ K) @ K[np.argmax(leverage_scores(K))]
    size = stated_size(3.0, 0.5, 0.2)
    failed = failures(K, query, np.full(len(K), 3.0 / len(K)), size, 0.5)
    assert failed > scipy.stats.binom.isf(RARE, 1500, 0.2)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_and_weights_come_in_the_library_and_type_of_the_keys(name, dtype):
    rows, scores = K.astype(dtype), leverage_scores(K)
    expected = sample_rows(rows, scores, 30, 1, return_indices=True)
    found = sample_rows(LIBRARIES[name](rows), scores, 30, 1, return_indices=True)
    also = sample_rows(LIBRARIES[name](rows), LIBRARIES[name](scores), 30, 1)
    assert expected[0].dtype == expected[1].dtype == dtype
    assert expected[2].dtype == np.int64
    for part, reference in zip([*found, *also], [*expected, *expected[:2]], strict=True):
        assert type(part) is type(LIBRARIES[name](rows))
        assert host(part).dtype == reference.dtype
        np.testing.assert_array_equal(host(part), reference)


def test_data_frames_keep_their_columns_and_labels():
    frame = pd.DataFrame(K, columns=["a", "b", "c"], index=[f"r{i}" for i in range(len(K))])
    scores = pd.Series(leverage_scores(K))
    rows, weights, index = sample_rows(frame, scores, 20, 0, return_indices=True)
    assert list(rows.columns) == ["a", "b", "c"]
    assert list(rows.index) == [f"r{i}" for i in index]
    assert isinstance(weights, np.ndarray)
    mixed = frame.assign(name="x")  # only numbers of rows are used, not the entries
    assert sample_rows(mixed, scores, 20, 0)[0].index.equals(rows.index)


def test_lists_vectors_and_narrow_types_may_be_sampled():
    rows, weights = sample_rows([[1, 2], [3, 4]], [1, 1], 5)
    np.testing.assert_array_equal(rows, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(weights, [1.0, 1.0])
    rows, weights = sample_rows(np.arange(5, dtype=np.float16), np.ones(5, np.bool_), 2, 0)
    assert rows.dtype == np.float16
    assert weights.dtype == np.float32
    assert rows.shape == weights.shape == (2,)


def test_random_states_determine_the_sample():
    scores = leverage_scores(K)
    first = sample_rows(K, scores, 25, 7, return_indices=True)
    for state in (7, np.random.RandomState(7)):
        for a, b in zip(sample_rows(K, scores, 25, state, return_indices=True), first, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        sample_rows(K, 1024 * scores, 25, 7, return_indices=True)[2], first[2]
    )
    other = sample_rows(K, scores, 25, 8, return_indices=True)
    assert (other[2] != first[2]).any()
    assert len(sample_rows(K, scores, 25)[0]) == 25


@pytest.mark.parametrize("n", [10**6])
def test_large_streams_have_the_exact_size(n):
    scores = np.exp(3 * np.random.default_rng(0).standard_normal(n))
    for size in (1, 999, n // 2):
        pi = inclusion_probabilities(scores, size)
        assert len(pivotal_sample(pi, np.random.RandomState(0))) == size


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ([1.0, -1.0, 1.0], r"finite and >= 0, got -1.0 at row 1"),
        ([1.0, 1.0, np.nan], r"finite and >= 0, got nan at row 2"),
        ([np.inf, 1.0, 1.0], r"finite and >= 0, got inf at row 0"),
        ([0.0, 0.0, 0.0], "must not all be zero"),
        ([1.0, 1.0], r"must have shape \(3,\), one for each row of K, got \(2,\)"),
        ([[1.0], [1.0], [1.0]], r"must have shape \(3,\)"),
    ],
)
def test_scores_that_mean_nothing_are_refused_with_their_place(scores, text):
    with pytest.raises(ValueError, match=text):
        sample_rows(np.ones((3, 2)), scores, 2)


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(TypeError, match="scores must hold real numbers"):
        sample_rows(np.ones((2, 2)), ["a", "b"], 2)


@pytest.mark.parametrize("size", [0, -3])
def test_sizes_below_one_are_refused(size):
    with pytest.raises(ValueError, match=f"size must be at least 1, got {size}"):
        sample_rows(K, np.ones(len(K)), size)


@pytest.mark.parametrize("size", [2.0, True, "2", None])
def test_sizes_that_are_not_integers_are_refused(size):
    with pytest.raises(TypeError, match="size must be an int"):
        sample_rows(K, np.ones(len(K)), size)
    assert len(sample_rows(K, np.ones(len(K)), np.int64(3))[0]) == 3


def test_the_last_row_is_decided_by_the_count():
    # a sum that is off by its rounding must not cost a row, nor give one too many
    for off in (-1e-10, 1e-10):
        pi = np.full(10, 0.3)
        pi[9] += off
        for seed in range(200):
            assert len(pivotal_sample(pi, np.random.RandomState(seed))) == 3
