"""Ctrl-C in the middle of a long call: it ends soon, and nothing is half done."""

import json
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

# CLOCK_MONOTONIC is one for all processes: the parent subtracts its own reading.
CHILD = """
import json, signal, sys, time, warnings
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
import levsketch as lv

def say(**message):
    print(json.dumps(message), flush=True)

warnings.simplefilter("ignore")
signal.signal(signal.SIGINT, signal.default_int_handler)
rng = np.random.default_rng(0)
{setup}
before = state()
begun = time.monotonic()
call()
seconds = time.monotonic() - begun
{setup}
try:
    say(seconds=seconds)
    call()
    while True:  # over before the signal came: the time tells
        time.sleep(0.01)
except KeyboardInterrupt:
    raised = time.monotonic()
say(raised=raised, same=state() == before)
"""

# Windows of one long vector: half a second of work for few bytes.
CALLS = {
    "leverage_scores": """
K = sliding_window_view(rng.standard_normal(1_000_000), 64)
call, state = lambda: lv.leverage_scores(K), lambda: None
""",
    "leverage_scores by R factors": """
K = sliding_window_view(np.cumsum(np.cumsum(rng.standard_normal(500_000))), 48)
call, state = lambda: lv.leverage_scores(K), lambda: None
""",
    "lewis_weights": """
K = sliding_window_view(rng.standard_normal(300_000), 16)
call, state = lambda: lv.lewis_weights(K, 6.0), lambda: None
""",
    "attention": """
Q, K = rng.standard_normal((3000, 32)), rng.standard_normal((40_000, 32))
call, state = lambda: lv.attention(Q, K, K), lambda: None
""",
    "LeverageKeySelector.partial_fit": """
K = sliding_window_view(np.random.default_rng(1).standard_normal(7_000_000), 32)
selector = lv.LeverageKeySelector(eps=0.01).fit(K[:5000])
call, state = lambda: selector.partial_fit(K), selector.to_bytes
""",
    "StreamingAttentionSketch.partial_fit": """
K = np.random.default_rng(1).standard_normal((250_000, 16))
sketch = lv.StreamingAttentionSketch(n_keys=64).fit(K[:5000], K[:5000])
call, state = lambda: sketch.partial_fit(K, K), sketch.to_bytes
""",
}


@pytest.mark.parametrize("setup", CALLS.values(), ids=CALLS)
def test_an_interrupt_ends_a_long_call_and_changes_nothing(setup, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(setup=setup))
    with subprocess.Popen(
        [sys.executable, "-P", str(script)], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            seconds = json.loads(child.stdout.readline())["seconds"]
            time.sleep(seconds / 4)
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            answer = json.loads(child.stdout.readline())
        finally:
            child.kill()  # a child that never answers must not hold up the others
    print(f"{seconds:.2f} s, interrupted after {answer['raised'] - sent:.3f} s")
    # three quarters of the call were to come; the half of it allows for a busy machine
    assert answer["raised"] - sent < seconds / 2
    assert answer["same"]
