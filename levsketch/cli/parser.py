"""What the command accepts."""

from __future__ import annotations

import argparse
import math
import re
import sys
from typing import NoReturn

from .exits import USAGE

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_EXIT_CODES = """\
exit codes:
  0 done             65 bad data (NaN, columns differ)     73 output exists or cannot be created
  64 wrong usage     66 input missing or malformed         74 input/output error
  69 extra missing   71 out of memory                      130 interrupted (Ctrl-C)"""


class Parser(argparse.ArgumentParser):
    """argparse, with exit code 64 and one line for wrong usage."""

    def error(self, message: str) -> NoReturn:
        """Print one line that says what is wrong and where help is, and exit."""
        print(f"levsketch: error: {message} (try: {self.prog} --help)", file=sys.stderr)
        raise SystemExit(USAGE)


class Version(argparse.Action):
    """Print the version and exit; the package is imported only if asked for."""

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Print the version and exit."""
        import levsketch

        print(f"levsketch {levsketch.__version__}")
        raise SystemExit(0)


def build_parser() -> Parser:
    """Return the parser of the whole command."""
    parser = Parser(
        prog="levsketch",
        description="Find the keys that some query can single out: exactly, in one pass, for\n"
        "data larger than memory. Begin with: levsketch demo",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_demo(commands)
    _add_select(commands)
    _add_scores(commands)
    _add_info(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction[Parser], name: str, text: str, more: str
) -> Parser:
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "demo",
        "see what it does: 1797 real digits, a table, checks by brute force, a picture",
        "Takes a few seconds, needs no files and no network. Exit code 1 if a check fails.",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PNG",
        type=_png,
        default="levsketch-demo.png",
        help="the picture (default: %(default)s); an earlier picture of the demo is replaced",
    )
    parser.add_argument(
        "--eps",
        type=_share,
        default=0.2,
        help="share of a query's attention that counts as heavy (default: %(default)s)",
    )


def _add_select(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "select",
        "select keys from .npy files of any size, read once",
        """\
The files are read in the order given, as one stream of rows; memory stays flat
(about 200 MB for d = 64, however many rows). Each file is a matrix (rows, columns)
of real numbers, as numpy.save writes it.

set.npz opens with numpy.load: indices, keys, scores, guard, witnesses (for each key the
query that attains its score), files and first_rows (which file a row number is in), and
state, with which `levsketch scores` computes exact scores without the input files.

examples:
  levsketch select keys.npy -o set.npz
  levsketch select shard-*.npy --eps 0.01 -o set.npz --json > set.json

"""
        + _EXIT_CODES,
    )
    parser.add_argument("keys", nargs="+", metavar="KEYS", help=".npy files, one after another")
    _add_output(parser, "set.npz")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--eps",
        type=_share,
        default=0.05,
        help="select every key that can get this share of some query's attention; there are "
        "at most columns/eps (default: %(default)s)",
    )
    what.add_argument(
        "--n-keys",
        type=_count,
        metavar="N",
        help="select the N keys with the largest scores instead",
    )
    parser.add_argument(
        "--min-keys",
        type=_count_or_zero,
        default=1,
        metavar="N",
        help="select at least N, even if fewer reach eps (default: %(default)s)",
    )
    parser.add_argument(
        "--intercept",
        action="store_true",
        help="score the rows [1, key]: the same for shifted keys, as softmax is",
    )
    parser.add_argument(
        "--ridge",
        type=_not_negative,
        default=0.0,
        help="add this times ||q||^2 to the total of a query q (default: 0)",
    )
    parser.add_argument(
        "--block-bytes",
        type=_size,
        default=_size("16M"),
        metavar="SIZE",
        help="size of each of the two read buffers, such as 16M (the default) or 4M",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print no progress and no summary"
    )


def _add_scores(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "scores",
        "compute exact attention scores of queries, without the keys they were selected from",
        """\
scores.npz opens with scipy.sparse.load_npz: a CSR matrix (queries, all keys) of exactly
the scores >= eps; the shares are of each query's total over all keys. With --dense it
opens with numpy.load: scores (queries, selected keys) and indices of these keys.

example:
  levsketch scores set.npz --queries q.npy -o scores.npz

"""
        + _EXIT_CODES,
    )
    parser.add_argument("set", metavar="SET", help="a set.npz, or a state that save() wrote")
    parser.add_argument("--queries", required=True, metavar="NPY", help="a matrix of queries")
    _add_output(parser, "scores.npz")
    parser.add_argument(
        "--dense", action="store_true", help="every score against the selected keys"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print no progress and no summary"
    )
    parser.set_defaults(block_bytes=_size("16M"))


def _add_info(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "info",
        "describe a set, a saved state, scores or a .npy file, and check that it is whole",
        _EXIT_CODES,
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def _add_output(parser: Parser, example: str) -> None:
    parser.add_argument(
        "-o", "--output", required=True, metavar="NPZ", help=f"where to write, such as {example}"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _count_or_zero(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 0")
    return int(text)


def _count(text: str) -> int:
    value = _count_or_zero(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([KMG]?)(?:i?B)?", text, re.ASCII)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500000, 512K or 16M")
    return int(match[1]) * _UNITS[match[2]]


def _png(text: str) -> str:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    return text
