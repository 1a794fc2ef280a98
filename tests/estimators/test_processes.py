"""Forked children, spawned ones and other threads, after parallel loops have run here."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from fitting import every_selector, few_selectors, fit, quiet
from strategies import gaussian, make
from threadpoolctl import threadpool_info

from levsketch import LeverageKeySelector
from levsketch.backends.cpu import serial_blas

BEGIN = """
import hashlib, multiprocessing, os, sys, warnings
warnings.simplefilter("error")
import numpy as np
import levsketch as lv
K = np.random.default_rng(0).standard_normal((20000, 24))
def digest(_=None):
    found = lv.LeverageKeySelector(eps=0.01).fit(K).to_bytes()
    found += lv.LpSensitivitySelector(p=3, eps=0.5, delta=0.5).fit(K[:, :8]).to_bytes()
    found += lv.LpSensitivitySelector(p=4, eps=0.5, refine=True).fit(K[:, :8]).to_bytes()
    return hashlib.sha256(found).hexdigest()
"""

# since Python 3.12 forking with threads is deprecated, by name
FORKING = """
warnings.filterwarnings("ignore", category=DeprecationWarning)
"""

FORK = """
here = digest()  # two OpenMP threads have run by now
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.write(writer, digest().encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert os.read(reader, 99).decode() == here
assert digest() == here
print("same")
"""

FORK_IN_THREAD = """
import threading
here = digest()
found = []
def work():
    child = os.fork()
    if child == 0:
        os._exit(0 if digest() == here else 1)
    found.append(os.waitpid(child, 0)[1])
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert found == [0, 0]
print("same")
"""

POOL = """
if __name__ == "__main__":
    here = digest()
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        assert pool.map(digest, range(3)) == [here] * 3
    print("same")
"""

IMPORT = """
import locale, signal, random
def world():
    return (locale.setlocale(locale.LC_ALL), signal.getsignal(signal.SIGINT), random.getstate(),
            np.geterr(), list(warnings.filters), np.random.get_state()[1].tolist(),
            os.environ.copy(), np.float64(5e-324) * np.float64(1.0))
import numpy as np, os, warnings, scipy.linalg, sklearn.base, joblib, threadpoolctl, scipy.sparse
import sklearn.utils.estimator_checks
before = world()
import levsketch
assert world() == before
print("same")
"""


def run(script, *arguments, limit=60):
    """Run a script in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", script, *arguments],
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(folder, text):
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("script", [FORK, FORK_IN_THREAD], ids=["fork", "fork in threads"])
def test_forked_children_work_after_parallel_loops(tmp_path, script):
    assert run(written(tmp_path, BEGIN + FORKING + script)) == "same\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes_work_after_parallel_loops(tmp_path, method):
    begin = BEGIN + FORKING if method == "fork" else BEGIN
    assert run(written(tmp_path, begin + POOL), method) == "same\n"


def test_importing_changes_nothing_outside(tmp_path):
    assert run(written(tmp_path, IMPORT)) == "same\n"


@every_selector
def test_threads_fitting_their_own_selectors_get_the_same_bytes(new):
    # more columns than BLAS solves on one thread of its own accord: 24, or 21 lifted ones
    K = make(gaussian, 0, 6000, 24 if new is LeverageKeySelector else 6).K
    expected = fit(K, new, eps=0.05).to_bytes()
    found = []

    def work():
        found.append(new(eps=0.05).fit(K).to_bytes())

    threads = [threading.Thread(target=work) for _ in range(4)]
    with quiet():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 4


def test_blas_is_serial_in_a_thread_that_is_not_the_first():
    def blas_threads():
        pools = threadpool_info()
        return {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}

    before, found = blas_threads(), []

    def work():
        with serial_blas():
            found.append(blas_threads())
        found.append(blas_threads())

    work()
    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    work()
    assert found == [{1}, before] * 4


@few_selectors
def test_reading_while_another_thread_fits_sees_a_committed_state(new):
    K = make(gaussian, 1, 30_000, 4).K
    selector = fit(K[:1000], new, eps=0.05)
    with quiet():
        thread = threading.Thread(target=lambda: [selector.partial_fit(K) for _ in range(5)])
        thread.start()
        seen = set()
        while thread.is_alive():
            loaded = type(selector).from_bytes(selector.to_bytes())
            seen.add(loaded.n_samples_seen_)
            assert np.isfinite(loaded.scores_).all()
        thread.join()
    assert seen <= {1000 + 30_000 * i for i in range(6)}
