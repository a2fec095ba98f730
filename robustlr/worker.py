"""A worker: one process that claims trials of a study and runs them until none waits.

``robustlr.launch`` starts workers as ``python -m robustlr.worker STUDY DEVICE`` and renews their leases.
The environment says the rest: ``ROBUSTLR_STORAGE`` the database, ``ROBUSTLR_FOLDER`` where trials keep
their files, ``ROBUSTLR_SLOT`` the device's name on this machine, ``ROBUSTLR_START``
what the launcher knows this worker by, ``ROBUSTLR_LIFELINE`` a pipe that ends with the launcher,
``ROBUSTLR_MEMORY_FRACTION`` the share of a GPU's memory, ``ROBUSTLR_FUSE`` how many trials it trains as
one program; ``ROBUSTLR_CHECKPOINTS`` is explained in ``copies.py``.
"""

import gc
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from robustlr.claims import worker_name
from robustlr.copies import Copies, store
from robustlr.errors import StorageError, UnavailableError, UserError, is_out_of_memory, say
from robustlr.neighbours import Neighbours
from robustlr.provenance import provenance
from robustlr.registry import load_task
from robustlr.signals import Lost, Signals, StopRequested, stopping
from robustlr.storage import Claim, Storage, open_storage
from robustlr.task import CHECKPOINT, FunctionTask, Outcome

if TYPE_CHECKING:
    from robustlr.fused_worker import Fusing

FLUSH_SECONDS = 5.0
"""Reports are written together: every transaction costs about as much as a short training step."""

PAUSE_SECONDS = (1.0, 60.0)
"""The first and the longest pause before the database is tried again."""

DEFAULT_FOLDER = "robustlr-trials"
"""Where trials keep checkpoints and pictures, in the working directory."""

IMPOSSIBLE = 2
"""The exit status of a worker that cannot work, however often it is started."""

Result = TypeVar("Result")


class Reporter:
    """Stores a trial's intermediate values, a few seconds' worth at a time.

    While the database is away they are kept, and training goes on.
    """

    def __init__(self, storage: Storage, claim: Claim, signals: Signals) -> None:
        self._storage, self._claim, self._signals = storage, claim, signals
        self._waiting: dict[int, float] = {}
        self._pause = PAUSE_SECONDS[0]
        self._due = time.monotonic() + FLUSH_SECONDS

    def __call__(self, step: int, value: float) -> None:
        """Take one value; it is written with others.

        Raises:
            Lost: another worker owns the trial by now.
        """
        self._waiting[int(step)] = float(value)
        if time.monotonic() < self._due:
            return
        try:
            with self._signals.interruptible(False):
                self.flush()
        except StorageError as error:
            say(f"{error}; training goes on, and its values are kept")
            self._pause = min(2 * self._pause, PAUSE_SECONDS[1])
            self._due = time.monotonic() + self._pause

    def flush(self) -> None:
        """Write what waits.

        Raises:
            Lost: another worker owns the trial by now.
        """
        if not self._storage.report(self._claim, self._waiting):
            raise Lost
        self._waiting = {}
        self._pause = PAUSE_SECONDS[0]
        self._due = time.monotonic() + FLUSH_SECONDS


def work(
    storage: Storage, name: str, device: str, signals: Signals, fuse: str | None = None
) -> None:
    """Run the study's waiting trials on ``device`` until none waits or a request to stop comes.

    ``fuse`` is how many of a cell to train as one program, or "auto".

    Raises:
        UnavailableError: this machine lacks what a trial needs; the trial is back in the queue.
    """
    slot = os.environ.get("ROBUSTLR_SLOT", device)
    worker, neighbours = worker_name(slot), Neighbours(slot)
    together = _together(storage, name, worker, device, signals, fuse)
    with suppress(StopRequested):
        while not stopping():
            with neighbours.together():
                claim = patiently(signals, partial(storage.claim, name, worker))
                if claim is None:
                    return
                if together is not None and together.run(claim):
                    continue
                is_done = _run(storage, claim, device, signals)
            if not is_done:
                free_memory()
                try:
                    with neighbours.alone():
                        _run(storage, claim, device, signals, is_alone=True)
                except StopRequested:
                    give_back(storage, claim)
                    raise


def _together(
    storage: Storage, name: str, worker: str, device: str, signals: Signals, fuse: str | None
) -> "Fusing | None":
    if fuse is None:
        return None
    from robustlr.fused_worker import Fusing

    return Fusing(storage, name, worker, device, signals, fuse)


def patiently(signals: Signals, attempt: Callable[[], Result]) -> Result:
    """Return what ``attempt`` gives; while the database is away, wait and try again.

    Raises:
        StopRequested: the process shall stop.
    """
    pause = PAUSE_SECONDS[0]
    while True:
        try:
            return attempt()
        except StorageError as error:
            say(f"{error}; trying again")
        # Workers that have lost the same server must not all come back at the same moment.
        signals.wait(pause * random.SystemRandom().uniform(0.5, 1.0))
        pause = min(2 * pause, PAUSE_SECONDS[1])


def _run(
    storage: Storage, claim: Claim, device: str, signals: Signals, *, is_alone: bool = False
) -> bool:
    """Run a trial; return False if it must be run again, alone on its device."""
    started = time.monotonic()
    copies = copies_of(storage, claim)
    result: Outcome | BaseException
    try:
        with copies:
            result = _train(storage, claim, device, signals)
    except BaseException as error:
        result = error
    if is_out_of_memory(result) and not is_alone:
        say(f"{claim.cell} {claim.number} ran out of memory; it is run again alone: {result}")
        return False
    conclude(storage, claim, device, signals, result, time.monotonic() - started, copies)
    return True


def conclude(
    storage: Storage,
    claim: Claim,
    device: str,
    signals: Signals,
    result: Outcome | BaseException,
    seconds: float,
    copies: Copies,
) -> None:
    """Store what a trial gave, or why it gave nothing; with a stored result its checkpoint goes.

    Raises:
        BaseException: ``result``, where it is not the trial's fault; the trial is back in the queue.
        StopRequested: the process shall stop before the database could be told.
    """
    if isinstance(result, Outcome):
        facts = {"seconds": seconds, **provenance(device)}
        try:
            if patiently(signals, partial(storage.complete, claim, result, facts)):
                copies.remove()
                _clean_up(trial_folder(claim))
        except StopRequested:
            give_back(storage, claim)
            raise
    elif isinstance(result, Lost):
        say(f"{claim.cell} {claim.number} belongs to another worker by now; this one stops it")
    elif (
        isinstance(result, UnavailableError)  # every trial of this task would fail here
        or not isinstance(result, Exception | SystemExit)
        or not _works(device)  # its driver or hardware, not the trial
    ):
        give_back(storage, claim)
        raise result
    else:  # whatever a task raises costs this trial alone
        reason = _reason(result, device)
        patiently(signals, partial(storage.fail, claim, reason))


def copies_of(storage: Storage, claim: Claim) -> Copies:
    """Return what copies a trial's checkpoint, where it shall be."""
    return Copies(store(storage), trial_folder(claim), f"{claim.cell}/{claim.number}")


def _train(storage: Storage, claim: Claim, device: str, signals: Signals) -> Outcome:
    """Train; the database is told what was reported."""
    report = Reporter(storage, claim, signals)
    task = load_task(claim.config.task).at(claim.config.scale)
    with signals.interruptible():
        outcome = task.outcome(task.run(claim.config, report, device, trial_folder(claim)))
    patiently(signals, report.flush)
    return outcome


def give_back(storage: Storage, claim: Claim) -> None:
    """Return a trial to the queue."""
    try:
        storage.give_back(claim)
    except StorageError as error:
        say(f"{error}; the trial is given back when its lease expires")


def _clean_up(folder: Path) -> None:
    """Delete a finished trial's checkpoint, and its folder if nothing else is there."""
    with suppress(OSError):
        (folder / CHECKPOINT).unlink(missing_ok=True)
        folder.rmdir()


def _works(device: str) -> bool:
    """Return whether the device computes: after some errors a GPU does not until a new process."""
    if device == "cpu":
        return True
    import torch

    try:
        return bool(torch.ones(1, device=device).sum().item() == 1)
    except Exception:  # whatever its driver says
        return False


def free_memory() -> None:
    """Hand back what no tensor holds any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _reason(error: BaseException, device: str) -> str:
    """Return in one line why a trial failed; print where."""
    with suppress(OSError):
        traceback.print_exception(error)
    if isinstance(error, UserError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    text = f"{type(error).__name__}: {error} (at {where})"
    return f"out of memory, also alone on {device}: {text}" if is_out_of_memory(error) else text


def trials_folder() -> Path:
    """Return where trials keep their files."""
    return Path(os.environ.get("ROBUSTLR_FOLDER", DEFAULT_FOLDER))


def trial_folder(claim: Claim) -> Path:
    """Return where the trial keeps its checkpoint and pictures; it is made when they are."""
    return trials_folder() / claim.cell / str(claim.number)


def main() -> None:
    """Work on the study and device named on the command line; exit with 2 if that is impossible."""
    _, name, device = sys.argv
    signals = Signals()
    if "ROBUSTLR_LIFELINE" in os.environ:
        signals.follow(int(os.environ["ROBUSTLR_LIFELINE"]))
    try:
        if "ROBUSTLR_MEMORY_FRACTION" in os.environ:
            import torch

            torch.cuda.set_per_process_memory_fraction(
                float(os.environ["ROBUSTLR_MEMORY_FRACTION"])
            )
        storage = patiently(signals, partial(open_storage, os.environ["ROBUSTLR_STORAGE"]))
        # Before the first claim: a machine that lacks something must not fail everybody's trials.
        store(storage)
        if not _works(device):
            raise UserError(f"{device} does not compute; robustlr doctor says more")
        study = patiently(signals, partial(storage.load_study, name))
        patiently(signals, partial(storage.check_unchanged, study))
        if not all(isinstance(load_task(task), FunctionTask) for task in study.tasks):
            # Some seconds, in which no trial should wait; torch's optimizers import the second.
            for module in ("robustlr.training", "torch._dynamo"):
                import_module(module)
        fuse = os.environ.get("ROBUSTLR_FUSE")
        if fuse and study.design == "tpe":
            say("trials are trained alone: each point of a tpe design learns from the last")
            fuse = None
        work(storage, name, device, signals, fuse)
    except StopRequested:
        pass
    except UserError as error:
        say(str(error))
        sys.exit(IMPOSSIBLE)


if __name__ == "__main__":
    main()
