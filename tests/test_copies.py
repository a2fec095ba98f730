"""A machine that shares no folder with another takes over where that one was killed."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from optuna.artifacts.exceptions import ArtifactNotFound

from robustlr.copies import Copies, Store, store
from robustlr.errors import StorageError, UserError
from robustlr.signals import Lost, Signals, StopRequested
from robustlr.storage import Storage, open_storage
from robustlr.tables import FILES
from robustlr.task import CHECKPOINT, Outcome
from robustlr.worker import conclude, copies_of, work
from tests.helpers import ROOT, study_from, wait_for
from tests.test_proxy import _proxy


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3, with a bucket "ours"."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="ours")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["database", "s3", "proxy"])
def place(
    request: pytest.FixtureRequest, url: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Storage]:
    """A storage whose checkpoints are copied to some place that ``ROBUSTLR_CHECKPOINTS`` names."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    name = "s3://ours/below" if request.param == "s3" else "database"
    monkeypatch.setenv("ROBUSTLR_CHECKPOINTS", name)
    if request.param == "proxy":
        with _proxy(url) as address, open_storage(address) as remote:
            yield remote
    else:
        yield storage


def test_files_are_kept_replaced_and_deleted(place: Storage) -> None:
    kept = store(place)
    assert kept is not None
    with pytest.raises(ArtifactNotFound):
        kept.open_reader("a/b")
    for content in (b"", bytes(range(256)) * 40_000):  # over gRPC's limit of four megabytes
        kept.write("a/b", io.BytesIO(content))
        assert kept.open_reader("a/b").read() == content
    kept.remove("a/b")
    with pytest.raises(ArtifactNotFound):
        kept.open_reader("a/b")


def test_another_machine_goes_on_from_the_copy(
    place: Storage, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = 'tasks = ["digits-cnn"]\nseeds = 1\n[optimizers.nero]\nlr = [0.1]\n'
    place.create_study(study_from(tmp_path, text))
    url = place.shown_url
    first = {"ROBUSTLR_FOLDER": str(tmp_path / "first"), "ROBUSTLR_SAVE_SECONDS": "0.3"}
    code = "from robustlr import copies, worker; copies.LOOK_SECONDS = 0.1; worker.main()"
    worker = subprocess.Popen(
        [sys.executable, "-c", code, "test", "cpu"],
        env={**os.environ, "ROBUSTLR_STORAGE": url, **first},
    )
    kept = store(place)
    assert kept is not None
    try:
        wait_for(lambda: _step(kept) >= 1)
    finally:
        worker.kill()
        worker.wait()
    (lost,) = place.status("test").running
    reached = _step(kept)
    with storage.transaction() as connection:
        owner = connection.scalar(sa.text("SELECT worker FROM robustlr_leases"))
    assert place.release(str(owner), "it died by SIGKILL") == 1
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "second"))
    steps: list[int] = []
    from robustlr.checkpoint import Run

    resume = Run.resume

    def resumed(run: Any) -> int:
        steps.append(resume(run))
        return steps[-1]

    monkeypatch.setattr(Run, "resume", resumed)
    work(place, "test", "cpu", Signals())
    assert steps[0] == reached >= 1
    assert lost.number == 0
    assert place.progress("test").complete == 2
    with pytest.raises(ArtifactNotFound):
        kept.open_reader(f"{lost.cell}/0/{CHECKPOINT}")
    assert not list((tmp_path / "second").rglob(CHECKPOINT))


def _step(kept: Store) -> int:
    try:
        with kept.open_reader(f"test/digits-cnn/nero/0/{CHECKPOINT}") as file:
            state = torch.load(io.BytesIO(file.read()), weights_only=True)
    except ArtifactNotFound:
        return 0
    return int(state["step"])


def test_a_place_that_does_not_work_costs_only_the_copy(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert os.environ["AWS_ENDPOINT_URL_S3"] == s3
    monkeypatch.setenv("ROBUSTLR_CHECKPOINTS", "s3://nobodys")
    (tmp_path / CHECKPOINT).write_bytes(b"state")
    storage = Storage(f"sqlite:///{tmp_path}/study.db", create=True)
    with suppress(StopRequested), Copies(store(storage), tmp_path, "test/0"):
        raise StopRequested
    said = capfd.readouterr().err
    assert "cannot be copied" in said
    assert "NoSuchBucket" in said or "does not exist" in said


def _checkpoint(step: int) -> bytes:
    buffer = io.BytesIO()
    torch.save({"step": step}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(("here", "there"), [(7, 3), (3, 7), (7, None), (None, 7)])
def test_whichever_is_further_is_taken_up(
    here: int | None,
    there: int | None,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROBUSTLR_CHECKPOINTS", "database")
    folder = tmp_path / "trial"
    folder.mkdir()
    if here is not None:
        (folder / CHECKPOINT).write_bytes(_checkpoint(here))
    if there is not None:
        storage.write_file(f"test/0/{CHECKPOINT}", _checkpoint(there))
    with suppress(StopRequested), Copies(store(storage), folder, "test/0"):
        raise StopRequested
    stored = storage.read_file(f"test/0/{CHECKPOINT}")
    assert stored == (folder / CHECKPOINT).read_bytes() == _checkpoint(7)
    assert [file.name for file in folder.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize("ends", [Lost, None])
def test_a_run_that_is_over_or_anothers_leaves_no_copy(
    ends: type[BaseException] | None,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROBUSTLR_CHECKPOINTS", "database")
    with suppress(Lost), Copies(store(storage), tmp_path, "test/0"):
        (tmp_path / CHECKPOINT).write_bytes(_checkpoint(7))
        if ends is not None:
            raise ends
    assert storage.read_file(f"test/0/{CHECKPOINT}") is None


def test_a_copy_that_cannot_be_read_is_not_replaced(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_CHECKPOINTS", "database")
    storage.write_file(f"test/0/{CHECKPOINT}", _checkpoint(7))
    with monkeypatch.context() as patch:

        def away(name: str) -> bytes:
            raise StorageError("away")

        patch.setattr(storage, "read_file", away)
        with suppress(StopRequested), Copies(store(storage), tmp_path, "test/0"):
            (tmp_path / CHECKPOINT).write_bytes(_checkpoint(1))
            raise StopRequested
    assert storage.read_file(f"test/0/{CHECKPOINT}") == _checkpoint(7)


@pytest.mark.parametrize("place", ["nowhere", "s3://", "/a/folder"])
def test_unknown_places_are_one_sentence(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_CHECKPOINTS", place)
    storage = Storage(f"sqlite:///{tmp_path}/study.db", create=True)
    with pytest.raises(UserError, match="ROBUSTLR_CHECKPOINTS is"):
        store(storage)


def test_a_result_that_comes_too_late_leaves_the_copy_of_the_trials_new_owner(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_CHECKPOINTS", "database")
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "trials"))
    storage.create_study(study_from(tmp_path, "seeds = 1\n[optimizers.nero]\nlr = [0.1]\n"))
    late = storage.claim("test", "away:1:cpu:0")
    assert late is not None
    name = f"{late.cell}/{late.number}/{CHECKPOINT}"
    storage.write_file(name, _checkpoint(3))
    with copies_of(storage, late) as copies:
        storage.release(late.worker)
        assert storage.claim("test", "here:1:cpu:0") is not None
    conclude(storage, late, "cpu", Signals(), Outcome(value=0.5), 1.0, copies)
    assert storage.read_file(name) == _checkpoint(3)
    assert storage.progress("test").complete == 0


def test_the_files_of_a_deleted_study_are_deleted(storage: Storage, tmp_path: Path) -> None:
    storage.create_study(study_from(tmp_path, "[optimizers.nero]\nlr = [0.1]\n"))
    for name in ("test/a/0/x", "test2/a/0/x"):
        storage.write_file(name, b"state")
    storage.delete_study("test")
    with storage.transaction() as connection:
        assert connection.scalars(sa.select(FILES.c.name)).all() == ["test2/a/0/x"]
