"""What several commands do."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from robustlr.errors import UserError
from robustlr.options import open_database

if TYPE_CHECKING:
    from robustlr.study import Study


def create_study(source: str, scale: str | None, url: str) -> "Study":
    """Store a study and queue its trials; say how many."""
    from robustlr.study import load_study

    study = load_study(source, scale)
    database = open_database(url, create=True)
    new = database.create_study(study)
    total = database.progress(study.name).total
    print(f"{study.name}: {total} trials {'queued' if new else 'are in the database already'}")
    if not new and database.load_study(study.name).findings != study.findings:
        print("its findings stay those that it was created with")
    return study


def run_trials(
    name: str,
    url: str,
    devices: str | None,
    per_device: int | None,
    memory_fraction: float | None,
    fuse: str | None,
) -> None:
    """Run the study's trials, those that failed before too; say why some failed."""
    from robustlr.copies import store
    from robustlr.devices import slots
    from robustlr.display import ProgressDisplay
    from robustlr.launch import launch

    database = open_database(url)
    database.load_study(name)
    where = slots(devices, per_device, memory_fraction, fuse)
    store(database)
    if not database.progress(name).running:  # a machine that joins others would repeat what fails
        database.requeue_failed(name)
    try:
        with ProgressDisplay() as display:
            launch(database, url, name, where, display)
    except KeyboardInterrupt:
        print("robustlr: stopped; running trials are back in the queue", file=sys.stderr)
        raise typer.Exit(130) from None
    for reason, count in database.failures(name).items():
        print(f"robustlr: {count} failed: {reason}", file=sys.stderr)


def submit_jobs(
    name: str,
    url: str,
    given: dict[str, Any],
    where: tuple[str | None, int | None, float | None, str | None],
) -> None:
    """Submit jobs that run the study's trials; say how to watch them."""
    from robustlr.slurm import Allocation, log_folder, submit

    workers = given.pop("workers", 1)
    allocation = Allocation(**given)
    job = submit(name, url, allocation, workers, *where)
    if job is None:
        print(f"{name}: no trial waits, so nothing was submitted")
        return
    print(f"{name}: Slurm's job {job}; its logs are in {log_folder(name)}")
    print(f"watch it: robustlr status {name} --watch, or squeue --job {job}")


def check_finished(name: str, url: str) -> None:
    """Refuse to call a study finished that has failed or waiting trials."""
    progress = open_database(url).progress(name)
    if progress.failed or progress.waiting:
        raise UserError(
            f'study "{name}" is not finished: {progress.failed} trials failed and '
            f"{progress.waiting} wait; mend the cause and run them: robustlr worker {name}"
        )
    if progress.running:
        print(f"{progress.running} trials run elsewhere: robustlr status {name} --watch")


def write_report_of(name: str, url: str, out: Path | None, only: list[str]) -> None:
    """Write the report of a stored study; say where it is."""
    from robustlr.report import write_report

    database = open_database(url)
    study, progress = database.load_study(name), database.progress(name)
    folder = out or Path("report", name)
    page = write_report(database.trials(name), folder, study=study, progress=progress, only=only)
    print(f"report: {page}")
