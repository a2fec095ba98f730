"""How far a study is: its cells, what runs where, why trials failed, and how long it will take."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from robustlr.claims import clock
from robustlr.tables import ATTRIBUTES, CELLS, LEASES, TRIALS, cells_of, now

RATE_MINUTES = 10.0
"""The rate is that of the last so many minutes."""


@dataclass(frozen=True)
class Progress:
    """How many trials are in each state; the diverged ones are among the complete."""

    waiting: int
    running: int
    complete: int
    failed: int
    diverged: int

    @property
    def total(self) -> int:
        """All trials."""
        return self.waiting + self.running + self.complete + self.failed


@dataclass(frozen=True)
class Running:
    """A running trial: where it runs, since when (UTC), and whether its worker is overdue."""

    cell: str
    number: int
    host: str
    process: int
    device: str
    since: str
    stale: bool


@dataclass(frozen=True)
class Status:
    """A study's state. Rates are completed trials a minute."""

    name: str
    progress: Progress
    cells: Mapping[str, Progress]
    rates: Mapping[str, float]
    running: list[Running]
    failures: Mapping[str, int]

    @property
    def rate(self) -> float:
        """The study's rate."""
        return sum(self.rates.values())

    def minutes_left(self, progress: Progress, rate: float) -> float | None:
        """Return how long what waits and runs will take at a rate; None if that cannot be told."""
        left = progress.waiting + progress.running
        return left / rate if rate else None if left else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            **_row(self.name, self.progress, self.rate),
            "minutes_left": self.minutes_left(self.progress, self.rate),
            "cells": [
                _row(cell, progress, self.rates[cell]) for cell, progress in self.cells.items()
            ],
            "workers": [asdict(each) for each in self.running],
            "failures": dict(self.failures),
        }


def _row(name: str, progress: Progress, rate: float) -> dict[str, Any]:
    counts = {"trials": progress.total, **asdict(progress)}
    return {"name": name, **counts, "rate": round(rate, 2)}


def read_progress(connection: sa.Connection, name: str) -> Progress:
    """Return the counts of the study's trials."""
    return _summed(read_cells(connection, name).values())


def _summed(cells: Any) -> Progress:
    counts: Counter[str] = Counter()
    for progress in cells:
        counts.update(asdict(progress))
    return Progress(**{field: counts[field] for field in Progress.__dataclass_fields__})


def read_cells(connection: sa.Connection, name: str) -> dict[str, Progress]:
    """Return the counts of each of the study's cells."""
    ours = CELLS.c.study_id.in_(cells_of(name))
    cell, joined = CELLS.c.study_name, TRIALS.join(CELLS, CELLS.c.study_id == TRIALS.c.study_id)
    states = (
        sa.select(cell, TRIALS.c.state, sa.func.count())
        .select_from(joined)
        .where(ours)
        .group_by(CELLS.c.study_id, cell, TRIALS.c.state)
        .order_by(CELLS.c.study_id)
    )
    diverged = (
        sa.select(cell, sa.func.count())
        .select_from(joined.join(ATTRIBUTES, ATTRIBUTES.c.trial_id == TRIALS.c.trial_id))
        .where(ours, ATTRIBUTES.c.key == "diverged")
        .group_by(cell)
    )
    found: dict[str, dict[TrialState, int]] = {}
    for each, state, count in connection.execute(states):
        found.setdefault(each, {})[state] = count
    lost = {row[0]: row[1] for row in connection.execute(diverged)}
    return {
        each: Progress(
            waiting=counts.get(TrialState.WAITING, 0),
            running=counts.get(TrialState.RUNNING, 0),
            complete=counts.get(TrialState.COMPLETE, 0),
            failed=counts.get(TrialState.FAIL, 0),
            diverged=lost.get(each, 0),
        )
        for each, counts in found.items()
    }


def read_status(connection: sa.Connection, name: str) -> Status:
    """Return how far a study is."""
    cells = read_cells(connection, name)
    return Status(
        name=name,
        progress=_summed(cells.values()),
        cells=cells,
        rates=_rates(connection, name, cells),
        running=_running(connection, name),
        failures=read_failures(connection, name),
    )


def read_failures(connection: sa.Connection, name: str) -> dict[str, int]:
    """Return how often each reason for failed trials occurs, the most frequent first."""
    query = (
        sa.select(ATTRIBUTES.c.value_json, sa.func.count())
        .join(TRIALS, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id)
        .where(TRIALS.c.study_id.in_(cells_of(name)), ATTRIBUTES.c.key == "failure")
        .group_by(ATTRIBUTES.c.value_json)
        .order_by(sa.func.count().desc())
    )
    return {json.loads(reason): count for reason, count in connection.execute(query)}


def _rates(connection: sa.Connection, name: str, cells: Mapping[str, Progress]) -> dict[str, float]:
    """Return each cell's completed trials a minute, of late: since work began, if that is less."""
    ours = TRIALS.c.study_id.in_(cells_of(name))
    begin = now() - timedelta(minutes=RATE_MINUTES)
    query = (
        sa.select(
            CELLS.c.study_name,
            sa.func.count(),
            sa.func.min(TRIALS.c.datetime_start),
            sa.func.max(TRIALS.c.datetime_complete),
        )
        .select_from(TRIALS.join(CELLS, CELLS.c.study_id == TRIALS.c.study_id))
        .where(ours, TRIALS.c.state == TrialState.COMPLETE, TRIALS.c.datetime_complete > begin)
        .group_by(CELLS.c.study_name)
    )
    rows = connection.execute(query).all()
    first: datetime = min((row[2] for row in rows), default=begin)
    works = any(progress.running for progress in cells.values())
    last: datetime = now() if works else max((row[3] for row in rows), default=now())
    minutes = max((last - max(first, begin)).total_seconds() / 60, 1e-9)
    return dict.fromkeys(cells, 0.0) | {row[0]: row[1] / minutes for row in rows}


def _running(connection: sa.Connection, name: str) -> list[Running]:
    stale = (LEASES.c.expires < clock()).label("stale")
    query = (
        sa.select(
            CELLS.c.study_name, TRIALS.c.number, TRIALS.c.datetime_start, LEASES.c.worker, stale
        )
        .select_from(TRIALS.join(CELLS, CELLS.c.study_id == TRIALS.c.study_id))
        .join(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id.in_(cells_of(name)), TRIALS.c.state == TrialState.RUNNING)
        .order_by(TRIALS.c.datetime_start)
    )
    found = []
    for cell, number, since, worker, is_stale in connection.execute(query):
        host, process, device, _ = worker.split(":", 3)
        where = {"host": host, "process": int(process), "device": device}
        begun = since.isoformat(" ", timespec="seconds")
        found.append(Running(cell=cell, number=number, since=begun, stale=bool(is_stale), **where))
    return found
