"""The tidy table: one row a trial, the only thing that analyses see."""

import gc
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from pydantic_core import from_json

from robustlr.tables import (
    ATTRIBUTES,
    CELL_ATTRIBUTES,
    PARAMS,
    STEPS,
    TRIALS,
    VALUES,
    cells_of,
    external_value,
)
from robustlr.task import COLUMNS, CURVE

Columns = dict[str, list[Any]]
"""A table by column; None where a row has no value."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile: among a million new values that takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def read_trials(connection: sa.Connection, name: str, curves: bool = False) -> Columns:
    """Return the study's completed trials by column.

    The columns are ``COLUMNS``, then one for every hyperparameter and one for every condition,
    empty where a trial's optimizer has no such hyperparameter; ``conditions`` names the latter,
    separated by spaces. ``trial`` is the trial's number in its cell, ``seconds`` its wall time. A few
    queries, which have the database lay a trial's values side by side, read everything: Optuna's own
    readers, study by study, take some thirty times as long.

    With ``curves`` there is one column more, ``curve``: what the run measured of its metric as it
    trained, as text, ``10=0.9 20=0.5`` for 0.9 after ten steps; ``nan`` and ``inf`` can occur. It is
    read only where asked for, because a study has many times more such values than trials.
    """
    cells = _cells(connection, name)
    ours = TRIALS.c.study_id.in_(list(cells)) & (TRIALS.c.state == TrialState.COMPLETE)
    query = sa.select(TRIALS.c.trial_id, TRIALS.c.study_id, TRIALS.c.number, VALUES.c.value)
    joined = query.join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id).where(ours)
    found = connection.execute(joined.order_by(TRIALS.c.trial_id)).all()
    ids, cell_ids, numbers, values = zip(*found, strict=True) if found else ((), (), (), ())
    rows = {trial_id: row for row, trial_id in enumerate(ids)}
    columns: Columns = {name: [None] * len(rows) for name in COLUMNS}
    columns |= {"trial": list(numbers), "value": list(values), "diverged": [False] * len(rows)}
    columns |= _of_cells(cells, cell_ids)
    _add_attributes(connection, ours, rows, columns)
    if curves:
        columns[CURVE] = _curves(connection, ours, rows)
    columns |= _hyperparameters(connection, ours, rows, cell_ids)
    # Conditions come last; those of the study's other cells are not columns.
    present = dict.fromkeys(
        n for cell in dict.fromkeys(cell_ids) for n in cells[cell]["conditions"]
    )
    for condition in present:
        settings = {cell: facts["conditions"].get(condition) for cell, facts in cells.items()}
        columns[condition] = [settings[cell] for cell in cell_ids]
    return columns


def _cells(connection: sa.Connection, name: str) -> dict[int, dict[str, Any]]:
    query = sa.select(CELL_ATTRIBUTES.c.study_id, CELL_ATTRIBUTES.c.value_json)
    of_study = CELL_ATTRIBUTES.c.study_id.in_(cells_of(name)), CELL_ATTRIBUTES.c.key == "robustlr"
    return {cell: json.loads(text) for cell, text in connection.execute(query.where(*of_study))}


def _of_cells(cells: Mapping[int, Mapping[str, Any]], cell_ids: Sequence[int]) -> Columns:
    """Return the columns whose values are those of the trial's cell."""
    columns: Columns = {}
    for name in COLUMNS:
        values = {cell: facts.get(name) for cell, facts in cells.items()}
        if name == "conditions":
            values = {cell: " ".join(facts[name]) for cell, facts in cells.items()}
        if any(value is not None for value in values.values()):
            columns[name] = [values[cell] for cell in cell_ids]
    return columns


def _wide(
    connection: sa.Connection,
    ours: sa.ColumnElement[bool],
    key: sa.Column[str],
    value: sa.Column[Any],
    names: Sequence[str],
) -> Sequence[tuple[Any, ...]]:
    """Return a row a trial: its id, and its value of each name; None where it has none."""
    trial_id = key.table.c.trial_id
    columns = [sa.func.max(sa.case((key == name, value))) for name in names]
    query = sa.select(trial_id, *columns).join(TRIALS, TRIALS.c.trial_id == trial_id)
    found: Sequence[Any] = connection.execute(query.where(ours).group_by(trial_id)).all()
    return found


def _add_attributes(
    connection: sa.Connection,
    ours: sa.ColumnElement[bool],
    rows: Mapping[int, int],
    columns: Columns,
) -> None:
    """Fill in what is kept as trials' attributes, most of them in the one named ``result``."""
    names = ("role", "seed", "diverged")
    found = _wide(connection, ours, ATTRIBUTES.c.key, ATTRIBUTES.c.value_json, ("result", *names))
    parsed: dict[str, Any] = {}  # a seed or a role is that of thousands
    for trial_id, result, *texts in found:
        row = rows.get(trial_id)
        if row is None:  # it was completed after the first query
            continue
        for name, text in zip(names, texts, strict=True):
            if text is not None:
                if text not in parsed:
                    parsed[text] = json.loads(text)
                columns[name][row] = parsed[text]
        told = from_json(result) if result is not None else {}
        for name in told.keys() & columns.keys():
            columns[name][row] = told[name]


def _hyperparameters(
    connection: sa.Connection,
    ours: sa.ColumnElement[bool],
    rows: Mapping[int, int],
    cell_ids: Sequence[int],
) -> Columns:
    """Return the settings, read as the first trial of each cell says: all of a cell are stored alike."""
    key, stored_as = PARAMS.c.param_name, PARAMS.c.distribution_json
    first = sa.select(TRIALS.c.study_id, key, stored_as).join(PARAMS).order_by(PARAMS.c.param_id)
    first = first.where(TRIALS.c.study_id.in_(set(cell_ids)), TRIALS.c.number == 0)
    kinds = {(cell, name): text for cell, name, text in connection.execute(first)}
    names = list(dict.fromkeys(name for _, name in kinds))
    columns: Columns = {name: [None] * len(rows) for name in names}
    known: dict[tuple[int, str, float], Any] = {}  # a grid has few values
    for trial_id, *values in _wide(connection, ours, key, PARAMS.c.param_value, names):
        row = rows.get(trial_id)
        if row is None:
            continue
        for name, value in zip(names, values, strict=True):
            if value is None:
                continue
            setting = (cell_ids[row], name, value)
            if setting not in known:
                known[setting] = external_value(kinds[setting[:2]], value)
            columns[name][row] = known[setting]
    return columns


def _curves(
    connection: sa.Connection, ours: sa.ColumnElement[bool], rows: Mapping[int, int]
) -> list[str | None]:
    value, kind = STEPS.c.intermediate_value, STEPS.c.intermediate_value_type
    read = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    texts: dict[int, list[str]] = defaultdict(list)
    query = sa.select(STEPS.c.trial_id, STEPS.c.step, value, kind).join(TRIALS).where(ours)
    for trial_id, step, number, how in connection.execute(query.order_by(STEPS.c.step)).all():
        shown = read(number, how) if number is None else number  # a million of them are usual
        texts[trial_id].append(f"{step}={shown:.6g}")
    return [" ".join(texts[trial_id]) if trial_id in texts else None for trial_id in rows]
