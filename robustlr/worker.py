"""A worker: one process that claims trials of a study and runs them until none waits.

``robustlr.launch`` starts workers as ``python -m robustlr.worker STUDY DEVICE``, with the database in
``ROBUSTLR_STORAGE`` and the trials' files under ``ROBUSTLR_FOLDER``. SIGTERM and SIGINT give the
running trial back.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

from robustlr.claims import worker_name
from robustlr.errors import UnavailableError, UserError
from robustlr.registry import load_task
from robustlr.storage import Claim, Storage
from robustlr.task import CHECKPOINT

FLUSH_SECONDS = 2.0
"""Reports are written together: every transaction costs about as much as a short training step."""


DEFAULT_FOLDER = "robustlr-trials"
"""Where trials keep checkpoints and pictures, in the working directory."""

IMPOSSIBLE = 2
"""The exit status of a worker that cannot work, however often it is started."""


class StopRequested(BaseException):
    """A signal asked the worker to stop while it trained."""


class Signals:
    """Turns signals into ``StopRequested``, but only where it cannot cut a transaction in two."""

    def __init__(self) -> None:
        self.requested = False
        self._interruptible = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._interruptible:
            self._interruptible = False
            raise StopRequested

    @contextmanager
    def interruptible(self, on: bool = True) -> Iterator[None]:
        """Let signals interrupt the block, or hold them back until its end."""
        before, self._interruptible = self._interruptible, on
        try:
            if on and self.requested:
                raise StopRequested
            yield
        finally:
            self._interruptible = before
        if before and self.requested:
            raise StopRequested


class Reporter:
    """Stores a trial's intermediate values, a few seconds' worth at a time."""

    def __init__(self, storage: Storage, claim: Claim, signals: Signals) -> None:
        self._storage, self._claim, self._signals = storage, claim, signals
        self._waiting: dict[int, float] = {}
        self._flushed = time.monotonic()

    def __call__(self, step: int, value: float) -> None:
        """Take one value; it is written with others."""
        self._waiting[int(step)] = float(value)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            with self._signals.interruptible(False):
                self.flush()

    def flush(self) -> None:
        """Write what waits."""
        self._storage.report(self._claim, self._waiting)
        self._waiting = {}
        self._flushed = time.monotonic()


def work(storage: Storage, name: str, device: str, signals: Signals) -> None:
    """Run the study's waiting trials on ``device`` until none waits or a signal comes.

    Raises:
        UnavailableError: this machine lacks what a trial needs; the trial is back in the queue.
    """
    worker = worker_name(device)
    while not signals.requested and (claim := storage.claim(name, worker)) is not None:
        _run(storage, claim, device, signals)


def _run(storage: Storage, claim: Claim, device: str, signals: Signals) -> None:
    report = Reporter(storage, claim, signals)
    started = time.monotonic()
    try:
        task = load_task(claim.config.task).at(claim.config.scale)
        folder = trial_folder(claim)
        with signals.interruptible():
            outcome = task.outcome(task.run(claim.config, report, device, folder))
        seconds = time.monotonic() - started
        report.flush()
        storage.complete(claim, outcome, {"seconds": seconds, **_provenance(device)})
        (folder / CHECKPOINT).unlink(missing_ok=True)
    except StopRequested:
        storage.give_back(claim)
    except UnavailableError:  # every trial of this task would fail here; another machine may do
        storage.give_back(claim)
        raise
    except (Exception, SystemExit) as error:  # whatever a task raises costs this trial alone
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        is_plain = isinstance(error, UserError)
        storage.fail(
            claim, str(error) if is_plain else f"{type(error).__name__}: {error} (at {where})"
        )


def trial_folder(claim: Claim) -> Path:
    """Return where the trial keeps its checkpoint and pictures; it is made when they are."""
    return Path(os.environ.get("ROBUSTLR_FOLDER", DEFAULT_FOLDER), claim.cell, str(claim.number))


@cache
def _provenance(device: str) -> dict[str, Any]:
    """Return what is needed to run a trial again, beyond its configuration."""
    packages = (
        "robustlr",
        "torch",
        "optuna",
        "numpy",
        "tokenizers",
        "sacrebleu",
        "stable-baselines3",
        "gymnasium",
        "ale-py",
    )
    return {
        "device": _device_name(device),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "python": ".".join(map(str, sys.version_info[:3])),
        "commit": _commit(),
        "versions": {package: _version(package) for package in packages},
    }


def _device_name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the git commit of the working directory, ``+`` appended if files differ from it."""
    git = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> None:
    """Work on the study and device named on the command line; exit with 2 if that is impossible."""
    _, name, device = sys.argv
    signals = Signals()
    try:
        storage = Storage(os.environ["ROBUSTLR_STORAGE"])
        # Before the first claim: a machine that lacks a task must not fail everybody's trials.
        storage.check_unchanged(storage.load_study(name))
        work(storage, name, device, signals)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(IMPOSSIBLE)


if __name__ == "__main__":
    main()
