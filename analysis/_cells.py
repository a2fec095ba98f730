"""The tidy table as estimators need it: losses, cells, and points × seeds."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from robustlr.scale import CONDITIONS
from robustlr.task import COLUMNS, CURVE

Floats = np.ndarray[Any, np.dtype[Any]]


def conditions(table: pd.DataFrame) -> list[str]:
    """Return the condition columns: those that ``conditions`` names, or the usual ones."""
    if "conditions" not in table:
        return [name for name in CONDITIONS if name in table]
    named = {name for text in table["conditions"].dropna().unique() for name in text.split()}
    return [name for name in table if name in named]


def hyperparameters(trials: pd.DataFrame) -> list[str]:
    """Return the hyperparameter columns, those without any value left out."""
    known = {*COLUMNS, CURVE, *conditions(trials), "loss", "worst_loss"}
    return [name for name in trials if name not in known and trials[name].notna().any()]


def point_names(cell: pd.DataFrame) -> list[str]:
    """Return the columns that tell one cell's points apart: its hyperparameters.

    Where there is none, it is the optimizer: the cell has one point.
    """
    return hyperparameters(cell) or ["optimizer"]


def with_losses(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials with ``loss`` and ``worst_loss``: lower is better, whatever the metric.

    A diverged run, and one that is worse than a model that learnt nothing, counts as the task's
    worst value. A perplexity's loss is its logarithm, in nats: of a vocabulary's size even a small
    share is more than there is to tell apart. Hyperparameters are rounded to six digits, so that one
    setting written in two ways is one setting.
    """
    worst = _loss(trials, "worst")
    loss = _loss(trials, "value").where(~trials["diverged"].astype(bool), worst)
    trials = trials.assign(loss=loss.fillna(worst).clip(upper=worst), worst_loss=worst)
    for name in hyperparameters(trials):
        if pd.api.types.is_numeric_dtype(trials[name]):
            rounded = {value: float(f"{value:.6g}") for value in trials[name].unique()}
            trials[name] = trials[name].map(rounded)
    return trials


def is_perplexity(metric: Any) -> bool:
    """Return whether a metric is told in nats when runs are compared."""
    return str(metric).endswith("perplexity")


def _loss(trials: pd.DataFrame, column: str) -> pd.Series:
    sign = trials["direction"].map({"minimize": 1.0, "maximize": -1.0}).astype(float)
    values = sign * trials[column].astype(float)
    if "metric" not in trials:
        return values
    in_nats = [metric for metric in trials["metric"].unique() if is_perplexity(metric)]
    return values.mask(trials["metric"].isin(in_nats), np.log(values.clip(lower=1)))


def in_unit(cell: pd.DataFrame, loss: float) -> float:
    """Return a loss of the cell, or the mean of some, in the unit of the task's metric.

    Of perplexities that is their geometric mean.
    """
    return float(in_units(cell, np.asarray(loss)))


def in_units(cell: pd.DataFrame, losses: Floats) -> Floats:
    """Return losses of the cell in the unit of the task's metric; see ``in_unit``."""
    if "metric" in cell and is_perplexity(cell["metric"].iloc[0]):
        return np.asarray(np.exp(losses))
    return -losses if cell["direction"].iloc[0] == "maximize" else losses


def cells(
    trials: pd.DataFrame, without: tuple[str, ...] = ()
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each cell's key (task, optimizer and conditions) and its trials, with losses."""
    keys = ["task", "optimizer", *(name for name in conditions(trials) if name not in without)]
    keys += [n for n in ("metric", "direction", "conditions") if n in trials]  # for tables to know
    for values, cell in with_losses(trials).groupby(keys, sort=False, dropna=False):
        yield dict(zip(keys, values, strict=True)), cell


def point_by_seed(trials: pd.DataFrame, column: str = "loss") -> pd.DataFrame:
    """Return one cell's values as a table with a row a point and a column a seed.

    A hyperparameter that a run does not have (NaN) is a value of its own.
    """
    by = [*point_names(trials), "seed"]
    means = trials.groupby(by, observed=True, dropna=False)[column].mean()
    return means.unstack("seed").dropna(how="all")


def tuned_by_seed(by_seed: pd.DataFrame) -> pd.Series:
    """Return each seed's value at the point that is best on the other seeds.

    ``by_seed`` is ``point_by_seed``'s table; a single seed chooses for itself.
    """
    return pd.Series(chosen_on_others(by_seed.to_numpy(float)), index=by_seed.columns)


def chosen_on_others(values: Floats) -> Floats:
    """Return each seed's value, of ``values`` [points, seeds], at the point best on the other seeds.

    NaN is a run that is missing, of which the result is one where the chosen point lacks the seed.
    """
    chosen = means_of_others(values).argmin(axis=0)
    return np.asarray(values[chosen, np.arange(values.shape[1])])


def means_of_others(values: Floats) -> Floats:
    """Return, for each point (first axis) and seed (last axis), the mean over the other seeds.

    It is infinite where no other seed has the point. A single seed stands for itself.
    """
    if values.shape[-1] == 1:
        return np.where(np.isnan(values), np.inf, values)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    sums = filled.sum(axis=-1, keepdims=True) - filled
    numbers = known.sum(axis=-1, keepdims=True) - known
    means: Floats = np.where(numbers > 0, sums / np.maximum(numbers, 1), np.inf)
    return means


def of_role(cell: pd.DataFrame, *roles: str) -> pd.DataFrame:
    """Return the cell's trials of the given roles."""
    return cell[cell["role"].isin(roles)]


def counts(cell: pd.DataFrame) -> dict[str, Any]:
    """Return what stands beside every estimate: points, seeds and the share of diverged runs."""
    return {
        "points": len(cell[point_names(cell)].drop_duplicates()),
        "seeds": cell["seed"].nunique(),
        "diverged": float(cell["diverged"].astype(bool).mean()),
    }


def shown_setting(names: list[str], values: Any) -> str:
    """Return a setting as text, ``lr=0.01, weight_decay=0.1``; what it lacks (NaN) is not told."""
    values = values if isinstance(values, tuple) else (values,)
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, int | float) else f"{name}={value}"
        for name, value in zip(names, values, strict=True)
        if pd.notna(value)
    )


def within_range(cell: pd.DataFrame, bounds: tuple[float, ...]) -> tuple[float, float]:
    """Return an interval's bounds in the metric's unit, kept to what the metric can be.

    That is no worse than the worst value, and not below 0 for what is minimised and never was.
    """
    worst = float(cell["worst"].iloc[0])
    low, high = sorted(bounds)
    if cell["direction"].iloc[0] == "maximize":
        return max(low, worst), high
    least = 0.0 if cell["value"].min() >= 0 else low
    return max(low, least), min(high, worst)
