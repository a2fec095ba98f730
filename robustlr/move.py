"""Moving whole studies between databases: one file, all of it or nothing.

The file is JSON, compressed where its name ends in ``.gz``. It has the study, and the rows of Optuna's
tables that are its cells and trials, by table: columns first, then rows. Numbers of rows are
the file's own; the database that takes the study in gives its own.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from robustlr.errors import StorageError, UserError
from robustlr.storage import Storage
from robustlr.tables import (
    ATTRIBUTES,
    CELL_ATTRIBUTES,
    CELLS,
    DIRECTIONS,
    OPTUNA,
    PARAMS,
    STEPS,
    STUDIES,
    TRIALS,
    VALUES,
    cells_of,
)

FORMAT, VERSION = "robustlr study", 1
OF_CELLS = (DIRECTIONS, CELL_ATTRIBUTES)
OF_TRIALS = (PARAMS, VALUES, STEPS, ATTRIBUTES, OPTUNA.tables["trial_system_attributes"])
MOVED = (CELLS, *OF_CELLS, TRIALS, *OF_TRIALS)
"""What is moved, in the order in which rows refer to each other; leases and checkpoints are not."""

NOT_OURS = "the file is of another version of robustlr; nothing was imported"
BATCH = 20_000


def export_study(storage: Storage, name: str, path: Path) -> int:
    """Write a study and its trials to a file; return how many trials those are.

    A running trial is written as one that waits, without what it has reported.

    Raises:
        UserError: there is no such study, the file exists, or it cannot be written.
    """
    storage.spec(name)
    if path.exists():
        raise UserError(f"{path} exists; name another file")
    with storage.transaction() as connection:
        _see_one_moment(connection)
        study = connection.execute(sa.select(STUDIES).where(STUDIES.c.name == name)).one()
        tables = {table.name: _rows(connection, table, name) for table in MOVED}
    content = {"study": {key: _as_json(value) for key, value in study._mapping.items()}}
    content |= {"tables": tables}
    document = {"format": FORMAT, "version": VERSION, "sha256": _hash(content)} | content
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = json.dumps(document).encode()
        partial.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return len(tables[TRIALS.name]["rows"])


def _hash(document: Mapping[str, Any]) -> str:
    """Return the hash of a document's study and tables, which tells a damaged one."""
    content = {name: document[name] for name in ("study", "tables")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _see_one_moment(connection: sa.Connection) -> None:
    """Have all queries of the transaction see the study as it is now, whatever workers do."""
    is_file = connection.dialect.name == "sqlite"
    begin = "BEGIN" if is_file else "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    connection.exec_driver_sql(begin)


def _rows(connection: sa.Connection, table: sa.Table, name: str) -> dict[str, Any]:
    """Return a table's columns and the study's rows in it, in the order in which they were made."""
    (key,) = table.primary_key.columns
    columns = [column for column in table.c if column is not key or table in (CELLS, TRIALS)]
    query = sa.select(*columns).order_by(key)
    if "study_id" in table.c:
        query = query.where(table.c.study_id.in_(cells_of(name)))
    else:
        query = query.join(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
        query = query.where(TRIALS.c.study_id.in_(cells_of(name)))
    if table is STEPS:
        query = query.where(TRIALS.c.state != TrialState.RUNNING)
    rows = [[_as_json(value) for value in row] for row in connection.execute(query)]
    if table is TRIALS:
        at = [column.name for column in columns].index("state")
        for row in rows:
            row[at] = "WAITING" if row[at] == "RUNNING" else row[at]
    return {"columns": [column.name for column in columns], "rows": rows}


def _as_json(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    return value.isoformat() if isinstance(value, datetime) else value


def import_study(storage: Storage, document: Mapping[str, Any]) -> tuple[str, int]:
    """Take in the study of a file, as read by ``read_export``; return its name and its trials' number.

    Raises:
        UserError: a study of that name exists, or the file is of another version.
    """
    try:
        row = {column.name: _typed(column, document["study"][column.name]) for column in STUDIES.c}
        tables = {table: _of_file(table, document["tables"][table.name]) for table in MOVED}
        name = row["name"]
        with storage.transaction() as connection:
            # The name is the primary key: of two that take it in at once, one waits and fails.
            connection.execute(sa.insert(STUDIES), row)
            _insert(connection, tables)
    except sa.exc.IntegrityError as error:
        if row["name"] in storage.study_names():
            raise UserError(
                f'a study named "{name}" is in {storage.shown_url} already; delete it first: robustlr '
                f"study delete {name}"
            ) from error
        raise UserError(NOT_OURS) from error
    except (KeyError, TypeError, ValueError, AttributeError, sa.exc.StatementError) as error:
        if isinstance(error, StorageError):
            raise
        raise UserError(NOT_OURS) from error
    return name, len(tables[TRIALS])


def read_export(path: Path) -> dict[str, Any]:
    """Return what ``export_study`` has written.

    Raises:
        UserError: the file cannot be read, is none of ours, or is damaged.
    """
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        document = json.loads(text)
    except OSError as error:  # a cut archive is one too, without a reason
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (EOFError, ValueError) as error:
        raise UserError(f"{path} is no study: make one by robustlr study export") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path} is no study: make one by robustlr study export")
    if document.get("version") != VERSION:
        raise UserError(
            f"{path} was written by another version of robustlr (the file has version "
            f"{document.get('version')}, this robustlr reads {VERSION})"
        )
    try:
        is_whole = document["sha256"] == _hash(document)
    except KeyError:
        is_whole = False
    if not is_whole:
        raise UserError(f"{path} is damaged, or was changed; export the study again")
    return document


def _of_file(table: sa.Table, stored: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = [table.c[name] for name in stored["columns"]]
    return [
        {c.name: _typed(c, value) for c, value in zip(columns, row, strict=True)}
        for row in stored["rows"]
    ]


def _typed(column: sa.Column[Any], value: Any) -> Any:
    """Return a value of the file as the column has it."""
    if value is None:
        return None
    if isinstance(column.type, sa.Enum) and column.type.enum_class is not None:
        return column.type.enum_class[value]
    return datetime.fromisoformat(value) if isinstance(column.type, sa.DateTime) else value


def _insert(connection: sa.Connection, tables: Mapping[sa.Table, Sequence[dict[str, Any]]]) -> None:
    cells = _insert_anew(connection, CELLS, tables[CELLS], {})
    trials = _insert_anew(connection, TRIALS, tables[TRIALS], {"study_id": cells})
    for table in (*OF_CELLS, *OF_TRIALS):
        name, ids = ("study_id", cells) if table in OF_CELLS else ("trial_id", trials)
        rows = [row | {name: ids[row[name]]} for row in tables[table]]
        for start in range(0, len(rows), BATCH):
            connection.execute(sa.insert(table), rows[start : start + BATCH])


def _insert_anew(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[dict[str, Any]],
    refer: Mapping[str, Mapping[int, int]],
) -> dict[int, int]:
    """Insert rows with ids of the database; return those by the file's."""
    (key,) = table.primary_key.columns
    before = [row[key.name] for row in rows]
    new = [{n: value for n, value in row.items() if n != key.name} for row in rows]
    new = [row | {name: ids[row[name]] for name, ids in refer.items()} for row in new]
    insert = sa.insert(table).returning(key, sort_by_parameter_order=True)
    ids: list[int] = []
    for start in range(0, len(new), BATCH):
        ids += connection.scalars(insert, new[start : start + BATCH]).all()
    return dict(zip(before, ids, strict=True))
