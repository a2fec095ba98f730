"""Training runs with all that they leave, for tests that compare runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from robustlr import checkpoint
from robustlr.checkpoint import Run
from robustlr.task import Config, Outcome, Task


class Ended(NamedTuple):
    """All that a run leaves: its outcome, its curve, and the states of its parts."""

    outcome: Outcome
    curve: list[tuple[int, float]]
    states: list[dict[str, Any]]


def ignore(step: int, value: float) -> None:
    """Take a report and do nothing with it."""


def run_to_end(
    task: Task,
    config: Config,
    folder: Path | None = None,
    each: Callable[[int, float], None] = ignore,
) -> Ended:
    """Train with a checkpoint after every step if there is a folder; keep what the run held."""
    curve: list[tuple[int, float]] = []

    def report(step: int, value: float) -> None:
        curve.append((step, value))
        each(step, value)

    runs: list[Run] = []

    def resume(run: Run) -> int:
        runs.append(run)
        return original(run)

    with pytest.MonkeyPatch.context() as patch:
        original = Run.resume
        patch.setattr(Run, "resume", resume)
        patch.setattr(checkpoint, "SECONDS", 0)
        outcome = task.run(config, report, "cpu", folder)
    return Ended(outcome, curve, [part.state_dict() for part in runs[0]._parts])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
