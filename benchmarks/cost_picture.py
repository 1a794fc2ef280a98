"""Draw what leverage_scores costs against n and against d, between the floors of the machine.

    python benchmarks/cost_picture.py --threads 1 --out cost_picture.png

Left: n = 1e3 to 3e6 keys with d = 64. Right: d = 4 to 512 with n = 65,536. Gaussian float64 keys,
medians. Lines: 2 n d^2 flops at the measured rate of dgemm, and two reads of K at the measured
bandwidth, both with as many threads; no method of two passes can be below the higher one (small
keys stay in cache, where reading costs less). `--json` keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics

import matplotlib as mpl
import numpy as np
from measuring import gemm_rate, limited, make_keys, read_rate, timed

import levsketch as lv

# Okabe and Ito's colours, told apart by any eye; dashes differ too, for print
OURS, FLOPS, READS = "#0072B2", "#D55E00", "#009E73"


def seconds(n, d, repeats):
    """Return the median seconds of one call; short calls are repeated within a measurement."""
    K = make_keys(n, d)
    once = timed(lv.leverage_scores, K)
    calls = max(1, int(0.01 / once))

    def work():
        for _ in range(calls):
            lv.leverage_scores(K)

    return statistics.median(timed(work) for _ in range(repeats)) / calls


def measured(shapes, repeats, flops, bandwidth):
    """Return rows (n, d, seconds, seconds of the flops, seconds of the reads)."""
    rows = []
    for n, d in shapes:
        row = (n, d, seconds(n, d, repeats), 2 * n * d * d / flops, 16 * n * d / bandwidth)
        print("({}, {}): {:.3g} s, flops {:.3g} s, reads {:.3g} s".format(*row), flush=True)
        rows.append(row)
    return rows


def draw(ax, rows, axis, xlabel):
    """Draw one panel: measured points, and the two floors."""
    x = [row[axis] for row in rows]
    ax.loglog(x, [r[2] for r in rows], "o-", color=OURS, lw=2, ms=5, label="leverage_scores")
    ax.loglog(
        x, [r[3] for r in rows], "--", color=FLOPS, lw=1.5, label="2 n d² flops at dgemm's rate"
    )
    ax.loglog(x, [r[4] for r in rows], ":", color=READS, lw=2, label="two reads of K")
    ax.set_xlabel(xlabel)
    ax.grid(True, which="major", color="0.88", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def picture(by_n, by_d, title, path):
    """Save the two panels."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    draw(left, by_n, 0, f"number of keys n  (d = {by_n[0][1]})")
    draw(right, by_d, 1, f"dimension d  (n = {by_d[0][0]:,})")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    left.set_ylabel("seconds")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=160)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="cost_picture.png")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="small keys: does it run?")
    args = parser.parse_args()
    counts, dims, rows = np.geomspace(1e3, 3e6, 12).round().astype(int).tolist(), 512, 65_536
    if args.quick:
        counts, dims, rows = [1000, 3000, 10_000], 32, 4096
    with limited(args.threads):
        rates = gemm_rate(), read_rate(args.threads)
        by_n = measured([(n, 64) for n in counts], args.repeats, *rates)
        shapes = [(rows, 1 << k) for k in range(2, dims.bit_length())]
        by_d = measured(shapes, args.repeats, *rates)
    title = (
        f"leverage_scores, float64, {args.threads} thread{'s' * (args.threads > 1)}: "
        f"dgemm {rates[0] / 1e9:.0f} GFLOP/s, memory {rates[1] / 1e9:.0f} GB/s"
    )
    picture(by_n, by_d, title, args.out)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"rates": rates, "by_n": by_n, "by_d": by_d}, file, indent=1)


if __name__ == "__main__":
    main()
