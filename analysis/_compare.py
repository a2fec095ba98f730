"""Optimizers compared case by case (a task under a condition), paired by seed; and what to say of it."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from robustlr.analysis._cells import conditions
from robustlr.analysis._plots import shown_condition
from robustlr.analysis._sweeps import Estimate, half_width

MOST_NAMED = 4
"""Optimizers of whom it is said where they cannot be told from the leader."""


def against_leader(
    table: pd.DataFrame, estimates: Sequence[Estimate], *, higher: bool = False
) -> pd.DataFrame:
    """Return the table with each row's difference to the leading optimizer of its case.

    The leader, in the column ``leader``, is one for all cases: the optimizer with the best mean rank
    over them, ties broken by name. ``difference`` is a row's estimate minus the leader's,
    ``difference_low`` and ``difference_high`` its jackknife interval over the seeds that both have.

    Args:
        table: one row a cell.
        estimates: the estimate of each row.
        higher: whether more is better.
    """
    values = pd.Series([estimate.value for estimate in estimates], index=table.index)
    cases = table.groupby(["task", *conditions(table)], sort=False, dropna=False).ngroup()
    ranks = values.groupby(cases).rank(ascending=not higher, na_option="bottom")
    present = cases.groupby(table["optimizer"]).nunique()
    mean_ranks = ranks.groupby(table["optimizer"]).mean()[present == present.max()]
    leader = str(mean_ranks.sort_index().idxmin())
    leads = {
        c: e for c, e, o in zip(cases, estimates, table["optimizer"], strict=True) if o == leader
    }
    rows = [_difference(ours, leads.get(case)) for ours, case in zip(estimates, cases, strict=True)]
    names = ["difference", "difference_low", "difference_high"]
    return table.assign(leader=leader, **dict(zip(names, np.array(rows).T, strict=True)))


def _difference(ours: Estimate, leader: Estimate | None) -> tuple[float, float, float]:
    if leader is None:
        return (np.nan,) * 3
    paired = (ours.pseudo - leader.pseudo).dropna()
    difference, half = ours.value - leader.value, half_width(paired)
    return difference, difference - half, difference + half


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
    by_optimizer = list(others.groupby("optimizer", sort=False))
    is_clear = (others["difference_low"] > 0) | (others["difference_high"] < 0)
    sentences = []
    for word, sign, bound in ((less, 1, "difference_low"), (more, -1, "difference_high")):
        wins = [(name, (sign * rows[bound] > 0).sum(), len(rows)) for name, rows in by_optimizer]
        said = [f"{name} on {won} of {cases}" for name, won, cases in wins if won]
        if said:
            sentences.append(f"It is {word} than {_listed(said)}.")
    if len(by_optimizer) > MOST_NAMED:
        unknown = f"{(~is_clear).sum()} of {len(others)} comparisons"
        sentences.append(f"We cannot tell in {unknown}." if not is_clear.all() else "")
    elif not is_clear.all():
        unclear = [
            f"{name} {_where(rows[~is_clear[rows.index]], len(rows))}"
            for name, rows in by_optimizer
            if not is_clear[rows.index].all()
        ]
        sentences.append(f"We cannot tell it from {_listed(unclear)}.")
    cases = others.groupby(["task", *conditions(others)], dropna=False).ngroups
    over = f" over {cases} {'tasks' if not conditions(others) else 'cases'}" if cases > 1 else ""
    return " ".join([f"{what}: {leader} has the best mean rank{over}.", *sentences]).strip()


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
