"""Drawing shared by analyses."""

import math
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustlr.analysis._cells import conditions

MARKERS = "osD^vPX*<>"


def panels(
    count: int, width: float = 4.5, height: float = 3.2, columns: int = 2
) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels, side by side up to ``columns``."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    return figure, axes


def shown_condition(row: Any, names: list[str]) -> str:
    """Return the conditions of a row as text, ``warmup=true``."""
    return ", ".join(f"{name}={_lower(row[name])}" for name in names if pd.notna(row[name]))


def _lower(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool | str) or value in (True, False)
        else f"{value:g}"
    )


def draw_intervals(
    table: pd.DataFrame, value: str, label: str, hue: list[str] | None = None
) -> Figure:
    """Draw ``value`` with its ``low`` and ``high``: a panel a task, a row an optimizer.

    ``hue`` columns (the conditions by default) tell the points of a row apart by colour and marker.
    """
    hue = conditions(table) if hue is None else hue
    tasks, optimizers = list(table["task"].unique()), list(table["optimizer"].unique())
    kinds = list(dict.fromkeys(shown_condition(row, hue) for _, row in table.iterrows()))
    figure, axes = panels(len(tasks), height=1.1 + 0.55 * len(optimizers))
    colors = sns.color_palette("colorblind", max(1, len(kinds)))
    for panel, task in zip(axes, tasks, strict=True):
        for _, row in table[table["task"] == task].iterrows():
            kind = kinds.index(shown_condition(row, hue))
            height = optimizers.index(row["optimizer"]) + (kind - (len(kinds) - 1) / 2) * 0.22
            if pd.notna(row["low"]):
                panel.plot([row["low"], row["high"]], [height] * 2, color=colors[kind], lw=2)
            style = {"color": colors[kind], "marker": MARKERS[kind % len(MARKERS)], "ls": "none"}
            panel.plot(row[value], height, label=kinds[kind], **style)
        panel.set_yticks(range(len(optimizers)), optimizers)
        panel.set_ylim(len(optimizers) - 0.5, -0.5)
        panel.set_title(task)
        panel.set_xlabel(label)
    if any(kinds):
        add_legend(figure, axes[0])
    return figure


def add_legend(figure: Figure, panel: Axes) -> None:
    """Put one legend for all panels below them."""
    handles = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    columns = min(len(handles), 4, int(figure.get_figwidth() // 1.5))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=max(1, columns)
    )
