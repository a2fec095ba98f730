"""Starting workers, one process a slot, and watching a study until nothing waits."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from robustlr.errors import UserError
from robustlr.storage import Progress, Storage
from robustlr.worker import IMPOSSIBLE

POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0
MAX_RESTARTS = 3


@dataclass(frozen=True)
class Slot:
    """A place for one worker: its device and the environment that shows it nothing else."""

    device: str
    environment: Mapping[str, str]


def slots(devices: str | None, processes: int | None) -> list[Slot]:
    """Return the slots for ``devices`` ("all", "cpu", "0,2") or for ``processes`` on the CPU.

    With neither, every GPU gets a worker, or every CPU core where there is no GPU.

    Raises:
        UserError: there is no such device.
    """
    if devices is not None and devices != "cpu" and processes is not None:
        raise UserError("--processes is for CPU workers; a GPU gets one worker, so leave it out")
    gpus = [] if devices == "cpu" or processes is not None else _gpus(devices)
    if gpus:
        return [Slot("cuda", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus]
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # One thread whatever the number of workers: a sum's bits depend on how many threads share it.
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
    return [Slot("cpu", environment)] * (processes or cores)


def _gpus(devices: str | None) -> list[str]:
    import torch

    present = [str(index) for index in range(torch.cuda.device_count())]
    # What this process may see can be a part of the machine, as on a cluster; GPU 0 is its first.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else present
    if devices is None:
        return names[: len(present)]
    wanted = present if devices == "all" else devices.split(",")
    missing = [device for device in wanted if device not in present]
    if not present:
        raise UserError(f"--devices {devices}: torch sees no GPU here; use --devices cpu")
    if missing:
        raise UserError(
            f'--devices {devices}: there is no GPU "{missing[0]}"; there are: {", ".join(present)}'
        )
    return [names[int(device)] for device in wanted]


class Display(Protocol):
    """What shows a study's progress while its workers run."""

    def update(self, progress: Progress) -> None:
        """Show the counts."""


@dataclass
class _Worker:
    """A slot's process, its output, and how often it was started again."""

    slot: Slot
    process: subprocess.Popen[bytes]
    log: Path
    restarts: int = 0


def launch(storage: Storage, url: str, name: str, where: Sequence[Slot], display: Display) -> None:
    """Run the study's waiting trials in one worker a slot until none waits.

    Failed trials are queued once more first, and so are those whose process on this host is gone. A
    worker that dies is started again, and its trial goes back to the queue. SIGINT and SIGTERM stop
    the workers, who give their trials back; a second one kills them.

    Raises:
        UserError: workers die again and again; the text holds the end of their output.
        KeyboardInterrupt: a signal came; every trial is back in the queue.
    """
    storage.load_study(name)
    storage.requeue_failed(name)
    storage.give_back_orphans(name)
    # SIGINT too: a shell starts background commands with it ignored.
    before = {n: signal.signal(n, _interrupt) for n in (signal.SIGTERM, signal.SIGINT)}
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="robustlr-") as logs:
        try:
            display.update(storage.progress(name))
            for index, slot in enumerate(where):
                workers.append(_start(slot, url, name, Path(logs, f"{index}.log")))
            while workers:
                time.sleep(POLL_SECONDS)
                workers = _survivors(storage, url, name, workers)
                display.update(storage.progress(name))
        finally:
            _stop(workers)
            storage.give_back_orphans(name)
            for number, handler in before.items():
                signal.signal(number, handler)


def watch(storage: Storage, name: str) -> None:
    """Show the study's progress, whoever runs it, until no trial waits or runs."""
    from robustlr.display import ProgressDisplay

    with ProgressDisplay() as display:
        while True:
            display.update(progress := storage.progress(name))
            if not (progress.waiting or progress.running):
                break
            time.sleep(POLL_SECONDS)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _start(slot: Slot, url: str, name: str, log: Path, restarts: int = 0) -> _Worker:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "robustlr.worker", name, slot.device],
            env={**os.environ, **slot.environment, "ROBUSTLR_STORAGE": url},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which passes it on once
        )
    return _Worker(slot, process, log, restarts)


def _survivors(storage: Storage, url: str, name: str, workers: list[_Worker]) -> list[_Worker]:
    """Return the live workers and replacements for those that died before their work was done."""
    alive = [worker for worker in workers if worker.process.poll() is None]
    for worker in workers:
        if not worker.process.poll():  # None: alive; 0: nothing waited
            continue
        storage.give_back_orphans(name)
        if worker.process.returncode == IMPOSSIBLE:
            _stop(alive)
            raise UserError(_tail(worker.log))
        if worker.restarts == MAX_RESTARTS:
            _stop(alive)
            raise UserError(
                f"a worker died {MAX_RESTARTS + 1} times, last with exit status "
                f"{worker.process.returncode}; the end of its output:\n{_tail(worker.log)}"
            )
        alive.append(_start(worker.slot, url, name, worker.log, worker.restarts + 1))
    return alive


def _tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _stop(workers: Sequence[_Worker]) -> None:
    """Ask the workers to give their trials back, wait, and kill those that do not end."""
    for worker in workers:
        worker.process.terminate()
    try:
        for worker in workers:
            worker.process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
