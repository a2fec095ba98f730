"""Training runs with all that they leave, for tests that compare runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import pytest
import torch

from robustlr import checkpoint
from robustlr.checkpoint import Run
from robustlr.scale import Scale
from robustlr.task import Batch, Config, Outcome, Splits, SupervisedTask, Task
from robustlr.tasks.data.pairs import PairPart
from robustlr.tasks.reinforcement import PPOTask

AnyTask = TypeVar("AnyTask", bound=Task)

EXAMPLES_LEFT, PAIRS_LEFT = 256, 50
"""As many examples and sentence pairs as a few steps and looks at them need."""


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


def with_little_data(task: AnyTask) -> AnyTask:
    """Return the task with few of its examples: to look at all takes longer than a few steps do."""
    if isinstance(task, PPOTask):
        return cast(AnyTask, _with_few_environments(task))
    if not isinstance(task, SupervisedTask):
        return task
    data = task.data

    def load(scale: Scale, device: str) -> Splits[Any]:
        return Splits(*map(_fewer, data(scale, device)))

    return replace(task, data=load)


def _with_few_environments(task: PPOTask) -> PPOTask:
    """Return the task with rollouts of 256 steps, and one game a test environment."""
    few = {"environments": 2, "n_steps": 128, "test_episodes": 2}
    scale = task.scales["small"]
    return replace(task, scales={"small": replace(scale, options={**scale.options, **few})})


def _fewer(part: Any) -> Any:
    if isinstance(part, Batch):
        return part.take(torch.arange(min(len(part), EXAMPLES_LEFT)))
    if not isinstance(part, PairPart):
        return part
    every = max(1, len(part) // PAIRS_LEFT)
    return PairPart(
        part.sources[::every],
        part.references[::every],
        part.tokenizer,
        longest=part.longest,
        by_tokens=part.by_tokens,
        device="cpu",
    )
