"""How does the tuned result depend on each condition?

For every value of a condition (depth, warmup, batch size, …) the metric at the setting that is best
there, averaged over seeds with Student's interval: what someone who tunes at each value gets. As a
tuned setting is chosen for each seed on the other seeds, it is not rewarded for its luck.

Limits: adaptive designs (tpe) are left out; with a single seed the choice and the judgement share it,
and there is no interval.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustlr.analysis._cells import (
    cells,
    conditions,
    counts,
    of_role,
    point_by_seed,
    tuned_by_seed,
)
from robustlr.analysis._intervals import mean_interval
from robustlr.analysis._plots import MARKERS, add_legend, panels, shown_condition

TITLE = "Tuned performance under each condition"
PICTURE_PER = "condition"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell and condition that varies, with ``value``, ``low``, ``high``."""
    varied = [name for name in conditions(trials) if trials[name].nunique() > 1]
    rows: list[dict[str, Any]] = []
    for key, cell in cells(of_role(trials, "design")):
        sign = -1.0 if cell["direction"].iloc[0] == "maximize" else 1.0
        tuned = tuned_by_seed(point_by_seed(cell))
        value, *bounds = (sign * number for number in mean_interval(tuned))
        low, high = sorted(bounds)
        numbers = {"value": value, "low": low, "high": high, "worst": cell["worst"].iloc[0]}
        rows += [key | {"condition": name} | numbers | counts(cell) for name in varied]
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Draw one condition: a panel a task and setting of the others, a line an optimizer."""
    name = table["condition"].iloc[0]
    others = [other for other in conditions(table) if other != name]
    groups = list(table.groupby(["task", *others], sort=False, dropna=False))
    figure, axes = panels(len(groups))
    optimizers = list(table["optimizer"].unique())
    values = list(dict.fromkeys(table[name]))
    for panel, (_, group) in zip(axes, groups, strict=True):
        _draw_panel(panel, group, name, values, optimizers)
        first = group.iloc[0]
        title = " · ".join(filter(None, [first["task"], shown_condition(first, others)]))
        panel.set_title(title)
    add_legend(figure, axes[0])
    return figure


def _draw_panel(
    panel: Axes, group: pd.DataFrame, name: str, values: list[Any], optimizers: list[str]
) -> None:
    colors = sns.color_palette("colorblind", len(optimizers))
    for optimizer, line in group.groupby("optimizer", sort=False):
        index = optimizers.index(optimizer)
        offset = 0.06 * (index - (len(optimizers) - 1) / 2)  # so that intervals stand apart
        places = [values.index(value) + offset for value in line[name]]
        style = {"color": colors[index], "marker": MARKERS[index % len(MARKERS)]}
        panel.plot(places, line["value"], label=optimizer, **style)
        panel.vlines(places, line["low"], line["high"], color=colors[index])
    panel.axhline(group["worst"].iloc[0], color="grey", ls=":", lw=1)
    span = [*group["value"], group["worst"].iloc[0]]
    margin = 0.05 * (max(span) - min(span)) or 0.5
    panel.set_ylim(min(span) - margin, max(span) + margin)  # wide intervals must not flatten it
    labels = [shown_condition({name: value}, [name]).partition("=")[2] for value in values]
    panel.set_xticks(range(len(values)), labels)
    panel.set_xlabel(name)
    panel.set_ylabel("value")
