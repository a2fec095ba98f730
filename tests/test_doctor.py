"""The doctor meets real faults: databases, folders, packages and servers that are broken or missing."""

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import torch

from robustlr import doctor, doctor_data, doctor_database
from robustlr.doctor import Check
from robustlr.doctor_database import database_checks, file_system, network_check
from robustlr.optim import kernels
from robustlr.storage import Storage
from robustlr.tasks.data import corpora, published
from tests.helpers import ROOT, study_from

on_postgresql = pytest.mark.parametrize("url", ["postgresql"], indirect=True)
grouped = pytest.mark.xdist_group("postgresql")
MEGABYTE = 2**20


def _by_name(found: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in found}


def _states(found: Iterable[Check]) -> dict[str, str]:
    return {check.name: check.state for check in found}


def _command(
    *arguments: str, cwd: Path, code: int, before: tuple[str, ...] = (), **environment: str
) -> str:
    """Return what ``robustlr doctor`` prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, *before, "-m", "robustlr", "doctor", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def _mounted(place: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, where we may mount one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "robustlr", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


# The command


def test_the_command_prints_a_line_a_check_and_makes_nothing(tmp_path: Path) -> None:
    states = {}
    for line in _command(cwd=tmp_path, code=0).splitlines():
        state, name = line[:7].strip(), line[9:27].strip()
        assert re.match(rf"{state:7}  {name:18}  \S", line)
        assert (" → " in line) == (state != "ok")
        states[name] = state
    assert list(tmp_path.iterdir()) == []
    assert states["database"] == "note"
    ready = ("python", "packages", "torch", "torchvision", "database folder", "extra rl", "roms")
    assert [states[name] for name in ready] == ["ok"] * len(ready)
    assert states.keys() >= {"processors", "gpus", "kernels", "trials folder", "data cifar10"}


def test_a_problem_is_exit_status_1_and_no_password_is_shown(tmp_path: Path, nowhere: str) -> None:
    server = nowhere.removeprefix("http://")
    for url in (
        f"postgresql://{server}/x?user=me&password=hunter2",
        f"postgresql:/me:hunter2@{server}/x",
        f"postgresql://me:hun@hunter2@{server}x/y",
        f"postgresql://me:hunter2@{server}/x",
    ):
        found = list(doctor.checks(url))
        assert [check.name for check in found if check.state == "problem"] == ["database"]
        assert "hunter2" not in str(found)
    output = _command("--json", cwd=tmp_path, code=1, ROBUSTLR_STORAGE=url)
    assert "hunter2" not in output
    for check in json.loads(output):
        assert check.keys() == {"name", "state", "found", "advice"}
        assert bool(check["advice"]) == (check["state"] != "ok")
        assert (check["state"] == "problem") == (check["name"] == "database")


def test_a_torch_that_cannot_be_imported_hides_nothing_else(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "torch.py").write_text("raise OSError('libcudart.so: cannot open it')\n")
    output = _command("--json", cwd=tmp_path, code=1, PYTHONPATH=f"{shim}:{ROOT}")
    found = {check["name"]: check for check in json.loads(output)}
    assert found["torch"]["state"] == found["torchvision"]["state"] == "problem"
    assert "libcudart.so" in found["torch"]["found"]
    assert "--force-reinstall torch" in found["torch"]["advice"]
    assert found["trials folder"]["state"] == found["roms"]["state"] == "ok"
    assert found.keys() >= {"gpus", "kernels", "database", "data"}


# Packages


def test_packages_that_are_missing_or_of_another_version_are_named(tmp_path: Path) -> None:
    """Without site-packages, but with links to all that is in it, except to some packages."""
    site, links = Path(psycopg.__file__).parent.parent, tmp_path / "site"
    links.mkdir()
    away = ("psycopg", "optuna-", "num2words-", "ale_py")
    for entry in site.iterdir():
        if not entry.name.startswith(away) and entry.suffix != ".pth":
            (links / entry.name).symlink_to(entry)
    other = links / "optuna-4.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 4.9\n")
    output = _command(
        *("--json", "--storage", "postgresql://u@127.0.0.1:1/x"),
        cwd=tmp_path,
        code=1,
        before=("-S",),
        PYTHONPATH=f"{links}:{ROOT}",
    )
    found = {check["name"]: check for check in json.loads(output)}
    assert found["packages"]["state"] == "problem"
    assert found["packages"]["found"] == "num2words is not installed, optuna is 4.9, not <6,>=5"
    assert found["extra postgresql"]["found"] == "psycopg is not installed"
    assert found["extra postgresql"]["advice"] == "pip install 'robustlr[postgresql]'"
    assert found["extra rl"]["found"] == "ale-py is not installed"
    assert found["extra rl"]["state"] == found["roms"]["state"] == "note"
    assert "robustlr[rl]" in found["roms"]["advice"]
    assert found["extra text"]["state"] == "ok"
    assert found["database"]["state"] == "problem"
    assert "pip install 'robustlr[postgresql]'" in found["database"]["found"]


def test_every_extra_for_users_has_a_line() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {f"extra {name}" for name in project["optional-dependencies"]} - {"extra dev"}
    assert _states(doctor._extras()) == dict.fromkeys(extras, "ok")


def test_roms_that_are_gone_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    (check,) = doctor._roms()
    assert check.state == "note"
    assert "ALE_ROMS_DIR" in check.advice


# Processors, kernels, GPUs


@pytest.mark.parametrize(
    ("threads", "state"),
    [(None, "ok"), ("1", "ok"), ("64", "note"), ("4,2", "problem"), ("0", "problem")],
)
def test_threads(threads: str | None, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if threads is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    (check,) = doctor._processors()
    assert check.state == state
    assert check.found.startswith(f"{len(os.sched_getaffinity(0))} cores")
    assert ("--per-device 1," in check.advice) == (threads == "64")


@pytest.mark.skipif(kernels.compiled() is None, reason="there is no C compiler")
def test_kernels_are_compiled_or_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = doctor._kernels()
    assert check == Check("kernels", "ok", f"compiled: {kernels.compiled()}")
    for variable, value, found in (
        ("CC", "false", "the C compiler cannot compile them"),
        ("ROBUSTLR_KERNELS", "0", "switched off by ROBUSTLR_KERNELS=0"),
        ("PATH", "", 'there is no C compiler "cc"'),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            (check,) = doctor._kernels()
        assert (check.state, check.found) == ("note", f"{found}; steps of optimizers are slower")


def test_kernels_that_may_not_be_run_are_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels.compiled() is None:
        pytest.skip("there is no C compiler")
    with _mounted(tmp_path / "cache", "size=4m,noexec") as cache:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        (check,) = doctor._kernels()
    assert check.state == "note"
    assert "XDG_CACHE_HOME" in check.advice


def test_gpus_are_listed_or_it_is_told_why_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *each = doctor._gpus()
    if torch.cuda.is_available():
        assert first.state == "ok"
        assert [check.name for check in each] == [f"gpu {i}" for i in range(len(each))]
        return
    assert (first.name, first.state, each) == ("gpus", "note", [])
    (tmp_path / "nvidia-smi").touch(mode=0o755)  # what an installed driver puts there
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (check,) = doctor._gpus()
    assert "an NVIDIA driver, but torch" in check.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (check,) = doctor._gpus()
    if torch.version.cuda is not None:
        assert "unset CUDA_VISIBLE_DEVICES" in check.advice
    without = doctor._no_gpu("torch without CUDA", has_cuda=False, complaint="")
    assert "install a torch and a torchvision for CUDA" in without.advice


# Folders


def test_a_folder_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    there = doctor.folder("f", tmp_path, "leave it")
    assert re.fullmatch(rf"{tmp_path}: [\d.]+ GB free", there.found)
    later = doctor.folder("f", tmp_path / "a" / "b", "leave it")
    assert f"{tmp_path}/a/b (not made yet): " in later.found
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder_is_a_problem_where_one_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    for variable in ("ROBUSTLR_FOLDER", "ROBUSTLR_DATA"):
        monkeypatch.setenv(variable, str(file / "inner"))
    found = _by_name(doctor._folders())
    assert (found["trials folder"].state, found["data folder"].state) == ("problem", "note")
    for check, variable in (("trials folder", "ROBUSTLR_FOLDER"), ("data folder", "ROBUSTLR_DATA")):
        assert f"{file}/inner cannot be written: Not a directory" in found[check].found
        assert f"set {variable} to another folder" in found[check].advice
    assert found["temp folder"].state in ("ok", "note")


def test_folders_that_users_may_not_write(tmp_path: Path) -> None:
    """As an ordinary user, for permissions do not bind root."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    code = (
        "import pathlib; from robustlr.doctor import folder\n"
        f"print(folder('f', pathlib.Path({str(closed)!r}), 'go away').state)"
    )
    if os.getuid() == 0:
        code = f"import os; os.setgroups([]); os.setuid(65534)\n{code}"
        closed.chmod(0o500)  # nobody else may even look into it
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"import robustlr.doctor\n{code}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "problem\n", done.stderr


def test_disks_that_are_full_or_nearly(tmp_path: Path) -> None:
    for size, state in ((2000, "ok"), (500, "note"), (50, "problem")):
        with _mounted(tmp_path / str(size), f"size={size}m") as place:
            check = doctor.folder("f", place, "leave it")
            assert check.state == state
            assert bool(check.advice) == (state != "ok")


def test_a_full_disk_under_the_database_and_the_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _mounted(tmp_path / "full", "size=1m") as place:
        url = f"sqlite:///{place}/x.db"
        Storage(url, create=True).engine.dispose()
        with pytest.raises(OSError, match="No space"):
            (place / "fill").write_bytes(bytes(MEGABYTE))
        monkeypatch.setenv("ROBUSTLR_FOLDER", str(place / "trials"))
        found = {**_by_name(database_checks(url)), **_by_name(doctor._folders())}
        assert found["database folder"].state == found["trials folder"].state == "problem"
        assert "0.0 GB free" in found["trials folder"].found


# Databases


def _content(url: str) -> Any:
    """Return all that the database holds, and of SQLite the bytes of its files."""
    if url.startswith("sqlite"):
        folder = Path(url.removeprefix("sqlite:///")).parent
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        names = sorted(sa.inspect(connection).get_table_names())
        content = {
            name: sorted(map(repr, connection.exec_driver_sql(f"SELECT * FROM {name}")))
            for name in names
        }
    engine.dispose()
    return content


def test_a_good_database_is_ok_and_stays_as_it_was(url: str, tmp_path: Path) -> None:
    with Storage(url, create=True) as storage:
        storage.create_study(study_from(tmp_path, "seeds = 1\n[optimizers.nero]\nlr = [0.1]\n"))
    before = _content(url)
    found = _by_name(database_checks(url))
    assert _content(url) == before
    assert {check.state for check in found.values()} == {"ok"}, found
    assert found["studies"].found == "1"
    assert re.search(r" answers in [\d.e-]+ ms$", found["database"].found)
    if url.startswith("sqlite"):
        assert found["journal mode"].found == "wal"
        assert str(tmp_path / "study.db") in found["database"].found
        assert "file system" in found
    else:
        assert re.match(
            r"PostgreSQL \d+.*, \d+ of \d+ connections in use", found["connections"].found
        )
        assert re.match(r"the server is 0\.\d s (ahead of|behind) this", found["clock"].found)


def test_an_empty_database_stays_empty(url: str, tmp_path: Path) -> None:
    if url.startswith("sqlite"):
        (tmp_path / "study.db").touch()
    before = _content(url)
    found = _by_name(database_checks(url))
    assert found["writing"].state == found["database"].state == "ok"
    assert (found["studies"].state, found["studies"].advice) == ("note", doctor_database.NO_STUDY)
    assert _content(url) == before


def test_a_database_without_studies_is_a_note(storage: Storage, url: str) -> None:
    found = _by_name(database_checks(url))
    assert (found["studies"].state, found["studies"].advice) == ("note", doctor_database.NO_STUDY)
    assert found["schema"].state == "ok"


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    found = _by_name(database_checks(f"sqlite:///{tmp_path}/x.db"))
    assert (found["database"].state, found["database"].advice) == (
        "note",
        doctor_database.NO_STUDY,
    )
    found = _by_name(database_checks(f"sqlite:///{tmp_path}/no/folder/x.db"))
    assert found["database folder"].state == "problem"
    assert f"mkdir -p {tmp_path}/no/folder" in found["database folder"].advice
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("nonsense", '"nonsense" is no database URL'),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_urls_of_no_database_are_problems(url: str, what: str) -> None:
    (check,) = database_checks(url)
    assert check.state == "problem"
    assert what in check.found


def test_a_file_that_is_no_database_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("Dear diary, " * 1000)
    found = _by_name(database_checks(f"sqlite:///{tmp_path}/x.db"))
    assert found["database"].state == "problem"
    assert "file is not a database" in found["database"].found
    assert "studies" not in found


def test_a_read_only_file_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    url = f"sqlite:///{path}"
    Storage(url, create=True).engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    content = bytearray(path.read_bytes())
    content[18] = 3  # a version of the format that may be read, but not written: binds root too
    path.write_bytes(content)
    found = _by_name(database_checks(url))
    assert found["writing"].state == "problem"
    assert "readonly" in found["writing"].found
    assert found["journal mode"].state == "note"
    assert "journal_mode = WAL" in found["journal mode"].advice
    assert path.read_bytes() == content


def test_a_writer_that_never_ends_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_database, "PATIENCE_SECONDS", 0)
    url = f"sqlite:///{tmp_path}/x.db"
    Storage(url, create=True).engine.dispose()
    with closing(sqlite3.connect(tmp_path / "x.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        found = _by_name(database_checks(url))
    assert (found["database"].state, found["writing"].state) == ("ok", "problem")
    assert "locked" in found["writing"].found


def test_a_server_that_never_answers_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_database, "PATIENCE_SECONDS", 2)  # the least that libpq takes
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (check,) = database_checks(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x")
    assert check.state == "problem"
    assert "timeout" in check.found


def test_tables_of_another_optuna_are_a_problem(storage: Storage, url: str) -> None:
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v1.3.0.a'")
    check = _by_name(database_checks(url))["schema"]
    assert check.state == "problem"
    assert "Optuna's v1.3.0.a" in check.found
    assert "robustlr storage upgrade" in check.advice


def test_network_file_systems_are_a_problem(tmp_path: Path) -> None:
    mounts = (
        "overlay / overlay rw 0 0\n"
        "server:/home /home nfs4 rw 0 0\n"
        "/dev/sda1 /home/local ext4 rw 0 0\n"
        "me@there: /my\\040files fuse.sshfs rw 0 0\n"
        "//there/x /my\\040files/deeper cifs rw 0 0\n"
        "tmpfs /homes tmpfs rw 0 0\n"
    )
    kinds = {
        "/home/me/x.db": "nfs4",
        "/home/local/x.db": "ext4",
        "/homes/x.db": "tmpfs",
        "/my files/x.db": "fuse.sshfs",
        "/my files/deeper/x.db": "cifs",
        "/srv/x.db": "overlay",
    }
    for path, kind in kinds.items():
        assert file_system(Path(path), mounts) == kind
        check = network_check(Path(path), mounts)
        assert (check.state == "problem") == (kind in ("nfs4", "fuse.sshfs", "cifs"))
        assert ("PostgreSQL" in check.advice) == (check.state == "problem")
    for kind in ("nfs", "lustre", "gpfs", "beegfs", "beegfs_nodev", "smb3", "ceph", "fuse.rclone"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("/net")  # what counts is where the file is
        assert network_check(tmp_path / "link/x.db", f"x /net {kind} rw 0 0\n").state == "problem"
    assert file_system(Path("/proc/self"), Path("/proc/mounts").read_text()) == "proc"


# PostgreSQL


@pytest.fixture
def administer(url: str) -> Callable[[str], None]:
    """Run statements in the database as its owner."""

    def run(statements: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statements.encode())

    return run


def _name(url: str) -> str:
    return str(sa.make_url(url).database)


@grouped
@on_postgresql
def test_a_server_that_only_reads_is_a_problem(
    storage: Storage, url: str, administer: Callable[[str], None]
) -> None:
    administer(f"ALTER DATABASE {_name(url)} SET default_transaction_read_only = on")
    found = _by_name(database_checks(url))
    assert (found["database"].state, found["writing"].state) == ("ok", "problem")
    assert "read-only transaction" in found["writing"].found


@grouped
@on_postgresql
def test_a_user_without_rights_and_a_wrong_password(
    storage: Storage, url: str, administer: Callable[[str], None], postgresql_server: Any
) -> None:
    administer("CREATE ROLE reader LOGIN PASSWORD 'right-one'")
    administer("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    rules = Path(postgresql_server.pgdata, "pg_hba.conf")
    usual = rules.read_text()
    try:
        rules.write_text(f"local all reader scram-sha-256\n{usual}")
        administer("SELECT pg_reload_conf()")
        wrong = _as_user(url, "reader", "wrong-one")
        deadline = time.monotonic() + 30
        while _by_name(database_checks(wrong))["database"].state == "ok":  # until it has reloaded
            assert time.monotonic() < deadline
        (check,) = database_checks(wrong)
        assert check.state == "problem"
        assert "password authentication failed" in check.found
        assert "wrong-one" not in str(check)
        found = _by_name(database_checks(_as_user(url, "reader", "right-one")))
        assert (found["database"].state, found["writing"].state) == ("ok", "problem")
        assert "permission denied" in found["writing"].found
        assert "right-one" not in str(found)
    finally:
        rules.write_text(usual)
        administer("SELECT pg_reload_conf(); DROP OWNED BY reader; DROP ROLE reader")


def _as_user(url: str, name: str, password: str) -> str:
    user = sa.make_url(url).set(username=name, password=password)
    return user.render_as_string(hide_password=False)


@grouped
@on_postgresql
def test_a_server_whose_clock_is_off_is_a_note(
    storage: Storage, url: str, administer: Callable[[str], None]
) -> None:
    administer(
        "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql "
        "AS $$ SELECT pg_catalog.clock_timestamp() - interval '90 seconds' $$"
    )
    assert _by_name(database_checks(url))["clock"].state == "ok"
    administer(f"ALTER DATABASE {_name(url)} SET search_path = public, pg_catalog")
    check = _by_name(database_checks(url))["clock"]
    assert check.state == "note"
    assert re.match(r"the server is (89|90)\.\d s behind this machine", check.found)


@grouped
@on_postgresql
def test_a_server_with_few_free_connections_is_a_note(storage: Storage, url: str) -> None:
    assert _by_name(database_checks(url))["connections"].state == "ok"
    with storage.engine.connect() as connection, ExitStack() as sessions:
        most = int(connection.exec_driver_sql("SHOW max_connections").scalar() or 0)
        for _ in range(int(doctor_database.CROWDED * most)):
            sessions.enter_context(psycopg.connect(url))
        check = _by_name(database_checks(url))["connections"]
    assert check.state == "note"
    assert "max_connections" in check.advice


# Data sets


def test_data_that_are_not_here_are_notes_that_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path))
    monkeypatch.setenv("ROBUSTLR_LOHELP", str(tmp_path / "nothing"))
    monkeypatch.delenv("ROBUSTLR_IMAGENET", raising=False)
    monkeypatch.setattr(published, "PACKAGED", tmp_path / "nothing")
    found = _by_name(doctor_data.data_checks())
    assert list(tmp_path.iterdir()) == []
    here = {f"data {name}" for name in doctor_data.INSTALLED}
    assert {name for name, check in found.items() if check.state == "ok"} == here
    assert {check.state for check in found.values()} == {"ok", "note"}
    for name in found.keys() - here:
        assert str(tmp_path) in found[name].advice or "ROBUSTLR_LOHELP" in found[name].advice, name
    assert "cifar-10-python.tar.gz" in found["data cifar10"].advice
    assert "robustlr[text]" in found["data iwslt14"].advice


def test_every_data_set_that_files_can_be_had_for_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path))
    monkeypatch.delenv("ROBUSTLR_IMAGENET", raising=False)
    names = [name.removeprefix("data ") for name in _by_name(doctor_data.data_checks())]
    for name in names:
        for file in _files(name):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
    found = _by_name(doctor_data.data_checks())
    assert {check.state for check in found.values()} == {"ok"}, found
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    (tmp_path / "multi30k" / "test.en").unlink()
    found = _by_name(doctor_data.data_checks())
    away = {name for name, check in found.items() if check.state == "note"}
    assert away == {"data cifar10", "data multi30k"}
    assert "lacks test.en" in found["data multi30k"].found
    (tmp_path / "cifar-10-python.tar.gz").touch()
    assert "to be unpacked" in _by_name(doctor_data.data_checks())["data cifar10"].found


def _files(name: str) -> Iterable[Path | str]:
    """Return files that a data set can consist of, in the data folder."""
    if name in doctor_data.INSTALLED:
        return []
    if name == "imagenet":
        return ["imagenet/train/n01/a.JPEG", "imagenet/val/n01/b.JPEG"]
    if name == "openwebtext":
        return [f"openwebtext-gpt2/{part}" for part in corpora.PARTS]
    if name in corpora.LANGUAGES:
        return [f"{name}/{file}" for file in corpora._names(name)]
    return [path for archive in published._archives(name) for path in archive.unpacked]


def test_data_in_debians_packages_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ROBUSTLR_LOHELP", str(tmp_path / "help"))
    monkeypatch.setattr(published, "PACKAGED", tmp_path)
    for archive in published._archives("fashion-mnist"):
        (tmp_path / archive.path.name).touch()
    for language in ("en-US", "de"):
        page = tmp_path / "help" / language / "text" / "page.html"
        page.parent.mkdir(parents=True)
        page.touch()
    found = _by_name(doctor_data.data_checks())
    for name in ("fashion-mnist", "lohelp", "lohelp-en"):
        assert (name, found[f"data {name}"].state) == (name, "ok")
