"""Leverage scores on a GPU: each problem right by itself, whatever the others are."""

import numpy as np
import pytest

import levsketch as lv

TYPES = ["bfloat16", "float16", "float32", "float64"]
# relative errors beside scores of the same values on the CPU
TOLERANCE = {"bfloat16": 1e-5, "float16": 1e-5, "float32": 1e-6, "float64": 1e-9}
SHAPES = [(3, 1), (3, 7), (1, 1024), (17, 63), (64, 4097), (96, 2500), (128, 5000), (200, 1500)]


def gaussian(heads, n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((heads, n, d))


def on_device(cp, K, kind):
    """Return rows of a type on the device, and the same values in float64 on the host."""
    if kind != "bfloat16":
        K = K.astype(kind)
        return cp.asarray(K), K.astype(np.float64)
    torch = pytest.importorskip("torch")
    T = torch.as_tensor(K).to(torch.bfloat16)
    return T.cuda(), T.double().numpy()


def host(x):
    return x.get() if hasattr(x, "get") else x.cpu().numpy()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("d", "n"), SHAPES)
def test_scores_are_those_of_the_cpu(cp, kind, d, n):
    K, exact = on_device(cp, gaussian(3, n, d, seed=d), kind)
    found = lv.leverage_scores(K)
    assert type(found) is type(K)
    assert str(found.dtype).endswith("float64" if kind == "float64" else "float32")
    assert found.device == K.device
    np.testing.assert_allclose(host(found), lv.leverage_scores(exact), rtol=TOLERANCE[kind])
    np.testing.assert_array_equal(host(found), host(lv.leverage_scores(K)))


def hard(seed=0, n=3000, d=32):
    """Return problems that a Gram matrix in low precision would spoil, a name for each."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((8, n, d))
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    base[1] = (base[1] * np.geomspace(1, 1e-6, d)) @ rotation
    base[2] = rng.integers(-2, 3, (n, d // 2)) @ rng.integers(-2, 3, (d // 2, d))
    base[3] *= 1e-4
    base[4] *= 1e3
    base[5, :, 0] = 0.0
    base[5, 17] = 0.0
    base[5, 17, 0] = 1e-3  # alone in its direction
    base[6] = np.repeat(base[6, :30], n // 30, axis=0)
    return base


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_each_problem_is_right_by_itself(cp, kind):
    K, exact = on_device(cp, hard(), kind)
    found, true = host(lv.leverage_scores(K)), lv.leverage_scores(exact)
    for h in range(8):
        np.testing.assert_allclose(found[h], true[h], rtol=2e-5, atol=1e-12, err_msg=str(h))
    assert found[5, 17] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_a_problem_that_is_no_number_spoils_no_other(cp, kind):
    K = gaussian(8, 2000, 64)
    K[3, 1234, 5] = np.nan
    K[6, 7, 0] = np.inf
    device, exact = on_device(cp, K, kind)
    with pytest.raises(ValueError, match=r"problem \(3,\).*row 1234, column 5"):
        lv.leverage_scores(device)
    found = host(lv.leverage_scores(device, nan_policy="propagate"))
    assert np.isnan(found[[3, 6]]).all()
    good = [0, 1, 2, 4, 5, 7]
    np.testing.assert_allclose(found[good], lv.leverage_scores(exact[good]), rtol=TOLERANCE[kind])
    alone = host(lv.leverage_scores(device[good[0] : good[0] + 1]))
    np.testing.assert_array_equal(found[0], alone[0])


def test_ridge_intercept_and_views(cp):
    K = gaussian(2, 3000, 40)
    device = cp.asarray(K)
    for asked in ({"ridge": 3.0}, {"intercept": True}, {"ridge": 1e-3, "intercept": True}):
        found = lv.leverage_scores(device, **asked)
        np.testing.assert_allclose(found.get(), lv.leverage_scores(K, **asked), rtol=1e-9)
    strided = cp.asarray(np.repeat(K, 2, axis=1))[:, ::2, 3:30]
    np.testing.assert_allclose(
        lv.leverage_scores(strided).get(), lv.leverage_scores(K[..., 3:30]), rtol=1e-9
    )
    assert lv.leverage_scores(device[0]).shape == (3000,)
    whole = cp.asarray(np.rint(4 * K).astype(np.int32))
    np.testing.assert_allclose(
        lv.leverage_scores(whole).get(), lv.leverage_scores(np.rint(4 * K)), rtol=1e-9
    )


@pytest.mark.parametrize("kind", TYPES)
def test_universal_sets_are_those_of_the_cpu(cp, kind):
    K = gaussian(2, 20_000, 16, seed=4)
    K[0, 77], K[1, 5000] = 40, 30
    device, exact = on_device(cp, K, kind)
    found, true = host(lv.universal_set(device, 0.02)), lv.universal_set(exact, 0.02)
    np.testing.assert_array_equal(found, true)
    assert found[0, 77]
    assert found[1, 5000]
