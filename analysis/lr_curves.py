"""How does the result depend on the learning rate?

The metric at each learning rate, averaged over the seeds of the ``design`` trials with Student's
interval, the other hyperparameters at their best of the points with that learning rate (in adaptive
designs this would crowd the optimum, so they are left out). Diverged runs count as the task's worst
value, which is the dotted line. One picture a task has a panel for each optimizer; the others are
grey behind it.

Limits: the best of several noisy points is flattered; where every point has a learning rate of its own
(random and Sobol designs) the other hyperparameters are not tuned but mixed in.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, conditions, hyperparameters, in_units, of_role
from robustlr.analysis._plots import draw_curves, fit_axis
from robustlr.analysis._sweeps import runs_of, student

TITLE = "Performance against learning rate"
PICTURE_PER = "task"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell and learning rate, with ``value``, ``low`` and ``high``."""
    design = of_role(trials, "design")
    if "lr" not in design or design["lr"].isna().all():
        return pd.DataFrame()
    curves = [
        pd.DataFrame({**key, **_curve(cell), "worst": cell["worst"].iloc[0], **_counts(cell)})
        for key, cell in cells(design)
        if cell["lr"].notna().any()
    ]
    return pd.concat(curves, ignore_index=True)


def _curve(cell: pd.DataFrame) -> dict[str, Any]:
    """Return the learning rates and, at each, the mean and interval of its best point."""
    runs = runs_of(cell, half_decades=False)
    mean, half = student(runs.losses)
    of_lr = np.searchsorted(runs.values, runs.at)
    order = np.lexsort((mean, of_lr))
    best = order[np.searchsorted(of_lr[order], np.arange(len(runs.values)))]
    ends = in_units(cell, mean[best] - half[best]), in_units(cell, mean[best] + half[best])
    return {
        "lr": runs.values,
        "value": in_units(cell, mean[best]),
        "low": np.minimum(*ends),
        "high": np.maximum(*ends),
    }


def _counts(cell: pd.DataFrame) -> dict[str, Any]:
    """Return each learning rate's points, seeds and share of diverged runs; see ``counts``."""
    names = hyperparameters(cell)
    by_lr = cell.assign(diverged=cell["diverged"].astype(bool)).groupby("lr")
    points = cell.drop_duplicates(names).groupby("lr").size()
    seeds = by_lr["seed"].nunique()
    return {
        "points": points.to_numpy(),
        "seeds": seeds.to_numpy(),
        "diverged": by_lr["diverged"].mean().to_numpy(),
    }


def verdict(table: pd.DataFrame) -> str:
    """Return at which learning rates each optimizer does best, over tasks and conditions."""
    if table.empty:
        return "This needs a grid, random or Sobol design over the learning rate."
    losses = table["value"] * np.where(table["direction"] == "maximize", -1, 1)
    cell = [table[name] for name in _by(table)]
    best = table.loc[losses.groupby(cell, dropna=False).idxmin()]
    said = []
    for optimizer, rows in best.groupby("optimizer", sort=False):
        low, high = rows["lr"].min(), rows["lr"].max()
        spread = f"from {low:.2g} to {high:.2g}" if high > low else f"{low:.2g}"
        said.append(f"{optimizer} {spread}")
    cases = best.groupby(_by(table)[:1] + conditions(table), dropna=False).ngroups
    over = f", over {cases} tasks and conditions" if cases > 1 else ""
    return f"The learning rate of the best mean result{over}: {'; '.join(said)}."


def _by(table: pd.DataFrame) -> list[str]:
    return ["task", *conditions(table), "optimizer"]


def draw(table: pd.DataFrame) -> Figure:
    """Draw the curves of one task: a panel for each optimizer, a line for each condition."""
    first = table.iloc[0]
    metric = str(first.get("metric", "value"))
    figure = draw_curves(table, "lr", "value", ("lr", metric))
    for panel in figure.axes:
        panel.axhline(first["worst"], color="grey", ls=":", lw=1)
        fit_axis(panel, [*table["value"], first["worst"]])
    return figure
