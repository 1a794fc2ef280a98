"""How far reading has come: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .npy import NpyHeader

# A log gets a line at each of these shares, but none within this many seconds.
_QUARTERS = (0.25, 0.5, 0.75)
_SILENCE = 5.0


class ReadingProgress:
    """Context that shows on stderr how many rows have been read.

    Parameters
    ----------
    sources : sequence of NpyHeader
        What will be read.
    quiet : bool
        Show nothing.
    """

    def __init__(self, sources: Sequence[NpyHeader], *, quiet: bool) -> None:
        self.total = sum(source.rows * source.row_bytes for source in sources)
        self.rows = self.bytes = 0
        self._begin = self._last = time.monotonic()
        self._quarters = list(_QUARTERS)
        self._bar: Progress | None = None
        self._plain = not quiet and not sys.stderr.isatty()
        if not quiet and not self._plain:
            self._bar = Progress(
                TextColumn("reading"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[rows]}"),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                expand=True,
                transient=True,
            )
            self._task = self._bar.add_task("reading", total=self.total, rows="")

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, rows: int, size: int) -> None:
        """Count ``rows`` more rows of together ``size`` bytes."""
        self.rows += rows
        self.bytes += size
        rate = self.rows / max(self.seconds, 1e-9)
        text = f"{self.rows:,} rows  {rate:,.0f} rows/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.bytes, rows=text)
        elif self._plain and self._quarters and self.bytes >= self._quarters[0] * self.total:
            while self._quarters and self.bytes >= self._quarters[0] * self.total:
                self._quarters.pop(0)
            if time.monotonic() - self._last >= _SILENCE and self.bytes < self.total:
                self._last = time.monotonic()
                print(f"levsketch: {self.bytes / self.total:.0%} read, {text}", file=sys.stderr)
