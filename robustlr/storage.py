"""The one door to the database: studies in, claims out, results in.

A study is one row of our own table; each of its cells is an Optuna study, with one queued trial for
every run that the study asks for. All of it is written in one transaction when the study is
created, so budgets are exact whoever crashes. Claims and results are single transactions that
check the trial's state, so a trial is run by one worker and counted once, on any database.

We write Optuna's tables directly: its own ``ask`` runs queued trials more than once when several
workers ask (on SQLite and on PostgreSQL), and many small transactions are several times slower.
The tables are in ``tables.py``, a trial's changes of state in ``claims.py``, reading in ``tidy.py``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import optuna
import pydantic
import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState

from robustlr import claims
from robustlr.database import Database, url_of
from robustlr.errors import StorageError, UserError, extra, unknown
from robustlr.registry import load_optimizer
from robustlr.space import Choices, Point, Span, Value
from robustlr.status import Progress, Status, read_failures, read_progress, read_status
from robustlr.study import USUAL_PROTOCOL, Study, difference
from robustlr.tables import (
    CELL_ATTRIBUTES,
    CELLS,
    FILES,
    LEASES,
    OPTUNA,
    SPACES,
    STEPS,
    STUDIES,
    TRIALS,
    VALUES,
    cells_of,
    describe_cell,
    distribution,
    insert_attributes,
    insert_trials,
    now,
    read_attributes,
    read_point,
    repeat_trials,
)
from robustlr.task import Config, Outcome
from robustlr.tidy import read_trials

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Claim:
    """A running trial: its id, its cell (Optuna study), its number there, its owner, what to run."""

    trial_id: int
    cell: str
    number: int
    worker: str
    config: Config


def open_storage(url: str, *, create: bool = False) -> "Storage":
    """Return the database at a URL, or what a proxy (``grpc://host:port``) has of one.

    Raises:
        UserError: there is none; see ``Database``.
    """
    if url_of(url).startswith("grpc:"):
        with extra("grpc"):
            from robustlr.proxy import RemoteStorage
        return RemoteStorage(url_of(url))
    return Storage(url, create=create)


class Storage(Database):
    """A database of studies."""

    # Studies

    def create_study(self, study: Study) -> bool:
        """Store the study, its cells and all its trials; return False if it is there already.

        Raises:
            UserError: a different study has that name; the message shows the difference.
        """
        row = {"name": study.name, "hash": study.hash, "created": now()}
        try:
            with self.transaction() as connection:
                # The name is the primary key: of two creators at once, one waits here and fails.
                connection.execute(sa.insert(STUDIES), row | {"spec": study.model_dump_json()})
                insert_trials(connection, study)
        except sa.exc.IntegrityError:
            self._compare(study)
            return False
        return True

    def _compare(self, study: Study) -> None:
        existing = self.load_study(study.name)
        if existing.hash != study.hash:
            changes = "\n  ".join(difference(existing, study))
            raise UserError(
                f'a different study named "{study.name}" exists (stored → this one):\n  {changes}\n'
                f"Give this one another name, or delete that one: robustlr study delete {study.name}"
            )
        self.check_unchanged(study)

    def check_unchanged(self, study: Study) -> None:
        """Check that the stored study's tasks and optimizers are here, and as they were.

        Raises:
            UserError: one cannot be loaded, or a task's scale has changed since the study was
                created; trials from before and after would not compare.
        """
        stored = self.descriptions(study.name)
        protocols = {str((d["task"], d["conditions"])): d["protocol"] for d in stored}
        for optimizer in study.optimizers.values():
            if ":" in optimizer.target:
                load_optimizer(optimizer.target)
        for cell in study.cells():
            before = protocols[str((cell.task, dict(cell.conditions)))]
            here = cell.protocol()
            before = {**USUAL_PROTOCOL, **before}  # it may be of a version that lacked a field
            changed = [
                f"{k}: {before.get(k)} → {here[k]}" for k in here if before.get(k) != here[k]
            ]
            if changed:
                raise UserError(
                    f'the task {cell.task} has changed since study "{study.name}" was created '
                    f"({', '.join(changed)}); create the study under another name"
                )

    def descriptions(self, name: str) -> list[dict[str, Any]]:
        """Return what is stored of the study's cells: task, protocol, conditions and more."""
        query = sa.select(CELL_ATTRIBUTES.c.value_json).where(
            CELL_ATTRIBUTES.c.study_id.in_(cells_of(name)), CELL_ATTRIBUTES.c.key == "robustlr"
        )
        with self.transaction() as connection:
            return [json.loads(text) for text in connection.scalars(query)]

    def load_study(self, name: str) -> Study:
        """Return the stored study of that name.

        Raises:
            UserError: there is none, or another version of robustlr wrote it in its own words.
        """
        spec = self.spec(name)
        try:
            return Study.model_validate_json(spec)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f'study "{name}" in {self.shown_url} was written by another version of robustlr, and '
                f"this one cannot read it ({where}: {first['msg']}); use that version, or delete the "
                f"study: robustlr study delete {name}"
            ) from error

    def spec(self, name: str) -> str:
        """Return the stored study of that name as its JSON text.

        Raises:
            UserError: there is none.
        """
        with self.transaction() as connection:
            spec = connection.scalar(sa.select(STUDIES.c.spec).where(STUDIES.c.name == name))
        if spec is None:
            raise unknown(f"study in {self.shown_url}", name, self.study_names())
        return str(spec)

    def cells(self, name: str) -> list[str]:
        """Return the names of the study's cells."""
        query = sa.select(CELLS.c.study_name).where(CELLS.c.study_id.in_(cells_of(name)))
        with self.transaction() as connection:
            return list(connection.scalars(query.order_by(CELLS.c.study_id)))

    def study_names(self) -> list[str]:
        """Return the names of all studies, oldest first."""
        with self.transaction() as connection:
            return list(connection.scalars(sa.select(STUDIES.c.name).order_by(STUDIES.c.created)))

    def delete_study(self, name: str) -> None:
        """Delete the study with all its trials.

        Raises:
            UserError: there is none of that name.
        """
        self.spec(name)
        cells = cells_of(name)
        trials = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id.in_(cells))
        with self.transaction() as connection:
            connection.execute(sa.delete(LEASES).where(LEASES.c.trial_id.in_(trials)))
            of_study = sa.func.substr(FILES.c.name, 1, len(name) + 1) == f"{name}/"
            connection.execute(sa.delete(FILES).where(of_study))
            for table in reversed(OPTUNA.sorted_tables):
                if "trial_id" in table.c and table is not TRIALS:
                    connection.execute(sa.delete(table).where(table.c.trial_id.in_(trials)))
                elif "study_id" in table.c and table is not CELLS:
                    connection.execute(sa.delete(table).where(table.c.study_id.in_(cells)))
            connection.execute(sa.delete(CELLS).where(CELLS.c.study_id.in_(cells)))
            connection.execute(sa.delete(STUDIES).where(STUDIES.c.name == name))

    def progress(self, name: str) -> Progress:
        """Return the counts of the study's trials."""
        with self.transaction() as connection:
            return read_progress(connection, name)

    def status(self, name: str) -> Status:
        """Return how far the study is: cells, what runs where, failures, rates.

        Raises:
            UserError: there is no study of that name.
        """
        self.spec(name)
        with self.transaction() as connection:
            return read_status(connection, name)

    def trials(self, name: str, curves: bool = False) -> "pd.DataFrame":
        """Return the tidy table of the study's completed trials; see ``tidy.py`` for its columns.

        It has the column ``curve`` only with ``curves``.

        Raises:
            UserError: there is no study of that name.
        """
        import pandas as pd

        return pd.DataFrame(self.columns(name, curves))

    def columns(self, name: str, curves: bool = False) -> dict[str, list[Any]]:
        """Return the tidy table by column, None where a trial has no such value.

        Raises:
            UserError: there is no study of that name.
        """
        self.spec(name)
        with self.transaction() as connection:
            return read_trials(connection, name, curves)

    # Trials

    def repeat(self, name: str, which: Mapping[str, dict[str, int]], seeds: list[int]) -> int:
        """Queue trials that repeat others of the study on other seeds; see ``repeat_trials``."""
        with self.transaction() as connection:
            return repeat_trials(connection, name, which, seeds)

    def claim(self, name: str, worker: str, beside: int | None = None) -> Claim | None:
        """Take the study's next waiting trial for ``worker``, or return None if nothing waits.

        One UPDATE turns the trial from waiting to running, so no two workers get the same one. Its
        lease must be renewed. ``beside`` the id of a trial that the worker runs, it is one of that
        trial's cell.
        """
        with self.transaction() as connection:
            trial_id = claims.take(connection, name, worker, beside)
            if trial_id is None:
                return None
            cell, number, description = describe_cell(connection, trial_id)
            attributes = read_attributes(connection, trial_id)
            point = read_point(connection, trial_id)
        if attributes["role"] == "adaptive":
            point = self._sample(cell, trial_id, SPACES.validate_python(description["space"]))
        config = Config(
            task=description["task"],
            optimizer=description["target"],
            hyperparameters=point,
            seed=attributes["seed"],
            scale=description["scale"],
            conditions=description["conditions"],
        )
        return Claim(trial_id, cell, number, worker, config)

    def _sample(self, cell: str, trial_id: int, space: Mapping[str, Span | Choices]) -> Point:
        """Let TPE choose the point of a running trial; a point chosen before a crash is kept."""
        # Running trials count as bad ones, so that workers at the same time look at different places.
        sampler = optuna.samplers.TPESampler(seed=trial_id, constant_liar=True)
        try:
            study = optuna.load_study(study_name=cell, storage=self.as_optuna(), sampler=sampler)
            trial = optuna.Trial(study, trial_id)
            default = study.user_attrs["robustlr"]["default"]
            return {
                name: _suggest(trial, name, distribution(dimension, default[name], "tpe"))
                for name, dimension in space.items()
            }
        except (optuna.exceptions.StorageInternalError, sa.exc.OperationalError) as error:
            raise StorageError(f"the database {self.shown_url} does not work: {error}") from error

    def report(self, claim: Claim, values: Mapping[int, float]) -> bool:
        """Store a running trial's intermediate values by step; the last value of a step counts.

        Returns:
            Whether the claim holds still: False if another worker owns the trial by now.
        """
        stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
        rows = []
        for step, value in values.items():
            number, kind = stored(value)
            row = {"trial_id": claim.trial_id, "step": step}
            rows.append(row | {"intermediate_value": number, "intermediate_value_type": kind})
        again = (STEPS.c.trial_id == claim.trial_id) & STEPS.c.step.in_(list(values))
        with self.transaction() as connection:
            if not claims.owns(connection, claim.trial_id, claim.worker):
                return False
            if rows:
                connection.execute(sa.delete(STEPS).where(again))
                connection.execute(sa.insert(STEPS), rows)
            return True

    def complete(self, claim: Claim, outcome: Outcome, provenance: Mapping[str, Any]) -> bool:
        """Store the trial's result; return False if another worker owns the trial by now."""
        kind = models.TrialValueModel.TrialValueType.FINITE
        row = {"objective": 0, "value": outcome.value, "value_type": kind}
        known = {
            "initial": outcome.initial,
            "test_value": outcome.test_value,
            "steps": outcome.steps,
            "worker": claim.worker,
        }
        attributes: dict[str, Any] = {"result": {**known, **provenance}}
        if outcome.diverged:
            attributes["diverged"] = True
        with self.transaction() as connection:
            if not claims.end(connection, claim.trial_id, claim.worker, TrialState.COMPLETE):
                # It may be this worker's own result, stored when the answer was lost.
                stored = read_attributes(connection, claim.trial_id).get("result", {})
                return bool(stored.get("worker") == claim.worker)
            connection.execute(sa.insert(VALUES), row | {"trial_id": claim.trial_id})
            insert_attributes(connection, {claim.trial_id: attributes})
            return True

    def fail(self, claim: Claim, reason: str) -> None:
        """Mark the trial as failed, which is not a result: ``requeue_failed`` has it run again."""
        with self.transaction() as connection:
            if claims.end(connection, claim.trial_id, claim.worker, TrialState.FAIL):
                insert_attributes(connection, {claim.trial_id: {"failure": reason}})

    def give_back(self, claim: Claim) -> None:
        """Return a running trial to the queue."""
        with self.transaction() as connection:
            claims.end(connection, claim.trial_id, claim.worker, TrialState.WAITING)

    def renew(self, workers: Sequence[str]) -> None:
        """Renew the leases of what the workers run."""
        with self.transaction() as connection:
            claims.renew(connection, workers)

    def release(self, worker: str, reason: str | None = None) -> int:
        """Return to the queue what ``worker`` runs; count it.

        A ``reason`` says how the worker died; a trial whose workers have died too often has failed.
        """
        with self.transaction() as connection:
            return claims.release(connection, worker, reason)

    def reclaim(self, name: str) -> int:
        """Return to the queue the study's trials whose worker is not heard of; count them."""
        with self.transaction() as connection:
            return claims.reclaim(connection, name)

    def requeue_failed(self, name: str) -> int:
        """Return the study's failed trials to the queue; count them."""
        with self.transaction() as connection:
            return claims.requeue_failed(connection, name)

    def failures(self, name: str) -> dict[str, int]:
        """Return how often each reason for failed trials occurs, the most frequent first."""
        with self.transaction() as connection:
            return read_failures(connection, name)

    # Files

    def read_file(self, name: str) -> bytes | None:
        """Return the content of a file in the database; None if there is none of that name."""
        with self.transaction() as connection:
            return connection.scalar(sa.select(FILES.c.content).where(FILES.c.name == name))

    def write_file(self, name: str, content: bytes) -> None:
        """Keep a file in the database, in place of one of that name."""
        with self.transaction() as connection:
            connection.execute(sa.delete(FILES).where(FILES.c.name == name))
            connection.execute(sa.insert(FILES), {"name": name, "content": content})

    def remove_file(self, name: str) -> None:
        """Delete a file of the database."""
        with self.transaction() as connection:
            connection.execute(sa.delete(FILES).where(FILES.c.name == name))


def _suggest(trial: optuna.Trial, name: str, among: optuna.distributions.BaseDistribution) -> Value:
    if isinstance(among, optuna.distributions.FloatDistribution):
        return trial.suggest_float(name, among.low, among.high, log=among.log)
    assert isinstance(among, optuna.distributions.CategoricalDistribution)
    return cast(Value, trial.suggest_categorical(name, among.choices))
