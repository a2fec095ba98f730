"""Learning-rate schedules as a factor on the base learning rate."""

import math
from collections.abc import Sequence
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine", "cosine-squared", "step"]


def lr_factor(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    schedule: ScheduleName,
    milestones: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
) -> float:
    """Return the factor on the learning rate at ``step`` (0-based) of ``steps``.

    Linear warmup ends at factor 1 on step ``warmup_steps - 1``; ``linear``, ``cosine`` and its
    square span the steps after it and end near 0. ``step`` multiplies by ``factor`` at each of
    ``milestones``, shares of all steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "step":
        passed = sum(step >= round(milestone * steps) for milestone in milestones)
        return float(factor**passed)
    position = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "linear":
        return 1 - position
    if schedule == "constant":
        return 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * position))
    return cosine if schedule == "cosine" else cosine**2
