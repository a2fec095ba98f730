"""What analyses that look across tasks or optimizers share: groups of cells and scores."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from robustlr.analysis._cells import (
    Floats,
    cells,
    conditions,
    hyperparameters,
    of_role,
    point_by_seed,
    point_names,
    tuned_by_seed,
    with_losses,
)
from robustlr.analysis._sweeps import student

ALL = "all tasks"
"""The task of a row that speaks of all of them."""

SETTINGS = ("tuned", "default")
"""The settings whose runs are scored."""

Group = tuple[dict[str, Any], list[tuple[dict[str, Any], pd.DataFrame]]]
"""What some cells have in common, and the cells with their own keys."""


def grouped(trials: pd.DataFrame, *by: str) -> list[Group]:
    """Return the cells in groups that have ``by`` (columns) and all conditions in common."""
    common = [*by, *conditions(trials)]
    groups: dict[str, Group] = {}
    for key, cell in cells(trials):
        shared = {name: key[name] for name in common}
        groups.setdefault(str(shared), (shared, []))[1].append((key, cell))  # NaN equals no NaN
    return list(groups.values())


def named(key: dict[str, Any], cell_key: dict[str, Any]) -> dict[str, Any]:
    """Return a group's key with the names of the conditions, for tables to know them by."""
    return key | {name: cell_key[name] for name in ("conditions",) if name in cell_key}


def ranges(trials: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return each task's best and worst loss.

    The best is the lowest of all optimizers' points under any condition, averaged over seeds.
    """
    design = with_losses(of_role(trials, "design"))
    by = ["task", "optimizer", *conditions(trials), *hyperparameters(design)]
    means = design.groupby(list(dict.fromkeys(by)), dropna=False)["loss"].mean()
    best = means.groupby(level="task").min()
    worst = design.groupby("task")["worst_loss"].max()
    return {task: (float(best[task]), float(worst[task])) for task in best.index}


def scored(
    trials: pd.DataFrame,
) -> Iterator[tuple[dict[str, Any], dict[str, dict[str, Any]], list[pd.DataFrame]]]:
    """Yield the scores that can be compared, for each combination of conditions and each setting.

    Each comes as a key for the rows of a table, every optimizer's counts, and the ``scores`` of each
    task.
    """
    if trials.empty:
        return
    bounds = ranges(trials)
    for group in grouped(of_role(trials, "design", "default")):
        key = {"task": ALL} | named(group[0], group[1][0][0])
        counted = group_counts(group)
        for setting in SETTINGS:
            tables = list(scores(group, bounds, setting).values())
            if tables:
                seeds = {"seeds": min(map(len, tables))}
                own = {name: counts | seeds for name, counts in counted.items()}
                yield key | {"setting": setting, "tasks": len(tables)}, own, tables


def scores(
    group: Group, bounds: dict[str, tuple[float, float]], setting: str
) -> dict[str, pd.DataFrame]:
    """Return, for each task of a group, the scores of its optimizers (columns) by seed (rows).

    A score is the share of the way from the worst loss (0) to the best (1). The ``setting`` is
    ``"tuned"``, which each seed has from the other seeds, or ``"default"``. Seeds that an optimizer
    lacks are left out, and so are tasks that an optimizer lacks or on which nothing was learnt.
    """
    found: dict[str, dict[str, pd.Series]] = {}
    for key, cell in group[1]:
        losses = _losses(cell, setting)
        best, worst = bounds.get(key["task"], (0.0, 0.0))
        if losses.notna().any() and best < worst:
            share = (worst - losses) / (worst - best)
            found.setdefault(key["task"], {})[key["optimizer"]] = share
    optimizers = {name for task in found.values() for name in task}
    tables = {
        task: pd.DataFrame(series).dropna()
        for task, series in found.items()
        if series.keys() == optimizers
    }
    return {task: table for task, table in tables.items() if len(table)}


def _losses(cell: pd.DataFrame, setting: str) -> pd.Series:
    if setting == "default":
        return of_role(cell, "default").groupby("seed")["loss"].mean()
    design = of_role(cell, "design")
    if design.empty:
        return design["loss"]
    return tuned_by_seed(point_by_seed(design))


def group_counts(group: Group) -> dict[str, dict[str, Any]]:
    """Return the points and the share of diverged runs of each optimizer of a group."""
    found = {}
    for name in dict.fromkeys(key["optimizer"] for key, _ in group[1]):
        own = [of_role(cell, "design") for key, cell in group[1] if key["optimizer"] == name]
        points = [len(cell[point_names(cell)].drop_duplicates()) for cell in own]
        runs = sum(map(len, own))
        diverged = sum(int(cell["diverged"].sum()) for cell in own)
        share = diverged / runs if runs else float("nan")
        found[name] = {"points": max(points), "diverged": share}
    return found


def mean_intervals(by_seed: Floats) -> Floats:
    """Return, for each column, the mean over the rows (seeds) and Student's interval, columns × 3.

    With one seed there are no bounds.
    """
    means, half = student(by_seed.T)
    return np.column_stack([means, means - half, means + half])


def is_grid(points: pd.DataFrame) -> bool:
    """Return whether settings (a row each) are a full grid rather than a sample of the space.

    They are if they are all combinations of their values; the values of a single hyperparameter,
    which always are, must be evenly spaced, on a linear or a log scale, or all round, as somebody
    chose them.
    """
    varied = [name for name in points if points[name].nunique(dropna=False) > 1]
    if len(points) != int(np.prod([points[name].nunique(dropna=False) for name in varied])):
        return False
    if len(varied) != 1 or not pd.api.types.is_numeric_dtype(points[varied[0]]):
        return True
    values = np.sort(points[varied[0]].dropna().to_numpy(float))
    if all(_is_round(value) or _is_round(1 - value) for value in values):
        return True
    scales = [values, np.log(values)] if values[0] > 0 else [values]
    steps = [np.diff(scale) for scale in scales]
    return any(bool(np.allclose(step, step[0], rtol=1e-3)) for step in steps)


def _is_round(value: float) -> bool:
    """Return whether two significant digits say the value, as they do 0.03."""
    return math.isclose(value, float(f"{value:.1e}"), rel_tol=1e-9)
