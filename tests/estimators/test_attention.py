"""StreamingAttentionSketch: what it answers, what is certain of that, and what it shows."""

import threading

import numpy as np
import pytest
from foreign import OTHERS, host
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sketching import (
    APART,
    FEW,
    SKETCHES,
    drawn,
    every_sketch,
    exact,
    few_sketches,
    fit,
    public,
    quiet,
    stream,
)
from sklearn.metrics import r2_score
from strategies import cuts
from threadpoolctl import threadpool_limits

from levsketch import StreamingAttentionSketch, attention

DATA = drawn(0)
ROUNDING = 1e-12  # of outputs near one, a few thousand units: sums of thousands of rows
SOFTMAX = {name: new for name, new in SKETCHES.items() if name != "power"}


def errors(sketch, data, sample_weight=None):
    """Return the length of the error of each output."""
    with quiet():
        return np.linalg.norm(sketch.transform(data.Q) - exact(data, sketch, sample_weight), axis=1)


# -- what it answers


@every_sketch
@pytest.mark.parametrize("n", [1, 2, 20, 500])
def test_few_rows_are_answered_exactly(new, n):
    data = drawn(1, n)
    sketch = fit(data, new)
    bound = sketch.error_bound(data.Q)
    assert (errors(sketch, data) <= bound + ROUNDING).all()
    # to powers of queries that are nearly orthogonal to all keys, moments have few digits
    assert (
        bound.max() < (1e3 * ROUNDING if sketch.function == "softmax" or n > 9 else 1e-4) or n < 3
    )
    assert (sketch.covered_mass(data.Q) == 1.0).all()
    assert sketch.n_samples_seen_ == n
    assert (sketch.n_features_in_, sketch.n_outputs_) == (3, 2)
    if sketch.function == "softmax":
        assert sketch.residual_ == "exact"
        np.testing.assert_array_equal(sketch.indices_, np.arange(n))


def test_powers_are_exact_for_any_number_of_rows():
    for p in (2, 4, 6.0, np.float32(8)):
        sketch = fit(DATA, lambda p=p: StreamingAttentionSketch(function=p))
        assert errors(sketch, DATA).max() < ROUNDING
        assert sketch.residual_ == "moments"
        assert sketch.indices_.size == 0
        # by definition, where no key has a weight
        assert not sketch.transform(np.zeros((1, 3))).any()


# As many keys as a fifth of the clusters' points; what the mean of the values misses is the unit.
WORST = {"auto": 0.1, "memory": 0.05, "closure": 0.8, "moments": 0.4, "decay": 0.1}


@pytest.mark.parametrize("name", WORST)
def test_outputs_are_near_the_exact_ones(name):
    sketch = fit(DATA, SKETCHES[name])
    truth = exact(DATA, sketch)
    constant = np.linalg.norm(truth - truth.mean(axis=0))
    assert np.linalg.norm(errors(sketch, DATA)) < WORST[name] * constant


def test_more_memory_is_better_and_sample_queries_are_better_still():
    data = drawn(2)
    queries = data.Q * [3.0, 0.1, 0.1]  # of a law that is not isotropic
    found = []
    for n_keys, known in ((10, None), (40, None), (40, queries)):
        sketch = StreamingAttentionSketch(n_keys=n_keys, residual="embedding")
        sketch.fit(data.K, data.V, queries=known)
        found.append(np.linalg.norm(errors(sketch, data._replace(Q=queries))))
    assert found[0] > 2.0 * found[1] > 2.0 * found[2]


def test_scores_are_coefficients_of_determination():
    sketch = fit(DATA)
    expected = r2_score(DATA.V, sketch.transform(DATA.K))
    assert sketch.score(DATA.K, DATA.V) == pytest.approx(expected)
    assert 0.3 < expected < 1.0


@every_sketch
def test_weights_are_copies(new):
    rng = np.random.default_rng(3)
    data, w = drawn(3, 300), rng.integers(0, 4, 300)
    sketch = new()
    if sketch.sketch in APART or sketch.decay < 1.0:  # ages, and row numbers, are those of rows
        return
    sketch.fit(data.K, data.V, w)
    copies = data._replace(K=np.repeat(data.K, w, axis=0), V=np.repeat(data.V, w, axis=0))
    assert errors(sketch, copies).max() < ROUNDING
    with quiet():
        twice = fit(data, new, sample_weight=2.0).transform(data.Q)
        np.testing.assert_allclose(twice, fit(data, new).transform(data.Q), atol=ROUNDING)


def test_rows_without_weight_are_none():
    data = drawn(4)
    w = np.random.default_rng(4).integers(0, 2, len(data.K)).astype(float)
    w[:1500] = 0.0  # whole blocks, the first one too
    for name in ("auto", "closure", "decay", "moments", "power"):
        sketch = stream(data, [100, 700], SKETCHES[name], sample_weight=w)
        assert (errors(sketch, data, w) <= sketch.error_bound(data.Q) + ROUNDING).all()
        assert (w[sketch.indices_] > 0).all()


@few_sketches
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e300]))
@example(0, 1e300)
def test_outputs_are_in_the_box_of_the_values_whatever_the_query(new, seed, size):
    data = drawn(seed, 700)
    with quiet():
        found = fit(data, new).transform(data.Q * size)
    assert (found >= data.V.min(axis=0)).all()
    assert (found <= data.V.max(axis=0)).all()


def test_scales_multiply_queries():
    one = fit(DATA, lambda: StreamingAttentionSketch(n_keys=24, scale=1.0))
    for scale, factor in (("sqrt_d", np.sqrt(3.0)), (0.5, 2.0), (1e-100, 1e100), (1e100, 1e-100)):
        other = fit(DATA, lambda s=scale: StreamingAttentionSketch(n_keys=24, scale=s))
        found = other.transform(DATA.Q * factor)
        np.testing.assert_allclose(found, one.transform(DATA.Q), atol=1e-9)


def test_queries_beyond_float64_with_their_scale_keep_their_direction():
    sketch = StreamingAttentionSketch(scale=1e100).fit([[1.0, 0.0], [0.0, 1.0]], [[1.0], [2.0]])
    found = sketch.transform([[1e300, 1e299], [1e299, 1e300], [1e308, -1e308], [1e-100, 0.0]])
    np.testing.assert_allclose(found.ravel(), [1.0, 2.0, 1.0, (np.e + 2) / (np.e + 1)])


# -- what is certain


@every_sketch
def test_bounds_hold_and_covered_mass_is_there(new):
    sketch = fit(DATA, new)
    bound, covered = sketch.error_bound(DATA.Q), sketch.covered_mass(DATA.Q)
    assert (errors(sketch, DATA) <= bound + ROUNDING).all()
    width = np.linalg.norm(np.ptp(DATA.V, axis=0))
    assert (bound <= width * (1 + ROUNDING)).all()
    assert ((covered >= 0.0) & (covered <= 1.0)).all()
    if sketch.function == "softmax":
        logits = DATA.Q @ DATA.K.T * (3**-0.5 if sketch.scale == "sqrt_d" else sketch.scale)
        logits += np.log(sketch.decay) * np.arange(len(DATA.K) - 1.0, -1.0, -1.0)
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        assert (covered <= share[:, sketch.indices_].sum(axis=1) + ROUNDING).all()


def test_some_mass_is_covered_and_some_bounds_say_something():
    data = drawn(5)
    data.K[::500] *= 4.0  # keys that some queries attend to and nothing else
    sketch = fit(data, lambda: StreamingAttentionSketch(n_keys=60, residual="closure"))
    asked = data._replace(Q=data.K[::500])
    assert np.median(sketch.covered_mass(asked.Q)) > 0.9
    assert np.median(sketch.error_bound(asked.Q)) < 0.1
    assert (errors(sketch, asked) <= sketch.error_bound(asked.Q)).all()


SHIFTS = [(1e6, 0.0), (0.0, 1e6), (1e6, 1e6), (-1e9, 1e3)]


@every_sketch
@pytest.mark.parametrize(("key_shift", "value_shift"), SHIFTS)
def test_bounds_are_in_the_units_of_users_whatever_the_offsets(new, key_shift, value_shift):
    if new().function != "softmax":  # powers are not invariant to shifts
        return
    data = drawn(6, 2000)
    moved = data._replace(K=data.K + key_shift, V=1e3 * data.V + value_shift)
    sketch = fit(moved, new)
    with quiet():
        found = sketch.transform(moved.Q)
    # the truth by keys less their offset: shifted ones as they are in float64
    truth = exact(moved._replace(K=moved.K - key_shift), sketch)
    rounding = 64 * np.finfo(float).eps * (1e3 + abs(value_shift))
    bound = sketch.error_bound(moved.Q)
    assert (np.linalg.norm(found - truth, axis=1) <= bound + rounding).all()
    assert (bound <= 1.01e3 * np.linalg.norm(np.ptp(data.V, axis=0)) + rounding).all()


@every_sketch
def test_bounds_hold_in_single_precision(new):
    data = drawn(7, 1500, dtype=np.float32)
    sketch = fit(data, new)
    truth = exact(data._replace(K=data.K.astype(float)), sketch)
    with quiet():
        found = sketch.transform(data.Q.astype(float))
        narrow = sketch.transform(data.Q)
    assert narrow.dtype == np.float32
    bound = sketch.error_bound(data.Q)
    assert bound.dtype == sketch.covered_mass(data.Q).dtype == np.float64
    assert (np.linalg.norm(found - truth, axis=1) <= bound + ROUNDING).all()
    np.testing.assert_allclose(narrow, found, rtol=2.0**-23)


def test_values_beyond_single_precision_are_the_largest_numbers_there():
    sketch = StreamingAttentionSketch().fit([[0.0], [1.0]], [1e300, -1e300])
    found = sketch.transform(np.array([[100.0], [-100.0]], np.float32))
    assert np.isfinite(found).all()
    assert np.sign(found).ravel().tolist() == [-1.0, 1.0]


def test_probes_measure_the_error():
    sketch = fit(drawn(8, 9000), lambda: StreamingAttentionSketch(n_keys=100))
    assert 0.0 < sketch.probe_error_ < 0.5
    assert fit(drawn(8, 100)).probe_error_ == 0.0
    assert np.isnan(fit(DATA, SKETCHES["moments"]).probe_error_)


def test_queries_beyond_the_reach_of_polynomials_are_counted_and_bounded():
    sketch = fit(DATA, SKETCHES["moments"])
    with pytest.warns(UserWarning, match="40 of 40 queries .* degree 4 follows"):
        found = sketch.transform(100.0 * DATA.Q)
    truth = attention(100.0 * DATA.Q, DATA.K, DATA.V)
    assert (np.linalg.norm(found - truth, axis=1) <= sketch.error_bound(100.0 * DATA.Q)).all()


# -- a stream is its rows


@every_sketch
@settings(max_examples=2)
@given(st.data())
@example(None)
def test_any_batches_leave_the_same_bytes(new, data):
    made = drawn(9, 5000)
    w = np.random.default_rng(9).integers(0, 3, 5000).astype(float)
    w = None if new().sketch in APART else w
    places = data.draw(cuts(5000)) if data else [0, 1, 2, 511, 512, 512, 513, 4095, 4097]
    queries = made.Q if new().sketch is None else None
    whole = fit(made, new, w, queries)
    assert stream(made, places, new, w, queries).to_bytes() == whole.to_bytes()


@few_sketches
def test_one_row_batches_leave_the_same_bytes(new):
    data = drawn(10, 1100)
    assert stream(data, range(1, 1100), new).to_bytes() == fit(data, new).to_bytes()


def test_large_batches_are_copied_in_pieces_to_the_same_bytes(monkeypatch):
    expected = fit(DATA).to_bytes()
    monkeypatch.setattr("levsketch.estimators._attention_input._ROWS", 777)
    assert fit(DATA).to_bytes() == expected


@pytest.mark.parametrize("name", APART)
def test_keys_and_values_may_come_apart(name):
    data, new = drawn(11, 3000), SKETCHES[name]
    whole = fit(data, new).to_bytes()
    for ahead in (600, 3000):
        sketch = new().partial_fit(data.K[:1], data.V[:1])
        sketch.partial_fit_keys(data.K[1:ahead])
        for part in np.array_split(data.V[1:], 4):
            sketch.partial_fit_values(part)
        sketch.partial_fit_keys(data.K[ahead:])
        assert sketch.to_bytes() == whole
        assert sketch.n_samples_seen_ == 3000


@every_sketch
def test_threads_do_not_change_a_byte(new):
    rng = np.random.default_rng(12)
    data = drawn(12, 1200, d=16, d_v=5, m=2500)
    queries = rng.standard_normal((3000, 16)) if new().sketch is None else None
    if new().max_memory == 700 or new().function == 4:
        data = data._replace(K=data.K[:, :4], V=data.V[:, :1], Q=data.Q[:, :4])
        queries = None
    found = set()
    for limit in (1, 2):
        for api in ("blas", "openmp"):
            with threadpool_limits(limit, user_api=api), quiet():
                sketch = fit(data, new, queries=queries)
                answers = [sketch.transform(data.Q), sketch.error_bound(data.Q)]
                found.add(sketch.to_bytes() + b"".join(x.tobytes() for x in answers))
    assert len(found) == 1


def test_reading_while_another_thread_fits_sees_a_committed_state():
    data = drawn(13, 2000)
    sketch = fit(data)
    more = [threading.Thread(target=lambda: [sketch.fit(data.K, data.V[:, :1]) for _ in "123"])]
    more[0].start()
    while more[0].is_alive():
        loaded = StreamingAttentionSketch.from_bytes(sketch.to_bytes())
        assert loaded.transform(data.Q).shape == (40, loaded.n_outputs_)
        assert sketch.transform(data.Q).shape[1] in (1, 2)
    more[0].join()


@few_sketches
def test_a_second_fit_forgets_the_first(new):
    sketch = new().fit(np.ones((10, 7)), np.ones(10))
    sketch.fit(DATA.K, DATA.V)
    assert sketch.to_bytes() == fit(DATA, new).to_bytes()
    assert sketch.predict(DATA.Q[:1] / 100).shape == (1, 2)


# -- forms


@every_sketch
def test_flat_values_give_flat_predictions(new):
    data = drawn(14, 1500)
    flat, column = new().fit(data.K, data.V[:, 0]), new().fit(data.K, data.V[:, :1])
    with quiet():
        expected = column.transform(data.Q)
        assert expected.shape == (40, 1)
        np.testing.assert_array_equal(flat.predict(data.Q), expected[:, 0])
        np.testing.assert_array_equal(flat.transform(data.Q), expected)
        np.testing.assert_array_equal(column.predict(data.Q), expected)
        # the first rows tell
        flat.partial_fit(data.K, data.V[:, :1])
        column.partial_fit(data.K, data.V[:, 0])
        assert flat.predict(data.Q).shape == (40,)
        assert column.predict(data.Q).shape == (40, 1)
        again = type(flat).from_bytes(flat.to_bytes())
        assert again.predict(data.Q).shape == (40,)
        assert flat.fit(data.K, data.V).predict(data.Q).shape == (40, 2)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_libraries_get_their_own_arrays_with_the_numbers_of_numpy(name, dtype):
    data = drawn(15, 1500, dtype=dtype)
    for new in FEW.values():
        sketch = new()
        w = None if sketch.sketch in APART else np.ones(1500, dtype)
        convert = OTHERS[name]
        given_arrays = [None if X is None else convert(X) for X in (*data[:2], w)]
        sketch.fit(*given_arrays, queries=convert(data.Q) if sketch.sketch is None else None)
        plain = new().fit(*data[:2], w, data.Q if sketch.sketch is None else None)
        assert sketch.to_bytes() == plain.to_bytes()
        Q = convert(data.Q)
        with quiet():
            for method in ("transform", "predict", "covered_mass", "error_bound"):
                found, expected = getattr(sketch, method)(Q), getattr(plain, method)(data.Q)
                assert type(found) is type(Q)
                assert host(found).dtype == expected.dtype
                np.testing.assert_array_equal(host(found), expected)
            assert type(sketch.indices_) is type(Q)
            assert isinstance(sketch.transform(data.Q), np.ndarray)


@few_sketches
def test_no_queries_have_no_answers(new):
    sketch = fit(DATA, new)
    assert sketch.transform(DATA.Q[:0]).shape == (0, 2)
    assert sketch.predict(DATA.Q[:0]).shape == (0, 2)
    assert sketch.error_bound(DATA.Q[:0]).shape == sketch.covered_mass(DATA.Q[:0]).shape == (0,)


@few_sketches
def test_asking_changes_nothing(new):
    sketch = fit(DATA, new)
    before = sketch.to_bytes()
    first = public(sketch, DATA.Q)
    assert public(sketch, DATA.Q) == first
    assert sketch.to_bytes() == before


def test_memory_does_not_grow_with_the_rows():
    sizes = []
    sketch = StreamingAttentionSketch(max_memory="8kB")
    data = drawn(16, 8192, d=4, d_v=3)
    for start in range(0, 8192, 2048):
        part = slice(start, start + 2048)
        sketch.partial_fit(data.K[part], data.V[part])
        sizes.append(sketch.nbytes_)
    assert sketch.n_samples_seen_ == 8192
    # whole blocks: no row waits; one model is left once all were tried
    assert max(sizes[1:]) <= 8000
    assert len(set(sizes[1:])) == 1


def test_errors_fall_as_the_budget_grows_on_gaussian_keys():
    rng = np.random.default_rng(0)
    K, Q = rng.standard_normal((6000, 3)), rng.standard_normal((200, 3))
    V = np.tanh(K[:, :2])
    truth, found = attention(Q, K, V), []
    for n_keys in (50, 100, 150, 256):
        sketch = StreamingAttentionSketch(n_keys=n_keys, residual="embedding").fit(K, V)
        found.append(np.linalg.norm(sketch.transform(Q) - truth) / np.linalg.norm(truth))
    assert (np.diff(found) < 0).all()
