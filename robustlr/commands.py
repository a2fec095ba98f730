"""Commands on results: tables of anyone, published numbers, studies as files."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from robustlr.errors import UserError
from robustlr.options import DEFAULT_URL, AsJson, Name, Only, Url, open_database


def analyze(
    table: Annotated[Path, typer.Argument(help="A CSV or Parquet file, a row a training run.")],
    out: Annotated[Path, typer.Option(help="Folder for the report.")],
    condition: Annotated[
        list[str] | None,
        typer.Option(help="A column that is compared, not tuned; may be repeated."),
    ] = None,
    only: Only = None,
) -> None:
    """Write the report on anyone's table of training runs; docs/table.md describes its columns."""
    from robustlr.read_table import doubts, read_table, taken
    from robustlr.report import write_report

    trials = read_table(table, condition or [])
    for doubt in doubts(trials):
        print(f"robustlr: {doubt}", file=sys.stderr)
    print(taken(trials))
    print(f"report: {write_report(trials, out, title=table.stem, only=only or [])}")


def compare(name: Name, storage: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Lay a study's tuned results beside the numbers that papers have published."""
    from robustlr.compare import compare as compare_trials

    database = open_database(storage)
    study, trials = database.load_study(name), database.trials(name)
    if trials.empty:
        raise UserError(f'study "{name}" has no finished trial yet: robustlr worker {name}')
    found = compare_trials(trials, study.scale)
    if as_json:
        rows = json.loads(found.table.to_json(orient="records"))
        print(
            json.dumps({"verdict": found.verdict, "differences": found.differences, "rows": rows})
        )
        return
    print(*found.lines(), sep="\n")


def export(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The file to write; .gz compresses it.")],
    storage: Url = DEFAULT_URL,
) -> None:
    """Write a study with all its trials to a file, for another database."""
    from robustlr.move import export_study
    from robustlr.storage import Storage

    with Storage(storage) as database:
        trials = export_study(database, name, file)
    print(f"{name}: {trials} trials written to {file}")


def import_(
    file: Annotated[Path, typer.Argument(help="A file that robustlr study export wrote.")],
    storage: Url = DEFAULT_URL,
) -> None:
    """Take in a study that was exported, with all its trials."""
    from robustlr.move import import_study, read_export
    from robustlr.storage import Storage

    document = read_export(file)
    with Storage(storage, create=True) as database:
        name, trials = import_study(database, document)
    print(f"{name}: {trials} trials imported")
