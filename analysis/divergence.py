"""How often does training fail?

The share of the design's runs that diverged (a loss that is not finite, or beyond the task's bound),
and the share that learnt nothing, the diverged among them: runs that made less than 1 % of the best
run's gain over the worst value. Wilson's interval treats runs as independent.

Reads ``design`` and ``adaptive`` trials. Limits: the shares depend on the ranges searched, and an
adaptive search avoids what fails. Runs of one setting tend to fail together, so where settings have
several seeds the interval is too narrow.
"""

import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, counts, of_role
from robustlr.analysis._intervals import share_interval
from robustlr.analysis._plots import draw_intervals

TITLE = "Failed training runs"
MARGIN = 0.01


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell with ``useless`` and ``diverged``, each with its bounds."""
    rows = []
    for key, cell in cells(of_role(trials, "design", "adaptive")):
        worst = float(cell["worst_loss"].iloc[0])
        useless = int((cell["loss"] >= worst - MARGIN * (worst - cell["loss"].min())).sum())
        estimate = share_interval(useless, len(cell))
        shares = dict(zip(("useless", "low", "high"), estimate, strict=True))
        _, low, high = share_interval(int(cell["diverged"].astype(bool).sum()), len(cell))
        bounds = {"diverged_low": low, "diverged_high": high, "runs": len(cell)}
        rows.append(key | shares | counts(cell) | bounds)
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame) -> str:
    """Return the share of failed runs of each optimizer over tasks and conditions."""
    if table.empty:
        return "This needs finished trials of a design."
    said = []
    for optimizer, rows in table.groupby("optimizer", sort=False):
        weights = rows["runs"] / rows["runs"].sum()
        useless, diverged = ((rows[name] * weights).sum() for name in ("useless", "diverged"))
        said.append(f"{optimizer} {100 * useless:.0f} % ({100 * diverged:.0f} % diverged)")
    return f"Runs of the search that learnt nothing: {'; '.join(said)}."


def draw(table: pd.DataFrame) -> Figure:
    """Draw the shares of useless runs."""
    return draw_intervals(table, "useless", "share of runs that learnt nothing")
