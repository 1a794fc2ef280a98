"""Measure how far a method's memory rises above its keys and its output, in a fresh process.

    python benchmarks/peak_memory.py "NumPy QR" 1000000 64 float64 2

Keys are made first, a small call starts threads and loads libraries, the kernel's high-water
mark is set back to what is resident (5 into /proc/self/clear_refs), and the method is called
once. Printed: bytes of the mark above what was resident, less the output. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings

from measuring import limited, make_keys
from peers import METHODS, installed


def extra_peak(method, n, d, dtype, threads, condition=None):
    """Return the extra bytes at the peak, measured in a child, or None if it cannot be told."""
    command = [sys.executable, os.path.abspath(__file__), method, str(n), str(d), dtype]
    command += [str(threads)] + ([str(condition)] if condition else [])
    done = subprocess.run(command, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None


def status_bytes(field):
    """Return a memory field of /proc/self/status, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(s.split()[1]) << 10 for s in file if s.startswith(field))


def measured(method, n, d, dtype, threads, condition):
    K, scores = make_keys(n, d, dtype, condition), METHODS[method].scores
    installed(method)
    with limited(threads):
        scores(make_keys(1000, 4, dtype), threads)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        before = status_bytes("VmRSS")
        out = scores(K, threads)
        return max(0, status_bytes("VmHWM") - before - out.nbytes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("n", type=int)
    parser.add_argument("d", type=int)
    parser.add_argument("dtype", choices=["float32", "float64"])
    parser.add_argument("threads", type=int)
    parser.add_argument("condition", type=float, nargs="?")
    warnings.simplefilter("ignore")
    print(measured(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
