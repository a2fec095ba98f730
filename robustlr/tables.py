"""The database's tables, Optuna's and ours, and how cells and queued trials are written to them.

Optuna declares no table public, yet they are unchanged since 2023 and its version is pinned;
``tests/test_storage.py`` holds the contract.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from pydantic import TypeAdapter

from robustlr.registry import load_task
from robustlr.space import Choices, Design, Point, Space, Span, Value
from robustlr.study import Cell, Planned, Study

OPTUNA = models.BaseModel.metadata
CELLS, CELL_ATTRIBUTES = OPTUNA.tables["studies"], OPTUNA.tables["study_user_attributes"]
DIRECTIONS = OPTUNA.tables["study_directions"]
TRIALS, PARAMS = OPTUNA.tables["trials"], OPTUNA.tables["trial_params"]
VALUES, STEPS = OPTUNA.tables["trial_values"], OPTUNA.tables["trial_intermediate_values"]
ATTRIBUTES = OPTUNA.tables["trial_user_attributes"]

OURS = sa.MetaData()

SCHEMA = sa.Table(
    "robustlr_schema",
    OURS,
    sa.Column("row", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

STUDIES = sa.Table(
    "robustlr_studies",
    OURS,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("hash", sa.String(16), nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created", sa.DateTime, nullable=False),
)

LEASES = sa.Table(
    "robustlr_leases",
    OURS,
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("worker", sa.Text, nullable=False, index=True),
    sa.Column("expires", sa.Double, nullable=False),
)
"""Who runs a trial, and until when that holds unless it is renewed (seconds since 1970 by the
database's clock); a row a running trial."""

FILES = sa.Table(
    "robustlr_files",
    OURS,
    sa.Column("name", sa.String(500), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
"""Checkpoints, for machines that share no folder (``ROBUSTLR_CHECKPOINTS=database``)."""

SPACES: TypeAdapter[dict[str, Span | Choices]] = TypeAdapter(dict[str, Space])


def now() -> datetime:
    """Return the time as Optuna 5 stores it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def cells_of(name: str) -> sa.Select[Any]:
    """Return the query for the ids of a study's cells."""
    prefix = f"{name}/"  # not LIKE, which takes "test" for "Test" on SQLite
    return sa.select(CELLS.c.study_id).where(
        sa.func.substr(CELLS.c.study_name, 1, len(prefix)) == prefix
    )


def insert_trials(connection: sa.Connection, study: Study) -> None:
    """Insert the study's cells and their waiting trials, those of the first seed first."""
    planned: list[tuple[dict[str, Any], Planned, dict[str, BaseDistribution]]] = []
    for cell in study.cells():
        default = cell.default_point()
        among = {
            name: distribution(space, default[name], study.design)
            for name, space in cell.optimizer.space.items()
        }
        row = {"study_id": _insert_cell(connection, cell), "state": TrialState.WAITING}
        planned += [(row | {"number": n}, t, among) for n, t in enumerate(cell.trials())]
    planned.sort(key=lambda each: each[1].seed)
    trial_ids = connection.scalars(
        sa.insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True),
        [row for row, _, _ in planned],
    ).all()
    params: list[dict[str, Any]] = []
    attributes = {}
    for trial_id, (_, trial, among) in zip(trial_ids, planned, strict=True):
        attributes[trial_id] = {"role": trial.role, "seed": trial.seed}
        params += [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": among[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(among[name]),
            }
            for name, value in (trial.point or {}).items()
        ]
    connection.execute(sa.insert(PARAMS), params)
    insert_attributes(connection, attributes)


def repeat_trials(
    connection: sa.Connection, name: str, which: Mapping[str, dict[str, int]], seeds: list[int]
) -> int:
    """Queue trials that repeat others on other seeds, unless they are there already; count them.

    ``which`` has, for each cell's name and each role to be queued, the number of the trial whose
    setting is repeated.
    """
    # Of two that do this at once one waits here, on any database, and finds the other's trials.
    lock = sa.update(STUDIES).where(STUDIES.c.name == name)
    connection.execute(lock.values(name=name))
    there = _roles_and_seeds(connection, name)
    numbers = {number for roles in which.values() for number in roles.values()}
    query = sa.select(CELLS.c.study_name, TRIALS.c.number, TRIALS.c.trial_id, TRIALS.c.study_id)
    query = query.join(TRIALS, TRIALS.c.study_id == CELLS.c.study_id)
    query = query.where(CELLS.c.study_id.in_(cells_of(name)), TRIALS.c.number.in_(numbers))
    sources = {(cell, number): ids for cell, number, *ids in connection.execute(query)}
    new = []
    for seed, (cell, roles) in itertools.product(seeds, which.items()):
        for role, number in roles.items():
            source, cell_id = sources[cell, number]
            if (cell_id, role, seed) not in there:
                new.append((source, cell_id, role, seed))
    if new:
        _insert_repeats(connection, name, new)
    return len(new)


def _insert_repeats(
    connection: sa.Connection, name: str, new: Sequence[tuple[int, int, str, int]]
) -> None:
    """Insert waiting trials: for each the id of the trial that it repeats, its cell, role and seed."""
    last = sa.select(TRIALS.c.study_id, sa.func.max(TRIALS.c.number))
    last = last.where(TRIALS.c.study_id.in_(cells_of(name))).group_by(TRIALS.c.study_id)
    numbers = {cell: itertools.count(number + 1) for cell, number in connection.execute(last)}
    rows = [
        {"study_id": cell, "state": TrialState.WAITING, "number": next(numbers[cell])}
        for _, cell, _, _ in new
    ]
    insert = sa.insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
    trial_ids = connection.scalars(insert, rows).all()
    columns = (PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json)
    query = sa.select(PARAMS.c.trial_id, *columns).order_by(PARAMS.c.param_id)
    points: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(query.where(PARAMS.c.trial_id.in_({each[0] for each in new}))):
        points.setdefault(row.trial_id, []).append(dict(row._mapping))
    params = [
        param | {"trial_id": trial_id}
        for trial_id, (source, *_) in zip(trial_ids, new, strict=True)
        for param in points[source]
    ]
    connection.execute(sa.insert(PARAMS), params)
    attributes = {
        trial_id: {"role": role, "seed": seed}
        for trial_id, (*_, role, seed) in zip(trial_ids, new, strict=True)
    }
    insert_attributes(connection, attributes)


def _roles_and_seeds(connection: sa.Connection, name: str) -> set[tuple[int, str, int]]:
    """Return each of the study's trials' cell, role and seed."""
    role, seed = ATTRIBUTES.alias(), ATTRIBUTES.alias()
    query = (
        sa.select(TRIALS.c.study_id, role.c.value_json, seed.c.value_json)
        .join(role, (role.c.trial_id == TRIALS.c.trial_id) & (role.c.key == "role"))
        .join(seed, (seed.c.trial_id == TRIALS.c.trial_id) & (seed.c.key == "seed"))
        .where(TRIALS.c.study_id.in_(cells_of(name)))
    )
    return {(cell, json.loads(a), json.loads(b)) for cell, a, b in connection.execute(query)}


def _insert_cell(connection: sa.Connection, cell: Cell) -> int:
    task = load_task(cell.task).at(cell.study.scale)
    cell_id = connection.scalar(
        sa.insert(CELLS).values(study_name=cell.name).returning(CELLS.c.study_id)
    )
    direction = StudyDirection[task.direction.upper()]
    connection.execute(
        sa.insert(DIRECTIONS), {"study_id": cell_id, "objective": 0, "direction": direction}
    )
    description = {
        "study": cell.study.name,
        "task": cell.task,
        "optimizer": cell.optimizer.name,
        "target": cell.optimizer.target,
        "scale": cell.study.scale,
        "protocol": cell.protocol(),
        "conditions": dict(cell.conditions),
        "metric": task.metric,
        "direction": task.direction,
        "worst": task.worst,
        "default": cell.default_point(),
        "space": SPACES.dump_python(cell.optimizer.space),
    }
    row = {"study_id": cell_id, "key": "robustlr", "value_json": json.dumps(description)}
    connection.execute(sa.insert(CELL_ATTRIBUTES), row)
    assert cell_id is not None
    return int(cell_id)


def distribution(space: Span | Choices, default: Value, design: Design) -> BaseDistribution:
    """Return the Optuna distribution of a hyperparameter, widened to hold its default value.

    Under ``tpe`` an interval is as written, for that is what is sampled, and a list is sampled as
    categories, the out-of-the-box value among them.
    """
    if isinstance(space, Span) and design == "tpe":
        return FloatDistribution(space.low, space.high, log=space.is_log)
    values = [space.low, space.high] if isinstance(space, Span) else list(space.values)
    values = list(dict.fromkeys([*values, default]))
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values) or design == "tpe":
        return CategoricalDistribution(values)
    if all(isinstance(v, int) for v in values):
        return IntDistribution(int(min(numbers)), int(max(numbers)))
    low, high = min(numbers), max(numbers)
    return FloatDistribution(low, high, log=low > 0 and high >= 10 * low)


def insert_attributes(
    connection: sa.Connection, attributes: Mapping[int, Mapping[str, Any]]
) -> None:
    """Insert user attributes, ``{trial_id: {key: value}}``."""
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for trial_id, values in attributes.items()
        for key, value in values.items()
    ]
    connection.execute(sa.insert(ATTRIBUTES), rows)


def describe_cell(connection: sa.Connection, trial_id: int) -> tuple[str, int, dict[str, Any]]:
    """Return the name of a trial's cell, its number there, and what ``_insert_cell`` wrote of it."""
    query = (
        sa.select(CELLS.c.study_name, TRIALS.c.number, CELL_ATTRIBUTES.c.value_json)
        .join(TRIALS, TRIALS.c.study_id == CELLS.c.study_id)
        .join(CELL_ATTRIBUTES, CELL_ATTRIBUTES.c.study_id == CELLS.c.study_id)
        .where(TRIALS.c.trial_id == trial_id, CELL_ATTRIBUTES.c.key == "robustlr")
    )
    name, number, description = connection.execute(query).one()
    return name, number, json.loads(description)


def read_attributes(connection: sa.Connection, trial_id: int) -> dict[str, Any]:
    """Return a trial's attributes."""
    query = sa.select(ATTRIBUTES.c.key, ATTRIBUTES.c.value_json)
    rows = connection.execute(query.where(ATTRIBUTES.c.trial_id == trial_id))
    return {key: json.loads(value) for key, value in rows}


def read_point(connection: sa.Connection, trial_id: int) -> Point:
    """Return a trial's hyperparameters."""
    query = sa.select(PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json)
    rows = connection.execute(
        query.where(PARAMS.c.trial_id == trial_id).order_by(PARAMS.c.param_id)
    )
    return {name: external_value(stored_as, value) for name, value, stored_as in rows}


def external_value(distribution_json: str, value: float) -> Value:
    """Return a hyperparameter's value from what the table holds."""
    return cast(Value, _parsed_distribution(distribution_json).to_external_repr(value))


_parsed_distribution = cache(json_to_distribution)
