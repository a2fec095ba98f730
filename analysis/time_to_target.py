"""How many steps does the optimizer need to reach a good result?

The first step at which a run's tuning metric has reached the task's target; the median over seeds.
The target is fixed by a rule: 90 % of the way from the task's worst value to the best seen, which is
the best point's final value, averaged over seeds, of all optimizers under any condition. Runs that
miss the target, or diverge before or later, take infinitely long; runs without a curve that did not
diverge are left out. ``tuned`` is the setting with the best final value, chosen for each seed on the
other seeds; ``default`` is the out-of-the-box setting. The interval of the median is that of its order
statistics, which holds for any distribution and covers at least 95 %, more where seeds are few; below
six seeds none can, and it is unbounded. Time to a fixed target is the measure of AlgoPerf's benchmark
(as described by its authors). It reads the roles ``design`` and ``default``, with the column ``curve``.

Limits: the target depends on the best seen, so it moves when an optimizer is added, and it is known
only after the runs; a run is looked at only at its evaluations, so times are rounded up to the next;
the setting with the best final value need not be the fastest; adaptive designs (tpe) are left out.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from robustlr.analysis._across import ranges
from robustlr.analysis._cells import (
    cells,
    conditions,
    counts,
    in_unit,
    means_of_others,
    of_role,
    point_by_seed,
    with_losses,
)
from robustlr.analysis._intervals import LEVEL
from robustlr.analysis._plots import draw_intervals
from robustlr.task import CURVE

TITLE = "Time to target"
PICTURE_PER = "setting"
SHARE = 0.9
UNBOUNDED = float("inf")
READ = ["value", "worst", "direction", "metric", "diverged", CURVE]


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each cell and setting, with ``steps_to_target``, ``low`` and ``high``.

    ``reached`` is the share of seeds that reached the ``target``, which is in the metric's unit.
    """
    if CURVE not in trials or trials[CURVE].isna().all():
        return pd.DataFrame()
    bounds = ranges(trials)
    rows: list[dict[str, Any]] = []
    arms: list[pd.DataFrame] = []
    for key, cell in cells(trials[_watched(trials)]):
        best, worst = bounds.get(key["task"], (0.0, 0.0))
        if not best < worst:
            continue
        target, rounding = worst - SHARE * (worst - best), 1e-9 * (worst - best)
        for setting, runs in _arms(cell):
            row = key | {"setting": setting, "target": in_unit(cell, target)}
            rows.append(row | counts(of_role(cell, "design") if setting == "tuned" else runs))
            arms.append(runs.reindex(columns=READ).assign(target=target + rounding, arm=len(arms)))
    if not arms:
        return pd.DataFrame()
    for row, (_, steps) in zip(rows, _first_steps(pd.concat(arms)).groupby(level=0), strict=True):
        numbers = dict(zip(("steps_to_target", "low", "high"), median_interval(steps), strict=True))
        row |= numbers | {"reached": float(np.isfinite(steps).mean()), "seeds": len(steps)}
    return pd.DataFrame(rows)


def _watched(trials: pd.DataFrame) -> "pd.Series[bool]":
    """Return which runs have a curve, or died before there was one, on a task that has some."""
    seen = trials[CURVE].notna()
    died = trials["diverged"].astype(bool) & seen.groupby(trials["task"]).transform("any")
    return seen | died


def _arms(cell: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the runs of the tuned and of the default setting, one a seed."""
    arms = []
    design, default = of_role(cell, "design"), of_role(cell, "default")
    if len(design):
        by_seed = point_by_seed(design)
        places = means_of_others(by_seed.to_numpy()).argmin(axis=0)
        names = list(by_seed.index.names)
        chosen = by_seed.index[places].to_frame(index=False).assign(seed=by_seed.columns)
        arms.append(("tuned", chosen.merge(design.drop_duplicates([*names, "seed"]))))
    if len(default):
        arms.append(("default", default.drop_duplicates("seed")))
    return [(setting, runs) for setting, runs in arms if len(runs)]


def _first_steps(runs: pd.DataFrame) -> pd.Series:
    """Return the first step of each run whose loss is at most its target; infinity if none.

    ``runs`` has a row a run with the columns ``READ``, ``target`` and ``arm``; the result is by arm.
    """
    runs = runs.reset_index(drop=True)
    looks = runs.assign(look=runs[CURVE].str.split()).explode("look").dropna(subset="look")
    pairs = looks["look"].str.partition("=")
    losses = with_losses(looks[READ].assign(value=pairs[2].astype(float)))["loss"]
    steps = pairs[0].astype(float)[losses <= looks["target"]]  # a diverged run's are the worst
    first = steps.groupby(level=0).min().reindex(runs.index).fillna(UNBOUNDED)
    return first.set_axis(runs["arm"])


def median_interval(values: pd.Series) -> tuple[float, float, float]:
    """Return the median and the narrowest symmetric pair of order statistics that covers it.

    Each of ``count`` independent values lies below the median with chance one half, so the
    ``rank``-th smallest and largest miss it with the tails of a binomial distribution.
    """
    ordered, count = np.sort(values.to_numpy()), len(values)
    middle = ordered[(count - 1) // 2 : count // 2 + 1]
    median = float(middle.mean())
    rank = int(stats.binom.ppf((1 - LEVEL) / 2, count, 0.5))
    if rank < 1:
        return median, 0.0, UNBOUNDED
    return median, float(ordered[rank - 1]), float(ordered[-rank])


def verdict(table: pd.DataFrame) -> str:
    """Say who is fastest on each task, where the intervals tell it, and who misses the target."""
    if table.empty:
        return (
            "This needs runs with a learning curve (the column curve) of a task on which something "
            "was learnt."
        )
    tuned = table[table["setting"] == "tuned"]
    groups = tuned.groupby(["task", *conditions(table)], dropna=False, sort=False)
    first: dict[str, int] = {}
    for _, rows in groups:
        fastest = rows.loc[rows["steps_to_target"].idxmin()]
        others = rows.drop(index=fastest.name)
        if len(others) and (others["low"] > fastest["high"]).all():
            first[fastest["optimizer"]] = first.get(fastest["optimizer"], 0) + 1
    of = f"of {len(groups)} tasks and conditions"
    sentences = [
        f"Tuned, {name} reaches the target first on {n} {of}." for name, n in first.items()
    ]
    if (untold := len(groups) - sum(first.values())) > 0:
        few = " (the interval of a median needs six seeds)" if tuned["seeds"].max() < 6 else ""
        sentences.append(f"On {untold} {of}, which tuned optimizer is first cannot be told{few}.")
    missed = tuned[tuned["reached"] < 0.5].groupby("optimizer", sort=False).size()
    if len(missed):
        names = ", ".join(f"{name} ({number} times)" for name, number in missed.items())
        sentences.append(f"Most tuned runs miss the target for {names}.")
    return " ".join(sentences)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the medians; a run that missed the target stands beyond the dotted line."""
    finite = table[["steps_to_target", "low", "high"]].replace(UNBOUNDED, np.nan)
    limits = 1.25 * finite.max(axis=1).groupby(table["task"]).transform("max")
    limits = limits.where(limits > 0, 1.0)
    shown = table.copy()
    for name in finite:
        shown[name] = table[name].clip(upper=limits)
    label = f"steps to the target, {table['setting'].iloc[0]}\n(few is best)"
    figure = draw_intervals(shown, "steps_to_target", label)
    for panel, (_, rows) in zip(figure.axes, shown.groupby("task", sort=False), strict=False):
        limit = float(limits[rows.index[0]])
        panel.axvline(0.95 * limit, color="grey", ls=":", lw=1)
        panel.set_xlim(-0.03 * limit, 1.04 * limit)
        panel.annotate(
            "missed",
            (limit, 1),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            size=8,
        )
    return figure
