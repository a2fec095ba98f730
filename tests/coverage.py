"""How often an interval holds the truth, by simulation."""

from collections.abc import Callable

import numpy as np

Interval = tuple[float, float, float]
"""An estimate and its bounds."""


def coverage(
    interval: Callable[[np.random.Generator], Interval], truth: float, repeats: int = 2000
) -> float:
    """Return the share of simulated samples whose interval holds the truth.

    ``interval`` draws a sample and returns its estimate and bounds. With 2,000 repeats the share has a
    standard error of 0.5 % at 95 %.
    """
    generator = np.random.default_rng(0)
    bounds = np.array([interval(generator)[1:] for _ in range(repeats)])
    return float(np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])))
