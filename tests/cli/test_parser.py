"""Arguments: what is accepted, what is refused with code 64 in one line, what help says."""

import pytest

from levsketch.cli.exits import USAGE
from levsketch.cli.parser import build_parser

SELECT = ["select", "k.npy", "-o", "s.npz"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "invalid choice"),
        (["select"], "KEYS"),
        (["select", "k.npy"], "-o/--output"),
        ([*SELECT, "--eps", "0"], "(0, 1]"),
        ([*SELECT, "--eps", "1.5"], "(0, 1]"),
        ([*SELECT, "--eps", "nan"], "not a finite number"),
        ([*SELECT, "--eps", "abc"], "not a finite number"),
        ([*SELECT, "--eps", "0.1", "--n-keys", "3"], "not allowed with"),
        ([*SELECT, "--n-keys", "0"], "at least 1"),
        ([*SELECT, "--n-keys", "1.5"], "not a whole number"),
        ([*SELECT, "--n-keys", "٣"], "not a whole number"),
        ([*SELECT, "--min-keys", "-1"], "--min-keys"),
        ([*SELECT, "--ridge", "-1"], "negative"),
        ([*SELECT, "--ridge", "inf"], "not a finite number"),
        ([*SELECT, "--block-bytes", "0"], "not a size"),
        ([*SELECT, "--block-bytes", "16Q"], "not a size"),
        ([*SELECT, "--nonsense"], "unrecognized"),
        (["scores", "s.npz", "-o", "x.npz"], "--queries"),
        (["info"], "FILE"),
        (["demo", "-o", "x.jpg"], ".png"),
    ],
)
def test_wrong_usage_is_one_line_and_code_64(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == USAGE == 64
    assert out == ""
    assert err.startswith("levsketch: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert "--help" in err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("500000", 500000),
        ("4K", 4096),
        ("16M", 1 << 24),
        ("1GiB", 1 << 30),
        ("2MB", 1 << 21),
    ],
)
def test_sizes(text, size):
    assert build_parser().parse_args([*SELECT, "--block-bytes", text]).block_bytes == size


def test_defaults():
    found = vars(build_parser().parse_args(SELECT))
    assert found["keys"] == ["k.npy"]
    assert (found["eps"], found["n_keys"], found["min_keys"]) == (0.05, None, 1)
    assert (found["ridge"], found["intercept"], found["overwrite"]) == (0.0, False, False)


@pytest.mark.parametrize("command", ["demo", "select", "scores", "info"])
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: levsketch {command}" in out
    assert max(map(len, out.splitlines())) <= 100
