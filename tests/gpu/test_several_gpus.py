"""Several GPUs of one host: each array is computed where it is, and states are merged."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import levsketch as lv


@pytest.fixture
def devices(cp):
    count = cp.cuda.runtime.getDeviceCount()
    if count < 2:
        pytest.skip("needs two GPUs")
    return range(count)


def placed(cp, device, K):
    with cp.cuda.Device(device):
        return cp.asarray(K)


def test_scores_are_computed_where_the_keys_are(cp, devices):
    K = np.random.default_rng(0).standard_normal((2, 5000, 64)).astype(np.float32)
    for device in devices:
        found = lv.leverage_scores(placed(cp, device, K))
        assert found.device.id == device
        np.testing.assert_allclose(found.get(), lv.leverage_scores(K), rtol=1e-6)


def test_rows_split_over_gpus_are_one_stream(cp, devices):
    K = np.random.default_rng(1).standard_normal((40_000, 32)).astype(np.float32)
    K[12_345] *= 60
    parts = np.array_split(K, len(devices))

    def fit(device):
        return lv.LeverageKeySelector(eps=0.02).fit(placed(cp, device, parts[device]))

    with ThreadPoolExecutor() as pool:
        merged = list(pool.map(fit, devices))
    whole = merged[0]
    for other in merged[1:]:
        whole = whole.merge(other)
    true = lv.LeverageKeySelector(eps=0.02).fit(K)
    np.testing.assert_array_equal(cp.asnumpy(whole.indices_), true.indices_)
    np.testing.assert_allclose(cp.asnumpy(whole.scores_), true.scores_, rtol=1e-6)


def test_heads_split_over_gpus_have_the_same_scores(cp, devices):
    K = np.random.default_rng(2).standard_normal((4, 6000, 128)).astype(np.float16)

    def scores(i):
        return lv.leverage_scores(placed(cp, i % len(devices), K[i : i + 1]))

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(scores, range(4)))
    together = lv.leverage_scores(placed(cp, 0, K)).get()
    for i in range(4):
        np.testing.assert_array_equal(found[i].get()[0], together[i])
