"""Passes over rows in fixed blocks: Gram matrices, whitened norms, R factors.

Outputs are allocated by the caller and nothing is validated here. Each block
or row is computed by one thread in a fixed order, so no result depends on
``n_threads``. BLAS threads must be limited to one by the caller around
``qr_blocks``.
"""

from cython.parallel cimport parallel, prange
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dtrmm
from scipy.linalg.cython_lapack cimport dgeqrf, dpotrf, dtpqrt

cdef extern from "omp.h" nogil:
    int omp_get_max_threads()

cdef extern from "tiles.h" nogil:
    int LEV_F64, LEV_F32, LEV_F16, LEV_BF16

    ctypedef struct lev_passes:
        void (*gram)(
            const void *, const double *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
            double *, double *) noexcept nogil
        void (*norms)(
            const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, Py_ssize_t,
            int, double *, double *) noexcept nogil
        void (*whitened_gram)(
            const void *, const double *, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *,
            Py_ssize_t, int, double *, double *) noexcept nogil
        void (*column_squares)(
            const void *, const double *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
            double *, double *) noexcept nogil
        void (*row_squares)(
            const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *,
            double *) noexcept nogil

    ctypedef struct lev_tiles:
        const char *name
        Py_ssize_t (*gram_scratch)(Py_ssize_t) noexcept nogil
        Py_ssize_t (*whitener_size)(Py_ssize_t, Py_ssize_t) noexcept nogil
        Py_ssize_t (*norms_scratch)(Py_ssize_t) noexcept nogil
        Py_ssize_t (*whitened_gram_scratch)(Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*pack_whitener)(const double *, Py_ssize_t, Py_ssize_t, int, double *) noexcept nogil
        const lev_passes *passes

    const lev_tiles *lev_tiles_select(const char *)
    double *lev_alloc(Py_ssize_t)
    void lev_free(double *)

cdef const lev_tiles *tiles = lev_tiles_select(NULL)

# Storage types by the characters of NumPy's; no rows are integers, so that uint16 can stand for
# the bits of bfloat16, which NumPy has not.
_STORED = {"d": LEV_F64, "f": LEV_F32, "e": LEV_F16, "H": LEV_BF16}


def select_tiles(str name):
    """Use the named instruction set ("" = the best); False when it cannot run here."""
    global tiles
    cdef bytes key = name.encode()
    cdef const lev_tiles *found = lev_tiles_select(key)
    if found == NULL:
        return False
    tiles = found
    return True


def tiles_name():
    """Name of the instruction set in use."""
    return (<bytes> tiles.name).decode()


def max_threads():
    """The OpenMP limit, as OMP_NUM_THREADS and threadpoolctl set it."""
    return omp_get_max_threads()


def block_grams(
    K,
    const double[::1] scale,
    Py_ssize_t block,
    double[:, :, ::1] out,
    int n_threads,
):
    """out[b] (d, d) = Gram matrix of rows b * block to (b + 1) * block of K (n, d).

    Row j is first multiplied by scale[j]; an empty ``scale`` multiplies nothing.
    """
    cdef Py_ssize_t n = K.shape[0], d = K.shape[1], count = out.shape[0], b, rows
    cdef const lev_tiles *table = tiles
    cdef const unsigned char[:, ::1] stored = K.view("u1")
    cdef const lev_passes *passes = &tiles.passes[<int> _STORED[K.dtype.char]]
    cdef const double *factors = NULL
    cdef double *scratch
    cdef int failed = 0
    if scale.shape[0]:
        factors = &scale[0]
    with nogil, parallel(num_threads=n_threads):
        scratch = lev_alloc(table.gram_scratch(d))
        for b in prange(count, schedule="dynamic"):
            if scratch == NULL:
                failed += 1
                continue
            rows = min(block, n - b * block)
            passes.gram(
                &stored[b * block, 0], factors + b * block if factors != NULL else NULL,
                rows, d, d, &out[b, 0, 0], scratch)
        lev_free(scratch)
    if failed:
        raise MemoryError("scratch of block_grams")


def whitened_row_norms(
    K,
    const double[:, ::1] W,
    bint triangular,
    double[::1] out,
    int n_threads,
):
    """out[j] = ||k_j W||^2 for the rows of K (n, d) and W (d, c), upper triangular or not."""
    cdef Py_ssize_t n = K.shape[0], d = K.shape[1], c = W.shape[1]
    cdef Py_ssize_t rows_per_task = 1536, tasks, t, first, rows
    cdef const lev_tiles *table = tiles
    cdef const unsigned char[:, ::1] stored = K.view("u1")
    cdef const lev_passes *passes = &tiles.passes[<int> _STORED[K.dtype.char]]
    cdef double *packed
    cdef double *scratch
    cdef int failed = 0
    packed = lev_alloc(table.whitener_size(d, c))
    if packed == NULL:
        raise MemoryError("packed whitener")
    table.pack_whitener(&W[0, 0], d, c, triangular, packed)
    tasks = (n + rows_per_task - 1) // rows_per_task
    with nogil, parallel(num_threads=n_threads):
        scratch = lev_alloc(table.norms_scratch(d))
        for t in prange(tasks, schedule="dynamic"):
            if scratch == NULL:
                failed += 1
                continue
            first = t * rows_per_task
            rows = min(rows_per_task, n - first)
            passes.norms(
                &stored[first, 0], rows, d, d, packed, c, triangular, &out[first], scratch)
        lev_free(scratch)
    lev_free(packed)
    if failed:
        raise MemoryError("scratch of whitened_row_norms")


def column_squares(
    K,
    const double[::1] scale,
    Py_ssize_t block,
    double[:, ::1] out,
    int n_threads,
):
    """out[b] (d,) = the diagonal of the Gram matrix of block b, as block_grams has it."""
    cdef Py_ssize_t n = K.shape[0], d = K.shape[1], count = out.shape[0], b
    cdef const lev_tiles *table = tiles
    cdef const unsigned char[:, ::1] stored = K.view("u1")
    cdef const lev_passes *passes = &tiles.passes[<int> _STORED[K.dtype.char]]
    cdef const double *factors = NULL
    cdef double *scratch
    cdef int failed = 0
    if scale.shape[0]:
        factors = &scale[0]
    with nogil, parallel(num_threads=n_threads):
        scratch = lev_alloc(table.gram_scratch(d))
        for b in prange(count, schedule="dynamic"):
            if scratch == NULL:
                failed += 1
                continue
            passes.column_squares(
                &stored[b * block, 0], factors + b * block if factors != NULL else NULL,
                min(block, n - b * block), d, d, &out[b, 0], scratch)
        lev_free(scratch)
    if failed:
        raise MemoryError("scratch of column_squares")


def add_row_squares(K, const double[::1] weight, double[::1] out, int n_threads):
    """out[j] += sum_i (weight[i] k_ji)^2 for the rows of K (n, d)."""
    cdef Py_ssize_t n = K.shape[0], d = K.shape[1], rows_per_task = 1536, t
    cdef const unsigned char[:, ::1] stored = K.view("u1")
    cdef const lev_passes *passes = &tiles.passes[<int> _STORED[K.dtype.char]]
    for t in prange((n + rows_per_task - 1) // rows_per_task, nogil=True, num_threads=n_threads):
        passes.row_squares(
            &stored[t * rows_per_task, 0], min(rows_per_task, n - t * rows_per_task), d, d,
            &weight[0], &out[t * rows_per_task])


def whitened_block_grams(
    K,
    const double[::1] scale,
    const double[:, ::1] W,
    bint triangular,
    Py_ssize_t block,
    double[:, :, ::1] out,
    int n_threads,
):
    """out[b] (c, c) = Gram matrix of k_j W for rows b * block to (b + 1) * block of K (n, d).

    Row j is also multiplied by scale[j]; an empty ``scale`` multiplies nothing.
    """
    cdef Py_ssize_t n = K.shape[0], d = K.shape[1], c = W.shape[1], count = out.shape[0], b, rows
    cdef const lev_tiles *table = tiles
    cdef const unsigned char[:, ::1] stored = K.view("u1")
    cdef const lev_passes *passes = &tiles.passes[<int> _STORED[K.dtype.char]]
    cdef const double *factors = NULL
    cdef double *packed
    cdef double *scratch
    cdef int failed = 0
    if scale.shape[0]:
        factors = &scale[0]
    packed = lev_alloc(table.whitener_size(d, c))
    if packed == NULL:
        raise MemoryError("packed whitener")
    table.pack_whitener(&W[0, 0], d, c, triangular, packed)
    with nogil, parallel(num_threads=n_threads):
        scratch = lev_alloc(table.whitened_gram_scratch(d, c))
        for b in prange(count, schedule="dynamic"):
            if scratch == NULL:
                failed += 1
                continue
            rows = min(block, n - b * block)
            passes.whitened_gram(
                &stored[b * block, 0], factors + b * block if factors != NULL else NULL,
                rows, d, d, packed, c, triangular, &out[b, 0, 0], scratch)
        lev_free(scratch)
    lev_free(packed)
    if failed:
        raise MemoryError("scratch of whitened_block_grams")


cdef int qr_one(const double *K, Py_ssize_t rows, Py_ssize_t d, double *R) noexcept nogil:
    """R (d, d), diagonal >= 0, from Householder QR of K (rows, d); 0 when it went well."""
    cdef int m = <int> rows, n = <int> d, lwork = -1, info = 0
    cdef Py_ssize_t i, j, r, rank = min(rows, d)
    cdef double query = 0.0, sign
    dgeqrf(&m, &n, NULL, &m, NULL, &query, &lwork, &info)
    lwork = <int> query
    cdef double *A = lev_alloc(rows * d + d + lwork)
    if A == NULL:
        return -1
    for r in range(rows):
        for j in range(d):
            A[j * rows + r] = K[r * d + j]
    dgeqrf(&m, &n, A, &m, A + rows * d, A + rows * d + d, &lwork, &info)
    memset(R, 0, d * d * sizeof(double))
    for i in range(rank):
        sign = -1.0 if A[i * rows + i] < 0.0 else 1.0
        for j in range(i, d):
            R[i * d + j] = sign * A[j * rows + i]
    lev_free(A)
    return info


def qr_blocks(const double[:, ::1] K, Py_ssize_t block, double[:, :, ::1] out, int n_threads):
    """out[b] (d, d) = R factor of rows b * block to (b + 1) * block of K (n, d)."""
    cdef Py_ssize_t n = K.shape[0], d = K.shape[1], count = out.shape[0], b
    cdef int failed = 0
    for b in prange(count, nogil=True, num_threads=n_threads, schedule="dynamic"):
        if qr_one(&K[b * block, 0], min(block, n - b * block), d, &out[b, 0, 0]) != 0:
            failed += 1
    if failed:
        raise MemoryError("work space of qr_blocks")


cdef int qr_pair(const double *R, Py_ssize_t d, double *out) noexcept nogil:
    """out (d, d), diagonal >= 0, from QR of two upper triangles R (2 d, d); 0 when it went well."""
    cdef int n = <int> d, nb = min(<int> 16, <int> d), info = 0
    cdef Py_ssize_t i, j
    cdef double sign
    cdef double *A = lev_alloc(2 * d * d + 2 * nb * d)
    if A == NULL:
        return -1
    for i in range(d):
        for j in range(d):
            A[j * d + i] = R[i * d + j]
            A[d * d + j * d + i] = R[d * d + i * d + j]
    dtpqrt(&n, &n, &n, &nb, A, &n, A + d * d, &n, A + 2 * d * d, &nb, A + 2 * d * d + nb * d, &info)
    for i in range(d):
        sign = -1.0 if A[i * d + i] < 0.0 else 1.0
        for j in range(d):
            out[i * d + j] = sign * A[j * d + i] if j >= i else 0.0
    lev_free(A)
    return info


def qr_pairs(const double[:, :, ::1] R, double[:, :, ::1] out, int n_threads):
    """out[b] (d, d) = R factor of the upper triangles R[2 b] on R[2 b + 1], each (d, d)."""
    cdef Py_ssize_t d = R.shape[1], count = out.shape[0], b
    cdef int failed = 0
    for b in prange(count, nogil=True, num_threads=n_threads, schedule="dynamic"):
        if qr_pair(&R[2 * b, 0, 0], d, &out[b, 0, 0]) != 0:
            failed += 1
    if failed:
        raise MemoryError("work space of qr_pairs")


cdef bint root_times(const double *H, const double *R, Py_ssize_t d, double *out) noexcept nogil:
    """out (d, d) = C R with C the Cholesky factor of H; False if there is none."""
    cdef int n = <int> d, info = 0
    cdef double one = 1.0
    cdef Py_ssize_t i, j
    # LAPACK reads rows as columns: its lower triangle is our upper one, and C R is R^T C^T
    memcpy(out, H, d * d * sizeof(double))
    dpotrf("L", &n, out, &n, &info)
    for i in range(d):
        for j in range(i):
            out[i * d + j] = 0.0
    if info == 0:
        dtrmm("L", "L", "N", "N", &n, &n, &one, <double *> R, &n, out, &n)
    return info == 0


def roots_times(
    const double[:, :, ::1] H,
    const double[:, ::1] R,
    double[:, :, ::1] out,
    unsigned char[::1] found,
    int n_threads,
):
    """out[b] (d, d) = C R, with H[b] = C^T C and both upper triangular; found[b] = 0 if no C."""
    cdef Py_ssize_t d = R.shape[0], count = out.shape[0], b
    for b in prange(count, nogil=True, num_threads=n_threads, schedule="dynamic"):
        found[b] = root_times(&H[b, 0, 0], &R[0, 0], d, &out[b, 0, 0])
