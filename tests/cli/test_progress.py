"""Progress: a bar on a terminal, few lines in a log, nothing if asked."""

import io

import numpy as np
import pytest

from levsketch.cli import progress
from levsketch.cli.npy import read_matrix_header


@pytest.fixture
def sources(tmp_path):
    np.save(tmp_path / "k.npy", np.ones((1000, 4)))
    return [read_matrix_header(str(tmp_path / "k.npy"))]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_through(sources, *, quiet=False):
    with progress.ReadingProgress(sources, quiet=quiet) as shown:
        for _ in range(100):
            shown.advance(10, 320)
    return shown


def test_a_log_gets_a_line_a_quarter_at_most(sources, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SILENCE", 0.0)
    shown = run_through(sources)
    assert shown.rows == 1000
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "levsketch: 25% read",
        "levsketch: 50% read",
        "levsketch: 75% read",
    ]


def test_a_quick_run_logs_nothing(sources, capsys):
    run_through(sources)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_rows_and_rates(sources, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    run_through(sources)
    assert "1,000 rows" in terminal.getvalue()
    assert "rows/s" in terminal.getvalue()
    assert "B/s" in terminal.getvalue()


def test_quiet_is_quiet_on_a_terminal_too(sources, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run_through(sources, quiet=True)
    assert terminal.getvalue() == ""
