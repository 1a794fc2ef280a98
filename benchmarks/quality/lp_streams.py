"""Follow the memory of a long stream, and compare sets over batchings and merge orders.

    python benchmarks/quality/lp_streams.py --rows 10000000

Memory: Gaussian rows of d = 16 with a few planted ones, p = 4 with the exact normaliser (a lift
of 136 columns), in batches of 100,000: bytes of the state along the way (`nbytes_`), peak
memory of the process, rows per second.

Merging: 60,000 rows in 6 shards of different laws and scales, p = 1, 3, 4 and Huber: merged in
several orders and groupings, against one stream; the size of each set, whether all contain the
refined (exact) universal set of all rows, and for p = 4 with refine=True whether all sets are
equal.
"""

from __future__ import annotations

import argparse
import functools
import resource
import time
import warnings

import numpy as np

import levsketch as lv


def long_stream(rows, batch=100_000):
    selector = lv.LpSensitivitySelector(p=4, eps=0.05)
    rng = np.random.default_rng(0)
    planted = {0: 7, rows // batch // 2: 11, rows // batch - 1: 13}
    start, wanted = time.perf_counter(), []
    print(f"{'rows':>12} {'state bytes':>12} {'peak MB':>8} {'rows/s':>10}")
    for i in range(rows // batch):
        K = rng.standard_normal((batch, 16))
        if i in planted:  # alone in what it does for p = 4: sensitivity near 1
            K[planted[i]] *= 40 * (rows / 1e6) ** 0.25
            wanted.append(i * batch + planted[i])
        selector.partial_fit(K)
        done = (i + 1) * batch
        if done in (batch, 10 * batch) or done % (rows // 8) == 0 or done == rows:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rate = done / (time.perf_counter() - start)
            print(f"{done:>12} {selector.nbytes_:>12} {peak:>8.0f} {rate:>10.0f}", flush=True)
    print("planted rows", wanted, "selected", selector.indices_.tolist(), selector.certified_)


def shards(seed, n=10_000, d=6):
    """Yield shards of different laws."""
    rng = np.random.default_rng(seed)
    for i in range(6):
        K = rng.standard_normal((n, d)) * np.exp((i % 3) * rng.standard_normal((n, 1)))
        K[:, i] *= 30.0  # each shard has a direction of its own
        yield K * 10.0 ** (i - 3)


def merge_orders(parameters):
    parts = list(shards(0))
    offsets = np.cumsum([0] + [len(K) for K in parts])
    whole = np.concatenate(parts)
    fitted = [lv.LpSensitivitySelector(**parameters).partial_fit(K) for K in parts]
    found = [set(lv.LpSensitivitySelector(**parameters).partial_fit(whole).indices_)]
    rng = np.random.default_rng(1)
    for _ in range(8):
        order = rng.permutation(len(parts))
        merged = functools.reduce(lambda a, b: a | b, [fitted[i] for i in order])
        starts = np.cumsum([0] + [len(parts[i]) for i in order])
        found.append(
            {
                int(row - starts[k] + offsets[order[k]])
                for row in merged.indices_
                for k in [int(np.searchsorted(starts, row, side="right")) - 1]
            }
        )
    tree = fitted
    while len(tree) > 1:
        tree = [a | b for a, b in zip(tree[::2], tree[1::2], strict=False)] + tree[
            len(tree) // 2 * 2 :
        ]
    found.append(set(tree[0].indices_))
    return whole, found


def merging():
    print(
        f"{'':>30} {'sets, smallest to largest':>26} {'exact':>6} {'all hold it':>12} "
        f"{'all equal':>10}"
    )
    for name, parameters in (
        ("p = 1", {"p": 1.0, "normaliser": None}),
        ("p = 3", {"p": 3.0, "normaliser": None}),
        ("p = 4, bounds by weights", {"p": 4.0, "normaliser": None}),
        ("p = 4, lift", {"p": 4.0}),
        ("p = 4, lift, refine=True", {"p": 4.0, "refine": True}),
        ("Huber", {"function": "huber", "normaliser": None}),
    ):
        parameters = {"eps": 0.02, "min_keys": 0} | parameters
        whole, found = merge_orders(parameters)
        exact = set()
        if "p" in parameters:
            one = lv.LpSensitivitySelector(p=parameters["p"], eps=0.02, min_keys=0, refine=True)
            exact = set(one.fit(whole).indices_)
        sizes = sorted(len(s) for s in found)
        print(
            f"{name:>30} {f'{sizes[0]} to {sizes[-1]}':>26} {len(exact) or '':>6} "
            f"{all(exact <= s for s in found)!s:>12} {all(s == found[0] for s in found)!s:>10}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    merging()
    long_stream(args.rows)


if __name__ == "__main__":
    main()
