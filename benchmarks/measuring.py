"""What the benchmark scripts share: threads, keys, turns, the machine's rates, one table printer.

No number comes from a specification: floors are built from the rate of a matrix product and the
bandwidth of reading that are measured in the same run, with the same number of threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits


@contextlib.contextmanager
def limited(threads):
    """Limit BLAS, OpenMP and torch (if loaded) to so many threads; child processes inherit it."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


class OneThread:
    """Base of the asv classes: one thread from `setup` on, whatever the machine has."""

    def setup(self, *params):
        self.limits = threadpool_limits(1)

    def teardown(self, *params):
        self.limits.restore_original_limits()


def make_keys(n, d, dtype=np.float64, condition=None, seed=0):
    """Return Gaussian keys (n, d); with a condition number, stretched geometrically and rotated.

    Made in pieces of a megabyte, so that the peak of memory is the keys themselves.
    """
    rng = np.random.default_rng(seed)
    K, piece = np.empty((n, d), dtype), max(1, (1 << 17) // d)
    mix = np.eye(d)
    if condition is not None:
        mix = (
            np.geomspace(1.0, 1.0 / condition, d)[:, None]
            * np.linalg.qr(rng.standard_normal((d, d)).T)[0]
        )
    for i in range(0, n, piece):
        part = rng.standard_normal(K[i : i + piece].shape)
        K[i : i + piece] = part if condition is None else part @ mix
    return K


def timed(function, *args):
    """Return the seconds of one call."""
    time.sleep(0.05)  # let the threads of the method before stop spinning
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def pairs(ours, theirs, repeats):
    """Return the seconds of two callables that took turns, each one first every other time."""
    mine, other = [], []
    for i in range(repeats):
        for function, seconds in ((ours, mine), (theirs, other))[:: 1 if i % 2 == 0 else -1]:
            seconds.append(timed(function))
    return mine, other


def pair_ratio(ours, theirs):
    """Return the median of the ratios of runs that took turns."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def gemm_rate(size=2048, dtype=np.float64):
    """Return flops per second of a square product, best of five, with the threads in force."""
    A = np.ones((size, size), dtype)
    return 2 * size**3 / min(timed(np.matmul, A, A) for _ in range(5))


def read_rate(threads, bytes_=1 << 30):
    """Return bytes per second that so many threads read together, best of five.

    Each takes the maximum over its own part, in pieces of a few megabytes: np.max releases
    the interpreter lock. Never scaled from one thread: memory is shared.
    """
    parts = np.array_split(np.ones(bytes_ // 8), threads)

    def read(part):
        for i in range(0, len(part), 1 << 19):
            part[i : i + (1 << 19)].max()

    with ThreadPoolExecutor(threads) as pool:
        return bytes_ / min(timed(lambda: list(pool.map(read, parts))) for _ in range(5))


def floor_seconds(K, flops, bandwidth):
    """Return the least time of a two-pass leverage computation at the measured rates.

    The larger of 2 n d^2 flops (n d^2 for half of the Gram matrix, as multiply and add, and
    n d^2 for a triangular product) and two reads of K.
    """
    n, d = K.shape
    return max(2 * n * d * d / flops, 2 * K.nbytes / bandwidth)


class Report:
    """Print tables as they grow, and remember their rows for a JSON file."""

    def __init__(self):
        self.rows, self.name, self.formats = [], "", {}

    def table(self, name, title, **formats):
        """Begin a table; a format is a width, or a width with a type as in "8.4f"."""
        self.name, self.formats = name, formats
        print(f"\n{title}\n" + " ".join(f"{c:>{self.width(c)}}" for c in formats), flush=True)

    def row(self, **values):
        """Print one row (None as "-", text as it is) and keep it."""
        self.rows.append({"table": self.name} | values)
        cells = []
        for column, form in self.formats.items():
            value = "-" if values.get(column) is None else values[column]
            text = value if isinstance(value, str) else format(value, form)
            cells.append(f"{text:>{self.width(column)}}")
        print(" ".join(cells), flush=True)

    def width(self, column):
        """Return how many characters a column takes: its format's, or more for its name."""
        return max(int(re.match(r"\d+", self.formats[column])[0]), len(column))

    def save(self, path):
        """Write rows and environment."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"environment": environment(), "rows": self.rows}, file, indent=1)


def environment():
    """Return what the numbers depend on."""
    import scipy
    import sklearn

    import levsketch

    modules = (np, scipy, sklearn, levsketch)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": {m.__name__: m.__version__ for m in modules},
        "threadpools": [
            {k: i.get(k) for k in ("internal_api", "version", "architecture", "num_threads")}
            for i in threadpool_info()
        ],
    }
