"""How much of a tuned setting's score is the luck of the seeds that chose it?

Of many settings the best on some seeds is good by luck too, so its score on those seeds flatters it.
``selected`` is the chosen setting's mean over the seeds that chose it, ``fresh`` what it is worth on
others, both on validation data and in the metric's unit; ``curse`` is how much worse the second is
(of perplexities in nats), ``curse_share`` that as a share of what there is to gain over the task's
worst value. Where there are ``confirm`` trials, ``fresh`` is their mean, and the interval is Student's
over their seeds: what the setting is truly worth, minus the score by which it was chosen. Else it is the
mean over the ``design``'s seeds of the setting that is best on all other seeds, and the interval is
Student's over seeds. ``judged_on`` says which. Source: rule 4 of the usual protocol, select on some runs
and report on others.

Limits: with fresh seeds Student's interval covers in 95 % of simulated studies; without, it covers the
curse to be expected of such a study in 94 to 99 %, as the luck of few seeds makes it wide. With a single
seed, or an adaptive design (tpe), nothing can be said without fresh seeds. A chosen setting that was no
point of the design has no score of its own. Seeds that all differ by the same, as counted or capped
metrics may, give an interval without width.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import (
    cells,
    counts,
    in_unit,
    of_role,
    point_by_seed,
    point_names,
    shown_setting,
    tuned_by_seed,
)
from robustlr.analysis._intervals import LEVEL, mean_interval
from robustlr.analysis._plots import draw_intervals
from robustlr.analysis._sentences import of_cases, tally

TITLE = "Winner's curse"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell of which something can be said, with ``curse``, ``low`` and ``high``."""
    rows = []
    for key, cell in cells(trials):
        searched = of_role(cell, "design", "adaptive")
        found = _confirmed(cell, searched) or _left_out(of_role(cell, "design"))
        if found is None:
            continue
        selected, fresh, setting, judged_on = found
        worst = float(cell["worst_loss"].iloc[0])
        alike = np.isclose(fresh, selected, rtol=1e-12, atol=0)  # but for rounding
        curse, low, high = mean_interval((fresh - selected).mask(alike, 0.0))
        high = min(high, worst - selected)  # nothing is worse than the worst
        low = max(
            low, float(cell["loss"].min()) - worst
        )  # a gain in which no run would fit is none
        available = worst - selected if selected < worst else float("nan")
        rows.append(
            key
            | {"curse": curse, "low": low, "high": high}
            | {"curse_share": curse / available}
            | {"share_low": low / available, "share_high": high / available}
            | {"selected": in_unit(cell, selected), "fresh": in_unit(cell, selected + curse)}
            | {"best_setting": setting, "judged_on": judged_on}
            | counts(searched)
            | {"seeds": len(fresh)}
        )
    return pd.DataFrame(rows)


Found = tuple[float, "pd.Series[float]", str, str]
"""The loss on the seeds that chose, that on fresh seeds, the setting, and what was read."""


def _confirmed(cell: pd.DataFrame, searched: pd.DataFrame) -> Found | None:
    confirming, names = of_role(cell, "confirm"), point_names(searched)
    if confirming.empty or searched.empty:
        return None
    setting = confirming[names].drop_duplicates()
    chosen = searched.merge(setting.iloc[:1], on=names)
    if chosen.empty:
        return None
    fresh = confirming[~confirming["seed"].isin(chosen["seed"])].groupby("seed")["loss"].mean()
    shown = shown_setting(names, tuple(setting.iloc[0]))
    return (float(chosen["loss"].mean()), fresh, shown, "fresh seeds") if len(fresh) else None


def _left_out(design: pd.DataFrame) -> Found | None:
    if design["seed"].nunique() < 2:
        return None
    by_seed = point_by_seed(design)
    means = by_seed.mean(axis=1)
    shown = shown_setting(list(by_seed.index.names), means.idxmin())
    return float(means.min()), tuned_by_seed(by_seed), shown, "each seed, the others chose"


def verdict(table: pd.DataFrame) -> str:
    """Return how often and how much the choosing seeds flatter."""
    if table.empty:
        return "This needs a confirmed study (robustlr confirm NAME), or a design with two seeds."
    worse, better = table["low"] > 0, table["high"] < 0
    sentences = []
    if said := tally(worse, table["optimizer"]):
        most = table.loc[table[worse]["curse_share"].idxmax()]
        sentences.append(
            f"The seeds that chose a setting flatter it: {said} {of_cases(table)}; most for "
            f"{most['optimizer']} on {most['task']}, which scored {most['selected']:.3g} when it was "
            f"chosen and {most['fresh']:.3g} on seeds that did not choose it."
        )
    if said := tally(better, table["optimizer"]):
        sentences.append(f"On other seeds the setting does better: {said} {of_cases(table)}.")
    unclear = (~worse & ~better).sum()
    if unclear:
        sentences.append(f"We cannot tell on {unclear} of {len(table)} {of_cases(table)}.")
    if sentences and unclear < len(table) > 1:
        by_chance = (1 - LEVEL) * table["low"].notna().sum()
        sentences.append(f"By chance alone about {by_chance:.2g} would show one or the other.")
    return " ".join(sentences)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the curse in the metric's unit."""
    label = "how much worse on other seeds,\nin the metric's unit (perplexity: nats)"
    figure = draw_intervals(table, "curse", label)
    for panel in figure.axes:
        panel.axvline(0, color="grey", ls=":", lw=1)
    return figure
