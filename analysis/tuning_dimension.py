"""How many hyperparameters must be tuned for each task?

All hyperparameters are at the one setting with the lowest mean regret over tasks, but for some, which
are tuned for each task. ``gain`` is what tuning them buys over tuning none, and ``missing`` what it
leaves to be had by tuning all, both averaged over tasks, as shares of what there is to gain there
(worst minus best of all optimizers). ``enough`` says whether it reaches 95 % of the fully tuned
score (1 minus the loss as such a share): "yes" if the whole interval of the difference does, "no" if
none of it does. The fewest hyperparameters that are enough are the effective number. The gain of a
single one is its tunability of Probst et al. (2019), with the best common setting as the default and
measured runs in place of a surrogate; the effective number is as described by Adkins et al. (2024).
Each seed is judged with settings that were chosen on the other seeds; intervals are Student's over
seeds. It reads the role ``design``.

Limits: it needs a full grid that all the optimizer's tasks share: elsewhere no two settings differ in
the tuned hyperparameters alone. The interval is about seeds, not tasks. With a single seed there is
none, and the choice and the judgement share it; seeds that a task has not are left out. What a finer or
wider grid would gain is not seen.
"""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from robustlr.analysis._across import ALL, is_grid
from robustlr.analysis._cells import Floats, conditions, means_of_others
from robustlr.analysis._intervals import mean_interval
from robustlr.analysis._plots import MARKERS, add_legend, panels
from robustlr.analysis._sentences import cases, of_each_case, shown_condition
from robustlr.analysis.transfer import Shared, choose, shared_settings

TITLE = "Hyperparameters that need tuning for each task"
ENOUGH = 0.95
MOST = 6
"""Of more hyperparameters the subsets are too many to look at."""


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each optimizer, condition and subset of its hyperparameters (``tuned``)."""
    rows: list[dict[str, Any]] = []
    for key, ours in shared_settings(trials):
        varied = [name for name in ours.settings if ours.settings[name].nunique(dropna=False) > 1]
        if is_grid(ours.settings) and 0 < len(varied) <= MOST:
            own = key | {"task": ALL, "tasks": len(ours.tasks)}
            rows += [own | row | ours.counts for row in _of_subsets(ours, varied)]
    return pd.DataFrame(rows)


def _of_subsets(ours: Shared, varied: list[str]) -> list[dict[str, Any]]:
    subsets = [
        subset for size in range(len(varied) + 1) for subset in itertools.combinations(varied, size)
    ]
    losses = {subset: _tuned_losses(ours, subset) for subset in subsets}
    none, everything = losses[()], losses[tuple(varied)]
    rows = []
    for subset in subsets:
        gain = np.clip(mean_interval(none - losses[subset]), -1, 1)
        missing = np.clip(mean_interval(losses[subset] - everything), -1, 1)
        _, low, high = mean_interval((1 - losses[subset]) - ENOUGH * (1 - everything))
        rows.append(
            {"tuned": " and ".join(subset) or "none", "hyperparameters": len(subset)}
            | dict(zip(("gain", "low", "high"), map(float, gain), strict=True))
            | dict(
                zip(("missing", "missing_low", "missing_high"), map(float, missing), strict=True)
            )
            | {"enough": "yes" if low >= 0 else "no" if high < 0 else "undecided"}
        )
    return rows


def _tuned_losses(ours: Shared, subset: tuple[str, ...]) -> pd.Series:
    """Return each seed's mean loss over tasks, ``subset`` tuned for each task on the other seeds."""
    others = means_of_others(ours.losses)
    codes = np.column_stack([pd.factorize(ours.settings[name])[0] for name in ours.settings])
    kept = [place for place, name in enumerate(ours.settings) if name not in subset]
    found = {}
    for seed in range(others.shape[2]):
        losses = np.where(np.isfinite(others[:, :, seed]), others[:, :, seed], 1.0)
        common = choose(losses, "mean")[0]
        allowed = (codes[:, kept] == codes[common, kept]).all(axis=1)
        tuned = np.where(allowed[:, None], losses, np.inf).argmin(axis=0)
        found[seed] = _mean(ours.losses[tuned, np.arange(len(ours.tasks)), seed])
    return pd.Series(found)


def _mean(losses: Floats) -> float:
    return float(losses.mean())


def verdict(table: pd.DataFrame) -> str:
    """Say for each optimizer how many hyperparameters are enough."""
    if table.empty:
        return "This needs an optimizer with the same full grid on at least two tasks."
    return (
        "Tuned for each task, the others at one setting for all, these reach 95 % of the fully tuned "
        "score:"
    ) + of_each_case((where, _said(rows)) for where, rows in cases(table))


def _said(table: pd.DataFrame) -> str:
    """Return which subset is enough for whom, under one combination of conditions."""
    found: dict[str, list[str]] = {}
    for name, rows in table.groupby("optimizer", sort=False):
        found.setdefault(_needed(rows), []).append(str(name))
    return "; ".join(f"{subset} for {', '.join(names)}" for subset, names in found.items()) + "."


def _needed(rows: pd.DataFrame) -> str:
    """Return the smallest subset that is surely enough, if all smaller ones surely are not."""
    sure = rows[rows["enough"] == "yes"]
    fewest = sure["hyperparameters"].min() if len(sure) else np.inf
    if (rows["enough"] == "undecided")[rows["hyperparameters"] < fewest].any():
        return "a number that cannot be told"
    return " or ".join(sure[sure["hyperparameters"] == fewest]["tuned"])


def draw(table: pd.DataFrame) -> Figure:
    """Draw what each subset leaves to be had: a panel a condition, a row an optimizer."""
    groups = list(table.groupby(conditions(table) or ["task"], sort=False, dropna=False))
    optimizers, subsets = list(table["optimizer"].unique()), list(table["tuned"].unique())
    colors = sns.color_palette("colorblind", len(subsets))
    figure, axes = panels(len(groups), width=5.5, height=1.6 + 0.6 * len(optimizers))
    for panel, (_, group) in zip(axes, groups, strict=True):
        for row in group.to_dict("records"):
            kind = subsets.index(row["tuned"])
            offset = (kind - (len(subsets) - 1) / 2) * 0.7 / max(1, len(subsets))
            height = optimizers.index(row["optimizer"]) + offset
            panel.plot(
                [row["missing_low"], row["missing_high"]], [height] * 2, color=colors[kind], lw=1.5
            )
            style: dict[str, Any] = {"marker": MARKERS[kind % len(MARKERS)], "ls": "none", "ms": 5}
            panel.plot(row["missing"], height, color=colors[kind], label=row["tuned"], **style)
        panel.set_yticks(range(len(optimizers)), optimizers)
        panel.set_ylim(len(optimizers) - 0.5, -0.5)
        margin = 0.05 * max(0.02, group["missing"].max())
        panel.set_xlim(
            min(0, group["missing"].min()) - margin, max(0.02, group["missing"].max()) * 1.3
        )
        panel.set_xlabel("loss above tuning all, share of the gain (0 is enough)")
        panel.set_title(shown_condition(group.iloc[0], conditions(table)) or TITLE)
    add_legend(figure, axes[0])
    return figure
