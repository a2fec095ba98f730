"""At which tuning budget is the ranking of optimizers settled?

For a budget of ``tries``, every optimizer is given that many settings, drawn with replacement from its
design's points, and keeps the best. ``best`` is the probability that the optimizer then has the lowest
loss of all (ties are split), ``tau`` Kendall's rank correlation between the ranking of all optimizers
at that budget and the final one, of their best points by their means over seeds: 1 says that neither a
larger budget nor more seeds would change anything. Both are averaged over 500 draws on each seed alone,
as someone with one seed tunes, and then over seeds, with Student's interval. It reads the role
``design``. The view of rankings over budgets is that of Sivaprasad et al. (2020), as described by them.

Limits: the interval is about seeds; the final ranking is taken as known, though the same seeds make it,
so that ``tau`` is a little too high, and where seeds disagree it stays below 1 at any budget; the
points are taken as the space, which for a random design is only true of budgets far below the number of
points. Optimizers that others are added to lose probability. ``best`` says nothing about by how much.
Adaptive designs (tpe) are left out.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from robustlr.analysis._across import Group, grouped, mean_intervals, named
from robustlr.analysis._cells import Floats, conditions, counts, of_role, point_by_seed
from robustlr.analysis._plots import add_legend, panels
from robustlr.analysis._sentences import cases, shown_condition

TITLE = "Rank stability over the tuning budget"
BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DRAWS = 500
SETTLED = 0.9
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each task, condition, budget and optimizer; nothing of one optimizer."""
    rows: list[dict[str, Any]] = []
    for group in grouped(of_role(trials, "design"), "task"):
        if len(group[1]) > 1:
            rows += _of_group(group)
    return pd.DataFrame(rows)


def _of_group(group: Group) -> list[dict[str, Any]]:
    tables = [point_by_seed(cell) for _, cell in group[1]]
    seeds = sorted(set.intersection(*(set(table.columns) for table in tables)))
    if not seeds:
        return []
    generator = np.random.default_rng(0)  # one for all seeds: the interval has the draws' noise too
    final = np.array([table[seeds].mean(axis=1).min() for table in tables])
    found = [
        _of_seed([table[seed].dropna().to_numpy() for table in tables], final, generator)
        for seed in seeds
    ]
    budgets = min((each[0] for each in found), key=len)
    taus = _estimates(np.array([taus[: len(budgets)] for _, _, taus in found]), -1)
    rows = []
    for optimizer, (key, cell) in enumerate(group[1]):
        own = named(group[0], key) | {"optimizer": key["optimizer"]}
        counted = counts(cell) | {"seeds": len(seeds)}
        bests = _estimates(np.array([best[: len(budgets), optimizer] for _, best, _ in found]), 0)
        for tries, best, tau in zip(budgets, bests, taus, strict=True):
            best_names, tau_names = ("best", "low", "high"), ("tau", "tau_low", "tau_high")
            row = dict(zip(best_names, best, strict=True)) | dict(zip(tau_names, tau, strict=True))
            rows.append(own | {"tries": tries} | row | counted)
    return rows


def _estimates(by_seed: Floats, least: float) -> list[list[float]]:
    """Return each column's mean and interval; Student's knows no bounds, so it is cut."""
    estimates: list[list[float]] = np.clip(mean_intervals(by_seed), least, 1).tolist()
    return estimates


def _of_seed(
    losses: list[Floats], final: Floats, generator: np.random.Generator
) -> tuple[list[int], Floats, Floats]:
    """Return the budgets, each optimizer's chance to be best (budgets × optimizers), and tau.

    ``final`` are the losses of the optimizers' best points by their means over seeds.
    """
    ordered = [np.sort(points) for points in losses]
    budgets = [tries for tries in BUDGETS if tries <= min(map(len, ordered))]
    draws = 1 - generator.uniform(size=(DRAWS, len(ordered)))
    best = np.zeros((len(budgets), len(ordered)))
    taus = np.zeros(len(budgets))
    for place, tries in enumerate(budgets):
        found = np.column_stack(
            [
                points[
                    np.minimum(
                        (len(points) * (1 - draw ** (1 / tries))).astype(int), len(points) - 1
                    )
                ]
                for points, draw in zip(ordered, draws.T, strict=True)
            ]
        )
        first = found == found.min(axis=1, keepdims=True)
        best[place] = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
        taus[place] = _kendall(found, final)
    return budgets, best, taus


def _kendall(found: Floats, final: Floats) -> float:
    """Return the mean rank correlation (tau-a) of each row of ``found`` with ``final``.

    Pairs that are equal in one of the two count as neither in nor out of order.
    """
    one, other = np.triu_indices(len(final), 1)
    agreement = np.sign(found[:, one] - found[:, other]) * np.sign(final[one] - final[other])
    return float(agreement.mean())


def verdict(table: pd.DataFrame) -> str:
    """Say from which budget on the ranking is settled on each task."""
    if table.empty:
        return "This needs a task that two optimizers ran in a grid, random or sobol design."
    found: dict[str, list[str]] = {}
    for where, rows in cases(table, "task"):
        settled = rows[rows["tau_low"] >= SETTLED]["tries"]
        found.setdefault(str(settled.min()) if len(settled) else "never surely", []).append(where)
    texts = [
        f"{tries}, whatever the task"
        if len(names) > 1 and len(found) == 1
        else f"{tries} on {'; '.join(names)}"
        for tries, names in found.items()
    ]
    return (
        "Tries after which the ranking on one seed surely agrees with the final one of all seeds "
        f"(Kendall's tau of at least {SETTLED:g}): {', '.join(texts)}."
    )


def draw(table: pd.DataFrame) -> Figure:
    """Draw who is best at each budget, as shares of a stack: a panel a task and condition."""
    by = ["task", *conditions(table)]
    groups = list(table.groupby(by, sort=False, dropna=False))
    figure, axes = panels(len(groups), height=3.4)
    optimizers = list(table["optimizer"].unique())
    colors = sns.color_palette("colorblind", len(optimizers))
    for panel, (_, group) in zip(axes, groups, strict=True):
        budgets = sorted(group["tries"].unique())
        base = np.zeros(len(budgets))
        for optimizer, line in group.groupby("optimizer", sort=False):
            index = optimizers.index(optimizer)
            best = line.set_index("tries")["best"].reindex(budgets).to_numpy()
            style = {"color": colors[index], "hatch": HATCHES[(index + index // 10) % len(HATCHES)]}
            panel.bar(range(len(budgets)), best, bottom=base, label=optimizer, lw=0, **style)
            base += best
        tau = group.drop_duplicates("tries").set_index("tries")["tau"].reindex(budgets)
        labels = [f"{k}\nτ={t:.2f}" for k, t in tau.items()]
        panel.set_xticks(range(len(budgets)), labels, fontsize=8)
        panel.set_ylim(0, 1)
        panel.grid(visible=False)
        panel.set_xlabel("settings tried, and rank correlation with the end")
        panel.set_ylabel("probability to be best")
        first = group.iloc[0]
        panel.set_title(" · ".join(filter(None, [first["task"], shown_condition(first, by[1:])])))
    add_legend(figure, axes[0])
    return figure
