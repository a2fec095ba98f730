"""How much of the best result is left at each learning rate?

The relative performance at a learning rate is the optimizer's best value divided by the value there, 1
at the best learning rate and less elsewhere; a run that diverged counts as 0. For metrics that are
minimised and positive: errors, losses, Fréchet distances, and perplexities (geometric means over
seeds). For all others, such as rewards and accuracies, it is the share of what there is to gain that is
left, (worst − value) / (worst − best); ``form`` says which. Each value is the mean over the seeds of the
``design`` trials, the other hyperparameters at their best. ``area`` is the mean of the curve over the
range that all optimizers of the task searched, from ``range_low`` to ``range_high``; each of the
design's learning rates counts by the decades it stands for, halfway to its neighbours. Source: Figure
4 of Bernstein et al., "On the distance between two neural networks and the stability of learning"
(2020), whose metrics are of the first form. Intervals are jackknives over seeds; ``difference`` is of
the area, to the ``leader``, the optimizer of the best mean rank, paired by seed.

Limits: the best is the best of a noisy sample, so curves are a little too low; ratios of losses, of
perplexities and of distances are not comparable with one another; the area depends on the range. Where
every point has a learning rate of its own (random and Sobol designs), they are taken together by half
decades. Adaptive designs (tpe) are left out. The verdict claims only differences that hold for all
comparisons together, by Holm's procedure over all pairs of optimizers.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, conditions, counts, is_perplexity, of_role, with_losses
from robustlr.analysis._compare import against_leader, verdict_on_leader
from robustlr.analysis._plots import draw_curves
from robustlr.analysis._sweeps import (
    Numbers,
    Runs,
    cell_weights,
    common_ranges,
    estimate,
    jackknifed,
    leave_one_out,
    means,
    runs_of,
)

TITLE = "Relative performance against learning rate"
PICTURE_PER = "task"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell and learning rate, with ``relative``, and the cell's ``area``."""
    design = of_role(trials, "design")
    if "lr" not in design or design["lr"].isna().all():
        return pd.DataFrame()
    least = with_losses(design).groupby("task")["loss"].min()
    sweeps = [
        (key | {"hyperparameter": "lr"}, runs_of(cell), counts(cell))
        for key, cell in cells(design)
        if cell["lr"].nunique() > 1
    ]
    shared = common_ranges([(key, runs) for key, runs, _ in sweeps])
    rows, areas, curves = [], [], []
    for key, runs, counted in sweeps:
        low, high = shared[key["task"], "lr"]
        form = _form(key, float(least[key["task"]]))
        inside = (runs.values >= low) & (runs.values <= high)
        if inside.sum() < 2:  # the optimizers' ranges hardly meet
            inside[:] = True
        area = estimate(runs, partial(_area, runs, form, inside))
        areas.append(area)
        named = dict(zip(("area", "area_low", "area_high"), area.interval(0, 1), strict=True))
        ends = {"range_low": runs.values[inside][0], "range_high": runs.values[inside][-1]}
        rows.append(key | {"form": form} | named | ends | counted)
        curves.append(_curve(runs, form))
    if not rows:
        return pd.DataFrame()
    table = against_leader(pd.DataFrame(rows).drop(columns="hyperparameter"), areas, higher=True)
    repeated = table.loc[np.repeat(table.index, [len(curve) for curve in curves])]
    return pd.concat(
        [repeated.reset_index(drop=True), pd.concat(curves, ignore_index=True)], axis=1
    )


def _form(key: dict[str, Any], least: float) -> str:
    """Return how values are related to the best; ``least`` is the lowest loss of the task."""
    metric = key.get("metric", "value")
    if is_perplexity(metric) or (key.get("direction") == "minimize" and least > 0):
        return f"best ÷ {metric}"
    return f"share of the gain in {metric}"


def relative(runs: Runs, form: str, times: Numbers) -> Numbers:
    """Return the relative performance, ``[values, resamplings]``; NaN where nothing was learnt."""
    losses = means(runs.losses, times, np.inf)
    best = losses.min(axis=0)
    gain = runs.worst - best
    with np.errstate(invalid="ignore", divide="ignore"):
        if form.startswith("share"):
            left = (runs.worst - losses) / gain
        else:
            alive = np.where(runs.diverged > 0, np.nan, runs.losses)
            mean = means(alive, times, np.inf)
            ratio = np.exp(best - mean) if form.endswith("perplexity") else best / mean
            left = np.minimum(ratio, 1) * (1 - means(runs.diverged, times, 1.0))
        left = np.where(gain > 0, np.clip(left, 0, 1), np.nan)
    return np.maximum.reduceat(left, runs.starts)


def _area(runs: Runs, form: str, inside: "np.typing.NDArray[np.bool_]", times: Numbers) -> Numbers:
    weights = cell_weights("lr", runs.values[inside])
    return np.asarray(weights @ relative(runs, form, times)[inside])


def _curve(runs: Runs, form: str) -> pd.DataFrame:
    values = relative(runs, form, leave_one_out(len(runs.seeds)))
    value, half = jackknifed(values)
    ends = {"low": np.clip(value - half, 0, 1), "high": np.clip(value + half, 0, 1)}
    return pd.DataFrame({"lr": runs.values, "relative": value} | ends)


def verdict(table: pd.DataFrame) -> str:
    """Return what the areas under the curves show."""
    if table.empty:
        return "This needs a grid, random or Sobol design with two learning rates or more."
    one_each = table.drop_duplicates(["task", "optimizer", *conditions(table)])
    what = "Share of the best result that is left, averaged over the learning rates"
    return verdict_on_leader(one_each, what, "worse", "better")


def draw(table: pd.DataFrame) -> Figure:
    """Draw the curves of one task: a panel for each optimizer, a line for each condition."""
    figure = draw_curves(table, "lr", "relative", ("lr", str(table["form"].iloc[0])))
    for panel in figure.axes:
        panel.set_ylim(-0.03, 1.05)
    return figure
