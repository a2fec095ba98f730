"""A study run by several launchers while faults happen, and what is left of it."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import sqlalchemy as sa

from robustlr.storage import Storage
from robustlr.study import Study, load_study
from tests.chaos.faults import kill
from tests.helpers import ROOT

WORKERS = 4
LEASE_SECONDS = 5
KILL_SECONDS = (1.0, 2.0)
QUICK = {
    "ROBUSTLR_LEASE_SECONDS": str(LEASE_SECONDS),
    "ROBUSTLR_SAVE_SECONDS": "0.02",
    "TORCH_COMPILE_DISABLE": "1",  # compiled trials differ from those alone in last bits
}

AUDIT = {
    "sqlite": (
        "CREATE TABLE audit (trial_id INTEGER)",
        "CREATE TRIGGER audited AFTER UPDATE OF state ON trials WHEN NEW.state = 'COMPLETE' "
        "BEGIN INSERT INTO audit VALUES (NEW.trial_id); END",
    ),
    "postgresql": (
        "CREATE TABLE audit (trial_id INTEGER)",
        "CREATE FUNCTION audited() RETURNS trigger AS $$ BEGIN INSERT INTO audit VALUES "
        "(NEW.trial_id); RETURN NULL; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER audited AFTER UPDATE OF state ON trials FOR EACH ROW "
        "WHEN (NEW.state = 'COMPLETE') EXECUTE FUNCTION audited()",
    ),
}
"""The database itself writes down every completion."""


@dataclass(frozen=True)
class Fault:
    """Something that happens once, when a share of the trials is complete, for some seconds."""

    name: str
    share: float
    seconds: float
    begin: Callable[[], None]
    end: Callable[[], None] = lambda: None


@dataclass
class Result:
    """What a storm left."""

    seconds: float = 0.0
    kills: int = 0
    launches: int = 0
    faults: list[str] = field(default_factory=list)
    logs: str = ""
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    completions: list[int] = field(default_factory=list)
    taken_over: int = 0


def chaos_study(folder: Path, trials: int) -> Study:
    """Return a study of so many trials: points and the out-of-the-box setting, times seeds."""
    points = 4
    seeds, rest = divmod(trials, points + 1)
    assert not rest
    text = (
        f'name = "chaos"\ntasks = ["tests.chaos.tasks:brief"]\nseeds = {seeds}\n'
        f"[optimizers.nero]\nlr = {{ log = [0.001, 1.0], points = {points} }}\n"
    )
    (folder / "chaos.toml").write_text(text, encoding="utf-8")
    return load_study(folder / "chaos.toml")


def prepare(url: str, study: Study) -> None:
    """Store the study, and have the database count completions by itself."""
    with Storage(url, create=True) as storage:
        storage.create_study(study)
        with storage.transaction() as connection:
            for statement in AUDIT[storage.engine.dialect.name]:
                connection.execute(sa.text(statement))


class Launcher(NamedTuple):
    """Workers that reach the database under ``url``."""

    url: str
    options: tuple[str, ...] = ()


class Storm:
    """Launchers of four workers each, and faults until all is complete."""

    def __init__(self, url: str, launchers: Sequence[Launcher], folder: Path, seed: int) -> None:
        self._url, self._launchers, self._folder = url, launchers, folder
        self._random = random.Random(seed)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.result = Result()

    def run(self, faults: Sequence[Fault], seconds: float) -> Result:
        """Run to the end, with a random worker killed every second or two."""
        started = time.monotonic()
        due, next_kill = sorted(faults, key=lambda fault: fault.share), started + 3
        ends: list[tuple[float, Fault]] = []
        try:
            while (share := self._share()) < 1 or ends:
                now = time.monotonic()
                assert now - started < seconds, f"{share:.0%} after {seconds} s"
                self._keep_launchers()
                while due and share >= due[0].share:
                    due[0].begin()
                    ends.append((now + due[0].seconds, due[0]))
                    self.result.faults.append(due.pop(0).name)
                for end in [end for end in ends if end[0] < now]:
                    end[1].end()
                    ends.remove(end)
                if now > next_kill:
                    self._kill_one()
                    next_kill = now + self._random.uniform(*KILL_SECONDS)
                time.sleep(0.1)
        finally:
            for _, fault in ends:
                fault.end()
            self._stop()
        self.result.seconds = time.monotonic() - started
        self._read()
        return self.result

    def _share(self) -> float:
        """Return which share of the trials is complete; the last known one while nobody answers."""
        try:
            with Storage(self._url) as storage:
                progress = storage.progress("chaos")
            self._last = progress.complete / progress.total
        except Exception:  # the server is away, as it shall be
            pass
        return self._last

    _last = 0.0

    def _keep_launchers(self) -> None:
        """Start launchers, also again: one ends when trials have failed or nothing waits."""
        for url, options in self._launchers:
            running = self._running.get(url)
            if running is not None and running.poll() is None:
                continue
            command = [sys.executable, "-m", "robustlr", "worker", "chaos", "--devices", "cpu"]
            with (self._folder / "launchers.log").open("ab") as log:
                self._running[url] = subprocess.Popen(
                    [*command, "--per-device", str(WORKERS), *options],
                    env={**os.environ, **QUICK, **self._environment(url)},
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                )
            self.result.launches += 1

    def _environment(self, url: str) -> dict[str, str]:
        return {"ROBUSTLR_STORAGE": url, "ROBUSTLR_FOLDER": str(self._folder / "disk" / "trials")}

    def _kill_one(self) -> None:
        """Kill a random worker, if it runs a trial."""
        try:
            with Storage(self._url) as storage:
                running = {trial.process for trial in storage.status("chaos").running}
        except Exception:  # as above
            return
        chosen = self._random.randrange(len(self._launchers) * WORKERS)
        if chosen < len(running):
            self.result.kills += kill(sorted(running)[chosen])

    def _stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait(60)

    def _read(self) -> None:
        with Storage(self._url) as storage:
            self.result.table = storage.trials("chaos")
            with storage.transaction() as connection:
                audit = sa.text("SELECT trial_id FROM audit")
                self.result.completions = list(connection.scalars(audit))
                lost = sa.text("SELECT count(*) FROM trial_user_attributes WHERE key = 'lost'")
                self.result.taken_over = connection.scalar(lost) or 0
        logs = [*self._folder.glob("disk/trials/chaos/logs/*"), self._folder / "launchers.log"]
        self.result.logs = "\n".join(log.read_text(errors="replace") for log in logs)


def undisturbed(folder: Path, study: Study) -> pd.DataFrame:
    """Return the study's table from four workers that nothing happens to."""
    url = f"sqlite:///{folder}/undisturbed.db"
    with Storage(url, create=True) as storage:
        storage.create_study(study)
        command = [sys.executable, "-m", "robustlr", "worker", "chaos", "--devices", "cpu"]
        environment = {"ROBUSTLR_STORAGE": url, "ROBUSTLR_FOLDER": str(folder / "undisturbed")}
        done = subprocess.run(
            [*command, "--per-device", str(WORKERS)],
            env={**os.environ, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return storage.trials("chaos")


def comparable(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what a table says of each trial but for how long it took."""
    rows = json.loads(table.drop(columns="seconds").to_json(orient="records", double_precision=15))
    exact = table[["value", "test_value", "initial"]].map(lambda value: float(value).hex())
    rows = [
        row | dict(zip(exact, each, strict=True))
        for row, each in zip(rows, exact.to_numpy(), strict=True)
    ]
    return sorted(rows, key=lambda row: (row["optimizer"], row["trial"]))
