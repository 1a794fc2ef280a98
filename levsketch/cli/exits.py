"""How the command ends: exit codes of sysexits.h, errors that carry one, warnings in one line."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

OK = 0
FAILED_CHECK = 1
USAGE = 64
DATA = 65
NO_INPUT = 66
UNAVAILABLE = 69
OS_ERROR = 71
CANNOT_CREATE = 73
IO_ERROR = 74
INTERRUPTED = 130
TERMINATED = 143


class CommandError(Exception):
    """An end of the command that the user can do something about.

    Parameters
    ----------
    code : int
        Exit code.
    message : str
        One line; it begins with the path of the file at fault, if there is one.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt, no ``except Exception`` may swallow it."""


def one_line(text: object) -> str:
    """Return a text on one line, whatever a path or a library put into it."""
    return " ".join(str(text).split())


def complain(kind: str, text: object) -> None:
    """Print ``levsketch: error: ...`` (or a warning) to stderr."""
    print(f"levsketch: {kind}: {one_line(text)}", file=sys.stderr)


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print what is warned of inside to stderr, a line each, without source code around it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(w.message) for w in caught):
        complain("warning", text)
