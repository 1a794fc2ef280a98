"""set.npz: open to everyone, read back whole or refused."""

import zipfile

import numpy as np
import pytest

from levsketch import LeverageKeySelector
from levsketch.cli import setfile
from levsketch.cli.exits import NO_INPUT, CommandError
from levsketch.cli.npy import read_matrix_header
from levsketch.cli.output import npz_bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a small set: path, bytes, selector."""
    folder = tmp_path_factory.mktemp("set")
    K = np.random.default_rng(0).standard_normal((60, 3))
    K[7] *= 30
    np.save(folder / "a.npy", K[:20])
    np.save(folder / "b.npy", K[20:])
    sources = [read_matrix_header(str(folder / name)) for name in ("a.npy", "b.npy")]
    selector = LeverageKeySelector(eps=0.2).fit(K)
    data = setfile.set_bytes(selector, sources)
    (folder / "set.npz").write_bytes(data)
    return folder / "set.npz", data, selector


def refusal(path):
    with pytest.raises(CommandError) as caught:
        setfile.load_set(str(path))
    assert caught.value.code == NO_INPUT
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_the_set_opens_without_pickle_and_says_what_the_selector_says(made):
    path, _, selector = made
    with np.load(path, allow_pickle=False) as found:
        for name, value in (
            ("indices", selector.indices_),
            ("keys", selector.keys_),
            ("scores", selector.scores_),
            ("guard", selector.guard_),
            ("witnesses", selector.witness_queries()),
            ("first_rows", [0, 20]),
            ("n_samples_seen", 60),
            ("certified", True),
        ):
            np.testing.assert_array_equal(found[name], value)
        assert [name[-5:] for name in found["files"]] == ["a.npy", "b.npy"]


def test_reading_gives_back_the_selector_byte_for_byte(made):
    path, _, selector = made
    loaded = setfile.load_set(str(path))
    assert loaded.kind == "set"
    assert loaded.format_version == 1
    assert [row for _, row in loaded.files] == [0, 20]
    assert loaded.selector.to_bytes() == selector.to_bytes()


def test_a_saved_state_is_read_too(made, tmp_path):
    made[2].save(tmp_path / "k.lev")
    loaded = setfile.load_set(str(tmp_path / "k.lev"))
    assert loaded.kind == "state"
    assert loaded.selector.to_bytes() == made[2].to_bytes()


def test_no_member_carries_the_time_of_day(made):
    with zipfile.ZipFile(made[0]) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_no_truncation_is_read(made, tmp_path):
    path = tmp_path / "cut.npz"
    for size in [*range(0, len(made[1]), 97), len(made[1]) - 1]:
        path.write_bytes(made[1][:size])
        refusal(path)


def test_a_flipped_bit_is_refused_or_changes_nothing(made, tmp_path):
    path, data, selector = tmp_path / "flip.npz", bytearray(made[1]), made[2]
    rng = np.random.default_rng(0)
    codes = []
    for at in rng.integers(0, len(data), 150):
        bit = 1 << int(rng.integers(8))
        data[at] ^= bit
        path.write_bytes(data)
        data[at] ^= bit
        codes.append(0)
        try:
            loaded = setfile.load_set(str(path))
        except CommandError as error:
            codes[-1] = error.code
        else:  # time stamps and the like, which nobody reads
            assert loaded.selector.to_bytes() == selector.to_bytes()
    assert set(codes) <= {0, NO_INPUT}
    assert codes.count(NO_INPUT) > 100


def test_a_bit_flipped_in_any_array_is_refused_though_the_state_is_whole(made, tmp_path):
    path = tmp_path / "flip.npz"
    with np.load(made[0]) as found:
        arrays = dict(found) | {"keys": np.ones((10_000, 3))}
    data = bytearray(npz_bytes(arrays))
    data[data.index(bytes(arrays["keys"].tobytes())) + 100_000] ^= 1
    path.write_bytes(data)
    assert "keys.npy does not match its checksum" in refusal(path)


def test_archives_that_are_no_sets_are_refused(made, tmp_path):
    path = tmp_path / "x.npz"
    state = np.frombuffer(made[2].to_bytes(), np.uint8)
    row = np.zeros(1, np.int64)
    name = np.array(["a.npy"])

    np.savez(path, a=np.ones(3))
    assert "no set of keys" in refusal(path)
    np.savez(path, state=state)
    assert "it lacks files, first_rows" in refusal(path)
    np.savez(path, state=state[:-1], files=name, first_rows=row)
    assert "checksum" in refusal(path)
    np.savez(path, state=state, files=name, first_rows=np.zeros(2, np.int64))
    refusal(path)
    np.savez(path, state=np.array([{}], dtype=object), files=name, first_rows=row)
    assert "Python objects" in refusal(path)
    np.savez_compressed(path, state=state, files=name, first_rows=row)
    assert "compressed" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("state.npy", b"nonsense")
    assert "damaged" in refusal(path)


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "k.npy", np.ones((2, 2)))
    assert "needed is a set" in refusal(tmp_path / "k.npy")
    (tmp_path / "text").write_text("hello")
    assert "is no set" in refusal(tmp_path / "text")
    assert "No such file" in refusal(tmp_path / "none")
    assert "not a regular file" in refusal(tmp_path)


def test_the_same_arrays_give_the_same_bytes():
    arrays = {"a": np.arange(3), "b": np.ones((2, 2))}
    assert npz_bytes(arrays) == npz_bytes(arrays)
