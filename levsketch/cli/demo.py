"""``levsketch demo``: real data, a table, checks by brute force and a picture, in seconds."""

from __future__ import annotations

import argparse
import textwrap
import time

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sklearn.datasets import load_digits

import levsketch
from levsketch import LeverageKeySelector
from levsketch._typing import FloatArray, IntArray

from .demo_checks import (
    Check,
    Offline,
    batchings,
    brute_force_scores,
    queries_tried,
    run_checks,
    streamed,
)
from .demo_picture import require_matplotlib, write_picture
from .exits import FAILED_CHECK, OK, CommandError, warnings_in_one_line

_MAX_LINES = 24
_WIDTH = 88


class _Console(Console):
    """A console whose closed pipe is an error like any other, not rich's own exit code."""

    def on_broken_pipe(self) -> None:
        """Raise what the command knows how to end on."""
        raise BrokenPipeError


def run(args: argparse.Namespace) -> int:
    """Show what levsketch does and check it; return 0, or raise CommandError (code 1)."""
    require_matplotlib()
    began = time.perf_counter()
    console = _Console(highlight=False)
    console.width = min(console.width, _WIDTH)  # long lines of prose are hard to read
    digits = load_digits()
    K, labels = np.asarray(digits.data, dtype=np.float64), np.asarray(digits.target)
    name, sizes = next(iter(batchings(len(K)).items()))
    with warnings_in_one_line():
        selector = streamed(K, args.eps, sizes)
        _introduce(console, K, selector, name)
        console.print(_table(K, labels, selector))
        _explain(console, K, selector)
        failed = _check(console, K, selector)
    if failed is not None:
        raise CommandError(
            FAILED_CHECK, f"a check of the demo failed ({failed.claim}: {failed.detail})"
        )
    write_picture(args.output, selector, K, labels)
    console.print(Text(f"\nPicture: {args.output}"), soft_wrap=True)
    console.print(f"Done in {time.perf_counter() - began:.1f} s.")
    return OK


def _say(console: Console, text: str, *, mark: str = "", style: str = "") -> None:
    """Print a paragraph, indented by as much as ``mark`` takes; a leading newline stays."""
    if text.startswith("\n"):
        console.print()
    filled = textwrap.fill(
        text.lstrip(), console.width, initial_indent=mark, subsequent_indent=" " * len(mark)
    )
    console.print(Text(filled, style=style), soft_wrap=True)


def _introduce(console: Console, K: FloatArray, selector: LeverageKeySelector, blocks: str) -> None:
    """Print what the data is, what is asked of it and what was found."""
    (n, d), eps, m = K.shape, selector.eps, len(selector.indices_)
    title = f"levsketch {levsketch.__version__}: which of {n:,} handwritten digits can ever matter?"
    _say(console, title, style="bold")
    _say(
        console,
        f"\nThe data: {n:,} images of 8 x 8 pixels, scikit-learn's digits. Each image is a key: a "
        f"row of d = {d} numbers. A query is any vector q of {d} numbers. It divides its attention "
        "among the keys: key k gets the share <q,k>^2 / (sum of <q,l>^2 over all keys l).",
    )
    _say(
        console,
        f"\nThe question: which keys can get a share of eps = {eps:g} or more from some query? "
        "Trying queries cannot settle that, there are infinitely many. Leverage scores settle "
        "it: the leverage score of a key is the largest share that any query can give it.",
    )
    _say(
        console,
        f"\nOne pass over the rows, in {blocks}, keeps {m:,} of {n:,} keys. No other key ever gets "
        f"{eps:g}. (There are never more than d/eps = {d / eps:,.0f}, however many rows come.)",
    )


def _table(K: FloatArray, labels: IntArray, selector: LeverageKeySelector) -> Table:
    """Return the selected keys, best first, with what their witnesses give to whom."""
    index, scores, guard = selector.indices_, selector.scores_, selector.guard_
    shares = brute_force_scores(K, selector.witness_queries())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (
        "row",
        "digit",
        "leverage",
        "error bound",
        "witness gives",
        "best of the others",
    ):
        table.add_column(column, justify="right")
    order = np.argsort(-scores, kind="stable")
    for i in order[:_MAX_LINES]:
        share = shares[i].copy()
        own = share[index[i]]
        share[index[i]] = -1.0
        second = int(share.argmax())
        table.add_row(
            str(index[i]),
            str(labels[index[i]]),
            f"{scores[i]:.4f}",
            f"{guard[i]:.0e}" if guard[i] else "0",
            f"{own:.4f}",
            f"{share[second]:.4f} (row {second})",
        )
    if len(order) > _MAX_LINES:
        table.add_row("...", "", f"{len(order) - _MAX_LINES:,} more", "", "", "")
    return table


def _explain(console: Console, K: FloatArray, selector: LeverageKeySelector) -> None:
    """Print how to read the table, and why the first key has the score 1, if that is plain."""
    _say(
        console,
        "The witness of a key is the query that is best for it. The last two columns are brute "
        "force over all rows: what the witness gives to its key, and to the best of the others.",
    )
    alone = np.flatnonzero((K != 0).sum(axis=0) == 1)
    if len(alone):
        row = int(np.flatnonzero(K[:, alone[0]])[0])
        y, x = divmod(int(alone[0]), 8)
        _say(
            console,
            f"Row {row} scores 1 because no other image has any ink in pixel ({y}, {x}): a query "
            "for that pixel sees nothing else.",
        )


def _check(console: Console, K: FloatArray, selector: LeverageKeySelector) -> Check | None:
    """Print the checks as they are made; return the first that failed."""
    _say(console, "\nChecked just now, against brute force in plain NumPy:", style="bold")
    failed = None
    for check in run_checks(K, selector, Offline.of(K)):
        mark = "ok      " if check.held else "FAILED  "
        _say(console, check.claim, mark=mark, style="green" if check.held else "bold red")
        _say(console, check.detail, mark=" " * len(mark))
        if not check.held and failed is None:
            failed = check
    _say(console, queries_tried(selector.indices_))
    return failed
