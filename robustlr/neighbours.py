"""Who shares a device: a trial that runs out of memory waits until it has the device alone."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from robustlr.signals import StopRequested, stopping

POLL_SECONDS = 0.1


class Neighbours:
    """The workers on one device of this machine, of any study.

    Trials hold a shared lock on a file. To hold it alone is to wait for all others; they take turns
    at a second file meanwhile, so that none begins anew. Where no such file can be made, nobody waits.
    Waiting ends with ``StopRequested`` if the process shall stop.
    """

    def __init__(self, device: str) -> None:
        self._folder = Path(tempfile.gettempdir(), f"robustlr-{os.getuid()}")
        self._device = device

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hold the device beside others."""
        with self._holding(fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the others to finish their trials, and hold the device alone."""
        with self._holding(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _holding(self, kind: int) -> Iterator[None]:
        with ExitStack() as files:
            try:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                turn = files.enter_context(self._file("turn"))
                device = files.enter_context(self._file("device"))
            except OSError:
                yield
                return
            _lock(turn, fcntl.LOCK_EX)
            _lock(device, kind)
            fcntl.flock(turn, fcntl.LOCK_UN)
            yield

    def _file(self, what: str) -> IO[bytes]:
        return (self._folder / f"{self._device}.{what}").open("ab")


def _lock(file: IO[bytes], kind: int) -> None:
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if stopping():
                raise StopRequested from None
            time.sleep(POLL_SECONDS)
