"""Time leverage_scores against what people use, in one run, as ratios.

    python benchmarks/leverage_table.py --threads 1 2

Peers: ``scipy.linalg.qr`` (Q from the economic factorisation), and the best that
a NumPy user would write: the Gram matrix in row blocks (NumPy uses syrk there), its
inverse's Cholesky factor, and row norms of a blocked product. The floor is the larger
of 2 n d^2 flops (n d^2 for half of the Gram matrix, as multiply and add, and n d^2 for
a triangular product) at the dgemm rate measured here, and two reads of K at the
bandwidth measured here. All methods take turns; medians are reported. levsketch
computes in float64 whatever the keys are. For float32 keys NumPy is timed twice: in
float64, block by block (the same accuracy), and in float32 (half the work, and no
correct digit of a score from condition number 1e4 on).
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_info, threadpool_limits

import levsketch as lv


def numpy_blocked(K, dtype=None, block=4096):
    """Return leverage scores by blocked Gram matrix, inverse factor and row norms."""
    d, dtype = K.shape[1], dtype or K.dtype
    G = np.zeros((d, d), dtype)
    for i in range(0, len(K), block):
        B = K[i : i + block].astype(dtype, copy=False)
        G += B.T @ B
    W = scipy.linalg.solve_triangular(np.linalg.cholesky(G), np.eye(d, dtype=dtype), lower=True).T
    out = np.empty(len(K), dtype)
    for i in range(0, len(K), block):
        Z = K[i : i + block].astype(dtype, copy=False) @ W
        np.einsum("ij,ij->i", Z, Z, out=out[i : i + block])
    return out


def scipy_qr(K):
    """Return leverage scores from an economic QR of all rows."""
    Q = scipy.linalg.qr(K, mode="economic", check_finite=False)[0]
    return np.einsum("ij,ij->i", Q, Q)


def timed(function, *args):
    time.sleep(0.1)  # let the threads of the peer before stop spinning
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def gemm_rate(dtype=np.float64, size=2048):
    """Return flops per second of a square product, best of five."""
    A = np.ones((size, size), dtype)
    return 2 * size**3 / min(timed(np.matmul, A, A) for _ in range(5))


def read_rate(bytes_=2 << 30):
    """Return bytes per second of reading memory (a sum of float64 in cache-sized pieces)."""
    x = np.ones(bytes_ // 8)
    pieces = np.array_split(x, 512)

    def read():
        for piece in pieces:
            piece.max()

    return bytes_ / min(timed(read) for _ in range(3))


def pair_ratio(ours, theirs):
    """Return the median of the ratios of runs that took turns."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def measure(n, d, dtype, threads, repeats, with_qr):
    K = np.random.default_rng(0).standard_normal((n, d)).astype(dtype)
    with threadpool_limits(threads):
        flops, bytes_ = gemm_rate(), read_rate() * threads
        floor = max(2 * n * d * d / flops, 2 * K.nbytes / bytes_)
        ours, wide, narrow, qr = [], [], [], []
        lv.leverage_scores(K)
        numpy_blocked(K)
        for _ in range(repeats):
            ours.append(timed(lv.leverage_scores, K))
            wide.append(timed(numpy_blocked, K, np.float64))
            if dtype == np.float32:
                narrow.append(timed(numpy_blocked, K))
        if with_qr:
            qr = [timed(scipy_qr, K) for _ in range(3)]
        error = (
            np.abs(lv.leverage_scores(K) / scipy_qr(K.astype(float)) - 1).max() if with_qr else 0
        )
    t = statistics.median(ours)
    over_wide = f"{pair_ratio(ours, wide):.2f}"
    over_narrow = f"{pair_ratio(ours, narrow):.2f}" if narrow else ""
    over_qr = f"{t / statistics.median(qr):8.4f}" if qr else " " * 8
    print(
        f"{f'({n}, {d})':>15} {np.dtype(dtype).name:>8} {threads:>7} {t:>8.4f} {floor:>8.4f} "
        f"{t / floor:>7.2f} {over_wide:>11} {over_narrow:>11} {over_qr} {error:>10.1e}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--no-qr", action="store_true", help="leave out the slow peer")
    args = parser.parse_args()
    lv.show_versions()
    print({(i["internal_api"], i.get("architecture")) for i in threadpool_info()})
    print(
        f"{'shape':>15} {'dtype':>8} {'threads':>7} {'seconds':>8} {'floor':>8} {'x floor':>7} "
        f"{'x numpy f64':>11} {'x numpy f32':>11} {'x qr':>8} {'max error':>10}"
    )
    for threads in args.threads:
        for n, d in ((1_000_000, 64), (262_144, 128)):
            for dtype in (np.float64, np.float32):
                measure(n, d, dtype, threads, args.repeats, not args.no_qr)


if __name__ == "__main__":
    main()
