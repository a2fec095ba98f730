"""Which optimizer is best over all tasks?

A run's score is the share of the way from the task's worst loss (0) to the best (1), the best being the
lowest of all optimizers' points, averaged over seeds. ``score`` is the interquartile mean of an
optimizer's runs over all tasks and seeds, the mean of the middle half, which neither one lost task nor
one very easy one decides; all tasks weigh the same, however many seeds they have. ``short_of_best`` is
the optimality gap: the mean shortfall from a score of 1. ``mean_rank`` is the mean over tasks of the
rank of its mean score (1 is best), and ``first`` the share of bootstrap resamples in which its
``score`` is the highest. ``ahead_low`` is the lower bound by which the optimizer with the highest
``score`` is ahead of this one, paired by seed; the verdict says ahead only where it is above 0. Source:
Agarwal et al. (2021).
``tuned`` is each seed's run of the setting that is best on the other seeds, ``default`` that of the
out-of-the-box setting. Intervals are from a bootstrap that draws seeds within each task, the same
for all optimizers, as runs with the same seed share initial weights and batches. It reads the
roles ``design`` and ``default``.

Limits: only tasks that all optimizers of a condition have run, and seeds that all of them have there,
are counted (``tasks``). Intervals speak of new seeds on these tasks, not of other tasks. The best
value, which scales the scores, is estimated and taken as known; it moves when an optimizer is
added. In simulation the intervals of ``score`` and ``short_of_best`` cover 93 to 95 % from three seeds
on (88 % of two), those of ``mean_rank``, which moves in steps, 86 to 94 %. Of
identical optimizers one was said to be ahead of all in 10 % of simulated studies with two seeds, in at
most 9 % with more. ``first`` is no chance to be best: with few seeds it is near 1 or 0 by luck.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from robustlr.analysis._across import scored
from robustlr.analysis._bootstrap import interval, resampled
from robustlr.analysis._cells import Floats
from robustlr.analysis._plots import draw_intervals
from robustlr.analysis._sentences import cases, many

TITLE = "Ranking over tasks"
PICTURE_PER = "setting"
LEAST = 1e-9
"""By less no optimizer is ahead: it is rounding."""


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each optimizer, condition and setting, best ``score`` first."""
    rows: list[dict[str, Any]] = []
    for key, counted, tables in scored(trials):
        table = _ranked(tables)
        ordered = table.sort_values("score", ascending=False, kind="stable")
        rows += [key | row | counted[row["optimizer"]] for row in ordered.to_dict("records")]
    return pd.DataFrame(rows)


def _ranked(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the numbers of each optimizer from the tasks' tables of seeds × optimizers."""
    columns: dict[str, Any] = {"optimizer": list(tables[0])}
    tables = [table[columns["optimizer"]] for table in tables]
    for name, prefix, statistic in (
        ("score", "", iqm),
        ("short_of_best", "short_of_best_", _short_of_best),
        ("mean_rank", "mean_rank_", _mean_rank),
    ):
        limits = (
            (1.0, float(len(columns["optimizer"]))) if name == "mean_rank" else (-np.inf, np.inf)
        )
        estimate, low, high = interval(tables, statistic)
        columns[name] = estimate
        columns[f"{prefix}low"], columns[f"{prefix}high"] = np.clip([low, high], *limits)
    columns["first"] = _share_first(tables)
    lead = int(np.argmax(columns["score"]))
    _, columns["ahead_low"], _ = interval(tables, lambda drawn: _ahead(drawn, lead))
    return pd.DataFrame(columns)


def iqm(drawn: list[Floats]) -> Floats:
    """Return the interquartile mean over all tasks' runs, resamples × optimizers.

    All tasks weigh the same. Runs at the quartiles count in part, so that exactly a quarter is cut.
    """
    runs = np.concatenate(drawn, axis=1)
    weights = np.concatenate([np.full(task.shape[1], 1 / task.shape[1]) for task in drawn])
    order = runs.argsort(axis=1)
    ends = (weights / len(drawn))[order].cumsum(axis=1)
    inside = np.diff(np.clip(ends, 0.25, 0.75), axis=1, prepend=0.25)
    means: Floats = (np.take_along_axis(runs, order, axis=1) * inside).sum(axis=1) / 0.5
    return means


def _ahead(drawn: list[Floats], lead: int) -> Floats:
    means = iqm(drawn)
    return means[:, [lead]] - means


def _short_of_best(drawn: list[Floats]) -> Floats:
    gaps: Floats = np.mean([np.clip(1 - task, 0, None).mean(axis=1) for task in drawn], axis=0)
    return gaps


def _mean_rank(drawn: list[Floats]) -> Floats:
    ranks = [stats.rankdata(-task.mean(axis=1), axis=1) for task in drawn]
    mean: Floats = np.mean(ranks, axis=0)
    return mean


def _share_first(tables: list[pd.DataFrame]) -> Floats:
    """Return how often each optimizer has the highest score of the resamples; ties are split."""
    if all(len(table) < 2 for table in tables):
        return np.full(tables[0].shape[1], np.nan)
    means = iqm(resampled(tables))
    best = np.isclose(means, means.max(axis=1, keepdims=True), rtol=0, atol=1e-12)
    shares: Floats = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def verdict(table: pd.DataFrame) -> str:
    """Say who scores highest, and of whom it is surely ahead."""
    if table.empty:
        return "This needs a task on which all optimizers of a condition ran with a common seed."
    sentences = []
    for where, rows in cases(table, "setting"):
        if len(rows) < 2:
            continue
        first = rows.iloc[0]
        if np.isnan(first["first"]):
            sentences.append(f"{where}: one seed ranks nobody.")
            continue
        others = rows.iloc[1:]
        rivals = others[others["ahead_low"] < LEAST]["optimizer"]
        told = f"not surely ahead of {', '.join(rivals)}" if len(rivals) else "ahead of all"
        sentences.append(
            f"{where}: {first['optimizer']} has the highest interquartile mean, {told} "
            f"({many(first['tasks'], 'task')}){_by_rank(rows)}."
        )
    return "\n".join(sentences) or "A single optimizer cannot be ranked."


def _by_rank(rows: pd.DataFrame) -> str:
    """Return who has a better mean rank than the first: the quarter that is cut may be a lost task."""
    first, best = rows.iloc[0], rows.loc[rows["mean_rank"].idxmin()]
    if best["mean_rank"] == first["mean_rank"]:
        return ""
    return (
        f"; by mean rank over tasks {best['optimizer']} leads "
        f"({best['mean_rank']:.2g} against {first['mean_rank']:.2g})"
    )


def draw(table: pd.DataFrame) -> Figure:
    """Draw the scores."""
    label = f"interquartile mean score,\n{table['setting'].iloc[0]} (1 is best)"
    figure = draw_intervals(table, "score", label)
    low = min(0.0, float(table["score"].min()))
    for panel in figure.axes:  # huge intervals must not flatten it
        panel.set_xlim(low - 0.02, 1.05)
    return figure
