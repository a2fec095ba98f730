"""Intervals at the 95 % level. With one seed there is none: the bounds are NaN."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


def mean_interval(values: pd.Series) -> tuple[float, float, float]:
    """Return the mean of independent values and Student's interval around it."""
    values = values.dropna()
    if len(values) == 0:
        return (float("nan"),) * 3
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = _quantile(len(values)) * float(values.sem())
    return mean, mean - half, mean + half


def jackknife(
    statistic: Callable[[pd.DataFrame], float], by_seed: pd.DataFrame
) -> tuple[float, float, float]:
    """Return a statistic of a points × seeds table and its interval over seeds.

    The seeds (columns) are left out one at a time; the pseudo-values give Student's interval
    (Tukey). It holds for smooth statistics; one that picks a best point is only roughly covered.
    """
    estimate = statistic(by_seed)
    count = by_seed.shape[1]
    if count < 2:
        return estimate, float("nan"), float("nan")
    without = np.array([statistic(by_seed.drop(columns=seed)) for seed in by_seed.columns])
    pseudo = count * estimate - (count - 1) * without
    half = _quantile(count) * float(pseudo.std(ddof=1)) / np.sqrt(count)
    return estimate, estimate - half, estimate + half


def share_interval(hits: float, total: float) -> tuple[float, float, float]:
    """Return the share of hits and Wilson's interval; of weighted draws both may be fractions."""
    if total == 0:
        return (float("nan"),) * 3
    share, squared = hits / total, float(stats.norm.ppf((1 + LEVEL) / 2)) ** 2 / total
    middle = (share + squared / 2) / (1 + squared)
    half = float(np.sqrt(squared * share * (1 - share) + squared**2 / 4)) / (1 + squared)
    return share, max(0.0, middle - half), min(1.0, middle + half)


def _quantile(count: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, count - 1))


def spanning_interval(*samples: pd.Series) -> tuple[float, float]:
    """Return the bounds that hold Student's interval of each sample.

    A setting judged on the seeds that chose it is flattered; judged on each seed when the others chose,
    it is at best as good as the best. What the best setting is worth lies between, where seeds cannot
    tell settings apart; where they can, the samples are the same.
    """
    bounds = np.array([mean_interval(sample)[1:] for sample in samples])
    return float(bounds[:, 0].min()), float(bounds[:, 1].max())
