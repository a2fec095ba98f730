"""How far is the out-of-the-box setting from the tuned one?

For each seed, the loss of the default setting minus that of the tuned setting with the same initial
weights and batches, averaged over seeds with Student's interval; positive means that tuning helps.
``gap`` is in the metric's unit (of perplexities in nats: the logarithm of their ratio), ``gap_share``
its share of what there is to gain, from the task's worst value to the tuned one. ``difference`` is
that share minus the ``leader``'s, the optimizer of the best mean rank, paired by seed.

``judged_on`` says what was read. Where a study was confirmed (roles ``confirm`` and
``confirm-default``), these are those of its seeds that the search did not have, and test values if all
runs have one. Else the ``design`` and ``default`` trials are judged on validation data, and the tuned
setting of each seed is chosen on the other seeds, so that it is not rewarded for its luck on the one it
is judged on. After Schmidt et al. (2021), who compare optimizers out of the box and tuned.

Limits: a confirmed gap is that of the one setting that was chosen; the share counts what there is to
gain as known. A small gap is no merit where the tuned result is bad. Confirmed, the interval is
Student's over seeds and covers the truth in 95 % of simulated studies. Else it is for the best setting
there is, spans the choice on the other seeds and on all, and covers in 95 % of studies where settings
differ, in up to 99 % where many are equally good. A single seed chooses and judges, so its gap is too
large, and it has no interval; seeds that all differ by the same, as counted or capped metrics may,
give an interval without width, which says more than they know. Adaptive designs (tpe) need
confirmation. Of differences to the leader the verdict claims only those that hold together, by Holm's
procedure over all pairs of optimizers.
"""

import math
import textwrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robustlr.analysis._cells import (
    cells,
    conditions,
    counts,
    in_unit,
    is_perplexity,
    of_role,
    point_by_seed,
    point_names,
    shown_setting,
    tuned_by_seed,
    with_losses,
)
from robustlr.analysis._compare import against_leader, verdict_on_leader
from robustlr.analysis._intervals import spanning_interval
from robustlr.analysis._plots import panels
from robustlr.analysis._sentences import of_cases, shown_condition, tally
from robustlr.analysis._sweeps import Estimate

TITLE = "Out-of-the-box gap"


class Arms(NamedTuple):
    """The losses of a cell's default and tuned settings by seed, and what they are.

    ``chosen`` is the loss of the setting that is best on all seeds of the design, or ``tuned``'s where
    fresh seeds judge.
    """

    default: "pd.Series[float]"
    tuned: "pd.Series[float]"
    chosen: "pd.Series[float]"
    best_setting: str
    judged_on: str


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell that has both arms, with ``gap``, ``low`` and ``high``."""
    rows, estimates = [], []
    for key, cell in cells(trials):
        arms = _confirmed(cell) or _left_out(cell)
        if arms is None:
            continue
        pairs = pd.DataFrame(arms[:3], ["default", "tuned", "chosen"]).T.dropna()
        alike = np.isclose(pairs["default"], pairs["tuned"], rtol=1e-12, atol=0)  # but for rounding
        gaps = (pairs["default"] - pairs["tuned"]).mask(alike, 0.0)
        bounds = spanning_interval(gaps, pairs["default"] - pairs["chosen"])
        worst, tuned = float(cell["worst_loss"].iloc[0]), float(pairs["tuned"].mean())
        available = worst - tuned if tuned < worst else float("nan")
        best = min(cell["loss"].min(), pairs.min(axis=None))  # on validation and on test data
        most = worst - float(best)  # a gap in which no run would fit is none
        estimate = np.clip([gaps.mean(), *bounds], -most, most)
        share = np.clip(np.array(estimate) / available, -1, 1)
        searched = of_role(cell, "design", "adaptive")
        rows.append(
            key
            | dict(zip(("gap", "low", "high"), estimate, strict=True))
            | dict(zip(("gap_share", "share_low", "share_high"), share, strict=True))
            | {
                "default_value": in_unit(cell, float(pairs["default"].mean())),
                "tuned_value": in_unit(cell, tuned),
                "best_setting": arms.best_setting,
                "judged_on": arms.judged_on,
            }
            | counts(cell if searched.empty else searched)
            | {"seeds": len(gaps)}
        )
        estimates.append(Estimate(float(share[0]), gaps / available))
    return against_leader(pd.DataFrame(rows), estimates) if rows else pd.DataFrame()


def _confirmed(cell: pd.DataFrame) -> Arms | None:
    """Return the arms on seeds that the search did not have, if there are any that both have."""
    fresh = cell[~cell["seed"].isin(of_role(cell, "design", "adaptive")["seed"])]
    tuned = of_role(fresh, "confirm")
    default = of_role(fresh, "confirm-default", "default")
    both = [
        arm[arm["seed"].isin(other["seed"])] for arm, other in ((default, tuned), (tuned, default))
    ]
    if both[1].empty:
        return None
    names = point_names(tuned)
    setting = shown_setting(names, tuple(tuned[names].iloc[0]))
    runs = pd.concat(both)
    on = "validation"
    if runs["test_value"].notna().where(~runs["diverged"].astype(bool), True).all():
        both = [with_losses(arm.assign(value=arm["test_value"])) for arm in both]
        on = "test"
    losses = [arm.groupby("seed")["loss"].mean() for arm in both]
    return Arms(losses[0], losses[1], losses[1], setting, f"{on}, fresh seeds")


def _left_out(cell: pd.DataFrame) -> Arms | None:
    """Return the arms on the design's seeds, each tuned on the others, if any has both."""
    default, design = of_role(cell, "default"), of_role(cell, "design")
    if not default["seed"].isin(design["seed"]).any():
        return None
    by_seed = point_by_seed(design)
    best = by_seed.mean(axis=1).argmin()  # a place: NaN in a setting cannot be looked up
    setting = shown_setting(list(by_seed.index.names), by_seed.index[best])
    who = "the other seeds" if by_seed.shape[1] > 1 else "the same seed"
    losses = default.groupby("seed")["loss"].mean(), tuned_by_seed(by_seed), by_seed.iloc[best]
    return Arms(*losses, setting, f"validation, {who} chose")


def verdict(table: pd.DataFrame) -> str:
    """Return where tuning helps, where it cannot matter, and how optimizers compare."""
    if table.empty:
        return (
            "This needs trials of a design and of the out-of-the-box setting on the same seeds, or a "
            "confirmed study: robustlr confirm NAME."
        )
    helps, harms = table["low"] > 0, table["high"] < 0
    same = (table["low"] == 0) & (table["high"] == 0) & table["gap_share"].notna()
    sentences = []
    for which, what in (
        (helps, "Tuning helps"),
        (harms, "The search found worse than the default"),
        (
            same,
            "The search found the out-of-the-box setting, or one that does as well on each seed",
        ),
    ):
        if said := tally(which, table["optimizer"]):
            sentences.append(f"{what}: {said} {of_cases(table)}.")
    unclear = table[~helps & ~harms & ~same]
    if len(unclear):
        most = unclear["share_high"].max(skipna=False)  # without an interval nothing is known
        bound = f"; there tuning is worth at most {most:.0%} of what there is to gain"
        where = f"{len(unclear)} of {len(table)} {of_cases(table)}"
        sentences.append(f"We cannot tell on {where}{bound if most < 0.5 else ''}.")
    if table["optimizer"].nunique() > 1:
        words = ("closer to its tuned setting", "farther from its tuned setting")
        sentences.append(
            verdict_on_leader(
                table, "Out-of-the-box gap, as a share of what there is to gain", *words
            )
        )
    return " ".join(sentences)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the gaps: a panel for each condition, a row an optimizer, a column a task.

    The colour is the share, the text the share and the gap in the metric's unit with its interval. A
    question mark says that the interval holds zero.
    """
    names = conditions(table)
    groups = (
        [group for _, group in table.groupby(names, sort=False, dropna=False)] if names else [table]
    )
    tasks, optimizers = list(table["task"].unique()), list(table["optimizer"].unique())
    longest = max(len(str(name)) for name in optimizers)
    width, height = 2.2 + 0.08 * longest + 1.5 * len(tasks), 1.5 + 0.45 * len(optimizers)
    figure, axes = panels(len(groups), width=width, height=height, columns=1)
    for panel, group in zip(axes, groups, strict=True):
        _draw_panel(panel, group, tasks, optimizers)
        panel.set_title(shown_condition(group.iloc[0], names), fontsize=11)
    figure.supxlabel(
        "default minus tuned: share of what there is to gain, and in the metric's unit\n"
        "(perplexity: nats) with its interval; ?: the interval holds 0",
        fontsize=10,
    )
    return figure


def _draw_panel(panel: Axes, group: pd.DataFrame, tasks: list[str], optimizers: list[str]) -> None:
    shares = group.pivot(index="optimizer", columns="task", values="gap_share")
    shares = shares.reindex(index=optimizers, columns=tasks)
    texts = pd.DataFrame("", shares.index, shares.columns)
    for _, row in group.iterrows():
        texts.loc[row["optimizer"], row["task"]] = _text(row)
    sns.heatmap(
        shares,
        ax=panel,
        vmin=-1,
        vmax=1,
        cmap="vlag",
        annot=texts,
        fmt="",
        annot_kws={"size": 8},
        linewidths=1,
        cbar_kws={"format": PercentFormatter(1), "label": "share"},
    )
    panel.grid(visible=False)  # it would show through where there is no square
    metrics = group.groupby("task")["metric"].first() if "metric" in group else {}
    labels = [_column(task, metrics.get(task)) for task in tasks]
    panel.set_xticklabels(labels, rotation=0, fontsize=8)
    panel.set_yticklabels(optimizers, rotation=0, fontsize=9)
    panel.set(xlabel="", ylabel="")


def _text(row: "pd.Series[Any]") -> str:
    doubt = "" if row["low"] > 0 or row["high"] < 0 else " ?"
    share = "" if pd.isna(row["gap_share"]) else f"{row['gap_share']:z.0%}{doubt}\n"
    size = row[["gap", "low", "high"]].abs().max()
    digits = 1 - math.floor(math.log10(size)) if size > 0 else 0
    gap, low, high = (_number(row[name], max(0, digits)) for name in ("gap", "low", "high"))
    return f"{share}{gap}{f' ({low} to {high})' if pd.notna(row['low']) else ''}"


def _number(value: float, digits: int) -> str:
    """Return a number to so many digits after the point: those that its interval makes sense of."""
    return f"{value:z.0f}" if abs(value) >= 99.5 else f"{round(value, digits):z.2g}"


def _column(task: str, metric: Any) -> str:
    unit = [] if not isinstance(metric, str) else [f"({metric}{', nats' * is_perplexity(metric)})"]
    return "\n".join(line for text in (task, *unit) for line in textwrap.wrap(text, 20))
