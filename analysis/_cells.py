"""The tidy table as estimators need it: losses, cells, and points × seeds."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from robustlr.scale import CONDITIONS
from robustlr.task import COLUMNS


def conditions(table: pd.DataFrame) -> list[str]:
    """Return the condition columns: those that ``conditions`` names, or the usual ones."""
    if "conditions" not in table:
        return [name for name in CONDITIONS if name in table]
    named = {name for text in table["conditions"].dropna().unique() for name in text.split()}
    return [name for name in table if name in named]


def hyperparameters(trials: pd.DataFrame) -> list[str]:
    """Return the hyperparameter columns, those without any value left out."""
    known = {*COLUMNS, *conditions(trials), "loss", "worst_loss"}
    return [name for name in trials if name not in known and trials[name].notna().any()]


def with_losses(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials with ``loss`` and ``worst_loss``: lower is better, whatever the metric.

    A diverged run, and one that is worse than a model that learnt nothing, counts as the task's
    worst value. Hyperparameters are rounded to six digits, so that one setting written in two ways
    is one setting.
    """
    sign = trials["direction"].map({"minimize": 1.0, "maximize": -1.0}).astype(float)
    worst = sign * trials["worst"].astype(float)
    loss = (sign * trials["value"].astype(float)).where(~trials["diverged"].astype(bool), worst)
    trials = trials.assign(loss=loss.fillna(worst).clip(upper=worst), worst_loss=worst)
    for name in hyperparameters(trials):
        if pd.api.types.is_numeric_dtype(trials[name]):
            trials[name] = trials[name].map(lambda value: float(f"{value:.6g}"))
    return trials


def cells(
    trials: pd.DataFrame, without: tuple[str, ...] = ()
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each cell's key (task, optimizer and conditions) and its trials, with losses."""
    keys = ["task", "optimizer", *(name for name in conditions(trials) if name not in without)]
    keys += ["conditions"] if "conditions" in trials else []  # so that tables of results know them
    for values, cell in with_losses(trials).groupby(keys, sort=False, dropna=False):
        yield dict(zip(keys, values, strict=True)), cell


def point_by_seed(trials: pd.DataFrame, column: str = "loss") -> pd.DataFrame:
    """Return one cell's values as a table with a row a point and a column a seed."""
    names = hyperparameters(trials) or ["lr"]
    return trials.pivot_table(index=names, columns="seed", values=column, sort=True)


def tuned_by_seed(by_seed: pd.DataFrame) -> pd.Series:
    """Return each seed's value at the point that is best on the other seeds.

    ``by_seed`` is ``point_by_seed``'s table; a single seed chooses for itself.
    """
    tuned = {}
    for seed in by_seed:
        others = by_seed.drop(columns=seed) if by_seed.shape[1] > 1 else by_seed
        tuned[seed] = by_seed.loc[others.mean(axis=1).idxmin(), seed]
    return pd.Series(tuned)


def of_role(cell: pd.DataFrame, *roles: str) -> pd.DataFrame:
    """Return the cell's trials of the given roles."""
    return cell[cell["role"].isin(roles)]


def counts(cell: pd.DataFrame) -> dict[str, Any]:
    """Return what stands beside every estimate: points, seeds and the share of diverged runs."""
    names = hyperparameters(cell)
    return {
        "points": len(cell[names].drop_duplicates()),
        "seeds": cell["seed"].nunique(),
        "diverged": float(cell["diverged"].astype(bool).mean()),
    }


def shown_setting(names: list[str], values: Any) -> str:
    """Return a setting as text, ``lr=0.01, weight_decay=0.1``."""
    values = values if isinstance(values, tuple) else (values,)
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, int | float) else f"{name}={value}"
        for name, value in zip(names, values, strict=True)
    )
