"""A worker that claims several trials of a cell and trains them as one program."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from robustlr.copies import Copies
from robustlr.errors import StorageError, UnavailableError, is_out_of_memory, say
from robustlr.fused import Ended, Request, train_together
from robustlr.fused_program import UnfusableError
from robustlr.registry import load_task
from robustlr.signals import Lost, Signals, StopRequested, stopping
from robustlr.storage import Claim, Storage
from robustlr.task import Outcome, SupervisedTask
from robustlr.worker import (
    Reporter,
    conclude,
    copies_of,
    free_memory,
    give_back,
    patiently,
    trial_folder,
)

AUTO = {"cpu": 16, "cuda": 128}
"""How many trials "auto" trains together where they fit, and are faster so."""


@dataclass
class _Running:
    """A claimed trial, and what goes with it."""

    claim: Claim
    report: Reporter
    copies: Copies


class Fusing:
    """Runs trials of a study together, ``fuse`` of a cell at a time, where they can be.

    Every trial keeps its own lease, checkpoint and values, as alone. After running out of memory
    half as many are tried.
    """

    def __init__(
        self, storage: Storage, name: str, worker: str, device: str, signals: Signals, fuse: str
    ) -> None:
        self._storage, self._name, self._worker = storage, name, worker
        self._device, self._signals = device, signals
        self._is_auto = fuse == "auto"
        self._width = AUTO[device] if self._is_auto else int(fuse)
        self._widths: dict[str, int] = {}
        self._running: dict[int, _Running] = {}

    def run(self, first: Claim) -> bool:
        """Run the trial and others of its cell; return False if it is to be run alone.

        Raises:
            StopRequested: the process shall stop; the trials are saved, and back in the queue.
            UnavailableError: this machine lacks what they need; they are back in the queue.
        """
        task = load_task(first.config.task).at(first.config.scale)
        width = self._widths.setdefault(first.cell, self._width)
        if width < 2 or not isinstance(task, SupervisedTask):
            return False
        trials = train_together(
            task, self._requests(first), width, self._device, if_faster=self._is_auto
        )
        try:
            with self._signals.interruptible():
                for ended in trials:
                    with self._signals.interruptible(False):
                        self._conclude(ended)
            return True
        except UnavailableError:
            raise
        except Exception as error:
            is_left = any(running.claim is first for running in self._running.values())
            if is_out_of_memory(error):
                number = len(self._running)
                self._widths[first.cell] = number // 2
                say(f"{first.cell}: out of memory with {number} trials together; half now: {error}")
                return True
            self._widths[first.cell] = 1
            why = error if isinstance(error, UnfusableError) else f"{type(error).__name__}: {error}"
            say(f"{first.cell}: trials are trained alone: {why}")
            self._give_back_all(but=first)
            return not is_left
        finally:
            trials.close()
            self._give_back_all()
            free_memory()

    def _requests(self, first: Claim) -> Iterator[Request]:
        """Yield the first trial, and then claim others of its cell as they are asked for."""
        yield self._request(first)
        while not stopping():
            with self._signals.interruptible(False):
                claim = self._claim(first)
            if claim is None:
                return
            yield self._request(claim)

    def _claim(self, first: Claim) -> Claim | None:
        claim = partial(self._storage.claim, self._name, self._worker, first.trial_id)
        try:
            return claim()
        except StorageError as error:  # those that train go on, and are enough for now
            say(f"{error}; no further trial is claimed for now")
            return None

    def _request(self, claim: Claim) -> Request:
        report = Reporter(self._storage, claim, self._signals)
        running = _Running(claim, report, copies_of(self._storage, claim))
        running.copies.__enter__()
        self._running[id(report)] = running
        return Request(claim.config, report, trial_folder(claim))

    def _conclude(self, ended: Ended) -> None:
        running = self._running.pop(id(ended.request.report))
        result = ended.result
        if isinstance(result, Outcome):
            try:
                patiently(self._signals, running.report.flush)
            except (Lost, StopRequested) as error:
                result = error
        running.copies.__exit__(None if isinstance(result, Outcome) else type(result))
        conclude(
            self._storage,
            running.claim,
            self._device,
            self._signals,
            result,
            ended.seconds,
            running.copies,
        )

    def _give_back_all(self, but: Claim | None = None) -> None:
        """Return to the queue what runs still."""
        for running in self._running.values():
            running.copies.__exit__(StopRequested)
            if running.claim is not but:
                give_back(self._storage, running.claim)
        self._running = {}
