"""Plots of one cell in plotly's format, which the dashboard draws; plotly itself is not needed."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import seaborn as sns

from robustlr.analysis._sentences import shown_condition

MOST_RATES = 50
"""Of a design with more learning rates a curve shows one in so many: plots must stay small."""

Facts = Mapping[str, Any]
"""What the database says of a cell; see ``tables.py``."""


@dataclass(frozen=True)
class Figure:
    """Traces and their layout."""

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]

    def with_meta(self, meta: str) -> Self:
        """Return the figure with a text that is not shown."""
        return replace(self, layout={**self.layout, "meta": meta})

    def to_json(self) -> str:
        """Return the figure as JSON."""
        figure = {"data": self.data, "layout": self.layout}
        return json.dumps(figure, separators=(",", ":"), allow_nan=False)


def rows_of(table: pd.DataFrame, facts: Facts, **more: Any) -> pd.DataFrame:
    """Return the rows of the cell's task and conditions, and of ``more``, such as its optimizer."""
    for column, value in {"task": facts["task"], **facts["conditions"], **more}.items():
        table = table[table[column] == value]
    return table


def shown_conditions(facts: Facts) -> str:
    """Return the cell's conditions as text, ``warmup=true``."""
    return shown_condition(facts["conditions"], list(facts["conditions"]))


def curves(facts: Facts, table: pd.DataFrame, optimizers: Sequence[str]) -> Figure | None:
    """Return the curves of all optimizers, the cell's own with its intervals.

    ``table`` is ``lr_curves.py``'s; None if it has nothing on the cell. ``optimizers`` are the
    study's, so that each has the same colour on every page.
    """
    if table.empty or rows_of(table, facts, optimizer=facts["optimizer"]).empty:
        return None
    here = rows_of(table, facts)
    palette = sns.color_palette("colorblind", len(optimizers)).as_hex()
    colors = dict(zip(optimizers, palette, strict=True))
    names = [name for name in optimizers if name in set(here["optimizer"])]
    traces = []
    for name in sorted(names, key=lambda name: name == facts["optimizer"]):  # its own on top
        curve = here[here["optimizer"] == name].sort_values("lr")
        every = math.ceil(len(curve) / MOST_RATES)
        shown = name if every == 1 else f"{name} (1 lr in {every})"
        trace = _curve(curve.iloc[::every], colors[name], is_own=name == facts["optimizer"])
        traces.append({"name": shown, "legendrank": names.index(name) + 1, **trace})
    y = _axis_for([*here["value"], facts["worst"]])
    layout = _layout(facts, "performance against learning rate, intervals at 95 %") | {
        "xaxis": {"title": {"text": "lr"}, "type": "log", "exponentformat": "power"},
        "yaxis": {"title": {"text": _metric(facts)}, **y},
        "shapes": [_worst_line(facts["worst"])],
    }
    return Figure(traces, layout)


def _curve(curve: pd.DataFrame, color: str, *, is_own: bool) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "x": _rounded(curve["lr"]),
        "y": _rounded(curve["value"]),
        "mode": "lines+markers",
        "opacity": 1 if is_own else 0.5,
        "line": {"color": color, "width": 4 if is_own else 1.5},
        "marker": {"size": 9 if is_own else 5},
    }
    if is_own and curve["low"].notna().any():
        high, low = curve["high"] - curve["value"], curve["value"] - curve["low"]
        bars = {"type": "data", "symmetric": False, "thickness": 1.5, "color": color}
        trace["error_y"] = bars | {"array": _rounded(high), "arrayminus": _rounded(low)}
    return trace


def _worst_line(worst: float) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": worst,
        "y1": worst,
        "line": {"color": "grey", "dash": "dot", "width": 1},
        "label": {"text": "worst value", "textposition": "middle", "font": {"color": "grey"}},
    }


def _axis_for(values: Sequence[float]) -> dict[str, Any]:
    """Return an axis that fits values: wide intervals must not flatten the curves."""
    low, high = min(values), max(values)
    is_log = _is_log(low, high)
    low, high = (math.log10(low), math.log10(high)) if is_log else (low, high)
    margin = 0.07 * (high - low) or 0.5
    ends = [round(low - margin, 4), round(high + margin, 4)]
    if not is_log:
        return {"range": ends}
    return {"type": "log", "range": ends, "dtick": "D2" if high - low < 3 else 1}


def heatmap(facts: Facts, table: pd.DataFrame) -> Figure | None:
    """Return the cell's heatmap, or None if it has none; ``table`` is ``heatmap.py``'s.

    Squares with a diverged run are crossed; they, and those that learnt nothing, do not stretch the
    colours.
    """
    here = table if table.empty else rows_of(table, facts, optimizer=facts["optimizer"])
    if here.empty:
        return None
    values = here.pivot(index="y", columns="x", values="value")
    texts = here.assign(text=[_text(square) for _, square in here.iterrows()])
    low, high = _color_range(here, facts)
    is_log = _is_log(low, high)
    scaled = np.log10(values) if is_log else values
    start, end = (math.log10(low), math.log10(high)) if is_log else (low, high)
    ticks = [start + (end - start) * third / 3 for third in range(4)]
    labels = [f"{10**tick if is_log else tick:.2g}" for tick in ticks]
    labels[0] = f"≤ {labels[0]}" if here["value"].min() < low else labels[0]
    labels[3] = f"≥ {labels[3]}" if here["value"].max() > high else labels[3]
    other = here["hyperparameter"].iloc[0]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": [_rounded(row) for _, row in scaled.iterrows()],
        "text": texts.pivot(index="y", columns="x", values="text").fillna("").to_numpy().tolist(),
        "texttemplate": "%{text}",
        "hovertemplate": f"lr %{{x}}<br>{other} %{{y}}<br>%{{text}}<extra></extra>",
        "colorscale": "Viridis",
        "reversescale": facts["direction"] == "minimize",
        "zmin": round(start, 5),
        "zmax": round(end, 5),
        "xgap": 1,
        "ygap": 1,
        "colorbar": {
            "title": {"text": facts["metric"], "side": "right"},
            "tickvals": [round(tick, 5) for tick in ticks],
            "ticktext": labels,
        },
    }
    trace["x"], xaxis = _axis_of_squares("lr", values.columns)
    trace["y"], yaxis = _axis_of_squares(other, values.index)
    layout = _layout(facts, "<b>bold</b>: best; ×: a run diverged") | {
        "xaxis": xaxis,
        "yaxis": yaxis,
    }
    return Figure([trace], layout)


def _text(square: "pd.Series[Any]") -> str:
    text = f"{square['value']:.3g}" + (" ×" if square["diverged"] > 0 else "")
    return f"<b>{text}</b>" if square["best"] else text


def _color_range(here: pd.DataFrame, facts: Facts) -> tuple[float, float]:
    """Return the range from the best square to the worst that learnt something."""
    learnt = (here["diverged"] == 0) & (here["value"] != here["worst"])
    settled = here.loc[learnt | here["best"], "value"]
    ends = settled if settled.nunique() > 1 else [*here["value"], facts["worst"]]
    low, high = min(ends), max(ends)
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def _axis_of_squares(name: str, values: "pd.Index[Any]") -> tuple[list[Any], dict[str, Any]]:
    """Return positions and an axis: logarithmic where the values are, else one step a value."""
    are_numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    texts = [f"{value:.3g}" if are_numbers else str(value) for value in values]
    axis = {"title": {"text": name}, "automargin": True}
    if are_numbers and _is_log(values.min(), values.max()):
        positions = _rounded(values)
        return positions, axis | {"type": "log", "tickvals": positions, "ticktext": texts}
    return texts, axis | {"type": "category"}


def _is_log(low: float, high: float) -> bool:
    return bool(low > 0 and high >= 10 * low)


def _metric(facts: Facts) -> str:
    better = "lower" if facts["direction"] == "minimize" else "higher"
    return f"{facts['metric']} ({better} is better)"


def _layout(facts: Facts, subject: str) -> dict[str, Any]:
    where = " · ".join(filter(None, [facts["task"], facts["optimizer"], shown_conditions(facts)]))
    title = f"{where}<br><span style='font-size:12px'>{subject}</span>"
    return {
        "title": {"text": title, "x": 0.02, "font": {"size": 15}},
        "legend": {"orientation": "h", "y": -0.25},
        "margin": {"l": 70, "r": 20, "t": 80, "b": 60},
    }


def _rounded(values: Any) -> list[float | None]:
    """Return numbers of four digits, and None (JSON has no NaN) for those that are missing."""
    return [None if pd.isna(value) else float(f"{value:.4g}") for value in values]
