"""What a task file defines, and what one training run of it is given and gives back.

A file in ``tasks/`` holds ``Task`` values at module level and imports torch inside its functions,
so that listing tasks is instant. A task of your own is a ``FunctionTask`` in any importable module,
named ``package.module:object`` in a study file.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeVar,
    runtime_checkable,
)

from robustlr.errors import UserError, unknown
from robustlr.scale import CONDITIONS, Scale, condition, option
from robustlr.signals import StopRequested, stopping
from robustlr.space import Value

if TYPE_CHECKING:
    import torch

Built = TypeVar("Built")
Report = Callable[[int, float], None]
"""Called as ``report(step, value)`` with the tuning metric during training."""


CHECKPOINT = "checkpoint.pt"
"""The file in a trial's folder from which a run that was cut short goes on."""

COLUMNS = (
    "study",
    "task",
    "optimizer",
    "trial",
    "role",
    "seed",
    "value",
    "metric",
    "direction",
    "worst",
    "initial",
    "diverged",
    "test_value",
    "steps",
    "seconds",
    "conditions",
)
"""The tidy table's columns beside hyperparameters and conditions; see ``tidy.py``.

``role`` is ``design`` for a point decided in advance, ``adaptive`` for one that a sampler chose and
``default`` for the out-of-the-box setting, all on the study's seeds; ``confirm`` for the setting that
these chose and ``confirm-default`` for the out-of-the-box setting beside it, on fresh seeds. Where the
chosen setting is the out-of-the-box one, both have trials.
"""

CURVE = "curve"
"""A further column, only where it is asked for: the run's tuning metric as it trained, as text."""

CURVE = "curve"
"""A further column, only where it is asked for: the run's tuning metric as it trained, as text."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One trial: everything that decides its result. Names are those of the study file."""

    task: str
    optimizer: str
    hyperparameters: Mapping[str, Value]
    seed: int
    scale: str = "small"
    conditions: Mapping[str, Value] = field(default_factory=dict)

    def build_optimizer(
        self, model: "torch.nn.Module", gradient_clip: float = 0.0
    ) -> "torch.optim.Optimizer":
        """Return the trial's optimizer for ``model``.

        It clips gradients to a norm of ``gradient_clip`` unless the hyperparameters say another.
        """
        from robustlr.registry import load_optimizer

        hyperparameters = {"gradient_clip": gradient_clip, **self.hyperparameters}
        return load_optimizer(self.optimizer).build(model, hyperparameters)


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
    ``conditions`` are the fields of its scales that a study can vary without tuning them, beside
    those in ``options`` that are not ``fixed``: they decide what the metric means.
    ``data_name(scale)`` is the scale's data, with a version where machines may have different ones.
    """

    name: str
    summary: str
    metric: str
    direction: Literal["minimize", "maximize"] = "minimize"
    worst: float
    scales: Mapping[str, Scale]
    conditions: tuple[str, ...] = CONDITIONS
    fixed: tuple[str, ...] = ()
    data_name: Callable[[Scale], str] = attrgetter("data")

    @property
    def fuses(self) -> bool:
        """Whether trials can be trained as one program: see ``fused.py``."""
        return False

    @abstractmethod
    def run(
        self, config: Config, report: Report, device: str = "cpu", folder: Path | None = None
    ) -> Outcome:
        """Train once and return the outcome.

        ``folder`` is the trial's own: a checkpoint from which a later call goes on, and pictures.
        Without it nothing is kept.
        """

    def at(self, scale: str) -> Self:
        """Return the task with that scale's own metric and worst value, where it has them.

        Raises:
            UserError: the task has no such scale.
        """
        if scale not in self.scales:
            raise unknown(f"scale of {self.name}", scale, self.scales)
        own = self.scales[scale]
        worst = self.worst if own.worst is None else own.worst
        return replace(self, metric=own.metric or self.metric, worst=worst)

    @property
    def condition_names(self) -> tuple[str, ...]:
        """What a study can vary without tuning it."""
        options = dict.fromkeys(name for scale in self.scales.values() for name in scale.options)
        return (*self.conditions, *(name for name in options if name not in self.fixed))

    def scale_of(self, config: Config) -> Scale:
        """Return the trial's scale with its conditions applied.

        Raises:
            UserError: the task has no such scale or condition, or a value has the wrong type.
        """
        self.at(config.scale)
        scale = self.scales[config.scale]
        for name, value in config.conditions.items():
            if name in scale.options and name not in self.fixed:
                options = {**scale.options, name: option(name, value, scale.options[name])}
                scale = replace(scale, options=options)
            elif name in self.conditions:
                scale = replace(scale, **{name: condition(scale, name, value)})
            else:
                raise unknown(f"condition of {self.name}", name, self.condition_names)
        return scale

    def check(self, scale: Scale) -> None:  # noqa: B027 — most tasks have nothing to add
        """Refuse what only the task knows to be wrong in a scale, before any trial runs.

        Raises:
            UserError: an option has a value that the task cannot be built with.
        """

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

    def run(
        self, config: Config, report: Report, device: str = "cpu", folder: Path | None = None
    ) -> Outcome:
        """Call the function; it chooses its own device, and keeps nothing in ``folder``.

        It cannot be taken up again, so a request to stop ends it where it next reports.
        """

        def report_or_stop(step: int, value: float) -> None:
            report(step, value)
            if stopping():
                raise StopRequested

        return self.outcome(self.function(config, report_or_stop))


@dataclass(frozen=True, kw_only=True)
class SupervisedTask(Task):
    """A model, data and a loss, trained by the one loop in ``training.py``.

    ``model(scale)`` returns a model with fresh weights drawn from torch's global generator.
    ``data(scale, device)`` returns the three splits. ``loss(model, batch, scale)`` is a scalar.
    ``evaluate(model, part, scale)`` returns the metric on a whole part. ``augment(batch, scale,
    generator)`` changes a training batch. ``samples(model, part)`` is a text that shows what the
    trained model does on some of the test part. A run has diverged if its training loss is not
    finite at any step or ends above ``loss_bound(scale)``.
    """

    model: Callable[[Scale], "torch.nn.Module"]
    data: Callable[[Scale, str], "Splits[Any]"]
    loss: Callable[["torch.nn.Module", "Batch", Scale], "torch.Tensor"]
    evaluate: Callable[["torch.nn.Module", Any, Scale], float]
    augment: Callable[["Batch", Scale, "torch.Generator"], "Batch"] | None = None
    samples: Callable[["torch.nn.Module", Any], str] | None = None
    loss_bound: Callable[[Scale], float]

    @property
    def fuses(self) -> bool:
        """Whether trials can be trained as one program, if a scale's model and data allow it."""
        return True

    def run(
        self, config: Config, report: Report, device: str = "cpu", folder: Path | None = None
    ) -> Outcome:
        """Train with the one loop."""
        from robustlr.training import train

        return train(self, config, report, device, folder)

    def check(self, scale: Scale) -> None:
        """Build the model once, if a condition changed how it is built or what pulls its gains.

        Raises:
            UserError: it cannot be built so, or has no gains to pull.
        """
        changed = all(scale.options != own.options for own in self.scales.values())
        if changed or scale.gain_penalty:
            model = build_checked(self.model, scale)
            self._check_gains(model, scale)

    def _check_gains(self, model: "torch.nn.Module", scale: Scale) -> None:
        from robustlr.optim.layers import normalization_gains

        if scale.gain_penalty and not normalization_gains(model):
            raise UserError(
                f"conditions.gain_penalty = {scale.gain_penalty:g}: the model of {self.name} has no "
                "normalisation with gains"
            )


def build_checked(build: Callable[[Scale], Built], scale: Scale) -> Built:
    """Return what ``build`` makes of a scale.

    Raises:
        UserError: it cannot be built with the scale's options.
    """
    try:
        return build(scale)
    except UserError:
        raise
    except Exception as error:  # whatever a network raises of sizes that do not fit
        options = ", ".join(f"{name} = {value}" for name, value in scale.options.items())
        raise UserError(f"no model can be built with {options}: {error}") from error


class Part(Protocol):
    """One part of a data set, resident on a device or read as it is needed."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def take(self, index: "torch.Tensor", seed: int | None = None) -> "Batch":
        """Return the examples at ``index``; ``seed`` draws what chance decides as they are read."""


class LabelledPart(Part, Protocol):
    """A part that knows all its targets."""

    @property
    def targets(self) -> "torch.Tensor":
        """All targets, with the examples along dimension 0."""


@runtime_checkable
class GroupedPart(Part, Protocol):
    """A part that says which of its examples make a batch, such as sentences of like length."""

    def groups(self, batch_size: int, seed: int) -> "list[torch.Tensor]":
        """Return the examples of each batch of an epoch; ``seed`` draws them, but not their number."""


@runtime_checkable
class StackedPart(Part, Protocol):
    """A part that can put batches of several trials side by side although they differ in size."""

    def stacked(self, batches: "Sequence[Batch]") -> "Batch":
        """Return the batches stacked and padded so that no trial's loss changes."""


AnyPart = TypeVar("AnyPart", bound=Part, covariant=True)


class Batch(NamedTuple):
    """Inputs and targets with the examples along dimension 0; a part that is resident as a whole."""

    inputs: "torch.Tensor"
    targets: "torch.Tensor"

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: "torch.Tensor", seed: int | None = None) -> "Batch":
        """Return the examples at ``index``."""
        return Batch(self.inputs[index], self.targets[index])


class Splits(NamedTuple, Generic[AnyPart]):
    """The three parts of a data set; ``test`` is never used for tuning."""

    train: AnyPart
    validation: AnyPart
    test: AnyPart
