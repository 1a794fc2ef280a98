"""Time leverage_scores of sparse keys against the same keys as an array, and against SciPy.

    python benchmarks/csr_table.py --threads 1 2

Keys are random CSR (n, d) in float64, a share ``density`` of their entries normal numbers. Ratios
are medians over pairs of runs that took turns, below 1 where sparse keys of levsketch are faster:
"x dense" over levsketch with the array, "x scipy" over ``A.T @ A`` of SciPy, its Cholesky factor
and products of blocks with the inverse. "error" is the largest relative difference of scores from
those of the array, "dense MB" what the array takes. "gram" and "norms" tell from which density on
the kernels of sparse rows take longer than widening a block and the dense kernels: where
`levsketch.backends.csr_passes` draws its lines.
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import numpy as np
import scipy.linalg
import scipy.sparse
from measuring import Report, limited, pair_ratio, pairs

import levsketch as lv
from levsketch.backends import CpuBackend, csr_passes
from levsketch.backends.csr import CsrRows
from levsketch.streaming.factor import block_size

CASES = (
    (1_000_000, 512, (0.002, 0.01)),
    (131_072, 512, (0.05, 0.1, 0.2, 0.3, 0.5)),
    (1_000_000, 64, (0.02, 0.1, 0.3)),
)
DENSITIES = (0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)


def make_csr(n, d, density, seed=0):
    """Return random sparse keys."""
    rng = np.random.default_rng(seed)
    made = scipy.sparse.random_array((n, d), density=density, format="csr", rng=rng)
    made.data = rng.standard_normal(made.nnz)
    return made


def scipy_blocked(A, block=8192):
    """What one would write by hand: a sparse Gram matrix, its Cholesky factor, blocks of A W."""
    G = (A.T @ A).toarray()
    d = len(G)
    W = scipy.linalg.solve_triangular(np.linalg.cholesky(G), np.eye(d), lower=True).T
    W = np.ascontiguousarray(W)
    out = np.empty(A.shape[0])
    for i in range(0, A.shape[0], block):
        Z = A[i : i + block] @ W
        np.einsum("ij,ij->i", Z, Z, out=out[i : i + block])
    return out


def scores_table(report, args):
    report.table(
        "scores",
        "leverage_scores of sparse keys",
        keys="16",
        density="8.3f",
        threads="7",
        seconds="8.3f",
        x_dense="8.3f",
        x_scipy="8.3f",
        dense_mb="8.0f",
        error="8.1e",
    )
    for n, d, densities in CASES:
        n //= args.divide
        for density in densities:
            A = make_csr(n, d, density)
            K = A.toarray()
            truth = lv.leverage_scores(K)
            seen = truth > 0
            error = np.abs(lv.leverage_scores(A)[seen] / truth[seen] - 1).max()
            for threads in args.threads:
                with limited(threads):
                    row = scores_row(A, K, args)
                row |= {"keys": f"({n}, {d})", "density": density, "threads": threads}
                report.row(**row, dense_mb=K.nbytes / 1e6, error=error)


def scores_row(A, K, args):
    def ours():
        return lv.leverage_scores(A)

    mine, dense = pairs(ours, lambda: lv.leverage_scores(K), args.repeats)
    again, scipys = pairs(ours, lambda: scipy_blocked(A), args.repeats)
    return {
        "seconds": statistics.median(mine + again),
        "x_dense": pair_ratio(mine, dense),
        "x_scipy": pair_ratio(again, scipys),
    }


def kernels_table(report, args):
    report.table(
        "kernels",
        "Time of the kernels of sparse rows over that of widening and the dense ones, one thread",
        d="4",
        density="8.3f",
        gram="8.2f",
        norms="8.2f",
    )
    backend = CpuBackend()
    for d in (64, 512):
        block = block_size(d)
        W = np.triu(np.random.default_rng(1).standard_normal((d, d)))
        for density in DENSITIES:
            rows = CsrRows.of("A", make_csr(4 * block, d, density))

            def turns(operation):
                return pair_ratio(
                    *pairs(
                        lambda: shared(2.0, operation),
                        lambda: shared(0.0, operation),
                        args.repeats,
                    )
                )

            with limited(1):
                gram = turns(lambda rows=rows, block=block: backend.block_grams(rows, block))
                norms = turns(
                    lambda rows=rows, W=W: backend.whitened_row_norms(rows, W, triangular=True)
                )
            report.row(d=d, density=density, gram=gram, norms=norms)


def shared(share, operation):
    """Run an operation with both lines between sparse and dense drawn at ``share``."""
    before = csr_passes._GRAM_SHARE, csr_passes._NORM_SHARE
    csr_passes._GRAM_SHARE = csr_passes._NORM_SHARE = share
    try:
        operation()
    finally:
        csr_passes._GRAM_SHARE, csr_passes._NORM_SHARE = before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--quick", action="store_true", help="a 64th of the rows: does it run?")
    args = parser.parse_args()
    args.divide = 64 if args.quick else 1
    warnings.simplefilter("ignore")
    lv.show_versions()
    report = Report()
    scores_table(report, args)
    kernels_table(report, args)
    if args.json:
        report.save(args.json)


if __name__ == "__main__":
    main()
