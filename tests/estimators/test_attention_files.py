"""Saved attention sketches: the same bytes and the same future, or a refusal that says why."""

import contextlib
import copy
import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from garbled import GARBAGE, holders, pack_nan
from hypothesis import given, settings
from hypothesis import strategies as st
from sketching import SKETCHES, drawn, every_sketch, few_sketches, fit, public, quiet

import levsketch as lv
from levsketch import LevsketchFormatError, StreamingAttentionSketch
from levsketch.estimators import StreamEstimator
from levsketch.streaming import serialize

load = StreamingAttentionSketch.from_bytes
DATA = drawn(0, 1700)
SAVED = {name: fit(DATA, new).to_bytes() for name, new in SKETCHES.items()}
# Frames of moments are not compared with the rows that wait: that these are far out of them is
# told when they meet.
LATE = (OverflowError, RuntimeWarning, LevsketchFormatError)
FORGIVEN = {name: LATE if b"PolynomialStream" in data else () for name, data in SAVED.items()}
SAVED["waiting"] = fit(drawn(0, 5)).to_bytes()
SAVED["with queries"] = fit(DATA, SKETCHES["embedding"], queries=DATA.Q).to_bytes()
FORGIVEN |= {"waiting": (), "with queries": (), "ahead": LATE}
SAVED["ahead"] = SKETCHES["ams"]().fit(*DATA[:2]).partial_fit_keys(DATA.K[:3]).to_bytes()


@every_sketch
@pytest.mark.parametrize("n", [1, 511, 512, 700, 2048])
def test_a_loaded_sketch_has_the_same_bytes_answers_and_future(new, n):
    data = drawn(1, n)
    sketch = fit(data, new, queries=data.Q if new().sketch is None and n % 2 else None)
    loaded = load(sketch.to_bytes())
    assert loaded.to_bytes() == sketch.to_bytes()
    assert loaded.get_params() == new().get_params() or sketch.residual_ != sketch.residual
    assert public(loaded, data.Q) == public(sketch, data.Q)
    more = drawn(2, 1300)
    assert loaded.partial_fit(*more[:2]).to_bytes() == sketch.partial_fit(*more[:2]).to_bytes()


def test_save_and_load_go_through_a_file_with_feature_names(tmp_path):
    frame = pd.DataFrame(DATA.K, columns=["a", "ü", "x y"])
    sketch = StreamingAttentionSketch(n_keys=24, sparsity=5).fit(frame, DATA.V[:, 0])
    sketch.save(tmp_path / "sketch.lev")
    assert (tmp_path / "sketch.lev").read_bytes() == sketch.to_bytes()
    loaded = lv.load(tmp_path / "sketch.lev")
    assert type(loaded) is StreamingAttentionSketch
    assert loaded.feature_names_in_.tolist() == ["a", "ü", "x y"]
    assert loaded.sparsity == 5
    assert loaded.predict(frame.iloc[:3]).shape == (3,)
    loaded.partial_fit(frame, DATA.V[:, 0])
    with pytest.raises(ValueError, match="feature names"):
        loaded.partial_fit(frame.rename(columns={"a": "b"}), DATA.V[:, 0])


@pytest.mark.parametrize(
    "params",
    [
        {"n_keys": np.int8(20), "scale": np.float32(0.3), "decay": 1, "random_state": 2**70},
        {"max_memory": "9kB", "residual": "closure"},
        {"function": np.int64(4), "max_memory": 10_001},
        {"sketch": "gaussian", "sketch_size": np.int16(9), "degree": np.int8(4)},
    ],
    ids=str,
)
def test_parameters_of_any_numeric_type_come_back_equal(params):
    sketch = StreamingAttentionSketch(**params).fit(*DATA[:2])
    loaded = load(sketch.to_bytes())
    assert loaded._policy() == sketch._policy()
    assert loaded.partial_fit(*DATA[:2]).to_bytes() == sketch.partial_fit(*DATA[:2]).to_bytes()


@few_sketches
def test_what_was_changed_after_fitting_does_not_make_the_file_unreadable(new):
    sketch = fit(DATA, new)
    expected = sketch.to_bytes()
    sketch.set_params(n_keys=3, decay=0.5, scale="?", sparsity=-1)
    assert load(sketch.to_bytes()).to_bytes() == expected


@pytest.mark.parametrize("name", SAVED)
def test_truncations_and_flipped_bits_are_refused(name):
    data = SAVED[name]
    # all of the header, and places everywhere
    size = len(data)
    for place in [*range(0, min(2200, size), 3), *range(2200, size, 97), *range(size - 33, size)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        for bad in (data[:place], bytes(flipped)):
            with pytest.raises(LevsketchFormatError):
                load(bad)
    for bad in (data + b"\0", data + data):
        with pytest.raises(LevsketchFormatError):
            load(bad)


def test_states_of_other_classes_are_refused(tmp_path):
    other = lv.LeverageKeySelector(eps=1.0).fit(DATA.K).to_bytes()
    with pytest.raises(LevsketchFormatError, match="not a StreamingAttentionSketch"):
        load(other)
    with pytest.raises(LevsketchFormatError, match="not a LeverageKeySelector"):
        lv.LeverageKeySelector.from_bytes(SAVED["auto"])
    (tmp_path / "pickle").write_bytes(pickle.dumps(fit(DATA)))
    with pytest.raises(LevsketchFormatError):
        lv.load(tmp_path / "pickle")


def changed(name, change):
    """Return a saved state whose metadata and arrays were changed, with a valid digest."""
    kind, whole, arrays = serialize.unpack(SAVED[name])
    whole = copy.deepcopy(whole)
    change(whole, arrays)
    return pack_nan(kind, whole, arrays)


PARAMETERS = {
    "auto": {
        "n_keys": [0, -1, 1.5, "x", None, 25],
        "scale": [0.0, -1.0, float("nan"), float("inf"), "x", None, 1, 1e101],
        "residual": ["x", None, 1, []],
        "decay": [0.0, 1.5, float("nan"), "x", None, 1],
        "max_memory": [0, -1, "1MB", 2.5, True],
        "random_state": [-1, None, 0.5, "0"],
        "extra": [1],
    },
    "moments": {
        "function": ["x", 2.0, None],
        "degree": [3, 0, 100, 6, "4", None],
        "sketch": ["ams", "x", 3],
        "sketch_size": [7],
        "floats": [0, -1, 10, "x"],
        "seed": [-1, None, "0"],
    },
    "ams": {"sketch": ["exact", "gaussian"], "sketch_size": [0, 33, -1, 2.0], "decay": [0.5]},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_impossible_parameters_are_refused_though_all_fields_agree(name):
    spelt = {"floats": "max_memory", "seed": "random_state"}
    for field, values in PARAMETERS[name].items():
        for value in values:

            def change(whole, _, field=field, value=value):
                whole["params"][spelt.get(field, field)] = value
                whole["stream"]["policy"][field] = value

            with pytest.raises(LevsketchFormatError):
                load(changed(name, change))


@pytest.mark.parametrize("kind", ["PolynomialStream", "KeyStream", "", None, 3, ["a"], {}])
def test_states_of_other_streams_are_refused(kind):
    with pytest.raises(LevsketchFormatError):
        load(changed("auto", lambda whole, _: whole["stream"].update(kind=kind)))
    with pytest.raises(LevsketchFormatError):
        load(changed("auto", lambda whole, _: whole["stream"].pop("kind")))


@pytest.mark.parametrize("flat", [None, 1, "yes", True])
def test_flat_values_of_two_columns_are_refused(flat):
    for name in ("auto", "moments"):
        with pytest.raises(LevsketchFormatError):
            load(changed(name, lambda whole, _: whole["stream"].update(flat=flat)))


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c", "d"], "abc", 3, [1, 2, 3]], ids=str)
def test_feature_names_that_do_not_fit_are_refused(names):
    with pytest.raises(LevsketchFormatError):
        load(changed("auto", lambda whole, _: whole.update(feature_names=names)))


@pytest.mark.parametrize("size", [10**4, 10**9, 2**40, 2**63])
@pytest.mark.parametrize("name", ["auto", "closure", "moments", "ams", "waiting"])
def test_states_that_claim_many_columns_are_refused_without_room_for_them(name, size):
    def claim(whole, _, field):
        whole["stream"][field] = size

    tracemalloc.start()
    for field in ("n_features", "n_outputs"):
        with pytest.raises(LevsketchFormatError):
            load(changed(name, lambda whole, arrays, f=field: claim(whole, arrays, f)))
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


@pytest.mark.parametrize("name", SAVED)
@settings(max_examples=25)
@given(st.data())
def test_states_with_one_field_garbled_are_refused_or_work(name, data):
    kind, whole, arrays = serialize.unpack(SAVED[name])
    whole = copy.deepcopy(whole)
    found = holders(whole)
    holder = found[data.draw(st.sampled_from(range(len(found))))]
    field, value = data.draw(st.sampled_from(sorted(holder))), data.draw(GARBAGE)
    holder[field] = value
    policy = whole["stream"].get("policy") if isinstance(whole["stream"], dict) else None
    if holder is whole["params"] and isinstance(policy, dict) and field in policy:
        policy[field] = value  # else the two contradict each other
    with contextlib.suppress(*FORGIVEN[name]):
        works_or_is_refused(pack_nan(kind, whole, arrays))


@pytest.mark.parametrize("name", SAVED)
@settings(max_examples=25)
@given(st.data())
def test_states_with_one_number_garbled_are_refused_or_work(name, data):
    kind, whole, arrays = serialize.unpack(SAVED[name])
    field = data.draw(st.sampled_from(sorted(key for key, array in arrays.items() if array.size)))
    spoilt = arrays[field].copy()
    place = data.draw(st.integers(0, spoilt.size - 1))
    numbers = [-1.0, 0.0, 1.0, 1e-300, 5e-324, 1e17, -3.5, 1e150, -1e300, np.nan, np.inf]
    if spoilt.dtype != np.float64:
        numbers = [0, 1, 2, 200]
    spoilt.flat[place] = data.draw(st.sampled_from(numbers))
    with contextlib.suppress(*FORGIVEN[name]):
        works_or_is_refused(serialize.pack(kind, whole, arrays | {field: spoilt}))


def works_or_is_refused(data):
    """Check that garbled bytes are refused, or else answer, go on and are saved again."""
    try:
        loaded = StreamEstimator.from_bytes(data)
    except LevsketchFormatError:
        return
    with quiet(), np.errstate(all="ignore"):
        try:
            found = loaded.transform(DATA.Q)
        except lv.LevsketchStateError:
            return  # keys without their values
        assert not np.isnan(found).any()
        assert not np.isnan(loaded.error_bound(DATA.Q)).any()
        covered = loaded.covered_mass(DATA.Q)
        assert ((covered >= 0.0) & (covered <= 1.0)).all()
        try:
            loaded.partial_fit(DATA.K, DATA.V[:, : loaded.n_outputs_])
        except OverflowError:  # the first block was of another size
            return
        loaded.transform(DATA.Q)
        load(loaded.to_bytes())


@every_sketch
def test_pickle_copy_and_deepcopy_keep_the_state(new):
    sketch = fit(DATA, new)
    data = sketch.to_bytes()
    for again in (pickle.loads(pickle.dumps(sketch)), copy.copy(sketch), copy.deepcopy(sketch)):
        assert again.to_bytes() == data
        again.partial_fit(DATA.K, DATA.V)
    assert sketch.to_bytes() == data
