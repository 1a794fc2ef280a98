"""RowSpace: rank without a tolerance, the same for any order and any batching."""

import numpy as np
import oracles
import pytest
from fitting import split
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts, tiny_keys

from levsketch import LevsketchFormatError
from levsketch.streaming.rank import RowSpace

SMALL = st.integers(-2, 2).map(float)


def of(K):
    return RowSpace.empty(K.shape[1]).absorb(K)[0]


def same(a, b):
    np.testing.assert_array_equal(a.basis, b.basis)
    np.testing.assert_array_equal(a.pivots, b.pivots)


@given(tiny_keys(SMALL, max_rows=8), st.data())
def test_batches_leave_the_space_of_all_rows(K, data):
    space, grew = RowSpace.empty(K.shape[1]), []
    for batch in split(K, data.draw(cuts(len(K)))):
        space, rose = space.absorb(batch)
        grew.append(rose)
    whole, whole_grew = RowSpace.empty(K.shape[1]).absorb(K)
    same(space, whole)
    np.testing.assert_array_equal(np.concatenate(grew), whole_grew)
    assert space.rank == oracles.exact_rank(K)


@given(tiny_keys(SMALL), tiny_keys(SMALL), tiny_keys(SMALL))
def test_merging_is_associative_commutative_and_the_space_of_all(A, B, C):
    d = min(A.shape[1], B.shape[1], C.shape[1])
    a, b, c = of(A[:, :d]), of(B[:, :d]), of(C[:, :d])
    same(a.merge(b).merge(c), a.merge(b.merge(c)))
    same(a.merge(b), b.merge(a))
    same(a.merge(a), a)
    same(a.merge(RowSpace.empty(d)), a)
    same(a.merge(b), of(np.concatenate([A[:, :d], B[:, :d]])))


@given(tiny_keys(SMALL))
def test_absorbing_and_merging_change_neither_operand(K):
    a, b = of(K), of(K[::-1] * 2)
    before = a.basis.copy(), b.basis.copy()
    a.absorb(np.eye(K.shape[1]))
    a.merge(b)
    np.testing.assert_array_equal(a.basis, before[0])
    np.testing.assert_array_equal(b.basis, before[1])


def test_spaces_of_coordinates_are_told_by_a_look_at_the_columns():
    space = RowSpace.coordinates(np.array([True, False, True]))
    assert space.is_coordinates
    assert space.rank == 2
    same(space, of(np.array([[1.0, 0, 1], [1.0, 0, -1]])))
    unchanged, grew = space.absorb(np.array([[7.0, 0, -1e-300]]))
    assert unchanged is space
    assert not grew.any()
    grown, grew = space.absorb(np.array([[0.0, 0, 1], [1.0, 1e-300, 1]]))
    assert grew.tolist() == [False, True]
    assert grown.rank == 3


def test_rows_beyond_one_chunk_are_seen():
    K = np.zeros((10_000, 3))
    K[9_999, 2] = 1e-300
    K[4_096, 1] = 5.0
    space, grew = RowSpace.empty(3).absorb(K)
    assert np.flatnonzero(grew).tolist() == [4_096, 9_999]
    assert np.flatnonzero(RowSpace.empty(3).outside(K)).tolist() == [4_096, 9_999]
    assert not space.outside(K).any()


@given(tiny_keys(SMALL))
def test_saved_spaces_come_back(K):
    space = of(K)
    same(RowSpace.from_arrays(space.to_arrays(), space.basis.shape[0]), space)


def spoil(**changes):
    space = of(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]))
    arrays = {k: v.copy() for k, v in space.to_arrays().items()}
    for place, value in changes.items():
        name, *index = place.split("_")
        arrays[name][tuple(int(i) for i in index)] = value
    return arrays


@pytest.mark.parametrize(
    "arrays",
    [
        spoil(basis_0_0=2),  # a pivot is not one
        spoil(basis_1_2=5),  # an absent row is not zero
        spoil(basis_2_0=1),  # below the diagonal
        spoil(basis_0_1=2**61 - 31),  # not reduced
        spoil(pivots_1=1),  # a pivot without a row
        spoil(pivots_0=0),
        spoil(pivots_0=2),
        {"basis": np.zeros((3, 2), np.uint64), "pivots": np.zeros(3, np.uint8)},
        {"basis": np.zeros((3, 3), np.uint64), "pivots": np.zeros(2, np.uint8)},
        {"basis": np.zeros((3, 3), np.int64), "pivots": np.zeros(3, np.uint8)},
        {"basis": np.zeros((3, 3), np.uint64), "pivots": np.zeros(3, np.int64)},
    ],
)
def test_what_is_no_echelon_form_is_refused(arrays):
    with pytest.raises(LevsketchFormatError, match="echelon"):
        RowSpace.from_arrays(arrays, 3)


def test_an_echelon_form_that_is_not_reduced_is_refused():
    # the kernels rely on zeros above the pivots
    arrays = {
        "basis": np.array([[1, 5], [0, 1]], np.uint64),
        "pivots": np.ones(2, np.uint8),
    }
    with pytest.raises(LevsketchFormatError, match="echelon"):
        RowSpace.from_arrays(arrays, 2)
