"""The command line: thin commands; what they do is imported when they run."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from robustlr.actions import (
    check_finished,
    create_study,
    draw_heatmaps_of,
    queue_confirmation,
    run_trials,
    submit_jobs,
    write_report_of,
)
from robustlr.commands import analyze, compare, export, import_
from robustlr.errors import UserError, extra
from robustlr.options import (
    DEFAULT_URL,
    LOOPBACK,
    AsJson,
    AtScale,
    Devices,
    Fuse,
    Host,
    MemoryFraction,
    Name,
    Only,
    PerDevice,
    Source,
    Url,
    open_database,
    print_rows,
    warn_unless_loopback,
)

app = typer.Typer(
    help="Measure what an optimizer costs to tune: studies, workers, reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
study_app = typer.Typer(help="Create, list, show, move and delete studies.", no_args_is_help=True)
app.add_typer(study_app, name="study")
app.command()(analyze)
app.command()(compare)
study_app.command()(export)
study_app.command("import")(import_)
storage_app = typer.Typer(help="Upgrade a database, or share it.", no_args_is_help=True)
app.add_typer(storage_app, name="storage")


class Engine(StrEnum):
    """Where workers run: on this machine, or as jobs of a Slurm cluster."""

    LOCAL = "local"
    SLURM = "slurm"


@app.command()
def run(
    study: Source,
    scale: AtScale = None,
    storage: Url = DEFAULT_URL,
    out: Annotated[Path | None, typer.Option(help="Folder; default: report/NAME.")] = None,
    devices: Devices = None,
    per_device: PerDevice = None,
    memory_fraction: MemoryFraction = None,
    fuse: Fuse = None,
) -> None:
    """Create a study, run it on this machine and write its report."""
    found = create_study(study, scale, storage)
    run_trials(found.name, storage, devices, per_device, memory_fraction, fuse)
    write_report_of(found.name, storage, out, [])
    check_finished(found.name, storage)


@study_app.command()
def create(study: Source, scale: AtScale = None, storage: Url = DEFAULT_URL) -> None:
    """Store a study and queue all its trials; doing it twice is harmless."""
    create_study(study, scale, storage)


@study_app.command("list")
def list_studies(storage: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the studies in the database."""
    database = open_database(storage)
    rows = []
    for name in database.study_names():
        progress, cells = database.progress(name), len(database.cells(name))
        rows.append({"name": name, "cells": cells, "trials": progress.total, **vars(progress)})
    print_rows(rows, as_json)


@study_app.command()
def show(name: Name, storage: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a stored study: what it asks, its cells and its trials."""
    study = open_database(storage).load_study(name)
    if as_json:
        print(json.dumps({**study.model_dump(), "hash": study.hash}))
        return
    for key, value in study.model_dump(exclude={"optimizers"}, exclude_none=True).items():
        print(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    print(f"hash: {study.hash}")
    for optimizer in study.optimizers.values():
        print(f"{optimizer.name} ({optimizer.target})")
        for hyperparameter, space in optimizer.model_dump(exclude_none=True)["space"].items():
            print(f"  {hyperparameter}: {json.dumps(space)}")
    trials = [len(cell.trials()) for cell in study.cells()]
    print(f"{len(trials)} cells, {sum(trials)} trials")


@study_app.command()
def delete(
    name: Name,
    storage: Url = DEFAULT_URL,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a study with all its trials."""
    database = open_database(storage)
    progress = database.progress(name)
    if not yes and not typer.confirm(f"Delete {name} with {progress.complete} finished trials?"):
        raise UserError(f"{name} was not deleted")
    database.delete_study(name)
    print(f"deleted {name}")


@storage_app.command()
def upgrade(storage: Url = DEFAULT_URL) -> None:
    """Bring a database that an older robustlr wrote up to this version; stop its workers first."""
    from robustlr.storage import Storage

    print(f"{Storage(storage, upgrade=True).shown_url} has the tables of this version")


@storage_app.command("serve")
def serve_storage(
    storage: Url = DEFAULT_URL,
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 13000,
) -> None:
    """Share a PostgreSQL server's few connections among hundreds of workers, as grpc://HOST:PORT.

    One Python process answers all of them, which is its limit: below about a hundred workers
    connect to PostgreSQL itself. It asks for no password.
    """
    with extra("grpc"):
        from robustlr.proxy import serve
    warn_unless_loopback(host)
    serve(storage, host, port)


@app.command()
def worker(
    name: Name,
    storage: Url = DEFAULT_URL,
    devices: Devices = None,
    per_device: PerDevice = None,
    memory_fraction: MemoryFraction = None,
    fuse: Fuse = None,
    engine: Annotated[
        Engine, typer.Option(help="Run here, or submit jobs to a Slurm cluster.")
    ] = Engine.LOCAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Slurm: number of jobs; default: 1.")
    ] = None,
    time: Annotated[
        int | None,
        typer.Option(min=2, help="Slurm: minutes until a job is queued again; default: 60."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm: where to run.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm: whom to charge.")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Slurm: GPUs of a job; default: none.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Slurm: CPU cores of a job.")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="Slurm: an option of sbatch, KEY=VALUE; may be repeated."),
    ] = None,
) -> None:
    """Run a study's waiting trials until none waits; start it on as many machines as you like."""
    options = {
        "workers": workers,
        "time": time,
        "partition": partition,
        "account": account,
        "gpus": gpus,
        "cpus": cpus,
        "slurm": slurm,
    }
    given = {option: value for option, value in options.items() if value}
    if engine is Engine.SLURM:
        submit_jobs(name, storage, given, (devices, per_device, memory_fraction, fuse))
        return
    if given:
        raise UserError(f"--{next(iter(given))} is for jobs on a cluster: add --engine slurm")
    run_trials(name, storage, devices, per_device, memory_fraction, fuse)
    check_finished(name, storage)


@app.command()
def confirm(
    name: Name,
    seeds: Annotated[int, typer.Option(min=1, help="How many fresh seeds.")] = 10,
    storage: Url = DEFAULT_URL,
    devices: Devices = None,
    per_device: PerDevice = None,
    memory_fraction: MemoryFraction = None,
    fuse: Fuse = None,
    queue_only: Annotated[
        bool, typer.Option("--queue-only", help="Leave the trials to robustlr worker.")
    ] = False,
) -> None:
    """Run each cell's best and out-of-the-box setting on fresh seeds; the best is that by validation.

    Doing it twice is harmless; more seeds are added to those that are there.
    """
    queue_confirmation(name, seeds, storage)
    if queue_only:
        return
    run_trials(name, storage, devices, per_device, memory_fraction, fuse)
    check_finished(name, storage)


@app.command()
def status(
    name: Name,
    storage: Url = DEFAULT_URL,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until nothing waits or runs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a study is: each cell, what runs where, why trials failed, the time left."""
    from robustlr.display import lines
    from robustlr.display import watch as watch_study

    database = open_database(storage)
    found = database.status(name)
    if watch:
        found = watch_study(lambda: database.status(name))
    print(json.dumps(found.to_json()) if as_json else "\n".join(lines(found)))


@app.command()
def report(
    name: Name,
    storage: Url = DEFAULT_URL,
    out: Annotated[Path | None, typer.Option(help="Folder; default: report/NAME.")] = None,
    only: Only = None,
) -> None:
    """Write a study's tables, pictures and HTML report."""
    write_report_of(name, storage, out, only or [])


@app.command()
def heatmap(
    name: Name,
    storage: Url = DEFAULT_URL,
    x: Annotated[str, typer.Option(help="The hyperparameter to the right.")] = "lr",
    y: Annotated[
        str | None, typer.Option(help="The one upward; default: weight_decay, or another.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="One task, or worst-task; default: all of them.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="One optimizer; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path(),
) -> None:
    """Draw heatmaps over two hyperparameters: a picture a task, all optimizers side by side."""
    draw_heatmaps_of(name, storage, out, axes=(x, y), only={"task": task, "optimizer": optimizer})


@app.command()
def dashboard(
    storage: Url = DEFAULT_URL,
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Serve Optuna's dashboard with our plots on this machine's loopback address; no password."""
    from robustlr.dashboard import serve

    warn_unless_loopback(host)
    serve(open_database(storage), host, port)


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks that a study can name."""
    from robustlr.registry import tasks as registered

    print_rows(
        [
            {
                "name": task.name,
                "metric": task.metric,
                "direction": task.direction,
                "worst": task.worst,
                "scales": ", ".join(task.scales),
                "fuses": task.fuses,
                "conditions": ", ".join(task.condition_names),
                "summary": task.summary,
            }
            for task in registered().values()
        ],
        as_json,
    )


@app.command()
def optimizers(as_json: AsJson = False) -> None:
    """List the optimizers that a study can name, their defaults and where those come from."""
    from robustlr.registry import optimizers as registered

    print_rows(
        [
            {
                "name": name,
                "summary": entry.summary,
                "default": ", ".join(f"{k}={v}" for k, v in entry.default.items()),
                "default source": entry.default_source,
                "paper": entry.paper,
            }
            for name, entry in registered().items()
        ],
        as_json,
    )


@app.command()
def doctor(storage: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Check this machine, its data and the database, and say how to mend what is missing."""
    from robustlr.doctor import checks

    found = []
    for check in checks(storage):
        found.append(check)
        if not as_json:
            advice = f" → {check.advice}" if check.advice else ""
            print(f"{check.state:7}  {check.name:18}  {check.found}{advice}", flush=True)
    if as_json:
        print(json.dumps([vars(check) for check in found]))
    if any(check.state == "problem" for check in found):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what a user can mend is one sentence on standard error, exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"robustlr: {error}", file=sys.stderr)
        sys.exit(2)
