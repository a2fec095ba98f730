"""What a task file defines, and what one training run of it is given and gives back.

A file in ``tasks/`` holds ``Task`` values at module level and imports torch inside its functions,
so that listing tasks is instant. A task of your own is a ``FunctionTask`` in any importable module,
named ``package.module:object`` in a study file.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from robustlr.errors import UserError, unknown
from robustlr.schedule import ScheduleName
from robustlr.space import Value

if TYPE_CHECKING:
    import torch

Report = Callable[[int, float], None]
"""Called as ``report(step, value)`` with the tuning metric during training."""


CONDITIONS = ("warmup", "batch_size", "schedule")
"""The factors that a study can compare without tuning them."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a task is run; the fields named in ``CONDITIONS`` can be conditions of a study.

    ``warmup`` is the share of the steps with linear warmup; the condition ``warmup = true`` means
    the scale's own share and ``false`` means none.
    """

    steps: int
    batch_size: int
    schedule: ScheduleName = "constant"
    warmup: float = 0.0
    evaluations: int = 10

    @property
    def warmup_steps(self) -> int:
        """The number of steps with a rising learning rate."""
        return round(self.warmup * self.steps)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One trial: everything that decides its result. Names are those of the study file."""

    task: str
    optimizer: str
    hyperparameters: Mapping[str, Value]
    seed: int
    scale: str = "small"
    conditions: Mapping[str, Value] = field(default_factory=dict)

    def build_optimizer(self, model: "torch.nn.Module") -> "torch.optim.Optimizer":
        """Return the trial's optimizer for ``model``."""
        from robustlr.registry import load_optimizer

        return load_optimizer(self.optimizer).build(model, self.hyperparameters)


class Seeds(NamedTuple):
    """Separate seeds for what chance decides, so that equal trial seeds share each of them."""

    initialisation: int
    order: int
    noise: int

    @classmethod
    def of(cls, seed: int) -> "Seeds":
        """Return the three seeds of a trial's ``seed``; ``noise`` drives augmentation and dropout."""
        from numpy.random import SeedSequence

        return cls(*(int(word) for word in SeedSequence(seed).generate_state(3)))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training run gives back; ``value`` is final, on validation data, never NaN."""

    value: float
    diverged: bool = False
    initial: float | None = None
    test_value: float | None = None
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A training problem with a metric.

    ``worst`` is what a diverged run is worth: the value of a model that learnt nothing.
    ``conditions`` are the factors of ``CONDITIONS`` that the task honours.
    """

    name: str
    summary: str
    metric: str
    direction: Literal["minimize", "maximize"] = "minimize"
    worst: float
    scales: Mapping[str, Scale]
    conditions: tuple[str, ...] = CONDITIONS

    @abstractmethod
    def run(self, config: Config, report: Report, device: str = "cpu") -> Outcome:
        """Train once and return the outcome."""

    def scale_of(self, config: Config) -> Scale:
        """Return the trial's scale with its conditions applied.

        Raises:
            UserError: the task has no such scale or condition, or a value has the wrong type.
        """
        if config.scale not in self.scales:
            raise unknown(f"scale of {self.name}", config.scale, self.scales)
        scale = self.scales[config.scale]
        for name, value in config.conditions.items():
            if name not in self.conditions:
                raise unknown(f"condition of {self.name}", name, self.conditions)
            scale = replace(scale, **{name: _condition(scale, name, value)})
        return scale

    def capped(self, value: float) -> float:
        """Return ``value``, or ``worst`` if it is worse than that or not a number."""
        if not math.isfinite(value):
            return self.worst
        return min(value, self.worst) if self.direction == "minimize" else max(value, self.worst)

    def diverged(self, **known: Any) -> Outcome:
        """Return the outcome of a run that diverged: the worst value."""
        return Outcome(value=self.worst, test_value=self.worst, diverged=True, **known)

    def outcome(self, result: object) -> Outcome:
        """Return what a run gave back as an outcome of plain, finite numbers.

        Raises:
            TypeError: the result is neither a number nor an ``Outcome``.
        """
        if not isinstance(result, Outcome):
            try:
                result = Outcome(value=float(result))  # type: ignore[arg-type]
            except (TypeError, ValueError):
                kind = type(result).__name__
                raise TypeError(f"a task returns a number or an Outcome, not {kind}") from None
        steps = None if result.steps is None else int(result.steps)
        initial = None if result.initial is None else float(result.initial)
        if result.diverged or not math.isfinite(result.value):
            return self.diverged(initial=initial, steps=steps)
        test = None if result.test_value is None else self.capped(float(result.test_value))
        value = self.capped(float(result.value))
        return Outcome(value=value, initial=initial, test_value=test, steps=steps)


def _condition(scale: Scale, name: str, value: Value) -> Any:
    """Return the value of a scale's field under a condition, checked."""
    if name == "warmup" and isinstance(value, bool):
        if value and scale.warmup == 0:
            raise UserError(
                "conditions.warmup = true, but the task's scale has no warmup; give a share"
            )
        return scale.warmup if value else 0.0
    if name == "warmup" and isinstance(value, int | float) and 0 <= value < 1:
        return float(value)
    if name == "schedule" and value in ScheduleName.__args__:  # type: ignore[attr-defined]
        return value
    if name not in ("warmup", "schedule") and type(value) is int and value > 0:
        return value
    allowed = {
        "warmup": "true, false, or a share of the steps below 1",
        "schedule": ", ".join(ScheduleName.__args__),  # type: ignore[attr-defined]
    }
    raise UserError(
        f"conditions.{name} = {json.dumps(value)}: it takes {allowed.get(name, 'a positive integer')}"
    )


@dataclass(frozen=True, kw_only=True)
class FunctionTask(Task):
    """A task that is your own training function.

    ``function(config, report)`` trains once and returns the final validation metric, or an
    ``Outcome`` to say more; a result that is not finite is a diverged run. A study can vary those
    ``conditions`` that the function reads from ``config.conditions`` and that are named here.
    """

    function: Callable[[Config, Report], float | Outcome]
    scales: Mapping[str, Scale] = field(
        default_factory=lambda: {"small": Scale(steps=1, batch_size=1, warmup=0.1)}
    )
    conditions: tuple[str, ...] = ()

    def run(self, config: Config, report: Report, device: str = "cpu") -> Outcome:
        """Call the function; it chooses its own device."""
        return self.outcome(self.function(config, report))


@dataclass(frozen=True, kw_only=True)
class SupervisedTask(Task):
    """A model, data and a loss, trained by the one loop in ``training.py``.

    ``model()`` returns a model with fresh weights drawn from torch's global generator. ``data(device)``
    returns the three splits, resident on the device. ``loss(model, batch)`` is a scalar.
    ``evaluate(model, split)`` returns the metric on a whole split. ``augment(batch, generator)``
    changes a training batch. A run has diverged if its training loss is not finite at any step or
    ends above ``loss_bound``.
    """

    model: Callable[[], "torch.nn.Module"]
    data: Callable[[str], "Splits"]
    loss: Callable[["torch.nn.Module", "Batch"], "torch.Tensor"]
    evaluate: Callable[["torch.nn.Module", "Batch"], float]
    augment: Callable[["Batch", "torch.Generator"], "Batch"] | None = None
    loss_bound: float

    def run(self, config: Config, report: Report, device: str = "cpu") -> Outcome:
        """Train with the one loop."""
        from robustlr.training import train

        return train(self, config, report, device)


class Batch(NamedTuple):
    """Inputs and targets with the examples along dimension 0."""

    inputs: "torch.Tensor"
    targets: "torch.Tensor"

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: "torch.Tensor") -> "Batch":
        """Return the examples at ``index``."""
        return Batch(self.inputs[index], self.targets[index])


class Splits(NamedTuple):
    """The three parts of a data set; ``test`` is never used for tuning."""

    train: Batch
    validation: Batch
    test: Batch
