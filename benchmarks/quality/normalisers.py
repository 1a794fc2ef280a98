"""Measure estimated normalisers: how often the 1 +- delta promise fails, and error against memory.

    python benchmarks/quality/normalisers.py --seeds 1000

First table: heavy-tailed keys (n = 6000, d = 3), one query a seed, importance sample with
delta = 0.3 and failure probability 0.1. "failed" counts seeds with |Z_hat / Z - 1| > delta; it
should not exceed the 99.9 % quantile of a binomial with probability 0.1.

Second table: p = 4, Gaussian keys (n = 100,000, d = 32), 200 queries: the median and the largest
relative error of the normaliser, and the bytes of the state, by lift, importance sample and
TensorSketch.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import scipy.stats

import levsketch as lv
from levsketch.functions import Huber, Power


def ratio(selector, Q, K, f):
    """Return estimated over true normaliser of queries, from scores of the selected keys."""
    scores = selector.transform(Q)
    products = Q @ K.T
    total = f(products).sum(axis=1)
    j = np.argmax(scores, axis=1)
    rows = np.arange(len(Q))
    exact = f(products[rows, np.asarray(selector.indices_)[j]]) / total
    return exact / scores[rows, j]


def failures(seeds):
    rng = np.random.default_rng(0)
    K = rng.standard_normal((6000, 3)) * np.exp(rng.standard_normal((6000, 1)))
    print(f"{'f':>8} {'rows kept':>10} {'failed':>7} of {seeds}, allowed")
    allowed = int(scipy.stats.binom.ppf(0.999, seeds, 0.1))
    for name, f, asked in (
        ("p = 1", Power(1.0), {"p": 1.0}),
        ("p = 1.5", Power(1.5), {"p": 1.5}),
        ("p = 3", Power(3.0), {"p": 3.0}),
        ("huber", Huber(), {"function": "huber"}),
    ):
        failed, kept = 0, []
        for seed in range(seeds):
            selector = lv.LpSensitivitySelector(
                eps=0.9, min_keys=4, delta=0.3, failure_probability=0.1, random_state=seed,
                normaliser="sample", **asked,
            ).fit(K)  # fmt: skip
            q = np.random.default_rng(seed).standard_normal((1, 3))
            failed += int(abs(ratio(selector, q, K, f)[0] - 1) > 0.3)
            kept.append(selector.sample_size_)
        print(f"{name:>8} {np.mean(kept):>10.0f} {failed:>7} {allowed:>12}", flush=True)


def memory():
    rng = np.random.default_rng(0)
    K, Q = rng.standard_normal((100_000, 32)), rng.standard_normal((200, 32))
    print(f"{'normaliser':>28} {'bytes':>12} {'median error':>13} {'largest':>9}")
    jobs = [("lift, D = 528", {"normaliser": "lift"})]
    jobs += [
        (f"sample, delta = {d}", {"normaliser": "sample", "delta": d}) for d in (0.3, 0.6, 1.0)
    ]
    jobs += [
        (f"tensorsketch, {m} columns", {"normaliser": "tensorsketch", "sketch_size": m})
        for m in (256, 512, 1024)
    ]
    for name, asked in jobs:
        selector = lv.LpSensitivitySelector(p=4, eps=0.9, min_keys=8, **asked).fit(K)
        error = np.abs(ratio(selector, Q, K, Power(4.0)) - 1)
        print(f"{name:>28} {selector.nbytes_:>12} {np.median(error):>13.1e} {error.max():>9.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    failures(args.seeds)
    memory()


if __name__ == "__main__":
    main()
