"""Optimizers compared case by case (a task under a condition), paired by seed; and what to say of it.

Limits: each interval is its own 95 % one, while sentences claim only what holds for all comparisons
together (Holm). Of two to six identical optimizers on one to five tasks some interval excluded zero in
6 to 73 % of simulated studies, and some claim was made in 1 to 6 %. The price is that with three seeds
and many comparisons only large differences are claimed; how many would hold alone is said.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from robustlr.analysis._cells import conditions
from robustlr.analysis._intervals import LEVEL
from robustlr.analysis._sentences import shown_condition, tallies
from robustlr.analysis._sweeps import Estimate, half_width

MOST_NAMED = 4
"""Optimizers of whom it is said where they cannot be told from the leader."""


def against_leader(
    table: pd.DataFrame, estimates: Sequence[Estimate], *, higher: bool = False
) -> pd.DataFrame:
    """Return the table with each row's difference to the leading optimizer of its case.

    The leader, in the column ``leader``, is one for all cases: of the optimizers with an estimate in
    most of them the one with the best ``mean_rank`` over them, ties broken by name. ``difference`` is a
    row's estimate minus the leader's, ``difference_low`` and ``difference_high`` its jackknife interval
    over the seeds that both have, and ``difference_p`` how probable one so far from zero is by chance.

    Args:
        table: one row a cell.
        estimates: the estimate of each row.
        higher: whether more is better.
    """
    values = pd.Series([estimate.value for estimate in estimates], index=table.index)
    cases = table.groupby(["task", *conditions(table)], sort=False, dropna=False).ngroup()
    ranks = values.groupby(cases).rank(ascending=not higher)
    present = cases.where(values.notna()).groupby(table["optimizer"]).nunique()
    mean_ranks = ranks.groupby(table["optimizer"]).mean()[present == present.max()]
    leader = str(mean_ranks.sort_index().fillna(np.inf).idxmin())
    leads = {
        c: e for c, e, o in zip(cases, estimates, table["optimizer"], strict=True) if o == leader
    }
    rows = [_difference(ours, leads.get(case)) for ours, case in zip(estimates, cases, strict=True)]
    names = ["difference", "difference_low", "difference_high", "difference_p"]
    columns = dict(zip(names, np.array(rows).T, strict=True))
    return table.assign(leader=leader, mean_rank=table["optimizer"].map(mean_ranks), **columns)


def _difference(ours: Estimate, leader: Estimate | None) -> tuple[float, float, float, float]:
    if leader is None:
        return (np.nan,) * 4
    paired = (ours.pseudo - leader.pseudo).dropna()
    difference, half = ours.value - leader.value, half_width(paired)
    return difference, difference - half, difference + half, _by_chance(difference, paired)


def _by_chance(difference: float, paired: "pd.Series[float]") -> float:
    """Return Student's p-value of a difference with these pseudo-values; NaN with fewer than two.

    Where all seeds differ by the same, as counted and capped metrics do, Student's test would be
    certain; that they all have one sign is what is known.
    """
    if len(paired) < 2 or np.isnan(difference):
        return np.nan
    error = float(paired.sem())
    if error <= 1e-9 * abs(difference):
        return 1.0 if difference == 0 else 2.0 ** (1 - len(paired))
    return float(2 * stats.t.sf(abs(difference) / error, len(paired) - 1))


def _surely(others: pd.DataFrame) -> "pd.Series[bool]":
    """Return which differences hold at 95 % for all together, by Holm's procedure.

    As the leader is chosen by the same results, all pairs of optimizers count as compared, though only
    those with the leader are looked at.
    """
    chances = others["difference_p"].dropna().sort_values()
    pairs = len(chances) * (others["optimizer"].nunique() + 1) / 2
    passed = (chances <= (1 - LEVEL) / (pairs - np.arange(len(chances)))).cummin()
    return passed.reindex(others.index, fill_value=False)


def verdict_on_leader(table: pd.DataFrame, what: str, less: str, more: str) -> str:
    """Return sentences on ``against_leader``'s table, one row a cell.

    Args:
        table: not empty.
        what: what is compared: the start of the first sentence.
        less: what the leader is where its value is lower, such as "less sensitive".
        more: what it is where its value is higher.
    """
    leader = table["leader"].iloc[0]
    others = table[table["optimizer"] != leader]
    if others.empty:
        return f"{what}: {leader} is the only optimizer, so there is nothing to compare it with."
    if table["difference"].isna().all():
        return f"{what}: nothing was learnt, so there is nothing to compare."
    best = sorted(table[table["mean_rank"] == table["mean_rank"].min()]["optimizer"].unique())
    who = f"{leader} has" if len(best) == 1 else f"{_listed(best)} share"
    ranked = table[table["optimizer"] == leader]["difference"].count()
    cases = "tasks" if not conditions(table) else "cases"
    over = f" over {ranked} {cases}" if ranked > 1 else ""
    it, of_it = ("It", "it") if len(best) == 1 else (leader, leader)
    is_clear = _surely(others)
    sentences = [f"{what}: {who} the best mean rank{over}."]
    for word, sign in ((less, 1), (more, -1)):
        if won := tallies(is_clear & (sign * others["difference"] > 0), others["optimizer"]):
            sentences.append(f"{it} is {word} than {_listed(won)}.")
    return " ".join([*sentences, *_doubts(others, is_clear, of_it)])


def _doubts(others: pd.DataFrame, is_clear: "pd.Series[bool]", leader: str) -> list[str]:
    """Return sentences on the comparisons that are not clear."""
    if is_clear.all():
        return []
    by_optimizer = list(others.groupby("optimizer", sort=False))
    if len(by_optimizer) > MOST_NAMED:
        said = [f"We cannot tell in {(~is_clear).sum()} of {len(others)} comparisons."]
    else:
        unclear = [
            f"{name} {_where(rows[~is_clear[rows.index]], len(rows))}"
            for name, rows in by_optimizer
            if not is_clear[rows.index].all()
        ]
        said = [f"We cannot tell {leader} from {_listed(unclear)}."]
    alone = ((others["difference_low"] > 0) | (others["difference_high"] < 0)).sum()
    if alone > is_clear.sum():
        by_chance = (1 - LEVEL) * len(others)
        said += [
            f"Each on its own, {alone} of {len(others)} comparisons would be clear, "
            f"as by chance about {by_chance:.2g} would be."
        ]
    return said


def _where(rows: pd.DataFrame, cases: int) -> str:
    """Return cases of one optimizer by name, up to three, or how many they are."""
    if len(rows) == cases > 1:
        return "on any"
    if len(rows) > 3:
        return f"on {len(rows)} of {cases}"
    names = conditions(rows)
    return "on " + _listed(
        " ".join(filter(None, [str(row["task"]), shown_condition(row, names)]))
        for _, row in rows.iterrows()
    )


def _listed(items: Iterable[str]) -> str:
    """Return items as text: ``a, b and c``."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last
