"""Room for pending rows: appended to in place, and never seen by a state that did not append."""

import copy
import pickle
import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from levsketch.backends import CpuBackend
from levsketch.streaming.keys import KeyStream, Policy
from levsketch.streaming.room import Room

CPU = CpuBackend()
POLICY = Policy(0.1, None, 1, False, 0.0)


def begun(d=3):
    return KeyStream.empty(POLICY, d).update(CPU, np.ones((1, d)))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 60)), max_size=30))
def test_states_that_branch_from_one_another_keep_their_own_rows(steps):
    draws = np.random.default_rng(0)
    states = [(begun(), np.ones((1, 3)))]
    for parent, count in steps:
        state, rows = states[parent % len(states)]
        more = draws.standard_normal((count, 3))
        after = state.appended(more)
        if after is not None:
            states.append((after, np.concatenate([rows, more])))
        for held, expected in states:
            np.testing.assert_array_equal(held.pending, expected)
            assert held.n_seen == len(expected)


def test_threads_that_append_to_one_state_do_not_meet():
    state, found = begun().appended(np.zeros((5, 3))), {}
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        after = state
        for _ in range(50):
            after = after.appended(np.full((2, 3), number + 2.0))
        found[number] = after

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, after in found.items():
        assert (after.pending[6:] == number + 2.0).all()
        assert len(after.pending) == 106


def test_what_does_not_fit_or_needs_care_is_left_to_update():
    state = begun()
    block = state.block_rows
    assert state.appended(np.zeros((0, 3))) is None
    assert state.appended(np.zeros((block - 1, 3))) is None
    assert state.appended(np.zeros((block - 2, 3))) is not None
    assert state.appended(np.zeros((1, 3), np.float32)) is None
    for value in (np.nan, np.inf, -np.inf, 1e200):
        assert state.appended(np.array([[0.0, value, 0.0]])) is None
    assert state.pending.tolist() == [[1.0, 1.0, 1.0]]


def test_copies_and_pickles_hold_the_rows_and_not_the_room():
    state = begun().appended(np.zeros((5, 3)))
    for again in (copy.deepcopy(state), copy.copy(state), pickle.loads(pickle.dumps(state))):
        np.testing.assert_array_equal(again.pending, state.pending)
        assert "_room" not in again.__dict__
        left, right = again.appended(np.ones((1, 3))), state.appended(np.full((1, 3), 2.0))
        assert left.pending[-1, 0] == 1.0
        assert right.pending[-1, 0] == 2.0
    assert len(pickle.dumps(state)) < 4000


def test_what_was_read_off_a_state_does_not_pass_on_to_the_next():
    state = begun()
    assert len(state.selection.index) == 1
    assert len(state.appended(np.eye(3)).selection.index) == 4


def test_a_room_is_claimed_once():
    room = Room(np.zeros((2, 1)), 9)
    assert room.append(2, np.ones((3, 1))).ravel().tolist() == [0, 0, 1, 1, 1]
    assert room.append(2, np.ones((1, 1))) is None
    assert room.append(5, np.ones((4, 1))) is not None
