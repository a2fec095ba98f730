"""A database: its address, its connections, its tables and their version.

What goes wrong with it (it is away, full, locked) is a ``StorageError``, after which the same call
can be made again: every transaction is whole or not at all, and finds out whether it was made before.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import optuna
import sqlalchemy as sa
from optuna.trial import TrialState

from robustlr.errors import StorageError, UserError
from robustlr.tables import ATTRIBUTES, LEASES, OURS, SCHEMA, STUDIES, TRIALS

VERSION = 2
"""The version of our tables: 1 had no leases and no files."""

ANSWER_SECONDS = 30.0
"""How long a server may take to answer a statement; then the network is taken to be cut."""

SESSION = {
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""What a PostgreSQL server shall end by itself: the session of a dead machine holds its locks."""

CONNECT_OPTIONS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 60},  # a writer waits for the others
    "postgresql": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "tcp_user_timeout": 30_000,
        "options": " ".join(f"-c {name}={value}" for name, value in SESSION.items()),
    },
}


class Database:
    """An open database with the tables of Optuna and ours.

    On PostgreSQL it holds a connection for the time of a transaction only.

    Args:
        url: an SQLAlchemy URL, ``sqlite:///file.db`` or ``postgresql://…``, or ``@FILE`` for a file
            that holds one.
        create: make the tables if they are missing. Workers do not: creating tables at the same
            time from several processes fails.
        upgrade: bring tables of an older version up to this one.

    Raises:
        StorageError: the database cannot be reached.
        UserError: it holds no tables and ``create`` is false, or they are of another version.
    """

    def __init__(self, url: str, *, create: bool = False, upgrade: bool = False) -> None:
        parsed = parse_url(url)
        self.shown_url = shown(parsed.render_as_string(hide_password=False))
        kind = parsed.get_backend_name()
        if kind == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise UserError(f'"{url}" names no file, which workers could share: sqlite:///file.db')
        if kind == "sqlite" and not create and not os.path.exists(str(parsed.database)):
            raise self._empty()
        given = CONNECT_OPTIONS.get(kind, {})
        self._options = {k: v for k, v in given.items() if k not in parsed.query}
        # A file is best kept open: whoever closes it last copies its write-ahead log.
        pool = None if kind == "sqlite" else sa.NullPool
        self.engine = sa.create_engine(parsed, poolclass=pool, connect_args=self._options)
        sa.event.listen(self.engine, "handle_error", self._explain)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._open(create, upgrade)

    def _open(self, create: bool, upgrade: bool) -> None:
        with self.transaction() as connection:
            tables = sa.inspect(connection)
            is_new = not tables.has_table(STUDIES.name)
            version = 1
            if tables.has_table(SCHEMA.name):
                version = connection.scalar(sa.select(SCHEMA.c.version)) or VERSION
        if is_new and not create:
            raise self._empty()
        if is_new:
            self._create_tables()
        elif version > VERSION:
            raise UserError(
                f"the database {self.shown_url} was written by a newer robustlr (its tables have "
                f"version {version}, this robustlr's {VERSION}); install that one"
            )
        elif upgrade:
            self._upgrade(version)
        elif version < VERSION:
            raise UserError(
                f"the database {self.shown_url} was written by an older robustlr (its tables have "
                f"version {version}, this robustlr's {VERSION}); stop its workers and upgrade it: "
                f"robustlr storage upgrade --storage {self.shown_url}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Give a connection whose changes are made as a whole at the end of the block, or not at all.

        Raises:
            StorageError: the database does not work, or did not answer for ``ANSWER_SECONDS``.
        """
        with self.engine.connect() as connection:
            # A cut network can leave a query without an answer for ever: drivers know no limit.
            limit = nullcontext() if self.engine.dialect.name == "sqlite" else _Limit(connection)
            with limit, connection.begin():
                yield connection

    def _empty(self) -> UserError:
        return UserError(
            f"the database {self.shown_url} holds no studies; "
            "create one first: robustlr study create STUDY"
        )

    def _explain(self, context: Any) -> None:
        """Turn a database that is away, full or locked into one sentence."""
        error = context.sqlalchemy_exception
        passing = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError)
        if isinstance(error, passing) or type(error) is sa.exc.DatabaseError:
            reason = shown(" ".join(str(context.original_exception).split()))
            raise StorageError(f"the database {self.shown_url} does not work: {reason}")

    def as_optuna(self) -> optuna.storages.BaseStorage:
        """Return the same database as Optuna's storage, for its dashboard and samplers."""
        return optuna.storages.get_storage(self._optuna_storage(create=False))

    def _optuna_storage(self, *, create: bool) -> optuna.storages.RDBStorage:
        return optuna.storages.RDBStorage(
            self.engine.url.render_as_string(hide_password=False),
            # Nothing stays open that nobody closes.
            {"poolclass": sa.NullPool, "connect_args": self._options},
            skip_compatibility_check=not create,
            skip_table_creation=not create,
        )

    def _create_tables(self) -> None:
        attempts = 5
        for attempt in range(1, attempts + 1):
            try:
                self._optuna_storage(create=True)
                self._create_ours(VERSION)
                break
            except (
                StorageError,
                sa.exc.DatabaseError,
                optuna.exceptions.StorageInternalError,
                RuntimeError,
            ) as error:
                # Another process may be making the tables; the next look finds more of them.
                if attempt == attempts:
                    reason = shown(" ".join(str(error.__cause__ or error).split()))
                    raise UserError(
                        f"no tables can be made in {self.shown_url}: {reason}"
                    ) from error
                time.sleep(0.5)
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.execute(sa.text("PRAGMA journal_mode = WAL"))

    def _create_ours(self, version: int) -> None:
        with self.transaction() as connection:
            for table in OURS.sorted_tables:
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            if connection.scalar(sa.select(SCHEMA.c.version)) is None:
                connection.execute(sa.insert(SCHEMA), {"row": 1, "version": version})

    def _upgrade(self, version: int) -> None:
        """Bring Optuna's tables and ours up to this version; running trials return to the queue."""
        optuna_storage = self._optuna_storage(create=False)
        if optuna_storage.get_current_version() != optuna_storage.get_head_version():
            optuna_storage.upgrade()
        if version == VERSION:
            return
        self._create_ours(version)
        with self.transaction() as connection:  # from 1: owners were attributes, without a lease
            running = sa.select(TRIALS.c.trial_id).where(TRIALS.c.state == TrialState.RUNNING)
            leased = sa.select(LEASES.c.trial_id)
            orphans = connection.scalars(running.where(TRIALS.c.trial_id.not_in(leased))).all()
            ours = TRIALS.c.trial_id.in_(orphans)
            connection.execute(sa.update(TRIALS).where(ours).values(state=TrialState.WAITING))
            connection.execute(sa.delete(ATTRIBUTES).where(ATTRIBUTES.c.key == "worker"))
            connection.execute(sa.update(SCHEMA).values(version=VERSION))


class _Limit(AbstractContextManager["_Limit"]):
    """Closes a connection whose server does not answer a statement, so that the wait for it ends."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        sa.event.listen(self._connection, "before_cursor_execute", self._restart)
        self._restart()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._timer is not None
        self._timer.cancel()

    def _restart(self, *statement: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        raw = self._connection.connection.driver_connection
        assert raw is not None
        self._timer = threading.Timer(ANSWER_SECONDS, _hang_up, (raw.fileno(),))
        self._timer.daemon = True
        self._timer.start()


def _hang_up(file: int) -> None:
    """End the wait for an answer, as if the server had closed the connection."""
    with suppress(OSError), socket.socket(fileno=os.dup(file)) as line:
        line.shutdown(socket.SHUT_RDWR)


def shown(text: str) -> str:
    """Return a text without the passwords of the URLs in it."""
    text = re.sub(r"(://[^:/?#\s]*):[^/\n]*@", r"\1:***@", text)  # to the last @: it may hold some
    return re.sub(r"(?i)(password)=('[^']*'|[^&\s]*)", r"\1=***", text)


def url_of(given: str) -> str:
    """Return a storage URL; ``@FILE`` stands for what is in that file, so that nobody else reads it.

    Raises:
        UserError: the file cannot be read.
    """
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'--storage {given}: the file "{given[1:]}" cannot be read: {error}'
        ) from error


def parse_url(given: str) -> sa.URL:
    """Return a database's URL with the driver that we use.

    Raises:
        UserError: it is none, or its driver is missing.
    """
    url = url_of(given)
    if url.startswith("grpc:"):
        raise UserError(f'"{shown(url)}" is a proxy; name the database that it stands for')
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect().import_dbapi()
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UserError(
            f'"{shown(url)}" is no database URL; write sqlite:///file.db, '
            "postgresql://user@host/name or grpc://host:port"
        ) from error
    except ImportError as error:
        raise UserError(
            f'the driver for "{parsed.drivername}" is missing: {error}; '
            "for PostgreSQL: pip install 'robustlr[postgresql]'"
        ) from error
    return parsed
