"""``levsketch select``: the same as ``fit``, from files, or one line that says why not."""

import json
import os
import tracemalloc

import numpy as np
import pytest

import levsketch as lv
from levsketch.cli import main, select
from levsketch.cli.setfile import load_set

DTYPES = ["<f2", ">f4", "<f4", ">f8", "<f8", "i1", ">i8", "u2", "?"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(name="K")
def keys_with_outliers():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((3000, 5))
    keys[[17, 1500, 2999]] *= [[40.0], [60.0], [30.0]]
    return keys


def run(*arguments, capsys):
    code = main(["select", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def refusal(*arguments, capsys):
    code, out, err = run(*arguments, capsys=capsys)
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("levsketch: error: ")
    return code, err.removeprefix("levsketch: error: ").rstrip()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_set_is_the_one_that_fit_finds(K, capsys, dtype, order):
    keys = np.asarray(K > 1 if dtype == "?" else np.clip(np.abs(K), 0, 120), dtype, order=order)
    np.save("k.npy", keys)
    code, _, err = run("k.npy", "-o", "s.npz", "--block-bytes", "4K", capsys=capsys)
    assert (code, err) == (0, "")
    expected = lv.LeverageKeySelector().fit(keys)
    assert load_set("s.npz").selector.to_bytes() == expected.to_bytes()
    with np.load("s.npz") as found:
        np.testing.assert_array_equal(found["indices"], expected.indices_)
        np.testing.assert_array_equal(found["keys"], keys[expected.indices_])


@pytest.mark.parametrize(
    ("flags", "parameters"),
    [
        (["--eps", "0.3"], {"eps": 0.3}),
        (["--n-keys", "7"], {"n_keys": 7}),
        (["--eps", "0.9", "--min-keys", "4"], {"eps": 0.9, "min_keys": 4}),
        (["--intercept"], {"intercept": True}),
        (["--ridge", "2.5"], {"ridge": 2.5}),
        (["--eps", "1", "--min-keys", "0"], {"eps": 1.0, "min_keys": 0}),
    ],
)
def test_every_flag_reaches_the_estimator(K, capsys, flags, parameters):
    np.save("k.npy", K)
    assert run("k.npy", "-o", "s.npz", *flags, capsys=capsys)[0] == 0
    expected = lv.LeverageKeySelector(**parameters).fit(K)
    assert load_set("s.npz").selector.to_bytes() == expected.to_bytes()


def test_many_files_are_one_stream(K, capsys):
    np.save("whole.npy", K)
    names = []
    for i, part in enumerate(np.split(K, [1, 1, 700, 2999])):
        names.append(f"part{i}.npy")
        np.save(names[-1], part)
    assert run("whole.npy", "-o", "whole.npz", capsys=capsys)[0] == 0
    assert run(*names, "-o", "parts.npz", "--block-bytes", "1000", capsys=capsys)[0] == 0
    with np.load("whole.npz") as whole, np.load("parts.npz") as parts:
        for name in ("indices", "keys", "scores", "guard", "witnesses", "state"):
            np.testing.assert_array_equal(whole[name], parts[name])
        np.testing.assert_array_equal(parts["first_rows"], [0, 1, 1, 700, 2999])
        assert parts["files"].tolist() == names
        # a row number leads back to its file
        row = parts["indices"][1]
        at = np.searchsorted(parts["first_rows"], row, side="right") - 1
        source = np.load(parts["files"][at])
        np.testing.assert_array_equal(source[row - parts["first_rows"][at]], parts["keys"][1])


def test_the_same_run_gives_the_same_bytes(K, capsys):
    np.save("k.npy", K)
    contents = []
    for _ in range(2):
        assert run("k.npy", "-o", "s.npz", "--overwrite", capsys=capsys)[0] == 0
        with open("s.npz", "rb") as file:
            contents.append(file.read())
    assert contents[0] == contents[1]


def test_json_says_all_of_it(K, capsys):
    np.save("k.npy", K)
    code, out, err = run("k.npy", "k.npy", "-o", "s.npz", "--eps", "0.1", "--json", capsys=capsys)
    assert (code, err, out.count("\n")) == (0, "", 1)
    found = json.loads(out)
    expected = lv.LeverageKeySelector(eps=0.1).fit(np.vstack([K, K]))
    assert found["indices"] == expected.indices_.tolist()
    assert found["scores"] == expected.scores_.tolist()
    assert (found["rows"], found["columns"], found["selected"]) == (6000, 5, len(found["indices"]))
    assert found["bound"] == pytest.approx(50)
    assert found["files"][1] == {"path": "k.npy", "rows": 3000, "first_row": 3000}
    assert found["certified"] is True
    assert found["method"] == expected.method_
    assert found["condition_number"] == expected.condition_number_
    assert found["rows_per_second"] > 0
    assert found["output"] == "s.npz"


def test_the_summary_names_what_matters(K, capsys):
    np.save("k.npy", K)
    out = run("k.npy", "-o", "s.npz", "--eps", "0.1", capsys=capsys)[1]
    for words in ("3,000 rows x 5 columns from 1 file", "3 keys", "at most 50", "yes: ", "s.npz"):
        assert words in out
    out = run("k.npy", "-o", "n.npz", "--n-keys", "2", capsys=capsys)[1]
    assert "2 keys (asked for 2)" in out
    out = run("k.npy", "-o", "m.npz", "--eps", "1", "--min-keys", "4", capsys=capsys)[1]
    assert "0 keys with a score >= 1" in out
    assert "the best 4 below it" in out


def test_quiet_prints_nothing(K, capsys):
    np.save("k.npy", K)
    assert run("k.npy", "-o", "s.npz", "--quiet", capsys=capsys) == (0, "", "")
    assert os.path.exists("s.npz")


def test_keys_beyond_certification_are_a_warning_in_one_line(capsys):
    made = lv.datasets.make_ill_conditioned_keys(400, 4, condition=1e15, random_state=0)
    np.save("k.npy", made.K)
    code, out, err = run("k.npy", "-o", "s.npz", capsys=capsys)
    assert code == 0
    assert err.count("\n") == 1
    assert err.startswith("levsketch: warning: the keys have condition number")
    assert "certified  no: float64 cannot prove it" in out


def test_an_eps_that_reduces_nothing_is_a_warning(K, capsys):
    np.save("k.npy", K)
    code, _, err = run("k.npy", "-o", "s.npz", "--eps", "0.001", capsys=capsys)
    assert code == 0
    assert err == f"levsketch: warning: {lv._checks.not_reduced_text(5, 0.001, 3000)}\n"


def test_the_smallest_eps_has_no_bound_and_still_valid_json(capsys):
    np.save("k.npy", np.eye(3))
    code, out, _ = run("k.npy", "-o", "s.npz", "--eps", "5e-324", "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["bound"] is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_value_in_the_last_row_of_the_second_file_is_named(K, capsys, value):
    bad = K.copy()
    bad[-1, 3] = value
    np.save("a.npy", K)
    np.save("b.npy", bad)
    for size in ("100", "16M"):
        code, text = refusal("a.npy", "b.npy", "-o", "s.npz", "--block-bytes", size, capsys=capsys)
        assert code == 65
        assert text.startswith(f"b.npy: {'NaN' if value != value else 'infinity'} at row 2999, ")
        assert "column 3 " in text
    assert sorted(os.listdir()) == ["a.npy", "b.npy"]


def test_files_of_different_width_are_refused_by_name(K, capsys):
    np.save("a.npy", K)
    np.save("b.npy", K[:, :4])
    code, text = refusal("a.npy", "b.npy", "-o", "s.npz", capsys=capsys)
    assert code == 65
    assert text == "b.npy: has 4 columns, but a.npy has 5; all files must agree"


def test_no_rows_at_all_are_refused(K, capsys):
    np.save("a.npy", K[:0])
    assert refusal("a.npy", "a.npy", "-o", "s.npz", capsys=capsys)[0] == 65


@pytest.mark.parametrize("name", ["missing.npy", "trunc.npy", "empty.npy", "object.npy", "."])
def test_unusable_files_are_66_even_as_the_last_of_many(K, capsys, name):
    np.save("a.npy", K)
    with open("a.npy", "rb") as whole, open("trunc.npy", "wb") as cut:
        cut.write(whole.read()[:-1])
    open("empty.npy", "wb").close()
    np.save("object.npy", K.astype(object), allow_pickle=True)
    code, text = refusal("a.npy", name, "-o", "s.npz", capsys=capsys)
    assert code == 66
    assert text.startswith(f"{name}: ")


def test_a_matrix_too_wide_for_the_machine_is_refused_at_once(capsys):
    np.save("k.npy", np.zeros((1, 1 << 20), np.int8))
    code, text = refusal("k.npy", "-o", "s.npz", capsys=capsys)
    assert code == 71
    assert "64.0 TiB" in text
    assert "transposed" in text


def test_an_output_that_exists_is_refused_before_anything_is_read(K, capsys, monkeypatch):
    np.save("k.npy", K)
    with open("s.npz", "wb") as file:
        file.write(b"old")
    monkeypatch.setattr(select, "read_blocks", None)  # calling it would be a TypeError
    code, text = refusal("k.npy", "-o", "s.npz", capsys=capsys)
    assert (code, text) == (73, "s.npz: exists; --overwrite replaces it")
    assert refusal("k.npy", "-o", "none/s.npz", capsys=capsys)[0] == 73
    assert refusal("k.npy", "-o", "k.npy", "--overwrite", capsys=capsys)[0] == 73
    with open("s.npz", "rb") as file:
        assert file.read() == b"old"


def test_an_output_that_appears_meanwhile_is_not_replaced(K, capsys, monkeypatch):
    np.save("k.npy", K)
    absorb = select._absorb

    def and_somebody_writes(selector, block):
        absorb(selector, block)
        with open("s.npz", "wb") as file:
            file.write(b"theirs")

    monkeypatch.setattr(select, "_absorb", and_somebody_writes)
    assert refusal("k.npy", "-o", "s.npz", capsys=capsys)[0] == 73
    with open("s.npz", "rb") as file:
        assert file.read() == b"theirs"


def test_an_input_cut_while_it_is_read_is_74(K, capsys, monkeypatch):
    np.save("k.npy", K)
    absorb = select._absorb

    def and_somebody_cuts(selector, block):
        absorb(selector, block)
        os.truncate("k.npy", 10_000)

    monkeypatch.setattr(select, "_absorb", and_somebody_cuts)
    code, text = refusal("k.npy", "-o", "s.npz", "--block-bytes", "400", capsys=capsys)
    assert code == 74
    assert text == "k.npy: was truncated while it was read"
    assert os.listdir() == ["k.npy"]


def test_memory_is_bounded_by_the_buffers_not_by_the_files(capsys):
    part = np.random.default_rng(0).standard_normal((100_000, 8)).astype(np.float32)  # 3.2 MB
    np.save("k.npy", part)

    def peak(n_files, block_bytes):
        tracemalloc.start()
        try:
            arguments = [*["k.npy"] * n_files, "-o", "s.npz", "--overwrite", "--quiet"]
            assert main(["select", *arguments, "--block-bytes", block_bytes]) == 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1, "64K")  # what is imported or cached once
    few, many = peak(2, "64K"), peak(12, "64K")
    assert many < 3_000_000
    assert many < few + 500_000
    assert peak(2, "4M") > 6_000_000  # two buffers of 3.2 MB: what is measured is real
