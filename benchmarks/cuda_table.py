"""Correctness and speed of the CUDA kernels, against float64 and against torch.

    python3 bench.py [check] [speed] [peers] [probe]

Figures are medians of device events; inputs rotate so that none is still in cache.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time

import cupy as cp
import numpy as np
import torch

try:
    from levsketch.backends import cuda_kernels as ck
except ImportError:  # beside the kernels, without the package
    import cuda_kernels as ck

BITS = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64}
failures = []


def to_cupy(t):
    if t.dtype == torch.bfloat16:
        return cp.from_dlpack(t.view(torch.int16)).view(cp.uint16)
    return cp.from_dlpack(t)


def verdict(name, value, bound):
    good = bool(value <= bound)
    if not good:
        failures.append(name)
    print(f"{'ok  ' if good else 'FAIL'} {name}: {value:.2e} (bound {bound:.1e})")


def rows(kind, heads, n, d, seed, *, correlate=0.3):
    gen = torch.Generator("cuda").manual_seed(seed)
    K = torch.randn(heads, n, d, generator=gen, device="cuda", dtype=torch.float64)
    mix = torch.randn(heads, d, d, generator=gen, device="cuda", dtype=torch.float64)
    K = K + correlate * K @ mix / d**0.5
    K = K * torch.exp(torch.randn(heads, n, 1, generator=gen, device="cuda", dtype=torch.float64))
    return K.to(BITS[kind])


def qr_scores(K):
    """Scores by float64 QR, columns scaled."""
    K = K.double()
    K = K / K.norm(dim=-2, keepdim=True)
    Q, _ = torch.linalg.qr(K)
    return (Q * Q).sum(-1)


def relative(found, true):
    return float((torch.as_tensor(found, device="cuda").double() / true - 1).abs().max())


def check_gram(kind, heads, n, d, *, seed=0):
    K = rows(kind, heads, n, d, seed)
    # a strided view: rows and heads padded
    pad = torch.zeros(heads, n + 1, d + 8, dtype=K.dtype, device="cuda")
    pad[:, :n, :d] = K
    wide = K.double()
    true = wide.mT @ wide
    D = wide.norm(dim=1)
    scale = (D[:, :, None] * D[:, None, :]).clamp_min(1e-300)
    bounds = {"fast": 4e-6 if kind in ("bf16", "f16") else 1e-13, "wide": 1e-13}
    weights = torch.rand(heads, n, device="cuda", dtype=torch.float64)
    weighted = (wide * weights[:, :, None]).mT @ (wide * weights[:, :, None])
    for label, bound, G, T in [
        ("gram", bounds["fast"], ck.gram(to_cupy(K)), true),
        ("gram strided", bounds["fast"], ck.gram(to_cupy(pad)[:, :n, :d]), true),
        ("gram wide", bounds["wide"], ck.gram(to_cupy(K), wide=True), true),
        ("gram scaled", bounds["wide"], ck.gram(to_cupy(K), cp.from_dlpack(weights)), weighted),
    ]:
        error = float(((torch.from_dlpack(G) - T).abs() / scale).max()) if d else 0.0
        verdict(f"{label} {kind} ({heads},{n},{d})", error, bound)
    block = 1000
    B = torch.from_dlpack(ck.block_grams(to_cupy(K), block))
    blocks = [wide[:, i : i + block].mT @ wide[:, i : i + block] for i in range(0, n, block)]
    error = float(((B - torch.stack(blocks, 1)).abs() / scale[:, None]).max())
    verdict(f"block_grams {kind} ({heads},{n},{d})", error, bounds["fast"])


def check_norms(kind, heads, n, d, *, seed=1):
    K = rows(kind, heads, n, d, seed)
    gen = torch.Generator("cuda").manual_seed(seed)
    W = torch.randn(heads, d, d, generator=gen, device="cuda", dtype=torch.float64)
    W = W * torch.exp(3 * torch.randn(heads, 1, d, generator=gen, device="cuda", dtype=W.dtype))
    flags = cp.asarray([i % 2 for i in range(heads)], dtype=cp.int32)
    for shape, M in (("full", W), ("upper", W.triu()), ("narrow", W[:, :, : max(1, d // 2)])):
        true = ((K.double() @ M) ** 2).sum(-1)
        absolute = ((K.double().abs() @ M.abs()) ** 2).sum(-1)
        for label, wide in (("fast", None), ("wide", True), ("mixed", flags)):
            poison = cp.full((heads, n), cp.nan, dtype=cp.float64 if kind == "f64" else cp.float32)
            found = torch.from_dlpack(
                ck.row_norms(
                    to_cupy(K),
                    cp.from_dlpack(M.contiguous()),
                    triangular=shape == "upper",
                    wide=wide,
                    out=poison,
                )
            )
            error = float(((found.double() - true).abs() / absolute).max()) if n else 0.0
            narrow = kind in ("bf16", "f16") and label != "wide"
            bound = 2e-6 if narrow else (1e-13 if kind == "f64" else 1.2e-7)
            verdict(f"norms {shape} {label} {kind} ({heads},{n},{d})", error, bound)


def planted(kind, n, d, seed):
    """Heads: plain, scaled 1e-4, scaled 1e3, kappa 1e6, rank-deficient, one NaN, one outlier."""
    K = rows("f64", 7, n, d, seed)
    K[1] *= 1e-4
    K[2] *= 30 if kind == "f16" else 1e3
    if d > 1:
        U, _ = torch.linalg.qr(K[3])
        V, _ = torch.linalg.qr(torch.randn(d, d, device="cuda", dtype=torch.float64))
        K[3] = U * torch.logspace(0, -6, d, device="cuda", dtype=torch.float64) @ V
        K[3] *= n**0.5
    K[6, :, 0] *= 30
    K = K.to(BITS[kind])
    if d > 1:
        K[4, :, d - 1] = K[4, :, 0]
    K[5, n // 3, d // 2] = float("nan")
    return K


def check_chain(kind, n, d, seed=3):
    K = planted(kind, n, d, seed)
    for certified in (False, True):
        scores, found = ck.leverage(to_cupy(K), certified=certified)
        scores = torch.from_dlpack(scores)
        G = ck.gram(to_cupy(K), wide=True if certified else None)
        seen = [bool(cp.isfinite(cp.diagonal(G[i])).all()) for i in range(7)]
        expected = [i != 5 for i in range(7)]
        verdict(f"NaN visible {kind} {n} {d}", float(seen != expected), 0.0)
        info, stats = found.info.get(), found.stats.get()
        wide = found.wide.get()
        for i, label in enumerate(("plain", "1e-4", "1e3", "kappa", "deficient", "nan", "outlier")):
            if i in (4, 5):
                print(
                    f"     {label}: info {info[i]} share/d {stats[i, 0] / d:.2e} wide {wide[i]}"
                    f" scores {scores[i].max().item():.3g}"
                )
                if i == 5:
                    verdict("nan head is infinite", float(not scores[i].isinf().all()), 0.0)
                continue
            true = qr_scores(K[i])
            error = relative(scores[i], true)
            mean = float((scores[i].double() / true - 1).mean())
            bound = 1e-2 if label == "kappa" else 1e-5
            verdict(
                f"scores {kind} ({n},{d}) {label} certified={certified} share/d"
                f" {stats[i, 0] / d:.3g} spread/d {stats[i, 1] / d:.3g} pivot {stats[i, 3]:.1e}"
                f" wide {wide[i]} mean {mean:.1e}",
                error,
                bound,
            )


def check_conditions(kind, n=20000, d=128):
    """The 16-bit path alone, as the columns become dependent: what the limit should be."""
    for power in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        K = rows("f64", 1, n, d, 11)
        U, _ = torch.linalg.qr(K)
        V, _ = torch.linalg.qr(torch.randn(1, d, d, device="cuda", dtype=torch.float64))
        falling = torch.logspace(0, -power, d, device="cuda", dtype=torch.float64)
        K = (U * falling @ V * n**0.5).to(BITS[kind])
        true = qr_scores(K)
        for label, wide in (("fast", None), ("wide Gram", True)):
            found = ck.whiten(ck.gram(to_cupy(K), wide=wide))
            scores = ck.row_norms(to_cupy(K), found.W, triangular=True)
            share, spread = (found.stats[0, :2] / d).tolist()
            error = relative(torch.from_dlpack(scores), true)
            print(
                f"{kind} kappa 1e{power} {label}: share/d {share:.3g} spread/d {spread:.3g}"
                f" limit says {int(found.wide[0])}, error {error:.1e}"
            )
            if not found.wide[0]:
                verdict(f"within the limit {kind} 1e{power}", error, 1e-5)


def check_whiten(d, seed=5):
    gen = torch.Generator("cuda").manual_seed(seed)
    A = torch.randn(9, 3 * d + 5, d, generator=gen, device="cuda", dtype=torch.float64)
    A = A * torch.exp(5 * torch.randn(9, 1, d, generator=gen, device="cuda", dtype=A.dtype))
    G = A.mT @ A
    found = ck.whiten(cp.from_dlpack(G))
    W = torch.from_dlpack(found.W)
    D = G.diagonal(dim1=1, dim2=2).sqrt()
    R = torch.linalg.cholesky(G).mT
    error = ((R / D[:, None]) @ (W * D[:, :, None]) * 1 - torch.eye(d, device="cuda")).abs().max()
    scaled = (R @ W - torch.eye(d, device="cuda", dtype=W.dtype)).abs().max()
    verdict(f"whiten d={d}", float(scaled), 1e-11)
    share = ((W * D[:, :, None]) ** 2).sum((1, 2))
    spread = ((W * D[:, :, None]).abs().sum(1) ** 2).sum(1)
    verdict(f"share d={d}", relative(torch.from_dlpack(found.stats)[:, 0], share), 1e-10)
    verdict(f"spread d={d}", relative(torch.from_dlpack(found.stats)[:, 1], spread), 1e-10)
    verdict(f"lower zero d={d}", float(W.tril(-1).abs().max()), 0.0)
    del error


def check():
    for kind in BITS:
        started = time.time()
        for n, d in (
            (1, 64),
            (7, 3),
            (63, 17),
            (4097, 1),
            (4097, 96),
            (4097, 128),
            (4097, 64),
            (333, 128),
            (4097, 200),
            (20000, 100),
        ):
            check_gram(kind, 3, n, d)
            check_norms(kind, 3, n, d)
        empty = cp.from_dlpack(torch.zeros(2, 0, 64, dtype=torch.float32, device="cuda"))
        sums = ck.gram(empty)
        verdict("no rows", float(sums.shape != (2, 64, 64) or bool(sums.any())), 0.0)
        norms = ck.row_norms(empty, cp.zeros((2, 64, 64)))
        verdict("no norms", float(norms.shape != (2, 0)), 0.0)
        for n, d in ((4097, 64), (4097, 128), (70001, 128), (4097, 17), (4097, 200)):
            check_chain(kind, n, d)
        if kind in ("bf16", "f16"):
            check_conditions(kind)
        K = to_cupy(rows(kind, 8, 30011, 128, 9))
        one, two = ck.leverage(K)[0], ck.leverage(K)[0]
        verdict(f"same bytes {kind}", float(bool((one != two).any())), 0.0)
        print(f"-- {kind}: {time.time() - started:.1f} s")
    for d in (1, 3, 16, 17, 64, 96, 127, 128, 200):
        check_whiten(d)
    big = torch.full((2, 100, 64), 3e4, dtype=torch.float16, device="cuda")
    big[1] = 6e4
    G = ck.gram(to_cupy(big))
    print("f16 3e4, 6e4:", float(G[0, 0, 0]) / (100 * 9e8), float(G[1, 0, 0]) / (100 * 36e8))
    big = torch.full((1, 100, 64), 1e20, dtype=torch.bfloat16, device="cuda")
    print("bf16 1e20:", float(ck.gram(to_cupy(big))[0, 0, 0]))


def timed(run, repeats=30, warm=5):
    for i in range(warm):
        run(i)
    torch.cuda.synchronize()
    events = [cp.cuda.Event() for _ in range(repeats + 1)]
    events[0].record()
    for i in range(repeats):
        run(i)
        events[i + 1].record()
    events[-1].synchronize()
    times = [cp.cuda.get_elapsed_time(a, b) for a, b in itertools.pairwise(events)]
    return statistics.median(times)


def graphed(run, repeats=30):
    """Time of replays of captured launches; NaN where capture fails."""
    try:
        with cp.cuda.Stream(non_blocking=True) as stream:
            run(0)
            stream.synchronize()
            graphs = []
            for i in range(2):
                stream.begin_capture()
                run(i)
                graphs.append(stream.end_capture())
            return timed(lambda i: graphs[i % 2].launch(stream), repeats)
    except Exception as error:
        print("  (capture:", str(error)[:100], ")")
        return float("nan")


def show(label, value, bytes_read=0):
    rate = f"{bytes_read / value / 1e9:6.2f} TB/s" if bytes_read else ""
    print(f"{label:50s} {value:8.4f} ms {rate}", flush=True)


def speed():
    big = torch.randn(64, 8, 300, 128, device="cuda", dtype=torch.float64)
    for d in (128, 64):
        G = cp.ascontiguousarray(cp.from_dlpack((big.mT @ big).contiguous())[:, :, :d, :d])
        show(f"whiten (8, {d}, {d})", timed(lambda i, G=G: ck.whiten(G[i % 64])))
    del big
    for kind, h, n, d in (
        ("bf16", 8, 131072, 128),
        ("f16", 8, 131072, 128),
        ("f32", 8, 131072, 128),
        ("f64", 8, 131072, 128),
        ("bf16", 8, 1048576, 64),
        ("f32", 8, 1048576, 64),
        ("bf16", 32, 131072, 128),
    ):
        speed_of(kind, h, n, d)
        cp.get_default_memory_pool().free_all_blocks()
        torch.cuda.empty_cache()


def speed_of(kind, h, n, d):
    print(f"== {kind} ({h},{n},{d})")
    Ks = [
        to_cupy(torch.randn(h, n, d, device="cuda", dtype=torch.float32).to(BITS[kind]))
        for _ in range(2)
    ]
    narrow, size = kind in ("bf16", "f16"), Ks[0].nbytes
    G = ck.gram(Ks[0])
    W = ck.whiten(G).W
    none = cp.zeros(h, dtype=cp.int32)

    def norms(i, **options):
        return ck.row_norms(Ks[i % 2], W, **options)

    show("gram", timed(lambda i: ck.gram(Ks[i % 2], out=G)), size)
    show("block_grams 4096", timed(lambda i: ck.block_grams(Ks[i % 2], 4096)), size)
    show("row_norms upper", timed(lambda i: norms(i, triangular=True)), size)
    show("row_norms full", timed(norms), size)
    if narrow:
        show("gram wide", timed(lambda i: ck.gram(Ks[i % 2], wide=True, out=G)), size)
        show("gram wide, of no head", timed(lambda i: ck.gram(Ks[i % 2], wide=none, out=G)))
        show("row_norms, flags", timed(lambda i: norms(i, triangular=True, wide=none)), size)
        show("row_norms wide", timed(lambda i: norms(i, triangular=True, wide=True)), size)
    for certified in (False, True) if narrow else (False,):
        label = "chain, wide Gram" if certified else "chain"

        def chain(i, certified=certified):
            return ck.leverage(Ks[i % 2], certified=certified)

        show(label, timed(chain))
        show("  replayed as a graph", graphed(chain))
        torch.cuda.synchronize()
        started = time.perf_counter()
        for i in range(10):
            chain(i)
        show("  host time of it", (time.perf_counter() - started) * 100)
        torch.cuda.synchronize()


def press(K, k=48, dtype=torch.float32):
    K, d = K.to(dtype), K.shape[-1]
    X = torch.matmul(K, torch.randn(1, d, k, device="cuda", dtype=K.dtype) / k**0.5)
    X = X - X.mean(dim=-2, keepdim=True)
    L = torch.linalg.cholesky((X.mT @ X).float() + 1e-3 * torch.eye(k, device="cuda"))
    return (X.float() * torch.cholesky_solve(X.float().mT, L).mT).sum(-1)


def torch_gram(K):
    K = K.float()
    L = torch.linalg.cholesky(K.mT @ K)
    inverse = torch.linalg.solve_triangular(L, torch.eye(K.shape[-1], device="cuda"), upper=False)
    return ((K @ inverse.mT) ** 2).sum(-1)


def torch_qr(K):
    Q, _ = torch.linalg.qr(K.float())
    return (Q * Q).sum(-1)


def peers():
    h, n, d = 8, 131072, 128
    for kind in ("bf16", "f32"):
        Ks = [torch.randn(h, n, d, device="cuda").to(BITS[kind]) for _ in range(2)]
        true = qr_scores(Ks[0])
        runs = {
            "ours": lambda K: torch.from_dlpack(ck.leverage(to_cupy(K))[0]),
            "press formula": press,
            "press formula, products in bf16": lambda K: press(K, 48, torch.bfloat16),
            "torch Gram + Cholesky": torch_gram,
            "torch QR": torch_qr,
        }
        print(f"== {kind} ({h},{n},{d})")
        for name, run in runs.items():
            error = relative(run(Ks[0]), true)
            took = timed(lambda i, run=run, Ks=Ks: run(Ks[i % 2]), 20, 3)
            show(f"{name}, max relative error {error:.1e}", took)


PROBE = r"""
extern "C" __global__ void probe(const unsigned short* b, float c, float* out) {
  // A: row g all ones; B: column g all b[k]
  int lane = threadIdx.x, t = lane & 3;
  unsigned one = 0x3f803f80u;
  unsigned b0 = b[2 * t] | (unsigned)b[2 * t + 1] << 16;
  unsigned b1 = b[2 * t + 8] | (unsigned)b[2 * t + 9] << 16;
  float d[4] = {c, c, c, c};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
   "{%4,%4,%4,%4}, {%5,%6}, {%0,%1,%2,%3};"
   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(one), "r"(b0), "r"(b1));
  if (lane == 0) out[0] = d[0];
}
"""


def probe():
    """How many bits below the largest addend one step of the tensor cores keeps."""
    kernel = cp.RawModule(code=PROBE, options=("-std=c++17",)).get_function("probe")

    def step(values, c):
        b = torch.tensor(values, dtype=torch.bfloat16, device="cuda")
        out = cp.zeros(1, dtype=cp.float32)
        kernel((1,), (32,), (to_cupy(b), np.float32(c), out))
        return float(out[0])

    for j in range(22, 29):
        x = 2.0**-j
        print(
            f"2^-{j}: c=1 + 16 of them: {(step([x] * 16, 1.0) - 1) * 2**23:.3f} ulp of 2^-23;"
            f" c=1 + 8: {(step([x] * 8 + [0] * 8, 1.0) - 1) * 2**23:.3f};"
            f" 1 in the products + 15: {(step([1.0] + [x] * 15, 0.0) - 1) * 2**23:.3f};"
            f" c=1 - 16: {(step([-x] * 16, 1.0) - 1) * 2**23:.3f};"
            f" c=1 - 1: {(step([-x] + [0.0] * 15, 1.0) - 1) * 2**23:.3f}"
        )
    print(
        "truncation: 1 + 1.75 2^-23 as 2^-23 + .75 2^-23:",
        (step([2.0**-23, 0.75 * 2.0**-23] + [0.0] * 14, 1.0) - 1) * 2**23,
    )
    print(
        "subnormal product:",
        step([1e-39] + [0.0] * 15, 0.0),
        "overflow:",
        step([3e38] * 16, 0.0),
        step([-3e38] * 16, -3e38),
    )


if __name__ == "__main__":
    print(cp.cuda.runtime.getDeviceProperties(0)["name"].decode())
    for name in sys.argv[1:] or ["check", "probe", "speed", "peers"]:
        started = time.time()
        {"check": check, "probe": probe, "speed": speed, "peers": peers}[name]()
        print(
            f"-- {name} {time.time() - started:.1f} s; {len(failures)} failures {failures[:12]}",
            flush=True,
        )
