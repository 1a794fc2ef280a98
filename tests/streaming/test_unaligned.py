"""Moments of keys and values from two streams: unbiased, within their deviations, mergeable."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import U
from scipy.stats import binom

from levsketch import LevsketchStateError
from levsketch.sketches.inner_product import make_sketch
from levsketch.streaming.features import feature_maps
from levsketch.streaming.moments import MomentTensors
from levsketch.streaming.unaligned import UnalignedMoments

NAMES = ["ams", "gaussian", "countsketch"]
MAPS = feature_maps(3, [0, 1, 2], 100, 0)
RNG = np.random.default_rng(0)
K, V = RNG.standard_normal((300, 3)) / 2, RNG.standard_normal((300, 2))
V[:, 0] += 3 * K[:, 0] + 20
CENTER = np.array([0.1, -0.1, 0.0])
Q = np.random.default_rng(1).standard_normal((5, 3))
# of exp, by Taylor
P = np.array([1.0, 1.0, 0.5])


@dataclass(frozen=True)
class Identity:
    """Psi = I: nothing is lost, so what comes out must be the moments themselves."""

    size: int

    def project(self, index, X):
        out = np.zeros((self.size, X.shape[1]))
        out[index] = X
        return out


def state(sketch, keys=K, values=V, center=CENTER, first_row=0, maps=MAPS):
    empty = UnalignedMoments.empty(sketch, maps, center, V.shape[1], first_row)
    return empty.update_keys(keys).update_values(values)


def aligned(keys=K, values=V, center=CENTER, maps=MAPS):
    whole = np.column_stack([values, np.ones(len(values))])
    return MomentTensors.empty(maps, center, 1 + values.shape[1]).update(keys, whole)


def close(found, true, keys, values, queries, center):
    """Compare contractions to within rounding, relative to terms that may cancel."""
    n = len(keys)
    whole = np.column_stack([np.abs(values) + np.abs(values).max(axis=0), np.ones(n)])
    sizes = np.abs(queries) @ np.abs(keys - center).T
    top = np.stack([(sizes + sizes.max()) ** r @ whole for r in range(3)], axis=1)
    return (np.abs(found.contract(queries) - true.contract(queries)) <= 64 * n * U * top).all()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.lists(st.integers(0, 60), max_size=4))
def test_with_an_identity_for_a_sketch_the_moments_are_exact(seed, n, cuts):
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1.0, 1e-100, 1e100], 3)
    keys, values = rng.standard_normal((n, 3)) * sizes, rng.standard_normal((n, 2)) + 5
    values *= rng.choice([1.0, 1e-100, 1e100], 2)
    keys[rng.random(n) < 0.2] = 0
    keys[: n // 2] *= 1e-3
    center = rng.choice([0.0, 1.0]) * keys[0]
    found = UnalignedMoments.empty(Identity(60), MAPS, center, 2)
    ends = sorted({*(c for c in cuts if c < n), n})
    for a, b in zip([0, *ends], ends, strict=False):
        found = found.update_keys(keys[a:b])
    for a, b in zip([0, n // 3], [n // 3, n], strict=True):
        found = found.update_values(values[a:b])
    assert (found.n_keys, found.n_values) == (n, n)
    true = aligned(keys, values, center)
    queries = rng.standard_normal((4, 3)) / sizes
    assert close(found.tensors(), true, keys, values, queries, center)
    assert found.tensors().n_rows == n


def test_blocks_of_many_chunks_are_numbered_through():
    keys, values = np.tile(K, (4, 1)) + np.arange(1200.0)[:, None] / 1200, np.tile(V, (4, 1))
    found = state(Identity(1200), keys, values)
    true = aligned(keys, values)
    assert close(found.tensors(), true, keys, values, Q, CENTER)


@pytest.mark.parametrize("name", NAMES)
def test_normalisers_and_sums_of_values_are_exact(name):
    found = state(make_sketch(name, 8, 0)).tensors()
    true = aligned()
    exact = true.contract(Q)
    bound = found.rounding(Q) + true.rounding(Q)
    # the column of ones, within what it says of its rounding
    assert (np.abs(found.contract(Q) - exact) <= bound).all()
    assert np.isfinite(bound[:, :, -1]).all()
    assert np.isinf(bound[:, :, :-1]).all()
    # degree 0: the sums of the values
    np.testing.assert_allclose(found.contract(Q)[:, 0], exact[:, 0], rtol=300 * U)


@pytest.mark.parametrize("name", NAMES)
def test_errors_exceed_two_deviations_no_more_often_than_chebyshev_allows(name):
    # for one query, over seeds; the deviation is itself an estimate, within 3 / sqrt(m2)
    true = np.einsum("r,mrc->mc", P, aligned().contract(Q[:1]))[0, :-1]
    beyond, pulls = 0, []
    for seed in range(200):
        found = state(make_sketch(name, 64, seed))
        output = np.einsum("r,mrc->mc", P, found.tensors().contract(Q[:1]))[0, :-1]
        spread = found.deviations(Q[:1], P)[0]
        pulls.append((output - true) / spread)
        beyond += np.abs(pulls[-1][1]) > 2 * (1 + 3 / 8)
    assert beyond <= binom.ppf(1 - 1e-6, 200, 0.25)
    # unbiased, and the variance between its bound and half of that, for 200 draws
    assert (np.abs(np.mean(pulls, axis=0)) < 5 / np.sqrt(200)).all()
    assert (np.std(pulls, axis=0) > 0.5).all()
    assert (np.std(pulls, axis=0) < 1.25).all()


@pytest.mark.parametrize("name", NAMES)
def test_constant_values_have_no_error(name):
    # of an attention output, what does not depend on the weights must not be sketched
    found = state(make_sketch(name, 4, 3), values=np.full((300, 2), 7.0))
    contracted = found.tensors().contract(Q)
    np.testing.assert_allclose(contracted[:, :, 0], 7 * contracted[:, :, -1], atol=1e-10)
    assert found.deviations(Q, P).max() < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_constant_keys_have_no_error(name):
    found = state(make_sketch(name, 4, 3), keys=np.tile(K[:1], (300, 1)))
    true = aligned(np.tile(K[:1], (300, 1)))
    np.testing.assert_allclose(found.tensors().contract(Q), true.contract(Q), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("swapped", [False, True])
def test_shards_that_follow_one_another_merge(name, swapped):
    sketch = make_sketch(name, 16, 1)
    parts = [state(sketch, K[a:b], V[a:b], first_row=a) for a, b in ((0, 90), (90, 300))]
    merged = parts[1].merge(parts[0]) if swapped else parts[0].merge(parts[1])
    assert (merged.n_keys, merged.n_values) == (300, 300)
    whole = state(sketch)
    np.testing.assert_allclose(merged.tensors().contract(Q), whole.tensors().contract(Q), rtol=1e-9)


def test_keys_and_values_may_be_summed_on_different_machines():
    sketch = make_sketch("ams", 16, 1)
    keys, values = state(sketch, values=V[:0]), state(sketch, keys=K[:0])
    for merged in (keys.merge(values), values.merge(keys)):
        np.testing.assert_array_equal(
            merged.tensors().contract(Q), state(sketch).tensors().contract(Q)
        )


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_shards_of_other_scales_merge(scale):
    sketch = Identity(300)
    keys, values = K.copy(), V.copy()
    keys[90:] *= scale
    values[90:] *= scale
    parts = [state(sketch, keys[a:b], values[a:b], np.zeros(3), a) for a, b in ((0, 90), (90, 300))]
    queries = Q / max(1.0, scale)
    merged = parts[0].merge(parts[1]).tensors()
    assert close(merged, aligned(keys, values, np.zeros(3)), keys, values, queries, np.zeros(3))


def test_shards_with_a_gap_or_twice_are_refused():
    sketch = make_sketch("ams", 16, 1)
    first, last = state(sketch, K[:90], V[:90]), state(sketch, K[91:], V[91:], first_row=91)
    for other in (first, last):
        with pytest.raises(ValueError, match="first_row: keys of rows 0 to 89"):
            first.merge(other)


def test_other_kinds_do_not_merge():
    ams = make_sketch("ams", 16, 1)
    base = state(ams, K[:0], V[:0])
    maps = feature_maps(3, [0, 2, 3], 8, 0)
    one = state(ams, maps=maps)
    for a, b, match in (
        (base, state(make_sketch("ams", 16, 2)), "sketch differ"),
        (base, state(make_sketch("gaussian", 16, 1)), "sketch differ"),
        (base, one, "degrees differ"),
        (one, state(ams, maps=feature_maps(3, [0, 2, 3], 8, 1)), "maps differ"),
        (base, state(ams, center=CENTER + 1), "center differs"),
        (base, UnalignedMoments.empty(ams, MAPS, CENTER, 3), "columns of values differ: 2 and 3"),
    ):
        with pytest.raises(ValueError, match=match):
            a.merge(b)


def test_streams_of_different_lengths_are_not_answered():
    sketch = make_sketch("ams", 16, 1)
    found = state(sketch, values=V[:299])
    for call in (found.tensors, lambda: found.deviations(Q, P)):
        with pytest.raises(LevsketchStateError, match="300 keys from row 0 on, 299 values"):
            call()
    assert found.update_values(V[299:]).tensors().n_rows == 300
    # the same numbers of other rows
    with pytest.raises(LevsketchStateError, match="keys from row 5 on"):
        state(sketch, K, V[:0], first_row=5).merge(state(sketch, K[:0], V)).tensors()


def test_no_rows_have_no_sums():
    found = UnalignedMoments.empty(make_sketch("ams", 16, 1), MAPS, CENTER, 2, first_row=7)
    np.testing.assert_array_equal(found.tensors().contract(Q), 0)
    np.testing.assert_array_equal(found.deviations(Q, P), 0)
    assert found.update_keys(K[:0]).update_values(V[:0]) is found


def test_the_state_is_small_and_immutable():
    sketch = make_sketch("countsketch", 16, 1)
    found = state(sketch)
    assert found.size == 17 * 10 + 16 + 17 * 2
    assert found.nbytes == 8 * (found.size + 3 + 3 + 3 + 2)
    before = found.features.copy(), found.values.copy()
    found.update_keys(1e9 * K).update_values(1e9 * V)
    found.merge(state(sketch, 1e9 * K, 1e9 * V, first_row=300))
    np.testing.assert_array_equal(found.features, before[0])
    np.testing.assert_array_equal(found.values, before[1])
    again = state(sketch, K.astype(np.float64, order="F"), V.astype(np.float64, order="F"))
    assert again.features.tobytes() == found.features.tobytes()
    assert again.values.tobytes() == found.values.tobytes()
