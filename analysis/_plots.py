"""Drawing shared by analyses."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from robustlr.analysis._cells import conditions
from robustlr.analysis._sentences import shown_condition

MARKERS = "osD^vPX*<>1"
"""Eleven, for ten colours: more than a hundred optimizers differ in one or the other."""

WIDE = 34
"""How many characters of a title fit above a panel."""


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


def metric_label(row: Any) -> str:
    """Return what a row's values are, ``validation error (lower is better)``."""
    if not isinstance(row.get("metric"), str):
        return "value"
    better = {"minimize": " (lower is better)", "maximize": " (higher is better)"}
    return str(row["metric"]) + better.get(row.get("direction", ""), "")


def title_of(row: Any, names: Sequence[str]) -> str:
    """Return a panel's title: the row's task and the named conditions, in lines that fit."""
    shown = shown_condition(row, list(names))
    parts = [str(row["task"]), *([shown] if shown else [])]
    return "\n".join(line for part in parts for line in textwrap.wrap(part, WIDE))


def draw_intervals(
    table: pd.DataFrame, value: str, label: str = "", hue: list[str] | None = None
) -> Figure:
    """Draw ``value`` with its ``low`` and ``high``: a panel a task, a row an optimizer.

    The axis says ``label``, or each task's metric. ``hue`` columns (the conditions by default) tell the
    points of a row apart by colour and marker.
    An interval that is much wider than the values differ runs out of the panel.
    """
    hue = conditions(table) if hue is None else hue
    tasks, optimizers = list(table["task"].unique()), list(table["optimizer"].unique())
    table = table.assign(kind=[shown_condition(row, hue) for _, row in table.iterrows()])
    kinds = list(table["kind"].unique())
    longest = max(len(str(name)) for name in optimizers)
    height = 1.3 + max(0.45, 0.22 * len(kinds)) * len(optimizers)
    width = 4.5 + 0.08 * max(0, longest - 12)
    columns = 3 if height > width else 2  # tall panels would make a picture that fits no page
    figure, axes = panels(len(tasks), width=width, height=height, columns=columns)
    for panel, task in zip(axes, tasks, strict=True):
        rows = table[table["task"] == task]
        _draw_rows(panel, rows, value, optimizers, kinds)
        panel.set_title(title_of(rows.iloc[0], []), fontsize=11)
        panel.set_xlabel(textwrap.fill(label or metric_label(rows.iloc[0]), 48), fontsize=10)
    if any(kinds):
        add_legend(figure, *axes)
    return figure


def _draw_rows(
    panel: Axes, rows: pd.DataFrame, value: str, optimizers: list[str], kinds: list[str]
) -> None:
    colors = sns.color_palette("colorblind", max(1, len(kinds)))
    step = min(0.22, 0.8 / len(kinds))
    for _, row in rows.iterrows():
        kind = kinds.index(row["kind"])
        height = optimizers.index(row["optimizer"]) + (kind - (len(kinds) - 1) / 2) * step
        if pd.notna(row["low"]):
            panel.plot([row["low"], row["high"]], [height] * 2, color=colors[kind], lw=2)
        style = {"color": colors[kind], "marker": MARKERS[kind % len(MARKERS)], "ls": "none"}
        panel.plot(row[value], height, label=kinds[kind], **style)
    panel.set_yticks(range(len(optimizers)), optimizers)
    panel.set_ylim(len(optimizers) - 0.5, -0.5)
    panel.locator_params(axis="x", nbins=5)  # more long numbers would overlap
    low, high = rows[value].min(), rows[value].max()
    room = 2 * (high - low)
    if room > 0:  # wide intervals must not flatten what they are about
        left, right = panel.get_xlim()
        panel.set_xlim(max(left, low - room), min(right, high + room))


def add_legend(figure: Figure, *panels: Axes) -> None:
    """Put one legend for all panels below them."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    inches = 0.6 + 0.09 * max(map(len, handles), default=0)
    columns = min(len(handles), int(figure.get_figwidth() // inches))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=max(1, columns)
    )


def draw_curves(table: pd.DataFrame, x: str, y: str, labels: tuple[str, str]) -> Figure:
    """Draw one task's curves: a panel an optimizer, in colour before all the others in grey.

    A line is a condition, with its ``low`` and ``high``; where lines would hide each other's
    intervals they stand a little apart. ``labels`` are those of the axes, of which the first is
    logarithmic.
    """
    names = conditions(table)
    shown = table.assign(kind=[shown_condition(row, names) for _, row in table.iterrows()])
    kinds, optimizers = list(shown["kind"].unique()), list(shown["optimizer"].unique())
    figure, axes = panels(len(optimizers), width=3.6, height=2.7, columns=min(4, len(optimizers)))
    lines = [
        (key, curve.sort_values(x))
        for key, curve in shown.groupby(["optimizer", "kind"], sort=False)
    ]
    colors = sns.color_palette("colorblind", len(kinds))
    for panel, optimizer in zip(axes, optimizers, strict=True):
        for (owner, _), curve in lines:
            if owner != optimizer:
                panel.plot(curve[x], curve[y], color="0.8", lw=0.8, zorder=1)
        for (owner, kind), curve in lines:
            if owner == optimizer:
                index = kinds.index(kind)
                at = curve[x] * 1.07 ** (index - (len(kinds) - 1) / 2)
                style = {"color": colors[index], "marker": MARKERS[index % len(MARKERS)], "ms": 5}
                panel.plot(at, curve[y], label=kind, zorder=3, **style)
                panel.vlines(at, curve["low"], curve["high"], color=colors[index], zorder=2)
        panel.set_xscale("log")
        panel.minorticks_off()  # most of the time of drawing
        panel.set_title(optimizer, fontsize=11)
        panel.tick_params(labelsize=9)
    figure.supxlabel(labels[0], fontsize=10)
    figure.supylabel(labels[1], fontsize=10)
    figure.suptitle(shown["task"].iloc[0], fontsize=12)
    if any(kinds):
        add_legend(figure, *axes)
    return figure


def fit_axis(panel: Axes, values: Sequence[float]) -> None:
    """Fit the vertical axis to values alone: wide intervals must not flatten the curves."""
    low, high = min(values), max(values)
    if low > 0 and high > 10 * low:
        panel.set_yscale("log")
        panel.set_ylim(low / 1.3, high * 1.3)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        panel.minorticks_off()
    elif low < high:
        panel.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def with_full_titles(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with its conditions told in ``task``: ``draw_intervals`` draws a panel each."""
    names = conditions(table)
    shown = (shown_condition(row, names) for _, row in table.iterrows())
    titles = [
        f"{task}\n{text}" if text else task for task, text in zip(table["task"], shown, strict=True)
    ]
    return table.assign(task=titles)
