"""Threads and BLAS limits: followed where set, restored after, never a change of bits."""

import os
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from levsketch._kernels import blocks
from levsketch.backends import cpu
from levsketch.backends.cpu import CpuBackend, serial_blas, thread_count


def blas_threads():
    return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]


def test_blas_is_serial_inside_and_as_before_outside():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with serial_blas():
            assert set(blas_threads()) == {1}
            with serial_blas():
                assert set(blas_threads()) == {1}
            assert set(blas_threads()) == {1}
        assert blas_threads() == before


def test_blas_is_as_before_when_an_error_passes():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with pytest.raises(KeyError), serial_blas():
            raise KeyError
        assert blas_threads() == before


def test_contexts_that_overlap_keep_blas_serial_and_restore_it():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        first, second = serial_blas(), serial_blas()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(blas_threads()) == {1}  # the second is still inside
        second.__exit__(None, None, None)
        assert blas_threads() == before


def test_threads_in_overlapping_contexts_restore_blas():
    barrier = threading.Barrier(4)

    def work():
        for _ in range(20):
            with serial_blas():
                pass
        barrier.wait()

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert blas_threads() == before


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_openmp_limits_are_followed(limit, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with threadpool_limits(limit, user_api="openmp"):
        assert blocks.max_threads() == limit
        assert 1 <= thread_count() <= limit
        monkeypatch.setenv("OMP_NUM_THREADS", str(limit))
        assert thread_count() == limit  # asked for by name: more than processors, too


def test_little_work_and_forked_children_get_one_thread(monkeypatch):
    with threadpool_limits(2, user_api="openmp"):
        assert thread_count(1000) == 1
        monkeypatch.setattr(cpu, "_forked", True)
        assert thread_count() == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_are_the_same_bits_on_any_number_of_threads(dtype):
    rng = np.random.default_rng(0)
    K, W = rng.standard_normal((20_000, 24)).astype(dtype), np.triu(rng.standard_normal((24, 24)))
    backend, found = CpuBackend(), []
    for limit in (1, 2, 4):
        with threadpool_limits(limit, user_api="openmp"):
            found.append(
                (
                    backend.block_grams(K, 1024).tobytes(),
                    backend.whitened_row_norms(K, W, triangular=True).tobytes(),
                    backend.qr_blocks(K, 1024).tobytes(),
                )
            )
    assert found[0] == found[1] == found[2]


def test_inputs_are_not_written():
    rng = np.random.default_rng(1)
    K, W = rng.standard_normal((3000, 5)), rng.standard_normal((5, 5))
    K.flags.writeable = W.flags.writeable = False
    backend = CpuBackend()
    backend.block_grams(K, 1024)
    backend.whitened_row_norms(K, W)
    backend.qr_blocks(K, 1024)


def test_the_tests_run_on_the_instruction_set_that_was_asked_for():
    # tests of single levels switch: after them, and after their collection, it is back
    level = os.environ.get("LEVSKETCH_SIMD", "")
    if level:
        assert blocks.tiles_name() == level
    else:
        before = blocks.tiles_name()
        cpu.use_instruction_set("")
        assert blocks.tiles_name() == before
