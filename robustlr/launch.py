"""Starting workers, one process a slot, and watching them until nothing waits."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Protocol

from robustlr import claims
from robustlr.devices import Slot
from robustlr.errors import UserError, say
from robustlr.keeper import Keeper
from robustlr.status import Progress
from robustlr.storage import Storage
from robustlr.worker import IMPOSSIBLE, trials_folder

POLL_SECONDS = 0.1
GRACE_SECONDS = 25.0
"""How long workers may take to stop; Slurm kills what runs after 30 seconds."""
MAX_IDLE_DEATHS = 3
"""How often in a row a worker may die before it has claimed a trial."""


class Display(Protocol):
    """What shows a study's progress while its workers run."""

    seconds: float
    """How often it wants to know."""

    def update(self, progress: Progress) -> None:
        """Show the counts."""


@dataclass
class _Worker:
    """A slot's process, its name in the database, its log, and our end of its lifeline."""

    slot: Slot
    process: subprocess.Popen[bytes]
    name: str
    log: Path
    lifeline: int
    idle_deaths: int = 0

    def hang_up(self) -> None:
        """End the lifeline, which asks a live worker to give its trial back and stop."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
        self.lifeline = -1


class Launcher:
    """Runs a study's waiting trials in one worker a slot."""

    def __init__(self, storage: Storage, url: str, name: str, display: Display) -> None:
        self._storage, self._url, self._name, self._display = storage, url, name, display
        self._keeper = Keeper(storage, name, min(display.seconds, claims.LEASE_SECONDS / 4))
        self._workers: list[_Worker] = []
        self._dead: list[_Worker] = []
        self._idle: list[tuple[Slot, Path, int]] = []
        self._logs = _logs_folder(name)

    def run(self, where: Sequence[Slot]) -> None:
        """Run until nothing waits, and no trial is left with a worker elsewhere that has died."""
        self._keeper.start()
        try:
            while True:
                self._start_all(where)
                while self._workers or self._dead:
                    self._pause()
                    self._find_dead()
                    self._replace_dead()
                    self._wake_idle()
                if not self._waits_again():
                    return
        finally:
            self._stop()

    def _pause(self) -> None:
        time.sleep(POLL_SECONDS)
        self._keeper.check()
        self._display.update(self._keeper.progress)

    def _start_all(self, where: Sequence[Slot]) -> None:
        self._idle = []
        for index, slot in enumerate(where):
            log = self._logs / f"{socket.gethostname()}-{os.getpid()}-{index}.log"
            self._start(slot, log)

    def _start(self, slot: Slot, log: Path, idle_deaths: int = 0) -> None:
        ours, theirs = os.pipe()[::-1]
        start = claims.start_time()
        known = {"ROBUSTLR_START": start, "ROBUSTLR_LIFELINE": str(theirs)}
        known["ROBUSTLR_STORAGE"] = self._url
        with _opened(log) as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "robustlr.worker", self._name, slot.device],
                env={**os.environ, **slot.environment, **known},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the launcher alone
                pass_fds=(theirs,),
            )
        os.close(theirs)
        name = claims.worker_name(slot.name, process.pid, start)
        self._workers.append(_Worker(slot, process, name, log, ours, idle_deaths))
        self._keeper.look_after(worker.name for worker in self._workers)

    def _find_dead(self) -> None:
        """Have the database told which workers have ended, and how."""
        for worker in [w for w in self._workers if w.process.poll() is not None]:
            worker.hang_up()
            self._workers.remove(worker)
            self._dead.append(worker)
            self._keeper.look_after(each.name for each in self._workers)
            status = worker.process.returncode
            died = status not in (0, IMPOSSIBLE)
            self._keeper.bury(worker.name, _death(status) + _tail(worker.log) if died else None)
            if status == IMPOSSIBLE:
                raise UserError(_last_words(worker.log))

    def _replace_dead(self) -> None:
        """Start another worker for each that died; one that found no trial waits for more."""
        for worker in list(self._dead):
            given_back = self._keeper.given_back(worker.name)
            if given_back is None:  # the database has not been told yet
                continue
            self._dead.remove(worker)
            if worker.process.returncode == 0:
                self._idle.append((worker.slot, worker.log, self._keeper.beats))
                continue
            idle_deaths = 0 if given_back else worker.idle_deaths + 1
            if idle_deaths > MAX_IDLE_DEATHS:
                how, words = _death(worker.process.returncode), _last_words(worker.log)
                raise UserError(
                    f"a worker died {idle_deaths} times before it had a trial, and at last {how}; "
                    f"the end of its log:\n{words}"
                )
            self._start(worker.slot, worker.log, idle_deaths)

    def _wake_idle(self) -> None:
        """Start workers again for trials that have come back since they found none."""
        for slot, log, beats in list(self._idle):
            if self._keeper.progress.waiting and self._keeper.beats >= beats + 2:
                self._idle.remove((slot, log, beats))
                self._start(slot, log)

    def _waits_again(self) -> bool:
        """Wait for what runs elsewhere to show that it lives; return whether a trial waits again."""
        deadline = time.monotonic() + 1.5 * claims.LEASE_SECONDS
        known = self._keeper.beats + 2  # one may be under way
        while time.monotonic() < deadline:
            if self._keeper.beats < known:
                self._keeper.wake()
            elif self._keeper.progress.waiting or not self._keeper.progress.running:
                return self._keeper.progress.waiting > 0
            self._pause()
        return False

    def _stop(self) -> None:
        """Ask the workers to give their trials back, wait, and kill those that do not end."""
        for worker in self._workers:
            worker.hang_up()
        try:
            deadline = time.monotonic() + GRACE_SECONDS
            for worker in self._workers:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for worker in self._workers:
                worker.process.kill()
                worker.process.wait()
        for worker in self._workers:
            self._keeper.bury(worker.name, None)
        if not self._keeper.finish():
            say("robustlr: trials are given back when their leases expire")
        self._display.update(self._keeper.progress)
        for log in self._logs.glob(f"{socket.gethostname()}-{os.getpid()}-*.log"):
            if not log.stat().st_size:
                log.unlink()
        with suppress(OSError):  # there are others
            self._logs.rmdir()


def launch(storage: Storage, url: str, name: str, where: Sequence[Slot], display: Display) -> None:
    """Run the study's waiting trials in one worker a slot until none waits.

    A worker that dies is replaced, and its trial goes back to the queue, as does that of a worker
    elsewhere whose lease has expired. SIGINT and SIGTERM stop the workers, who save and give back
    their trials; a second one kills them.

    Raises:
        UserError: workers cannot work here, or die before they have a trial; the text holds the end
            of their log.
        KeyboardInterrupt: a signal came; every trial is back in the queue.
    """
    storage.load_study(name)
    # SIGINT too: a shell starts background commands with it ignored.
    before = {n: signal.signal(n, _interrupt) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        Launcher(storage, url, name, display).run(where)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _logs_folder(name: str) -> Path:
    folder = trials_folder() / name / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a full disk: what workers say goes where there may be room
        return Path(tempfile.mkdtemp(prefix="robustlr-"))
    return folder


def _opened(log: Path) -> IO[bytes]:
    """Open a log; where the disk is full, what is said there is lost."""
    try:
        return log.open("ab")
    except OSError:
        return open(os.devnull, "ab")


def _death(status: int) -> str:
    """Return an exit status in words."""
    return f"it died by {signal.Signals(-status).name}" if status < 0 else f"it ended with {status}"


def _tail(log: Path) -> str:
    words = _last_words(log)
    return f"; the end of its log:\n{words}" if words else ""


def _last_words(log: Path, lines: int = 12) -> str:
    """Return the last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 10_000))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
