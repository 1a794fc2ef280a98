"""Measure how long Ctrl-C takes: from SIGINT to KeyboardInterrupt, within long calls.

    python benchmarks/interrupts.py --moments 15

Each call runs in a process of its own, once to its end and then ``--moments`` times, stopped by a
SIGINT at a random moment of it. Python looks for signals between bytecodes, so that what is
printed is how long the library stays within one compiled call: median and longest latency in
milliseconds, and the innermost line of levsketch and of any library where the longest wait ended.
Times are of CLOCK_MONOTONIC, which processes share.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

import levsketch as lv


def gaussian(n, d):
    return np.random.default_rng(0).standard_normal((n, d))


def skewed(n, d):
    # condition 1e10: R factors instead of Gram matrices
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)) @ (rng.standard_normal((d, d)) * np.geomspace(1, 1e-10, d))


def scores(K):
    return lambda: lv.leverage_scores(K)


def attention_call():
    Q, K, V = gaussian(4000, 64), gaussian(50_000, 64), gaussian(50_000, 64)
    return lambda: lv.attention(Q, K, V)


def sketch_call():
    K, V = gaussian(200_000, 32), gaussian(200_000, 32)
    return lambda: lv.StreamingAttentionSketch().fit(K, V)


def selector_call():
    K = gaussian(1_000_000, 32)
    return lambda: lv.LeverageKeySelector().fit(K)


def lewis_call(p):
    K = gaussian(200_000, 32)
    return lambda: lv.lewis_weights(K, p)


CALLS = {
    "leverage_scores 1e6 x 64": lambda: scores(gaussian(1_000_000, 64)),
    "leverage_scores 2e5 x 64, cond. 1e10": lambda: scores(skewed(200_000, 64)),
    "leverage_scores 5e4 x 512": lambda: scores(gaussian(50_000, 512)),
    "leverage_scores 2e4 x 512, cond. 1e10": lambda: scores(skewed(20_000, 512)),
    "leverage_scores 2e4 x 1024": lambda: scores(gaussian(20_000, 1024)),
    "leverage_scores 1e4 x 1024, cond. 1e10": lambda: scores(skewed(10_000, 1024)),
    "LeverageKeySelector.fit 1e6 x 32": selector_call,
    "lewis_weights 2e5 x 32, p = 1": lambda: lewis_call(1.0),
    "lewis_weights 2e5 x 32, p = 6": lambda: lewis_call(6.0),
    "attention 4e3 x 5e4 x 64": attention_call,
    "StreamingAttentionSketch.fit 2e5 x 32": sketch_call,
}


def say(**message):
    print(json.dumps(message), flush=True)


def ending_of(error):
    """Return the innermost line of levsketch in a traceback, and the innermost line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "levsketch" in Path(frame.filename).parts]
    ends = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in (*own[-1:], frames[-1])]
    return ", ".join(dict.fromkeys(ends))


def serve(name):
    """Run the call for each line of standard input, and say when and where it was stopped."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    call = CALLS[name]()
    for line in sys.stdin:
        begun, ended = time.monotonic(), None
        try:
            say(begun=begun)
            call()
            ended = time.monotonic()
            while line.strip() == "stop me":  # a signal that comes late must fall in here
                time.sleep(0.01)
        except KeyboardInterrupt as error:
            raised = time.monotonic()
            say(raised=raised, where=ending_of(error), late=ended is not None)
        else:
            say(seconds=ended - begun)


def latencies(name, moments, rng):
    """Return the seconds that the call takes, and (latency, where) for each moment."""
    with subprocess.Popen(
        [sys.executable, __file__, "--child", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:

        def ask(word):
            child.stdin.write(f"{word}\n")
            child.stdin.flush()

        def hear():
            return json.loads(child.stdout.readline())

        seconds = math.inf
        for _ in range(3):  # the first call also pays for what is set up once
            ask("finish")
            hear()
            seconds = min(seconds, hear()["seconds"])
        found = []
        while len(found) < moments:
            ask("stop me")
            begun = hear()["begun"]
            time.sleep(max(0.0, begun + rng.uniform(0.02, 0.95) * seconds - time.monotonic()))
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            answer = hear()
            if not answer["late"]:  # else the call was over before the signal
                found.append((answer["raised"] - sent, answer["where"]))
        child.stdin.close()
    return seconds, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=15)
    parser.add_argument("--only", default="", help="calls whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        serve(args.child)
        return
    rng = random.Random(args.seed)
    print(
        f"{'call':>40} {'seconds':>8} {'median ms':>10} {'longest ms':>11}  where the longest ended"
    )
    for name in CALLS:
        if args.only in name:
            seconds, found = latencies(name, args.moments, rng)
            median = statistics.median(latency for latency, _ in found)
            longest, where = max(found)
            print(
                f"{name:>40} {seconds:>8.2f} {1e3 * median:>10.1f} {1e3 * longest:>11.1f}  {where}",
                flush=True,
            )


if __name__ == "__main__":
    main()
