"""The `levsketch` command: what it accepts, and how it ends. One file for each subcommand.

The exit codes are those of sysexits.h (``exits.py``); every error is one line on
stderr. Results go to stdout, progress and warnings to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from .exits import (
    INTERRUPTED,
    IO_ERROR,
    OS_ERROR,
    TERMINATED,
    UNAVAILABLE,
    USAGE,
    CommandError,
    Terminated,
    complain,
)
from .parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; by default those of the process.

    Returns
    -------
    int
        0, or one of the codes in ``levsketch.cli.exits``.

    Raises
    ------
    SystemExit
        For ``--help`` and ``--version`` (0), and for arguments that make no sense (64).
    """
    for stream in (sys.stdout, sys.stderr):
        # a file name or a locale that cannot be printed must not end the command
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    try:
        with _sigterm_raises():
            code = _run(args)
            sys.stdout.flush()  # here, where a full disk is still an error in one line
            return code
    except CommandError as error:
        complain("error", error)
        return error.code
    except KeyboardInterrupt:
        complain("error", "interrupted")
        return INTERRUPTED
    except Terminated:
        complain("error", "terminated")
        return TERMINATED
    except BrokenPipeError:
        _settle_stdout()  # its reader went away, as `head` does: nothing to say
        return IO_ERROR
    except OSError as error:
        _settle_stdout()
        complain("error", f"{error.filename or 'output'}: {error.strerror or error}")
        return IO_ERROR
    except MemoryError as error:
        complain("error", f"out of memory{f': {error}' if str(error) else ''}")
        return OS_ERROR


def _run(args: Any) -> int:
    """Return the exit code of the subcommand, imported only now: ``--help`` stays quick."""
    try:
        import rich  # noqa: F401
    except ImportError:
        raise CommandError(
            UNAVAILABLE,
            "the command needs rich, which is not installed: pip install 'levsketch[cli]'",
        ) from None
    code: int = importlib.import_module(f"levsketch.cli.{args.command}").run(args)
    return code


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that temporary files are removed on the way out."""

    def raise_terminated(number: int, frame: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:  # not the main thread: signals are none of our business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settle_stdout() -> None:
    """Send what cannot be written to stdout nowhere, or the interpreter tries again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # stdout need not be a file
            number = sys.stdout.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
