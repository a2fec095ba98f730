import json
import multiprocessing as mp
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import sqlalchemy as sa

from robustlr import claims, tidy
from robustlr.claims import worker_name
from robustlr.errors import UserError
from robustlr.status import Progress
from robustlr.storage import Claim, Storage
from robustlr.study import Study, load_study
from robustlr.tables import CELL_ATTRIBUTES, LEASES
from robustlr.task import COLUMNS, Outcome
from tests import real
from tests.helpers import study_from

STUDY = """
seeds = 2
[conditions]
warmup = [true, false]
[optimizers.adamw]
lr = { log = [0.001, 0.1], points = 3 }
weight_decay = [0.0, 0.1]
amsgrad = [true, false]
[optimizers.nero]
lr = [0.01, 0.1]
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_from(tmp_path, STUDY)


def test_creating_a_study_queues_every_trial_once(storage: Storage, study: Study) -> None:
    planned = sum(len(cell.trials()) for cell in study.cells())
    assert storage.create_study(study) is True
    assert storage.progress(study.name) == Progress(planned, 0, 0, 0, 0)
    assert storage.create_study(study) is False
    assert storage.progress(study.name).total == planned
    assert storage.load_study(study.name) == study


def test_a_different_study_of_that_name_is_refused(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    with pytest.raises(UserError, match="seeds: 2 → 3") as caught:
        storage.create_study(study.model_copy(update={"seeds": 3}))
    assert "robustlr study delete test" in str(caught.value)
    assert storage.load_study(study.name) == study


def _create(url: str, study: Study, results: "mp.Queue[bool]") -> None:
    with Storage(url, create=True) as storage:
        results.put(storage.create_study(study))


def test_several_processes_can_create_the_same_study_in_an_empty_database(
    url: str, study: Study
) -> None:
    context = mp.get_context("spawn")
    results: mp.Queue[bool] = context.Queue()
    processes = [context.Process(target=_create, args=(url, study, results)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sum(results.get() for _ in range(4)) == 1
    planned = sum(len(cell.trials()) for cell in study.cells())
    with Storage(url) as storage:
        assert storage.progress(study.name).total == planned


def test_a_claim_holds_the_planned_trial(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    claims: list[Claim] = []
    while (claim := storage.claim(study.name, f"me:{len(claims)}:cpu:0")) is not None:
        claims.append(claim)
    planned = [
        (cell.name, cell.config(trial.point or {}, trial.seed))
        for cell in study.cells()
        for trial in cell.trials()
    ]
    assert sorted(map(str, ((c.cell, c.config) for c in claims))) == sorted(map(str, planned))
    assert [c.config.seed for c in claims] == sorted(c.config.seed for c in claims)


def test_results_come_back_in_the_tidy_table(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    name = study.name
    while (claim := storage.claim(name, "me:1:cpu:0")) is not None:
        storage.report(claim, {1: 0.75, 2: float("nan")})
        outcome = Outcome(value=0.5, initial=1.0, test_value=0.25, steps=2)
        outcome = replace(outcome, diverged=claim.config.optimizer == "nero")
        assert storage.complete(claim, outcome, {"seconds": 1.5, "device": "cpu"})
    progress = storage.progress(name)
    table = storage.trials(name)
    assert progress.complete == progress.total == len(table)
    assert progress.diverged == int(table["diverged"].sum()) == 2 * 2 * 3
    assert list(table) == [*COLUMNS, "lr", "weight_decay", "amsgrad", "warmup"]
    row = table[(table["optimizer"] == "adamw") & (table["role"] == "design")].iloc[0]
    expected = {"study": "test", "task": "digits-mlp", "value": 0.5, "test_value": 0.25}
    expected |= {"initial": 1.0, "steps": 2, "seconds": 1.5, "worst": 0.9, "lr": 0.001}
    assert {key: row[key] for key in expected} == expected
    assert {type(value) for value in table["amsgrad"].dropna()} == {bool}
    assert table[table["optimizer"] == "nero"]["weight_decay"].isna().all()


def test_curves_are_read_where_they_are_asked_for(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    for curve in ({20: 1 / 3, 3: float("nan"), 10: float("inf"), 11: 4e-7}, {}):
        claim = storage.claim(study.name, "me:1:cpu:0")
        assert claim is not None
        storage.report(claim, curve)
        storage.complete(claim, Outcome(value=0.5), {"seconds": 1.5})
    with_curves = storage.trials(study.name, curves=True)
    assert "curve" not in storage.trials(study.name)
    texts = ["3=nan 10=inf 11=4e-07 20=0.333333", ""]
    assert with_curves["curve"].fillna("").tolist() == texts
    pd.testing.assert_frame_equal(with_curves.drop(columns="curve"), storage.trials(study.name))


def test_an_unfinished_study_has_an_empty_table(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    assert list(storage.trials(study.name)) == list(COLUMNS)


def test_optuna_reads_what_we_write(storage: Storage, study: Study) -> None:
    """The contract with Optuna's tables: its own reader sees the same trials."""
    storage.create_study(study)
    claim = storage.claim(study.name, "me:1:cpu:0")
    assert claim is not None
    storage.report(claim, {1: 0.75, 2: float("inf")})
    storage.complete(claim, Outcome(value=0.5, diverged=True), {"seconds": 1.5})
    found = optuna.load_study(study_name=claim.cell, storage=storage.as_optuna())
    assert found.direction == optuna.study.StudyDirection.MINIMIZE
    trials = found.trials
    cell = next(cell for cell in study.cells() if cell.name == claim.cell)
    assert [t.number for t in trials] == list(range(len(cell.trials())))
    assert [t.params for t in trials] == [planned.point for planned in cell.trials()]
    assert [t.user_attrs["seed"] for t in trials] == [p.seed for p in cell.trials()]
    assert found.best_value == 0.5
    done = next(t for t in trials if t.state == optuna.trial.TrialState.COMPLETE)
    assert done.intermediate_values == {1: 0.75, 2: float("inf")}
    assert done.user_attrs["diverged"] is True
    assert done.duration is not None
    for name in ("lr", "weight_decay", "amsgrad"):
        assert len({str(t.distributions[name]) for t in trials}) == 1  # importances need that


def test_the_schema_is_the_one_we_write() -> None:
    """A new Optuna that changes its tables must not be taken in without a look."""
    from optuna.storages import _rdb

    versions = Path(_rdb.__path__[0], "alembic", "versions")
    newest = sorted(path.name for path in versions.glob("v*.py"))[-1]
    assert newest == "v3.2.0.a_.py", newest


def test_a_failed_trial_is_queued_again_with_its_reason_forgotten(
    storage: Storage, study: Study
) -> None:
    storage.create_study(study)
    claim = storage.claim(study.name, "me:1:cpu:0")
    assert claim is not None
    storage.report(claim, {1: 0.5})
    storage.fail(claim, "boom")
    assert storage.failures(study.name) == {"boom": 1}
    assert storage.progress(study.name).failed == 1
    assert storage.requeue_failed(study.name) == 1
    assert storage.failures(study.name) == {}
    again = storage.claim(study.name, "me:1:cpu:0")
    assert again == claim
    storage.report(again, {1: 0.5})  # the first run's report is gone


def _expire(storage: Storage) -> None:
    with storage.transaction() as connection:
        connection.execute(sa.update(LEASES).values(expires=claims.clock() - 1.0))


def test_a_worker_that_lost_its_trial_cannot_write_a_result(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    lost = storage.claim(study.name, "away:1:cpu:then")
    assert lost is not None
    assert storage.reclaim(study.name) == 0
    _expire(storage)
    assert storage.reclaim(study.name) == 1
    assert storage.reclaim(study.name) == 0
    owner = storage.claim(study.name, worker_name("cpu"))
    assert owner is not None
    assert owner.trial_id == lost.trial_id
    assert storage.report(lost, {1: 0.5}) is False
    assert storage.report(owner, {1: 0.5}) is True
    assert storage.complete(lost, Outcome(value=0.1), {}) is False
    storage.fail(lost, "late")
    storage.give_back(lost)
    assert storage.release(lost.worker) == 0
    assert storage.progress(study.name).running == 1
    assert storage.complete(owner, Outcome(value=0.2), {}) is True
    assert storage.complete(owner, Outcome(value=0.3), {}) is True  # the answer was lost, say
    assert storage.complete(lost, Outcome(value=0.1), {}) is False
    assert storage.trials(study.name)["value"].tolist() == [0.2]


def test_a_renewed_lease_holds(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    for worker in ("kept:1:cpu:then", "away:1:cpu:then"):
        assert storage.claim(study.name, worker) is not None
    _expire(storage)
    stale = {each.host: each.stale for each in storage.status(study.name).running}
    assert stale == {"kept": True, "away": True}
    storage.renew(["kept:1:cpu:then", "another:1:cpu:then"])
    stale = {each.host: each.stale for each in storage.status(study.name).running}
    assert stale == {"kept": False, "away": True}
    assert storage.reclaim(study.name) == 1
    (left,) = storage.status(study.name).running
    assert (left.host, left.process, left.device) == ("kept", 1, "cpu")


def test_a_trial_fails_when_its_workers_have_died_too_often(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    total = storage.progress(study.name).total
    first = storage.claim(study.name, "a:1:cpu:0")
    assert first is not None
    storage.give_back(first)  # which counts for nothing
    for death in range(1, claims.RETRIES + 2):
        claim = storage.claim(study.name, f"a:{death}:cpu:0")
        assert claim is not None
        assert claim.trial_id == first.trial_id
        assert storage.progress(study.name).failed == 0
        assert storage.release(claim.worker, "it died by SIGSEGV; the end of its log:\nboom") == 1
    assert storage.progress(study.name) == Progress(total - 1, 0, 0, 1, 0)
    (reason,) = storage.failures(study.name)
    assert reason.startswith("its worker died 4 times, last a:4:cpu:0: it died by SIGSEGV")
    assert reason.endswith("boom")
    assert storage.requeue_failed(study.name) == 1
    again = storage.claim(study.name, "b:1:cpu:0")
    assert again is not None
    assert storage.release(again.worker, "it died by SIGKILL") == 1
    assert storage.progress(study.name).failed == 0  # it has its retries anew


def test_a_worker_whose_claim_got_no_answer_gives_back_what_it_does_not_know_of(
    storage: Storage, study: Study
) -> None:
    storage.create_study(study)
    unknown = storage.claim(study.name, "a:1:cpu:0")
    assert storage.claim(study.name, "a:1:cpu:0") == unknown
    assert storage.progress(study.name).running == 1


def test_tpe_chooses_on_the_claim_and_stays_in_the_space(storage: Storage, tmp_path: Path) -> None:
    study = study_from(
        tmp_path,
        'design = "tpe"\npoints = 15\nseeds = 2\n'
        "[optimizers.adamw]\nlr = { log = [0.002, 0.1] }\nweight_decay = [0.0, 0.1]\n",
    )
    storage.create_study(study)
    while (claim := storage.claim(study.name, "me:1:cpu:0")) is not None:
        lr = float(claim.config.hyperparameters["lr"])
        storage.complete(claim, Outcome(value=abs(lr - 0.02)), {"seconds": 0.0})
    table = storage.trials(study.name)
    assert table["role"].value_counts().to_dict() == {"adaptive": 30, "default": 2}
    chosen = table[table["role"] == "adaptive"]
    assert chosen["lr"].nunique() > 20
    assert chosen["lr"].between(0.002, 0.1).all()
    late = chosen.sort_values("trial")["value"].tail(8).median()
    assert late < chosen.sort_values("trial")["value"].head(8).median()  # it has learnt


def test_a_point_that_tpe_chose_before_a_crash_is_kept(storage: Storage, tmp_path: Path) -> None:
    study = study_from(
        tmp_path,
        'design = "tpe"\npoints = 1\nseeds = 1\n[optimizers.sgd]\nlr = { log = [0.1, 1.0] }\n',
    )
    storage.create_study(study)
    storage.claim(study.name, "another:1:cpu:0")
    chosen = storage.claim(study.name, "me:1:cpu:0")
    assert chosen is not None
    storage.give_back(chosen)
    assert storage.claim(study.name, "me:1:cpu:0") == chosen


def test_deleting_a_study_leaves_the_others(storage: Storage, study: Study) -> None:
    other = study.model_copy(update={"name": "test2"})
    for each in (study, other):
        storage.create_study(each)
        claim = storage.claim(each.name, "me:1:cpu:0")
        assert claim is not None
        storage.report(claim, {1: 0.5})
        storage.complete(claim, Outcome(value=0.5), {"seconds": 0.0})
    storage.delete_study("test")
    assert storage.study_names() == ["test2"]
    assert storage.progress("test").total == 0
    assert len(storage.trials("test2")) == 1
    assert storage.create_study(study) is True
    with storage.engine.connect() as connection:
        orphans = (
            "SELECT count(*) FROM trial_params WHERE trial_id NOT IN (SELECT trial_id FROM trials)"
        )
        assert connection.scalar(sa.text(orphans)) == 0


def test_unknown_studies_name_the_nearest(storage: Storage) -> None:
    storage.create_study(load_study("smoke"))
    for call in (storage.load_study, storage.trials, storage.delete_study):
        with pytest.raises(UserError, match='did you mean "smoke"'):
            call("smokes")


def test_studies_whose_names_differ_in_case_are_apart(storage: Storage, study: Study) -> None:
    for name in ("test", "Test", "t_st", "test2"):
        storage.create_study(study.model_copy(update={"name": name}))
    total = sum(len(cell.trials()) for cell in study.cells())
    assert storage.progress("test").total == total
    assert len(storage.cells("test")) == 4
    storage.delete_study("test")
    assert [storage.progress(name).total for name in ("Test", "t_st", "test2")] == [total] * 3


def test_trials_that_end_while_the_table_is_read_are_left_out(
    storage: Storage, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.create_study(study)
    claims = [storage.claim(study.name, f"me:{number}:cpu:0") for number in range(2)]
    assert claims[0] is not None
    storage.complete(claims[0], Outcome(value=0.5), {"seconds": 0.0})
    read = tidy._add_attributes

    def complete_another_first(*arguments: Any) -> None:
        assert claims[1] is not None
        storage.complete(claims[1], Outcome(value=0.25), {"seconds": 0.0})
        read(*arguments)

    monkeypatch.setattr(tidy, "_add_attributes", complete_another_first)
    assert storage.trials(study.name)["value"].tolist() == [0.5]


def test_the_last_report_of_a_step_counts(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    claim = storage.claim(study.name, "me:1:cpu:0")
    assert claim is not None
    storage.report(claim, {1: 0.5, 2: 0.4})
    storage.report(claim, {2: 0.3})
    found = optuna.load_study(study_name=claim.cell, storage=storage.as_optuna())
    number = next(t for t in found.trials if t.state == optuna.trial.TrialState.RUNNING)
    assert number.intermediate_values == {1: 0.5, 2: 0.3}


@pytest.mark.xdist_group("postgresql")
def test_a_connection_that_the_server_dropped_is_replaced(
    postgresql_server: Any, study: Study
) -> None:
    postgresql_server.psql("CREATE DATABASE dropped;")
    with Storage(postgresql_server.get_uri(database="dropped"), create=True) as storage:
        storage.create_study(study)
        claim = storage.claim(study.name, "me:1:cpu:0")
        assert claim is not None
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'dropped'"
        postgresql_server.psql(f"{kill} AND pid <> pg_backend_pid();")
        assert storage.complete(claim, Outcome(value=0.5), {"seconds": 0.0})
        assert len(storage.trials(study.name)) == 1


def test_a_study_stored_before_scales_had_more_fields_goes_on(
    storage: Storage, study: Study
) -> None:
    storage.create_study(study)
    kept = ("steps", "batch_size", "data", "options", "schedule", "warmup")
    table, key = CELL_ATTRIBUTES, CELL_ATTRIBUTES.c.study_user_attribute_id
    with storage.engine.begin() as connection:
        for row, text in connection.execute(sa.select(key, table.c.value_json)).all():
            description = json.loads(text)
            protocol = {name: description["protocol"][name] for name in kept}
            value = json.dumps({**description, "protocol": protocol})
            connection.execute(sa.update(table).where(key == row).values(value_json=value))
    assert "label_smoothing" in next(study.cells()).protocol()
    storage.check_unchanged(study)


def test_a_task_that_has_changed_since_creation_is_refused(
    storage: Storage, tmp_path: Path
) -> None:
    study = study_from(tmp_path, 'tasks = ["tests.real:one_step"]\n[optimizers.nero]\nlr = [0.1]\n')
    storage.create_study(study)
    storage.check_unchanged(study)
    scale = real.one_step.scales["small"]
    with pytest.MonkeyPatch.context() as patch:
        longer = replace(real.one_step, scales={"small": replace(scale, steps=7)})
        patch.setattr(real, "one_step", longer)
        for call in (storage.check_unchanged, storage.create_study):
            with pytest.raises(UserError, match=r"has changed since .*steps: 1 → 7"):
                call(study)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("postgresql://u@host:port/x", "is no database URL"),
        ("nonsense", "is no database URL"),
        ("nonsense://x", "driver|URL"),
        ("sqlite:////no/such/folder/x.db", "does not work"),
        ("postgresql://nobody@127.0.0.1:1/x", "does not work: .*refused"),
    ],
)
def test_unusable_databases_are_one_sentence(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Storage(url, create=True)


def test_a_missing_database_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="robustlr study create"):
        Storage(f"sqlite:///{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())


def test_sqlite_uses_a_write_ahead_log(tmp_path: Path) -> None:
    with (
        Storage(f"sqlite:///{tmp_path}/x.db", create=True) as storage,
        storage.engine.connect() as connection,
    ):
        assert connection.scalar(sa.text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(sa.text("PRAGMA busy_timeout")) == 60_000
