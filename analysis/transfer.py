"""Does one setting serve every task?

The regret of a setting on a task is its loss minus that of the setting tuned for the task, as a share
of what there is to gain there: worst minus best, the best being the lowest of all optimizers' points,
so that all optimizers are judged in one unit. The one setting is chosen in three ways:
``mean``, the lowest mean regret over tasks; ``worst task``, the lowest regret on the task that suffers
most (minimax); ``other tasks``, the lowest mean over the other tasks only, which is what someone with a
new task can do (leave one task out). Only the settings that all the optimizer's tasks have in common
are looked at. Each seed is judged with settings that were chosen, for one and for all tasks, on the
other seeds, so that none is rewarded for its luck; the interval is Student's over seeds, that of all
tasks over the seeds that they have in common (where these are not two, tasks are taken as independent).
A regret of 0 says that nothing is lost by not tuning for the task; ``setting_diverged`` is the share of
the setting's own runs that diverged there, and ``best_setting`` the one tuned for the task. It reads
the role ``design``.

Limits: the interval is about seeds, not about tasks: other tasks may differ more than these. The best
value that scales the regret is estimated and taken as known. With a single seed the choice and the
judgement share it, and there is no interval. Where seeds disagree on the setting, as they do when
several are equally good, what they choose hangs together and the interval covers less: 90 to 91 % of
pure noise with five seeds, 95 % where they agree. A random or Sobol design must have the same points on
each task; adaptive designs (tpe) are left out. That one learning rate serves every task does not say
that results depend little on it, nor the reverse.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from robustlr.analysis._across import ALL, Group, grouped, named, ranges
from robustlr.analysis._cells import (
    Floats,
    conditions,
    counts,
    hyperparameters,
    means_of_others,
    of_role,
    shown_setting,
)
from robustlr.analysis._intervals import LEVEL, mean_interval
from robustlr.analysis._plots import panels
from robustlr.analysis._sentences import cases, of_each_case, shown_condition

TITLE = "Transfer between tasks"


class Shared(NamedTuple):
    """What an optimizer's tasks have in common.

    Attributes:
        tasks: their names.
        settings: the settings that each task has, a row each.
        losses: points × tasks × seeds, as shares of what there is to gain; NaN where missing.
        diverged: points × tasks, the share of diverged runs.
        counts: points, seeds and the share of diverged runs.
    """

    tasks: list[str]
    settings: pd.DataFrame
    losses: Floats
    diverged: Floats
    counts: dict[str, Any]


def shared_settings(trials: pd.DataFrame) -> Iterator[tuple[dict[str, Any], Shared]]:
    """Yield, for each optimizer and condition with two tasks that share settings, its key and them."""
    if trials.empty:
        return
    bounds = ranges(trials)
    for group in grouped(of_role(trials, "design"), "optimizer"):
        ours = _shared(group, bounds)
        if ours is not None:
            yield named(group[0], group[1][0][0]), ours


def _shared(group: Group, bounds: dict[str, tuple[float, float]]) -> Shared | None:
    runs = pd.concat([of_role(cell, "design") for _, cell in group[1]])
    names = hyperparameters(runs)
    tasks = list(dict.fromkeys(runs["task"]))
    if len(tasks) < 2 or not names:
        return None
    best, gain = (
        runs["task"].map(lambda task: bounds[task][0]),
        runs["task"].map(lambda task: bounds[task][1] - bounds[task][0]),
    )
    share = ((runs["loss"] - best) / gain).where(gain > 0, 0.0)
    runs = runs.assign(share=share, diverged=runs["diverged"].astype(float))
    by = runs.groupby([*names, "task", "seed"], dropna=False)[["share", "diverged"]]
    wide = by.mean().unstack(["task", "seed"])
    everywhere = wide["share"].notna().T.groupby(level="task").any().all()
    wide = wide[everywhere]
    if len(wide) < 2:
        return None
    seeds = sorted(runs["seed"].unique())
    columns = pd.MultiIndex.from_product([tasks, seeds])
    losses = wide["share"].reindex(columns=columns).to_numpy()
    diverged = wide["diverged"].T.groupby(level="task").mean().T[tasks].to_numpy()
    settings = wide.index.to_frame(index=False)
    known = runs.drop(columns="share").merge(settings)
    return Shared(
        tasks, settings, losses.reshape(len(wide), len(tasks), -1), diverged, counts(known)
    )


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each optimizer, condition, way to choose (``chosen_for``) and task.

    The rows of "all tasks" have the mean over tasks. ``regret``, ``low`` and ``high`` are shares.
    """
    rows: list[dict[str, Any]] = []
    for key, ours in shared_settings(trials):
        for way in ("mean", "worst task", "other tasks"):
            rows += [key | row | ours.counts for row in _of_way(ours, way)]
    return pd.DataFrame(rows)


def _of_way(ours: Shared, way: str) -> list[dict[str, Any]]:
    others = means_of_others(ours.losses)
    regrets = np.array(
        [_regrets(ours, others[:, :, seed], way, seed) for seed in range(others.shape[2])]
    )
    every_seed = np.nanmean(ours.losses, axis=2)
    chosen, best = choose(every_seed, way), every_seed.argmin(axis=0)
    names = list(ours.settings)
    shown = [shown_setting(names, tuple(row)) for row in ours.settings.itertuples(index=False)]
    places = range(len(ours.tasks))
    rows = [
        {
            "task": ours.tasks[place],
            **_estimate(pd.Series(regrets[:, place])),
            "setting": shown[chosen[place]],
            "setting_diverged": ours.diverged[chosen[place], place],
            "best_setting": shown[best[place]],
        }
        for place in places
    ]
    overall = {
        "task": ALL,
        **_estimate_over_tasks(regrets),
        "setting": shown[chosen[0]] if len(set(chosen)) == 1 else "",
        "setting_diverged": float(
            np.mean([ours.diverged[chosen[place], place] for place in places])
        ),
        "best_setting": "",
    }
    return [{"chosen_for": way, "tasks": len(ours.tasks)} | row for row in [*rows, overall]]


def choose(losses: Floats, way: str) -> Floats:
    """Return, for each task, the place of the one setting; ``losses`` are points × tasks."""
    regrets = losses - losses.min(axis=0)
    if way == "other tasks":
        best: Floats = (regrets.sum(axis=1, keepdims=True) - regrets).argmin(axis=0)
        return best
    over_tasks = regrets.mean(axis=1) if way == "mean" else regrets.max(axis=1)
    return np.full(losses.shape[1], over_tasks.argmin())


def _regrets(ours: Shared, losses: Floats, way: str, seed: int) -> Floats:
    """Return the tasks' regrets on a seed, the settings chosen by ``losses`` (of other seeds)."""
    known = np.isfinite(losses).all(axis=1)
    tasks = np.arange(len(ours.tasks))
    here = ours.losses[known, :, seed]
    if not known.any():
        return np.full(len(tasks), np.nan)
    regrets: Floats = (
        here[choose(losses[known], way), tasks] - here[losses[known].argmin(axis=0), tasks]
    )
    return regrets


def _estimate(regrets: pd.Series) -> dict[str, float]:
    return _clipped(*mean_interval(regrets))


def _estimate_over_tasks(regrets: Floats) -> dict[str, float]:
    """Return the estimate of the mean over tasks from regrets, seeds × tasks.

    Over the seeds that all tasks have; where these are not two, tasks are taken as independent, with
    the degrees of freedom of Welch and Satterthwaite.
    """
    ran = np.isfinite(regrets)
    if ran.all() or ran.all(axis=1).sum() > 1:
        return _estimate(pd.Series(regrets.mean(axis=1)))
    counts_, tasks = ran.sum(axis=0), regrets.shape[1]
    if not counts_.all():
        return _clipped(*[float("nan")] * 3)
    columns = pd.DataFrame(regrets)
    mean = float(columns.mean().mean())
    parts = (columns.var() / counts_ / tasks**2).to_numpy()  # NaN of a single seed
    variance = parts.sum()
    freedom = variance**2 / (parts**2 / np.maximum(counts_ - 1, 1)).sum() if variance else 1
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance))
    return _clipped(mean, mean - half, mean + half)


def _clipped(*estimate: float) -> dict[str, float]:
    within = np.clip(estimate, -1, 1)  # Student's interval knows no bounds
    return dict(zip(("regret", "low", "high"), map(float, within), strict=True))


def verdict(table: pd.DataFrame) -> str:
    """Say for each optimizer what it costs to use the setting tuned on the other tasks."""
    if table.empty:
        return "This needs an optimizer with the same settings on at least two tasks."
    new = table[table["chosen_for"] == "other tasks"]
    return (
        "With the setting tuned on the other tasks, this much of what there is to gain on a task is "
        "lost on average:"
    ) + of_each_case((where, " ".join(_said(rows))) for where, rows in cases(new))


def _said(table: pd.DataFrame) -> Iterator[str]:
    """Yield what one combination of conditions shows."""
    losses, sure, unknown = [], [], []
    for name, rows in table.groupby("optimizer", sort=False):
        (overall,) = rows[rows["task"] == ALL].to_dict("records")
        if pd.isna(overall["regret"]):
            unknown.append(str(name))
            continue
        fell = rows[(rows["setting_diverged"] > 0) & (rows["task"] != ALL)]["task"].unique()
        diverges = f" (diverges on {', '.join(fell)})" if len(fell) else ""
        losses.append(f"{name} {round(100 * overall['regret'])} %{diverges}")
        if overall["low"] > 0:
            sure.append(str(name))
    if losses:
        yield f"{', '.join(losses)}."
        yield (
            f"It is surely more than nothing for {', '.join(sure)}."
            if sure
            else "For none of them is it surely more than nothing."
        )
    if unknown:
        yield (
            f"Not known for {', '.join(unknown)}: a task has no seed that judges what the others chose."
        )


def draw(table: pd.DataFrame) -> Figure:
    """Draw the regret of the setting tuned on the other tasks: a panel a condition."""
    shown = table[table["chosen_for"] == "other tasks"]
    groups = list(shown.groupby(conditions(table) or ["chosen_for"], sort=False, dropna=False))
    tasks = list(shown["task"].unique())
    tasks = [*(task for task in tasks if task != ALL), ALL]
    optimizers = list(shown["optimizer"].unique())
    figure, axes = panels(
        len(groups), width=2.6 + 0.95 * len(tasks), height=2.4 + 0.4 * len(optimizers), columns=1
    )
    for panel, (_, group) in zip(axes, groups, strict=True):
        _draw_panel(panel, group, optimizers, tasks)
        panel.set_title(shown_condition(group.iloc[0], conditions(table)) or TITLE)
    return figure


def _draw_panel(panel: Axes, group: pd.DataFrame, optimizers: list[str], tasks: list[str]) -> None:
    table = group.pivot_table(index="optimizer", columns="task", values="regret", dropna=False)
    table = table.reindex(index=optimizers, columns=tasks)
    fell = group.pivot_table(index="optimizer", columns="task", values="setting_diverged")
    fell = fell.reindex(index=optimizers, columns=tasks) > 0
    text = table.map(lambda value: "" if pd.isna(value) else f"{round(100 * value)}") + fell.map(
        lambda any_diverged: " ×" if any_diverged else ""
    )
    sns.heatmap(
        100 * table, annot=text, fmt="", cmap="cividis_r", vmin=0, vmax=100, ax=panel,
        cbar_kws={"label": "regret, % of the gain\n(0 is best, × diverged)"}, linewidths=1,
    )  # fmt: skip
    panel.grid(visible=False)  # it would show through where there is no square
    panel.set_xlabel("task that the setting is used on")
    panel.set_ylabel("")
    panel.tick_params(axis="x", rotation=30)
    panel.tick_params(axis="y", rotation=0)
    panel.set_xticks(panel.get_xticks(), tasks, ha="right", rotation_mode="anchor")
