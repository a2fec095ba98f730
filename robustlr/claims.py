"""A trial's changes of state: waiting, running, complete or failed, each a transaction's part.

A running trial has a lease. Whoever ends the trial deletes it, so of two that try one finds nothing
to delete. A worker that has died renews no lease: once it has expired, the trial waits again.
"""

import json
import os
import socket
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.ext.compiler import compiles

from robustlr.errors import seconds
from robustlr.tables import (
    ATTRIBUTES,
    LEASES,
    STEPS,
    TRIALS,
    cells_of,
    insert_attributes,
    now,
    read_attributes,
)

LEASE_SECONDS = seconds("ROBUSTLR_LEASE_SECONDS", 60)
"""How long a trial stays with a worker of whom nothing is heard."""

RETRIES = 3
"""How often a trial is run again after its worker died."""


class clock(sa.FunctionElement[float]):  # noqa: N801 — SQL functions are written small
    """The database's own time in seconds: the clocks of workers may differ."""

    type = sa.Double()
    inherit_cache = True


@compiles(clock, "postgresql")
def _on_postgresql(element: clock, compiler: object, **options: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(clock, "sqlite")
def _on_sqlite(element: clock, compiler: object, **options: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def worker_name(device: str, process: int | None = None, start: str | None = None) -> str:
    """Return a worker's name as the owner of trials, ``host:process:device:start``.

    Without ``process`` and ``start`` it is this process's own.
    """
    process = process or os.getpid()
    return f"{socket.gethostname()}:{process}:{device}:{start or _own_start()}"


@cache
def _own_start() -> str:
    """Return when this process began to work, as whoever started it says."""
    return os.environ.get("ROBUSTLR_START") or start_time()


def start_time() -> str:
    """Return the time, to tell two processes of one number apart."""
    return datetime.now(UTC).replace(tzinfo=None).isoformat()


def take(
    connection: sa.Connection, name: str, worker: str, beside: int | None = None
) -> int | None:
    """Turn the study's next waiting trial into ``worker``'s running one; None if nothing waits.

    ``beside`` a trial that the worker runs, it is one of the same cell, of the same seed if there is
    one, so that their sentences are as long; and neither has lost a worker, which may have been its
    doing. Else what the worker holds already it does not know of, as the answer to its claim was lost:
    that is given back first.
    """
    waiting = sa.select(TRIALS.c.trial_id).where(TRIALS.c.state == TrialState.WAITING)
    if beside is None:
        release(connection, worker, None)
        waiting = waiting.where(TRIALS.c.study_id.in_(cells_of(name)))
    else:
        other = TRIALS.alias()
        cell = sa.select(other.c.study_id).where(other.c.trial_id == beside)
        waiting = waiting.where(TRIALS.c.study_id == cell.scalar_subquery())
        known = read_attributes(connection, beside)
        if "lost" in known:
            return None
        waiting = waiting.where(_attribute(TRIALS.c.trial_id, "lost").is_(None))
        seed = json.dumps(known["seed"])
        waiting = waiting.order_by(_attribute(TRIALS.c.trial_id, "seed") != seed)
    next_waiting = (
        waiting.order_by(TRIALS.c.trial_id)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL: look past trials being claimed
    )
    update = (
        sa.update(TRIALS)
        .where(TRIALS.c.trial_id == next_waiting.scalar_subquery())
        .where(TRIALS.c.state == TrialState.WAITING)
        .values(state=TrialState.RUNNING, datetime_start=now())
        .returning(TRIALS.c.trial_id)
    )
    trial_id: int | None = connection.scalar(update)
    if trial_id is not None:
        lease = {"trial_id": trial_id, "worker": worker}
        connection.execute(sa.insert(LEASES).values(**lease, expires=clock() + LEASE_SECONDS))
    return trial_id


def _attribute(trial_id: sa.ColumnElement[int], key: str) -> sa.ScalarSelect[Any]:
    query = sa.select(ATTRIBUTES.c.value_json)
    return query.where(ATTRIBUTES.c.trial_id == trial_id, ATTRIBUTES.c.key == key).scalar_subquery()


def renew(connection: sa.Connection, workers: Iterable[str]) -> None:
    """Have the workers keep the trials that they run, for another ``LEASE_SECONDS``."""
    ours = LEASES.c.worker.in_(list(workers))
    connection.execute(sa.update(LEASES).where(ours).values(expires=clock() + LEASE_SECONDS))


def owns(connection: sa.Connection, trial_id: int, worker: str) -> bool:
    """Return whether ``worker`` is the trial's owner, which it stays until the transaction ends."""
    lease = sa.update(LEASES).where(LEASES.c.trial_id == trial_id, LEASES.c.worker == worker)
    return connection.execute(lease.values(worker=worker)).rowcount == 1


def end(
    connection: sa.Connection,
    trial_id: int,
    worker: str,
    state: TrialState,
    *,
    if_expired: bool = False,
) -> bool:
    """Move a running trial that ``worker`` still owns to ``state``; return whether it was."""
    lease = sa.delete(LEASES).where(LEASES.c.trial_id == trial_id, LEASES.c.worker == worker)
    if if_expired:
        lease = lease.where(LEASES.c.expires < clock())
    if connection.execute(lease).rowcount != 1:
        return False
    ended = None if state == TrialState.WAITING else now()
    update = sa.update(TRIALS).where(TRIALS.c.trial_id == trial_id)
    connection.execute(update.values(state=state, datetime_complete=ended))
    if state == TrialState.WAITING:
        forget(connection, [trial_id])
    return True


def release(connection: sa.Connection, worker: str, reason: str | None) -> int:
    """Return to the queue what ``worker`` runs; count it. A ``reason`` says how the worker died."""
    query = sa.select(LEASES.c.trial_id).where(LEASES.c.worker == worker)
    ended = 0
    for trial_id in connection.scalars(query).all():
        if reason is None:
            ended += end(connection, trial_id, worker, TrialState.WAITING)
        else:
            ended += _lose(connection, trial_id, worker, reason)
    return ended


def reclaim(connection: sa.Connection, name: str) -> int:
    """Return to the queue the study's trials whose lease has expired; count them."""
    query = (
        sa.select(LEASES.c.trial_id, LEASES.c.worker)
        .join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
        .where(TRIALS.c.study_id.in_(cells_of(name)), LEASES.c.expires < clock())
        # PostgreSQL: one that a dead machine's session holds locked must not hold up the others.
        .with_for_update(of=LEASES, skip_locked=True)
    )
    reason = "nothing was heard of it until its lease expired"
    return sum(
        _lose(connection, trial_id, worker, reason, if_expired=True)
        for trial_id, worker in connection.execute(query).all()
    )


def _lose(
    connection: sa.Connection,
    trial_id: int,
    worker: str,
    reason: str,
    **only: bool,
) -> bool:
    """Take a trial from a dead worker: it waits again, or has failed after ``RETRIES`` retries."""
    losses: list[str] = read_attributes(connection, trial_id).get("lost", [])
    losses = [*losses, f"{worker}: {reason}"]
    failed = len(losses) > RETRIES
    state = TrialState.FAIL if failed else TrialState.WAITING
    if not end(connection, trial_id, worker, state, **only):
        return False
    _delete_attributes(connection, [trial_id], ["lost"])
    attributes: dict[str, Any] = {"lost": losses}
    if failed:
        attributes["failure"] = f"its worker died {len(losses)} times, last {losses[-1]}"
    insert_attributes(connection, {trial_id: attributes})
    return True


def requeue_failed(connection: sa.Connection, name: str) -> int:
    """Return the study's failed trials to the queue, their retries anew; count them."""
    failed = TRIALS.c.study_id.in_(cells_of(name)) & (TRIALS.c.state == TrialState.FAIL)
    update = (
        sa.update(TRIALS)
        .where(failed)
        .values(state=TrialState.WAITING, datetime_complete=None)
        .returning(TRIALS.c.trial_id)
    )
    trial_ids = connection.scalars(update).all()
    _delete_attributes(connection, trial_ids, ["failure", "lost"])
    forget(connection, trial_ids)
    return len(trial_ids)


def forget(connection: sa.Connection, trial_ids: Sequence[int]) -> None:
    """Delete what an unfinished run of the trials has reported: the next one reports it again."""
    connection.execute(sa.delete(STEPS).where(STEPS.c.trial_id.in_(trial_ids)))


def _delete_attributes(
    connection: sa.Connection, trial_ids: Sequence[int], keys: Sequence[str]
) -> None:
    these = ATTRIBUTES.c.trial_id.in_(trial_ids) & ATTRIBUTES.c.key.in_(keys)
    connection.execute(sa.delete(ATTRIBUTES).where(these))
