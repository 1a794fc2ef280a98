"""Write a .npy file of random float32 keys, of any size, with a few that matter planted in it.

    python benchmarks/write_keys.py keys.npy --gigabytes 10
    /usr/bin/time -v levsketch select keys.npy --eps 0.05 -o set.npz

Prints the planted row numbers: the universal set at eps = 0.05 is exactly these.
"""

from __future__ import annotations

import argparse

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of 1e9 bytes")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--planted", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    n = int(args.gigabytes * 1e9) // (4 * args.features)
    planted = np.sort(rng.choice(n, args.planted, replace=False))
    # a tenth of all energy in its direction: leverage about 0.1 for each
    loud = rng.standard_normal((args.planted, args.features)).astype(np.float32)
    loud *= np.sqrt(0.12 * n) / np.linalg.norm(loud, axis=1, keepdims=True)
    header = {"descr": "<f4", "fortran_order": False, "shape": (n, args.features)}
    with open(args.path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, n, 1 << 17):
            rows = min(1 << 17, n - start)
            block = rng.standard_normal((rows, args.features), dtype=np.float32)
            here = (planted >= start) & (planted < start + rows)
            block[planted[here] - start] = loud[here]
            block.tofile(file)
    print(f"{args.path}: {n} rows of {args.features}; planted {planted.tolist()}")


if __name__ == "__main__":
    main()
