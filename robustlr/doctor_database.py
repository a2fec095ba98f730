"""The database's part of ``robustlr doctor``: whether it answers, can be written to, and how fast."""

import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from statistics import median
from typing import Any

import optuna
import sqlalchemy as sa

from robustlr.database import VERSION, parse_url, url_of
from robustlr.doctor import Check, folder
from robustlr.errors import UserError
from robustlr.storage import Storage, open_storage
from robustlr.tables import STUDIES, now

PATIENCE_SECONDS = 5
"""How long a server may take to answer, and a writer on SQLite to end."""

QUERIES = 20

SLOW_SECONDS = 0.05
"""A round trip that takes longer is worth a note: a trial waits for some dozens of them."""

CLOCK_SECONDS = 2.0
"""A larger difference of two clocks is worth a note."""

CROWDED = 0.8
"""The share of a server's connections in use that is worth a note."""

NETWORK = re.compile(
    r"(fuse\.)?(nfs\d?|cifs|smb\w*|lustre|gpfs|beegfs\w*|afs|ceph|glusterfs|orangefs|pvfs2|panfs|"
    r"wekafs|sshfs|davfs2?|rclone|s3fs|gcsfuse|juicefs)"
)
"""File systems whose locks SQLite cannot rely on, by their names in /proc/mounts."""

NO_STUDY = "no study yet: robustlr study create STUDY"


def database_checks(url: str) -> Iterator[Check]:
    """Yield the checks of the database at ``url``, which is left as it was found."""
    try:
        if url_of(url).startswith("grpc:"):
            yield from _proxy(url)
            return
        parsed = parse_url(url)
    except UserError as error:
        yield Check("database", "problem", str(error), "name another: --storage URL")
        return
    shown, options = parsed.render_as_string(), {"connect_timeout": PATIENCE_SECONDS}
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            found = f"{url} names no file, which workers could share"
            yield Check("database", "problem", found, "name one: --storage sqlite:///file.db")
            return
        path = Path(str(parsed.database)).absolute()
        yield from _place(path)
        if not path.exists():
            yield Check("database", "note", f"{path} is not there yet", NO_STUDY)
            return
        shown, options = str(path), {"timeout": PATIENCE_SECONDS}
    engine = sa.create_engine(parsed, poolclass=sa.NullPool, connect_args=options)
    try:
        with engine.connect() as connection:
            yield from _connected(shown, connection)
    except sa.exc.SQLAlchemyError as error:
        advice = "check its address, user and rights, and that it runs, or name another: --storage"
        yield Check("database", "problem", f"{shown} does not work: {_reason(error)}", advice)
        return
    yield from _studies(url, engine)


def _proxy(url: str) -> Iterator[Check]:
    """Check that the proxy at ``url`` answers, and so its database."""
    with open_storage(url) as storage:
        times = []
        for _ in range(QUERIES):
            started = time.perf_counter()
            count = len(storage.study_names())
            times.append(time.perf_counter() - started)
    found = f"{storage.shown_url} answers in {1000 * median(times):.2g} ms and has {count} studies"
    yield Check("database", "ok", found)


def _reason(error: sa.exc.SQLAlchemyError) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _place(path: Path) -> Iterator[Check]:
    """Check where an SQLite file lies, or will."""
    if not path.parent.is_dir():
        advice = f"make it: mkdir -p {path.parent}"
        yield Check("database folder", "problem", f"{path.parent} is no folder", advice)
        return
    yield folder("database folder", path.parent, "name another file: --storage sqlite:///file.db")
    try:
        yield network_check(path, Path("/proc/mounts").read_text(errors="replace"))
    except OSError:  # another system than Linux
        return


def network_check(path: Path, mounts: str) -> Check:
    """Check that an SQLite file is on no network, by the text of /proc/mounts."""
    kind = file_system(path, mounts)
    if NETWORK.fullmatch(kind):
        advice = "put it on this machine's own disk, or use PostgreSQL: --storage postgresql://…"
        found = f"{path} lies on a network file system ({kind}), where SQLite loses data"
        return Check("file system", "problem", found, advice)
    return Check("file system", "ok", f"{kind}, which is no network's")


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system that ``path`` is on, by the text of /proc/mounts."""
    real, length, found = os.path.realpath(path), 0, "unknown"
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place).rstrip("/")
        if len(place) >= length and (real == place or real.startswith(f"{place}/")):
            length, found = len(place), kind  # the last of those mounted over each other
    return found


def _connected(shown: str, connection: sa.Connection) -> Iterator[Check]:
    """Yield the checks of a database that takes connections; it is left as it was."""
    yield _round_trip(shown, connection)
    looks: dict[str, list[Callable[[sa.Connection], Check]]] = {
        "sqlite": [_journal],
        "postgresql": [_connections, _clock],
    }
    for look in looks.get(connection.dialect.name, []):
        yield look(connection)
    connection.rollback()
    yield _writing(connection)


def _round_trip(shown: str, connection: sa.Connection) -> Check:
    # SQLite answers SELECT 1 without a look at its file.
    query = "PRAGMA schema_version" if connection.dialect.name == "sqlite" else "SELECT 1"
    times = []
    for _ in range(QUERIES):
        started = time.perf_counter()
        connection.exec_driver_sql(query).scalar()
        times.append(time.perf_counter() - started)
    found = f"{shown} answers in {1000 * median(times):.2g} ms"
    if median(times) > SLOW_SECONDS:
        return Check("database", "note", found, "run the workers nearer to it")
    return Check("database", "ok", found)


def _journal(connection: sa.Connection) -> Check:
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    if mode == "wal":
        return Check("journal mode", "ok", "wal")
    advice = "let it be made by robustlr study create, or set it: PRAGMA journal_mode = WAL"
    return Check("journal mode", "note", f"{mode}: workers wait for each other", advice)


def _connections(connection: sa.Connection) -> Check:
    query = (
        "SELECT current_setting('server_version'), current_setting('max_connections')::int, "
        "(SELECT sum(numbackends)::int FROM pg_stat_database)"
    )
    version, most, used = connection.exec_driver_sql(query).one()
    found = f"PostgreSQL {version}, {used} of {most} connections in use"
    if used > CROWDED * most:
        advice = "raise max_connections in postgresql.conf, or start fewer workers"
        return Check("connections", "note", found, advice)
    return Check("connections", "ok", found)


def _clock(connection: sa.Connection) -> Check:
    before = time.time()
    server = connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar()
    ahead = float(server or 0) - (before + time.time()) / 2
    found = f"the server is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
    if abs(ahead) > CLOCK_SECONDS:
        advice = "set both by NTP: the times shown are off, though no result is"
        return Check("clock", "note", found, advice)
    return Check("clock", "ok", found)


def _writing(connection: sa.Connection) -> Check:
    """Write a study's row, in a table that is made if there is none, and roll both back."""
    kinds: dict[type, Any] = {str: f"doctor-{token_hex(4)}", int: 0, float: 0.0, datetime: now()}
    row = {column.name: kinds[column.type.python_type] for column in STUDIES.columns}
    try:
        if connection.dialect.name == "sqlite":  # whose driver begins nothing before CREATE
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        STUDIES.create(connection, checkfirst=True)
        connection.execute(sa.insert(STUDIES), row)
    except sa.exc.SQLAlchemyError as error:
        advice = "give this user the right to write, and end what locks it"
        return Check("writing", "problem", _reason(error), advice)
    finally:
        connection.rollback()
    return Check("writing", "ok", "a row was written and taken back")


def _studies(url: str, engine: sa.Engine) -> Iterator[Check]:
    """Open the database as every command does."""
    if not sa.inspect(engine).has_table(STUDIES.name):
        yield Check("studies", "note", "the database has no tables", NO_STUDY)
        return
    try:
        with Storage(url) as storage:
            yield _schema(storage)
            count = len(storage.study_names())
            if count:
                yield Check("studies", "ok", str(count))
            else:
                yield Check("studies", "note", "the database holds none", NO_STUDY)
    except UserError as error:
        yield Check("studies", "problem", str(error), "mend that, or name another: --storage")


def _schema(storage: Storage) -> Check:
    """Compare the version of Optuna's tables with the installed one's; ours were, on opening."""
    url = storage.engine.url.render_as_string(hide_password=False)
    tables = optuna.storages.RDBStorage(
        url, {"poolclass": sa.NullPool}, skip_compatibility_check=True, skip_table_creation=True
    )
    stored, expected = tables.get_current_version(), tables.get_head_version()
    found = f"robustlr's tables have version {VERSION}, Optuna's {stored}"
    if stored == expected:
        return Check("schema", "ok", found)
    advice = f"use the Optuna that made them, or bring them to {expected}: robustlr storage upgrade"
    return Check("schema", "problem", f"{found}, not {expected}", advice)
