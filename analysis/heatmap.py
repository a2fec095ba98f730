"""Where in the plane of two hyperparameters does the optimizer work?

The metric at each learning rate and weight decay (or the optimizer's next hyperparameter, where it
has no weight decay), averaged over seeds with Student's interval, further hyperparameters at their
best. An axis with more than twelve values, as random and Sobol designs have, is cut into eight bins
of equal width, and a square is then the mean of the runs in it. A cross marks a square with a
diverged run, a frame the best square; the title says if the best lies at the edge of the range,
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

from robustlr.analysis._cells import (
    cells,
    conditions,
    counts,
    hyperparameters,
    of_role,
    point_by_seed,
    with_losses,
)
from robustlr.analysis._intervals import mean_interval
from robustlr.analysis._plots import panels, shown_condition

TITLE = "Heatmaps over two hyperparameters"
PICTURE_PER = "optimizer"
MOST_VALUES = 12
BINS = 8


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each square: ``x`` is the lr, ``y`` the value of ``hyperparameter``."""
    rows: list[dict[str, Any]] = []
    design = with_losses(of_role(trials, "design").reset_index(drop=True))
    for key, cell in cells(design):
        varied = [name for name in hyperparameters(cell) if cell[name].nunique() > 1]
        others = sorted((n for n in varied if n != "lr"), key=lambda n: n != "weight_decay")
        if "lr" in varied and others:
            whole = design[design["optimizer"] == key["optimizer"]]  # so that panels share bins
            axes = [_axis(whole[name]).loc[cell.index] for name in ("lr", others[0])]
            rows += [key | square for square in _squares(cell, others[0], *axes)]
    return pd.DataFrame(rows)


def _squares(cell: pd.DataFrame, other: str, x: pd.Series, y: pd.Series) -> list[dict[str, Any]]:
    sign = -1.0 if cell["direction"].iloc[0] == "maximize" else 1.0
    is_grid = x.equals(cell["lr"]) and y.equals(cell[other])
    squares = []
    for (at_x, at_y), here in cell.groupby([x.rename("x"), y.rename("y")]):
        by_seed = point_by_seed(here)
        runs = by_seed.loc[by_seed.mean(axis=1).idxmin()] if is_grid else here["loss"]
        value, *bounds = (sign * number for number in mean_interval(runs))
        low, high = sorted(bounds)
        squares.append(
            {
                "hyperparameter": other,
                "x": at_x,
                "y": at_y,
                "value": value,
                "low": low,
                "high": high,
            }
            | {"worst": cell["worst"].iloc[0]}
            | counts(here)
        )
    best = min(squares, key=lambda square: sign * square["value"])
    edges = (("lr", "x", x), (other, "y", y))
    on_edge = [name for name, axis, values in edges if best[axis] in (values.min(), values.max())]
    return [s | {"best": s is best, "edge": " and ".join(on_edge)} for s in squares]


def _axis(values: pd.Series) -> pd.Series:
    """Return the values, or the middles of their bins where there are too many to draw."""
    if values.nunique() <= MOST_VALUES or not pd.api.types.is_numeric_dtype(values):
        return values
    is_log = values.min() > 0 and values.max() > 10 * values.min()
    scaled = np.log10(values.to_numpy()) if is_log else values.to_numpy()
    edges = np.linspace(scaled.min(), scaled.max(), BINS + 1)
    index = np.clip(np.searchsorted(edges, scaled, side="right") - 1, 0, BINS - 1)
    middles = (edges[:-1] + edges[1:])[index] / 2
    shown = 10**middles if is_log else middles
    return pd.Series([float(f"{value:.2g}") for value in shown], index=values.index)


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
    worst = task["worst"].iloc[0]
    best = task["value"].iloc[(task["value"] - worst).abs().argmax()]
    low, high = sorted((best, worst))
    if low == high:  # nothing was learnt anywhere
        low, high = low - 0.5, high + 0.5
    ticks = np.geomspace(low, high, 4) if low > 0 else np.linspace(low, high, 4)
    sns.heatmap(
        squares,
        ax=panel,
        norm=LogNorm(low, high) if low > 0 else Normalize(low, high),
        cbar_kws={"ticks": ticks, "format": "%.2g"},
        cmap="viridis_r" if best < worst else "viridis",
        xticklabels=[_short(x) for x in squares.columns],
        yticklabels=[_short(y) for y in squares.index],
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
    panel.tick_params(axis="both", labelrotation=0, labelsize=9 if len(columns) <= 6 else 7)
    panel.set_xlabel("lr")
    panel.set_ylabel(first["hyperparameter"])


def _short(value: Any) -> str:
    """Return a tick's label, ``0.001`` or ``2.3e-4``: eight of them must fit side by side."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if len(text) <= 5 or not isinstance(value, float):
        return text
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
