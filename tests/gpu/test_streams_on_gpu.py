"""Estimators and streams whose rows are on a GPU, or are moved there."""

import contextlib

import numpy as np
import pytest

import levsketch as lv
from levsketch import LeverageKeySelector
from levsketch.backends.cuda import CudaBackend
from levsketch.backends.device import DeviceRows


def keys(n=30_000, d=24, seed=0):
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((n, d))
    K[:, 5] *= 1e-5
    K[n // 3] = 0
    K[n // 3, 5] = 1.0
    return K


def ill(n=9000, d=12, seed=1):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) * np.geomspace(1, 1e-9, d)) @ np.linalg.qr(
        rng.standard_normal((d, d))
    )[0]


@pytest.mark.parametrize("make", [keys, ill])
@pytest.mark.parametrize("asked", [{}, {"intercept": True}, {"n_keys": 9}, {"ridge": 0.1}], ids=str)
def test_a_selector_finds_what_it_finds_on_the_cpu(cp, make, asked):
    K = make()
    found = LeverageKeySelector(eps=0.05, **asked).fit(cp.asarray(K))
    true = LeverageKeySelector(eps=0.05, **asked).fit(K)
    assert isinstance(found.indices_, cp.ndarray)
    np.testing.assert_array_equal(found.indices_.get(), true.indices_)
    np.testing.assert_allclose(found.scores_.get(), true.scores_, rtol=1e-5)
    np.testing.assert_array_equal(found.keys_.get(), true.keys_)
    assert found.certified_ == true.certified_
    Q = np.random.default_rng(2).standard_normal((5, K.shape[1]))
    np.testing.assert_allclose(
        found.transform(cp.asarray(Q)).get(), true.transform(Q), rtol=1e-5, atol=1e-12
    )
    np.testing.assert_allclose(
        found.score_samples(cp.asarray(K[:3000])).get(), true.score_samples(K[:3000]), rtol=1e-5
    )


def test_batches_of_any_size_leave_the_same_bytes(cp):
    K = cp.asarray(keys().astype(np.float32))
    whole = LeverageKeySelector(eps=0.05).fit(K).to_bytes()
    for cut in (1, 1000, 4096, 7777):
        parts = LeverageKeySelector(eps=0.05).partial_fit(K[:cut])
        for i in range(cut, len(K), 10_001):
            parts.partial_fit(K[i : i + 10_001])
        assert parts.to_bytes() == whole


def test_streams_of_both_places_are_merged(cp):
    K = keys()
    left = LeverageKeySelector(eps=0.05).fit(cp.asarray(K[:15_000]))
    right = LeverageKeySelector(eps=0.05).fit(K[15_000:])
    true = LeverageKeySelector(eps=0.05).fit(K)
    np.testing.assert_array_equal(left.merge(right).indices_.get(), true.indices_)
    assert lv.LeverageKeySelector.from_bytes(left.to_bytes()).n_samples_seen_ == 15_000


def test_what_is_no_number_is_named_and_changes_nothing(cp):
    K = keys()
    found = LeverageKeySelector(eps=0.05).fit(cp.asarray(K))
    before = found.to_bytes()
    K[12_345, 3] = np.inf
    with pytest.raises(ValueError, match=r"infinity .* row 12345, column 3"):
        found.partial_fit(cp.asarray(K))
    with pytest.raises(ValueError, match="25 features"):
        found.partial_fit(cp.zeros((10, 25)))
    assert found.to_bytes() == before


def test_host_rows_are_moved_when_asked(cp):
    K = keys().astype(np.float32)
    with lv.config_context(backend="cuda"):
        found = LeverageKeySelector(eps=0.05).fit(K)
        scores = lv.leverage_scores(K)
    assert isinstance(found.indices_, np.ndarray)
    assert isinstance(scores, np.ndarray)
    np.testing.assert_array_equal(found.indices_, LeverageKeySelector(eps=0.05).fit(K).indices_)
    np.testing.assert_allclose(scores, lv.leverage_scores(K), rtol=1e-6)
    with lv.config_context(backend="cpu"):
        there = lv.leverage_scores(cp.asarray(K))
    assert isinstance(there, cp.ndarray)
    np.testing.assert_allclose(there.get(), scores, rtol=1e-6)


def test_too_little_memory_means_smaller_parts_then_an_error(cp):
    K = keys(40_000, 64)
    device = cp.asarray(K)
    pool = cp.get_default_memory_pool()
    true = CudaBackend().block_grams(DeviceRows(device), 1024)
    norms = CudaBackend().whitened_row_norms(DeviceRows(device), np.eye(64))
    pool.free_all_blocks()
    used = pool.used_bytes()
    try:
        pool.set_limit(used + (4 << 20))
        np.testing.assert_array_equal(CudaBackend().block_grams(DeviceRows(device), 1024), true)
        moved = CudaBackend().whitened_row_norms(K, np.eye(64))
        np.testing.assert_array_equal(moved, norms)
        pool.free_all_blocks()
        pool.set_limit(pool.total_bytes() + 512)
        filler = []
        for size in (1 << 20, 1 << 14, 512):  # what is free within blocks in use
            with contextlib.suppress(MemoryError):
                while True:
                    filler.append(cp.empty(size, np.uint8))
        with pytest.raises(MemoryError, match="bytes for 1024 rows"):
            CudaBackend().block_grams(DeviceRows(device), 1024)
    finally:
        pool.set_limit(0)


def test_other_estimators_take_arrays_from_the_device(cp):
    rng = np.random.default_rng(0)
    K, V = rng.standard_normal((3000, 4)), rng.standard_normal((3000, 2))
    found = lv.LpSensitivitySelector(p=4, eps=0.1).fit(cp.asarray(K))
    np.testing.assert_array_equal(
        found.indices_.get(), lv.LpSensitivitySelector(p=4, eps=0.1).fit(K).indices_
    )
    sketch = lv.StreamingAttentionSketch(n_keys=16).fit(cp.asarray(K), cp.asarray(V))
    out = sketch.transform(cp.asarray(K[:10]))
    np.testing.assert_allclose(
        out.get(), lv.StreamingAttentionSketch(n_keys=16).fit(K, V).transform(K[:10]), rtol=1e-9
    )
    np.testing.assert_allclose(
        lv.lewis_weights(cp.asarray(K), 3).get(), lv.lewis_weights(K, 3), rtol=1e-9
    )
