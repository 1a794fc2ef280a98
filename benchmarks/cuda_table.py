"""Time leverage_scores of stacks on a GPU against its floor, what people use, and attention.

    python benchmarks/cuda_table.py [--peers] [--prefill] [--heads] [--stream]

Medians of device events over inputs that take turns, so that none is still in cache; "wall" is the
time of the host, from call to call. The floor is two reads of K at the bandwidth that a large
copy has in the same run. Errors are the largest relative ones beside scores by a float64 QR.
`--heads` shows problems that low precision would spoil; `--stream` reads 100 million keys from host
memory.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import cupy as cp
import numpy as np
import torch

import levsketch as lv

CASES = [
    ("bfloat16", (8, 131072, 128), 0.50),
    ("float16", (8, 131072, 128), 0.50),
    ("float32", (8, 131072, 128), 1.5),
    ("float64", (8, 131072, 128), 3.0),
    ("bfloat16", (8, 1048576, 64), 1.6),
    ("float32", (8, 1048576, 64), None),
    ("bfloat16", (32, 131072, 128), None),
]


def timed(run, repeats=40, warm=8):
    """Return the medians of milliseconds between device events, and of the host's wall time."""
    for i in range(warm):
        run(i)
    torch.cuda.synchronize()
    events, walls = [cp.cuda.Event() for _ in range(repeats + 1)], []
    events[0].record()
    for i in range(repeats):
        start = time.perf_counter()
        run(i)
        walls.append(1e3 * (time.perf_counter() - start))
        events[i + 1].record()
    events[-1].synchronize()
    spans = [cp.cuda.get_elapsed_time(a, b) for a, b in itertools.pairwise(events)]
    return statistics.median(spans), statistics.median(walls)


def keys(kind, shape, count=2):
    """Return Gaussian keys, several times."""
    dtype = getattr(torch, kind)
    return [torch.randn(shape, device="cuda").to(dtype) for _ in range(count)]


def free():
    """Return what both libraries keep to the device."""
    cp.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


def qr_scores(K):
    """Return scores by float64 QR of columns of unit norm."""
    K = K.double()
    Q, _ = torch.linalg.qr(K / K.norm(dim=-2, keepdim=True))
    return (Q * Q).sum(-1)


def relative(found, true):
    """Return the largest relative error."""
    return float((found.double() / true - 1).abs().max())


def read_rate():
    """Return bytes per second that a copy reads and writes together."""
    A = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    B = torch.empty_like(A)
    return 2e3 * A.numel() / timed(lambda i: B.copy_(A), 10)[0]


def scores_table(rate):
    """Print time over floor of every case."""
    print(f"\nleverage_scores; copies run at {rate / 1e12:.2f} TB/s")
    print(f"{'keys':>26} {'ms':>7} {'wall':>7} {'target':>7} {'x floor':>8} {'error':>9}")
    for kind, shape, target in CASES:
        Ks = keys(kind, shape)
        took, wall = timed(lambda i, Ks=Ks: lv.leverage_scores(Ks[i % 2]))
        floor = 2e3 * Ks[0].numel() * Ks[0].element_size() / rate
        K = Ks[0][:1]
        error = relative(lv.leverage_scores(K), qr_scores(K))
        label = f"{kind} {shape}"
        times = f"{took:7.3f} {wall:7.3f} {target or '-':>7} {took / floor:8.2f}"
        print(f"{label:>26} {times} {error:9.1e}")
        del Ks, K
        free()


def press(K, k=48):
    """Return what a KV-compression press computes: leverage of a random projection, centred."""
    K, d = K.float(), K.shape[-1]
    X = torch.matmul(K, torch.randn(1, d, k, device="cuda") / k**0.5)
    X = X - X.mean(dim=-2, keepdim=True)
    L = torch.linalg.cholesky(X.mT @ X + 1e-3 * torch.eye(k, device="cuda"))
    return (X * torch.cholesky_solve(X.mT, L).mT).sum(-1)


def gram_scores(K):
    """Return scores by a Gram matrix in float32, the inverse of its factor and a product."""
    K = K.float()
    L = torch.linalg.cholesky(K.mT @ K)
    inverse = torch.linalg.solve_triangular(L, torch.eye(K.shape[-1], device="cuda"), upper=False)
    return ((K @ inverse.mT) ** 2).sum(-1)


def float32_qr(K):
    """Return scores by torch's QR in float32."""
    Q, _ = torch.linalg.qr(K.float())
    return (Q * Q).sum(-1)


def peers_table():
    """Print what other ways take, and what their errors are."""
    methods = {
        "levsketch": lv.leverage_scores,
        "press formula": press,
        "torch Gram + Cholesky": gram_scores,
        "torch QR": float32_qr,
    }
    for kind in ("bfloat16", "float32"):
        Ks, ours = keys(kind, (8, 131072, 128)), None
        true = qr_scores(Ks[0])
        print(f"\nPeers, {kind} (8, 131072, 128)")
        for name, method in methods.items():
            error = relative(method(Ks[0]), true)
            took, _ = timed(lambda i, method=method, Ks=Ks: method(Ks[i % 2]), 20, 3)
            ours = ours or took
            print(f"{name:>24} {took:8.3f} ms  x{took / ours:6.1f}  error {error:.1e}")
        del Ks, true
        free()


def prefill_table(n=131072):
    """Print which share of a causal prefill the scores of its keys cost."""
    Q = torch.randn(1, 32, n, 128, device="cuda", dtype=torch.bfloat16)
    K, V = (torch.randn(1, 8, n, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    whole, _ = timed(lambda i: attend(Q, K, V, is_causal=True, enable_gqa=True), 3, 1)
    ours, _ = timed(lambda i: lv.leverage_scores(K))
    print(f"\nCausal prefill, n = {n}, 32 query and 8 KV heads: {whole:.1f} ms; scores of the keys")
    print(f"{ours:.3f} ms, {100 * ours / whole:.2f} % of it")


def heads_table(n=20000, d=64):
    """Print errors head by head where one or the other is hard."""
    rng = np.random.default_rng(0)
    K = rng.standard_normal((8, n, d))
    K[1] = (K[1] * np.geomspace(1, 1e-6, d)) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    K[2] = rng.integers(-3, 4, (n, d // 2)) @ rng.integers(-2, 3, (d // 2, d))
    K[3] *= 1e-4
    K[4] *= 1e3
    K[5, n // 2, 7] = np.nan
    names = ["plain", "cond. 1e6", "rank d / 2", "times 1e-4", "times 1e3", "NaN", "plain", "plain"]
    for kind in ("bfloat16", "float32", "float64"):
        T = torch.as_tensor(K).to(getattr(torch, kind)).cuda()
        found = lv.leverage_scores(T, nan_policy="propagate").double().cpu().numpy()
        true = lv.leverage_scores(T.double().cpu().numpy(), nan_policy="propagate")
        took, _ = timed(lambda i, T=T: lv.leverage_scores(T, nan_policy="propagate"), 5, 1)
        print(f"\n{kind} (8, {n}, {d}), {took:.2f} ms")
        for name, a, b in zip(names, found, true, strict=True):
            error = np.abs(a / b - 1).max() if np.isfinite(b).all() else np.nan
            print(f"{name:>12}: error {error:.1e}, sum {a.sum():.6g}")


def stream_table(total=100_000_000, n=1 << 22, d=64):
    """Print how fast a selector reads keys from host memory, beside the bus."""
    blocks = [np.random.default_rng(i).standard_normal((n, d), dtype=np.float32) for i in range(2)]
    pinned = torch.empty((n, d), pin_memory=True)
    there = torch.empty((n, d), device="cuda")
    bus = pinned.nbytes / timed(lambda i: there.copy_(pinned, non_blocking=True), 10)[0] * 1e3
    for backend in ("cuda", "cpu"):
        selector = lv.LeverageKeySelector(eps=0.01)
        start = time.perf_counter()
        with lv.config_context(backend=backend):
            for i in range(total // n if backend == "cuda" else 4):
                selector.partial_fit(blocks[i % 2])
        seen = selector.n_samples_seen_
        rate = seen / (time.perf_counter() - start)
        print(
            f"\n{seen} keys of {d} float32 on {backend}: {rate / 1e6:.1f} million rows/s; "
            f"the bus carries {bus / pinned.nbytes * n / 1e6:.0f}"
        )


def main():
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("peers", "prefill", "heads", "stream"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    print(cp.cuda.runtime.getDeviceProperties(0)["name"].decode())
    scores_table(read_rate())
    for name in ("peers", "prefill", "heads", "stream"):
        if getattr(args, name):
            globals()[f"{name}_table"]()
            free()


if __name__ == "__main__":
    main()
