"""Time leverage_scores and what is built on it against what people use, in one run, as ratios.

    python benchmarks/cpu_table.py --threads 1 2                  # the table of the README
    python benchmarks/cpu_table.py --all --json cpu.json          # every table

Read the ratios: each is the median over pairs of runs that took turns, below 1 where levsketch
is faster. "x floor" is over the larger of 2 n d^2 flops at the rate of dgemm and two reads of K
at the bandwidth, both measured beside each row with as many threads (`measuring`). levsketch
computes in float64 whatever the keys are; for float32 keys the blocked NumPy is timed in float64
(the same accuracy) and in float32 (half the work, no correct digit from condition number 1e4
on). "extra MB" is what memory rises above keys and output, in a fresh process (`peak_memory`),
"error" the largest relative difference to scores by QR in float64, which itself is off by about
1e-6 for keys of condition number 1e10. A method that fails on such keys is marked "fails".
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
from measuring import (
    Report,
    floor_seconds,
    gemm_rate,
    limited,
    make_keys,
    pair_ratio,
    pairs,
    read_rate,
    timed,
)
from peak_memory import extra_peak
from peers import METHODS, installed, max_error, numpy_blocked, numpy_float32, reference, scipy_qr

import levsketch as lv
from levsketch.algorithms.lewis import fit_lewis
from levsketch.backends import backend_for

SHAPES = ((1_000_000, 64), (262_144, 128), (4_000_000, 32), (65_536, 512))
TWO = SHAPES[:2]
SLOW = 3  # pairs with methods that take seconds


def cases():
    """Return (n, d, dtype, condition): Gaussian keys, and keys that need the certified path."""
    plain = [(n, d, dtype, None) for n, d in SHAPES for dtype in ("float64", "float32")]
    return plain + [(n, d, "float64", 1e10) for n, d in TWO]


def label(n, d, condition=None):
    return f"({n}, {d})" + (f" {condition:.0e}".replace("e+", "e") if condition else "")


def against(ours, theirs, repeats, seconds):
    """Return the median ratio of pairs, "fails" if the peer does; append our seconds."""
    try:
        mine, other = pairs(ours, theirs, repeats)
    except np.linalg.LinAlgError:
        return "fails"
    seconds += mine
    return pair_ratio(mine, other)


def scores_table(report, args):
    """Print leverage_scores over the floor, blocked NumPy and QR, its memory and its error."""
    report.table(
        "scores",
        "leverage_scores; keys (n, d) and their condition number where it is not small",
        keys="20",
        dtype="8",
        threads="7",
        seconds="8.4f",
        floor="8.4f",
        x_floor="7.2f",
        x_numpy_f64="11.2f",
        x_numpy_f32="11.2f",
        x_qr="8.4f",
        extra_mb="8.1f",
        error="8.1e",
    )
    for n, d, dtype, condition in cases():
        n //= args.divide
        K = make_keys(n, d, dtype, condition)
        error = max_error(lv.leverage_scores(K), reference(K))
        for threads in args.threads:
            with limited(threads):
                row = scores_row(K, dtype, threads, args)
            extra = extra_peak("levsketch", n, d, dtype, threads, condition)
            row["extra_mb"] = None if extra is None else extra / 1e6
            report.row(
                keys=label(n, d, condition), dtype=dtype, threads=threads, **row, error=error
            )


def scores_row(K, dtype, threads, args):
    """Return the measured columns of one row; the threads are in force."""
    floor = floor_seconds(K, gemm_rate(args.gemm), read_rate(threads, args.bytes))
    seconds = []

    def over(peer, repeats):
        return against(lambda: lv.leverage_scores(K), lambda: peer(K, threads), repeats, seconds)

    row = {
        "x_numpy_f64": over(numpy_blocked, args.repeats),
        "x_numpy_f32": over(numpy_float32, args.repeats) if dtype == "float32" else None,
        "x_qr": over(scipy_qr, SLOW),
    }
    ours = statistics.median(seconds)
    return {"seconds": ours, "floor": floor, "x_floor": ours / floor} | row


def peers_table(report, args):
    """Print every other way to leverage scores that is installed here."""
    report.table(
        "peers",
        "Peers, float64 keys; x levsketch is their time over ours. PCA scores the rows [1, k_j]",
        keys="20",
        threads="7",
        method="24",
        seconds="13.4f",
        x_levsketch="11.2f",
        extra_mb="9.1f",
        error="8.1e",
    )
    present = {name: installed(name) for name in METHODS if name != "NumPy float32"}
    for n, d in TWO:
        n //= args.divide
        K = make_keys(n, d)
        truth = {centred: reference(K, centred) for centred in (False, True)}
        for threads in args.threads:
            for name, there in present.items():
                row = {"keys": label(n, d), "threads": threads, "method": name}
                if there:
                    row |= peer_row(K, name, threads, truth[METHODS[name].centred])
                else:
                    row["seconds"] = "not installed"
                report.row(**row)


def peer_row(K, name, threads, truth):
    peer = METHODS[name].scores
    with limited(threads):
        error = max_error(peer(K, threads), truth)
        ours, theirs = pairs(lambda: lv.leverage_scores(K), lambda: peer(K, threads), SLOW)
    extra = extra_peak(name, *K.shape, "float64", threads)
    return {
        "seconds": statistics.median(theirs),
        "x_levsketch": pair_ratio(theirs, ours),
        "extra_mb": None if extra is None else extra / 1e6,
        "error": error,
    }


def streaming_table(report, args):
    """Print the rate of a stream in blocks, as a share of the batch rate, and one-row calls."""
    report.table(
        "streaming",
        "LeverageKeySelector(eps=0.05).partial_fit, indices_ at the end, keys (rows, 64) float64, "
        "against leverage_scores of the same rows",
        threads="7",
        block="7",
        rows="9",
        rows_per_s="12,.0f",
        batch_per_s="12,.0f",
        share="7.2f",
        us_per_call="11.1f",
    )
    for threads in args.threads:
        with limited(threads):
            for block in (1, 64, 4096, 65_536):
                n = min(1_000_000, 40_000 * block) // args.divide
                K, calls = make_keys(n, 64), []
                stream, batch = pairs(
                    lambda K=K, block=block, calls=calls: streamed(K, block, calls),
                    lambda K=K: lv.leverage_scores(K),
                    SLOW,
                )
                report.row(
                    threads=threads,
                    block=block,
                    rows=n,
                    rows_per_s=n / statistics.median(stream),
                    batch_per_s=n / statistics.median(batch),
                    share=pair_ratio(batch, stream),
                    us_per_call=1e6 * statistics.median(calls),
                )


def streamed(K, block, calls):
    """Fit a selector in blocks; append the seconds of the calls of the second half."""
    selector = lv.LeverageKeySelector(eps=0.05)
    seconds = []
    for i in range(0, len(K), block):
        start = time.perf_counter()
        selector.partial_fit(K[i : i + block])
        seconds.append(time.perf_counter() - start)
    calls += seconds[len(seconds) // 2 :]
    return selector.indices_


def lewis_table(report, args):
    """Print one step of Lewis weights over one pass of leverage scores."""
    report.table(
        "lewis",
        "lewis_weights(p=4, tol=1e-6): seconds of one step over one leverage_scores pass",
        keys="20",
        threads="7",
        steps="6",
        seconds="8.3f",
        per_step="9.4f",
        x_pass="7.2f",
    )
    for n, d in TWO:
        K = make_keys(n // args.divide, d)
        steps = fit_lewis(backend_for(K), K, 4.0, 1e-6, 200).steps
        for threads in args.threads:
            with limited(threads):
                whole, one = pairs(
                    lambda K=K: lv.lewis_weights(K, 4, tol=1e-6),
                    lambda K=K: lv.leverage_scores(K),
                    SLOW,
                )
            report.row(
                keys=label(*K.shape),
                threads=threads,
                steps=steps,
                seconds=statistics.median(whole),
                per_step=statistics.median(whole) / steps,
                x_pass=pair_ratio(whole, one) / steps,
            )


def scaling_table(report, args):
    """Print how much faster the most threads are than one, taking turns."""
    most = max(args.threads)
    report.table(
        "scaling",
        f"leverage_scores: time on one thread over time on {most}",
        keys="20",
        dtype="8",
        one="8.4f",
        many="8.4f",
        speedup="8.2f",
    )

    def on(K, threads):
        with limited(threads):
            return timed(lv.leverage_scores, K)

    for n, d, dtype, condition in cases():
        K = make_keys(n // args.divide, d, dtype, condition)
        on(K, most)
        one, many = zip(*((on(K, 1), on(K, most)) for _ in range(args.repeats)), strict=True)
        report.row(
            keys=label(*K.shape, condition),
            dtype=dtype,
            one=statistics.median(one),
            many=statistics.median(many),
            speedup=pair_ratio(one, many),
        )


TABLES = {
    "scores": scores_table,
    "peers": peers_table,
    "streaming": streaming_table,
    "lewis": lewis_table,
    "scaling": scaling_table,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=11, help="pairs with fast methods")
    for name, table in TABLES.items():
        parser.add_argument(f"--{name}", action="store_true", help=table.__doc__)
    parser.add_argument("--all", action="store_true", help="all tables (default: --scores)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--quick", action="store_true", help="a 64th of the rows: does it run?")
    args = parser.parse_args()
    args.divide, args.gemm, args.bytes = (64, 512, 1 << 26) if args.quick else (1, 2048, 1 << 30)
    args.tables = [name for name in TABLES if args.all or getattr(args, name)] or ["scores"]
    return args


def main():
    args = arguments()
    warnings.simplefilter("ignore")
    lv.show_versions()
    report = Report()
    for name in args.tables:
        TABLES[name](report, args)
    if args.json:
        report.save(args.json)


if __name__ == "__main__":
    main()
