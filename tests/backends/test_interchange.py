"""Arrays of other libraries: in without a copy where possible, out in their own kind."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from fitting import fit, quiet
from foreign import LIBRARIES, OTHERS, host
from strategies import gaussian, make

from levsketch import (
    LeverageKeySelector,
    attention,
    heavy_attention,
    leverage_scores,
    universal_set,
)
from levsketch.backends.interchange import (
    is_foreign,
    like,
    result_dtype,
    stored_rows,
    to_numpy,
)

K = make(gaussian, 0, 400, 3).K


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_library_gets_its_own_arrays_with_the_numbers_of_numpy(name, dtype):
    rows = K.astype(dtype)
    X = LIBRARIES[name](rows)
    selector, expected = fit(X, eps=0.02), fit(rows, eps=0.02)
    assert selector.to_bytes() == expected.to_bytes()
    pairs = [
        (selector.indices_, expected.indices_),
        (selector.keys_, expected.keys_),
        (selector.scores_, expected.scores_),
        (selector.guard_, expected.guard_),
        (selector.get_support(), expected.get_support()),
        (selector.transform(X), expected.transform(rows)),
        (selector.score_samples(X), expected.score_samples(rows)),
        (selector.witness_queries(), expected.witness_queries()),
        (selector.select(X), expected.select(rows)),
        (leverage_scores(X), leverage_scores(rows)),
        (attention(X, X, X), attention(rows, rows, rows)),
    ]
    with quiet():
        pairs.append((universal_set(X, 0.02), universal_set(rows, 0.02)))
        heavy = heavy_attention(X, X, 0.02), heavy_attention(rows, rows, 0.02)
    for found, reference in pairs:
        assert type(found) is type(X)
        assert host(found).dtype == reference.dtype
        np.testing.assert_array_equal(host(found), reference)
    np.testing.assert_array_equal(heavy[0].toarray(), heavy[1].toarray())
    np.testing.assert_array_equal(host(X), rows)


@pytest.mark.parametrize("name", LIBRARIES)
def test_selectors_fitted_to_foreign_arrays_copy_pickle_and_hold_no_batch(name):
    selector = fit(LIBRARIES[name](np.repeat(K, 50, axis=0)), eps=0.02, min_keys=0)
    data = selector.to_bytes()
    assert copy.deepcopy(selector).to_bytes() == data
    pickled = pickle.dumps(selector)
    assert pickle.loads(pickled).to_bytes() == data
    # the template of results must not keep the first batch alive
    assert len(pickled) < 3 * len(data) + 40_000
    loaded = LeverageKeySelector.from_bytes(data)
    assert isinstance(loaded.indices_, np.ndarray)


def test_tensors_that_require_gradients_are_read_without_them():
    for name, convert in OTHERS.items():
        if name != "torch":
            continue
        X = convert(K).requires_grad_(True)
        selector = fit(X, eps=0.02)
        assert selector.to_bytes() == fit(K, eps=0.02).to_bytes()
        assert not selector.transform(X).requires_grad
        assert not selector.scores_.requires_grad
        pickle.loads(pickle.dumps(selector))
        copy.deepcopy(selector)


def test_torch_half_types_are_exact_in_single_precision():
    for name, convert in OTHERS.items():
        if name != "torch":
            continue
        import torch

        for half in (torch.bfloat16, torch.float16):
            X = convert(K).to(half)
            selector = fit(X, eps=0.02)
            expected = fit(X.float().numpy(), eps=0.02)
            np.testing.assert_array_equal(host(selector.scores_), expected.scores_)
            assert selector.transform(X).dtype == torch.float32
            assert leverage_scores(X).dtype == torch.float32
            np.testing.assert_array_equal(host(selector.keys_), expected.keys_)


def test_bfloat16_arrays_are_exact_in_single_precision():
    X = K.astype(ml_dtypes.bfloat16)
    selector, expected = fit(X, eps=0.02), fit(X.astype(np.float32), eps=0.02)
    assert selector.to_bytes() == expected.to_bytes()
    np.testing.assert_array_equal(selector.transform(X), expected.transform(X.astype(np.float32)))
    np.testing.assert_array_equal(leverage_scores(X), leverage_scores(X.astype(np.float32)))
    assert selector.keys_.dtype == np.float32


def test_bfloat16_arrays_are_read_where_they_lie():
    X = K.astype(ml_dtypes.bfloat16)
    for part in (X, X[::2, 1:], X.T, X.reshape(2, 200, 3)):
        rows = stored_rows(part)
        assert np.shares_memory(rows.bits, X)
        np.testing.assert_array_equal(np.asarray(rows), part.astype(np.float64))
    for other in (K, K.astype(np.float16), K.tolist(), X.tolist(), X[0, 0], None, "x"):
        assert stored_rows(other) is None
    for name, convert in OTHERS.items():
        assert stored_rows(convert(K)) is None
        if name == "torch":
            import torch

            tensor = convert(K).to(torch.bfloat16).requires_grad_(True)
            rows = stored_rows(tensor[5:].T)
            assert rows.bits.__array_interface__["data"][0] == tensor[5:].data_ptr()
            np.testing.assert_array_equal(np.asarray(rows), X[5:].T.astype(np.float64))


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.int4])
def test_other_narrow_types_are_read_exactly_or_refused_by_name(dtype):
    X = np.array([[1, 2], [0, 1], [3, 1]]).astype(dtype)
    try:
        scores = leverage_scores(X)
    except (TypeError, ValueError) as error:
        assert str(np.dtype(dtype)) in str(error)  # noqa: PT017
    else:
        np.testing.assert_allclose(scores, leverage_scores(X.astype(float)), rtol=1e-6)


class OnAnotherDevice:
    """Looks like an array in the memory of a graphics processor."""

    dtype = np.dtype(np.float64)

    def __dlpack__(self, **kwargs):
        raise BufferError

    def __dlpack_device__(self):
        return 10, 0  # ROCm's


def test_arrays_on_other_devices_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match="neither the CPU nor a GPU of CUDA"):
        to_numpy(OnAnotherDevice())
    with pytest.raises(TypeError, match="neither the CPU nor a GPU of CUDA"):
        LeverageKeySelector().fit(OnAnotherDevice())


def test_dask_arrays_are_refused_with_the_way_out():
    Dask = type("Array", (), {"__module__": "dask.array.core"})
    with pytest.raises(TypeError, match="partial_fit"):
        to_numpy(Dask())


def test_numpy_arrays_lists_and_scalars_pass_unchanged():
    for X in (K, np.float64(3), [1.0, 2.0], "x", None):
        assert to_numpy(X) is X
        assert not is_foreign(X)
        assert like(K, X) is K


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("f2", "f4"),
        ("f4", "f4"),
        ("f8", "f8"),
        ("g", "f8"),
        ("i1", "f8"),
        ("?", "f8"),
        (">f4", "f4"),
    ],
)
def test_results_are_narrow_for_narrow_floats_alone(dtype, expected):
    assert result_dtype(dtype) == np.dtype(expected)
