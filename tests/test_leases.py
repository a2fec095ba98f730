"""Workers that die, hang, are asked to stop, or find the database away; and their launchers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch

from robustlr import signals as signals_module
from robustlr.errors import StorageError
from robustlr.signals import Lost, Signals, StopRequested
from robustlr.status import Progress
from robustlr.storage import Storage
from robustlr.tables import LEASES
from robustlr.task import CHECKPOINT
from robustlr.worker import Reporter
from tests.chaos.faults import Server
from tests.helpers import ROOT, study_from, wait_for

LONG = 'tasks = ["pydoc-lm"]\nseeds = 1\n[optimizers.adamw]\nlr = [0.001]\n'
"""Trials of half a minute, which can be taken up at every step."""


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Start ``robustlr worker test`` with the given options and environment, for the test."""
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "trials"))
    monkeypatch.setenv("RUN_LOG", str(tmp_path / "runs.log"))
    monkeypatch.chdir(ROOT)
    started = []

    def start(url: str, *options: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "robustlr", "worker", "test", "--devices", "cpu", *options]
        process = subprocess.Popen(
            command,
            env={**os.environ, "ROBUSTLR_STORAGE": url, **environment},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def _create(storage: Storage, folder: Path, task: str, seeds: int = 1, lrs: int = 1) -> None:
    rates = [0.1 * (1 + index) for index in range(lrs)]
    text = f'tasks = ["tests.helpers:{task}"]\nseeds = {seeds}\n[optimizers.nero]\nlr = {rates}\n'
    storage.create_study(study_from(folder, text))


def test_training_that_holds_the_interpreter_keeps_its_lease(
    storage: Storage, url: str, tmp_path: Path, launched: Callable[..., Any]
) -> None:
    _create(storage, tmp_path, "holding_the_interpreter")
    worker = launched(url, "--per-device", "1", ROBUSTLR_LEASE_SECONDS="1.5")
    wait_for(lambda: storage.progress("test").running)
    while storage.progress("test").complete < 2:
        assert storage.reclaim("test") == 0  # as every other launcher does
        time.sleep(0.1)
    assert worker.wait(60) == 0
    stored = storage.as_optuna().get_all_trials(storage.as_optuna().get_all_studies()[0]._study_id)
    assert all("lost" not in trial.user_attrs for trial in stored)


def test_an_idle_slot_takes_what_comes_back_from_elsewhere(
    storage: Storage, url: str, tmp_path: Path, launched: Callable[..., Any]
) -> None:
    _create(storage, tmp_path, "slow")
    assert storage.claim("test", "away:1:cpu:0") is not None
    launched(url, "--per-device", "2", ROBUSTLR_LEASE_SECONDS="2")
    wait_for(lambda: storage.progress("test").running == 2)
    time.sleep(3)  # the second worker has found nothing
    assert {each.host for each in storage.status("test").running} > {"away"}
    with storage.transaction() as connection:
        ours = LEASES.c.worker == "away:1:cpu:0"
        connection.execute(sa.update(LEASES).where(ours).values(expires=0))
    hosts = {"away"}
    while "away" in hosts:  # until it is taken back
        hosts = {each.host for each in storage.status("test").running}
    wait_for(lambda: storage.progress("test").running == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", ["worker", "launcher"])
def test_a_request_to_stop_saves_the_run_and_gives_it_back(
    number: signal.Signals,
    to: str,
    storage: Storage,
    url: str,
    tmp_path: Path,
    launched: Callable[..., Any],
) -> None:
    storage.create_study(study_from(tmp_path, LONG))
    launcher = launched(url, "--per-device", "1")
    wait_for(lambda: _steps(storage) >= 1)
    (running,) = storage.status("test").running
    target = running.process if to == "worker" else launcher.pid
    os.kill(target, number)
    wait_for(lambda: storage.progress("test").running == 0, 20)
    if to == "launcher":
        assert launcher.wait(20) == 130
        assert "back in the queue" in launcher.communicate()[1]
    checkpoint = tmp_path / "trials" / running.cell / str(running.number) / CHECKPOINT
    state = torch.load(checkpoint, weights_only=True)  # it was not yet due
    assert state["step"] >= 1
    attributes = storage.as_optuna().get_all_studies()[0]
    assert storage.progress("test").failed == 0
    assert attributes.study_name == "test/pydoc-lm/adamw"


def _steps(storage: Storage) -> int:
    with storage.transaction() as connection:
        return connection.scalar(sa.text("SELECT count(*) FROM trial_intermediate_values")) or 0


def test_workers_stop_when_their_launcher_is_killed(
    storage: Storage, url: str, tmp_path: Path, launched: Callable[..., Any]
) -> None:
    _create(storage, tmp_path, "slow", lrs=3)
    launcher = launched(url, "--per-device", "2")
    wait_for(lambda: storage.progress("test").running == 2)
    workers = [each.process for each in storage.status("test").running]
    launcher.kill()
    wait_for(lambda: not any(map(_alive, workers)), 20)
    assert storage.progress("test") == Progress(4, 0, 0, 0, 0)


def test_a_second_signal_ends_a_worker_at_once(
    storage: Storage, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    _create(storage, tmp_path, "silent")
    worker = subprocess.Popen(
        [sys.executable, "-m", "robustlr.worker", "test", "cpu"],
        env={**os.environ, "ROBUSTLR_STORAGE": url},
    )
    wait_for(lambda: storage.progress("test").running)
    time.sleep(0.5)  # in the middle of training
    worker.send_signal(signal.SIGINT)
    time.sleep(0.5)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 128 + signal.SIGTERM
    assert storage.progress("test").running == 1  # until its lease expires


def test_training_that_looks_at_nothing_is_interrupted(
    storage: Storage, url: str, tmp_path: Path, launched: Callable[..., Any]
) -> None:
    _create(storage, tmp_path, "silent")
    launcher = launched(url, "--per-device", "1")
    wait_for(lambda: storage.progress("test").running)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(40) == 130
    assert storage.progress("test") == Progress(2, 0, 0, 0, 0)


def test_a_trial_that_kills_its_workers_fails_and_the_study_goes_on(
    storage: Storage, url: str, tmp_path: Path, launched: Callable[..., Any]
) -> None:
    _create(storage, tmp_path, "murderous", seeds=2, lrs=1)
    launcher = launched(url, "--per-device", "1")
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 2
    assert storage.progress("test") == Progress(0, 0, 2, 2, 0)
    assert "its worker died 4 times" in errors
    assert "it died by SIGSEGV" in errors
    assert "about to die" in errors  # the end of its log
    assert len(list((tmp_path / "trials" / "test" / "logs").iterdir())) == 1


def test_a_trial_that_needs_the_whole_device_gets_it(
    storage: Storage, url: str, tmp_path: Path, launched: Callable[..., Any]
) -> None:
    _create(storage, tmp_path, "crowded", seeds=3, lrs=1)
    launcher = launched(url, "--per-device", "3")
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 2
    assert storage.progress("test") == Progress(0, 0, 4, 2, 0)  # those of seed 2
    assert "out of memory, also alone on cpu: OutOfMemoryError: CUDA out of memory" in errors
    logs = "".join(p.read_text() for p in (tmp_path / "trials" / "test" / "logs").iterdir())
    assert "ran out of memory; it is run again alone" in logs


def test_a_worker_that_lost_its_trial_stops_it(
    storage: Storage, url: str, tmp_path: Path, launched: Callable[..., Any]
) -> None:
    """As after a machine was suspended: it goes on, and finds its lease expired and taken."""
    _create(storage, tmp_path, "slow")
    launcher = launched(url, "--per-device", "1", ROBUSTLR_LEASE_SECONDS="2")
    wait_for(lambda: storage.progress("test").running)
    (running,) = storage.status("test").running
    for process in (launcher.pid, running.process):
        os.kill(process, signal.SIGSTOP)
    wait_for(lambda: storage.reclaim("test"))
    owner = storage.claim("test", "another:1:cpu:0")
    assert owner is not None
    for process in (running.process, launcher.pid):
        os.kill(process, signal.SIGCONT)
    log = next((tmp_path / "trials" / "test" / "logs").iterdir())
    wait_for(lambda: "belongs to another worker by now" in log.read_text())
    assert {each.host for each in storage.status("test").running} >= {"another"}


@pytest.mark.xdist_group("postgresql")
def test_training_goes_on_while_the_database_is_away(
    tmp_path: Path, launched: Callable[..., Any], own_postgresql: Server
) -> None:
    """Results are stored when the server is back, and nobody takes the other launcher's trial."""
    with Storage(own_postgresql.url, create=True) as storage:
        _create(storage, tmp_path, "slow")
        options = ("--per-device", "1")
        lease = {"ROBUSTLR_LEASE_SECONDS": "4"}
        launchers = [launched(own_postgresql.url, *options, **lease) for _ in range(2)]
        wait_for(lambda: storage.progress("test").running == 2)
        own_postgresql.crash()
        time.sleep(12)  # three leases
        assert [launcher.poll() for launcher in launchers] == [None, None]
        own_postgresql.start()
        assert [launcher.wait(120) for launcher in launchers] == [0, 0]
        assert storage.progress("test") == Progress(0, 0, 2, 0, 0)
        with storage.transaction() as connection:
            lost = sa.text("SELECT count(*) FROM trial_user_attributes WHERE key = 'lost'")
            assert connection.scalar(lost) == 0
            steps = sa.text("SELECT count(*) FROM trial_intermediate_values")
            assert connection.scalar(steps) == 200


@pytest.mark.xdist_group("postgresql")
def test_a_worker_holds_no_connection_while_it_trains(
    tmp_path: Path, launched: Callable[..., Any], own_postgresql: Server
) -> None:
    with Storage(own_postgresql.url, create=True) as storage:
        _create(storage, tmp_path, "slow", lrs=3)
        launched(own_postgresql.url, "--per-device", "4")
        wait_for(lambda: storage.progress("test").running == 4)
        time.sleep(2)
        query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = 'chaos'")
        counts = []
        for _ in range(20):
            with storage.transaction() as connection:
                counts.append(connection.scalar(query) or 0)
            time.sleep(0.1)
        assert min(counts) == 1  # this test's own
        assert max(counts) <= 1 + 4 + 1


def test_values_are_kept_until_the_database_takes_them(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustlr import worker

    monkeypatch.setattr(worker, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(worker, "PAUSE_SECONDS", (0.0, 0.0))
    _create(storage, tmp_path, "slow")
    claim = storage.claim("test", "a:1:cpu:0")
    assert claim is not None
    report = Reporter(storage, claim, Signals())
    report(1, 0.5)
    with monkeypatch.context() as patch:

        def away(*arguments: object) -> bool:
            raise StorageError("it is away")

        patch.setattr(storage, "report", away)
        report(2, 0.4)
        report(3, 0.3)
    report(4, 0.2)
    found = storage.as_optuna().get_trial(claim.trial_id)
    assert found.intermediate_values == {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2}
    storage.release(claim.worker)
    with pytest.raises(Lost):
        report(5, 0.1)


def test_a_request_waits_for_training_to_save_and_for_transactions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals_module, "GRACE_SECONDS", 0.3)
    signals, seen = Signals(), []

    def train() -> None:
        with signals.interruptible():
            with suppress(StorageError), signals.interruptible(False):
                os.kill(os.getpid(), signal.SIGTERM)
                seen.append("in a transaction")
            seen.append("time to save")
            with suppress(StorageError), signals.interruptible(False):
                time.sleep(0.6)
                seen.append("in another, which fails")
                raise StorageError("away")
            seen.append("not here")

    with pytest.raises(StopRequested):
        train()
    assert seen == ["in a transaction", "time to save", "in another, which fails"]
    Signals()


def test_status_tells_who_runs_what(
    storage: Storage, url: str, tmp_path: Path, launched: Callable[..., Any]
) -> None:
    _create(storage, tmp_path, "slow", lrs=2)
    launched(url, "--per-device", "1")
    wait_for(lambda: storage.progress("test").running)
    command = [sys.executable, "-m", "robustlr", "status", "test"]
    environment = {**os.environ, "ROBUSTLR_STORAGE": url}
    done = [
        subprocess.run([*command, *more], env=environment, capture_output=True, text=True)
        for more in ([], ["--json"])
    ]
    plain, found = done[0].stdout, json.loads(done[1].stdout)
    assert (found["running"], found["waiting"], found["trials"]) == (1, 2, 3)
    (cell,) = found["cells"]
    assert (cell["name"], cell["waiting"]) == ("test/tests.helpers:slow/nero", 2)
    (worker,) = found["workers"]
    assert _alive(worker["process"])
    assert worker["stale"] is False
    assert re.search(
        rf"running since .* on {worker['host']}, cpu, process {worker['process']}", plain
    )
