"""Time StreamingAttentionSketch against exact attention, and tell where the crossover lies.

    python benchmarks/attention_time.py --rows 65536 1048576 --threads 1 2

For n keys of d = 64 (Gaussian, float64 here, float32 for torch): seconds to build the sketch,
and to answer 1, 1,000 and n queries, beside `torch` scaled_dot_product_attention and
`levsketch.attention` for as many queries (n queries of the exact methods are timed on 4,096
of them and scaled, which favours neither: they are linear in the queries). The crossover is the
number of queries from which building and answering is faster than torch. Floors: exact attention
4 m n d flops, an answer 4 m n_keys d, at the dgemm and sgemm rates measured first. Without torch
its columns are left out.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from threadpoolctl import threadpool_limits

import levsketch as lv

D = 64
TIMED = 4096


def best(work, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def gemm_rate(dtype):
    A = np.ones((2048, 2048), dtype)
    return 2 * 2048**3 / best(lambda: A @ A)


def torch_attention(Q, K, V, threads):
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    q, k, v = (torch.from_numpy(X.astype(np.float32))[None, None] for X in (Q, K, V))
    with torch.no_grad():
        attend = torch.nn.functional.scaled_dot_product_attention
        return best(lambda: attend(q, k, v), 1 if len(Q) * len(K) > 1e9 else 3)


def report(n, n_keys, residual, threads, rates):
    rng = np.random.default_rng(0)
    K, Q = rng.standard_normal((n, D)), rng.standard_normal((max(TIMED, 1000), D))
    V = np.tanh(K)
    att = lv.StreamingAttentionSketch(n_keys=n_keys, residual=residual)
    build = best(lambda: att.fit(K, V, queries=Q[:500]), 1)
    print(
        f"n = {n:,}, n_keys = {n_keys}, {threads} thread(s): build {build:.2f} s, "
        f"{n / build:,.0f} rows/s, answers by {att.residual_}"
    )
    per_query = {}
    for m in (1, 1000, n):
        timed = min(m, TIMED)
        scale = m / timed
        ours = best(lambda t=timed: att.transform(Q[:t])) * scale
        exact = best(lambda t=timed: lv.attention(Q[:t], K, V), 1) * scale
        torch = torch_attention(Q[:timed], K, V, threads)
        floor = 4 * m * n * D / rates[0], 4 * m * n_keys * D / rates[1]
        line = f"  {m:>9,} queries: sketch {ours:10.4f} s ({ours / floor[1]:5.1f} x floor)"
        line += f"   lv.attention {exact:10.4f} s"
        if torch is not None:
            line += f"   torch {torch * scale:10.4f} s ({torch * scale / floor[0]:4.1f} x floor)"
            per_query = {"ours": ours / m, "torch": torch * scale / m}
        print(line, flush=True)
    if per_query and per_query["torch"] > per_query["ours"]:
        crossover = build / (per_query["torch"] - per_query["ours"])
        print(f"  crossover at {crossover:,.0f} queries, building included")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[65_536, 1_048_576])
    parser.add_argument("--n-keys", type=int, nargs="+", default=[256])
    parser.add_argument("--residual", nargs="+", default=["closure", "embedding"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    for threads in args.threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        with threadpool_limits(limits=threads):
            rates = gemm_rate(np.float32), gemm_rate(np.float64)
            print(f"sgemm {rates[0] / 1e9:.0f}, dgemm {rates[1] / 1e9:.0f} GFLOP/s")
            for n in args.rows:
                for n_keys in args.n_keys:
                    for residual in args.residual:
                        report(n, n_keys, residual, threads, rates)


if __name__ == "__main__":
    main()
