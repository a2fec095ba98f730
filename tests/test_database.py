"""Databases of other versions, away, cut off; and passwords that nobody shall see."""

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from robustlr import database
from robustlr.database import VERSION, Database, shown, url_of
from robustlr.errors import StorageError, UserError
from robustlr.status import Progress
from robustlr.storage import Storage
from robustlr.tables import LEASES, SCHEMA, STUDIES
from robustlr.task import Outcome
from tests.helpers import ROOT, study_from

VERSION_1 = ROOT / "tests" / "version1.sql"
"""A study of six trials as version 1 stored it: two complete, one running, one failed, two waiting."""


@pytest.fixture
def old(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.executescript(VERSION_1.read_text(encoding="utf-8"))
    connection.close()
    return f"sqlite:///{tmp_path}/old.db"


def test_a_database_of_an_older_version_names_the_command_that_upgrades_it(old: str) -> None:
    for create in (False, True):
        with pytest.raises(UserError, match="robustlr storage upgrade"):
            Storage(old, create=create)


def test_an_upgraded_study_goes_on(old: str) -> None:
    command = [str(Path(sys.executable).with_name("robustlr")), "storage", "upgrade"]
    for _ in range(2):  # which is harmless
        done = subprocess.run([*command, "--storage", old], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with Storage(old) as storage:
        assert storage.progress("old") == Progress(3, 0, 2, 1, 1)  # the running one waits again
        assert storage.load_study("old").name == "old"
        assert storage.trials("old")["value"].tolist() == [0.25, 0.5]
        assert storage.requeue_failed("old") == 1
        for _ in range(4):
            claim = storage.claim("old", "a:1:cpu:0")
            assert claim is not None
            assert storage.complete(claim, Outcome(value=0.125), {"seconds": 1.0})
        assert storage.status("old").progress == Progress(0, 0, 6, 0, 1)
        stored = storage.as_optuna().get_all_studies()
        assert len(stored) == 2


def test_an_upgrade_that_was_cut_short_is_made_again(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sa, "update", cut)
        with pytest.raises(KeyboardInterrupt):
            Storage(old, upgrade=True)
    with pytest.raises(UserError, match="robustlr storage upgrade"):
        Storage(old)
    with Storage(old, upgrade=True) as storage:
        assert storage.progress("old").running == 0


def test_a_database_of_a_newer_version_is_left_alone(url: str, storage: Storage) -> None:
    with storage.transaction() as connection:
        connection.execute(sa.update(SCHEMA).values(version=VERSION + 1))
    for upgrade in (False, True):
        with pytest.raises(UserError, match="was written by a newer robustlr"):
            Storage(url, upgrade=upgrade)


def test_a_study_in_words_that_this_version_does_not_know_is_named(
    storage: Storage, old: str
) -> None:
    with storage.transaction() as connection:
        spec = '{"name": "new", "optimisers": {}}'
        row = {"name": "new", "hash": "x", "spec": spec, "created": sa.func.current_timestamp()}
        connection.execute(sa.insert(STUDIES).values(**row))
    with pytest.raises(UserError, match=r'study "new" .* was written by another version'):
        storage.load_study("new")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://me:secret@host/x", "postgresql://me:***@host/x"),
        ("postgresql+psycopg://me:se:cr:et@host:5432/x", "postgresql+psycopg://me:***@host:5432/x"),
        ("postgresql://host/x?user=me&password=secret&a=1", "postgresql://host/x?user=me&password=***&a=1"),
        ("of postgresql://me:secret@host/x it says no", "of postgresql://me:***@host/x it says no"),
        ("postgresql://me:p@ss w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://host/x?sslpassword=secret", "postgresql://host/x?sslpassword=***"),
        ("host=x password='a b' user=me", "host=x password=*** user=me"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("sqlite:///a.db", "sqlite:///a.db"),
    ],
)  # fmt: skip
def test_passwords_are_not_shown(text: str, clean: str) -> None:
    assert shown(text) == clean


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@127.0.0.1:1/x",
        "postgresql://me:secret@host:port/x",
        "postgresql://127.0.0.1:1/x?user=me&password=secret",
        "nonsense://me:secret@host/x",
    ],
)
@pytest.mark.parametrize(
    "command", [["study", "list"], ["worker", "x"], ["doctor"], ["status", "x"], ["storage", "serve"]]
)  # fmt: skip
def test_no_command_tells_a_password(url: str, command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("robustlr")), *command],
        env={**os.environ, "ROBUSTLR_STORAGE": url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert "secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_can_hold_the_url(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"sqlite:///{tmp_path}/x.db\n")
    with Storage(f"@{tmp_path}/url", create=True) as storage:
        assert storage.study_names() == []
    assert (tmp_path / "x.db").exists()
    with pytest.raises(UserError, match="cannot be read"):
        url_of(f"@{tmp_path}/none")


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_server_that_never_answers_is_given_up(
    silent_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.CONNECT_OPTIONS, "postgresql", {"connect_timeout": 2})
    with pytest.raises(StorageError, match="timeout expired"):
        Database(f"postgresql://me@127.0.0.1:{silent_server}/x")


on_postgresql = pytest.mark.parametrize(
    "url", [pytest.param("postgresql", marks=pytest.mark.xdist_group("postgresql"))], indirect=True
)


@on_postgresql
def test_a_query_that_is_never_answered_is_given_up(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ANSWER_SECONDS", 0.5)
    with pytest.raises(StorageError), storage.transaction() as connection:
        connection.execute(sa.text("SELECT pg_sleep(300)"))
    monkeypatch.setattr(database, "ANSWER_SECONDS", 30.0)
    assert storage.study_names() == []  # by a new connection


@on_postgresql
def test_a_slow_transaction_of_quick_statements_is_not_given_up(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ANSWER_SECONDS", 1.5)
    with storage.transaction() as connection:
        for _ in range(5):
            connection.execute(sa.text("SELECT pg_sleep(0.5)"))


@on_postgresql
def test_nothing_stays_connected(storage: Storage, postgresql_server: Any) -> None:
    name = storage.engine.url.database
    count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
    assert storage.study_names() == []
    assert postgresql_server.psql(count).split()[2] == "0"


@on_postgresql
def test_a_dead_machines_transaction_holds_up_no_other_trial(
    storage: Storage, url: str, tmp_path: Path
) -> None:
    storage.create_study(study_from(tmp_path, "[optimizers.nero]\nlr = [0.1, 0.2]\n"))
    for number in range(2):
        storage.claim("test", f"away:{number}:cpu:0")
    with storage.transaction() as connection:
        connection.execute(sa.update(LEASES).values(expires=0))
    with Storage(url) as dead, dead.transaction() as connection:
        held = sa.select(LEASES.c.trial_id).where(LEASES.c.worker == "away:0:cpu:0")
        connection.execute(held.with_for_update())
        assert storage.reclaim("test") == 1
        timeout = sa.text("SHOW idle_in_transaction_session_timeout")
        assert connection.scalar(timeout) == "30s"
    assert storage.reclaim("test") == 1
