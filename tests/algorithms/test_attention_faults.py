"""attention: types, layouts, libraries and threads change nothing; what is refused says why."""

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from attending import LONG, blocks, drawn
from foreign import LIBRARIES, host
from oracles import U
from threadpoolctl import threadpool_limits

from levsketch import attention
from levsketch.functions import Huber, Power, Tukey

NARROW = [np.float16, np.float32, ml_dtypes.bfloat16, ">f4"]
WIDE_TYPES = [np.float64, np.longdouble, np.int8, np.uint64, np.bool_, ">f8"]


@pytest.mark.parametrize("dtype", [*NARROW, *WIDE_TYPES], ids=str)
def test_every_type_is_read_exactly_and_narrow_ones_give_single_precision(dtype):
    arrays = [np.abs(np.round(8 * X)).astype(dtype) for X in drawn(4, 7, 30, 3, 2)]
    wide = [X.astype(np.float64) for X in arrays]
    expected = attention(*wide)
    found = attention(*arrays)
    assert found.dtype == (np.float32 if dtype in NARROW else np.float64)
    np.testing.assert_array_equal(found, expected.astype(found.dtype))
    # one wide array among three makes the result wide
    for i in range(3):
        mixed = [wide[j] if i == j else arrays[j] for j in range(3)]
        found = attention(*mixed, sample_weight=np.ones(30))
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)


def misaligned(X):
    buffer = np.zeros(X.nbytes + 1, np.uint8)
    out = buffer[1:].view(X.dtype).reshape(X.shape)
    out[...] = X
    return out


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "strided": lambda X: np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3],
    "backwards": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "misaligned": misaligned,
    "big-endian": lambda X: X.astype(X.dtype.newbyteorder(">")),
    "lists": lambda X: X.tolist(),
    "objects": lambda X: X.astype(object),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("f", ["softmax", 3, "tukey"])
def test_memory_layouts_do_not_change_a_bit_and_nothing_is_written(layout, f):
    arrays = drawn(5, 70, 50, 4, 3)
    w = np.arange(50.0)
    expected = attention(*arrays, f, sample_weight=w)
    for X in (*arrays, w):
        X.setflags(write=False)
    np.testing.assert_array_equal(attention(*arrays, f, sample_weight=w), expected)
    laid = [layout(X) for X in arrays]
    np.testing.assert_array_equal(attention(*laid, f, sample_weight=layout(w[None])[0]), expected)
    for X, Y in zip(laid, arrays, strict=True):
        np.testing.assert_array_equal(np.asarray(X, float), Y)


@pytest.mark.parametrize("name", LIBRARIES)
def test_results_come_in_the_library_of_the_queries(name):
    arrays = drawn(6, 7, 30, 3, 2, dtype=np.float32)
    expected = attention(*arrays, sample_weight=np.arange(30.0))
    convert = LIBRARIES[name]
    found = attention(*map(convert, arrays), sample_weight=convert(np.arange(30.0)))
    assert type(found) is type(convert(arrays[0]))
    assert host(found).dtype == np.float32
    np.testing.assert_array_equal(host(found), expected)
    assert isinstance(attention(arrays[0], *map(convert, arrays[1:])), np.ndarray)


@pytest.mark.parametrize("f", ["softmax", 4, "huber"])
def test_thread_counts_do_not_change_a_bit(f):
    # more than one task, segment and block
    Q, K, V = drawn(7, 700, 5000, 24, 8)
    found = set()
    for limit in (1, 2, 3):
        for api in ("blas", "openmp"):
            with threadpool_limits(limit, user_api=api), blocks(entries=1 << 16):
                found.add(attention(Q, K, V, f).tobytes())
    assert len(found) == 1


def test_functions_may_be_given_by_name_number_or_instance():
    Q, K, V = drawn(9, 7, 30, 3, 2)
    for given_, same in (
        (2, Power(2.0)),
        (np.float32(4), Power(4.0)),
        ("huber", Huber()),
        ("power", Power(2.0)),
        ("tukey", Tukey()),
    ):
        np.testing.assert_array_equal(attention(Q, K, V, given_), attention(Q, K, V, same))
    assert (attention(Q, K, V, 2) != attention(Q, K, V)).any()
    # with a scale of its own, f depends on that of the products
    assert (attention(Q, K, V, "huber", scale=9) != attention(Q, K, V, "huber")).any()


GOOD = np.ones((4, 3))


def spoilt(value, row, column):
    X = np.ones((50, 3))
    X[row, column] = value
    return X


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 24, 25, 49])
@pytest.mark.parametrize("name", ["Q", "K", "V"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, ml_dtypes.bfloat16, np.longdouble])
def test_values_that_are_not_finite_are_named_by_row_and_column(value, row, name, dtype):
    arrays = {x: np.ones((50, 3)) for x in "QKV"}
    arrays[name] = spoilt(value, row, 1).astype(dtype)
    word = "NaN" if np.isnan(value) else "infinity"
    text = f"{name} contains {word}.* at row {row}, column 1"
    # also where the key has no weight
    w = np.where(np.arange(50) == row, 0.0, 1.0)
    for weight in (None, w):
        with blocks(entries=60), pytest.raises(ValueError, match=text):
            attention(**arrays, sample_weight=weight)


def test_long_doubles_beyond_float64_are_refused_with_their_place():
    far = np.ones((50, 3), LONG)
    far[7, 2] = LONG(10) ** 400
    for name in "QKV":
        arrays = {x: np.ones((50, 3)) for x in "QKV"} | {name: far}
        with pytest.raises(ValueError, match=f"{name} contains infinity.* row 7, column 2"):
            attention(**arrays)


REFUSED = {
    "widths": ((np.ones((2, 4)), GOOD, GOOD), r"Q of shape \(2, 4\) and K of shape \(4, 3\) must"),
    "rows": ((GOOD, GOOD, np.ones((5, 3))), r"V of shape \(5, 3\) and K of shape \(4, 3\) must"),
    "lead": ((GOOD, GOOD[None], GOOD[None]), r"Q of shape \(4, 3\) and K of shape \(1, 4, 3\)"),
    "lead of V": ((GOOD, GOOD, GOOD[None]), r"V of shape \(1, 4, 3\) and K of shape \(4, 3\)"),
    "no keys": ((GOOD, GOOD[:0], GOOD[:0]), r"K must have at least one row.* \(0, 3\)"),
    "no queries": ((GOOD[:0], GOOD, GOOD), r"Q must have at least one row.* \(0, 3\)"),
    "no columns": ((GOOD, GOOD, GOOD[:, :0]), r"V must have at least one row and column"),
    "1-D": ((GOOD, GOOD, GOOD[0]), r"V must have shape \(..., n, d\), got shape \(3,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_shapes_that_do_not_match_are_named(case):
    arrays, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        attention(*arrays)


@pytest.mark.parametrize(
    "bad", [scipy.sparse.csr_array(GOOD), GOOD * 1j, np.full((4, 3), "a"), GOOD.astype("M8[s]")]
)
def test_arrays_that_hold_no_real_numbers_are_refused(bad):
    for arrays in ((bad, GOOD, GOOD), (GOOD, bad, GOOD), (GOOD, GOOD, bad)):
        with pytest.raises(TypeError, match=r"dense rows|real numbers"):
            attention(*arrays)


@pytest.mark.parametrize(
    ("weight", "error", "text"),
    [
        ([1.0, -1.0, 1.0, 1.0], ValueError, "finite and >= 0, got -1.0 at row 1"),
        ([1.0, 1.0, np.nan, 1.0], ValueError, "finite and >= 0, got nan at row 2"),
        ([np.inf, 1.0, 1.0, 1.0], ValueError, "finite and >= 0, got inf at row 0"),
        ([0.0, 0.0, 0.0, 0.0], ValueError, "sample_weight must not be all zero"),
        ([1.0, 1.0], ValueError, r"must have shape \(4,\) or \(4,\).* got \(2,\)"),
        (np.ones((1, 4)), ValueError, r"must have shape \(4,\).* got \(1, 4\)"),
        (["a"] * 4, TypeError, "sample_weight must hold real numbers"),
    ],
)
def test_weights_that_mean_nothing_are_refused_with_their_place(weight, error, text):
    with pytest.raises(error, match=text):
        attention(GOOD, GOOD, GOOD, sample_weight=weight)
    if np.ndim(weight) == 1 and len(weight) == 4 and error is ValueError:
        stack = np.stack([np.ones(4), weight])
        with pytest.raises(error, match=text):
            attention(*[np.stack([GOOD, GOOD])] * 3, sample_weight=stack)


@pytest.mark.parametrize(
    ("f", "error", "text"),
    [
        ("hubert", ValueError, r"f must be \"softmax\", a number p > 0.*'huber'.*got 'hubert'"),
        (0, ValueError, r"f must be in \(0, inf\), got 0"),
        (-2.0, ValueError, r"f must be in \(0, inf\), got -2.0"),
        (np.nan, ValueError, "f must be in"),
        (True, TypeError, 'f must be "softmax".*got True'),
        (None, TypeError, 'f must be "softmax".*got None'),
        (np.exp, TypeError, 'f must be "softmax"'),
    ],
)
def test_functions_that_are_unknown_are_refused(f, error, text):
    with pytest.raises(error, match=text):
        attention(GOOD, GOOD, GOOD, f)


@pytest.mark.parametrize("scale", [0, -1.0, np.nan, np.inf, 1e101, "sqrt", None, True])
def test_scales_must_be_positive_numbers(scale):
    with pytest.raises((ValueError, TypeError), match="scale must be"):
        attention(GOOD, GOOD, GOOD, scale=scale)


def test_products_that_overflow_are_refused_where_f_has_a_scale():
    Q, K, V = np.array([[1.0], [1e200]]), np.array([[1e200], [1.0]]), np.array([[1.0], [2.0]])
    with pytest.raises(ValueError, match="overflows for query 1: f='huber' has a scale"):
        attention(Q, K, V, "huber")
    # which is no matter where f is constant far away
    np.testing.assert_allclose(attention(Q, K, V, Tukey(1e-3)), [[1.5], [1.5]], rtol=4 * U)


def test_what_numpy_is_told_about_errors_does_not_matter():
    Q, K, V = drawn(11, 9, 40, 3, 2, 1e3)
    Q[0], K[3], V[5] = 1e200, 1e200, 1e-300
    for f in ("softmax", 4, "tukey"):
        expected = attention(Q, K, V, f)
        with np.errstate(all="raise"):
            np.testing.assert_array_equal(attention(Q, K, V, f), expected)
