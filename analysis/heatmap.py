"""Where in the plane of two hyperparameters does the optimizer work?

The metric at each learning rate and value of the next hyperparameter (weight decay, where the
optimizer has one), averaged over seeds, further hyperparameters at their best. A cross marks a cell
with a diverged run, a frame the best cell; the title says if the best lies at the edge of the range,
where a wider one may hold a better one. The colour scale ends at the task's worst value, so diverged
runs do not flatten the rest.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from robustlr.analysis._cells import cells, conditions, counts, hyperparameters, of_role
from robustlr.analysis._plots import clipped, panels, shown_condition

TITLE = "Heatmaps over two hyperparameters"
PICTURE_PER = "optimizer"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each square: ``x`` is the lr, ``y`` the value of ``hyperparameter``."""
    rows: list[dict[str, Any]] = []
    for key, cell in cells(of_role(trials, "design")):
        varied = [name for name in hyperparameters(cell) if cell[name].nunique() > 1]
        if "lr" not in varied or len(varied) < 2:
            continue
        other = next(name for name in varied if name != "lr")
        rows += [key | square for square in _squares(cell, other)]
    return pd.DataFrame(rows)


def _squares(cell: pd.DataFrame, other: str) -> list[dict[str, Any]]:
    sign = -1.0 if cell["direction"].iloc[0] == "maximize" else 1.0
    means = cell.groupby(hyperparameters(cell))["loss"].mean()
    losses = means.groupby(level=["lr", other]).min()
    best = losses.idxmin()
    on_edge = {
        name: best[axis] in (cell[name].min(), cell[name].max()) and cell[name].nunique() > 2
        for axis, name in enumerate(("lr", other))
    }
    squares = []
    for (x, y), loss in losses.items():
        here = cell[(cell["lr"] == x) & (cell[other] == y)]
        squares.append(
            {"hyperparameter": other, "x": x, "y": y, "value": sign * loss}
            | {"worst": cell["worst"].iloc[0], "best": (x, y) == best}
            | {"edge": " and ".join(name for name, edge in on_edge.items() if edge)}
            | counts(here)
        )
    return squares


def draw(table: pd.DataFrame) -> Figure:
    """Draw one optimizer's heatmaps on one colour scale a task: a panel a task and condition."""
    by = ["task", *conditions(table)]
    groups = list(table.groupby(by, sort=False, dropna=False))
    rows = table.groupby(by, dropna=False)["y"].nunique().max()
    figure, axes = panels(len(groups), width=5, height=1.8 + 0.5 * rows)
    for panel, (_, group) in zip(axes, groups, strict=True):
        _draw_panel(panel, group, table[table["task"] == group["task"].iloc[0]], by[1:])
    figure.suptitle(table["optimizer"].iloc[0])
    return figure


def _draw_panel(panel: Axes, group: pd.DataFrame, task: pd.DataFrame, names: list[str]) -> None:
    squares = group.pivot(index="y", columns="x", values="value").sort_index(ascending=False)
    low, high = sorted((task["value"].min(), task["worst"].iloc[0]))
    if low == high:  # nothing was learnt anywhere
        low, high = low - 0.5, high + 0.5
    better_low = task["value"].min() < task["worst"].iloc[0]
    ticks = np.geomspace(low, high, 4) if low > 0 else np.linspace(low, high, 4)
    sns.heatmap(
        squares,
        ax=panel,
        norm=LogNorm(low, high) if low > 0 else Normalize(low, high),
        cbar_kws={"ticks": ticks, "format": "%.2g"},
        cmap=clipped("viridis_r" if better_low else "viridis"),
        annot=True,
        fmt=".3g",
        annot_kws={"size": 8},
    )
    colorbar = panel.collections[0].colorbar
    if colorbar is not None:
        colorbar.minorticks_off()
    columns, rows = list(squares.columns), list(squares.index)
    for _, square in group.iterrows():
        column, row = columns.index(square["x"]), rows.index(square["y"])
        if square["diverged"] > 0:
            panel.plot(column + 0.85, row + 0.2, marker="x", color="red", ms=7, mew=2)
        if square["best"]:
            frame = Rectangle((column, row), 1, 1, fill=False, ec="red", lw=2.5, clip_on=False)
            panel.add_patch(frame)
    first = group.iloc[0]
    title = " · ".join(filter(None, [first["task"], shown_condition(first, names)]))
    panel.set_title(
        title + (f"\nbest at the edge of {first['edge']}" if first["edge"] else ""), fontsize=10
    )
    panel.set_xticklabels([f"{x:g}" for x in columns], rotation=0)
    panel.set_yticklabels([f"{y:g}" if isinstance(y, float) else y for y in rows], rotation=0)
    panel.set_xlabel("lr")
    panel.set_ylabel(first["hyperparameter"])
