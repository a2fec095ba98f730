"""Copies of checkpoints for machines that share no folder: in the database, or in an S3 bucket.

``ROBUSTLR_CHECKPOINTS`` names the place, ``database`` or ``s3://bucket/prefix`` (any S3-compatible
service: boto3 reads its address and keys from its own variables). A trial's file is fetched before it
runs, copied from a thread of its own whenever it has changed, and deleted when the trial ends.
"""

import io
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

from robustlr.errors import UserError, extra, say
from robustlr.signals import Lost
from robustlr.task import CHECKPOINT

if TYPE_CHECKING:
    from robustlr.storage import Storage

LOOK_SECONDS = 5.0
"""How often a changed checkpoint is looked for: what a killed machine loses beyond its last save."""


class Store(Protocol):
    """A place for files, as Optuna's artifact stores are."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file; raise ``ArtifactNotFound`` if there is none."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep a file."""

    def remove(self, artifact_id: str) -> None:
        """Delete a file."""


class InDatabase:
    """Files in a table of the study's database."""

    def __init__(self, storage: "Storage") -> None:
        self._storage = storage

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file; raise ``ArtifactNotFound`` if there is none."""
        from optuna.artifacts.exceptions import ArtifactNotFound

        content = self._storage.read_file(artifact_id)
        if content is None:
            raise ArtifactNotFound(artifact_id)
        return io.BytesIO(content)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep a file."""
        self._storage.write_file(artifact_id, content_body.read())

    def remove(self, artifact_id: str) -> None:
        """Delete a file."""
        self._storage.remove_file(artifact_id)


def store(storage: "Storage") -> Store | None:
    """Return the store that ``ROBUSTLR_CHECKPOINTS`` names; None if it names none.

    Raises:
        UserError: it names no place that we know, or boto3 is missing.
    """
    place = os.environ.get("ROBUSTLR_CHECKPOINTS", "")
    if not place:
        return None
    if place == "database":
        return InDatabase(storage)
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    if not place.startswith("s3://") or not bucket:
        raise UserError(
            f'ROBUSTLR_CHECKPOINTS is "{place}"; write "database" or "s3://bucket/prefix", or unset it'
        )
    with extra("s3"):
        from optuna.artifacts import Boto3ArtifactStore

        return _Below(prefix, Boto3ArtifactStore(bucket))


class _Below:
    """A store's files whose names begin with a prefix."""

    def __init__(self, prefix: str, whole: Store) -> None:
        self._prefix, self._whole = f"{prefix}/" if prefix else "", whole

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self._whole.open_reader(self._prefix + artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._whole.write(self._prefix + artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        self._whole.remove(self._prefix + artifact_id)


class Copies:
    """Keeps one trial's checkpoint in a store while the block runs; does nothing without a store.

    A store that does not work costs the copy, not the trial. What cannot be read is not replaced: it
    may be further than what a run that began anew would put there.
    """

    def __init__(self, store: Store | None, folder: Path, trial: str) -> None:
        self._store, self._file = store, folder / CHECKPOINT
        self._name = f"{trial}/{CHECKPOINT}"
        self._copied: float | None = None
        self._ends, self._is_needed = threading.Event(), True
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        if self._store is not None and self._fetch(self._store):
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread.is_alive():
            # A run that has ended needs no copy, and one that is another's must not leave one.
            self._is_needed = kind is not None and kind is not Lost
            self._ends.set()
            self._thread.join()

    def remove(self) -> None:
        """Delete the copy."""
        if self._store is not None and self._copied is not None:
            try:
                self._store.remove(self._name)
            except Exception as error:  # of whatever service
                say(f"the copy {self._name} cannot be deleted: {error}")

    def _fetch(self, store: Store) -> bool:
        """Take up the stored copy where it is further than the file; return whether to copy."""
        from optuna.artifacts.exceptions import ArtifactNotFound

        fetched = self._file.with_name(f".{os.getpid()}.copy.{CHECKPOINT}")
        try:
            with store.open_reader(self._name) as reader:
                content = reader.read()
            self._copied = 0.0
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fetched.write_bytes(content)
            if _step(fetched) >= _step(self._file):
                fetched.replace(self._file)
                self._copied = self._file.stat().st_mtime
        except ArtifactNotFound:
            return True
        except Exception as error:  # of whatever service, or a full disk
            say(f"the copy {self._name} cannot be read, and is left as it is: {error}")
            return False
        finally:
            with suppress(OSError):
                fetched.unlink(missing_ok=True)
        return True

    def _look(self) -> None:
        while not self._ends.wait(LOOK_SECONDS):
            self._copy()
        if self._is_needed:
            self._copy()

    def _copy(self) -> None:
        assert self._store is not None
        try:
            changed = self._file.stat().st_mtime
            if changed != self._copied:
                self._store.write(self._name, io.BytesIO(self._file.read_bytes()))
                self._copied = changed
        except FileNotFoundError:
            return
        except Exception as error:  # of whatever service
            say(f"{self._file} cannot be copied, which is tried again: {error}")


def _step(file: Path) -> int:
    """Return the step that a checkpoint holds; -1 if there is none."""
    import torch

    try:
        return int(torch.load(file, map_location="cpu", weights_only=True)["step"])
    except Exception:  # a file that is no checkpoint can raise anything
        return -1
