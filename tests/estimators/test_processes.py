"""Forked children, spawned ones and other threads, after parallel loops have run here."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from fitting import fit, quiet
from strategies import gaussian, make

BEGIN = """
import hashlib, multiprocessing, os, sys, warnings
warnings.simplefilter("error")
import numpy as np
import levsketch as lv
K = np.random.default_rng(0).standard_normal((20000, 24))
def digest(_=None):
    return hashlib.sha256(lv.LeverageKeySelector(eps=0.01).fit(K).to_bytes()).hexdigest()
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
    if sys.version_info >= (3, 12):  # forking with threads is deprecated there, by name
        script = 'warnings.filterwarnings("ignore", category=DeprecationWarning)\n' + script
    assert run(written(tmp_path, BEGIN + script)) == "same\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_pools_of_processes_work_after_parallel_loops(tmp_path, method):
    assert run(written(tmp_path, BEGIN + POOL), method) == "same\n"


def test_importing_changes_nothing_outside(tmp_path):
    assert run(written(tmp_path, IMPORT)) == "same\n"


def test_threads_fitting_their_own_selectors_get_the_same_bytes():
    K = make(gaussian, 0, 12_000, 16).K
    expected = fit(K, eps=0.01).to_bytes()
    found = []

    def work():
        found.append(fit(K, eps=0.01).to_bytes())

    threads = [threading.Thread(target=work) for _ in range(4)]
    with quiet():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 4


def test_reading_while_another_thread_fits_sees_a_committed_state():
    K = make(gaussian, 1, 30_000, 4).K
    selector = fit(K[:1000], eps=0.05)
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
