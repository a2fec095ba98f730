"""The stratified bootstrap over seeds, which keeps the tasks and the pairing of optimizers."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from robustlr.analysis._cells import Floats
from robustlr.analysis._intervals import LEVEL

REPEATS = 2000


def resampled(tables: Sequence[pd.DataFrame], repeats: int = REPEATS) -> list[Floats]:
    """Return, for each task's table of seeds × optimizers, resamples × seeds × optimizers.

    All optimizers get the same seeds. Of n seeds n - 1 are drawn, with replacement, so that the
    variance of a mean is as large as it is, not (n - 1)/n of it.
    """
    generator = np.random.default_rng(0)
    drawn = []
    for table in tables:
        places = generator.integers(len(table), size=(repeats, max(1, len(table) - 1)))
        drawn.append(table.to_numpy()[places])
    return drawn


def interval(
    tables: Sequence[pd.DataFrame], statistic: Callable[[list[Floats]], Floats]
) -> tuple[Floats, Floats, Floats]:
    """Return a statistic of each optimizer, and the bounds of its 95 % interval.

    ``statistic`` maps arrays of resamples × seeds × optimizers, one a task, to resamples ×
    optimizers. The interval is the bootstrap's percentiles, stretched around the estimate by
    Student's quantile over the normal one, as the variance is estimated from few seeds. Without two
    seeds on some task there is none: the bounds are NaN.
    """
    estimate = statistic([table.to_numpy()[None] for table in tables])[0]
    freedom = sum(len(table) - 1 for table in tables)
    if freedom == 0:
        return estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
    repeats = statistic(resampled(tables))
    low, high = np.quantile(repeats, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    stretch = stats.t.ppf((1 + LEVEL) / 2, freedom) / stats.norm.ppf((1 + LEVEL) / 2)
    return estimate, estimate - stretch * (estimate - low), estimate + stretch * (high - estimate)
