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
    in_unit,
    of_role,
    point_by_seed,
    tuned_by_seed,
    within_range,
)
from robustlr.analysis._intervals import mean_interval
from robustlr.analysis._plots import (
    MARKERS,
    add_legend,
    draw_intervals,
    metric_label,
    panels,
    title_of,
)

TITLE = "Tuned performance under each condition"
PICTURE_PER = "condition"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell and condition that varies, with ``value``, ``low``, ``high``."""
    varied = [name for name in conditions(trials) if trials[name].nunique() > 1]
    rows: list[dict[str, Any]] = []
    for key, cell in cells(of_role(trials, "design")):
        tuned = tuned_by_seed(point_by_seed(cell))
        value, *bounds = (in_unit(cell, number) for number in mean_interval(tuned))
        low, high = within_range(cell, tuple(bounds))
        numbers = {"value": value, "low": low, "high": high, "worst": cell["worst"].iloc[0]}
        rows += [key | {"condition": name} | numbers | counts(cell) for name in varied]
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame) -> str:
    """Say which values of each condition are surely better than others for which optimizers."""
    if table.empty:
        return (
            "No condition varies here: this needs a study with two values of one, such as "
            "warmup = [true, false], and a grid, random or sobol design."
        )
    if table["low"].isna().all():
        return "With a single seed no difference is sure: this needs at least two."
    sentences = []
    for name, rows in table.groupby("condition", sort=False):
        others = [other for other in conditions(table) if other != name]
        keys = ["task", "optimizer", *others]
        groups = [g for _, g in rows.groupby(keys, sort=False, dropna=False) if len(g) > 1]
        if not groups:
            sentences.append(f"{name} has a single value wherever all else is equal.")
            continue
        sure = sum(_differ(group) for group in groups)
        cases = "case" if len(groups) == 1 else "cases"
        sentences.append(
            f"{name} surely changes the tuned result in {sure} of {len(groups)} {cases} (task and "
            "optimizer), where the intervals of two of its values do not meet"
            + ("." if sure == len(groups) else "; in the others we cannot tell.")
        )
    return " ".join(sentences)


def _differ(group: pd.DataFrame) -> bool:
    """Return whether two rows' intervals do not meet."""
    return bool(group["low"].max() > group["high"].min())


def draw(table: pd.DataFrame) -> Figure:
    """Draw one condition: a panel a task, a row an optimizer, a colour a value.

    Of a condition of three numbers or more the panel has an axis of them, and a line an optimizer.
    """
    name = table["condition"].iloc[0]
    others = [other for other in conditions(table) if other != name]
    if table[name].nunique() < 3 or not pd.api.types.is_numeric_dtype(table[name]):
        return draw_intervals(table, "value", hue=[name, *others])
    groups = list(table.groupby(["task", *others], sort=False, dropna=False))
    figure, axes = panels(len(groups))
    optimizers = list(table["optimizer"].unique())
    values = sorted(table[name].unique())
    for panel, (_, group) in zip(axes, groups, strict=True):
        _draw_panel(panel, group, name, values, optimizers)
        panel.set_title(title_of(group.iloc[0], others), fontsize=11)
    add_legend(figure, *axes)
    return figure


def _draw_panel(
    panel: Axes, group: pd.DataFrame, name: str, values: list[Any], optimizers: list[str]
) -> None:
    colors = sns.color_palette("colorblind", len(optimizers))
    for optimizer, line in group.groupby("optimizer", sort=False):
        index = optimizers.index(optimizer)
        offset = 0.06 * (index - (len(optimizers) - 1) / 2)  # so that intervals stand apart
        line = line.sort_values(name)
        places = [values.index(value) + offset for value in line[name]]
        style = {"color": colors[index], "marker": MARKERS[index % len(MARKERS)]}
        panel.plot(places, line["value"], label=optimizer, **style)
        panel.vlines(places, line["low"], line["high"], color=colors[index])
    panel.axhline(group["worst"].iloc[0], color="grey", ls=":", lw=1)
    span = list(group["value"])
    margin = 0.05 * (max(span) - min(span)) or 0.5
    panel.set_ylim(min(span) - margin, max(span) + margin)  # wide intervals must not flatten it
    panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    panel.set_xlabel(name)
    panel.set_ylabel(metric_label(group.iloc[0]), fontsize=10)
