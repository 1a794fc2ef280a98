"""Exact rank of float64 rows, by elimination modulo a 61-bit prime.

A row space is held as its reduced row echelon form mod P: ``basis`` (d, d)
uint64, the row with pivot column c stored at index c, ``pivots`` (d,) uint8
telling which are present. The form is canonical: equal row spaces have equal
bytes, in whatever order their rows came.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc

cdef extern from "residue.h" nogil:
    enum:
        LEV_POWERS
    uint64_t residue_mul(uint64_t, uint64_t)
    uint64_t residue_add(uint64_t, uint64_t)
    uint64_t residue_neg(uint64_t)
    uint64_t residue_inv(uint64_t)
    void residue_powers(uint64_t *)
    uint64_t residue_of(double, const uint64_t *)
    uint64_t residue_random(uint64_t)

cdef uint64_t powers[LEV_POWERS]
residue_powers(powers)


cdef void draw_null_vector(
    const uint64_t[:, ::1] basis,
    const uint8_t[::1] pivots,
    uint64_t *z,
) noexcept nogil:
    """A random vector orthogonal to the basis: zero against every row inside the space."""
    cdef Py_ssize_t d = basis.shape[0], c, j
    cdef uint64_t total, drawn = 0
    for c in range(d):
        drawn += pivots[c]
    for c in range(d):
        z[c] = 0 if pivots[c] else residue_random(drawn * <uint64_t> d + <uint64_t> c)
    for c in range(d):
        if pivots[c]:
            total = 0
            for j in range(c + 1, d):
                if not pivots[j]:
                    total = residue_add(total, residue_mul(basis[c, j], z[j]))
            z[c] = residue_neg(total)


cdef bint insert_row(uint64_t *row, uint64_t[:, ::1] basis, uint8_t[::1] pivots) noexcept nogil:
    """Add a row of residues to the basis (the row is overwritten); True when the rank grew."""
    cdef Py_ssize_t d = basis.shape[0], c, j, pivot = -1
    cdef uint64_t factor
    for c in range(d):
        if row[c] and pivots[c]:
            factor = residue_neg(row[c])
            for j in range(c, d):
                row[j] = residue_add(row[j], residue_mul(factor, basis[c, j]))
    for c in range(d):
        if row[c]:
            pivot = c
            break
    if pivot < 0:
        return False
    factor = residue_inv(row[pivot])
    for j in range(pivot, d):
        basis[pivot, j] = residue_mul(factor, row[j])
    for c in range(pivot):
        if pivots[c] and basis[c, pivot]:
            factor = residue_neg(basis[c, pivot])
            for j in range(pivot, d):
                basis[c, j] = residue_add(basis[c, j], residue_mul(factor, basis[pivot, j]))
    pivots[pivot] = 1
    return True


cdef bint outside(const double *x, const uint64_t *z, Py_ssize_t d) noexcept nogil:
    cdef Py_ssize_t j
    cdef uint64_t total = 0
    for j in range(d):
        if x[j] != 0.0 and z[j]:
            total = residue_add(total, residue_mul(residue_of(x[j], powers), z[j]))
    return total != 0


def absorb_rows(
    const double[:, ::1] X,
    uint64_t[:, ::1] basis,
    uint8_t[::1] pivots,
    uint8_t[::1] grew,
):
    """Add rows X (n, d) to the basis in place; grew[i] = 1 where row i raised the rank."""
    cdef Py_ssize_t n = X.shape[0], d = X.shape[1], i, j, rank = 0
    cdef uint64_t *z = <uint64_t *> malloc(2 * d * sizeof(uint64_t))
    if z == NULL:
        raise MemoryError("null vector")
    cdef uint64_t *row = z + d
    with nogil:
        for j in range(d):
            rank += pivots[j]
        draw_null_vector(basis, pivots, z)
        for i in range(n):
            grew[i] = 0
            if rank < d and outside(&X[i, 0], z, d):
                for j in range(d):
                    row[j] = residue_of(X[i, j], powers)
                if insert_row(row, basis, pivots):
                    grew[i] = 1
                    rank += 1
                    draw_null_vector(basis, pivots, z)
    free(z)


def absorb_basis(
    const uint64_t[:, ::1] other, const uint8_t[::1] other_pivots,
    uint64_t[:, ::1] basis, uint8_t[::1] pivots,
):
    """Add another basis to this one, in place: the sum of the two row spaces."""
    cdef Py_ssize_t d = basis.shape[0], c, j
    cdef uint64_t *row = <uint64_t *> malloc(d * sizeof(uint64_t))
    if row == NULL:
        raise MemoryError("row of residues")
    for c in range(d):
        if other_pivots[c]:
            for j in range(d):
                row[j] = other[c, j]
            insert_row(row, basis, pivots)
    free(row)


def queries_orthogonal(
    const double[:, ::1] Q, const uint64_t[:, ::1] basis, const uint8_t[::1] pivots,
    uint8_t[::1] out,
):
    """out[i] = 1 where query i of Q (m, d) is orthogonal to the whole row space."""
    cdef Py_ssize_t m = Q.shape[0], d = Q.shape[1], i, c
    with nogil:
        for i in range(m):
            out[i] = 1
            for c in range(d):
                if pivots[c] and outside(&Q[i, 0], &basis[c, 0], d):
                    out[i] = 0
                    break


def rows_outside(
    const double[:, ::1] X, const uint64_t[:, ::1] basis, const uint8_t[::1] pivots,
    uint8_t[::1] out,
):
    """out[i] = 1 where row i of X lies outside the row space."""
    cdef Py_ssize_t n = X.shape[0], d = X.shape[1], i
    cdef uint64_t *z = <uint64_t *> malloc(d * sizeof(uint64_t))
    if z == NULL:
        raise MemoryError("null vector")
    with nogil:
        draw_null_vector(basis, pivots, z)
        for i in range(n):
            out[i] = outside(&X[i, 0], z, d)
    free(z)
