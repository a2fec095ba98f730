"""How large a task is run, by which protocol, and what of it a study can vary."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from robustlr.errors import UserError
from robustlr.schedule import ScheduleName, lr_factor
from robustlr.space import Value

CONDITIONS = ("warmup", "batch_size", "schedule")
"""The factors that a study of any supervised task can compare without tuning them."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a task is run, and by which protocol: all of it plain data.

    Fields that a task names in its ``conditions``, and everything in ``options``, can be conditions
    of a study.

    Attributes:
        batch_size: examples a step.
        accumulated: in how many pieces, one after another, a step's gradient is computed. For
            losses that are a mean over the examples alone: pieces weigh by how many they have.
        steps: optimizer steps; given ``epochs`` instead, they follow from the size of the data.
        epochs: passes over the training data.
        schedule: the learning rate over the steps; see ``schedule.py``.
        warmup: the share of the steps with linear warmup. The condition ``warmup = true`` means the
            scale's own share and ``false`` means none.
        milestones: where a step schedule multiplies by ``factor``, as shares of the steps.
        factor: what a step schedule multiplies by.
        evaluations: how often the tuning metric is measured, the end included.
        data: the data set, by its name in ``tasks/data``.
        augmentation: how training examples are changed, by names in ``tasks/data``.
        label_smoothing: the share of a target spread over all classes.
        gradient_clip: the norm over all parameters that gradients are scaled down to; 0: none.
        gain_penalty: the coefficient of the pull of normalisation gains toward one.
        options: what the task's model and data are built with, by names of their arguments. Those
            that are one number, text, or true or false can be conditions.
        part: the part of the data that the tuning metric is measured on.
        metric: the scale's own metric, where it has another than its task.
        worst: the scale's own worst value, likewise.
    """

    batch_size: int
    accumulated: int = 1
    steps: int = 0
    epochs: int = 0
    schedule: ScheduleName = "constant"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    evaluations: int = 10
    data: str = ""
    augmentation: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    gradient_clip: float = 0.0
    gain_penalty: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    part: Literal["validation", "train"] = "validation"
    metric: str = ""
    worst: float | None = None

    def sized(self, steps_an_epoch: float) -> "Scale":
        """Return the scale with its number of steps, where it has a number of epochs instead."""
        if not self.epochs:
            return self
        return replace(self, steps=max(1, round(self.epochs * steps_an_epoch)))

    def lr_factor(self, step: int) -> float:
        """Return the factor on the learning rate at ``step`` (0-based) of a sized scale."""
        return lr_factor(
            step,
            steps=self.steps,
            warmup_steps=round(self.warmup * self.steps),
            schedule=self.schedule,
            milestones=self.milestones,
            factor=self.factor,
            epochs=self.epochs,
        )


def condition(scale: Scale, name: str, value: Value) -> Any:
    """Return the value of a scale's field under a condition, checked."""
    if name == "warmup" and isinstance(value, bool):
        if value and scale.warmup == 0:
            raise UserError(
                "conditions.warmup = true, but the task's scale has no warmup; give a share"
            )
        return scale.warmup if value else 0.0
    number = None if isinstance(value, bool | str) else float(value)
    if name in ("warmup", "label_smoothing") and number is not None and 0 <= number < 1:
        return number
    if name == "gain_penalty" and number is not None and 0 <= number < math.inf:
        return number
    schedules = ScheduleName.__args__  # type: ignore[attr-defined]
    if name == "schedule" and value in schedules:
        return value
    if name == "batch_size" and type(value) is int and value > 0:
        return value
    allowed = {
        "warmup": "true, false, or a share of the steps below 1",
        "schedule": ", ".join(schedules),
        "batch_size": "a positive integer",
        "label_smoothing": "a share below 1",
    }
    takes = allowed.get(name, "a number that is not negative")
    raise UserError(f"conditions.{name} = {json.dumps(value)}: it takes {takes}")


def option(name: str, value: Value, usual: Any) -> Value:
    """Return the value of a model's option under a condition, if it has the option's type."""
    if isinstance(usual, float) and type(value) is int:
        return float(value)
    if type(value) is not type(usual):
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        takes = f"it takes {kinds[type(usual)]}" if type(usual) in kinds else "it cannot be varied"
        raise UserError(f"conditions.{name} = {json.dumps(value)}: {takes}")
    return value
