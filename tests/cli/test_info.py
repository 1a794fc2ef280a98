"""``levsketch info``: what a file is, and that it is whole."""

import json

import numpy as np
import pytest

import levsketch as lv
from levsketch.cli import main


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    K = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    K[9] *= 50
    np.save("k.npy", K)
    assert main(["select", "k.npy", "-o", "set.npz", "--eps", "0.25", "--quiet"]) == 0
    lv.LeverageKeySelector(n_keys=3).fit(K).save("k.lev")


def info(name, capsys):
    """Return what ``--json`` gives, and the text."""
    assert main(["info", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["info", name]) == 0
    return found, capsys.readouterr().out


def test_a_set(capsys):
    found, text = info("set.npz", capsys)
    assert (found["kind"], found["rows"], found["columns"]) == ("set", 500, 4)
    assert (found["eps"], found["selected"], found["certified"]) == (0.25, 1, True)
    assert found["format_version"] == 1
    assert found["files"] == [{"path": "k.npy", "first_row": 0}]
    assert "1 key (score >= 0.25)" in text
    assert "checksum matches" in text


def test_a_state(capsys):
    found, text = info("k.lev", capsys)
    assert (found["kind"], found["n_keys"], found["selected"]) == ("state", 3, 3)
    assert "the 3 largest scores" in text


def test_npy_files_usable_or_not(capsys):
    found, text = info("k.npy", capsys)
    assert (found["shape"], found["dtype"], found["order"]) == ([500, 4], "<f4", "C")
    assert found["problem"] is None
    assert "500 x 4" in text
    assert "usable  yes" in text
    np.save("f.npy", np.asfortranarray(np.ones((3, 4), ">f8")))
    assert info("f.npy", capsys)[0]["order"] == "F"
    np.save("one.npy", np.ones(7))
    assert "usable  no: has shape (7,)" in info("one.npy", capsys)[1]
    np.save("scalar.npy", np.float64(1))
    assert "a single number" in info("scalar.npy", capsys)[1]


def test_scores(capsys):
    arguments = ["scores", "set.npz", "--queries", "k.npy", "--quiet"]
    assert main([*arguments, "-o", "s.npz"]) == 0
    assert main([*arguments, "-o", "d.npz", "--dense"]) == 0
    found, text = info("s.npz", capsys)
    assert (found["kind"], found["queries"]) == ("sparse scores", 500)
    assert "500 queries" in text
    assert "scipy.sparse.load_npz" in text
    found, text = info("d.npz", capsys)
    assert (found["kind"], found["queries"], found["selected"]) == ("dense scores", 500, 1)


@pytest.mark.parametrize("name", ["k.npy", "set.npz", "k.lev"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_damage_is_one_line_and_66(capsys, name, flags):
    with open(name, "rb") as file:
        raw = file.read()
    for damaged in (raw[:-1], raw[:20], b"", raw + b"x" if name != "set.npz" else raw[:-30]):
        with open(name, "wb") as file:
            file.write(damaged)
        assert main(["info", name, *flags]) == 66
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"levsketch: error: {name}: ")
        assert err.count("\n") == 1


def test_a_newer_state_says_so(capsys):
    with open("k.lev", "r+b") as file:
        file.seek(8)
        file.write((99).to_bytes(4, "little"))
    assert main(["info", "k.lev"]) == 66
    assert "format version 99" in capsys.readouterr().err


def test_other_archives_are_refused(capsys):
    np.savez("x.npz", a=np.ones(2))
    assert main(["info", "x.npz"]) == 66
    assert "neither a set nor scores (a)" in capsys.readouterr().err


def test_an_uncertified_state_warns_in_one_line(capsys):
    made = lv.datasets.make_ill_conditioned_keys(300, 4, condition=1e15, random_state=0)
    lv.LeverageKeySelector(eps=0.5).partial_fit(made.K).save("ill.lev")
    assert main(["info", "ill.lev"]) == 0
    out, err = capsys.readouterr()
    assert "certified  no" in out
    assert err.startswith("levsketch: warning: ")
    assert err.count("\n") == 1
