"""How does the result depend on the learning rate?

The metric at each learning rate, averaged over seeds with Student's interval, the other
hyperparameters at their best of the points with that learning rate. Diverged runs count as the
task's worst value.
"""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, conditions, counts, of_role, point_by_seed
from robustlr.analysis._intervals import mean_interval
from robustlr.analysis._plots import MARKERS, add_legend, panels, shown_condition

TITLE = "Performance against learning rate"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell and learning rate, with ``value``, ``low`` and ``high``."""
    design = of_role(trials, "design")
    if "lr" not in design or design["lr"].isna().all():
        return pd.DataFrame()
    rows = []
    for key, cell in cells(design):
        sign = -1.0 if cell["direction"].iloc[0] == "maximize" else 1.0
        by_seed = point_by_seed(cell)
        best = by_seed.mean(axis=1).groupby(level="lr").idxmin()
        for lr, point in best.items():
            at_lr = cell[cell["lr"] == lr]
            value, *bounds = (sign * number for number in mean_interval(by_seed.loc[point]))
            low, high = sorted(bounds)
            numbers = {"lr": lr, "value": value, "low": low, "high": high}
            rows.append(key | numbers | {"worst": cell["worst"].iloc[0]} | counts(at_lr))
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the curves: a panel for each task and condition, a line for each optimizer."""
    by = ["task", *conditions(table)]
    groups = list(table.groupby(by, sort=False, dropna=False))
    figure, axes = panels(len(groups))
    optimizers = list(table["optimizer"].unique())
    colors = sns.color_palette("colorblind", len(optimizers))
    for panel, (_, group) in zip(axes, groups, strict=True):
        for optimizer, curve in group.groupby("optimizer", sort=False):
            index = optimizers.index(optimizer)
            curve = curve.sort_values("lr")
            style = {"color": colors[index], "marker": MARKERS[index % len(MARKERS)]}
            offset = 1.06 ** (index - (len(optimizers) - 1) / 2)  # so that intervals stand apart
            panel.plot(curve["lr"] * offset, curve["value"], label=optimizer, **style)
            panel.vlines(curve["lr"] * offset, curve["low"], curve["high"], color=colors[index])
        first = group.iloc[0]
        panel.axhline(first["worst"], color="grey", ls=":", lw=1)
        panel.set_xscale("log")
        _scale(panel, [*group["value"], first["worst"]])
        panel.set_title(" · ".join(filter(None, [first["task"], shown_condition(first, by[1:])])))
        panel.set_xlabel("lr")
        panel.set_ylabel("value")
    add_legend(figure, axes[0])
    return figure


def _scale(panel: Axes, values: list[float]) -> None:
    """Fit the axis to the values alone: wide intervals must not flatten the curves."""
    low, high = min(values), max(values)
    if low > 0 and high > 10 * low:
        panel.set_yscale("log")
        panel.set_ylim(low / 1.3, high * 1.3)
    elif low < high:
        panel.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
