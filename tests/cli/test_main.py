"""How the command ends: exit codes, one line on stderr, never a traceback."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import levsketch
from levsketch.cli import main, select


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("k.npy", np.random.default_rng(0).standard_normal((2000, 3)))
    return "k.npy"


@pytest.fixture
def buffered(monkeypatch):
    """Let children buffer stdout, as they do by default: errors then come at the very end."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def only_line(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("levsketch: error: ")
    return err.removeprefix("levsketch: error: ").strip()


def test_version_and_help(capsys):
    for arguments, words in ((["--version"], levsketch.__version__), (["--help"], "demo")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert words in capsys.readouterr().out


def test_no_command_prints_help_and_is_wrong_usage(capsys):
    assert main([]) == 64
    assert "usage: levsketch" in capsys.readouterr().err


def test_a_missing_extra_is_one_sentence(keys, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["info", keys]) == 69
    assert "pip install 'levsketch[cli]'" in only_line(capsys)


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 71, "out of memory"),
        (OSError(5, "Input/output error", "disk"), 74, "disk: Input/output error"),
    ],
)
def test_an_end_midway_leaves_no_output_and_no_thread(
    keys, capsys, monkeypatch, raised, code, words
):
    absorb, calls = select._absorb, []

    def stop_at_second(selector, block):
        calls.append(block.first)
        if len(calls) == 2:
            raise raised
        absorb(selector, block)

    monkeypatch.setattr(select, "_absorb", stop_at_second)
    assert main(["select", keys, "-o", "s.npz", "--block-bytes", "24"]) == code
    assert only_line(capsys) == words
    assert calls == [0, 1]
    assert os.listdir() == ["k.npy"]
    assert [t.name for t in threading.enumerate() if t.name == "read-ahead"] == []


def test_sigterm_ends_in_order_and_its_handler_is_put_back(keys, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(select, "_absorb", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["select", keys, "-o", "s.npz"]) == 143
    assert only_line(capsys) == "terminated"
    assert os.listdir() == ["k.npy"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_runs_outside_the_main_thread(keys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["info", keys])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_messages_stay_on_one_line_whatever_the_path(tmp_path, capsys):
    assert main(["info", f"{tmp_path}/two\nlines \udcff.npy"]) == 66
    assert "two lines \\udcff.npy: No such file" in only_line(capsys)


def test_python_m_is_the_command(keys):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "levsketch.cli", "info", "none.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr == "levsketch: error: none.npy: No such file or directory\n"


def test_a_reader_that_goes_away_is_no_news(keys, buffered):
    process = subprocess.Popen(
        [sys.executable, "-m", "levsketch.cli", "info", keys],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait() == 74


def test_a_full_disk_under_stdout_is_an_error(keys, buffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "levsketch.cli", "info", keys, "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 74
    assert done.stderr == "levsketch: error: output: No space left on device\n"
