"""``levsketch demo``: it runs, it tells the truth, and its checks can fail."""

import contextlib
import io
import os
import re
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

import levsketch as lv
from levsketch.cli import demo, demo_checks, main

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Return exit code, output and picture of one run."""
    path = tmp_path_factory.mktemp("demo") / "d.png"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["demo", "-o", str(path)])
    return code, out.getvalue(), path


@pytest.fixture
def no_checks(monkeypatch):
    """Leave the checks out, where what comes after them is tested."""
    monkeypatch.setattr(demo, "run_checks", lambda *_: iter(()))


def test_it_runs_and_every_check_holds(ran):
    code, text, path = ran
    assert code == 0
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 20_000
    assert len(re.findall(r"^ok ", text, re.M)) == 4
    assert "FAILED" not in text
    assert "0 of them outside the set" in " ".join(text.split())
    assert str(path) in text


def test_it_reads_well_without_a_terminal(ran):
    text = ran[1]
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines() if "Picture" not in line) <= 88
    assert 40 <= len(text.splitlines()) <= 70


def test_the_table_is_the_set(ran):
    K, labels = load_digits(return_X_y=True)
    selector = lv.LeverageKeySelector(eps=0.2).fit(K)
    rows = re.findall(r"^ +(\d+) +(\d) +([\d.]+) +\S+ +([\d.]+) ", ran[1], re.M)
    order = np.argsort(-selector.scores_, kind="stable")
    assert [int(row) for row, *_ in rows] == selector.indices_[order].tolist()
    for (row, label, score, share), expected in zip(rows, selector.scores_[order], strict=True):
        assert int(label) == labels[int(row)]
        assert float(score) == float(share) == pytest.approx(expected, abs=5e-5)


def test_brute_force_is_the_definition():
    K, Q = np.array([[1.0, 0.0], [1.0, 2.0], [0.0, -1.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(
        demo_checks.brute_force_scores(K, Q), [[1 / 11, 9 / 11, 1 / 11], [0, 0, 0]]
    )


def test_batchings_cover_all_rows():
    for n in (1, 50, 1797):
        assert all(sum(sizes) == n for sizes in demo_checks.batchings(n).values())


def test_every_check_fails_for_a_set_that_is_wrong():
    K = load_digits().data[:400]
    right = lv.LeverageKeySelector(eps=0.4).fit(K)
    wrong = lv.LeverageKeySelector(eps=0.4).fit(K[::-1])
    offline = demo_checks.Offline.of(K)
    assert [c.held for c in demo_checks.run_checks(K, right, offline)] == [True] * 4
    assert [c.held for c in demo_checks.run_checks(K, wrong, offline)] == [False] * 4


def test_a_failed_check_is_exit_code_1(monkeypatch, tmp_path, capsys):
    failing = demo_checks.Check(False, "two and two make four", "found 5")
    monkeypatch.setattr(demo, "run_checks", lambda *_: iter([failing]))
    assert main(["demo", "-o", str(tmp_path / "d.png")]) == 1
    out, err = capsys.readouterr()
    assert "FAILED  two and two make four" in out
    assert err == (
        "levsketch: error: a check of the demo failed (two and two make four: found 5)\n"
    )
    assert os.listdir(tmp_path) == []


def test_a_picture_that_cannot_be_written_is_73_after_the_report(no_checks, tmp_path, capsys):
    path = tmp_path / "none" / "d.png"
    assert main(["demo", "-o", str(path)]) == 73
    out, err = capsys.readouterr()
    assert "502" in out
    assert err.startswith(f"levsketch: error: {path}: ")
    assert err.count("\n") == 1


def test_it_replaces_its_own_picture_and_no_other(no_checks, ran, tmp_path, capsys):
    own, other = tmp_path / "own.png", tmp_path / "other.png"
    own.write_bytes(ran[2].read_bytes()[:2000])
    other.write_bytes(PNG + b"a photograph")
    assert main(["demo", "-o", str(own)]) == 0
    assert own.read_bytes() == ran[2].read_bytes()  # the same run, the same bytes
    assert main(["demo", "-o", str(other)]) == 73
    assert other.read_bytes() == PNG + b"a photograph"


@pytest.mark.parametrize(("eps", "count"), [("0.05", 130), ("1", 1)])
def test_other_thresholds(no_checks, tmp_path, capsys, eps, count):
    assert main(["demo", "-o", str(tmp_path / "d.png"), "--eps", eps]) == 0
    assert f"keeps {count} of 1,797" in " ".join(capsys.readouterr().out.split())


def test_missing_matplotlib_is_69_before_any_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo", "-o", str(tmp_path / "d.png")]) == 69
    out, err = capsys.readouterr()
    assert out == ""
    assert "pip install 'levsketch[cli]'" in err
