"""save and load: the same bytes and the same future, or a refusal that says why."""

import copy
import errno
import functools
import hashlib
import json
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from fitting import (
    LP_SELECTORS,
    SELECTORS,
    every_lp_selector,
    every_selector,
    few_selectors,
    fit,
    public,
    quiet,
    snapshot,
    stream,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gaussian, keys, make

import levsketch as lv
from levsketch import LeverageKeySelector, LevsketchFormatError, LpSensitivitySelector
from levsketch.estimators import StreamEstimator
from levsketch.streaming import serialize

SMALL = fit(make(gaussian, 0, 1100, 2).K, eps=0.05)
DATA = SMALL.to_bytes()
SAVED = {
    name: fit(make(gaussian, 0, 1100, 2).K, new, eps=0.2).to_bytes()
    for name, new in SELECTORS.items()
}
LP_SAVED = [SAVED[name] for name in LP_SELECTORS]


def spoil(change, data=DATA):
    """Return saved bytes whose header was changed in place, with a valid digest."""
    kind, whole, arrays = serialize.unpack(data)
    whole = copy.deepcopy(whole)
    change(whole, arrays)
    return serialize.pack(kind, whole, arrays)


VARIANTS = [LeverageKeySelector, functools.partial(LeverageKeySelector, intercept=True)]
VARIANTS += LP_SELECTORS.values()


@pytest.mark.parametrize("new", VARIANTS, ids=["leverage", "intercept", *LP_SELECTORS])
@settings(max_examples=15)
@given(keys(max_rows=3000, max_columns=3), st.sampled_from([None, 3]))
def test_a_loaded_selector_has_the_same_bytes_answers_and_future(new, made, n_keys):
    selector = fit(made.K, new, eps=0.03, n_keys=n_keys)
    loaded = type(selector).from_bytes(selector.to_bytes())
    assert loaded.to_bytes() == selector.to_bytes()
    more = np.asarray(make(gaussian, 1, 1500, made.K.shape[1]).K)[:, : made.K.shape[1]]
    more = np.resize(more, (1500, made.K.shape[1]))
    assert public(loaded, more[:5]) == public(selector, more[:5])
    assert loaded.keys_.dtype == selector.keys_.dtype
    assert loaded.partial_fit(more).to_bytes() == selector.partial_fit(more).to_bytes()
    with quiet():
        assert loaded.certified_ == selector.certified_


@every_lp_selector
def test_a_selector_that_never_stopped_is_what_stops_at_any_row_and_goes_on(new):
    K = make(gaussian, 9, 4000, 3).K
    with quiet():
        whole = stream([K], new, eps=0.1)
        answers = public(whole, K[:4])
        for place in (1, 1023, 1024, 1025, 2048, 3999):
            first = new(eps=0.1).partial_fit(K[:place])
            again = type(first).from_bytes(first.to_bytes()).partial_fit(K[place:])
            assert again.to_bytes() == whole.to_bytes()
            assert public(again, K[:4]) == answers


def test_save_and_load_go_through_a_file(tmp_path):
    path = tmp_path / "set.lev"
    SMALL.save(path)
    assert path.read_bytes() == DATA
    assert lv.load(str(path)).to_bytes() == DATA
    assert type(lv.load(path)) is LeverageKeySelector
    assert os.listdir(tmp_path) == ["set.lev"]


def test_feature_names_come_back(tmp_path):
    frame = pd.DataFrame(make(gaussian, 2, 300, 3).K, columns=["a", "ü", "x y"])
    selector = fit(frame, eps=0.05)
    selector.save(tmp_path / "x")
    loaded = lv.load(tmp_path / "x")
    assert loaded.feature_names_in_.tolist() == ["a", "ü", "x y"]
    loaded.partial_fit(frame)
    with pytest.raises(ValueError, match="feature names"):
        loaded.partial_fit(frame.rename(columns={"a": "b"}))


@pytest.mark.parametrize(
    "params",
    [
        {"eps": np.float32(0.05)},
        {"eps": np.float64(0.05), "n_keys": np.int64(3)},
        {"eps": 1, "min_keys": np.uint8(2), "intercept": np.bool_(True)},
        {"ridge": 3},
        {"new": LpSensitivitySelector},
        {"new": LpSensitivitySelector, "p": np.float32(3), "delta": 1, "random_state": 2**70},
        {"new": LpSensitivitySelector, "p": 1, "refine": np.bool_(True), "sketch_size": np.int8(9)},
        {"new": LpSensitivitySelector, "normaliser": None, "max_memory": 1 << 22},
    ],
)
def test_parameters_of_any_numeric_type_come_back_equal(params):
    selector = fit(make(gaussian, 3, 500, 3).K, **params)
    loaded = type(selector).from_bytes(selector.to_bytes())
    # the same meaning: a size in memory comes back as a number of bytes
    assert loaded._policy() == selector._policy()


@every_selector
def test_what_was_changed_after_fitting_does_not_make_the_file_unreadable(new):
    selector = fit(make(gaussian, 4, 500, 3).K, new, eps=0.05)
    selector.set_params(eps=0.5, n_keys=4)
    loaded = type(selector).from_bytes(selector.to_bytes())
    np.testing.assert_array_equal(loaded.indices_, selector.indices_)


def test_unfitted_selectors_have_nothing_to_save(tmp_path):
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        LeverageKeySelector().to_bytes()
    with pytest.raises(NotFittedError):
        LeverageKeySelector().save(tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_every_truncation_of_a_selector_is_refused():
    for size in range(len(DATA)):
        with pytest.raises(LevsketchFormatError):
            LeverageKeySelector.from_bytes(DATA[:size])


def test_every_flipped_bit_of_a_selector_is_refused():
    for place in range(len(DATA)):
        spoilt = bytearray(DATA)
        for bit in range(8):
            spoilt[place] ^= 1 << bit
            with pytest.raises(LevsketchFormatError):
                LeverageKeySelector.from_bytes(bytes(spoilt))
            spoilt[place] ^= 1 << bit


@pytest.mark.parametrize("data", LP_SAVED, ids=LP_SELECTORS)
def test_truncations_and_flipped_bits_of_other_selectors_are_refused(data):
    # all of the header, and places everywhere
    for place in [*range(1200), *range(1200, len(data), 97), *range(len(data) - 33, len(data))]:
        if place >= len(data):
            continue
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << place % 8
        for bad in (data[:place], bytes(spoilt)):
            with pytest.raises(LevsketchFormatError):
                LpSensitivitySelector.from_bytes(bad)


@few_selectors
def test_states_of_one_selector_are_none_of_another(new, tmp_path):
    for name, data in SAVED.items():
        mine = type(new())
        if (name == "leverage") == (mine is LeverageKeySelector):
            assert type(mine.from_bytes(data)) is mine
            (tmp_path / "x").write_bytes(data)
            assert type(lv.load(tmp_path / "x")) is mine
        else:
            with pytest.raises(LevsketchFormatError, match="not a"):
                mine.from_bytes(data)


def test_bytes_after_the_end_are_refused():
    with pytest.raises(LevsketchFormatError):
        LeverageKeySelector.from_bytes(DATA + b"\0")
    with pytest.raises(LevsketchFormatError):
        LeverageKeySelector.from_bytes(DATA + DATA)


def test_pickles_are_not_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (tmp_path / "bomb").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(LevsketchFormatError):
        lv.load(tmp_path / "bomb")
    assert not (tmp_path / "exploded").exists()


def test_missing_files_are_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        lv.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        lv.load(tmp_path)


@pytest.mark.parametrize("kind", ["Other", "", "BaseEstimator", "StreamEstimator", "__class__"])
def test_states_of_other_classes_are_refused(kind):
    _, whole, arrays = serialize.unpack(DATA)
    with pytest.raises(LevsketchFormatError, match=r"not a|garbles|absurd"):
        LeverageKeySelector.from_bytes(serialize.pack(kind, whole, arrays))


PARAMETERS = [
    ("eps", [0.0, -1.0, 2.0, "x", None, float("nan"), [0.05]]),
    ("n_keys", [0, -1, 1.5, "x"]),
    ("min_keys", [-1, None, "x", 0.5]),
    ("intercept", ["x", None, 2, True]),
    ("ridge", [-1.0, float("nan"), float("inf"), "x", None]),
    ("extra", [1]),
]


def pack_nan(kind, whole, arrays):
    """Pack like ``pack``, which refuses NaN in metadata, but with it."""
    data = serialize.pack(kind, {}, arrays)
    size = struct.unpack_from("<8sIQ", data)[2]
    header = json.loads(data[20 : 20 + size]) | {"meta": whole}
    raw = json.dumps(header).encode()
    body = data[:12] + struct.pack("<Q", len(raw)) + raw + data[20 + size : -32]
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("name", "values"), PARAMETERS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_impossible_parameters_are_refused_though_all_fields_agree(name, values):
    kind, whole, arrays = serialize.unpack(DATA)
    for value in values:
        changed = copy.deepcopy(whole)
        changed["params"][name] = changed["stream"]["policy"][name] = value
        with pytest.raises(LevsketchFormatError):
            LeverageKeySelector.from_bytes(pack_nan(kind, changed, arrays))


@pytest.mark.parametrize(
    "names",
    [["a"], ["a", "b", "c"], [], "ab", 3, [1, 2], [None, None], [["a"], ["b"]]],
    ids=str,
)
def test_feature_names_that_do_not_fit_are_refused(names):
    with pytest.raises(LevsketchFormatError):
        LeverageKeySelector.from_bytes(spoil(lambda whole, _: whole.update(feature_names=names)))


@pytest.mark.parametrize("field", ["feature_names", "params", "stream"])
@pytest.mark.parametrize("value", [3, "x", [1], True])
def test_wholes_of_the_wrong_shape_are_refused(field, value):
    with pytest.raises(LevsketchFormatError):
        LeverageKeySelector.from_bytes(spoil(lambda whole, _: whole.update({field: value})))
    with pytest.raises(LevsketchFormatError):
        LeverageKeySelector.from_bytes(spoil(lambda whole, _: whole.pop(field)))


@pytest.mark.parametrize("size", [10**4, 10**6, 10**9, 2**40, 2**63])
def test_states_that_claim_many_features_are_refused_without_room_for_them(size):
    def claim(whole, _):
        whole["stream"]["n_features"] = size

    data = spoil(claim)
    tracemalloc.start()
    with pytest.raises(LevsketchFormatError):
        LeverageKeySelector.from_bytes(data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


GARBAGE = st.one_of(
    st.sampled_from([None, True, False, 0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 1e308, 2.0**63]),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), 2**31, 2**63, -(2**63), 10**400]),
    # no st.integers: it mixes in constants of whatever modules are imported by then
    st.sampled_from([*range(-3, 20), 99, 100, 899, 900, 1023, 1024, 1025, 5999]),
    st.sampled_from(["", "a", "lift", "gram", "f8", "float32", "é\0", "huber", "auto"]),
    st.sampled_from([[], [0], [4, 1], [1, 0], [0, 1], [2, 2], [3, -1], [0, 0, 0, 0]]),
    st.sampled_from([{}, {"p": 1}, {"": 2**70}, [{}], [["huber", {}]], ["huber", {}]]),
)


@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED)
@settings(max_examples=120)
@given(st.data())
def test_states_with_one_field_garbled_are_refused_or_work(saved, data):
    kind, whole, arrays = serialize.unpack(saved)
    whole = copy.deepcopy(whole)
    inner = whole["stream"]
    holders = [whole, whole["params"], inner, inner["policy"], inner["prefix"], inner.get("lift")]
    holder = holders[data.draw(st.sampled_from([i for i, h in enumerate(holders) if h]))]
    field, value = data.draw(st.sampled_from(sorted(holder))), data.draw(GARBAGE)
    holder[field] = value
    if holder is whole["params"] and field in inner["policy"]:
        inner["policy"][field] = value  # else the two contradict each other
    try:
        loaded = StreamEstimator.from_bytes(pack_nan(kind, whole, arrays))
    except LevsketchFormatError:
        return
    with quiet():
        assert (loaded.scores_ >= 0).all()
        assert np.isfinite(loaded.keys_).all()
        if field == "max_memory" and value is not None:
            return  # a state that may well outgrow it
        loaded.partial_fit(np.ones((1500, 2)))
        assert (loaded.scores_ >= 0).all()
        type(loaded).from_bytes(loaded.to_bytes())


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_saving_to_a_failing_disk_keeps_the_old_file_and_the_selector(tmp_path, monkeypatch, call):
    path = tmp_path / "set.lev"
    SMALL.save(path)
    other = fit(make(gaussian, 5, 900, 2).K, eps=0.05)
    before = snapshot(other)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            other.save(path)
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["set.lev"]
    assert snapshot(other) == before


@every_selector
def test_pickle_copy_and_deepcopy_keep_the_state(new):
    small = fit(make(gaussian, 0, 1100, 2).K, new, eps=0.2)
    data = small.to_bytes()
    for again in (pickle.loads(pickle.dumps(small)), copy.copy(small), copy.deepcopy(small)):
        assert again.to_bytes() == data
        again.partial_fit(np.ones((5, 2)))
    assert small.to_bytes() == data


def test_saved_bytes_are_small_and_do_not_grow_with_the_rows():
    rng = np.random.default_rng(6)
    sizes = []
    selector = LeverageKeySelector(eps=0.1)
    for _ in range(6):
        with quiet():
            selector.partial_fit(rng.standard_normal((16_384, 3)))
        sizes.append(len(selector.to_bytes()))
    assert max(sizes) < 20_000
    assert stream([rng.standard_normal((50, 3))], eps=0.1).nbytes_ < 10_000
