"""How likely is a run of one optimizer to beat a run of another?

The probability that a run of ``optimizer`` scores higher than a run of ``other`` on the same task, a tie
counting half: over all pairs of their runs (the statistic of Mann and Whitney), averaged over tasks.
Source: probability of improvement of Agarwal et al. (2021). It says nothing about how much better.
``tuned`` is each seed's run of the setting that is best on the other seeds, ``default`` that of the
out-of-the-box setting. It reads the roles ``design`` and ``default``.

Limits: the interval inverts a score test with the variance of Newcombe (2006), for tasks between which
the probability does not differ; where it does, the interval is too wide, and so it is where runs with
the same seed are alike. It never ends at the estimate, even where one optimizer always wins. It speaks
of new seeds on these tasks. Only tasks that all optimizers of a condition have run are counted.
"""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy import stats

from robustlr.analysis._across import scored
from robustlr.analysis._cells import conditions
from robustlr.analysis._intervals import LEVEL
from robustlr.analysis._plots import panels
from robustlr.analysis._sentences import cases, shown_condition

TITLE = "Probability of improvement"
PICTURE_PER = "setting"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each pair of optimizers, both ways round, with ``probability``."""
    rows: list[dict[str, Any]] = []
    for key, counted, tables in scored(trials):
        for one, other in itertools.permutations(tables[0], 2):
            pairs = [(table[one], table[other]) for table in tables]
            names = ("probability", "low", "high")
            estimate = dict(zip(names, probability_interval(pairs), strict=True))
            rows.append(key | {"optimizer": one, "other": other} | estimate | counted[one])
    return pd.DataFrame(rows)


def probability_interval(pairs: list[tuple[pd.Series, pd.Series]]) -> tuple[float, float, float]:
    """Return the probability, averaged over tasks, that the first scores higher, and its interval.

    Args:
        pairs: for each task the runs of both.
    """
    wins = [
        float((np.sign(one.to_numpy()[:, None] - other.to_numpy()[None]) / 2 + 0.5).mean())
        for one, other in pairs
    ]
    estimate = float(np.mean(wins))
    if max(min(len(one), len(other)) for one, other in pairs) < 2:
        return estimate, float("nan"), float("nan")
    assumed = np.linspace(0, 1, 2001)
    variance = (
        sum(_variance(assumed, len(one), len(other)) for one, other in pairs) / len(pairs) ** 2
    )
    quantile = stats.norm.ppf((1 + LEVEL) / 2)
    kept = assumed[np.abs(assumed - estimate) <= quantile * np.sqrt(variance) + 1e-12]
    return estimate, float(kept.min()), float(kept.max())


def _variance(probability: Any, ones: int, others: int) -> Any:
    """Return the statistic's variance for runs distributed alike but for a shift (exponentials')."""
    inner = (ones + others) / 2 - 1
    spread = (1 - probability) / (2 - probability) + probability / (1 + probability)
    return probability * (1 - probability) * (1 + inner * spread) / (ones * others)


def verdict(table: pd.DataFrame) -> str:
    """Say which optimizers surely beat which."""
    if table.empty:
        return "This needs a task that two optimizers ran with a common seed."
    sentences = []
    for where, rows in cases(table, "setting"):
        rivals = rows["other"].nunique() - 1
        sure = rows[rows["low"] > 0.5].groupby("optimizer", sort=False)["other"].agg(list)
        texts = [f"{name} beats {_named(beaten, rivals)}" for name, beaten in sure.items()]
        sentences.append(f"{where}: {'; '.join(texts) or 'none surely wins'}.")
    return "\n".join(["More often than not, on these tasks:", *sentences])


def _named(beaten: list[str], rivals: int) -> str:
    """Return whom one optimizer beats: names while they are few."""
    if len(beaten) == rivals:
        return "all others"
    return ", ".join(beaten) if len(beaten) <= 3 else f"{len(beaten)} of {rivals} others"


def draw(table: pd.DataFrame) -> Figure:
    """Draw the probabilities: a panel a condition, a ? where the interval holds one half."""
    groups = list(table.groupby(conditions(table) or ["setting"], sort=False, dropna=False))
    names = list(table["optimizer"].unique())
    side = 3.5 + 0.5 * len(names)
    columns = 2 if len(names) <= 6 else 1
    figure, axes = panels(len(groups), width=side + 1.2, height=side, columns=columns)
    for panel, (_, group) in zip(axes, groups, strict=True):
        wide = group.pivot_table(
            index="optimizer", columns="other", values="probability", dropna=False
        )
        sure = (group["low"] > 0.5) | (group["high"] < 0.5)
        texts = group["probability"].map("{:.2f}".format) + np.where(sure, "", "?")
        shown = group.assign(text=texts).pivot(index="optimizer", columns="other", values="text")
        text = shown.reindex(index=names, columns=names).fillna("")
        sns.heatmap(
            wide.reindex(index=names, columns=names), annot=text, fmt="", ax=panel, vmin=0, vmax=1,
            cmap="PuOr", annot_kws={"size": 9},
            cbar_kws={"label": "chance that the row wins\n(? may be one half)"},
        )  # fmt: skip
        panel.grid(visible=False)
        first = group.iloc[0]
        where = shown_condition(first, conditions(table))
        panel.set_title(" · ".join(filter(None, [first["setting"], where])))
        panel.set_xlabel("against")
        panel.set_ylabel("optimizer")
        panel.tick_params(axis="x", rotation=90)
        panel.tick_params(axis="y", rotation=0)
    return figure
