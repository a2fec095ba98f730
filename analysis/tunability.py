"""How soon does tuning pay?

``f(k)`` is the expected score of the best of k settings drawn from the design's points, with
replacement: the share of the way from the task's worst loss (0) to the best of all optimizers (1).
``tunability`` is its average over budgets of 1 to ``tries``, the weights falling evenly with the
budget (the first try counts most): high for an optimizer that is good at once. ``budget_90`` is the
smallest share of the tries after which f is 90 % of what it is in the end (alpha-tunability), and
``last_5`` how much of the budget goes into the last 5 %: the share at which f is as good as in the end
minus that at which it is 95 % of it. ``first_try`` is f(1) and ``in_the_end`` f(``tries``). Source:
the first two are as described by Sivaprasad et al. (2020), on scores. All optimizers of a task and
condition get the same number of tries: of a grid the fewest points that one of them has, of a random
design a sixth of that, beyond which nothing is known. Each seed is judged at settings chosen on the
other seeds. It reads the role ``design``.

Limits: the interval of ``tunability`` is Student's over seeds for a grid, whose points are the space;
for a random design it is the jackknife's over points. The other numbers have none. The score depends
on the range of the design; a wide range makes a first try bad. Adaptive designs (tpe) are left out.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from robustlr.analysis._across import grouped, is_grid, ranges
from robustlr.analysis._cells import Floats, conditions, counts, of_role, point_by_seed
from robustlr.analysis._intervals import LEVEL, mean_interval
from robustlr.analysis._plots import draw_intervals
from robustlr.analysis._tuning import chances, ordered_by_others

TITLE = "Tunability"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell with ``tunability``, ``low`` and ``high``."""
    if trials.empty:
        return pd.DataFrame()
    bounds = ranges(trials)
    rows: list[dict[str, Any]] = []
    for group in grouped(of_role(trials, "design"), "task"):
        best, worst = bounds[group[0]["task"]]
        if not best < worst:
            continue
        tables = [point_by_seed(cell) for _, cell in group[1]]
        grids = [is_grid(table.index.to_frame(index=False)) for table in tables]
        known = [
            len(table) if grid else max(1, len(table) // 6)
            for table, grid in zip(tables, grids, strict=True)
        ]
        tries = min(known)
        for (key, cell), table, grid in zip(group[1], tables, grids, strict=True):
            scores = (worst - table) / (worst - best)
            row = _summaries(ordered_by_others(-scores, scores), tries, grid)
            rows.append(key | row | {"tries": tries} | counts(cell))
    return pd.DataFrame(rows)


def _summaries(ordered: list[Floats], tries: int, grid: bool) -> dict[str, float]:
    """Return a cell's numbers from each seed's scores in the order of the other seeds."""
    budgets = np.arange(1, tries + 1)
    weights = budgets[::-1] / budgets.sum()
    curves = np.array([chances(len(points), budgets) @ points for points in ordered])
    if grid:
        estimate = mean_interval(pd.Series(curves @ weights))
    else:
        estimate = _over_points(ordered, budgets, weights)
    curve = curves.mean(axis=0)
    return {
        **dict(zip(("tunability", "low", "high"), map(float, estimate), strict=True)),
        "first_try": float(curve[0]),
        "in_the_end": float(curve[-1]),
        "budget_90": _share(curve, 0.9),
        "last_5": _share(curve, 1.0) - _share(curve, 0.95),
    }


def _share(curve: Floats, level: float) -> float:
    """Return the share of the budget after which the curve is at ``level`` times its end."""
    reached = curve >= level * curve[-1] - 1e-9
    return float((reached.argmax() + 1) / len(curve))


def _over_points(
    ordered: list[Floats], budgets: Floats, weights: Floats
) -> tuple[float, float, float]:
    """Return the tunability and its interval, by leaving out one point after the other."""
    count = min(map(len, ordered))
    points = np.mean([seed[:count] for seed in ordered], axis=0)
    estimate = float(weights @ chances(count, budgets) @ points)
    if count < 3:
        return estimate, float("nan"), float("nan")
    of_rank = weights @ chances(count - 1, budgets)
    before = np.concatenate([[0], np.cumsum(of_rank * points[:-1])])
    after = np.concatenate([np.cumsum((of_rank * points[1:])[::-1])[::-1], [0]])
    pseudo = count * estimate - (count - 1) * (before + after)
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * pseudo.std(ddof=1) / np.sqrt(count)
    return estimate, estimate - half, estimate + half


def verdict(table: pd.DataFrame) -> str:
    """Say on how many tasks and conditions an optimizer is surely the most tunable."""
    if table.empty:
        return "This needs a grid, random or sobol design of a task on which something was learnt."
    groups = table.groupby(["task", *conditions(table)], sort=False, dropna=False)
    told: dict[str, int] = {}
    for _, rows in groups:
        first = rows.loc[rows["tunability"].idxmax()]
        others = rows.drop(index=first.name)
        if len(others) and (others["high"] < first["low"]).all():
            told[first["optimizer"]] = told.get(first["optimizer"], 0) + 1
    of = f"of {len(groups)} tasks and conditions"
    sentences = [f"{name} pays soonest on {number} {of}." for name, number in told.items()]
    if (untold := len(groups) - sum(told.values())) > 0:
        sentences.append(
            f"On {untold} {of} the intervals do not tell which optimizer pays soonest."
        )
    return " ".join(sentences)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the tunability."""
    figure = draw_intervals(table, "tunability", "tunability (1 is best)")
    for panel in figure.axes:  # huge intervals must not flatten it
        panel.set_xlim(-0.02, 1.05)
    return figure
