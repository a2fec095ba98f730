"""A cell's runs along one hyperparameter, the others tuned, for many resamplings of the seeds at once.

A resampling says how often each seed counts, as a row of ``times`` ``[resamplings, seeds]``; the first
row of ``leave_one_out`` is the sample itself.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from robustlr.analysis._cells import hyperparameters
from robustlr.analysis._intervals import LEVEL, mean_interval

Numbers = NDArray[np.float64]
MOST_SINGLE = 12
"""With more points than this, each with a value of its own, a design counts as random."""


class Runs(NamedTuple):
    """A cell's runs, sorted by one hyperparameter; NaN where a point lacks a seed.

    Attributes:
        at: each point's value of the hyperparameter, ``[points]``, ascending.
        losses: ``[points, seeds]``; diverged runs have the worst loss.
        diverged: ``[points, seeds]``, 1 or 0, or between for repeated runs.
        worst: the worst loss.
        seeds: the seeds, ``[seeds]``.
    """

    at: Numbers
    losses: Numbers
    diverged: Numbers
    worst: float
    seeds: NDArray[Any]

    @property
    def starts(self) -> NDArray[np.intp]:
        """The first point of each value, ``[values]``."""
        return np.flatnonzero(np.diff(self.at, prepend=-np.inf))

    @property
    def values(self) -> Numbers:
        """The hyperparameter's distinct values, ``[values]``, ascending."""
        return self.at[self.starts]


def runs_of(cell: pd.DataFrame, name: str = "lr", *, half_decades: bool = True) -> Runs:
    """Return the runs of one of ``cells``' cells that have the hyperparameter ``name``.

    A seed's repeated runs of a point are averaged. Where every point has a value of its own and other
    hyperparameters vary too, as in random and Sobol designs, a value is the middle of its half decade,
    if ``half_decades``: only so are there points to choose from.
    """
    kept = cell[cell[name].notna()]
    names = [name, *(n for n in hyperparameters(kept) if n != name)]
    points = kept.groupby(names, sort=True, dropna=False).ngroup().to_numpy()
    seeds, columns = np.unique(kept["seed"].to_numpy(), return_inverse=True)
    shape = (int(points.max(initial=-1)) + 1, len(seeds))
    at = np.empty(shape[0])
    at[points] = kept[name].to_numpy(float)
    lost = ~np.isfinite(kept["value"].to_numpy(float)) | kept["diverged"].to_numpy(bool)
    times, losses, diverged = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for table, numbers in ((times, 1.0), (losses, kept["loss"].to_numpy(float)), (diverged, lost)):
        np.add.at(table, (points, columns), numbers)
    with np.errstate(invalid="ignore"):  # a point that lacks a seed is NaN
        losses, diverged = losses / times, diverged / times
    others = any(kept[other].nunique() > 1 for other in names[1:])
    if half_decades and others and len(at) > MOST_SINGLE and len(np.unique(at)) == len(at):
        at = _half_decades(name, at)
    return Runs(at, losses, diverged, float(kept["worst_loss"].iloc[0]), seeds)


def position(name: str, values: Numbers) -> Numbers:
    """Return where values lie on the hyperparameter's scale, in decades.

    Momentum and the betas count by what they leave, ``1 - value``: from 0.9 to 0.99 is one decade. A
    zero of any other lies infinitely far below: it switches something off.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log10(1 - values) if is_memory(name) else np.log10(values)


def from_position(name: str, positions: Numbers) -> Numbers:
    """Return the values that lie at positions; see ``position``."""
    return np.asarray(1 - 10**-positions if is_memory(name) else 10**positions)


def cell_weights(name: str, values: Numbers) -> Numbers:
    """Return how much each value counts in a mean over ascending values: the weights sum to 1.

    It is the width of the value's cell, which ends halfway to its neighbours and on the outside as far
    away as inside: however densely a part of the range was searched, it counts by its decades. A value
    without a place on the scale, such as a decay of zero, counts as the others do on average.
    """
    at = position(name, values)
    placed = np.isfinite(at)
    widths = np.ones(len(at))
    if placed.sum() > 1:
        gaps = np.diff(at[placed])
        widths[placed] = (np.append(gaps, gaps[-1]) + np.append(gaps[0], gaps)) / 2
        widths[~placed] = widths[placed].mean()
    return np.asarray(widths / widths.sum())


def is_memory(name: str) -> bool:
    """Return whether a hyperparameter is the share of an average that is kept each step."""
    return name == "momentum" or name.startswith("beta")


def swept(cell: pd.DataFrame) -> list[str]:
    """Return the numeric hyperparameters with two values or more, the learning rate first."""
    numeric = [
        name
        for name in hyperparameters(cell)
        if pd.api.types.is_numeric_dtype(cell[name])
        and not pd.api.types.is_bool_dtype(cell[name])
        and cell[name].nunique() > 1
        and cell[name].min() >= 0
    ]
    return sorted(numeric, key=lambda name: name != "lr")


def common_ranges(
    sweeps: Iterable[tuple[Mapping[str, Any], Runs]],
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return, for each task and hyperparameter, the range that all its optimizers' designs contain.

    A sweep is a cell's key with its ``hyperparameter``, and its runs.
    """
    ends = pd.DataFrame(
        [
            (key["task"], key["hyperparameter"], key["optimizer"], runs.values[0], runs.values[-1])
            for key, runs in sweeps
        ],
        columns=["task", "hyperparameter", "optimizer", "low", "high"],
    )
    by_optimizer = ends.groupby(["task", "hyperparameter", "optimizer"])
    lows, highs = by_optimizer["low"].min(), by_optimizer["high"].max()
    by = ["task", "hyperparameter"]
    low, high = lows.groupby(level=by).max(), highs.groupby(level=by).min()
    return {key: (low[key], high[key]) for key in low.index}


def _half_decades(name: str, values: Numbers) -> Numbers:
    """Return the middle of each value's half decade, to three digits; zeros stay zeros."""
    if is_memory(name):
        return np.round(1 - _half_decades("", 1 - values), 6)
    with np.errstate(divide="ignore"):
        middles = 10 ** (np.floor(2 * np.log10(values)) / 2 + 0.25)
    return np.array([float(f"{middle:.3g}") for middle in middles])


def leave_one_out(seeds: int) -> Numbers:
    """Return ``times`` for the sample and, with two seeds or more, for it without each seed."""
    return np.vstack([np.ones((1, seeds)), 1 - np.eye(seeds) if seeds > 1 else np.ones((0, seeds))])


def means(values: Numbers, times: Numbers, missing: float) -> Numbers:
    """Return the means over seeds, ``[points, resamplings]``; ``missing`` where no seed ran."""
    there = (~np.isnan(values)) @ times.T
    totals = np.nan_to_num(values) @ times.T
    return np.divide(totals, there, out=np.full_like(totals, missing), where=there > 0)


def curve(runs: Runs, times: Numbers) -> Numbers:
    """Return the mean loss at each value, the other hyperparameters at their best of the points.

    The shape is ``[values, resamplings]``; infinite where no seed of a resampling ran.
    """
    return np.minimum.reduceat(means(runs.losses, times, np.inf), runs.starts)


class Estimate(NamedTuple):
    """A statistic of a cell's sample and its jackknife over seeds.

    Attributes:
        value: the statistic.
        pseudo: Tukey's pseudo-value of each seed; empty with a single seed.
    """

    value: float
    pseudo: "pd.Series[float]"

    def interval(self, lowest: float = -np.inf, highest: float = np.inf) -> tuple[float, ...]:
        """Return the value and Student's interval, both within what is possible."""
        half = float(half_width(self.pseudo))
        low, high = self.value - half, self.value + half
        return tuple(float(np.clip(number, lowest, highest)) for number in (self.value, low, high))


def estimate(runs: Runs, statistic: Callable[[Numbers], Numbers]) -> Estimate:
    """Return the estimate of a statistic that maps ``times`` to its values, ``[resamplings]``."""
    values = statistic(leave_one_out(len(runs.seeds)))
    pseudo = _pseudo(values)
    return Estimate(float(values[0]), pd.Series(pseudo, index=runs.seeds[: len(pseudo)]))


def jackknifed(values: Numbers) -> tuple[Numbers, Numbers]:
    """Return the statistics of the sample and half of their intervals.

    ``values`` are those of ``leave_one_out``'s resamplings, ``[statistics, resamplings]``.
    """
    pseudo = np.array([_pseudo(row) for row in values])
    _, half = student(pseudo)
    return values[:, 0], np.where(np.isnan(pseudo).any(axis=1), np.nan, half)


def _pseudo(values: Numbers) -> Numbers:
    """Return Tukey's pseudo-values; none with a single seed."""
    count = len(values) - 1
    return np.asarray(count * values[0] - (count - 1) * values[1:])


def half_width(pseudo: "pd.Series[float]") -> float:
    """Return half of Student's interval around the mean of pseudo-values; NaN with fewer than two."""
    _, low, high = mean_interval(pseudo) if pseudo.notna().all() else (np.nan,) * 3
    return (high - low) / 2


def student(values: Numbers) -> tuple[Numbers, Numbers]:
    """Return each row's mean and half of Student's interval around it; NaN are not there.

    A row with a single value has a half of NaN, and so has one without any.
    """
    rows, columns = np.nonzero(~np.isnan(values))
    return student_by(pd.Series(rows), pd.Series(values[rows, columns]), len(values))


def student_by(
    groups: "pd.Series[int]", values: "pd.Series[float]", many: int = 0
) -> tuple[Numbers, Numbers]:
    """Return the mean of each group, numbered from 0, and half of Student's interval around it.

    There are at least ``many`` groups; one without values has a mean of NaN.
    """
    group, value = groups.to_numpy(), values.to_numpy(float)
    count = np.bincount(group, minlength=many)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(group, value, many) / count
        squares = np.bincount(group, (value - mean[group]) ** 2, many)
        half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * np.sqrt(squares / (count - 1) / count)
    return mean, np.where(count > 1, half, np.nan)
