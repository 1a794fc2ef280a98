"""Calibrate the guard: how far computed leverage scores are from the truth, over what is claimed.

For every matrix of a family the scores are computed by the library and, as the
reference, by an 80-bit Householder QR. Reported, for each range of condition
numbers: the largest ratio of the actual relative error to the claimed bound
``Whitening.error`` (below 1 the guard holds; its reciprocal is the margin), and,
with eps placed exactly on a true score, how often a key would be missed with and
without the guard, and how much the guard inflates the set.

    python benchmarks/quality/guard_calibration.py --trials 2000 --json calibration.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from levsketch.algorithms.leverage import score_rows, whitening_of
from levsketch.backends import backend_for

LONG = np.longdouble
MAX_REFERENCE_CONDITION = 1e13  # beyond, the 80-bit reference has too few digits


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


def trial(rng, sizes, dims):
    """Return one row of measurements, or None where the reference would not be one."""
    d = int(rng.choice(dims))
    n = max(d + 1, int(rng.choice(sizes)))
    family = FAMILIES[rng.integers(len(FAMILIES))]
    K = family(rng, n, d, rng.uniform(0, 13))
    whitening = whitening_of(backend_for(K), K, 0.0, False)
    if not whitening.certified or whitening.condition > MAX_REFERENCE_CONDITION:
        return None
    scores = np.empty(n)
    score_rows(backend_for(K), whitening, K, False, scores)
    truth = np.minimum(scores_long(K), 1)
    seen = truth > 1e-290
    # error of the norm, as the bound is stated: tau_hat = tau (1 + e)^2
    actual = np.abs(np.sqrt(scores[seen] / truth[seen].astype(float)) - 1).max()
    eps = truth[rng.choice(np.argsort(truth)[-max(1, n // 10) :])]
    should = truth >= eps
    plain = scores >= float(eps)
    guarded = whitening.upper_bounds(scores) >= float(eps)
    return {
        "family": family.__name__,
        "n": n,
        "d": K.shape[1],
        "condition": whitening.condition,
        "ratio": float(actual / whitening.error),
        "missed_plain": bool((should & ~plain).any()),
        "missed_guarded": bool((should & ~guarded).any()),
        "inflation": float(guarded.sum() / should.sum()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 300, 1000, 1500, 2500, 5000])
    parser.add_argument("--dims", type=int, nargs="+", default=[1, 2, 3, 5, 8, 16, 32])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    rows = [r for _ in range(args.trials) if (r := trial(rng, args.sizes, args.dims))]
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
    worst = max(rows, key=lambda r: r["ratio"])
    print(f"worst: {worst}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=0))


if __name__ == "__main__":
    main()
