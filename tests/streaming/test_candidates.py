"""The buffer of rows that can still matter: what its helpers pick and keep."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from levsketch.streaming.candidates import Candidates, best, mask_of

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), max_size=20).map(np.array)


@given(SCORES, st.integers(0, 25))
def test_best_are_the_largest_and_the_earlier_among_equals(scores, size):
    scores = scores.astype(float)
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:size]
    found = best(scores, size)
    assert found.dtype == np.int64
    assert found.tolist() == expected


@given(st.sets(st.integers(0, 19)))
def test_masks_are_true_at_their_positions_alone(positions):
    mask = mask_of(np.array(sorted(positions), dtype=np.int64), 20)
    assert set(np.flatnonzero(mask).tolist()) == positions


def test_no_candidates_have_no_rows_and_no_bound():
    empty = Candidates.empty(3)
    assert len(empty) == 0
    assert empty.rows.shape == (0, 3)
    assert empty.dropped_bound == 0.0
    assert empty.sound


def test_extending_widens_rows_and_leaves_the_held_ones_alone():
    held = Candidates.empty(2)
    rows, index = held.extended(np.ones((2, 2), np.float32), np.array([4, 9]))
    assert rows.dtype == np.float64
    assert index.tolist() == [4, 9]
    assert len(held) == 0
