"""``levsketch scores`` against brute force over all keys."""

import json

import numpy as np
import pytest
import scipy.sparse

import levsketch as lv
from levsketch.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Return keys and queries, saved with the set of the keys in the working folder."""
    monkeypatch.chdir(tmp_path)
    planted = lv.datasets.make_planted_attention(600, 6, n_relevant=4, random_state=0)
    np.save("k.npy", planted.K)
    np.save("q.npy", planted.Q)
    assert main(["select", "k.npy", "-o", "set.npz", "--eps", "0.1", "--quiet"]) == 0
    return planted


def brute_force(K, Q):
    products = (Q.astype(np.float64) @ K.T) ** 2
    return products / products.sum(axis=1, keepdims=True)


def run(*arguments, capsys):
    code = main(["scores", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def refusal(*arguments, capsys):
    code, out, err = run(*arguments, capsys=capsys)
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("levsketch: error: ")
    return code, err


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4"])
def test_heavy_scores_are_those_of_brute_force(folder, capsys, dtype):
    np.save("q.npy", folder.Q.astype(dtype))
    code, out, _ = run("set.npz", "--queries", "q.npy", "-o", "s.npz", capsys=capsys)
    assert code == 0
    found = scipy.sparse.load_npz("s.npz")
    truth = brute_force(folder.K, folder.Q.astype(dtype))
    assert found.shape == truth.shape
    assert found.dtype == dtype.replace(">", "<")
    np.testing.assert_array_equal(found.toarray() > 0, truth >= 0.1)
    np.testing.assert_allclose(found.data, truth[truth >= 0.1], rtol=1e-6)
    assert found.nnz > 50
    assert f"{found.nnz} scores >= 0.1" in out


def test_dense_scores_are_those_of_brute_force(folder, capsys):
    assert run("set.npz", "--queries", "q.npy", "-o", "s.npz", "--dense", capsys=capsys)[0] == 0
    truth = brute_force(folder.K, folder.Q)
    with np.load("s.npz") as found:
        np.testing.assert_array_equal(found["indices"], np.load("set.npz")["indices"])
        np.testing.assert_allclose(found["scores"], truth[:, found["indices"]], atol=1e-12)


@pytest.mark.parametrize("flags", [[], ["--dense"]])
def test_queries_go_through_in_blocks(folder, capsys, monkeypatch, flags):
    from levsketch.cli import parser

    assert run("set.npz", "--queries", "q.npy", "-o", "a.npz", *flags, capsys=capsys)[0] == 0
    monkeypatch.setattr(parser, "_size", lambda text: 100)
    assert run("set.npz", "--queries", "q.npy", "-o", "b.npz", *flags, capsys=capsys)[0] == 0
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert a.files == b.files
        for name in a.files:
            if a[name].dtype.kind == "f":
                np.testing.assert_allclose(a[name], b[name], atol=1e-13)
            else:
                np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("flags", [[], ["--dense"]])
def test_the_same_run_gives_the_same_bytes(capsys, flags):
    contents = []
    for _ in range(2):
        arguments = ["set.npz", "--queries", "q.npy", "-o", "s.npz", "--overwrite", *flags]
        assert run(*arguments, capsys=capsys)[0] == 0
        with open("s.npz", "rb") as file:
            contents.append(file.read())
    assert contents[0] == contents[1]


def test_a_saved_state_will_do(folder, capsys):
    lv.LeverageKeySelector(eps=0.1).fit(folder.K).save("k.lev")
    for name in ("set.npz", "k.lev"):
        assert run(name, "--queries", "q.npy", "-o", f"{name}.s", capsys=capsys)[0] == 0
    with open("set.npz.s", "rb") as a, open("k.lev.s", "rb") as b:
        assert a.read() == b.read()


@pytest.mark.parametrize(("flags", "width"), [([], 600), (["--dense"], 4)])
def test_no_queries_give_no_scores(capsys, flags, width):
    np.save("q.npy", np.zeros((0, 6)))
    code, out, _ = run(
        "set.npz", "--queries", "q.npy", "-o", "s.npz", "--json", *flags, capsys=capsys
    )
    assert code == 0
    assert json.loads(out)["shape"] == [0, width]


def test_json(folder, capsys):
    code, out, err = run("set.npz", "--queries", "q.npy", "-o", "s.npz", "--json", capsys=capsys)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["queries"] == len(folder.Q)
    assert found["entries"] == scipy.sparse.load_npz("s.npz").nnz
    assert (found["keys_seen"], found["eps"], found["dense"]) == (600, 0.1, False)


def test_refusals(folder, capsys):
    bad = folder.Q.copy()
    bad[3, 2] = np.nan
    np.save("bad.npy", bad)
    np.save("narrow.npy", folder.Q[:, :5])
    with open("text", "w") as file:
        file.write("hello")
    for arguments, code, words in (
        (["set.npz", "--queries", "bad.npy", "-o", "s.npz"], 65, "bad.npy: NaN at row 3, column 2"),
        (["set.npz", "--queries", "narrow.npy", "-o", "s.npz"], 65, "narrow.npy: has 5 columns"),
        (["set.npz", "--queries", "none.npy", "-o", "s.npz"], 66, "none.npy: No such file"),
        (["none.npz", "--queries", "q.npy", "-o", "s.npz"], 66, "none.npz: No such file"),
        (["text", "--queries", "q.npy", "-o", "s.npz"], 66, "text: is no set"),
        (["q.npy", "--queries", "q.npy", "-o", "s.npz"], 66, "q.npy: is a .npy file"),
        (["set.npz", "--queries", "q.npy", "-o", "k.npy"], 73, "k.npy: exists"),
        (["set.npz", "--queries", "q.npy", "-o", "set.npz", "--overwrite"], 73, "input files"),
    ):
        found, err = refusal(*arguments, capsys=capsys)
        assert found == code
        assert words in err
