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
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast

import optuna
import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState

from robustlr import claims
from robustlr.errors import UserError, unknown
from robustlr.registry import load_optimizer
from robustlr.space import Choices, Point, Span, Value
from robustlr.study import USUAL_PROTOCOL, Study, difference
from robustlr.tables import (
    ATTRIBUTES,
    CELL_ATTRIBUTES,
    CELLS,
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
)
from robustlr.task import Config, Outcome

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


@dataclass(frozen=True)
class Progress:
    """How many trials of a study are in each state; the diverged ones are among the complete."""

    waiting: int
    running: int
    complete: int
    failed: int
    diverged: int

    @property
    def total(self) -> int:
        """All trials of the study."""
        return self.waiting + self.running + self.complete + self.failed


class Storage:
    """A database of studies.

    Args:
        url: an SQLAlchemy URL, ``sqlite:///file.db`` or ``postgresql://…``.
        create: make the tables if they are missing. Workers do not: creating tables at the same
            time from several processes fails.

    Raises:
        UserError: the database cannot be reached, or holds no tables and ``create`` is false.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        parsed = _parse_url(url)
        self.shown_url = parsed.render_as_string(hide_password=True)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        if is_sqlite and parsed.database in (None, "", ":memory:"):
            raise UserError(f'"{url}" names no file, which workers could share: sqlite:///file.db')
        if is_sqlite and not create and parsed.database and not os.path.exists(parsed.database):
            raise self._empty()
        # A writer on SQLite waits for the others; a dropped connection is replaced on next use.
        self._options: dict[str, Any] = {"connect_args": {"timeout": 60}} if is_sqlite else {}
        self.engine = sa.create_engine(parsed, pool_pre_ping=True, **self._options)
        sa.event.listen(self.engine, "handle_error", self._explain)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if not sa.inspect(self.engine).has_table(STUDIES.name):
            if not create:
                raise self._empty()
            self._create_tables()

    def _empty(self) -> UserError:
        return UserError(
            f"the database {self.shown_url} holds no studies; "
            "create one first: robustlr study create STUDY"
        )

    def _explain(self, context: Any) -> None:
        """Turn a database that is away, full or locked into one sentence."""
        if context.is_pre_ping:  # a dropped connection, about to be replaced
            return
        error = context.sqlalchemy_exception
        if isinstance(error, sa.exc.OperationalError) or type(error) is sa.exc.DatabaseError:
            reason = " ".join(str(context.original_exception).split())
            raise UserError(f"the database {self.shown_url} does not work: {reason}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.dispose()

    def as_optuna(self) -> optuna.storages.BaseStorage:
        """Return the same database as Optuna's storage, for its dashboard and samplers."""
        return optuna.storages.get_storage(self._optuna_storage(create=False))

    def _optuna_storage(self, *, create: bool) -> optuna.storages.RDBStorage:
        return optuna.storages.RDBStorage(
            self.engine.url.render_as_string(hide_password=False),
            {"poolclass": sa.NullPool, **self._options},  # nothing stays open that nobody closes
            skip_compatibility_check=not create,
            skip_table_creation=not create,
        )

    def _create_tables(self) -> None:
        attempts = 5
        for attempt in range(1, attempts + 1):
            try:
                self._optuna_storage(create=True)
                with self.engine.begin() as connection:
                    connection.execute(sa.schema.CreateTable(STUDIES, if_not_exists=True))
                break
            except (
                sa.exc.DatabaseError,
                optuna.exceptions.StorageInternalError,
                RuntimeError,
            ) as error:
                # Another process may be making the tables; the next look finds more of them.
                if attempt == attempts:
                    reason = " ".join(str(error.__cause__ or error).split())
                    raise UserError(
                        f"no tables can be made in {self.shown_url}: {reason}"
                    ) from error
                time.sleep(0.5)
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.execute(sa.text("PRAGMA journal_mode = WAL"))

    # Studies

    def create_study(self, study: Study) -> bool:
        """Store the study, its cells and all its trials; return False if it is there already.

        Raises:
            UserError: a different study has that name; the message shows the difference.
        """
        row = {"name": study.name, "hash": study.hash, "created": now()}
        with self.engine.connect() as connection:
            try:
                # The name is the primary key: of two creators at once, one waits here and fails.
                connection.execute(sa.insert(STUDIES), row | {"spec": study.model_dump_json()})
            except sa.exc.IntegrityError:
                connection.rollback()
                self._compare(study)
                return False
            insert_trials(connection, study)
            connection.commit()
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
        query = sa.select(CELL_ATTRIBUTES.c.value_json).where(
            CELL_ATTRIBUTES.c.study_id.in_(cells_of(study.name)),
            CELL_ATTRIBUTES.c.key == "robustlr",
        )
        with self.engine.connect() as connection:
            stored = [json.loads(text) for text in connection.scalars(query)]
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

    def load_study(self, name: str) -> Study:
        """Return the stored study of that name.

        Raises:
            UserError: there is none.
        """
        return Study.model_validate_json(self._require(name))

    def _require(self, name: str) -> str:
        with self.engine.connect() as connection:
            spec = connection.scalar(sa.select(STUDIES.c.spec).where(STUDIES.c.name == name))
        if spec is None:
            raise unknown(f"study in {self.shown_url}", name, self.study_names())
        return str(spec)

    def cells(self, name: str) -> list[str]:
        """Return the names of the study's cells."""
        query = sa.select(CELLS.c.study_name).where(CELLS.c.study_id.in_(cells_of(name)))
        with self.engine.connect() as connection:
            return list(connection.scalars(query.order_by(CELLS.c.study_id)))

    def study_names(self) -> list[str]:
        """Return the names of all studies, oldest first."""
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.select(STUDIES.c.name).order_by(STUDIES.c.created)))

    def delete_study(self, name: str) -> None:
        """Delete the study with all its trials.

        Raises:
            UserError: there is none of that name.
        """
        self._require(name)
        cells = cells_of(name)
        trials = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id.in_(cells))
        with self.engine.begin() as connection:
            for table in reversed(OPTUNA.sorted_tables):
                if "trial_id" in table.c and table is not TRIALS:
                    connection.execute(sa.delete(table).where(table.c.trial_id.in_(trials)))
                elif "study_id" in table.c and table is not CELLS:
                    connection.execute(sa.delete(table).where(table.c.study_id.in_(cells)))
            connection.execute(sa.delete(CELLS).where(CELLS.c.study_id.in_(cells)))
            connection.execute(sa.delete(STUDIES).where(STUDIES.c.name == name))

    def progress(self, name: str) -> Progress:
        """Return the counts of the study's trials."""
        ours = TRIALS.c.study_id.in_(cells_of(name))
        by_state = sa.select(TRIALS.c.state, sa.func.count()).where(ours).group_by(TRIALS.c.state)
        diverged = (
            sa.select(sa.func.count())
            .select_from(TRIALS.join(ATTRIBUTES, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id))
            .where(ours, ATTRIBUTES.c.key == "diverged")
        )
        with self.engine.connect() as connection:
            counts = {row.state: row[1] for row in connection.execute(by_state)}
            return Progress(
                waiting=counts.get(TrialState.WAITING, 0),
                running=counts.get(TrialState.RUNNING, 0),
                complete=counts.get(TrialState.COMPLETE, 0),
                failed=counts.get(TrialState.FAIL, 0),
                diverged=connection.scalar(diverged) or 0,
            )

    def trials(self, name: str) -> "pd.DataFrame":
        """Return the tidy table of the study's completed trials; see ``tidy.py`` for its columns.

        Raises:
            UserError: there is no study of that name.
        """
        from robustlr.tidy import read_trials

        self._require(name)
        with self.engine.connect() as connection:
            return read_trials(connection, name)

    # Trials

    def claim(self, name: str, worker: str) -> Claim | None:
        """Take the study's next waiting trial for ``worker``, or return None if nothing waits.

        One UPDATE turns the trial from waiting to running, so no two workers get the same one.
        """
        with self.engine.begin() as connection:
            trial_id = claims.take(connection, name, worker)
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
        study = optuna.load_study(study_name=cell, storage=self.as_optuna(), sampler=sampler)
        trial = optuna.Trial(study, trial_id)
        default = study.user_attrs["robustlr"]["default"]
        return {
            name: _suggest(trial, name, distribution(dimension, default[name], "tpe"))
            for name, dimension in space.items()
        }

    def report(self, claim: Claim, values: Mapping[int, float]) -> None:
        """Store a running trial's intermediate values by step; the last value of a step counts."""
        stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
        rows = []
        for step, value in values.items():
            number, kind = stored(value)
            row = {"trial_id": claim.trial_id, "step": step}
            rows.append(row | {"intermediate_value": number, "intermediate_value_type": kind})
        if not rows:
            return
        again = (STEPS.c.trial_id == claim.trial_id) & STEPS.c.step.in_(list(values))
        with self.engine.begin() as connection:
            if connection.scalar(sa.select(claims.owned(claim.trial_id, claim.worker))):
                connection.execute(sa.delete(STEPS).where(again))
                connection.execute(sa.insert(STEPS), rows)

    def complete(self, claim: Claim, outcome: Outcome, provenance: Mapping[str, Any]) -> bool:
        """Store the trial's result; return False if another worker owns the trial by now."""
        kind = models.TrialValueModel.TrialValueType.FINITE
        row = {"objective": 0, "value": outcome.value, "value_type": kind}
        known = {
            "initial": outcome.initial,
            "test_value": outcome.test_value,
            "steps": outcome.steps,
        }
        attributes: dict[str, Any] = {"result": {**known, **provenance}}
        if outcome.diverged:
            attributes["diverged"] = True
        with self.engine.begin() as connection:
            if not claims.end(connection, claim.trial_id, claim.worker, TrialState.COMPLETE):
                return False
            connection.execute(sa.insert(VALUES), row | {"trial_id": claim.trial_id})
            insert_attributes(connection, {claim.trial_id: attributes})
            return True

    def fail(self, claim: Claim, reason: str) -> None:
        """Mark the trial as failed, which is not a result: ``requeue_failed`` has it run again."""
        with self.engine.begin() as connection:
            if claims.end(connection, claim.trial_id, claim.worker, TrialState.FAIL):
                insert_attributes(connection, {claim.trial_id: {"failure": reason}})

    def give_back(self, claim: Claim) -> None:
        """Return a running trial to the queue."""
        with self.engine.begin() as connection:
            if claims.end(connection, claim.trial_id, claim.worker, TrialState.WAITING):
                claims.forget(connection, [claim.trial_id])

    def give_back_orphans(self, name: str) -> int:
        """Return to the queue the running trials whose process on this host is gone; count them."""
        with self.engine.begin() as connection:
            return claims.give_back_orphans(connection, name)

    def requeue_failed(self, name: str) -> int:
        """Return the study's failed trials to the queue; count them."""
        with self.engine.begin() as connection:
            return claims.requeue_failed(connection, name)

    def failures(self, name: str) -> dict[str, int]:
        """Return how often each reason for failed trials occurs, the most frequent first."""
        query = (
            sa.select(ATTRIBUTES.c.value_json, sa.func.count())
            .join(TRIALS, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id)
            .where(TRIALS.c.study_id.in_(cells_of(name)), ATTRIBUTES.c.key == "failure")
            .group_by(ATTRIBUTES.c.value_json)
            .order_by(sa.func.count().desc())
        )
        with self.engine.connect() as connection:
            return {json.loads(reason): count for reason, count in connection.execute(query)}


def _parse_url(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect().import_dbapi()
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UserError(
            f'"{url}" is no database URL; write sqlite:///file.db or postgresql://user@host/name'
        ) from error
    except ImportError as error:
        raise UserError(
            f'the driver for "{parsed.drivername}" is missing: {error}; '
            "for PostgreSQL: pip install 'robustlr[postgresql]'"
        ) from error
    return parsed


def _suggest(trial: optuna.Trial, name: str, among: optuna.distributions.BaseDistribution) -> Value:
    if isinstance(among, optuna.distributions.FloatDistribution):
        return trial.suggest_float(name, among.low, among.high, log=among.log)
    assert isinstance(among, optuna.distributions.CategoricalDistribution)
    return cast(Value, trial.suggest_categorical(name, among.choices))
