"""Exponentials of matrices in place, and passes of kernels that are made of exponentials.

Outputs are allocated by the caller and nothing is validated here. ``level`` is the name of an
instruction set that ``blocks.select_tiles`` found to run here. Each row, or chunk of columns, is
computed by one thread in a fixed order, so no result depends on ``n_threads``.
"""

from cython.parallel cimport prange
from libc.math cimport sqrt

cdef extern from "exps.h" nogil:
    enum:
        LEV_PURSUE_COLUMNS
    ctypedef struct lev_exps:
        void (*exp)(double *, Py_ssize_t) noexcept nogil
        void (*softmax)(
            double *, Py_ssize_t, Py_ssize_t, Py_ssize_t, double, double *) noexcept nogil
        void (*remainder)(
            double *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, const double *,
            const double *) noexcept nogil
        void (*pursue)(
            double *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *,
            const double *, const double *, Py_ssize_t, double *, Py_ssize_t, double *, double,
            double *) noexcept nogil

    const lev_exps *lev_exps_named(const char *)


cdef const lev_exps *table_of(str level) except NULL:
    cdef bytes key = level.encode()
    cdef const lev_exps *found = lev_exps_named(key)
    if found == NULL:
        raise ValueError(f"no kernels for {level!r}")
    return found


def exp(double[::1] A, str level, int n_threads):
    """A = exp(A)."""
    cdef const lev_exps *table = table_of(level)
    cdef Py_ssize_t n = A.shape[0], step = 8192, t
    for t in prange(
        (n + step - 1) // step, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1
    ):
        table.exp(&A[t * step], min(step, n - t * step))


def softmax(double[:, ::1] A, double scale, double[::1] top, str level, int n_threads):
    """top[i] = max_j scale a_ij, and A (m, n) becomes exp(scale a_ij - top[i]); m, n > 0."""
    cdef const lev_exps *table = table_of(level)
    cdef Py_ssize_t m = A.shape[0], n = A.shape[1], i
    for i in prange(m, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
        table.softmax(&A[i, 0], 1, n, n, scale, &top[i])


def remainder(
    double[:, ::1] A,
    int order,
    const double[::1] rows,
    const double[::1] columns,
    str level,
    int n_threads,
):
    """A (m, n) becomes rows[i] columns[j] (exp(a_ij) - 1 - order a_ij); m, n > 0, order 0 or 1."""
    cdef const lev_exps *table = table_of(level)
    cdef Py_ssize_t m = A.shape[0], n = A.shape[1], i
    for i in prange(m, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
        table.remainder(&A[i, 0], 1, n, n, order, &rows[i], &columns[0])


def pursue(
    double[:, ::1] root,
    const double[:, ::1] seen,
    const double[:, ::1] L,
    const double[:, ::1] known,
    double[:, ::1] rest,
    double[::1] left,
    double floor,
    double[::1] gain,
    str level,
    int n_threads,
):
    """One step of a block Cholesky factorisation with right-hand sides: see exps.h.

    root (k + b, n) and rest (c, n) are changed, left and gain (n,) are of columns; ``seen`` is
    (k, b), ``L`` (b, b) has its diagonal inverted, ``known`` is (b, c). With b = 0 only the gain
    is found.
    """
    cdef const lev_exps *table = table_of(level)
    cdef Py_ssize_t k = seen.shape[0], b = L.shape[0], n = left.shape[0], c = rest.shape[0]
    cdef Py_ssize_t t, j, width
    cdef double *first = &root[0, 0] if b else NULL
    cdef const double *before = &seen[0, 0] if b and k else NULL
    cdef const double *lower = &L[0, 0] if b else NULL
    cdef const double *values = &known[0, 0] if b else NULL
    if b == 0:
        k = 0
    for t in prange(
        (n + LEV_PURSUE_COLUMNS - 1) // LEV_PURSUE_COLUMNS,
        nogil=True,
        num_threads=n_threads,
        use_threads_if=n_threads > 1,
    ):
        j = t * LEV_PURSUE_COLUMNS
        width = min(LEV_PURSUE_COLUMNS, n - j)
        table.pursue(
            first + j if b else NULL, k, b, width, n, before, lower, values, c, &rest[0, j], n,
            &left[j], floor, &gain[j])


def take(
    double[:, ::1] inner,
    double[:, ::1] rest,
    double floor,
    double[::1] work,
    Py_ssize_t[::1] taken,
    double[:, ::1] L,
    double[:, ::1] known,
    str level,
):
    """Return how many of n candidates were taken, one by one, as many as ``taken`` has room for.

    ``inner`` (n, n) are the inner products of the candidates, ``rest`` (c, n) those with what is
    to be explained; both are changed, and ``work`` (n (2 + b),) too. Each time the candidate with
    the largest squares of rest over its own is taken, as long as its own are above ``floor``.
    ``L`` (b, b) becomes their Cholesky factor, its diagonal inverted, and ``known`` (b, c) what
    `pursue` asks for.
    """
    cdef const lev_exps *table = table_of(level)
    cdef Py_ssize_t n = inner.shape[0], c = rest.shape[0], b = taken.shape[0]
    cdef Py_ssize_t k, i, j, best
    cdef double *left = &work[0]
    cdef double *gain = &work[n]
    cdef double *factors = &work[2 * n]
    cdef double *row
    cdef double inverse
    for j in range(n):
        left[j] = inner[j, j]
    with nogil:
        table.pursue(
            NULL, 0, 0, n, n, NULL, NULL, NULL, c, &rest[0, 0], n, left, floor, gain)
        for k in range(b):
            best = 0
            for j in range(1, n):
                if gain[j] > gain[best]:
                    best = j
            if not gain[best] > 0.0:
                b = k
                break
            inverse = 1.0 / sqrt(left[best])
            row = factors + k * n
            taken[k] = best
            L[k, k] = inverse
            for j in range(c):
                known[k, j] = rest[j, best] * inverse
            for j in range(n):
                row[j] = inner[best, j]
            table.pursue(
                row, 0, 1, n, n, NULL, &inverse, &known[k, 0], c, &rest[0, 0], n, left, floor,
                gain)
            left[best] = 0.0
            gain[best] = 0.0
            for i in range(n):
                for j in range(n):
                    inner[i, j] -= row[i] * row[j]
        for k in range(b):
            for j in range(k):
                L[k, j] = factors[j * n + taken[k]]
    return b
