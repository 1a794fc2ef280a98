"""A stream is its rows: any batching, layout, type or thread count leaves the same bytes."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import oracles
import pytest
from fitting import LP_SELECTORS, every_selector, few_selectors, fit, quiet, split, stream
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import (
    conditioned,
    cuts,
    gaussian,
    growing,
    heavy_tails,
    ill_conditioned,
    keys,
    lone_axis,
    lone_in_hyperplane,
    low_rank,
    make,
    shrinking,
    zero_columns,
)
from threadpoolctl import threadpool_limits

from levsketch import LeverageKeySelector, leverage_scores

VARIANTS = [
    {"eps": 0.05},
    {"eps": 0.5, "min_keys": 4},
    {"n_keys": 7},
    {"eps": 0.05, "intercept": True},
    {"eps": 0.05, "ridge": 0.3},
    # refined sets may rest on all rows at hand, which only fit has
    *({"eps": 0.05, "new": new} for name, new in LP_SELECTORS.items() if name != "refined"),
    {"n_keys": 7, "new": LP_SELECTORS["p=3"]},
]
STREAMS = [
    gaussian,
    conditioned,
    heavy_tails,
    growing,
    shrinking,
    lone_axis,
    zero_columns,
    low_rank,
    lone_in_hyperplane,
]


@pytest.mark.parametrize("params", VARIANTS)
@settings(max_examples=20)
@given(keys(max_rows=5000, max_columns=5), st.data())
@example(make(lone_in_hyperplane, 1, 5000, 3), None)
def test_random_batches_leave_the_bytes_of_one_fit(params, made, data):
    n = len(made.K)
    places = data.draw(cuts(n)) if data else [1, 2, 1023, 1024, 1024, 1025, 4999]
    whole = fit(made.K, **params)
    assert stream(split(made.K, places), **params).to_bytes() == whole.to_bytes()


@few_selectors
@pytest.mark.parametrize("kind", STREAMS)
def test_long_streams_leave_the_same_bytes_in_batches_of_any_size(new, kind):
    # 24 blocks: settlings, runs and prunings fall at the same rows whatever the batches
    K = make(kind, 5, 25_000, 4).K
    whole = fit(K, new, eps=0.02).to_bytes()
    for step in (997, 1024, 1025, 7000):
        places = range(step, len(K), step)
        assert stream(split(K, places), new, eps=0.02).to_bytes() == whole
    one_row_batches = [*range(1, 1100), *range(20_000, 20_050)]
    assert stream(split(K, one_row_batches), new, eps=0.02).to_bytes() == whole


@pytest.mark.parametrize("d", [2, 3, 5, 8, 16, 33])
def test_what_is_computed_for_many_blocks_at_once_has_the_bits_of_one(d):
    # BLAS products round differently with the number of rows: no such thing may be stored
    for seed in range(6):
        K = make(gaussian, seed, 14 * 1024, d).K
        whole = fit(K, eps=0.5)
        assert len(whole._stream.factor.grams) > 1
        assert stream(split(K, range(1024, len(K), 1024)), eps=0.5).to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_has_the_set_and_scores_of_all_rows_at_once(kind):
    K = make(kind, 6, 25_000, 4).K
    selector = stream(split(K, range(3000, len(K), 3000)), eps=0.02, min_keys=0)
    with quiet():
        offline = leverage_scores(K)
    if not selector.certified_:
        assert kind in (growing, shrinking, lone_in_hyperplane, heavy_tails)
        return
    # the R factors differ in their rounding only
    error = selector._selected().whitening.error
    np.testing.assert_allclose(selector.scores_, offline[selector.indices_], rtol=4 * error)
    outside = np.delete(offline, selector.indices_)
    assert outside.max(initial=0) < 0.02 * (1 + 4 * error)
    assert (selector.scores_ >= 0.02 * (1 - 4 * error)).all()
    np.testing.assert_array_equal(selector.keys_, K[selector.indices_])


def memory_map(K, folder):
    path = folder / "keys.npy"
    np.save(path, K)
    return np.load(path, mmap_mode="r")


def misaligned(K):
    raw = np.empty(K.nbytes + 1, np.uint8)
    view = raw[1:].view(K.dtype).reshape(K.shape)
    view[:] = K
    assert not view.flags.aligned
    return view


def read_only(K):
    copy = K.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = {
    "fortran": lambda K, _: np.asfortranarray(K),
    "strided rows": lambda K, _: np.repeat(K, 2, axis=0)[::2],
    "strided columns": lambda K, _: np.repeat(K, 3, axis=1)[:, ::3],
    "negative rows": lambda K, _: np.ascontiguousarray(K[::-1])[::-1],
    "negative columns": lambda K, _: np.ascontiguousarray(K[:, ::-1])[:, ::-1],
    "misaligned": lambda K, _: misaligned(K),
    "big-endian": lambda K, _: K.astype(K.dtype.newbyteorder(">")),
    "read-only": lambda K, _: read_only(K),
    "memmap": memory_map,
    "masked": lambda K, _: np.ma.masked_array(K, np.zeros(K.shape, bool)),
    "subclass": lambda K, _: K.view(type("Sub", (np.ndarray,), {})),
}


@every_selector
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int32])
def test_memory_layout_does_not_change_a_byte_nor_the_input(new, layout, dtype, tmp_path):
    K = (20 * make(gaussian, 7, 3000, 3).K).astype(dtype)
    plain = fit(K, new, eps=0.01)
    given_keys = LAYOUTS[layout](K, tmp_path)
    found = fit(given_keys, new, eps=0.01)
    assert found.to_bytes() == plain.to_bytes()
    np.testing.assert_array_equal(given_keys, K)
    np.testing.assert_array_equal(leverage_scores(given_keys), leverage_scores(K))
    Q = LAYOUTS[layout](K[:7], tmp_path)
    np.testing.assert_array_equal(found.transform(Q), plain.transform(K[:7]))
    np.testing.assert_array_equal(found.score_samples(Q), plain.score_samples(K[:7]))


def without_dtype(data):
    """Return saved bytes with the dtype of the keys and the digest taken out."""
    size = struct.unpack_from("<8sIQ", data)[2]
    header = json.loads(data[20 : 20 + size])
    dtype = header["meta"]["stream"].pop("dtype")
    return dtype, header, data[20 + size : -32]


@every_selector
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64, np.uint16, np.bool_])
def test_narrow_types_leave_the_bytes_of_their_double_copy(new, dtype):
    K = (4 * make(gaussian, 8, 4000, 3).K).astype(dtype)
    name, header, body = without_dtype(fit(K, new, eps=0.01).to_bytes())
    wide = fit(K.astype(np.float64), new, eps=0.01)
    wide_name, wide_header, wide_body = without_dtype(wide.to_bytes())
    assert (name, wide_name) == (np.dtype(dtype).name, "float64")
    assert header == wide_header
    assert body == wide_body


@every_selector
def test_objects_and_long_doubles_are_converted_as_scikit_learn_does(new):
    K = make(gaussian, 8, 1200, 3).K
    plain = fit(K, new, eps=0.01)
    assert fit(K.astype(object), new, eps=0.01).to_bytes() == plain.to_bytes()
    assert fit(K.tolist(), new, eps=0.01).to_bytes() == plain.to_bytes()
    wide = fit(K.astype(np.longdouble), new, eps=0.01)
    np.testing.assert_array_equal(wide.scores_, plain.scores_)
    np.testing.assert_array_equal(
        wide.transform(K[:3].astype(np.longdouble)), plain.transform(K[:3])
    )


@every_selector
def test_half_precision_values_are_squared_wide(new):
    K = np.full((2000, 2), 6e4, np.float16)  # the square of one overflows half precision
    K[5] = [6e4, -6e4]
    selector = fit(K, new, eps=0.9)
    assert selector.indices_.tolist() == [5]
    assert selector.keys_.dtype == np.float16
    np.testing.assert_allclose(selector.scores_, [1.0], rtol=1e-6)  # refined: to that


@few_selectors
@pytest.mark.parametrize("kind", [gaussian, conditioned])
def test_thread_limits_do_not_change_a_byte(new, kind):
    # enough work for parallel loops; BLAS and OpenMP limited apart
    rng = np.random.default_rng(9)
    d = 24 if new is LeverageKeySelector else 12  # lifts have 78 columns
    K = rng.standard_normal((20_000, d))
    if kind is conditioned:
        K = ill_conditioned(rng, 20_000, d, 1e9)
    found = set()
    for limits in (1, 2, 3):
        for api in ("blas", "openmp"):
            with threadpool_limits(limits, user_api=api):
                selector = fit(K, new, eps=0.01)
                with quiet():
                    queries = selector.transform(K[:50]).tobytes()
                queries += selector.score_samples(K).tobytes()
                found.add(selector.to_bytes() + queries + leverage_scores(K).tobytes())
    assert len(found) == 1


SCRIPT = """
import hashlib, sys
import numpy as np
import levsketch as lv
rng = np.random.default_rng(0)
K = rng.standard_normal((20000, 24)) @ np.diag(np.geomspace(1, 1e-9, 24))
K[:, 1:] += K[:, :1]
K[10000:] = rng.standard_normal((10000, 24))
whole = lv.leverage_scores(K).tobytes()
for selector, d in (
    (lv.LeverageKeySelector(eps=0.01), 24),
    (lv.LpSensitivitySelector(eps=0.2), 6),
    (lv.LpSensitivitySelector(p=3, eps=0.2), 6),
):
    selector.fit(K[:, :d])
    whole += selector.to_bytes() + selector.transform(K[:9, :d]).tobytes()
print(hashlib.sha256(whole).hexdigest())
"""


def test_environment_thread_counts_do_not_change_a_byte():
    found = set()
    for omp, blas in (("1", "1"), ("2", "4"), ("7", "2"), (None, None)):
        env = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
        if omp:
            env |= {"OMP_NUM_THREADS": omp, "OPENBLAS_NUM_THREADS": blas}
        run = subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(run.stdout)
    assert len(found) == 1


@every_selector
def test_a_second_fit_forgets_the_first(new):
    K = make(gaussian, 10, 3000, 3).K
    selector = new(eps=0.05)
    with quiet():
        selector.fit(np.ones((10, 7)))
        selector.fit(K)
    assert selector.to_bytes() == fit(K, new, eps=0.05).to_bytes()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 0.02, 0.3]))
def test_scores_of_streams_stay_within_their_guard_after_pruning(seed, eps):
    rng = np.random.default_rng(seed)
    K = ill_conditioned(rng, 12_000, 4, 10.0 ** rng.uniform(0, 11))
    K *= np.exp(2 * rng.standard_normal((len(K), 1)))
    selector = stream(split(K, range(1500, len(K), 1500)), eps=eps, min_keys=0)
    true = oracles.leverage(K)[selector.indices_]
    slack = oracles.slack(K)
    assert selector.certified_
    assert (true * (1 - slack) <= selector.scores_ + selector.guard_).all()
    assert (selector.guard_ >= 0).all()
