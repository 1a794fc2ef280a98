"""Compare StreamingAttentionSketch with its peers, at equal memory, on real and synthetic keys.

    python benchmarks/quality/attention_data.py --rows 65536 --output heads
    python benchmarks/quality/attention_table.py --heads heads --all --rows 4096 --output table.json

Per data set and budget (percent of n (d + d_v) numbers): relative Frobenius error and worst row
over 1,000 queries, and how far the default is from the best method. "sketch" is the default as
it is, "sketch+q" is told 2,000 other queries when the stream begins; "embedding", "closure+U" and
"parabola+U" are the same with the model of the rest fixed. Sizes of peers are counted in their
favour (attention_peers.py). Queries that are measured are never seen before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import time

import numpy as np
from attention_data import KINDS, load_head, synthetic
from attention_peers import HEADS, METHODS, errors, exact, table

import levsketch as lv

OURS = {
    "sketch": ({}, False),
    "sketch+q": ({}, True),
    "embedding": ({"residual": "embedding"}, True),
    "closure+U": ({"residual": "closure"}, True),
    "parabola+U": ({"residual": "polynomial"}, True),
}
SAMPLE = 2000


def sketched(name, K, V, Q, sample, floats):
    """Return outputs, what answered them, and the measured error on probes."""
    params, told = OURS[name]
    att = lv.StreamingAttentionSketch(scale=1.0, max_memory=8 * floats, **params)
    try:
        att.fit(K, V, queries=sample if told else None)
    except ValueError:  # the budget is too small for this model
        return None, {}
    return att.transform(Q), {"residual": att.residual_, "probe": att.probe_error_}


def data(args):
    """Yield name, seed, Q, sample of queries, K, V."""
    heads = itertools.product(range(6), range(12)) if args.all else HEADS
    for layer, head in heads if args.heads else ():
        Q, K, V = (X.astype(float) for X in load_head(args.heads, layer, head, args.rows))
        for seed in range(args.seeds):
            rows = np.random.default_rng(seed).permutation(args.rows)
            asked, sample = rows[: args.queries], rows[args.queries : args.queries + SAMPLE]
            Q_ = Q / math.sqrt(K.shape[1])
            yield f"L{layer}H{head}", seed, Q_[asked], Q_[sample], K, V
    for kind in args.kinds:
        for seed in range(args.seeds):
            Q, K, V = synthetic(kind, args.rows, 32, seed, args.queries + SAMPLE)
            yield kind, seed, Q[: args.queries], Q[args.queries :], K, V


def compare(args):
    records = []
    for name, seed, Q, sample, K, V in data(args):
        truth, mean = exact(Q, K, V), V.mean(0)
        for budget, method in itertools.product(args.budgets, [*args.methods, *args.ours]):
            floats = int(budget / 100 * (K.size + V.size))
            record = {"data": name, "seed": seed, "budget": budget, "method": method}
            start, more = time.perf_counter(), {}
            if method in OURS:
                Y, more = sketched(method, K, V, Q, sample, floats)
            else:
                Y = METHODS[method](K, V, Q, floats, seed)
            record["seconds"] = time.perf_counter() - start
            if Y is not None:
                records.append(record | more | errors(Y, truth, mean))
        print(".", end="", flush=True)
    print()
    return records


def summary(records, methods):
    """Print, per budget, how the default stands to the best method of each data set."""
    by = {}
    for r in records:
        by.setdefault((r["budget"], r["data"], r["method"]), []).append(r["relative"])
    for ours in (m for m in ("sketch", "sketch+q") if any(r["method"] == m for r in records)):
        for budget in dict.fromkeys(r["budget"] for r in records):
            ratios, worse = [], []
            for name in dict.fromkeys(r["data"] for r in records):
                rivals = {
                    m: np.median(by[budget, name, m])
                    for m in [*methods, "embedding", "closure+U", "parabola+U"]
                    if (budget, name, m) in by
                }
                best = min(rivals, key=rivals.get)
                mine = float(np.median(by[budget, name, ours]))
                ratios.append(mine / max(rivals[best], 1e-12))
                if mine > 1.1 * rivals[best] + 1e-3:
                    worse.append(f"{name} {mine:.3f} ({best} {rivals[best]:.3f})")
            print(
                f"{budget}% {ours}: error over that of the best method of each data set: median "
                f"{np.median(ratios):.2f}, largest {max(ratios):.2f}; beyond 1.1: "
                + ("; ".join(worse) or "none")
            )


def quantiles(records):
    """Print quartiles over the real heads."""
    real = [r for r in records if r["data"].startswith("L")]
    for budget, method in dict.fromkeys((r["budget"], r["method"]) for r in real):
        mine = [r for r in real if (r["budget"], r["method"]) == (budget, method)]
        heads = {}
        for r in mine:
            heads.setdefault(r["data"], []).append((r["relative"], r["worst"]))
        relative, worst = np.array([np.median(v, axis=0) for v in heads.values()]).T
        q = np.quantile(relative, [0, 0.25, 0.5, 0.75, 1])
        print(
            f"{budget:>4}% {method:12} "
            + " ".join(f"{x:.3f}" for x in q)
            + f"   worst row, median {np.median(worst):.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=pathlib.Path, help="folder of attention_data.py's files")
    parser.add_argument("--all", action="store_true", help="all 72 heads instead of six")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 2.0, 10.0], help="%%")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--ours", nargs="*", default=list(OURS), choices=list(OURS))
    parser.add_argument("--with", dest="known", type=pathlib.Path, help="records to add, JSON")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file of all records")
    args = parser.parse_args()
    records = json.loads(args.known.read_text()) if args.known else []
    methods = list(dict.fromkeys([r["method"] for r in records] + args.methods))
    records += compare(args)
    if not args.all:
        table(records)
    quantiles(records)
    summary(records, [m for m in methods if m not in OURS])
    if args.output:
        args.output.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
