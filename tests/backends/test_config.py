"""Where passes run: what may be asked for, and what is said where it cannot be had."""

import sys
import threading

import numpy as np
import pytest
import scipy.sparse

import levsketch as lv
from levsketch import backends
from levsketch.backends import CpuBackend, CudaBackend, backend_for, device
from levsketch.backends.config import backend_asked
from levsketch.backends.csr import CsrRows


def test_a_context_holds_inside_and_nowhere_else():
    assert backend_asked() == "auto"
    seen = []
    with lv.config_context(backend="cpu"):
        thread = threading.Thread(target=lambda: seen.append(backend_asked()))
        thread.start()
        thread.join()
        assert backend_asked() == "cpu"
        assert type(backend_for(np.ones((1, 1)))) is CpuBackend
    assert seen == ["auto"]
    with pytest.raises(ZeroDivisionError), lv.config_context(backend="cpu"):
        _ = 1 / 0
    assert backend_asked() == "auto"


def test_a_name_that_is_none_is_refused():
    with (
        pytest.raises(ValueError, match="'auto', 'cpu', 'cuda', got 'gpu'"),
        lv.config_context(backend="gpu"),
    ):
        pass


def test_without_cupy_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import raises ImportError
    with (
        pytest.raises(ImportError, match=r"pip install 'levsketch\[gpu-cuda13\]'"),
        lv.config_context(backend="cuda"),
    ):
        pass
    assert backend_asked() == "auto"
    assert device.gpu_names() == []
    lv.show_versions()


class FarAway:
    """What an array on a GPU looks like from outside."""

    def __dlpack__(self):
        raise AssertionError("nothing may be moved")

    def __dlpack_device__(self):
        return 2, 0


@pytest.mark.parametrize(
    "call",
    [
        lv.leverage_scores,
        lambda X: lv.universal_set(X, 0.1),
        lambda X: lv.LeverageKeySelector().fit(X),
        lambda X: lv.LpSensitivitySelector().fit(X),
        lambda X: lv.lewis_weights(X, 3),
    ],
)
def test_arrays_on_a_gpu_need_cupy_and_say_so(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="need CuPy"):
        call(FarAway())


def test_sparse_rows_stay_on_the_cpu_whatever_is_asked(monkeypatch):
    monkeypatch.setattr(backends, "backend_asked", lambda: "cuda")
    rows = CsrRows.of("X", scipy.sparse.csr_array(np.eye(3)))
    assert type(backend_for(rows)) is CpuBackend
    assert type(backend_for(np.eye(3))) is CudaBackend


def test_a_name_in_the_environment_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("LEVSKETCH_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"LEVSKETCH_BACKEND must be one of .*, got 'gpu'"):
        lv.leverage_scores([[1.0]])
