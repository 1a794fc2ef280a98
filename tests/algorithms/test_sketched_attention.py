"""Sketched attention of stacks of problems: each as by an estimator of its own."""

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from foreign import LIBRARIES, host
from sketching import drawn
from threadpoolctl import threadpool_limits

from levsketch import StreamingAttentionSketch, attention, sketched_attention


def problems(shape, n=1100, d=3, d_v=2, m=30, dtype=np.float64):
    """Return queries, keys and values of a stack of problems."""
    count = int(np.prod(shape, dtype=int))
    made = [drawn(i, n, d, d_v, m, dtype) for i in range(count)]
    return [
        np.array(parts).reshape(*shape, *np.shape(parts)[1:])
        for parts in ([x.Q for x in made], [x.K for x in made], [x.V for x in made])
    ]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (2, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_problem_has_the_bytes_of_an_estimator_of_its_own(shape, dtype):
    Q, K, V = problems(shape, dtype=dtype)
    params = {"n_keys": 24, "scale": 0.5, "random_state": 3}
    found = sketched_attention(Q, K, V, **params)
    assert found.shape == (*shape, 30, 2)
    assert found.dtype == dtype
    for i in np.ndindex(shape):
        sketch = StreamingAttentionSketch(**params).fit(K[i], V[i], queries=Q[i])
        np.testing.assert_array_equal(found[i], sketch.transform(Q[i]))


@pytest.mark.parametrize("residual", ["embedding", "closure", "polynomial"])
def test_parameters_and_sample_queries_are_those_of_the_estimator(residual):
    Q, K, V = problems((2,))
    sample = np.random.default_rng(0).standard_normal((2, 5000, 3))
    found = sketched_attention(Q, K, V, 30, residual=residual, queries=sample)
    for i in range(2):
        sketch = StreamingAttentionSketch(30, residual=residual)
        sketch.fit(K[i], V[i], queries=sample[i, ::2])  # at most 4,096
        np.testing.assert_array_equal(found[i], sketch.transform(Q[i]))
    other = sketched_attention(Q, K, V, 30, residual=residual)
    assert np.array_equal(found, other) == (residual != "embedding")


def test_few_keys_are_answered_exactly():
    Q, K, V = problems((2, 3), n=400)
    np.testing.assert_allclose(sketched_attention(Q, K, V), attention(Q, K, V), atol=1e-12)


@pytest.mark.parametrize("name", LIBRARIES)
def test_other_libraries_get_their_own_arrays(name):
    convert = LIBRARIES[name]
    Q, K, V = problems((2,))
    found = sketched_attention(convert(Q), convert(K), convert(V), n_keys=24, queries=convert(Q))
    assert type(found) is type(convert(Q))
    np.testing.assert_array_equal(host(found), sketched_attention(Q, K, V, n_keys=24))


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.int8, np.bool_, object, ">f4"]
)
def test_other_types_are_those_numbers(dtype):
    Q, K, V = ((2 * X).astype(dtype) for X in problems((2,)))
    wide = [X.astype(np.float64) for X in (Q, K, V)]
    found, expected = sketched_attention(Q, K, V, 24), sketched_attention(*wide, 24)
    narrow = dtype in (np.float16, ml_dtypes.bfloat16, ">f4")
    assert found.dtype == (np.float32 if narrow else np.float64)
    np.testing.assert_array_equal(found, expected.astype(found.dtype))
    assert sketched_attention(Q, K, wide[2], 24).dtype == np.float64


def test_inputs_of_any_layout_are_read_and_not_written():
    Q, K, V = problems((2,))
    expected = sketched_attention(Q, K, V, 24)
    odd = [np.asfortranarray(Q), np.repeat(K, 2, axis=1)[:, ::2], V[..., ::-1].copy()[..., ::-1]]
    for X in odd:
        X.flags.writeable = False
    np.testing.assert_array_equal(sketched_attention(*odd, 24), expected)
    np.testing.assert_array_equal(sketched_attention(Q.tolist(), K.tolist(), V, 24), expected)


def test_threads_do_not_change_a_bit():
    arrays = problems((3,), d=5)
    found = set()
    for limit in (1, 2):
        for api in ("blas", "openmp"):
            with threadpool_limits(limit, user_api=api):
                found.add(sketched_attention(*arrays, n_keys=24).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_entries_of_any_size_have_answers(size):
    Q, K, V = problems((1,), n=700)
    box = V.min(), V.max()
    for found in (
        sketched_attention(size * Q, K, V, 24),
        sketched_attention(Q, size * K, V, 24),
        sketched_attention(Q, K, size * V, 24) / size,
        sketched_attention(size * Q, K / size, V, 24),
        sketched_attention(size * Q, K, V, 24, scale=1e100),
    ):
        assert ((found >= box[0] * (1 + 1e-9)) & (found <= box[1] * (1 + 1e-9))).all()
    # queries whose covariance is no number tell nothing of their law, unless they are meant to
    if size > 1e155:
        with pytest.raises(ValueError, match="queries must be below"):
            sketched_attention(Q, K, V, 24, queries=size * Q)


def test_stacks_of_no_problems_have_no_answers():
    found = sketched_attention(np.zeros((0, 4, 3)), np.zeros((0, 9, 3)), np.zeros((0, 9, 2)))
    assert found.shape == (0, 4, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named_by_problem_row_and_column(bad):
    for name in ("Q", "K", "V", "queries"):
        arrays = dict(zip("QKV", problems((2, 2), n=60), strict=True))
        arrays["queries"] = arrays["Q"].copy()
        arrays[name][1, 0, 17, 1] = bad
        match = rf"{name}\[1, 0\] contains .* row 17, column 1"
        with pytest.raises(ValueError, match=match):
            sketched_attention(**arrays)
    Q, K, V = problems((), n=60)
    V[59, 0] = bad
    with pytest.raises(ValueError, match=r"V contains .* row 59, column 0"):
        sketched_attention(Q, K, V)


def test_shapes_must_agree():
    Q, K, V = problems((2, 2), n=60)
    for arrays, match in (
        ((Q[0], K, V), "Q of shape"),
        ((Q[..., :2], K, V), "Q of shape"),
        ((Q, K, V[:1]), "V of shape"),
        ((Q, K, V[:, :, 1:]), "V of shape"),
        ((Q[0, 0, 0], K, V), r"Q must have shape \(..., n, d\)"),
        ((Q, K[:, :, :0], V[:, :, :0]), "K must have at least one row"),
        ((Q[:, :, :0], K, V), "Q must have at least one row"),
    ):
        with pytest.raises(ValueError, match=match):
            sketched_attention(*arrays)
    for queries in (Q[0], Q[..., :2], Q[:, :1]):
        with pytest.raises(ValueError, match=r"queries of shape .* must agree"):
            sketched_attention(Q, K, V, queries=queries)
    for X in (K * 1j, K.astype(str), scipy.sparse.csr_array(K[0, 0]), K.astype("datetime64[s]")):
        with pytest.raises((TypeError, ValueError)):
            sketched_attention(Q, X, V)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"n_keys": 0}, "n_keys must be at least 1, got 0"),
        ({"n_keys": 2.5}, "n_keys must be a whole number"),
        ({"n_keys": "3"}, "n_keys must be a whole number"),
        ({"scale": 0.0}, "scale must be in"),
        ({"scale": np.inf}, "scale must be in"),
        ({"scale": 1.1e100}, "scale must be in"),
        ({"scale": "sqrt"}, "scale must be"),
        ({"residual": "exact"}, "residual must be one of"),
        ({"residual": None}, "residual must be one of"),
        ({"random_state": -1}, "random_state must be"),
        ({"random_state": 2.5}, "random_state must be"),
        ({"random_state": None}, "random_state must be"),
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused_by_name_and_value(params, match):
    with pytest.raises((ValueError, TypeError), match=match):
        sketched_attention(*problems((2,), n=60), **params)
