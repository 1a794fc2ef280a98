"""Attention scores: exact entries, none above eps missing, zeros only where zero is proved."""

from fractions import Fraction

import numpy as np
import oracles
import pytest
import scipy.sparse
from fitting import fit, quiet
from hypothesis import assume, example, given
from hypothesis import strategies as st
from oracles import WIDE, U
from strategies import ENTRIES, gaussian, keys, low_rank, make, tiny_keys

from levsketch import heavy_attention
from levsketch.algorithms import heavy

EPS = st.sampled_from([1e-3, 0.05, 0.3, 0.9])


def entries(Q, K, eps):
    """Return the stored entries as a dense array of values and a mask of what is stored."""
    with quiet():
        found = heavy_attention(Q, K, eps)
    assert isinstance(found, scipy.sparse.csr_array)
    assert found.shape == (len(Q), len(K))
    assert found.has_sorted_indices
    stored = np.zeros(found.shape, bool)
    stored[found.tocoo().coords] = True
    return found.toarray(), stored


@given(tiny_keys(), st.data(), EPS)
@example(np.array([[2.0**-200, -(2.0**-200)], [0.33, 0.33], [0.9, 0.9]]), None, 1e-3)
@example(np.array([[1.0, 1.0], [1.0, 1.0], [1e-300, -1e-300]]), None, 0.5)
@example(np.array([[1.0, 1.0, 0], [1.0, 1.0, 0], [2.0**-60, -(2.0**-60), 0]]), None, 0.5)
def test_every_entry_of_eps_is_there_by_rational_arithmetic(K, data, eps):
    if data is None:
        Q = np.array([[1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])[:, : K.shape[1]]
    else:
        row = st.lists(ENTRIES, min_size=K.shape[1], max_size=K.shape[1])
        Q = np.array(data.draw(st.lists(row, min_size=1, max_size=4)))
    values, stored = entries(Q, K, eps)
    for i, q in enumerate(Q):
        for j, exact in enumerate(oracles.exact_attention(q, K)):
            assert stored[i, j] or exact < Fraction(eps)
            assert 0 <= values[i, j] <= 1 + 1e-15


@given(keys(max_rows=3000, max_columns=6), EPS, st.integers(0, 2**32 - 1))
def test_values_are_those_of_long_double_arithmetic(made, eps, seed):
    with quiet():
        selector = fit(made.K, eps=eps, min_keys=0)
    found = selector._selected().whitening
    assume(found.certified)
    K = np.asarray(made.K, np.float64)
    rng = np.random.default_rng(seed)
    # random queries, in the scale of each column, and the queries that the keys deserve
    Q = rng.standard_normal((5, K.shape[1])) * 2.0 ** -np.frexp(np.abs(K).max(axis=0) + 1e-300)[1]
    values, stored = entries(Q, K, eps)
    exact = np.asarray(oracles.attention(Q, K), float)
    # what rounds: each product, relative to its largest term, against the query's own norm
    wide = np.abs(Q).astype(np.longdouble), np.abs(K).astype(np.longdouble)
    norm = np.sqrt(np.square(Q.astype(np.longdouble) @ K.T.astype(np.longdouble)).sum(axis=1))
    assume((norm > 0).all())
    noise = np.asarray(4 * (K.shape[1] + 2) * (wide[0] @ wide[1].T) / norm[:, None], float) * U
    size = np.sqrt(np.square(wide[0] @ wide[1].T).sum(axis=1)) / norm
    relative = 4 * found.error + 100 * K.shape[1] * U * float(size.max())
    assume(relative < 0.1)
    tolerance = relative * exact + noise**2 + 2 * noise * np.sqrt(exact)
    assert (np.abs(values - exact) <= tolerance)[stored].all()
    assert (exact < eps + tolerance)[~stored].all()
    # and no more than those within rounding of eps
    assert (exact >= eps - 4 * tolerance - 4 * relative * eps)[stored].all()


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e-30, 1e30, 1e300, 1.7e308])
def test_the_length_of_a_query_does_not_matter(size):
    K = make(gaussian, 0, 300, 3).K
    Q = np.array([[1.0, 0, 0], [0, -1.0, 0], [1.0, 1.0, 1.0], [0.0, 1.0, -1.0]])
    values, stored = entries(Q, K, 1e-3)
    scaled, scaled_stored = entries(Q * size, K, 1e-3)
    np.testing.assert_allclose(scaled, values, rtol=1e-13)
    np.testing.assert_array_equal(scaled_stored, stored)


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e300])
def test_the_size_of_the_keys_does_not_matter(size):
    K = np.round(64 * make(gaussian, 1, 300, 3).K) / 64
    Q = np.random.default_rng(0).standard_normal((6, 3))
    values, _ = entries(Q, K, 1e-3)
    scaled, _ = entries(Q, K * 2.0 ** np.round(np.log2(size)), 1e-3)
    np.testing.assert_allclose(scaled, values, rtol=1e-12)


def test_zero_queries_and_queries_orthogonal_to_all_keys_give_rows_of_zeros():
    rng = np.random.default_rng(1)
    K = np.round(rng.standard_normal((200, 4)) * 8)
    K[:, 3] = K[:, 2]
    K[:, 1] = 0.0
    Q = np.array([[0, 0, 0, 0], [0, 1e300, 0, 0], [0, 0, 1.0, -1.0], [0, 7.0, -1e-300, 1e-300]])
    _, stored = entries(Q, K, 1e-9)
    assert not stored.any()
    with quiet():
        selector = fit(K, eps=0.05)
    transformed = selector.transform(Q)
    np.testing.assert_array_equal(transformed, 0.0)


@pytest.mark.parametrize("d", [3, 16, 64])
@pytest.mark.parametrize("size", [2.0**-20, 2.0**-40, 2.0**-44])
def test_a_query_for_a_small_direction_of_deficient_keys_is_not_taken_for_orthogonal(d, size):
    rng = np.random.default_rng(d)
    K = rng.standard_normal((400, d))
    K[:, 1] = K[:, 0]
    K = np.concatenate([K, K[:, -1:]], axis=1)  # deficient for a reason of its own
    K[5] = 0.0
    K[5, :2] = size, -size
    q = np.zeros((1, d + 1))
    q[0, :2] = 1.0, -1.0
    values, stored = entries(q, K, 0.9)
    assert stored[0, 5]
    with quiet():
        found = fit(K, eps=0.9, min_keys=0)._selected().whitening
    if found.error < 0.02:  # else others may come within the error of eps
        assert stored[0].sum() == 1
        assert values[0, 5] >= (1 - found.error) ** 2


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 2, 4, 3), (0, 5, 3)])
def test_leading_axes_are_problems_of_their_own(shape):
    rng = np.random.default_rng(2)
    Q, K = rng.standard_normal(shape), rng.standard_normal((*shape[:-2], 30, 3))
    with quiet():
        found = heavy_attention(Q, K, 0.1)
        assert found.shape == shape[:-2]
        assert found.dtype == object
        for i in np.ndindex(shape[:-2]):
            single = heavy_attention(Q[i], K[i], 0.1)
            np.testing.assert_array_equal(found[i].toarray(), single.toarray())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_values_are_narrow_where_queries_are(dtype):
    rng = np.random.default_rng(3)
    Q, K = (8 * rng.standard_normal((4, 3))).astype(dtype), rng.standard_normal((30, 3))
    with quiet():
        found = heavy_attention(Q, K, 0.1)
    narrow = dtype in (np.float16, np.float32)
    assert found.dtype == (np.float32 if narrow else np.float64)
    with quiet():
        wide = heavy_attention(Q.astype(np.float64), K, 0.1)
    np.testing.assert_allclose(found.toarray(), wide.toarray(), rtol=2e-7 if narrow else 0)


def test_pieces_of_many_queries_are_put_together_in_order(monkeypatch):
    rng = np.random.default_rng(4)
    Q, K = rng.standard_normal((101, 3)), rng.standard_normal((300, 3))
    whole, _ = entries(Q, K, 0.01)
    monkeypatch.setattr(heavy, "_PAIRS", 1000)
    pieces, _ = entries(Q, K, 0.01)
    np.testing.assert_allclose(pieces, whole, rtol=1e-13)


def test_entries_just_above_eps_are_kept_and_just_below_are_not():
    # three equal keys in a direction: a third each, for every query along it
    K = np.array([[1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0]])
    _, stored = entries(np.array([[1.0, 0.0]]), K, 1 / 3)
    assert stored.tolist() == [[True, True, True, False]]
    _, stored = entries(np.array([[1.0, 0.0]]), K, 0.3334)
    assert not stored.any()


@given(keys(max_rows=500, kinds=(low_rank, gaussian)), EPS)
def test_each_key_meets_its_witness(made, eps):
    with quiet():
        selector = fit(made.K, eps=eps, min_keys=0)
        assume(selector.certified_ and len(selector.indices_))
        values, stored = entries(selector.witness_queries(), made.K, eps)
    rows = np.arange(len(selector.indices_))
    error = 4 * selector._selected().whitening.error + WIDE
    assert stored[rows, selector.indices_].all()
    np.testing.assert_allclose(values[rows, selector.indices_], selector.scores_, rtol=error + 1e-9)


def test_entries_for_columns_of_zeros_do_not_scale_the_others_away():
    found = heavy_attention([[1e-200, 1e200]], [[1.0, 0.0], [2.0, 0.0]], 0.05, p=3).toarray()
    np.testing.assert_allclose(found, [[1 / 9, 8 / 9]], rtol=1e-12)


def test_products_that_overflow_are_refused_where_f_has_a_scale():
    with pytest.raises(ValueError, match="overflows for query 1"):
        heavy_attention([[1.0], [1e200]], [[1e200], [1.0]], 0.1, function="huber")


@pytest.mark.parametrize("asked", [{"p": 0.5}, {"p": 1}, {"p": 3}, {"p": 4}, {"p": 7}, {"p": 200}])
def test_scores_for_other_p_are_those_of_long_double_arithmetic(asked):
    rng = np.random.default_rng(5)
    K, Q = rng.standard_normal((700, 3)), rng.standard_normal((40, 3))
    K[::50] *= 3
    products = np.abs(Q.astype(np.longdouble) @ K.T.astype(np.longdouble))
    powers = (products / products.max(axis=1, keepdims=True)) ** asked["p"]
    true = powers / powers.sum(axis=1, keepdims=True)
    with quiet():
        found = heavy_attention(Q, K, 0.03, **asked).toarray()
    np.testing.assert_array_equal(found > 0, true >= 0.03)
    mask = found > 0
    np.testing.assert_allclose(found[mask], true[mask].astype(float), rtol=1e-10)
