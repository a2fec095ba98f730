"""Where in the plane of two hyperparameters does the optimizer work?

The metric at each value of two hyperparameters: the learning rate, and the weight decay or the
optimizer's next hyperparameter where it has no weight decay (``robustlr heatmap --x --y`` takes any
two). It is averaged over the seeds of the ``design`` trials with Student's interval, further
hyperparameters at their best. An axis with more than twelve values, as random and Sobol designs have,
is cut into eight bins of equal width, and a square is then the mean of the runs in it. One picture a
task has all its optimizers and conditions on one colour scale. The task ``worst-task`` has, where
optimizers have squares in common between tasks, each square's worst: what share of the task's gain,
from the worst value to the best of all optimizers, is lost there on the task where most is.

A cross marks a square with a diverged run, a frame the best square; the title says if the best lies at
the edge of the range, where a wider one may hold a better one (zero is no such edge, and of two values
both would be). The colour scale ends at the task's worst value, so that diverged runs do not flatten
the rest.

Limits: the best square is the best of a noisy sample; adaptive designs (tpe) are left out.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from robustlr.analysis._cells import (
    cells,
    conditions,
    hyperparameters,
    in_units,
    of_role,
)
from robustlr.analysis._plots import panels
from robustlr.analysis._sentences import shown_condition
from robustlr.analysis._sweeps import Numbers, student_by

TITLE = "Heatmaps over two hyperparameters"
PICTURE_PER = "task"
WORST_TASK = "worst-task"
MOST_VALUES = 12
MOST_NUMBERS = 7
"""Squares side by side up to which their numbers and labels can be read."""
BINS = 8


def compute(trials: pd.DataFrame, x: str = "lr", y: str | None = None) -> pd.DataFrame:
    """Return one row for each square: ``x`` and ``y`` are the values of two hyperparameters.

    Their names are in the columns ``x_hyperparameter`` and ``hyperparameter``. By default ``y`` is the
    weight decay or the optimizer's next hyperparameter.
    """
    members: dict[str, list[tuple[dict[str, Any], pd.DataFrame]]] = {}
    for key, cell in cells(of_role(trials, "design").reset_index(drop=True)):
        members.setdefault(key["optimizer"], []).append((key, cell))
    tables = []
    for found in members.values():
        whole = pd.concat([cell for _, cell in found])  # so that panels share bins
        other = y or _other(whole, x)
        if other is None or not {x, other} <= set(hyperparameters(whole)):
            continue
        axes = _axis(whole[x]), _axis(whole[other])
        tables += [
            _squares(key, cell, x, other, *(axis.loc[cell.index] for axis in axes))
            for key, cell in found
            if cell[x].nunique() > 1 and cell[other].nunique() > 1
        ]
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return pd.concat([table, _worst_task(table)], ignore_index=True).drop(
        columns=["loss", "worst_loss"]
    )


def _other(whole: pd.DataFrame, x: str) -> str | None:
    """Return the hyperparameter to go with ``x``: the weight decay if it varies."""
    varied = [n for n in hyperparameters(whole) if n != x and whole[n].nunique() > 1]
    return min(varied, key=lambda name: name != "weight_decay", default=None)


def _squares(
    key: dict[str, Any], cell: pd.DataFrame, x: str, y: str, at_x: pd.Series, at_y: pd.Series
) -> pd.DataFrame:
    """Return a cell's squares."""
    runs = cell.assign(_x=at_x, _y=at_y, diverged=cell["diverged"].astype(bool))
    runs = runs[at_x.notna() & at_y.notna()]
    names = hyperparameters(cell)
    runs["_square"] = runs.groupby(["_x", "_y"]).ngroup()
    runs["_point"] = runs.groupby(names, dropna=False).ngroup()
    squares = runs.drop_duplicates("_square").sort_values("_square")
    mean, half = student_by(runs["_square"], runs["loss"])
    if at_x.equals(cell[x]) and at_y.equals(
        cell[y]
    ):  # a grid: further hyperparameters at their best
        mean, half = _best_points(runs)
    ends = in_units(cell, mean - half), in_units(cell, mean + half)
    grouped = runs.groupby("_square")
    table = pd.DataFrame(
        {
            **key,
            "x_hyperparameter": x,
            "hyperparameter": y,
            "x": squares["_x"].to_numpy(),
            "y": squares["_y"].to_numpy(),
            "value": in_units(cell, mean),
            "low": np.minimum(*ends),
            "high": np.maximum(*ends),
            "worst": cell["worst"].iloc[0],
            "points": grouped["_point"].nunique().to_numpy(),
            "seeds": grouped["seed"].nunique().to_numpy(),
            "diverged": grouped["diverged"].mean().to_numpy(),
            "best": np.arange(len(mean)) == mean.argmin(),
            "loss": mean,
            "worst_loss": cell["worst_loss"].iloc[0],
        }
    )
    return table.assign(edge=_edge(table, x, y))


def _best_points(runs: pd.DataFrame) -> tuple[Numbers, Numbers]:
    """Return the mean loss of each square's best point, and half of its interval."""
    by_seed = runs.groupby(["_point", "_square", "seed"], sort=True)["loss"].mean().reset_index()
    mean, half = student_by(by_seed["_point"], by_seed["loss"])
    squares = by_seed.drop_duplicates("_point")["_square"].to_numpy()  # sorted by point
    order = np.lexsort((mean, squares))
    best = order[np.unique(squares[order], return_index=True)[1]]
    return mean[best], half[best]


def _edge(table: pd.DataFrame, x: str, y: str) -> str:
    """Return the hyperparameters on whose edge the best square lies; zero is no edge.

    Of two values both are edges, so that nothing is seen.
    """
    best = table[table["best"]].iloc[0]
    return " and ".join(
        name
        for name, axis in ((x, "x"), (y, "y"))
        if table[axis].nunique() > 2
        and best[axis] in (table[axis].min(), table[axis].max())
        and best[axis] != 0
    )


def _worst_task(table: pd.DataFrame) -> pd.DataFrame:
    """Return the squares that all tasks of an optimizer and condition share, each at its worst."""
    best = table.groupby("task")["loss"].transform("min")
    lost = (table["loss"] - best) / (table["worst_loss"] - best)
    by = ["optimizer", *conditions(table), "x_hyperparameter", "hyperparameter"]
    shares = table.assign(value=lost.fillna(1.0)).sort_values("value", ascending=False)
    tasks = shares.groupby([*by, "x", "y"], dropna=False)["task"].transform("nunique")
    of_all = tasks == shares.groupby(by, dropna=False)["task"].transform("nunique")
    worst = shares[of_all & (tasks > 1)].drop_duplicates([*by, "x", "y"]).sort_index()
    if worst.empty:
        return worst
    worst = worst.assign(
        task=WORST_TASK,
        metric="share of the gain lost on the worst task",
        direction="minimize",
        low=np.nan,
        high=np.nan,
        worst=1.0,
        edge="",
    )
    least = worst.groupby(by, dropna=False)["value"].transform("idxmin")
    return worst.assign(best=least == worst.index)


def _axis(values: pd.Series) -> pd.Series:
    """Return the values, or the middles of their bins where there are too many to draw."""
    if values.nunique() <= MOST_VALUES or not pd.api.types.is_numeric_dtype(values):
        return values
    is_log = values.min() > 0 and values.max() > 10 * values.min()
    scaled = np.log10(values.to_numpy()) if is_log else values.to_numpy()
    edges = np.linspace(np.nanmin(scaled), np.nanmax(scaled), BINS + 1)
    index = np.clip(np.searchsorted(edges, scaled, side="right") - 1, 0, BINS - 1)
    middles = (edges[:-1] + edges[1:]) / 2
    shown = [float(f"{value:.2g}") for value in (10**middles if is_log else middles)]
    return pd.Series(np.array(shown)[index], index=values.index).where(values.notna())


def verdict(table: pd.DataFrame) -> str:
    """Return how much of the plane fails, and where the best lies on its edge."""
    if table.empty:
        return "This needs a grid, random or Sobol design over two hyperparameters."
    shown = table[table["task"] != WORST_TASK]
    by = ["task", "optimizer", *conditions(shown)]
    maps = shown.groupby(by, dropna=False)
    on_edge = int((maps["edge"].first() != "").sum())
    failing = (shown["diverged"] > 0).groupby(shown["optimizer"], sort=False).mean()
    shares = ", ".join(f"{100 * share:.0f} % for {name}" for name, share in failing.items())
    said = f"Squares with a diverged run: {shares}."
    if on_edge:
        said += (
            f" In {on_edge} of {maps.ngroups} maps the best square lies on the edge of the range, so a "
            "wider one may hold a better one."
        )
    return said


def draw(table: pd.DataFrame) -> Figure:
    """Draw one task's heatmaps on one colour scale: a panel an optimizer and condition."""
    names = conditions(table)
    groups = list(table.groupby(["optimizer", *names], sort=False, dropna=False))
    kinds = table.groupby(names, dropna=False).ngroups if names else 1
    rows = max(group["y"].nunique() for _, group in groups)
    across = min(len(groups), 4 if kinds in (2, 4) else 3)
    figure, axes = panels(
        len(groups), width=max(3.3, 5.5 / across), height=1.2 + 0.33 * rows, columns=across
    )
    norm, colors = _colors(table)
    for panel, (_, group) in zip(axes, groups, strict=True):
        _draw_panel(panel, group, norm, colors, names)
    _add_scale(figure, axes, norm, str(table.iloc[0].get("metric", "value")), across)
    figure.suptitle(table["task"].iloc[0], fontsize=12)
    return figure


def _colors(table: pd.DataFrame) -> tuple[Normalize, str]:
    """Return the colour scale from the best value to the worst, and the colours: dark is worse."""
    worst = table["worst"].iloc[0]
    best = table["value"].iloc[(table["value"] - worst).abs().argmax()]
    low, high = sorted((best, worst))
    if low == high:  # nothing was learnt anywhere
        low, high = low - 0.5, high + 0.5
    norm = LogNorm(low, high) if low > 0 else Normalize(low, high)
    return norm, "viridis_r" if best < worst else "viridis"


def _draw_panel(
    panel: Axes, group: pd.DataFrame, norm: Normalize, colors: str, names: list[str]
) -> None:
    squares = group.pivot(index="y", columns="x", values="value").sort_index()
    columns, rows = list(squares.columns), list(squares.index)
    panel.pcolormesh(np.ma.masked_invalid(squares.to_numpy()), norm=norm, cmap=colors, lw=0)
    every = 1 if len(columns) <= MOST_NUMBERS else 2  # labels must not meet
    panel.set_xticks(np.arange(0.5, len(columns), every), [_short(x) for x in columns[::every]])
    panel.set_yticks(np.arange(len(rows)) + 0.5, [_short(y) for y in rows])
    panel.grid(visible=False)
    if len(columns) <= MOST_NUMBERS:
        _write_numbers(panel, squares.to_numpy(), norm, colors)
    for _, square in group[(group["diverged"] > 0) | group["best"]].iterrows():
        column, row = columns.index(square["x"]), rows.index(square["y"])
        if square["diverged"] > 0:
            panel.plot(column + 0.85, row + 0.82, marker="x", color="red", ms=5, mew=1.5)
        if square["best"]:
            frame = Rectangle(
                (column, row), 1, 1, fill=False, ec="red", lw=2.5, clip_on=False, zorder=5
            )
            panel.add_patch(frame)
    first = group.iloc[0]
    title = " · ".join(filter(None, [first["optimizer"], shown_condition(first, names)]))
    edge = f"\nbest at the edge of {first['edge']}" if first["edge"] else ""
    panel.set_title(title + edge, fontsize=10)
    panel.tick_params(labelsize=8)
    panel.set_xlabel(first["x_hyperparameter"], fontsize=9)
    panel.set_ylabel(first["hyperparameter"], fontsize=9)


def _write_numbers(panel: Axes, values: Numbers, norm: Normalize, colors: str) -> None:
    """Write each square's value on it, outside the layout, which would measure every one."""
    shades = colormaps[colors](norm(values))[..., :3] @ (0.2126, 0.7152, 0.0722)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "black" if shades[row, column] > 0.45 else "white"
            center: dict[str, Any] = {"ha": "center", "va": "center", "size": 8, "color": ink}
            panel.text(column + 0.5, row + 0.45, _two_digits(value), **center).set_in_layout(False)


def _add_scale(
    figure: Figure, axes: list[Axes], norm: Normalize, metric: str, columns: int
) -> None:
    low, high = float(norm.vmin or 0), float(norm.vmax or 0)
    ticks = np.geomspace(low, high, 4) if low > 0 else np.linspace(low, high, 4)
    scale = figure.colorbar(
        axes[0].collections[0],
        ax=axes,
        ticks=list(ticks),
        format=lambda value, _: _two_digits(value),
        location="top",
        aspect=40,
        shrink=min(1.0, 2 / columns),
    )
    scale.minorticks_off()
    scale.ax.tick_params(labelsize=9)
    scale.set_label(f"{metric} (x: a run diverged; frame: best)", fontsize=9)


def _short(value: Any) -> str:
    """Return a tick's label, ``0.001`` or ``2.3e-4``: twelve of them must fit side by side."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if len(text) <= 5 or not isinstance(value, float):
        return text
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _two_digits(value: float) -> str:
    """Return a number with two digits, without an exponent up to five."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.2g}"
