"""Time the universal set for |x|^p against one leverage pass, and one row against solvers.

    python benchmarks/lp_table.py --threads 1 2
    python benchmarks/lp_table.py --rows            # needs cvxpy

First table, keys (1e6, 32), float64: seconds for the set alone (normaliser=None), for the set
and an importance sample (delta = 0.1, failure probability 0.01), for the exact normaliser by a
lift (p = 4: 528 columns), for Lewis weights to 1e-6 and for `sensitivity_bounds`; each as a
multiple of one `leverage_scores` pass that takes turns with it. Medians of pairs.

Second table (--rows): milliseconds for one exact sensitivity to a relative gap of 1e-6 by
`sensitivities` (whitening included, spread over the rows asked for), by SciPy's linear
programming (HiGHS, p = 1) and by CVXPY with Clarabel (power cones), and the largest relative
difference between the values.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
import scipy.optimize
from threadpoolctl import threadpool_limits

import levsketch as lv


def timed(function):
    time.sleep(0.1)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def against_a_leverage_pass(K, jobs, repeats):
    """Print each job's median seconds, and its median ratio to the pass before it."""
    lv.leverage_scores(K)
    for name, job, once in jobs:
        pairs = [
            (timed(lambda: lv.leverage_scores(K)), timed(job))
            for _ in range(1 if once else repeats)
        ]
        seconds = statistics.median(b for _, b in pairs)
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"{name:>34} {seconds:>9.3f} {ratio:>9.1f}", flush=True)


def set_jobs(K):
    """Return (name, callable, whether to run it only once)."""

    def fit(**params):
        return lambda: lv.LpSensitivitySelector(**params).fit(K)

    jobs = [("LeverageKeySelector", lambda: lv.LeverageKeySelector().fit(K), False)]
    for p in (1.0, 3.0, 4.0):
        jobs.append((f"set, p = {p:g}", fit(p=p, normaliser=None), False))
    jobs.append(("set, Huber", fit(function="huber", normaliser=None), False))
    for p in (1.0, 3.0):
        jobs.append((f"set and sample, p = {p:g}", fit(p=p, normaliser="sample"), False))
    jobs.append(("set and lift (D = 528), p = 4", fit(p=4.0, normaliser="lift"), True))
    for p in (1.0, 3.0, 4.0):
        jobs.append((f"lewis_weights, p = {p:g}", lambda p=p: lv.lewis_weights(K, p), True))
        if p != 4.0:
            job = (f"sensitivity_bounds, p = {p:g}", lambda p=p: lv.sensitivity_bounds(K, p), True)
            jobs.append(job)
    return jobs


def by_highs(K, j):
    """Return the sensitivity of row j for p = 1, by linear programming."""
    n, d = K.shape
    c = np.concatenate([np.zeros(d), np.ones(n)])
    A = np.block([[K, -np.eye(n)], [-K, -np.eye(n)]])
    equal = np.concatenate([K[j], np.zeros(n)])[None]
    bounds = [(None, None)] * d + [(0, None)] * n
    found = scipy.optimize.linprog(c, A, np.zeros(2 * n), equal, [1.0], bounds)
    return 1.0 / found.fun


def by_cvxpy(K, j, p):
    """Return the sensitivity of row j by power cones."""
    import cvxpy

    q = cvxpy.Variable(K.shape[1])
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.pnorm(K @ q, p)), [K[j] @ q == 1])
    return 1.0 / problem.solve(solver=cvxpy.CLARABEL) ** p


def rows_table(m=8):
    print(
        f"{'keys':>12} {'p':>4} {'levsketch ms':>13} {'peer':>8} {'peer ms':>9} {'difference':>11}"
    )
    for n, d in ((300, 8), (2000, 32)):
        K = np.random.default_rng(0).standard_normal((n, d))
        rows = np.arange(m)
        for p in (1.0, 1.5, 3.0, 4.0):
            lv.sensitivities(K, p, rows)
            ours = timed(lambda p=p, K=K, rows=rows: lv.sensitivities(K, p, rows))
            found = lv.sensitivities(K, p, rows).mean(axis=1)
            peers = [("CVXPY", lambda j, p=p, K=K: by_cvxpy(K, j, p))]
            if p == 1.0:
                peers.insert(0, ("HiGHS", lambda j, K=K: by_highs(K, j)))
            for name, peer in peers:
                start = time.perf_counter()
                values = np.array([peer(j) for j in rows])
                theirs = time.perf_counter() - start
                print(
                    f"{f'({n}, {d})':>12} {p:>4g} {1e3 * ours / m:>13.2f} {name:>8} "
                    f"{1e3 * theirs / m:>9.1f} {np.max(np.abs(values / found - 1)):>11.1e}",
                    flush=True,
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", action="store_true", help="print the second table instead")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    lv.show_versions()
    if args.rows:
        return rows_table()
    K = np.random.default_rng(0).standard_normal((1_000_000, 32))
    for threads in args.threads:
        print(f"{threads} thread(s){'':>20} {'seconds':>13} {'x passes':>9}")
        with threadpool_limits(threads):
            against_a_leverage_pass(K, set_jobs(K), args.repeats)


if __name__ == "__main__":
    main()
