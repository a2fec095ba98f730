"""Requests to stop: signals, and the end of whoever started this process.

A training loop looks at ``stopping()`` where it can be taken up again, saves itself and raises
``StopRequested``. One that does not look is interrupted after ``GRACE_SECONDS``.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 5.0
"""How long a training loop may take to reach a place where it can be taken up again."""

_requested = threading.Event()  # a process has one set of signal handlers, and one such wish


def stopping() -> bool:
    """Return whether this process was asked to stop."""
    return _requested.is_set()


class StopRequested(BaseException):
    """The worker was asked to stop; what it ran goes back to the queue."""


class Lost(BaseException):
    """Another worker owns the trial by now."""


class Signals:
    """Turns SIGTERM and SIGINT into a request to stop that cannot cut a transaction in two.

    A second one ends the process at once: what it ran is given back by its launcher, or when its
    lease expires.
    """

    def __init__(self) -> None:
        _requested.clear()
        self._signalled = False
        self._grace_is_over = False
        self._interruptible = False
        self._overdue = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def follow(self, lifeline: int) -> None:
        """Take the end of a pipe, whose other side the launcher holds, for a request to stop."""
        threading.Thread(target=self._await_end, args=(lifeline,), daemon=True).start()

    def _await_end(self, lifeline: int) -> None:
        while os.read(lifeline, 1):
            pass
        self._request()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._grace_is_over:
            self._grace_is_over = False
            self._overdue = True
            self._raise_if_overdue()
        elif self._signalled:
            os._exit(128 + number)
        else:
            self._signalled = True
            self._request()

    def _request(self) -> None:
        if not _requested.is_set():
            _requested.set()
            timer = threading.Timer(GRACE_SECONDS, self._interrupt)
            timer.daemon = True
            timer.start()

    def _interrupt(self) -> None:
        """Have the main thread raise what it has not raised by itself."""
        self._grace_is_over = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)

    def _raise_if_overdue(self) -> None:
        if self._overdue and self._interruptible:
            self._interruptible = self._overdue = False
            raise StopRequested

    @contextmanager
    def interruptible(self, on: bool = True) -> Iterator[None]:
        """Let a request interrupt the block when its time of grace is over, or not before its end.

        Raises:
            StopRequested: there is a request as the block begins, or its time of grace is over.
        """
        if on:
            self.check()
        before, self._interruptible = self._interruptible, on
        try:
            yield
        finally:
            self._interruptible = before
            self._raise_if_overdue()

    def check(self) -> None:
        """Raise ``StopRequested`` if this process was asked to stop."""
        if stopping():
            raise StopRequested

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond a request to stop.

        Raises:
            StopRequested: there is one.
        """
        if _requested.wait(seconds):
            raise StopRequested
