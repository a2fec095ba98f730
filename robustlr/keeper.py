"""What a launcher owes the database, in a thread of its own, so that a slow one delays nothing else.

It renews its workers' leases, gives back what dead workers ran, here and elsewhere, and counts.
Training runs in other processes, so it cannot starve this thread.
"""

import threading
import time
from collections.abc import Iterable

from robustlr import claims
from robustlr.errors import StorageError, say
from robustlr.storage import Storage

RENEWALS_PER_LEASE = 4  # three may come too late


class Keeper(threading.Thread):
    """Looks after one study's trials for one launcher, every ``beat_seconds``.

    ``progress`` is the study's, as of the last of ``beats``. While the database is away nothing is
    forgotten.
    """

    def __init__(self, storage: Storage, name: str, beat_seconds: float) -> None:
        super().__init__(daemon=True)
        self.progress = storage.progress(name)
        self._storage, self._name, self._beat_seconds = storage, name, beat_seconds
        self._alive: list[str] = []
        self._dead: dict[str, str | None] = {}
        self._given_back: dict[str, int] = {}
        self._renewed = self._reclaims_from = -float("inf")
        self._wake, self._ends, self._complains = threading.Event(), False, True
        self._error: BaseException | None = None
        self.beats = 0

    def look_after(self, workers: Iterable[str]) -> None:
        """Renew these workers' leases from now on, and no others'."""
        self._alive = list(workers)

    def bury(self, worker: str, reason: str | None) -> None:
        """Give back what a worker that has ended ran; a ``reason`` says how it died."""
        self._dead[worker] = reason
        self.wake()

    def wake(self) -> None:
        """Have the next beat now."""
        self._wake.set()

    def given_back(self, worker: str) -> int | None:
        """Return how many trials a buried worker had; None if that is not known yet."""
        return self._given_back.get(worker)

    def check(self) -> None:
        """Raise what ended this thread, if anything did."""
        if self._error is not None:
            raise self._error

    def finish(self) -> bool:
        """End the thread after what is left to do; return whether it could be done."""
        self._ends = True
        self.wake()
        self.join()
        return not self._dead

    def run(self) -> None:
        """Beat until ``finish``."""
        try:
            while True:
                self._wake.wait(self._beat_seconds)
                self._wake.clear()
                ends = self._ends
                self._try_to_beat()
                if ends:
                    return
        except Exception as error:
            self._error = error

    def _try_to_beat(self) -> None:
        try:
            self._beat()
            self._complains = True
        except StorageError as error:
            if self._complains:
                say(f"robustlr: {error}; trying again until it works")
            self._complains = False
            # Nobody could renew a lease meanwhile: first let every launcher do so.
            self._reclaims_from = time.monotonic() + claims.LEASE_SECONDS

    def _beat(self) -> None:
        now = time.monotonic()
        is_due = now - self._renewed > claims.LEASE_SECONDS / RENEWALS_PER_LEASE
        if is_due and self._alive:
            self._storage.renew(self._alive)
        for worker, reason in list(self._dead.items()):
            self._given_back[worker] = self._storage.release(worker, reason)
            del self._dead[worker]
        if is_due and now >= self._reclaims_from:
            self._storage.reclaim(self._name)
        self._renewed = now if is_due else self._renewed
        self.progress = self._storage.progress(self._name)
        self.beats += 1
