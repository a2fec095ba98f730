"""Learning-rate schedules as a factor on the base learning rate."""

import math
from collections.abc import Sequence
from typing import Literal

ScheduleName = Literal[
    "constant", "linear", "cosine", "cosine-squared", "step", "triangle", "one-cycle"
]
ONE_CYCLE_START, ONE_CYCLE_END = 1e-2, 1e-6
"""Factors at both ends of a cycle: Rotational Equilibrium, Table 4 (Wikitext)."""


def lr_factor(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    schedule: ScheduleName,
    milestones: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
    epochs: int = 0,
) -> float:
    """Return the factor on the learning rate at ``step`` (0-based) of ``steps``.

    Linear warmup ends at factor 1 on step ``warmup_steps - 1``; ``linear``, ``cosine`` and its
    square span the steps after it and end near 0. ``step`` multiplies by ``factor`` at each of
    ``milestones``, shares of all steps. ``triangle`` rises to 1 in the middle and falls to 0 by
    equal amounts, from epoch to epoch where there are ``epochs`` (Learning by Turning's translation).
    ``one-cycle`` is torch's ``OneCycleLR``: half a cosine up from 0.01 in the warmup, another down to
    1e-6.
    """
    if schedule == "one-cycle":
        return _one_cycle(step, steps, warmup_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "step":
        passed = sum(step >= round(milestone * steps) for milestone in milestones)
        return float(factor**passed)
    if schedule == "triangle":
        periods = epochs or steps
        position = (step * periods // steps + 1) / periods
        return 2 * min(position, 1 - position)
    position = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "linear":
        return 1 - position
    if schedule == "constant":
        return 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * position))
    return cosine if schedule == "cosine" else cosine**2


def _one_cycle(step: int, steps: int, warmup_steps: int) -> float:
    """Return the factor of a cycle whose highest step is the last one of the warmup."""
    peak = warmup_steps - 1
    if step < peak:
        low, position = ONE_CYCLE_START, step / peak
    else:
        low, position = ONE_CYCLE_END, 1 - (step - peak) / max(1, steps - 1 - peak)
    return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * position))
