"""Words that verdicts share."""

import pandas as pd

from robustlr.analysis._cells import conditions


def many(number: int, what: str) -> str:
    """Return ``1 task``, ``2 tasks``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def tally(which: "pd.Series[bool]", optimizers: "pd.Series[str]") -> str:
    """Return of how many of each optimizer's rows it holds: ``nero on 3 of 5, adamw on 1 of 5``.

    Optimizers of which it never holds are left out; if it holds of none, the text is empty.
    """
    return ", ".join(tallies(which, optimizers))


def tallies(which: "pd.Series[bool]", optimizers: "pd.Series[str]") -> list[str]:
    """Return ``tally``'s parts, one for each optimizer."""
    by_optimizer = which.groupby(optimizers, sort=False).agg(["sum", "size"])
    return [f"{name} on {hits} of {rows}" for name, hits, rows in by_optimizer.itertuples() if hits]


def of_cases(table: pd.DataFrame) -> str:
    """Return what rows are: tasks, or tasks under conditions."""
    varied = any(table[name].nunique() > 1 for name in conditions(table))
    return "tasks and conditions" if varied else "tasks"
