"""Calibrate the guard: how far computed leverage scores are from the truth, over what is claimed.

For every matrix of a family the scores are computed by the library and, as the
reference, by an 80-bit Householder QR. Reported, for each range of condition
numbers: the largest ratio of the actual relative error to the claimed bound
``Whitening.error`` (below 1 the guard holds; its reciprocal is the margin), and,
with eps placed exactly on a true score, how often a key would be missed with and
without the guard, and how much the guard inflates the set.

    python benchmarks/quality/guard_calibration.py --trials 2000 --json calibration.json
    python benchmarks/quality/guard_calibration.py --trials 2000 --levels
    python benchmarks/quality/guard_calibration.py --large --levels

``--levels`` scores every matrix on each instruction set of this processor, against one
reference. ``--large`` takes fixed matrices of up to 100,000 rows and 256 columns, where
the QR in long doubles would take hours; ``scores_whitened`` is the reference there, and
is held against that QR first, at a size where both are possible.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.linalg import lapack

from levsketch._kernels import blocks
from levsketch.algorithms.leverage import score_rows, whitening_of
from levsketch.backends import backend_for
from levsketch.backends.cpu import use_instruction_set
from levsketch.linalg import qr_roundoff

LONG = np.longdouble
MAX_REFERENCE_CONDITION = 1e13  # beyond, the 80-bit reference has too few digits
LEVELS = ["baseline", "avx2", "avx512"]
_CHUNK = 8192  # rows that are long doubles at a time
_PANEL = 32  # columns of a triangular product at a time


def qr_long(K):
    """Return R (d, d) of K (n, d), n >= d, by Householder reflections in 80-bit arithmetic."""
    A = np.array(K, dtype=LONG)
    A *= 1 / np.where((top := np.abs(A).max(axis=0)) > 0, top, 1)
    d = A.shape[1]
    for c in range(d):
        v = A[c:, c].copy()
        norm = np.sqrt(np.sum(v * v))
        if norm == 0:
            continue
        v[0] += norm if v[0] >= 0 else -norm
        A[c:, c:] -= np.outer(v, (2 / np.sum(v * v)) * (v @ A[c:, c:]))
    return np.triu(A[:d]), top


def scores_long(K):
    """Return the leverage scores of K (n, d), full rank, in 80-bit arithmetic."""
    R, top = qr_long(K)
    X = np.array(K, dtype=LONG) / top
    Z = np.zeros_like(X)
    for c in range(K.shape[1]):
        Z[:, c] = (X[:, c] - Z[:, :c] @ R[:c, c]) / R[c, c]
    return np.sum(Z * Z, axis=1)


def product_long(K, W):
    """Return K W (n, d), multiplied and added in 80 bits, rounded once to float64."""
    n, d = K.shape
    triangular = not np.tril(W, -1).any()
    W = np.asfortranarray(W, dtype=LONG)
    Z = np.empty((n, d))
    for start in range(0, n, _CHUNK):
        rows = K[start : start + _CHUNK].astype(LONG)
        for c in range(0, d, _PANEL):
            used = min(c + _PANEL, d) if triangular else d
            Z[start : start + _CHUNK, c : c + _PANEL] = rows[:, :used] @ W[:used, c : c + _PANEL]
    return Z


def scores_whitened(K):
    """Return the leverage scores of K (n, d), full rank, from well-conditioned rows ``K W``.

    Scores do not change if the rows are multiplied by any invertible matrix. W is the
    inverse of R of a float64 QR: no digit of it needs to be right, since it is taken as
    it is, as long as Z = K W comes out with a condition number below 2 (else W is
    improved by R of Z). The QR of Z in float64 then has an error of a few units of roundoff
    u, n / 8 at the worst (rows that repeat), without the condition number: choose that
    large where n is large. Z itself is multiplied out in 80 bits; its
    rows are off by at most d 2^-64 |k| |W|, that is 2^-11 of what float64 would do, so by
    less than a hundredth of the bound e = (16 + terms / 4) u sqrt(d) ||W||_F under test.
    """
    with np.errstate(under="ignore"):
        K = np.ldexp(K, -np.frexp(np.abs(K).max(axis=0))[1])
    W = np.eye(K.shape[1])
    Z = K
    for _ in range(5):
        R = np.linalg.qr(Z, mode="r")
        # by column, so that R W is the identity up to u |R| |W|
        W = W @ lapack.dtrtrs(R, np.eye(len(R)))[0]
        Z = product_long(K, W)
        R = np.linalg.qr(Z, mode="r")
        if np.linalg.cond(R) < 2:
            return np.sum((Z @ np.linalg.inv(R)) ** 2, axis=1)
    raise ArithmeticError("no whitening found: the rows are too near to a hyperplane")


def rotation(rng, d):
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def geometric(rng, n, d, k):
    U = np.linalg.qr(rng.standard_normal((n, d)))[0]
    return (U * np.geomspace(1, 10.0**-k, d)) @ rotation(rng, d)


def one_small(rng, n, d, k):
    U = np.linalg.qr(rng.standard_normal((n, d)))[0]
    s = np.ones(d)
    s[-1] = 10.0**-k
    return (U * s) @ rotation(rng, d)


def graded_rows(rng, n, d, k):
    return rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-k, 0, (n, 1))


def falling_rows(rng, n, d, k):
    return rng.standard_normal((n, d)) * np.geomspace(1, 10.0**-k, n)[:, None]


def rising_rows(rng, n, d, k):
    return falling_rows(rng, n, d, k)[::-1].copy()


def lone_key(rng, n, d, k):
    K = rng.standard_normal((n, d))
    K[:, -1] = 0
    row = rng.integers(n)
    K[row] = 0
    K[row, -1] = 10.0**-k
    return K @ rotation(rng, d)


def near_hyperplane(rng, n, d, k):
    K = rng.standard_normal((n, d))
    K[:, -1] = K[:, :-1].sum(axis=1) + 10.0**-k * rng.standard_normal(n)
    return K


def shifted(rng, n, d, k):
    return rng.standard_normal((n, d)) + 10.0**k * rng.standard_normal(d)


def heavy_tails(rng, n, d, k):
    return rng.standard_t(1.2, (n, d)) @ (rotation(rng, d) * np.geomspace(1, 10.0**-k, d))


def vandermonde(rng, n, d, k):
    return np.vander(rng.uniform(0, 1, n), max(2, min(d, 2 + int(k))), increasing=True)


def gaussian_kernel(rng, n, d, k):
    # smooth rows are where the inverse factor is hardest: |k| |W| is far above |k W|
    centres = np.linspace(0, 1, d)
    return np.exp(-(((rng.uniform(0, 1, (n, 1)) - centres) * 10.0 ** rng.uniform(-1, 2)) ** 2))


def chebyshev(rng, n, d, k):
    points = rng.uniform(rng.uniform(-1, 0.9), 1, n)
    return np.polynomial.chebyshev.chebvander(points, min(d, 24) - 1)


def cauchy(rng, n, d, k):
    return 1 / (rng.uniform(0, 10.0 ** rng.uniform(-1, 1.5), (n, 1)) + np.arange(1, d + 1))


def repeated(rng, n, d, k):
    # equal rows round all one way: the error of a plain QR of them grows with n
    rows = rng.choice([0.1, 1 / 3, 0.7, 3.0]) * np.ones((1, d))
    if rng.random() < 0.5:
        rows = rng.uniform(0.5, 2, (int(rng.integers(1, 4)), d))
    K = rows[np.sort(rng.integers(len(rows), size=n))]
    K[:d] = 10.0**-k * rng.standard_normal((d, d))
    return K


FAMILIES = [
    geometric, one_small, graded_rows, falling_rows, rising_rows,
    lone_key, near_hyperplane, shifted, heavy_tails, vandermonde,
    repeated,
    gaussian_kernel, chebyshev, cauchy,
]  # fmt: skip


# Of several kinds and condition numbers from 1e2 to 1e12 (after column scaling).
LARGE = [
    (geometric, 2), (geometric, 6), (geometric, 11), (one_small, 9), (graded_rows, 8),
    (rising_rows, 6), (lone_key, 10), (near_hyperplane, 4), (near_hyperplane, 10),
    (shifted, 8), (heavy_tails, 10), (repeated, 6),
]  # fmt: skip
LARGE_SIZES = [(100_000, 64), (20_000, 256)]
LARGEST = [(geometric, 3), (near_hyperplane, 6), (rising_rows, 6), (heavy_tails, 11)]
LARGEST_SIZE = (100_000, 256)


def levels_here():
    """Return the instruction sets that this processor has."""
    return [name for name in LEVELS if blocks.select_tiles(name)]


def measure(rng, family, K, reference, levels):
    """Return a row of measurements for each level, none where the reference would not be one."""
    found = []
    for level in levels:
        use_instruction_set(level)
        whitening = whitening_of(backend_for(K), K, 0.0, False)
        if not whitening.certified or whitening.condition > MAX_REFERENCE_CONDITION:
            continue
        scores = np.empty(len(K))
        score_rows(backend_for(K), whitening, K, False, scores)
        found.append((level, whitening, scores))
    if not found:
        return []
    truth = np.minimum(reference(K), 1)
    eps = truth[rng.choice(np.argsort(truth)[-max(1, len(K) // 10) :])]
    size = {"family": family.__name__, "n": len(K), "d": K.shape[1]}
    return [{**size, "level": name, **compare(w, tau, truth, eps)} for name, w, tau in found]


def compare(whitening, scores, truth, eps):
    """Return how scores stand to the truth, and the sets to that of threshold ``eps``."""
    seen = truth > 1e-290
    # error of the norm, as the bound is stated: tau_hat = tau (1 + e)^2
    actual = np.abs(np.sqrt(scores[seen] / truth[seen].astype(float)) - 1).max()
    should = truth >= eps
    plain = scores >= float(eps)
    guarded = whitening.upper_bounds(scores) >= float(eps)
    return {
        "condition": whitening.condition,
        "ratio": float(actual / whitening.error),
        "missed_plain": bool((should & ~plain).any()),
        "missed_guarded": bool((should & ~guarded).any()),
        "inflation": float(guarded.sum() / should.sum()),
    }


def trial(rng, sizes, dims, levels):
    """Return the measurements of one matrix drawn at random."""
    d = int(rng.choice(dims))
    n = max(d + 1, int(rng.choice(sizes)))
    family = FAMILIES[rng.integers(len(FAMILIES))]
    K = family(rng, n, d, rng.uniform(0, 13))
    return measure(rng, family, K, scores_long, levels)


def large_rows(rng, levels):
    """Return the measurements of the fixed large matrices, printed as they come."""
    cases = [(*case, *size) for size in LARGE_SIZES for case in LARGE]
    cases += [(*case, *LARGEST_SIZE) for case in LARGEST]
    rows = []
    for family, k, n, d in cases:
        found = measure(rng, family, family(rng, n, d, k), scores_whitened, levels)
        if not found:
            print(f"{family.__name__} 1e-{k}, {n} x {d}: not certified", flush=True)
        for row in found:
            print(
                f"{row['family']} 1e-{k}, {n} x {d}, {row['level']}: "
                f"condition {row['condition']:.1e}, error/bound {row['ratio']:.4f}",
                flush=True,
            )
        rows += found
    return rows


def compare_references(rng):
    """Print how far the reference for large matrices is from the 80-bit QR, in bounds."""
    worst = 0.0
    for family, k in LARGE:
        for d in (16, 48):
            K = family(rng, 1500, d, k)
            whitening = whitening_of(backend_for(K), K, 0.0, False)
            if not whitening.certified or whitening.condition > MAX_REFERENCE_CONDITION:
                continue
            ratio = (scores_whitened(K) / scores_long(K)).astype(float)
            least = qr_roundoff(d) * whitening.condition
            worst = max(worst, np.abs(np.sqrt(ratio) - 1).max() / least)
    print(f"references: they differ by at most {worst:.1e} of the bound", flush=True)


def print_table(rows):
    """Print the measurements by condition number."""
    groups = defaultdict(list)
    for row in rows:
        groups[int(np.log10(row["condition"])) // 2 * 2].append(row)
    head = f"{'condition':>14} {'matrices':>9} {'worst error/bound':>18} {'missed without':>15} "
    print(head + f"{'missed with':>12} {'|U| median':>11} {'95 %':>7}")
    named = [(f"1e{k}-1e{k + 2}", group) for k, group in sorted(groups.items())]
    for name, group in [*named, ("all", rows)]:
        inflation = [r["inflation"] for r in group]
        print(
            f"{name:>14} {len(group):>9} "
            f"{max(r['ratio'] for r in group):>18.3f} "
            f"{np.mean([r['missed_plain'] for r in group]):>15.1%} "
            f"{sum(r['missed_guarded'] for r in group):>12} "
            f"{np.median(inflation):>11.3f} {np.quantile(inflation, 0.95):>7.3f}"
        )
    print(f"worst: {max(rows, key=lambda r: r['ratio'])}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 300, 1000, 1500, 2500, 5000])
    parser.add_argument("--dims", type=int, nargs="+", default=[1, 2, 3, 5, 8, 16, 32])
    parser.add_argument("--large", action="store_true", help="fixed matrices up to 100,000 x 256")
    parser.add_argument("--levels", action="store_true", help="on each instruction set in turn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    levels = levels_here() if args.levels else [blocks.tiles_name()]
    if args.large:
        compare_references(rng)
        rows = large_rows(rng, levels)
    else:
        rows = [r for _ in range(args.trials) for r in trial(rng, args.sizes, args.dims, levels)]
    for level in dict.fromkeys(row["level"] for row in rows):
        print(f"\n{level}")
        print_table([row for row in rows if row["level"] == level])
    if args.json:
        args.json.write_text(json.dumps(rows, indent=0))


if __name__ == "__main__":
    main()
