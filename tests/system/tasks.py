"""Tasks that know which Slurm job runs them. Workers import this module to find them."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from robustlr.task import Config, FunctionTask, Report

SECONDS = 120
"""How long a trial waits at most before it fails."""


def lines() -> list[list[str]]:
    """Return the words of each line of the log that trials write."""
    log = Path(os.environ["RUN_LOG"])
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def _note(word: str, config: Config) -> None:
    job = os.environ.get("SLURM_ARRAY_TASK_ID", "alone")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    with open(os.environ["RUN_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{word} {job} {restarts} {config.seed} {config.hyperparameters['lr']!r}\n")


def _wait_for(condition: Callable[[], object], report: Report) -> None:
    for step in range(10 * SECONDS):
        if condition():
            return
        report(step, 0.5)
        time.sleep(0.1)
    raise TimeoutError(f"waited {SECONDS} seconds")


def _together(config: Config, report: Report) -> float:
    """Wait until jobs 0 and 1 of the array have both begun a trial."""
    _note("began", config)
    _wait_for(lambda: {"0", "1"} <= {job for _, job, *_ in lines()}, report)
    _note("ended", config)
    return 0.5


def _held(config: Config, report: Report) -> float:
    """Wait until the test deletes a file."""
    _wait_for(lambda: not Path(os.environ["HOLD"]).exists(), report)
    _note("ended", config)
    return 0.5


def _long(config: Config, report: Report) -> float:
    """End only after Slurm has restarted the job, but for seed 0, which ends at once."""
    _wait_for(lambda: config.seed == 0 or "SLURM_RESTART_COUNT" in os.environ, report)
    _note("ended", config)
    return 0.5


def _task(function: Callable[[Config, Report], float]) -> FunctionTask:
    name = function.__name__.strip("_")
    return FunctionTask(name=name, summary=name, metric="loss", worst=1.0, function=function)


together, held, long = map(_task, (_together, _held, _long))
