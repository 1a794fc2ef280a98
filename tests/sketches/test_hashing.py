"""Numbers that a seed and a row determine: uniform, unrelated, and the same in any batching."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts

from levsketch.sketches import hashing
from levsketch.sketches.hashing import row_salt, uniforms

SEEDS = st.one_of(st.integers(0, 2**64 - 1), st.integers(-(2**70), 2**70))
N = 100_000
# A test that is right fails with this probability, were its numbers random.
RARE = 1e-6
# Computed once more, in Python's integers, when this test was written.
GOLDEN = [
    [6354449462685905, 5124397715592079, 3435139184365229, 2361739992611723, 7978101171477757],
    [6404250699846611, 4458707057029399, 5931121056543313, 5514786992536473, 3907412482104853],
]


def test_the_mixer_is_the_one_of_splitmix64():
    # what the generator's reference implementation gives for the seed 1234567
    states = np.uint64(1234567) + np.arange(1, 6).astype(np.uint64) * hashing._GAMMA
    assert hashing._mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_numbers_are_these_on_every_machine():
    index = np.array([0, 1, 2, 10**12, 2**63 - 1])
    assert (uniforms(0, index) * 2.0**53).astype(np.int64).tolist() == GOLDEN[0]
    assert (uniforms(12345, index, row_salt(np.eye(5))) * 2.0**53).astype(
        np.int64
    ).tolist() == GOLDEN[1]


@pytest.mark.parametrize("seed", [0, 1, 2**63, 987654321])
@pytest.mark.parametrize("salted", [False, True])
def test_numbers_are_uniform(seed, salted):
    salt = row_salt(np.random.default_rng(seed).standard_normal((N, 2))) if salted else None
    numbers = uniforms(seed, np.arange(N), salt)
    assert scipy.stats.kstest(numbers, "uniform").pvalue > RARE
    # the leading bits, and those below them
    for part in (numbers, numbers * 2**20 % 1):
        counts = np.bincount((part * 256).astype(np.int64), minlength=256)
        assert scipy.stats.chisquare(counts).pvalue > RARE


@pytest.mark.parametrize(
    "index", [np.arange(N), np.arange(N) << 20, np.arange(N) * 1024 + 2**40, -np.arange(N)]
)
def test_rows_that_follow_a_pattern_get_numbers_that_do_not(index):
    numbers = uniforms(3, index)
    assert scipy.stats.kstest(numbers, "uniform").pvalue > RARE
    for lag in (1, 2, 7, 256):
        assert_unrelated(numbers[:-lag], numbers[lag:])


def assert_unrelated(x, y):
    """Assert that pairs fill the unit square evenly, in 16 x 16 fields."""
    pairs = (x * 16).astype(np.int64) * 16 + (y * 16).astype(np.int64)
    assert scipy.stats.chisquare(np.bincount(pairs, minlength=256)).pvalue > RARE
    # under independence a correlation is normal with deviation 1 / sqrt(n)
    correlation = np.corrcoef(x, y)[0, 1] * np.sqrt(len(x))
    assert abs(correlation) < scipy.stats.norm.isf(RARE / 2)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (7, 8), (1, 2**32), (5, 2**63 + 5)])
def test_seeds_that_differ_in_one_bit_or_by_one_give_unrelated_numbers(a, b):
    index = np.arange(N)
    assert_unrelated(uniforms(a, index), uniforms(b, index))
    # nor does one seed run through the numbers of the other a few rows later
    for lag in (1, 2, 3):
        assert_unrelated(uniforms(a, index), uniforms(b, index + lag))


def test_numbers_of_many_seeds_for_one_row_are_uniform():
    numbers = np.array([uniforms(seed, np.array([5]))[0] for seed in range(20_000)])
    assert scipy.stats.kstest(numbers, "uniform").pvalue > RARE
    assert_unrelated(numbers[:-1], numbers[1:])


def test_streams_of_other_rows_get_unrelated_numbers_for_equal_row_numbers():
    rng = np.random.default_rng(0)
    index = np.arange(N)
    first, second = (row_salt(rng.standard_normal((N, 3))) for _ in range(2))
    assert_unrelated(uniforms(0, index, first), uniforms(0, index, second))
    # small integers have few bits that differ
    small = row_salt(rng.integers(0, 3, (N, 3)).astype(np.float64))
    assert_unrelated(uniforms(0, index, first), uniforms(0, index, small))
    assert scipy.stats.kstest(uniforms(0, index, small), "uniform").pvalue > RARE


@given(SEEDS, st.data())
def test_numbers_are_the_same_in_any_batching_and_order(seed, data):
    rows = np.random.default_rng(seed % 2**32).standard_normal((50, 3))
    index = np.arange(50) + data.draw(st.integers(0, 2**62))
    together = uniforms(seed, index, row_salt(rows))
    edges = [0, *data.draw(cuts(50)), 50]
    apart = [uniforms(seed, index[i:j], row_salt(rows[i:j])) for i, j in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(apart), together)
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(
        uniforms(seed, index[order], row_salt(rows[order])), together[order]
    )


@given(SEEDS, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_numbers_lie_strictly_between_zero_and_one_and_nothing_warns(seed, index):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = uniforms(seed, np.array(index, dtype=np.int64))
    assert ((numbers > 0) & (numbers < 1)).all()
    assert numbers.shape == (len(index),)


def test_the_extreme_words_give_numbers_inside_the_interval(monkeypatch):
    for word in (0, 2**64 - 1):
        monkeypatch.setattr(hashing, "_mix", lambda x, w=word: np.full(x.shape, w, np.uint64))
        (number,) = uniforms(0, np.array([0]))
        assert number == (2.0**-53 if word == 0 else 1 - 2.0**-53)


def test_no_salt_is_a_salt_of_zeros_and_seeds_are_taken_modulo_two_to_64():
    index = np.arange(100)
    plain = uniforms(9, index)
    np.testing.assert_array_equal(uniforms(9, index, np.zeros(100, np.uint64)), plain)
    np.testing.assert_array_equal(uniforms(9 + 2**64, index), plain)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, ">f4", ">f8"])
def test_equal_values_have_equal_salts_in_every_type(dtype):
    rows = np.random.default_rng(0).integers(-9, 9, (200, 3)) / 1.0
    np.testing.assert_array_equal(row_salt(rows.astype(dtype)), row_salt(rows))


def test_salts_see_every_entry_and_its_place_but_no_sign_of_zero():
    rows = np.array([[0.0, 5.0, 2.0], [-0.0, 5.0, 2.0], [0.0, 6.0, 2.0], [2.0, 5.0, 0.0]])
    salts = row_salt(rows)
    assert salts[0] == salts[1]
    assert len(set(salts.tolist())) == 3
    np.testing.assert_array_equal(row_salt(np.asfortranarray(rows)), salts)
    values = np.random.default_rng(0).standard_normal((10_000, 1))
    assert len(np.unique(row_salt(values))) == 10_000  # one column: it does not cancel itself
    assert len(np.unique(row_salt(np.repeat(values, 2, axis=1)))) == 10_000
