"""The database behind a proxy process is the same database."""

import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import optuna
import pandas as pd
import pytest

from robustlr.devices import slots
from robustlr.errors import StorageError, UserError
from robustlr.launch import launch
from robustlr.proxy import METHODS, RemoteStorage
from robustlr.status import Progress
from robustlr.storage import Storage, open_storage
from robustlr.study import load_study
from robustlr.task import Outcome
from tests.helpers import ROOT, study_from
from tests.test_worker import Silent


@contextmanager
def _proxy(url: str) -> Iterator[str]:
    """A proxy process as a user starts it; give its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("robustlr")), "storage", "serve"]
    environment = {**os.environ, "ROBUSTLR_STORAGE": url, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith(f"grpc://127.0.0.1:{port} stands for ")
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture
def remote(url: str, storage: Storage) -> Iterator[RemoteStorage]:
    with _proxy(url) as address, open_storage(address) as remote:
        assert isinstance(remote, RemoteStorage)
        yield remote


def test_the_proxy_gives_what_the_database_holds(
    remote: RemoteStorage, storage: Storage, tmp_path: Path
) -> None:
    text = (
        "seeds = 2\n[conditions]\nwarmup = [true, 0.5]\n"
        "[optimizers.adamw]\nlr = [0.1, 0.2]\namsgrad = [true, false]\n"
    )
    study = study_from(tmp_path, text)
    assert remote.create_study(study) is True
    assert remote.create_study(study) is False
    assert remote.load_study("test") == study
    remote.check_unchanged(study)
    outcome = Outcome(value=0.1 + 0.2, initial=1 / 3, diverged=True, steps=2)
    for _ in range(5):
        claim = remote.claim("test", "a:1:cpu:0")
        assert claim is not None
        assert remote.report(claim, {1: 0.1 + 0.2, 2: math.nan, 3: math.inf})
        assert remote.complete(claim, outcome, {"seconds": 0.5})
    first, second, third = (remote.claim("test", f"a:{n}:cpu:0") for n in (2, 3, 4))
    assert first is not None
    assert second is not None
    assert third is not None
    remote.give_back(first)
    remote.fail(second, "boom")
    remote.renew([third.worker])
    assert remote.release(third.worker) == 1
    assert remote.claim("test", "a:2:cpu:0") == first
    assert remote.reclaim("test") == 0
    assert replace(remote.status("test"), rates={}) == replace(storage.status("test"), rates={})
    assert remote.failures("test") == {"boom": 1}
    assert remote.progress("test") == storage.progress("test")
    assert remote.progress("test").running == 1
    pd.testing.assert_frame_equal(remote.trials("test"), storage.trials("test"))
    assert remote.trials("test")["value"].tolist() == [0.1 + 0.2] * 5
    (found, _) = remote.cells("test")
    stored = optuna.load_study(study_name=found, storage=storage.as_optuna())
    curve = stored.trials[0].intermediate_values
    assert (curve[1], curve[3]) == (0.1 + 0.2, math.inf)
    assert math.isnan(curve[2])
    assert remote.requeue_failed("test") == 1
    remote.delete_study("test")
    assert remote.study_names() == []


def test_every_public_method_of_a_storage_works_through_the_proxy_or_needs_none() -> None:
    of_these = {"load_study", "check_unchanged", "trials"}  # they call the others
    own = {"as_optuna"}
    public = {name for name in vars(Storage) if not name.startswith("_")}
    assert public - of_these - own == set(METHODS)


def test_optunas_own_clients_are_answered(remote: RemoteStorage) -> None:
    remote.create_study(load_study("smoke"))
    names = optuna.get_all_study_names(storage=remote.as_optuna())
    assert set(names) == set(remote.cells("smoke"))


def test_workers_behind_a_proxy_run_every_trial_once(
    url: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "runs.log"
    monkeypatch.setenv("RUN_LOG", str(log))
    monkeypatch.chdir(ROOT)
    text = 'tasks = ["tests.helpers:counted"]\nseeds = 4\n[optimizers.nero]\nlr = [0.1, 0.2, 0.3]\n'
    with _proxy(url) as address, open_storage(address) as remote:
        remote.create_study(study_from(tmp_path, text))
        launch(remote, address, "test", slots("cpu", 3), Silent())
    assert storage.progress("test") == Progress(0, 0, 16, 0, 0)
    assert len(log.read_text().splitlines()) == 16


def test_errors_keep_their_sentences(remote: RemoteStorage) -> None:
    remote.create_study(load_study("smoke"))
    with pytest.raises(UserError, match='did you mean "smoke"') as caught:
        remote.load_study("smokes")
    assert not isinstance(caught.value, StorageError)


def test_a_proxy_that_is_away_is_a_database_that_is_away(nowhere: str) -> None:
    address = nowhere.replace("http", "grpc")
    with open_storage(address) as remote, pytest.raises(StorageError, match="does not work"):
        remote.study_names()


def test_a_server_that_is_no_proxy_of_ours_is_named(storage: Storage) -> None:
    from optuna.storages._grpc.server import make_server

    server = make_server(storage.as_optuna(), "127.0.0.1", 0)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            open_storage(f"grpc://127.0.0.1:{port}") as remote,
            pytest.raises(UserError, match="robustlr storage serve"),
        ):
            remote.study_names()
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("url", ["grpc://", "grpc://host", "grpc://host:port", "grpc:host:1"])
def test_wrong_proxy_urls_are_one_sentence(url: str) -> None:
    with pytest.raises(UserError, match="grpc://host:port"):
        open_storage(url)


def test_arguments_are_checked_before_they_reach_the_database(remote: RemoteStorage) -> None:
    channel = grpc.insecure_channel(remote.shown_url.removeprefix("grpc://"))
    for method in ("transaction", "__init__", "engine"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/robustlr.Storage/{method}")(b"{}")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/robustlr.Storage/progress")(b'{"name": 1}')
    assert "ValidationError" in caught.value.details()
    channel.close()
