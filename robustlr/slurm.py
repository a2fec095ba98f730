"""Workers as an array of Slurm jobs, which submitit submits and requeues.

Each job runs the launcher in its allocation. Shortly before its time limit it gives its trials back
and is queued again. The study's name is all that a job is told, in a file of a folder that all
machines share; the database, whose URL may hold a password, is in the environment that sbatch exports.
"""

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from robustlr.errors import UserError, extra
from robustlr.storage import open_storage
from robustlr.worker import trials_folder

if TYPE_CHECKING:
    from submitit import SlurmExecutor
    from submitit.helpers import DelayedSubmission

WARNING_SECONDS = 60
"""How long before its time limit a job is told; Slurm may do so half a minute earlier."""

WARNING_SIGNAL = "URG"
"""Slurm sends it to all of a job's processes; unlike USR2 it ends none that does not ask for it."""

REQUEUES = 1_000_000
"""A study may need any number of them; submitit wants a number."""


@dataclass(frozen=True)
class Job:
    """What a job of the array runs: workers for a study on the devices that Slurm gave it."""

    name: str
    devices: str
    per_device: int | None
    memory_fraction: float | None
    fuse: str | None

    def __call__(self) -> None:
        """Run workers until nothing waits; stop them and queue the job again before its limit."""
        received: set[int] = set()

        def stop(number: int, frame: FrameType | None) -> None:
            received.add(number)
            raise KeyboardInterrupt

        warning = signal.Signals[f"SIG{WARNING_SIGNAL}"]
        for number in (signal.SIGTERM, warning):
            signal.signal(number, stop)
        try:
            _work_here(self)
        except UserError as error:
            sys.exit(f"robustlr: {error}")
        except KeyboardInterrupt:
            if warning not in received:
                sys.exit("robustlr: stopped; running trials are back in the queue")
            # Only now: Slurm begins to end a job's processes as soon as the job is queued again.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.raise_signal(signal.SIGUSR2)  # submitit's handler queues the job and exits

    def checkpoint(self) -> "DelayedSubmission":
        """Return what submitit is to run when the job starts again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What each job of the array asks for; the cluster decides what is None.

    ``time`` is in minutes; ``slurm`` holds other options of sbatch, ``key=value`` or ``key``.
    """

    time: int = 60
    partition: str | None = None
    account: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    slurm: Sequence[str] = ()

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of submitit's SlurmExecutor."""
        others: dict[str, str | bool] = {
            "requeue": True,
            "signal": f"{WARNING_SIGNAL}@{WARNING_SECONDS}",
        }
        for option in self.slurm:
            key, equals, value = option.partition("=")
            others[key] = value if equals else True
        return {
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            # srun does not take the number over from sbatch since Slurm 22.05.
            "srun_args": [f"--cpus-per-task={self.cpus}"] if self.cpus else None,
            "wckey": None,  # submitit's own would be refused where these keys are accounts
            "additional_parameters": others,
        }


def submit(
    name: str,
    url: str,
    allocation: Allocation,
    workers: int = 1,
    devices: str | None = None,
    per_device: int | None = None,
    memory_fraction: float | None = None,
    fuse: str | None = None,
) -> str | None:
    """Submit an array of ``workers`` jobs for the study in the database ``url``.

    Without ``devices`` each job works on all GPUs that it asks for, or on the CPU if it asks for none;
    there it runs ``per_device`` workers, one a core by default.

    Returns:
        The array's job id, or None if no trial waits.

    Raises:
        UserError: submitit or Slurm is missing, or Slurm refuses the job.
    """
    executor = _executor(log_folder(name))
    with open_storage(url) as storage:
        storage.check_unchanged(storage.load_study(name))
        storage.requeue_failed(name)  # once: each job would run them again
        waiting = storage.progress(name).waiting
    if not waiting:
        return None
    devices = devices or ("all" if allocation.gpus else "cpu")
    if devices == "cpu":
        per_device = per_device or allocation.cpus or 1
    jobs = [Job(name, devices, per_device, memory_fraction, fuse)] * workers
    executor.update_parameters(
        job_name=f"robustlr-{name}", array_parallelism=workers, **allocation.parameters()
    )
    return _submit(executor, jobs, url)


def log_folder(name: str) -> Path:
    """Return where the study's jobs keep their logs."""
    return trials_folder() / name / "slurm"


def _executor(folder: Path) -> "SlurmExecutor":
    if shutil.which("sbatch") is None:
        raise UserError("--engine slurm: there is no sbatch here; run it where Slurm is installed")
    with extra("slurm"):
        from submitit import SlurmExecutor
    return SlurmExecutor(folder, max_num_timeout=REQUEUES)


def _submit(executor: "SlurmExecutor", jobs: Sequence[Job], url: str) -> str:
    from submitit.core.utils import FailedJobError
    from submitit.helpers import environment_variables

    try:
        # What sbatch writes is in the error too, so submitit need not print it.
        with environment_variables(ROBUSTLR_STORAGE=url), redirect_stderr(StringIO()):
            submitted = executor.submit_array(jobs)
    except FailedJobError as error:
        lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines()]
        raise UserError(f"Slurm refuses the job: {'; '.join(lines)}") from error
    return str(submitted[0].job_id).partition("_")[0]


def _work_here(job: Job) -> None:
    """Run workers on this machine until none of the study's trials waits."""
    from robustlr.devices import slots
    from robustlr.display import ProgressDisplay
    from robustlr.launch import launch

    url = os.environ.get("ROBUSTLR_STORAGE")
    if url is None:
        raise UserError("ROBUSTLR_STORAGE is not set: let sbatch export the environment to the job")
    where = slots(job.devices, job.per_device, job.memory_fraction, job.fuse)
    with open_storage(url) as storage, ProgressDisplay() as display:
        launch(storage, url, job.name, where, display)
