"""Attention sketches of shards add up to one of all rows, and leave their shards alone."""

import dataclasses
import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from fitting import snapshot
from sketching import (
    APART,
    MERGING,
    SKETCHES,
    drawn,
    exact,
    fit,
    merging_sketches,
    public,
    quiet,
    split,
    stream,
)
from sklearn.base import BaseEstimator

from levsketch import LeverageKeySelector, StreamingAttentionSketch

DATA = drawn(0, 6400)
SUMS = ("moments", "fading moments", "power")


def shards(data, count, new, **kwargs):
    """Return sketches of consecutive parts of the rows."""
    places = [len(data.K) * i // count + 7 * i for i in range(1, count)]
    parts = zip(split(data.K, places), split(data.V, places), strict=True)
    return [fit(part, new, **kwargs) for part in parts]


def left_to_right(sketches):
    return functools.reduce(lambda a, b: a | b, sketches)


def as_tree(sketches):
    while len(sketches) > 1:
        sketches = [left_to_right(sketches[i : i + 2]) for i in range(0, len(sketches), 2)]
    return sketches[0]


def error(sketch, data):
    """Return the root mean square of the errors, and whether all bounds hold."""
    with quiet():
        off = np.linalg.norm(sketch.transform(data.Q) - exact(data, sketch), axis=1)
    assert (off <= sketch.error_bound(data.Q) + 1e-12).all()
    return np.sqrt(np.mean(off**2))


@merging_sketches
@pytest.mark.parametrize("associate", [left_to_right, as_tree])
def test_eight_shards_are_as_good_as_one_stream(new, associate):
    merged = associate(shards(DATA, 8, new))
    whole = fit(DATA, new)
    assert merged.n_samples_seen_ == 6400
    apart, alone = error(merged, DATA), error(whole, DATA)
    # of a projection of projections nothing is proved: four times the error, or a twelfth of
    # the spread of the outputs
    spread = np.linalg.norm(np.std(exact(DATA, whole), axis=0))
    assert apart <= max(4.0 * alone, spread / 12)
    assert merged.nbytes_ <= 1.1 * whole.nbytes_ + 8 * 512 * 6


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_the_same_but_for_rounding(name):
    near = DATA._replace(Q=DATA.Q / 10)
    merged, whole = left_to_right(shards(near, 8, SKETCHES[name])), fit(near, SKETCHES[name])
    # polynomials are about means of their own, and differ where they are not exp: hardly near zero
    atol = 1e-11 if name == "power" else 1e-4
    np.testing.assert_allclose(merged.transform(near.Q), whole.transform(near.Q), atol=atol)
    for sketch in (merged, whole):
        assert error(sketch, near) < 10 * atol


@pytest.mark.parametrize("name", MERGING)
def test_few_rows_merge_to_the_bytes_of_one_stream(name):
    data = drawn(1, 480)
    new = SKETCHES[name]
    whole = fit(data, new)
    for places in ([100], [1, 2, 300]):
        parts = zip(split(data.K, places), split(data.V, places), strict=True)
        assert left_to_right([fit(part, new) for part in parts]).to_bytes() == whole.to_bytes()


def test_shards_of_other_places_and_sizes_merge():
    for shift, size in ((1e6, 1.0), (0.0, 1e3), (0.0, 1e-3), (-50.0, 20.0)):
        for name in ("auto", "closure", "memory"):
            data = drawn(2, 2000)
            K, V = data.K.copy(), data.V.copy()
            V[1000:] = V[1000:] * size + shift
            data = data._replace(K=K, V=V)
            merged = left_to_right(shards(data, 2, SKETCHES[name]))
            off = np.linalg.norm(merged.transform(data.Q) - exact(data, merged), axis=1)
            rounding = 1e-9 * np.abs(V).max()
            assert (off <= merged.error_bound(data.Q) + rounding).all()


def test_sample_queries_are_those_of_the_first_shard():
    data = drawn(3, 3000)
    a, b = shards(data, 2, SKETCHES["embedding"], queries=data.Q)
    plain = fit((data.K[1500:], data.V[1500:]), SKETCHES["embedding"])
    for merged in (a | b, a | plain):
        np.testing.assert_array_equal(merged._stream.queries.mean, a._stream.queries.mean)
        assert error(merged, data) < 0.2
    assert (plain | a)._stream.queries is None


@merging_sketches
@pytest.mark.parametrize("n", [1, 700, 3000])
def test_merging_with_itself_counts_twice(new, n):
    data = drawn(4, n)
    a = fit(data, new)
    before = snapshot(a)
    both = a.merge(a)
    assert snapshot(a) == before
    assert both.n_samples_seen_ == 2 * n
    assert (both.indices_ < 2 * n).all()
    assert len(np.unique(both.indices_)) == len(both.indices_)
    twice = data._replace(K=np.tile(data.K, (2, 1)), V=np.tile(data.V, (2, 1)))
    assert error(both, twice) <= 2 * error(a, data) + 0.02


@merging_sketches
@pytest.mark.parametrize("n", [1, 700, 2500])
def test_merging_with_nothing_changes_nothing(new, n):
    data = drawn(5, n)
    a, nothing = fit(data, new), new()
    for merged in (a | nothing, nothing | a):
        assert merged is not a
        assert merged.to_bytes() == a.to_bytes()
        merged.partial_fit(data.K, data.V)
        assert a.n_samples_seen_ == n
    assert vars(nothing | nothing) == vars(nothing)


@merging_sketches
def test_neither_operand_changes_and_nothing_is_shared(new):
    data = drawn(6, 3300)
    a, b = shards(data, 2, new)
    before = snapshot(a), snapshot(b)
    merged = a | b
    first = merged.to_bytes()
    public(merged, data.Q)
    assert (snapshot(a), snapshot(b)) == before
    merged.partial_fit(data.K, data.V)
    assert (snapshot(a), snapshot(b)) == before
    again = a | b
    assert again.to_bytes() == first
    for operand in (a, b):
        operand.partial_fit(data.K, data.V)
    assert again.to_bytes() == first


@merging_sketches
def test_batches_after_a_merge_leave_the_same_bytes_too(new):
    data = drawn(7, 3500)
    found = set()
    for cuts in ([], [2500, 2501, 3000], range(2100, 3500, 333)):
        a, b = (fit((data.K[i:j], data.V[i:j]), new) for i, j in ((0, 1100), (1100, 2000)))
        merged = a | b
        rest = [2000, *(cut for cut in cuts if cut > 2000), 3500]
        for i, j in itertools.pairwise(rest):
            merged.partial_fit(data.K[i:j], data.V[i:j])
        found.add(merged.to_bytes())
    assert len(found) == 1


@merging_sketches
@pytest.mark.parametrize("known", [False, True])
def test_merges_go_on_the_same_once_saved(new, known):
    data = drawn(8, 2600)
    queries = data.Q if known and new().sketch is None else None
    for sizes in ((1.0, 1.0), (60.0, 1.0)) if known else ((1.0, 1.0), (1.0, 60.0), (60.0, 1.0)):
        a, b = (
            fit((data.K[i:j] * size, data.V[i:j]), new, queries=queries)
            for size, i, j in zip(sizes, (0, 1100), (1100, 2600), strict=True)
        )
        merged = a | b
        loaded = type(merged).from_bytes(merged.to_bytes())
        assert loaded.to_bytes() == merged.to_bytes()
        assert public(loaded, data.Q) == public(merged, data.Q)
        assert (type(a).from_bytes(a.to_bytes()) | b).to_bytes() == merged.to_bytes()
        for sketch in (loaded, merged):
            sketch.partial_fit(data.K[:1000], data.V[:1000])
        assert loaded.to_bytes() == merged.to_bytes()


def test_many_small_shards_stay_small_and_can_be_saved_at_any_time():
    rng = np.random.default_rng(9)
    for name in ("auto", "closure", "moments"):
        merged, sizes = SKETCHES[name](), []
        for count in range(45):
            data = rng.standard_normal((40, 3)), rng.standard_normal((40, 2))
            merged = merged | fit(data, SKETCHES[name])
            sizes.append(merged.nbytes_)
            if count % 20 == 0:
                assert type(merged).from_bytes(merged.to_bytes()).to_bytes() == merged.to_bytes()
        assert merged.n_samples_seen_ == 1800
        assert max(sizes) < 40_000


def test_row_numbers_of_the_other_follow_on():
    rare = np.zeros((1500, 2))
    rare[700] = 30.0
    a = StreamingAttentionSketch(n_keys=24, residual="closure").fit(rare, np.ones(1500))
    b = StreamingAttentionSketch(n_keys=24, residual="closure").fit(rare[:800], np.ones(800))
    assert 700 in a.indices_
    assert {700, 2200} <= set((a | b).indices_.tolist())
    assert {700, 1500} <= set((b | a).indices_.tolist())


def test_with_decay_the_rows_of_the_other_are_newer():
    for name in ("decay", "fading moments"):
        new = SKETCHES[name]
        a = fit((DATA.K[:3000], np.zeros((3000, 1))), new)
        b = fit((DATA.K[:3000], np.ones((3000, 1))), new)
        with quiet():
            assert (a | b).transform(DATA.Q / 10).min() > 0.8
            assert (b | a).transform(DATA.Q / 10).max() < 0.2


REFUSED = [
    ("auto", {"n_keys": 25}, ["n_keys", "24", "25"]),
    ("auto", {"scale": 1.0}, ["scale", "'sqrt_d'", "1.0"]),
    ("auto", {"residual": "closure"}, ["residual", "'auto'", "'closure'"]),
    ("auto", {"function": 2}, ["function", "'softmax'", "2.0"]),
    ("auto", {"sketch": "exact"}, ["sketch", "None", "'exact'"]),
    ("auto", {"decay": 0.5}, ["decay", "1.0", "0.5"]),
    ("auto", {"max_memory": "5kB"}, ["max_memory", "None", "5000"]),
    ("auto", {"random_state": 1}, ["random_state", "0", "1"]),
    ("moments", {"degree": 2}, ["degree", "4", "2"]),
    ("moments", {"sketch": None}, ["sketch", "'exact'", "None"]),
    ("moments", {"sketch": "ams"}, ["sketch", "'exact'", "'ams'"]),
    ("power", {"function": 2}, ["function", "4.0", "2.0"]),
    ("power", {"max_memory": "1MB"}, ["max_memory", "1073741824", "1000000"]),
]


@pytest.mark.parametrize(("name", "change", "words"), REFUSED, ids=str)
def test_other_parameters_are_refused_by_name_and_values(name, change, words):
    data = drawn(10, 900)
    a = fit(data, SKETCHES[name])
    b = SKETCHES[name]().set_params(**change).fit(data.K, data.V)
    before = snapshot(a), snapshot(b)
    for one, two in ((a, b), (b, a)):
        with pytest.raises(ValueError, match=f"cannot merge: {words[0]} is") as caught:
            one.merge(two)
        assert all(word in str(caught.value) for word in words)
    assert (snapshot(a), snapshot(b)) == before


@pytest.mark.parametrize("name", ["auto", "moments", "power"])
def test_other_columns_names_and_classes_are_refused(name):
    new, (K, V, _) = SKETCHES[name], drawn(11, 700)
    frame = pd.DataFrame(K, columns=["a", "b", "c"])
    a = new().fit(frame, V)
    others = [
        (new().fit(K[:, :2], V), r"n_features_in_ is 3 .* and 2"),
        (new().fit(K, V[:, 0]), r"n_outputs_ is 2 .* and 1"),
        (new().fit(K[:5], V[:5, 0]), r"n_outputs_ is 2 .* and 1"),
        (new().fit(frame.rename(columns={"b": "x"}), V), "'b' / 'x'"),
        (new().fit(frame[["b", "a", "c"]], V), "names differ"),
    ]
    for other, match in others:
        before = snapshot(a), snapshot(other)
        with pytest.raises(ValueError, match=f"cannot merge: .*{match}"):
            a.merge(other)
        assert (snapshot(a), snapshot(other)) == before
    assert (a | new().fit(K, V)).feature_names_in_.tolist() == ["a", "b", "c"]

    class Other(StreamingAttentionSketch):
        pass

    for other in (Other(n_keys=24), LeverageKeySelector(), BaseEstimator(), None, 3):
        with pytest.raises(TypeError, match=r"cannot merge|both must be"):
            a.merge(other)
    with pytest.raises(TypeError):
        a | 3


@pytest.mark.parametrize("name", APART)
def test_sketches_that_share_their_random_signs_are_refused(name):
    data = drawn(12, 700)
    a = fit(data, SKETCHES[name])
    before = snapshot(a)
    for other in (a, fit(data, SKETCHES[name])):
        with pytest.raises(ValueError, match=f"sketch='{name}' .* use sketch=\"exact\""):
            a.merge(other)
    assert snapshot(a) == before
    nothing = SKETCHES[name]()
    assert (a | nothing).to_bytes() == (nothing | a).to_bytes() == a.to_bytes()


def test_monomials_that_are_sketched_about_other_means_are_refused():
    data = drawn(12, 5000)
    new = functools.partial(StreamingAttentionSketch, sketch="exact", degree=4, max_memory=700)
    a, b = shards(data, 2, new)
    before = snapshot(a), snapshot(b)
    with pytest.raises(ValueError, match=r"cannot merge: max_memory=696 .* degree=4"):
        a | b
    assert (snapshot(a), snapshot(b)) == before
    assert (a | fit((data.K[:9], data.V[:9]), new)).n_samples_seen_ == 2516


def test_parameters_changed_after_fitting_are_not_merged():
    data = drawn(13, 700)
    a, b = fit(data), fit(data, SKETCHES["closure"]).set_params(residual="auto")
    with pytest.raises(ValueError, match="changed after"):
        a.merge(b)


def test_flat_values_stay_flat():
    data = drawn(14, 700)
    flat, column = (SKETCHES["auto"]().fit(data.K, V) for V in (data.V[:, 0], data.V[:, :1]))
    assert (flat | flat).predict(data.Q).shape == (40,)
    assert (flat | column).predict(data.Q).shape == (40,)
    assert (column | flat).predict(data.Q).shape == (40, 1)


@pytest.mark.parametrize("name", ["auto", "moments"])
def test_row_numbers_beyond_int64_are_refused(name):
    data = drawn(15, 700)
    a, b = fit(data, SKETCHES[name]), fit(data, SKETCHES[name])
    b._stream = dataclasses.replace(b._stream, n_seen=2**63 - 200)
    with pytest.raises(OverflowError, match="2\\*\\*63"):
        a.merge(b)


@merging_sketches
def test_merges_of_batches_are_merges_of_shards(new):
    data = drawn(16, 2600)
    parts = zip(split(data.K, [1300]), split(data.V, [1300]), strict=True)
    a, b = (stream(part, [3, 600], new) for part in parts)
    c, d = (fit((data.K[i:j], data.V[i:j]), new) for i, j in ((0, 1300), (1300, 2600)))
    assert (a | b).to_bytes() == (c | d).to_bytes()


@pytest.mark.parametrize("name", ["auto", "embedding"])
def test_merges_with_larger_keys_go_on_the_same_once_saved(name):
    data = drawn(8, 2600)
    a = fit((data.K[:1100], data.V[:1100]), SKETCHES[name], queries=data.Q)
    b = fit((60 * data.K[1100:], data.V[1100:]), SKETCHES[name], queries=data.Q)
    merged = a | b
    loaded = type(merged).from_bytes(merged.to_bytes())
    for sketch in (loaded, merged):
        sketch.partial_fit(data.K, data.V)
    assert loaded.to_bytes() == merged.to_bytes()
