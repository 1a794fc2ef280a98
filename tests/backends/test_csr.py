"""Sparse rows: what is read of scipy's matrices, and that bits depend on a block's numbers only."""

import itertools

import numpy as np
import pytest
import scipy.sparse
from oracles import U
from threadpoolctl import threadpool_limits

from levsketch.backends import CpuBackend
from levsketch.backends.csr import CsrRows


def draw(n, d, share=0.3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) * (rng.random((n, d)) < share)).astype(dtype)


def same(rows, K):
    """Check that ``rows`` hold the array ``K`` in the form that kernels rely on."""
    assert (rows.shape, len(rows)) == (K.shape, len(K))
    np.testing.assert_array_equal(rows.widened(), K)
    np.testing.assert_array_equal(np.asarray(rows, np.float64), K)
    assert rows.values.dtype in (np.float32, np.float64)
    assert rows.start[-1] - rows.start[0] == np.count_nonzero(K)
    for first, last in zip(rows.start[:-1], rows.start[1:], strict=True):
        assert (np.diff(rows.columns[first:last]) > 0).all()


@pytest.mark.parametrize("make", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "dia", "bsr"])
def test_any_format_gives_its_rows(make, form):
    K = draw(50, 7)
    same(CsrRows.of("K", make(K).asformat(form)), K)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (np.float64, np.float64),
        (np.float32, np.float32),
        (np.longdouble, np.float64),
        (np.int8, np.float64),
        (np.uint64, np.float64),
        (np.bool_, np.float64),
        (">f8", np.float64),
        (">f4", np.float32),
    ],
)
def test_any_real_type_is_converted(dtype, kept):
    K = np.abs(10 * draw(50, 7)).astype(dtype)
    X = scipy.sparse.csr_array(K.astype(np.dtype(dtype).newbyteorder("=")))
    X.data = X.data.astype(dtype)
    rows = CsrRows.of("K", X)
    assert rows.dtype == rows.values.dtype == kept
    same(rows, K)


def messy(dtype=np.float64, index=np.int32):
    """Return CSR with entries given twice, zeros and unsorted columns, and what it means."""
    data = np.array([3, 1, -2, 4, 4, 5, -5, 0, 7], dtype)
    indices = np.array([2, 0, 2, 1, 1, 3, 3, 0, 2], index)
    indptr = np.array([0, 3, 3, 7, 9], index)
    K = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 8, 0, 0], [0, 0, 7, 0]], dtype)
    return scipy.sparse.csr_array((data, indices, indptr), shape=(4, 4)), K


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_what_is_given_twice_is_added_up_and_the_matrix_stays_as_it_is(dtype, index):
    X, K = messy(dtype, index)
    before = [a.copy() for a in (X.data, X.indices, X.indptr)]
    held = dict(vars(X))
    same(CsrRows.of("K", X), K)
    for now, then in zip((X.data, X.indices, X.indptr), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert vars(X).keys() == held.keys()
    X.has_sorted_indices = X.has_canonical_format = True  # believed by scipy, not here
    same(CsrRows.of("K", X), K)


def test_a_matrix_in_good_form_is_not_copied():
    for dtype in (np.float32, np.float64):
        X = scipy.sparse.csr_array(draw(100, 9, dtype=dtype))
        rows = CsrRows.of("K", X)
        assert np.shares_memory(rows.values, X.data)
        assert np.shares_memory(rows.columns, X.indices)
        part = rows[10:40]
        assert np.shares_memory(part.values, X.data)
        assert np.shares_memory(part.start, rows.start)


def damaged(change):
    X = scipy.sparse.csr_array(draw(20, 5))
    change(X)
    return X


def put(name, place, value):
    return lambda X: getattr(X, name).__setitem__(place, value)


@pytest.mark.parametrize(
    "change",
    [
        put("indices", 3, 5),
        put("indices", 3, -1),
        put("indices", 0, 2**31 - 1),
        put("indptr", 3, 10**6),
        put("indptr", 3, -4),
        put("indptr", 0, 1),
        put("indptr", -1, 10**6),
        lambda X: setattr(X, "data", X.data[:-3]),
        lambda X: setattr(X, "indices", X.indices[:-3]),
        lambda X: setattr(X, "indptr", X.indptr[:-3]),
    ],
)
def test_indices_that_lead_out_of_the_matrix_are_refused(change):
    with pytest.raises(ValueError, match=r"K of shape \(20, 5\).*indices outside its shape"):
        CsrRows.of("K", damaged(change))


def test_csc_is_looked_at_before_scipy_converts_it():
    X = scipy.sparse.csc_array(draw(20, 5))
    X.indices[4] = 10**9
    with pytest.raises(ValueError, match="indices outside its shape"):
        CsrRows.of("K", X)


def test_other_shapes_and_numbers_are_refused():
    with pytest.raises(TypeError, match="K must hold real numbers, got dtype complex128"):
        CsrRows.of("K", scipy.sparse.csr_array(np.eye(3) * 1j))
    with pytest.raises(ValueError, match=r"K must have shape \(n, d\), got shape \(3,\)"):
        CsrRows.of("K", scipy.sparse.coo_array(np.ones(3)))


def test_parts_are_those_of_the_array():
    K = draw(60, 6, share=0.2)
    whole = CsrRows.of("K", scipy.sparse.csr_array(K))
    for base, held in ((whole, K), (whole[5:50], K[5:50])):
        for key in (
            slice(3, 17),
            slice(None),
            slice(40, 3),
            slice(-5, None),
            slice(None, None, 3),
            np.array([4, 4, 0, -1]),
            np.array([], np.int64),
            held[:, 0] > 0,
        ):
            part, want = base[key], held[key]
            same(part, want)
            for axis in (0, 1):
                np.testing.assert_array_equal(part.any(axis=axis), want.any(axis=axis))
            columns = np.arange(6) % 2 == 0
            np.testing.assert_array_equal(part.touching(columns), want[:, columns].any(axis=1))
            ones = np.concatenate([np.ones((len(want), 1)), want], axis=1)
            same(part.with_ones(), ones)
            ones[:, 0] = 0
            same(part.with_zeros(), ones)
            powers = np.array([0, 3, -2000, 2000, 7, -1060])
            with np.errstate(over="ignore", under="ignore"):
                np.testing.assert_array_equal(
                    part.columns_times(powers).widened(), np.ldexp(want, powers)
                )
            same(CsrRows.of_dense(want), want)
        assert base[()] is base


@pytest.mark.parametrize("most", [1, 5, 40, 10**6])
def test_cuts_bound_the_numbers_between_them(most):
    K = draw(60, 6, share=0.4)
    K[20:30] = 0.0
    rows = CsrRows.of("K", scipy.sparse.csr_array(K))[3:]
    found = rows.cuts(most)
    assert (found[0], found[-1]) == (0, 57)
    for first, last in itertools.pairwise(found):
        part = rows[first:last]
        assert last == first + 1 or part.start[-1] - part.start[0] <= most
    assert CsrRows.of_dense(K[:0]).cuts(most) == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_number_that_is_not_finite_is_found(value):
    K = draw(60, 6)
    K[33, 4] = K[40, 0] = value
    rows = CsrRows.of("K", scipy.sparse.csr_array(K))
    row, column, found = rows[10:].not_finite()
    assert (row, column) == (23, 4)
    np.testing.assert_equal(found, value)
    assert rows[34:40].not_finite() is None


BACKEND = CpuBackend()


def operations(rows, W, scale):
    yield BACKEND.block_grams(rows, 50)
    yield BACKEND.block_grams(rows, 50, scale)
    yield BACKEND.whitened_row_norms(rows, W, triangular=True)[: len(rows) // 50 * 50].reshape(
        -1, 50
    )
    yield BACKEND.whitened_block_grams(rows, W, 50, triangular=True)
    yield BACKEND.whitened_block_grams(rows, W, 50, scale, triangular=True)
    yield BACKEND.qr_blocks(rows, 50)
    yield BACKEND.column_squares(rows, 50, scale)
    yield BACKEND.screened_row_norms(rows, W[:, :3], np.abs(W[0])).reshape(-1, 50)


def mixed(seed=0):
    """Return rows of blocks of all densities, and full rows among sparse ones."""
    rng = np.random.default_rng(seed)
    share = np.repeat([0.02, 0.9, 0.95, 0.1, 0.24, 0.26, 0.5, 0.0], 50)[:, None]
    K = rng.standard_normal((400, 40)) * (rng.random((400, 40)) < share)
    K[::17] = rng.standard_normal((24, 40))
    return K


def test_operations_over_sparse_rows_agree_with_those_over_the_array():
    K, rng = mixed(), np.random.default_rng(1)
    W, scale = np.triu(rng.standard_normal((40, 40))), rng.uniform(0.5, 2, 400)
    rows = CsrRows.of("K", scipy.sparse.csr_array(K))
    for ours, theirs in zip(operations(rows, W, scale), operations(K, W, scale), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1000 * U * np.abs(theirs).max())


def test_blocks_and_rows_have_the_same_bits_in_any_company_and_on_any_threads(monkeypatch):
    monkeypatch.setattr("levsketch.backends.cpu._SERIAL_WORK", 1)
    K, rng = mixed(), np.random.default_rng(1)
    W, scale = np.triu(rng.standard_normal((40, 40))), rng.uniform(0.5, 2, 400)
    rows = CsrRows.of("K", scipy.sparse.csr_array(K))
    with threadpool_limits(1, user_api="openmp"):
        whole = list(operations(rows, W, scale))
        for b in range(8):
            part = slice(50 * b, 50 * (b + 1))
            alone = operations(rows[part], W, scale[part])
            for ours, found in zip(whole, alone, strict=True):
                np.testing.assert_array_equal(ours[b], found[0])
            # and compressed again from the array, as pending rows are
            again = operations(CsrRows.of_dense(K[part]), W, scale[part])
            for ours, found in zip(whole, again, strict=True):
                np.testing.assert_array_equal(ours[b], found[0])
    for threads in (2, 3):
        with threadpool_limits(threads, user_api="openmp"):
            for ours, found in zip(whole, operations(rows, W, scale), strict=True):
                np.testing.assert_array_equal(ours, found)


def test_rows_pass_through_the_backend_as_they_are():
    rows = CsrRows.of_dense(draw(5, 3))
    assert BACKEND.rows(rows) is rows
