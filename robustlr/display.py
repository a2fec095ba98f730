"""The progress of a study: one live line on a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from robustlr.storage import Progress

PLAIN_SECONDS = 10.0


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """Shows trials done, rate, time left, diverged and failed counts, for all workers at once."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._started = self._printed = time.monotonic()
        self._live = Live(console=self._console) if self._console.is_terminal else None
        self._first: Progress | None = None
        self._last = Progress(0, 0, 0, 0, 0)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
