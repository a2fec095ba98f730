"""Learning-rate schedules as a factor on the base learning rate."""

import math
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine", "step"]

STEP_MILESTONES = (0.5, 0.75)
STEP_FACTOR = 0.1


def lr_factor(step: int, *, steps: int, warmup_steps: int, schedule: ScheduleName) -> float:
    """Return the factor on the learning rate at ``step`` (0-based) of ``steps``.

    Linear warmup ends at factor 1 on step ``warmup_steps - 1``; the schedule spans the steps after
    it. ``linear`` and ``cosine`` end near 0, ``step`` multiplies by 0.1 at 1/2 and 3/4 of all steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "step":
        passed = sum(step >= milestone * steps for milestone in STEP_MILESTONES)
        return float(STEP_FACTOR**passed)
    position = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "linear":
        return 1 - position
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * position))
    return 1.0
