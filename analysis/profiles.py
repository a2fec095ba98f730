"""What share of runs is at least so good?

A run's score is the share of the way from the task's worst loss (0) to the best (1), as in the
ranking over tasks. ``share`` is the share of an optimizer's runs with a score of at least ``tau``, over
seeds and then over tasks, so that all tasks weigh the same: a curve that is higher everywhere is better
whatever counts as good enough, and curves that cross say that the answer depends on it. Source: the
performance profiles of Dolan and Moré (2002), on scores as in Agarwal et al. (2021). ``tuned`` is each
seed's run of the setting that is best on the other seeds, ``default`` that of the out-of-the-box
setting. It reads the roles ``design`` and ``default``.

Limits: Wilson's interval takes the runs as independent draws; where tasks have more or fewer seeds, of
so many runs as say as much. As the tasks stay the same, it is too wide where tasks differ more than
seeds: it covers more than 95 %. The best value that scales the
scores moves when an optimizer is added. Only tasks that all optimizers of a condition have run are
counted.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustlr.analysis._across import scored
from robustlr.analysis._cells import Floats, conditions
from robustlr.analysis._intervals import share_interval
from robustlr.analysis._plots import add_legend, panels
from robustlr.analysis._sentences import cases, shown_condition

TITLE = "Performance profiles"
TAUS = tuple(np.linspace(0, 1, 21).round(2).tolist())
CLOSE = 0.9
"""The score of which the verdict speaks."""
LINES = ("-", "--", ":", "-.")


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each optimizer, condition, setting and ``tau``, with ``share``."""
    rows: list[dict[str, Any]] = []
    for key, counted, tables in scored(trials):
        runs = sum(map(len, tables))
        for optimizer in tables[0]:
            row = key | {"optimizer": optimizer, "runs": runs} | counted[optimizer]
            own = [table[optimizer].to_numpy() for table in tables]
            rows += [row | {"tau": tau} | _share(own, tau) for tau in TAUS]
    return pd.DataFrame(rows)


def _share(tasks: list[Floats], tau: float) -> dict[str, float]:
    """Return the share of runs, a task's runs together weighing as much as another's."""
    share = float(np.mean([np.mean(runs >= tau - 1e-9) for runs in tasks]))
    worth = len(tasks) ** 2 / sum(1 / len(runs) for runs in tasks)  # runs that say as much
    _, low, high = share_interval(share * worth, worth)
    return {"share": share, "low": low, "high": high}


def verdict(table: pd.DataFrame) -> str:
    """Say whose runs are most often close to the best, as far as the intervals tell."""
    if table.empty:
        return "This needs a task on which all optimizers of a condition ran with a common seed."
    sentences = []
    close = table[np.isclose(table["tau"], CLOSE)]
    for where, rows in cases(close, "setting"):
        first = rows.loc[rows["share"].idxmax()]
        others = rows.drop(index=first.name)
        equal = others[others["high"] >= first["low"]]["optimizer"]
        names = "any other" if len(equal) == len(others) else ", ".join(equal)
        told = f"; not surely more than of {names}" if len(equal) else ""
        sentences.append(
            f"{where}: {100 * first['share']:.0f} % of {first['optimizer']}'s runs reach "
            f"{100 * CLOSE:.0f} % of what there is to gain{told}."
        )
    return "\n".join(sentences)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the profiles: a panel a setting and condition, a line an optimizer."""
    by = ["setting", *conditions(table)]
    groups = list(table.groupby(by, sort=False, dropna=False))
    figure, axes = panels(len(groups), width=5.5, height=4)
    optimizers = list(table["optimizer"].unique())
    for panel, (_, group) in zip(axes, groups, strict=True):
        _draw_panel(panel, group, optimizers)
        first = group.iloc[0]
        where = shown_condition(first, by[1:])
        panel.set_title(" · ".join(filter(None, [first["setting"], where])))
    add_legend(figure, axes[0])
    return figure


def _draw_panel(panel: Axes, group: pd.DataFrame, optimizers: list[str]) -> None:
    colors = sns.color_palette("colorblind", len(optimizers))
    for optimizer, line in group.groupby("optimizer", sort=False):
        index = optimizers.index(optimizer)
        style = LINES[(index + index // len(colors)) % len(LINES)]
        panel.plot(line["tau"], line["share"], color=colors[index], ls=style, label=optimizer)
        if len(optimizers) <= 4:  # more shades hide each other
            panel.fill_between(
                line["tau"],
                line["low"],
                line["high"],
                color=colors[index],
                alpha=0.12,
                lw=0,
            )
    panel.set_xlim(0, 1)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xlabel("score of at least (1 is best)")
    panel.set_ylabel("share of runs")
