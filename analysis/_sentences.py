"""Words that verdicts share."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
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


def shown_condition(row: Any, names: list[str]) -> str:
    """Return the conditions of a row as text, ``warmup=true``."""
    return ", ".join(f"{name}={_lower(row[name])}" for name in names if pd.notna(row[name]))


def _lower(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | np.bool_ | str) else f"{value:g}"


def cases(table: pd.DataFrame, *names: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of each value of ``names`` and combination of conditions, after words for them.

    The words are ``tuned, warmup=0.1``; without names and conditions there is one case, without any.
    """
    by = [*names, *conditions(table)]
    for _, rows in table.groupby(by, sort=False, dropna=False) if by else [(None, table)]:
        first = rows.iloc[0]
        words = [*(str(first[name]) for name in names), shown_condition(first, by[len(names) :])]
        yield ", ".join(filter(None, words)), rows


def of_each_case(said: Iterable[tuple[str, str]]) -> str:
    """Return what is said of each of ``cases``: lines that begin with its words, where it has any."""
    return "".join(f"\n{where}: {text}" if where else f" {text}" for where, text in said)
