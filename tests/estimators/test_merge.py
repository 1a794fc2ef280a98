"""merge: the rows of one, then those of the other, in any association."""

import dataclasses
import pickle

import numpy as np
import oracles
import pandas as pd
import pytest
from fitting import (
    every_lp_selector,
    every_selector,
    few_selectors,
    fit,
    missed,
    public,
    quiet,
    snapshot,
    split,
    stream,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator
from strategies import (
    conditioned,
    cuts,
    gaussian,
    growing,
    heavy_tails,
    keys,
    lone_axis,
    lone_in_hyperplane,
    low_rank,
    make,
    zero_columns,
)

from levsketch import LeverageKeySelector, LpSensitivitySelector
from levsketch.functions import Huber

KINDS = [gaussian, conditioned, heavy_tails, growing, zero_columns, lone_axis, low_rank]


def parts(K, places, **params):
    return [fit(part, **params) for part in split(K, places) if len(part)]


def left_to_right(selectors):
    merged = selectors[0]
    for selector in selectors[1:]:
        merged = merged | selector
    return merged


def right_to_left(selectors):
    merged = selectors[-1]
    for selector in reversed(selectors[:-1]):
        merged = selector.merge(merged)
    return merged


def as_tree(selectors):
    while len(selectors) > 1:
        pairs = [left_to_right(selectors[i : i + 2]) for i in range(0, len(selectors), 2)]
        selectors = pairs
    return selectors[0]


def check_equal(merged, whole, eps):
    """Check that a merged selector says the same as one fitted to all rows, up to guards."""
    with quiet():
        assert merged.n_samples_seen_ == whole.n_samples_seen_
        assert merged.certified_
        assert whole.certified_
        a, b = merged._selected(), whole._selected()
    error = a.whitening.error + b.whitening.error
    mine = dict(zip(a.index[a.universal].tolist(), a.scores[a.universal], strict=True))
    other = dict(zip(b.index[b.universal].tolist(), b.scores[b.universal], strict=True))
    for j in mine.keys() ^ other.keys():  # only what lies within the guards of eps may differ
        assert abs(mine.get(j, other.get(j)) / eps - 1) <= 4 * error
    for j in mine.keys() & other.keys():
        assert abs(mine[j] - other[j]) <= 4 * error * other[j]
    assert a.space.rank == b.space.rank
    np.testing.assert_array_equal(a.space.basis, b.space.basis)


@pytest.mark.parametrize(
    "params", [{}, {"intercept": True}, {"ridge": 0.5}, {"min_keys": 5}], ids=str
)
@settings(max_examples=25)
@given(keys(max_rows=4000, max_columns=5), st.data(), st.sampled_from([0.01, 0.1, 0.6]))
@example(make(conditioned, 1, 4000, 4), None, 0.01)
def test_any_association_says_the_same_as_all_rows(params, made, data, eps):
    places = data.draw(cuts(len(made.K), most=4)) if data else [100, 1200, 3333]
    with quiet():
        shards = parts(made.K, places, eps=eps, **params)
        whole = fit(made.K, eps=eps, **params)
        assume(whole.certified_ and as_tree(shards).certified_)
        for associate in (left_to_right, right_to_left, as_tree):
            check_equal(associate(shards), whole, eps)


@pytest.mark.parametrize("kind", KINDS)
def test_long_shards_say_the_same_as_all_rows(kind):
    K = make(kind, 3, 20_000, 4).K
    shards = parts(K, [5000, 5001, 13_000], eps=0.02)
    with quiet():
        for associate in (left_to_right, right_to_left, as_tree):
            merged = associate(shards)
            if merged.certified_:
                check_equal(merged, fit(K, eps=0.02), 0.02)
            else:
                assert kind is growing


@every_selector
@pytest.mark.parametrize("row", [0, 1023, 1024, 1400, 1499])
def test_a_lone_key_of_either_side_is_kept_though_nothing_is_certified(new, row):
    rng = np.random.default_rng(1)
    lone = np.repeat(rng.standard_normal((1500, 1)), 2, axis=1)
    lone[row] = [2.0**-100, -(2.0**-100)]
    flood = np.repeat(rng.standard_normal((5000, 1)), 2, axis=1)
    a, b = fit(lone, new, eps=0.5), fit(flood, new, eps=0.5)
    with quiet():
        assert row in (a | b).indices_
        assert row + 5000 in (b | a).indices_
        assert row + 5000 in (b | a | b).indices_


@settings(max_examples=60)
@given(keys(max_rows=3000, max_columns=5), st.integers(1, 2999), st.sampled_from([0.01, 0.2, 1.0]))
@example(make(lone_in_hyperplane, 0, 3000, 3), 1024, 0.5)
@example(make(lone_in_hyperplane, 5, 3000, 3), 2048, 0.5)
def test_merging_misses_no_key(made, place, eps):
    place = min(place, len(made.K) - 1)
    assume(place > 0)
    slack = oracles.slack(made.basis)
    assume(slack < 1e-3)
    with quiet():
        merged = left_to_right(parts(made.K, [place], eps=eps, min_keys=0))
        floor = eps if merged.certified_ else 1 - 1e-9
        assert missed(merged, oracles.leverage(made.basis), floor, slack).size == 0


def test_keys_that_one_side_dropped_forbid_the_certificate_of_a_budget():
    # 20 rows along e0 beat the large one along e1, which goes; then the other side drowns them
    shard = np.zeros((2048, 2))
    shard[:20, 0] = 1.0
    shard[20:, 1] = 1.0
    shard[1000, 1] = 7.0  # a score of 49 / 2076, less than 1 / 20
    crowd = np.zeros((1000, 2))
    crowd[:, 0] = 1.0
    for first, second, best in ((shard, crowd, 1000), (crowd, shard, 2000)):
        merged = fit(first, n_keys=1).merge(fit(second, n_keys=1))
        assert merged.unselected_bound_ >= 49 / 2077
        assert merged.indices_.tolist() == [best] or not merged.certified_


@every_selector
@pytest.mark.parametrize("n", [50, 3000])
def test_row_spaces_add_up(new, n):
    rng = np.random.default_rng(0)
    left = rng.integers(1, 5, (n, 1)) * np.array([[1.0, 1.0, 0.0, 0.0]])
    right = rng.integers(1, 5, (n, 1)) * np.array([[0.0, 1.0, 1.0, 0.0]])
    queries = np.array([[1.0, 2.0, 1.0, 0.0], [1.0, 0, 0, 0], [0, 0, 0, 1.0], [3.0, 5.0, 2.0, 0]])
    whole = fit(np.concatenate([left, right]), new, eps=0.01).score_samples(queries)
    for a, b in ((left, right), (right, left)):
        merged = fit(a, new, eps=0.01) | fit(b, new, eps=0.01)
        found = merged.score_samples(queries)
        assert np.isinf(found).tolist() == np.isinf(whole).tolist() == [False, True, True, False]
        if new is LeverageKeySelector:  # else bounds, which weights that differ make differ
            np.testing.assert_allclose(found, whole, rtol=1e-12)


@every_selector
@pytest.mark.parametrize("kind", [*KINDS, lone_in_hyperplane])
def test_neither_operand_changes_and_nothing_is_shared(new, kind):
    K = make(kind, 4, 6000, 3).K
    a, b = fit(K[:2500], new, eps=0.05), fit(K[2500:], new, eps=0.05)
    before = snapshot(a), snapshot(b)
    with quiet():
        merged = a | b
        assert merged is not a
        first = merged.to_bytes()
        assert (snapshot(a), snapshot(b)) == before
        merged.partial_fit(K)
        assert (snapshot(a), snapshot(b)) == before
        again = a | b
        assert again.to_bytes() == first
        a.partial_fit(K)
        b.partial_fit(K)
        assert again.to_bytes() == first


@every_selector
@pytest.mark.parametrize("n", [1, 700, 1024, 3000])
def test_merging_with_itself_counts_twice(new, n):
    K = make(heavy_tails, 5, 3000, 3).K[:n]
    a = fit(K, new, eps=0.01)
    before = snapshot(a)
    with quiet():
        both = a.merge(a)
        assert snapshot(a) == before
        assert both.n_samples_seen_ == 2 * n
        assert both.n_features_in_ == 3
        rows = both.indices_
        assert (rows < 2 * n).all()
    if new is LeverageKeySelector and n == 3000:
        check_equal(both, fit(np.concatenate([K, K]), eps=0.01), 0.01)
    # each key stands there twice: what holds for it, holds for its double
    mine = dict(zip(rows.tolist(), both.scores_ + both.guard_, strict=True))
    for row, bound in mine.items():
        twin = mine.get((row + n) % (2 * n), 0.01)
        assert bound == pytest.approx(twin, rel=0.2) or min(bound, twin) < 0.02


@every_selector
@pytest.mark.parametrize("n", [1, 700, 5000])
def test_merging_with_nothing_changes_nothing(new, n):
    K = make(gaussian, 6, n, 3).K
    a, nothing = fit(K, new, eps=0.05), new(eps=0.05)
    for merged in (a | nothing, nothing | a):
        assert merged is not a
        assert merged.to_bytes() == a.to_bytes()
        with quiet():
            merged.partial_fit(K)
        assert a.n_samples_seen_ == len(K)
    assert vars(nothing | nothing) == vars(nothing)


def test_merged_streams_go_on_as_if_nothing_had_happened():
    K = make(heavy_tails, 7, 30_000, 3).K
    with quiet():
        merged = fit(K[:9000], eps=0.02) | fit(K[9000:16_000], eps=0.02)
        for batch in split(K[16_000:], range(1700, 14_000, 1700)):
            merged.partial_fit(batch)
        check_equal(merged, fit(K, eps=0.02), 0.02)


@few_selectors
@pytest.mark.parametrize("second", [10_100, 5900])
def test_batches_after_a_merge_leave_the_same_bytes_too(new, second):
    K = make(gaussian, 8, 30_000, 3).K
    found = set()
    for step in (700, 1024, 20_000):
        merged = fit(K[:5500], new, eps=0.02) | fit(K[5500:second], new, eps=0.02)
        for batch in split(K[10_100:], range(step, 19_900, step)):
            merged.partial_fit(batch)
        found.add(merged.to_bytes())
    assert len(found) == 1


@every_selector
def test_many_small_shards_stay_small_and_can_be_saved_at_any_time(new):
    rng = np.random.default_rng(9)
    merged = new(eps=0.1)
    load = type(merged).from_bytes
    sizes = []
    for count in range(300):
        with quiet():
            merged = merged | new(eps=0.1).partial_fit(rng.standard_normal((40, 3)))
        sizes.append(merged.nbytes_)
        if count < 3 or count % 50 == 0:
            assert load(merged.to_bytes()).to_bytes() == merged.to_bytes()
    assert merged.n_samples_seen_ == 12_000
    if new in (LeverageKeySelector, LpSensitivitySelector):  # samples grow to their size
        assert max(sizes[150:]) < 1.5 * max(sizes[:150])
    assert max(sizes) < 1 << 20
    assert merged.certified_


@every_selector
def test_what_was_saved_merges_with_what_was_not(new):
    K = make(gaussian, 16, 3000, 3).K
    a, b = fit(K[:1200], new, eps=0.05), fit(K[1200:], new, eps=0.05)
    loaded = type(b).from_bytes(b.to_bytes())
    expected = (a | b).to_bytes()
    assert (a | loaded).to_bytes() == expected
    assert (type(a).from_bytes(a.to_bytes()) | b).to_bytes() == expected


@every_lp_selector
def test_loaded_merges_answer_as_the_merges_do(new):
    K = make(gaussian, 17, 3000, 3).K
    for cut in (100, 1024, 2900):
        merged = fit(K[:cut], new, eps=0.05) | fit(K[cut:], new, eps=0.05)
        loaded = type(merged).from_bytes(merged.to_bytes())
        assert public(loaded, K[:5]) == public(merged, K[:5])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": 0.06}, ["eps", "0.05", "0.06"]),
        ({"n_keys": 3}, ["n_keys", "None", "3"]),
        ({"min_keys": 3}, ["min_keys", "1", "3"]),
        ({"intercept": True}, ["intercept", "False", "True"]),
        ({"ridge": 1.0}, ["ridge", "0.0", "1.0"]),
        ({"p": 6.0}, ["p is", "4.0", "6.0"]),
        ({"function": Huber(2.0)}, ["function", "None", "uber"]),
        ({"bound": "weights"}, ["bound", "auto", "weights"]),
        ({"refine": True}, ["refine", "False", "True"]),
        ({"delta": 0.2}, ["delta", "0.1", "0.2"]),
        ({"failure_probability": 0.2}, ["failure_probability", "0.01", "0.2"]),
        ({"normaliser": "sample"}, ["normaliser", "auto", "sample"]),
        ({"sketch_size": 7}, ["sketch_size", "1024", "7"]),
        ({"max_memory": 10**8}, ["max_memory", "1", "100000000"]),
        ({"random_state": 1}, ["random_state", "0", "1"]),
    ],
)
def test_other_parameters_are_refused_by_name_and_values(changes, words):
    K = make(gaussian, 10, 2000, 3).K
    new = LeverageKeySelector
    if next(iter(changes)) not in new().get_params():
        new = LpSensitivitySelector
    a, b = fit(K, new, eps=0.05), fit(K, new, **({"eps": 0.05} | changes))
    before = snapshot(a), snapshot(b)
    for one, two in ((a, b), (b, a)):
        with pytest.raises(ValueError, match="cannot merge") as caught:
            one.merge(two)
        assert all(word in str(caught.value) for word in words)
    assert (snapshot(a), snapshot(b)) == before


@few_selectors
def test_other_widths_names_and_classes_are_refused(new):
    K = make(gaussian, 11, 200, 3).K
    a = fit(pd.DataFrame(K, columns=["a", "b", "c"]), new, eps=0.5)
    with pytest.raises(ValueError, match=r"n_features_in_ is 3 .* and 2"):
        a.merge(fit(K[:, :2], new, eps=0.5))
    with pytest.raises(ValueError, match="'b' / 'x'"):
        a.merge(fit(pd.DataFrame(K, columns=["a", "x", "c"]), new, eps=0.5))
    with pytest.raises(ValueError, match="names differ"):
        a.merge(fit(pd.DataFrame(K, columns=["b", "a", "c"]), new, eps=0.5))
    assert (a | fit(K, new, eps=0.5)).feature_names_in_.tolist() == ["a", "b", "c"]

    class Other(type(a)):
        pass

    strangers = {LeverageKeySelector, LpSensitivitySelector} - {type(a)}
    for other in (Other(eps=0.5), strangers.pop()(eps=0.5), BaseEstimator(), None, 3):
        with pytest.raises(TypeError, match=r"cannot merge|both must be"):
            a.merge(other)
    with pytest.raises(TypeError):
        a | 3


@few_selectors
def test_parameters_changed_after_fitting_are_not_merged(new):
    K = make(gaussian, 12, 200, 3).K
    a, b = fit(K, new, eps=0.5), fit(K, new, eps=0.4).set_params(eps=0.5)
    with pytest.raises(ValueError, match="changed after"):
        a.merge(b)


@every_selector
def test_row_numbers_of_the_other_follow_on(new):
    a = stream([np.array([[1.0, 0], [1.0, 0]])], new, eps=0.9, min_keys=0)
    b = stream([np.array([[2.0, 0], [0, 3.0], [2.0, 0]])], new, eps=0.9, min_keys=0)
    with quiet():
        assert (a | b).indices_.tolist() == [3]
        assert (b | a).indices_.tolist() == [1]
        # twice there, that key has a half; bounds of merged states may say more, of that key
        assert set(((a | b) | b).indices_.tolist()) <= {3, 6}
        assert new is not LeverageKeySelector or not ((a | b) | b).indices_.size


@every_selector
def test_merged_selectors_pickle_and_save(new):
    K = make(gaussian, 13, 3000, 3).K
    merged = fit(K[:1000], new, eps=0.05) | fit(K[1000:], new, eps=0.05)
    assert pickle.loads(pickle.dumps(merged)).to_bytes() == merged.to_bytes()
    assert type(merged).from_bytes(merged.to_bytes()).to_bytes() == merged.to_bytes()


@few_selectors
def test_narrow_and_wide_shards_merge_to_the_wide_type(new):
    K = make(gaussian, 14, 400, 3).K
    a, b = fit(K.astype(np.float32), new, eps=0.1), fit(K, new, eps=0.1)
    with quiet():
        assert (a | a).keys_.dtype == np.float32
        assert (a | b).keys_.dtype == (b | a).keys_.dtype == np.float64


@few_selectors
def test_row_numbers_beyond_int64_are_refused(new):
    a = fit(make(gaussian, 15, 300, 3).K, new, eps=0.5)
    b = fit(make(gaussian, 15, 300, 3).K, new, eps=0.5)
    b._stream = dataclasses.replace(b._stream, n_seen=2**63 - 200)
    with pytest.raises(OverflowError, match="2\\*\\*63"):
        a.merge(b)
