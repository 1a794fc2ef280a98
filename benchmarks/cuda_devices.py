"""Time a cache split over the GPUs of one host, by heads and by rows, against one GPU.

    python benchmarks/cuda_devices.py

By heads: `leverage_scores` of each part where it is, a thread for each GPU. By rows: one
`LeverageKeySelector` for each GPU, merged; the selected sets are compared. Wall time, medians.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import cupy as cp
import numpy as np

import levsketch as lv


def made(device, shape, seed):
    """Return Gaussian float32 keys on a device."""
    with cp.cuda.Device(device):
        return cp.random.default_rng(seed).standard_normal(shape, dtype=cp.float32)


def wall(run, repeats=9):
    """Return the median of milliseconds, all devices waited for."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run()
        for device in range(cp.cuda.runtime.getDeviceCount()):
            cp.cuda.Device(device).synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def by_heads(pool, devices, heads=32, n=131072, d=128):
    """Print the time of one GPU with all heads and of several with a part each."""
    alone = made(0, (heads, n, d), 0)
    one = wall(lambda: lv.leverage_scores(alone))
    parts = [made(i, (heads // len(devices), n, d), i) for i in devices]
    split = wall(lambda: list(pool.map(lv.leverage_scores, parts)))
    label = f"heads, ({heads}, {n}, {d}) float32"
    print(f"{label}: {one:.2f} ms, split {split:.2f} ms, x{one / split:.2f}")


def by_rows(pool, devices, n=1 << 23, d=64):
    """Print the time of one GPU with all rows and of several that share and merge."""
    parts = [made(i, (n // len(devices), d), 10 + i) for i in devices]
    for part in parts:
        with part.device:
            part[777] *= 4000.0
    with cp.cuda.Device(0):
        whole = cp.concatenate([cp.asarray(part.get()) for part in parts])

    def fit(K):
        with K.device:
            return lv.LeverageKeySelector(eps=0.01).fit(K)

    def merged():
        found = list(pool.map(fit, parts))
        state = found[0]
        for other in found[1:]:
            state = state.merge(other)
        return state

    one, split = wall(lambda: fit(whole), 3), wall(merged, 3)
    same = np.array_equal(fit(whole).indices_.get(), cp.asnumpy(merged().indices_))
    print(f"rows, ({n}, {d}) float32: {one:.0f} ms, split {split:.0f} ms, x{one / split:.2f}")
    print(f"the same set: {same}")


def main():
    """Print both tables."""
    devices = range(cp.cuda.runtime.getDeviceCount())
    print([cp.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in devices])
    with ThreadPoolExecutor(len(devices)) as pool:
        by_heads(pool, devices)
        by_rows(pool, devices)


if __name__ == "__main__":
    main()
