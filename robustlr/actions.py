"""What several commands do."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from robustlr.errors import UserError, unknown
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


def queue_confirmation(name: str, seeds: int, url: str) -> None:
    """Queue the trials that confirm a finished study; say how many are new."""
    from robustlr.confirm import queue_confirmation

    new = queue_confirmation(open_database(url), name, seeds)
    what = f"{new} trials queued" if new else "all trials are in the database already"
    print(f"{name}: {what}, of each cell's best and out-of-the-box setting")


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
    trials = database.trials(name, curves=True)
    page = write_report(trials, folder, study=study, progress=progress, only=only)
    print(f"report: {page}")


def draw_heatmaps_of(
    name: str,
    url: str,
    out: Path,
    *,
    axes: tuple[str, str | None],
    only: dict[str, str | None],
) -> None:
    """Draw a stored study's heatmaps over two hyperparameters; say where they are.

    ``only`` is the task and the optimizer to draw, or None for all.
    """
    from robustlr.analysis import _cells, heatmap
    from robustlr.report import pictures

    trials = open_database(url).trials(name)
    known = _cells.hyperparameters(trials)
    for axis in axes:
        if len(trials) and axis is not None and axis not in known:
            raise unknown("hyperparameter of the study", axis, known)
    table = heatmap.compute(trials, *axes)
    if table.empty:
        raise UserError(
            f'study "{name}" has no heatmap: it needs finished trials of a grid, random or sobol '
            "design with two hyperparameters"
        )
    for column, value in only.items():
        drawn = list(table[column].unique())
        if value is not None and value not in drawn:
            raise unknown(f"{column} with a heatmap", value, drawn)
        table = table if value is None else table[table[column] == value]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for picture in pictures("heatmap", heatmap, table):
            (out / picture.file).write_bytes(picture.png)
            print(out / picture.file)
    except OSError as error:
        raise UserError(f"no picture can be written to {out}: {error.strerror}") from error
