"""Tabulate true total sensitivity, each bound's total, and set sizes before and after refining.

    python benchmarks/quality/sensitivity_table.py

For Gaussian, heavy-tailed and clustered keys (n = 2000, d = 6) and scikit-learn's digits
(n = 1797, d = 64), and several p: the sum of the true sensitivities (upper ends of intervals
with a relative gap of at most 1e-6; every key is solved), of the bounds by Lewis weights, by
Lewis weights leaving the key itself out, by leverage alone, by the lift (even p), of the
smallest of them, and of those that one pass leaves (LpSensitivitySelector with eps so small
that nothing is dropped); then, at --eps, the size of the set by the bounds of one pass, of the
refined set, and of the true one. Any bound below a true value would be counted in the last
column.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from sklearn.datasets import load_digits

import levsketch as lv
from levsketch.algorithms.lewis import fit_lewis
from levsketch.algorithms.sensitivity_bounds import (
    leave_one_out_bounds,
    leverage_bounds,
    lewis_bounds,
    lift_bounds,
)
from levsketch.backends import CpuBackend


def data(seed):
    """Yield names and key matrices."""
    rng = np.random.default_rng(seed)
    n, d = 2000, 6
    yield "Gaussian", rng.standard_normal((n, d))
    yield "heavy-tailed", rng.standard_normal((n, d)) * np.exp(2 * rng.standard_normal((n, 1)))
    centres = rng.standard_normal((8, d))[rng.integers(0, 8, n)]
    yield "clustered", centres + 0.05 * rng.standard_normal((n, d))
    yield "digits", load_digits().data


def one_pass(K, p, eps, **params):
    """Return a selector that has seen K in blocks, as a stream."""
    selector = lv.LpSensitivitySelector(p=p, eps=eps, min_keys=0, normaliser="auto", **params)
    for block in np.array_split(K, 5):
        selector.partial_fit(block)
    return selector


def row(name, K, p, eps):
    """Print one line of the table."""
    backend, n = CpuBackend(), len(K)
    start = time.perf_counter()
    truth = lv.sensitivities(K, p)
    seconds = time.perf_counter() - start
    tau = np.minimum(lv.leverage_scores(K) * (1 + 1e-9), 1.0)
    fit = fit_lewis(backend, K, p, 1e-6, 300)
    totals = [
        truth[:, 1].sum(),
        np.minimum(lewis_bounds(fit, p), 1.0).sum(),
        leave_one_out_bounds(fit, p).sum(),
        leverage_bounds(tau, p).sum(),
    ]
    lifted = None
    if p % 2 == 0 and K.shape[1] < 20:
        lifted = lift_bounds(backend, K, p).sum()
    best = lv.sensitivity_bounds(K, p)
    stream = one_pass(K, p, 1e-12)
    bounds = np.zeros(n)
    bounds[stream.indices_] = stream.sensitivity_bounds_
    chosen = one_pass(K, p, eps)
    refined = lv.LpSensitivitySelector(p=p, eps=eps, min_keys=0, refine=True).fit(K)
    low = truth[:, 0] * (1 - 1e-12) * (truth[:, 0] > 1e-11)  # below, one pass drops rows
    wrong = int((best < low).sum() + (bounds < low).sum())
    wrong += len(set(np.flatnonzero(truth[:, 0] >= eps)) ^ set(refined.indices_))
    cells = [f"{t:8.2f}" for t in totals]
    cells += [f"{lifted:8.2f}" if lifted is not None else " " * 8]
    cells += [f"{best.sum():8.2f}", f"{bounds.sum():8.2f}"]
    sizes = len(chosen.indices_), len(refined.indices_), int((truth[:, 0] >= eps).sum())
    print(
        f"{name:>12} {p:>4g} "
        + " ".join(cells)
        + " | {:5d} {:5d} {:5d} | ".format(*sizes)
        + f"{np.max(1 - truth[:, 0] / np.where(truth[:, 1] > 0, truth[:, 1], 1)):.0e} "
        f"{1e3 * seconds / n:6.2f} {wrong:3d}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eps", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-p", type=float, nargs="+", default=[1, 1.5, 2.5, 3, 4, 6, 8])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        f"{'keys':>12} {'p':>4} {'true':>8} {'Lewis':>8} {'l.o.o.':>8} {'leverage':>8} {'lift':>8} "
        f"{'smallest':>8} {'one pass':>8} | set: 1 pass, refined, true | gap, ms/row, wrong"
    )
    for name, K in data(args.seed):
        for p in args.p:
            row(name, K, p, args.eps)


if __name__ == "__main__":
    main()
