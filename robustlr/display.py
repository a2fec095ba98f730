"""The progress of a study: live on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from robustlr.status import Progress, Status

LIVE_SECONDS = 0.5
PLAIN_SECONDS = 10.0
"""How often progress is shown, and asked of the database: by each of many machines, perhaps."""

WATCH_SECONDS = 2.0

HEADINGS = (
    "trials",
    "complete",
    "running",
    "waiting",
    "failed",
    "diverged",
    "per minute",
    "time left",
)


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """Shows trials done, rate, time left, diverged and failed counts, for all workers at once."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._started = self._printed = time.monotonic()
        self._live = Live(console=self._console) if self._console.is_terminal else None
        self.seconds = LIVE_SECONDS if self._live else PLAIN_SECONDS
        self._first: Progress | None = None
        self._last = Progress(0, 0, 0, 0, 0)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._print()

    def update(self, progress: Progress) -> None:
        """Show the counts."""
        self._first = self._first or progress
        self._last = progress
        if self._live is not None:
            row = Table.grid(padding=(0, 1))
            done = progress.complete + progress.failed
            row.add_row(ProgressBar(total=progress.total, completed=done, width=30), self._line())
            self._live.update(row)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        self._console.print(self._line(), soft_wrap=True, highlight=False)

    def _line(self) -> str:
        progress, first = self._last, self._first or self._last
        done = progress.complete + progress.failed
        elapsed = time.monotonic() - self._started
        rate = (done - first.complete - first.failed) / elapsed
        parts = [f"{done}/{progress.total} trials"]
        if rate > 0:
            parts.append(f"{60 * rate:.0f}/min")
            parts.append(f"{_duration((progress.total - done) / rate)} left")
        parts += [f"{progress.running} running", f"{progress.diverged} diverged"]
        return " · ".join([*parts, f"{progress.failed} failed"])


def watch(read: Callable[[], Status]) -> Status:
    """Show a study's status, whoever runs it, until no trial waits or runs; return the last."""
    console = Console()
    with Live(console=console, vertical_overflow="visible") as live:
        while True:
            status = read()
            if console.is_terminal:
                live.update(Text("\n".join(lines(status))))
            else:
                console.print(lines(status)[-1 - len(status.failures)], soft_wrap=True)
            if not (status.progress.waiting or status.progress.running):
                live.update(Text(""))
                return status
            time.sleep(WATCH_SECONDS if console.is_terminal else PLAIN_SECONDS)


def lines(status: Status) -> list[str]:
    """Return a status as lines: a row a cell, what runs where, the total, and why trials failed."""
    rows: list[tuple[str, ...]] = [("", *HEADINGS)]
    rows += [_row(status, cell, status.cells[cell], status.rates[cell]) for cell in status.cells]
    rows += [_row(status, "total", status.progress, status.rate)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    running = [
        f"running since {each.since}: {each.cell} {each.number} on {each.host}, {each.device}, "
        f"process {each.process}" + (" (STALE: nothing is heard of it)" if each.stale else "")
        for each in status.running
    ]
    failed = [f"{count} failed: {reason}" for reason, count in status.failures.items()]
    return [*table[:1], *table[1:-1], *running, table[-1], *failed]


def _row(status: Status, name: str, progress: Progress, rate: float) -> tuple[str, ...]:
    left = status.minutes_left(progress, rate)
    numbers = (progress.total, progress.complete, progress.running, progress.waiting)
    counts = map(str, (*numbers, progress.failed, progress.diverged))
    return (
        name,
        *counts,
        f"{rate:.1f}" if rate else "–",
        "–" if left is None else _duration(60 * left),
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
