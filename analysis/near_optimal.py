"""What share of the search space is good enough?

The share of the design's points whose loss, averaged over seeds, is within 5 % of what there is to
gain from the optimizer's best point: loss ≤ best + 0.05 (worst − best). Wilson's interval treats the
``design`` trials' points as a sample of the space. ``seed_sd`` is the standard deviation over seeds at
a typical point (the median over points that learnt something), as a share of what there is to gain;
where it is not below the tolerance (``resolved``), the share is of good luck as much as of good points.

Limits: the share depends on the space; compare optimizers only over the same ranges. The best point
is the best of a finite sample, which flatters small samples. A grid is no random sample: there the
interval says how far a random one of that size could be off. Adaptive designs (tpe) are left out.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, counts, of_role, point_by_seed
from robustlr.analysis._intervals import share_interval
from robustlr.analysis._plots import draw_intervals

TITLE = "Near-optimal share of the space"
TOLERANCE = 0.05


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell with ``near_optimal``, ``low`` and ``high``."""
    rows = []
    for key, cell in cells(of_role(trials, "design")):
        by_seed = point_by_seed(cell)
        losses = by_seed.mean(axis=1)
        best, worst = losses.min(), float(cell["worst_loss"].iloc[0])
        good = int((losses <= best + TOLERANCE * (worst - best)).sum()) if best < worst else 0
        estimate = share_interval(good, len(losses))
        shares = dict(zip(("near_optimal", "low", "high"), estimate, strict=True))
        noise = _noise(by_seed, worst)
        resolved: dict[str, Any] = {"tolerance": TOLERANCE, "seed_sd": noise}
        resolved["resolved"] = None if np.isnan(noise) else noise < TOLERANCE
        rows.append(key | shares | resolved | counts(cell))
    return pd.DataFrame(rows)


def _noise(by_seed: pd.DataFrame, worst: float) -> float:
    """Return the median standard deviation over seeds; NaN with one seed, or if nothing is learnt."""
    losses = by_seed.mean(axis=1)
    gain = worst - losses.min()
    learnt = by_seed[losses < worst - 0.01 * gain]
    deviations = learnt.std(axis=1, ddof=1).dropna()
    return float(deviations.median() / gain) if len(deviations) and gain > 0 else float("nan")


def verdict(table: pd.DataFrame) -> str:
    """Return each optimizer's shares over tasks and conditions, and where noise drowns them."""
    if table.empty:
        return "This needs a grid, random or Sobol design."
    said = []
    for optimizer, rows in table.groupby("optimizer", sort=False):
        low, high = 100 * rows["near_optimal"].min(), 100 * rows["near_optimal"].max()
        said.append(
            f"{optimizer} {low:.0f}" + (f" to {high:.0f}" if round(high) > round(low) else "")
        )
    text = f"Per cent of the points searched that are near-optimal: {'; '.join(said)}."
    drowned = int(table["resolved"].eq(False).sum())
    unknown = int(table["resolved"].isna().sum())
    if drowned:
        text += (
            f" In {drowned} of {len(table)} searches seeds alone differ by more than the tolerance, so "
            "the share says little there."
        )
    if unknown:
        text += f" In {unknown} of {len(table)} the noise of seeds is not known."
    return text


def draw(table: pd.DataFrame) -> Figure:
    """Draw the shares."""
    return draw_intervals(table, "near_optimal", "share within 5 % of the best")
