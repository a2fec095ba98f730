"""How wide is the range of good learning rates, in decades?

The width is the part of the searched range, in decades, where the loss is within 5 % of what there
is to gain from the optimizer's best: loss ≤ best + 0.05 (worst − best). Between the design's learning
rates the loss is taken as straight lines over the logarithm of the learning rate; at each, the other
hyperparameters are at their best, and the loss is the mean over the seeds of the ``design`` trials.
Where the good range has gaps all its ``pieces`` are added up; ``low_end`` and ``high_end`` are those of
the piece around the best. The same is done for every other hyperparameter that varies: momentum and
betas count by what they leave, 1 minus the value, and a zero, infinitely far below, is left out. The
interval is a jackknife over seeds, which covered 93 to 97 % in simulated valleys; ``difference`` is to
the ``leader``, the optimizer of the best mean rank, paired by seed.

Limits: a width cannot be finer than the design's steps, nor wider than the searched range
(``searched``): where the good range touches its end (``at_least``), the width is at least the one given.
Where every point has a value of its own (random and Sobol designs), values are taken together by half
decades. Adaptive designs (tpe) are left out. The verdict claims only differences that hold for all
comparisons together, by Holm's procedure over all pairs of optimizers.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, counts, of_role
from robustlr.analysis._compare import against_leader, verdict_on_leader
from robustlr.analysis._plots import draw_intervals
from robustlr.analysis._sweeps import (
    Estimate,
    Numbers,
    Runs,
    curve,
    estimate,
    from_position,
    position,
    runs_of,
    swept,
)

TITLE = "Width of the good range"
PICTURE_PER = "hyperparameter"
TOLERANCE = 0.05


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell and hyperparameter, with ``width``, ``low`` and ``high``."""
    rows: dict[str, list[tuple[dict[str, Any], Estimate]]] = {}
    for key, cell in cells(of_role(trials, "design")):
        for name in swept(cell):
            runs = runs_of(cell, name)
            at = position(name, runs.values)
            ends = at[np.isfinite(at)]
            if len(ends) < 2:
                continue
            found = estimate(runs, partial(width, runs, at))
            searched = float(np.ptp(ends))
            numbers = dict(zip(("width", "low", "high"), found.interval(0, searched), strict=True))
            row = key | {"hyperparameter": name} | numbers | _pieces(runs, name, at)
            row |= {"searched": searched} | counts(cell)
            rows.setdefault(name, []).append((row, found))
    tables = [
        against_leader(pd.DataFrame([row for row, _ in found]), [e for _, e in found], higher=True)
        for _, found in sorted(rows.items(), key=lambda item: item[0] != "lr")
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def width(runs: Runs, at: Numbers, times: Numbers) -> Numbers:
    """Return the decades of the good range for each resampling of the seeds.

    ``at`` are the values' positions, ``[values]``; infinite ones are left out.
    """
    there = np.isfinite(at)
    above = _above(runs, times)[there]
    left, right = above[:-1], above[1:]
    with np.errstate(invalid="ignore", divide="ignore"):  # parts that are not between two signs
        part = np.where(left <= 0, left / (left - right), right / (right - left))
    part = np.where((left <= 0) & (right <= 0), 1.0, np.where((left > 0) & (right > 0), 0.0, part))
    widths = (part * np.diff(at[there])[:, None]).sum(axis=0)
    return np.where(np.isnan(above).any(axis=0), np.nan, widths)


def _above(runs: Runs, times: Numbers) -> Numbers:
    """Return how far each value's loss is above the tolerated one, ``[values, resamplings]``."""
    losses = curve(runs, times)
    best = losses.min(axis=0)
    above = np.minimum(losses, runs.worst) - best - TOLERANCE * (runs.worst - best)
    return np.where(best < runs.worst, above, np.nan)


def _pieces(runs: Runs, name: str, at: Numbers) -> dict[str, Any]:
    """Return the pieces of the good range, and the ends of the one around the best."""
    above = _above(runs, np.ones((1, len(runs.seeds))))[:, 0]
    best = int(np.argmin(curve(runs, np.ones((1, len(runs.seeds))))[:, 0]))
    there = np.isfinite(at)
    good = np.append(False, (above <= 0) & there)
    found: dict[str, Any] = {
        "best": runs.values[best],
        "pieces": int((~good[:-1] & good[1:]).sum()),
    }
    if not good[1:].any() or not there[best]:
        return found | {"low_end": np.nan, "high_end": np.nan, "at_least": False}
    low, high = (_end(above, at, best, step) for step in (-1, 1))
    ends = at[there][[0, -1]]
    positions = np.array([low, high])
    named = dict(zip(("low_end", "high_end"), from_position(name, positions), strict=True))
    return found | named | {"at_least": bool(np.isclose(positions, ends).any())}


def _end(above: Numbers, at: Numbers, start: int, step: int) -> float:
    """Return where the good range around ``start`` ends, going by ``step``."""
    here = start
    while 0 <= (beyond := here + step) < len(at) and np.isfinite(at[beyond]):
        if above[beyond] > 0:
            part = above[here] / (above[here] - above[beyond])
            return float(at[here] + part * (at[beyond] - at[here]))
        here = beyond
    return float(at[here])


def verdict(table: pd.DataFrame) -> str:
    """Return what the widths of the good range of learning rates show."""
    if table.empty:
        return "This needs a grid, random or Sobol design with several values of a hyperparameter."
    name = table["hyperparameter"].iloc[0]
    ours = table[table["hyperparameter"] == name]
    said = verdict_on_leader(ours, f"Decades of good {name}", "narrower", "wider")
    gaps = int((ours["pieces"] > 1).sum())
    if gaps:
        said += f" In {gaps} of {len(ours)} searches the good range has gaps."
    if ours["at_least"].any():
        said += (
            f" In {ours['at_least'].sum()} of {len(ours)} it touches the end of what was searched, "
            "so it may be wider."
        )
    return said


def draw(table: pd.DataFrame) -> Figure:
    """Draw the widths of one hyperparameter's good range."""
    name = table["hyperparameter"].iloc[0]
    return draw_intervals(table, "width", f"width of good {name} (decades)")
