"""How far can the learning rate be raised before training fails?

``stable_lr`` is the largest stable learning rate: going up from the best one, the last of the design
before more than one run in ten fails; with fewer than ten seeds: before one fails. A run fails if it
diverges, or if it ends at the task's worst value although its learning rate is not below the best
one. The true limit lies between it and ``unstable_lr``, the next of the design; ``bound`` says "at
least" where the design ends before a run fails, "at most" where none of its learning rates is stable.
``headroom`` is log10(stable_lr / best_lr), in decades. ``boundary`` is the learning rate at which half
of the runs fail, fitted by logistic regression on the logarithm of the learning rate, with slopes from
2.2 to 220 logits a decade; its interval is a profile likelihood, finite also where one learning rate
divides success from failure. ``low`` and ``high``, the bounds of the headroom, are where the same fit
has one run in ten fail, widened to hold ``stable_lr``; the best learning rate is taken as it was chosen.
The other hyperparameters are held at those of the best point, where the design has three learning rates
there; otherwise all ``design`` trials count, and in random and Sobol designs every point of a half
decade. Source: largest stable learning rates as compared by Kosson et al., "Rotational Equilibrium"
(2024).

In simulations over nine learning rates the fitted intervals covered 91 to 98 % where failures set in
gradually (3 to 10 logits a decade), and up to 100 % where they set in at once, between two learning
rates of the design: then they are as wide as its steps, whatever the number of seeds.

Limits: a few seeds cannot tell a failure rate of 10 % from one of 30 %, so ``stable_lr`` is too high
rather than too low; runs of one seed at several learning rates are treated as independent; the answer
depends on the number of steps, the warmup and the batch size. Adaptive designs (tpe) are left out.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, conditions, counts, hyperparameters, of_role
from robustlr.analysis._plots import draw_intervals
from robustlr.analysis._stability import TOLERATED, boundary, failures, largest_stable
from robustlr.analysis._sweeps import runs_of

TITLE = "Largest stable learning rate"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell with ``stable_lr``, ``headroom`` and ``boundary``, with their bounds."""
    design = of_role(trials, "design")
    if "lr" not in design:
        return pd.DataFrame()
    rows = [
        key | _row(cell) | counts(cell) for key, cell in cells(design) if cell["lr"].nunique() > 1
    ]
    return pd.DataFrame(rows)


def _row(cell: pd.DataFrame) -> dict[str, Any]:
    runs = runs_of(_tuned(cell))
    largest, unstable, best = (float(found[0]) for found in largest_stable(runs))
    failed, total = failures(runs, best)
    _, low, high = boundary(runs.values, failed, total, TOLERATED)
    fitted, boundary_low, boundary_high = boundary(runs.values, failed, total, 0.5)
    low, high = min(low, largest), max(high, largest)
    with np.errstate(divide="ignore"):
        headroom, headroom_low, headroom_high = np.log10(np.array([largest, low, high]) / best)
    return {
        "stable_lr": largest,
        "unstable_lr": unstable,
        "bound": "at most" if np.isnan(largest) else "at least" if np.isinf(unstable) else "",
        "best_lr": best,
        "headroom": headroom,
        "low": headroom_low,
        "high": headroom_high,
        "boundary": fitted,
        "boundary_low": boundary_low,
        "boundary_high": boundary_high,
    }


def _tuned(cell: pd.DataFrame) -> pd.DataFrame:
    """Return the runs whose other hyperparameters are those of the best point, or all of them."""
    others = [name for name in hyperparameters(cell) if name != "lr"]
    if not others:
        return cell
    points = cell.groupby(["lr", *others], dropna=False)["loss"].mean()
    best = dict(zip(points.index.names, points.idxmin(), strict=True))
    ours = cell
    for name in others:
        same = ours[name].isna() if pd.isna(best[name]) else ours[name] == best[name]
        ours = ours[same]
    return ours if ours["lr"].nunique() >= min(3, cell["lr"].nunique()) else cell


def verdict(table: pd.DataFrame) -> str:
    """Return how much headroom each optimizer has over tasks and conditions."""
    if table.empty:
        return "This needs a grid, random or Sobol design with two learning rates or more."
    said = []
    for optimizer, rows in table.groupby("optimizer", sort=False):
        said.append(f"{optimizer} {_decades(rows)}")
    cases = table.groupby(["task", *conditions(table)], dropna=False).ngroups
    over = f" over {cases} tasks and conditions" if cases > 1 else ""
    text = (
        f"Decades from the best learning rate to the largest stable one{over}: {'; '.join(said)}."
    )
    few = int((table["seeds"] < 10).sum())
    if few:
        text += (
            " With fewer than ten seeds a learning rate that fails now and then can pass as stable: "
            "trust the intervals."
        )
    return text


def _decades(rows: pd.DataFrame) -> str:
    """Return one optimizer's headrooms as text, and on how many of its rows it has none."""
    known = rows["headroom"].dropna()
    none = len(rows) - len(known)
    nowhere = f"no stable learning rate on {none} of {len(rows)}"
    if known.empty:
        return nowhere
    low, high = known.min(), known.max()
    text = f"{low:.2g}" + (f" to {high:.2g}" if high > low else "")
    if (rows["bound"] == "at least").any():
        text += " or more"
    return f"{text}, {nowhere}" if none else text


def draw(table: pd.DataFrame) -> Figure:
    """Draw the headrooms; one that has no end is drawn to the end of the axis."""
    known = table["headroom"].dropna()
    reach = [*known, *table[["low", "high"]].replace([-np.inf, np.inf], np.nan).stack()]
    ends = (min(reach, default=0.0) - 0.2, max(reach, default=1.0) + 0.2)
    figure = draw_intervals(
        table.assign(low=table["low"].clip(*ends), high=table["high"].clip(*ends)),
        "headroom",
        "headroom above the best lr (decades)",
    )
    for panel in figure.axes:
        panel.axvline(0, color="grey", ls=":", lw=1)
    return figure
