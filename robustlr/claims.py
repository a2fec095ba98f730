"""A trial's changes of state: waiting, running, complete or failed, each a transaction's part.

Every change names the state, and where there is one the owner, that it changes from: of two
processes that try the same change, one finds nothing to change.
"""

import json
import os
import socket
from collections.abc import Iterable

import sqlalchemy as sa
from optuna.trial import TrialState

from robustlr.tables import ATTRIBUTES, STEPS, TRIALS, cells_of, insert_attributes, now


def worker_name(device: str) -> str:
    """Return this process's name as the owner of trials, ``host:process:device``."""
    return f"{socket.gethostname()}:{os.getpid()}:{device}"


def take(connection: sa.Connection, name: str, worker: str) -> int | None:
    """Turn the study's next waiting trial into ``worker``'s running one; None if nothing waits."""
    next_waiting = (
        sa.select(TRIALS.c.trial_id)
        .where(TRIALS.c.study_id.in_(cells_of(name)), TRIALS.c.state == TrialState.WAITING)
        .order_by(TRIALS.c.trial_id)
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
        insert_attributes(connection, {trial_id: {"worker": worker}})
    return trial_id


def owned(trial_id: int, worker: str) -> sa.ColumnElement[bool]:
    """Return the condition that ``worker`` is the trial's owner."""
    return (
        sa.exists()
        .where(ATTRIBUTES.c.trial_id == trial_id, ATTRIBUTES.c.key == "worker")
        .where(ATTRIBUTES.c.value_json == json.dumps(worker))
    )


def end(connection: sa.Connection, trial_id: int, worker: str, state: TrialState) -> bool:
    """Move a running trial that ``worker`` still owns to ``state``; return whether it was."""
    ended = None if state == TrialState.WAITING else now()
    update = (
        sa.update(TRIALS)
        .where(TRIALS.c.trial_id == trial_id, TRIALS.c.state == TrialState.RUNNING)
        .where(owned(trial_id, worker))
        .values(state=state, datetime_complete=ended)
    )
    return connection.execute(update).rowcount == 1


def give_back_orphans(connection: sa.Connection, name: str) -> int:
    """Return to the queue the running trials whose process on this host is gone; count them."""
    running = (
        sa.select(TRIALS.c.trial_id, ATTRIBUTES.c.value_json)
        .join(ATTRIBUTES, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id)
        .where(TRIALS.c.study_id.in_(cells_of(name)), TRIALS.c.state == TrialState.RUNNING)
        .where(ATTRIBUTES.c.key == "worker")
    )
    owners = {trial: json.loads(text) for trial, text in connection.execute(running)}
    orphans = [
        trial
        for trial, worker in owners.items()
        if _is_gone(worker) and end(connection, trial, worker, TrialState.WAITING)
    ]
    forget(connection, orphans)
    return len(orphans)


def requeue_failed(connection: sa.Connection, name: str) -> int:
    """Return the study's failed trials to the queue; count them."""
    failed = TRIALS.c.study_id.in_(cells_of(name)) & (TRIALS.c.state == TrialState.FAIL)
    update = (
        sa.update(TRIALS)
        .where(failed)
        .values(state=TrialState.WAITING, datetime_complete=None)
        .returning(TRIALS.c.trial_id)
    )
    trial_ids = connection.scalars(update).all()
    forget(connection, trial_ids)
    return len(trial_ids)


def forget(connection: sa.Connection, trial_ids: Iterable[int]) -> None:
    """Delete what an unfinished run of the trials has left, so that the next one starts anew."""
    ids = list(trial_ids)
    run = sa.and_(ATTRIBUTES.c.trial_id.in_(ids), ATTRIBUTES.c.key.in_(["worker", "failure"]))
    connection.execute(sa.delete(ATTRIBUTES).where(run))
    connection.execute(sa.delete(STEPS).where(STEPS.c.trial_id.in_(ids)))


def _is_gone(worker: str) -> bool:
    host, process, _ = worker.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
