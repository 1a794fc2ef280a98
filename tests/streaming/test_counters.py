"""Binary counters: one entry for each bit, in order, and the same sums however terms come."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from levsketch.streaming.counters import count_matrices, count_up


@given(st.integers(1, 300))
def test_a_binary_counter_holds_one_entry_for_each_bit_of_the_count(count):
    counter = ()
    for i in range(count):
        counter = count_up(counter, ((0, (i,)),), lambda a, b: a + b)
    levels = [level for level, _ in counter]
    assert sum(2**level for level in levels) == count
    assert levels == sorted(set(levels), reverse=True)
    assert [len(held) for _, held in counter] == [2**level for level in levels]
    # and in the order in which they came
    assert [i for _, held in counter for i in held] == list(range(count))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_counting_counters_in_keeps_order_and_falling_levels(counts):
    whole, start = (), 0
    for count in counts:
        part = ()
        for i in range(start, start + count):
            part = count_up(part, ((0, (i,)),), lambda a, b: a + b)
        whole, start = count_up(whole, part, lambda a, b: a + b), start + count
    levels = [level for level, _ in whole]
    assert all(a > b for a, b in itertools.pairwise(levels))
    assert [i for _, held in whole for i in held] == list(range(start))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.lists(st.integers(0, 9)))
def test_matrices_counted_in_together_are_those_counted_in_one_by_one(counts, merged):
    # a counter that was merged may have any falling levels
    draws = np.random.default_rng(len(counts))
    start = tuple((k, draws.standard_normal((2, 2))) for k in sorted(set(merged), reverse=True))
    together, alone = start, start
    for count in counts:
        terms = draws.standard_normal((count, 2, 2)) * 10.0 ** draws.integers(-9, 9, (count, 1, 1))
        together = count_matrices(together, terms)
        for term in terms:
            alone = count_up(alone, ((0, term.copy()),), np.add)
        terms[:] = np.nan  # the counter holds no view of what was counted in
        for (level, matrix), (own, other) in zip(together, alone, strict=True):
            assert level == own
            np.testing.assert_array_equal(matrix, other)
