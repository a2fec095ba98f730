"""The tidy table: one row a trial, the only thing that analyses see."""

import json
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from robustlr.tables import (
    ATTRIBUTES,
    CELL_ATTRIBUTES,
    PARAMS,
    TRIALS,
    VALUES,
    cells_of,
    external_value,
)
from robustlr.task import COLUMNS


def read_trials(connection: sa.Connection, name: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns, and a row for each of the study's completed trials.

    The columns are ``COLUMNS``, then one for every hyperparameter and one for every condition,
    empty where a trial's optimizer has no such hyperparameter; ``conditions`` names the latter,
    separated by spaces. ``trial`` is the trial's number in
    its cell, ``seconds`` its wall time. A few queries read everything: Optuna's own readers, study
    by study, take some forty times as long.
    """
    ours = TRIALS.c.study_id.in_(cells_of(name)) & (TRIALS.c.state == TrialState.COMPLETE)
    rows: dict[int, dict[str, Any]] = {}
    conditions: dict[str, None] = {}
    cells = _cells(connection, name)
    query = sa.select(TRIALS.c.trial_id, TRIALS.c.study_id, TRIALS.c.number, VALUES.c.value)
    joined = query.join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id).where(ours)
    for trial_id, cell_id, number, value in connection.execute(joined.order_by(TRIALS.c.trial_id)):
        cell = cells[cell_id]
        conditions |= dict.fromkeys(cell["conditions"])
        rows[trial_id] = {"trial": number, "value": value, "diverged": False}
        rows[trial_id] |= {column: cell[column] for column in COLUMNS if column in cell}
        rows[trial_id] |= {"conditions": " ".join(cell["conditions"])} | cell["conditions"]
    _add_attributes(connection, ours, rows)
    hyperparameters = _add_hyperparameters(connection, ours, rows)
    return [*COLUMNS, *hyperparameters, *conditions], list(rows.values())


def _cells(connection: sa.Connection, name: str) -> dict[int, dict[str, Any]]:
    query = sa.select(CELL_ATTRIBUTES.c.study_id, CELL_ATTRIBUTES.c.value_json)
    of_study = CELL_ATTRIBUTES.c.study_id.in_(cells_of(name)), CELL_ATTRIBUTES.c.key == "robustlr"
    return {cell: json.loads(text) for cell, text in connection.execute(query.where(*of_study))}


def _add_attributes(
    connection: sa.Connection, ours: sa.ColumnElement[bool], rows: dict[int, dict[str, Any]]
) -> None:
    query = sa.select(ATTRIBUTES.c.trial_id, ATTRIBUTES.c.key, ATTRIBUTES.c.value_json)
    for trial_id, key, text in connection.execute(query.join(TRIALS).where(ours)):
        if trial_id not in rows:  # it was completed after the first query
            continue
        value = json.loads(text)
        if key == "result":
            rows[trial_id] |= {column: value[column] for column in COLUMNS if column in value}
        elif key in COLUMNS:
            rows[trial_id][key] = value


def _add_hyperparameters(
    connection: sa.Connection, ours: sa.ColumnElement[bool], rows: dict[int, dict[str, Any]]
) -> list[str]:
    columns = (
        PARAMS.c.trial_id,
        PARAMS.c.param_name,
        PARAMS.c.param_value,
        PARAMS.c.distribution_json,
    )
    names: dict[str, None] = {}
    query = sa.select(*columns).join(TRIALS).where(ours).order_by(PARAMS.c.param_id)
    for trial_id, name, value, stored_as in connection.execute(query):
        if trial_id in rows:
            names[name] = None
            rows[trial_id][name] = external_value(stored_as, value)
    return list(names)
