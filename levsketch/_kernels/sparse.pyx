"""Passes over compressed sparse rows: Gram matrices by blocks, whitened norms, a look at indices.

Outputs are allocated by the caller, and nothing is validated here but by `order`. ``level`` is the
name of an instruction set that ``blocks.select_tiles`` found to run here. Each block or row is
computed by one thread in a fixed order, so no result depends on ``n_threads``.
"""

from cython cimport floating
from cython.parallel cimport parallel, prange
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc

ctypedef fused column:
    int32_t
    int64_t

cdef extern from "csr.h" nogil:
    enum:
        LEV_CSR_ROWS
    ctypedef struct lev_csr:
        Py_ssize_t (*whitener_size)(Py_ssize_t, Py_ssize_t) noexcept nogil
        Py_ssize_t (*norms_scratch)() noexcept nogil
        void (*pack_whitener)(const double *, Py_ssize_t, Py_ssize_t, int, double *) noexcept nogil
        void (*gram_f64_i32)(
            const double *, const int32_t *, const int64_t *, const double *, Py_ssize_t,
            Py_ssize_t, double *) noexcept nogil
        void (*gram_f64_i64)(
            const double *, const int64_t *, const int64_t *, const double *, Py_ssize_t,
            Py_ssize_t, double *) noexcept nogil
        void (*gram_f32_i32)(
            const float *, const int32_t *, const int64_t *, const double *, Py_ssize_t,
            Py_ssize_t, double *) noexcept nogil
        void (*gram_f32_i64)(
            const float *, const int64_t *, const int64_t *, const double *, Py_ssize_t,
            Py_ssize_t, double *) noexcept nogil
        void (*norms_f64_i32)(
            const double *, const int32_t *, const int64_t *, Py_ssize_t, Py_ssize_t,
            const double *, Py_ssize_t, int, Py_ssize_t, double *, double *) noexcept nogil
        void (*norms_f64_i64)(
            const double *, const int64_t *, const int64_t *, Py_ssize_t, Py_ssize_t,
            const double *, Py_ssize_t, int, Py_ssize_t, double *, double *) noexcept nogil
        void (*norms_f32_i32)(
            const float *, const int32_t *, const int64_t *, Py_ssize_t, Py_ssize_t,
            const double *, Py_ssize_t, int, Py_ssize_t, double *, double *) noexcept nogil
        void (*norms_f32_i64)(
            const float *, const int64_t *, const int64_t *, Py_ssize_t, Py_ssize_t,
            const double *, Py_ssize_t, int, Py_ssize_t, double *, double *) noexcept nogil

    const lev_csr *lev_csr_named(const char *)


cdef const lev_csr *table_of(str level) except NULL:
    cdef bytes key = level.encode()
    cdef const lev_csr *found = lev_csr_named(key)
    if found == NULL:
        raise ValueError(f"no kernels for {level!r}")
    return found


def order(const column[::1] columns, const int64_t[::1] start, Py_ssize_t d):
    """1 if the columns of each row ascend, 0 if some do not, -1 if one is outside 0 to d - 1.

    Also -1 if ``start`` (n + 1,) does not rise from 0 to at most the number of columns given.
    """
    cdef Py_ssize_t n = start.shape[0] - 1, r
    cdef int64_t a, last = 0
    cdef int found = 1
    if n < 0 or start[0] != 0:
        return -1
    with nogil:
        for r in range(n):
            if start[r + 1] < last or start[r + 1] > columns.shape[0]:
                found = -1
                break
            for a in range(last, start[r + 1]):
                if columns[a] < 0 or columns[a] >= d:
                    found = -1
                    break
                if a > last and columns[a] <= columns[a - 1]:
                    found = 0
            if found < 0:
                break
            last = start[r + 1]
    return found


def block_grams(
    const floating[::1] values,
    const column[::1] columns,
    const int64_t[::1] start,
    const double[::1] scale,
    const int64_t[::1] which,
    Py_ssize_t block,
    double[:, :, ::1] out,
    str level,
    int n_threads,
):
    """out[b] (d, d) = Gram matrix of rows b * block to (b + 1) * block, for b in ``which``.

    Row j is first multiplied by scale[j]; an empty ``scale`` multiplies nothing.
    """
    cdef const lev_csr *table = table_of(level)
    cdef Py_ssize_t n = start.shape[0] - 1, d = out.shape[1], count = which.shape[0], t, b, rows
    cdef const double *factors = NULL
    cdef const floating *v = NULL
    cdef const column *c = NULL
    if scale.shape[0]:
        factors = &scale[0]
    if values.shape[0]:
        v = &values[0]
        c = &columns[0]
    for t in prange(
        count, nogil=True, num_threads=n_threads, schedule="dynamic", use_threads_if=n_threads > 1
    ):
        b = which[t]
        rows = min(block, n - b * block)
        if floating is double:
            if column is int32_t:
                table.gram_f64_i32(
                    v, c, &start[b * block], factors + b * block if factors != NULL else NULL,
                    rows, d, &out[b, 0, 0])
            else:
                table.gram_f64_i64(
                    v, c, &start[b * block], factors + b * block if factors != NULL else NULL,
                    rows, d, &out[b, 0, 0])
        else:
            if column is int32_t:
                table.gram_f32_i32(
                    v, c, &start[b * block], factors + b * block if factors != NULL else NULL,
                    rows, d, &out[b, 0, 0])
            else:
                table.gram_f32_i64(
                    v, c, &start[b * block], factors + b * block if factors != NULL else NULL,
                    rows, d, &out[b, 0, 0])


def whitened_row_norms(
    const floating[::1] values,
    const column[::1] columns,
    const int64_t[::1] start,
    const double[:, ::1] W,
    bint triangular,
    Py_ssize_t most,
    double[::1] out,
    str level,
    int n_threads,
):
    """out[j] = ||k_j W||^2 for rows of at most ``most`` numbers; W (d, c), upper triangular or not.

    For rows of more numbers ``out`` stays as it is.
    """
    cdef const lev_csr *table = table_of(level)
    cdef Py_ssize_t n = start.shape[0] - 1, d = W.shape[0], c = W.shape[1], tasks, t, first, rows
    cdef double *packed
    cdef double *scratch
    cdef const floating *v = NULL
    cdef const column *k = NULL
    cdef int failed = 0
    if values.shape[0]:
        v = &values[0]
        k = &columns[0]
    packed = <double *> malloc(table.whitener_size(d, c) * sizeof(double))
    if packed == NULL:
        raise MemoryError("packed whitener")
    table.pack_whitener(&W[0, 0], d, c, triangular, packed)
    tasks = (n + LEV_CSR_ROWS - 1) // LEV_CSR_ROWS
    with nogil, parallel(num_threads=n_threads, use_threads_if=n_threads > 1):
        scratch = <double *> malloc(table.norms_scratch() * sizeof(double))
        for t in prange(tasks, schedule="dynamic"):
            if scratch == NULL:
                failed += 1
                continue
            first = t * LEV_CSR_ROWS
            rows = min(LEV_CSR_ROWS, n - first)
            if floating is double:
                if column is int32_t:
                    table.norms_f64_i32(
                        v, k, &start[first], rows, d, packed, c, triangular, most, &out[first],
                        scratch)
                else:
                    table.norms_f64_i64(
                        v, k, &start[first], rows, d, packed, c, triangular, most, &out[first],
                        scratch)
            else:
                if column is int32_t:
                    table.norms_f32_i32(
                        v, k, &start[first], rows, d, packed, c, triangular, most, &out[first],
                        scratch)
                else:
                    table.norms_f32_i64(
                        v, k, &start[first], rows, d, packed, c, triangular, most, &out[first],
                        scratch)
        free(scratch)
    free(packed)
    if failed:
        raise MemoryError("scratch of whitened_row_norms")
