"""How far is the out-of-the-box setting from the tuned one?

For each seed, the loss of the default setting minus that of the tuned setting with the same initial
weights and batches, averaged over seeds with Student's interval; positive means that tuning helps.
The tuned setting of a seed is chosen on the other seeds, so that it is not rewarded for its luck
on the one it is judged on. ``gap`` is in the metric's unit, ``gap_share`` is its share of what there
is to gain.

Limits: both are judged on validation data, on which the setting was chosen too (with other seeds).
With a single seed the choice and the judgement share it, the gap is too large, and there is no
interval. Adaptive designs (tpe) run each of their points on one seed only, so they are left out.
"""

import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import (
    cells,
    counts,
    of_role,
    point_by_seed,
    shown_setting,
    tuned_by_seed,
)
from robustlr.analysis._intervals import mean_interval
from robustlr.analysis._plots import draw_intervals

TITLE = "Out-of-the-box gap"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell that has both arms, with ``gap``, ``low`` and ``high``."""
    rows = []
    for key, cell in cells(trials):
        default, design = of_role(cell, "default"), of_role(cell, "design")
        if default.empty or design.empty:
            continue
        by_seed = point_by_seed(design)
        best = by_seed.mean(axis=1).min()
        gaps = default.groupby("seed")["loss"].mean() - tuned_by_seed(by_seed)
        estimate = mean_interval(gaps)
        available = float(cell["worst_loss"].iloc[0]) - best
        names = ("gap", "low", "high")
        share = [number / available if available > 0 else float("nan") for number in estimate]
        rows.append(
            key
            | dict(zip(names, estimate, strict=True))
            | dict(zip(("gap_share", "share_low", "share_high"), share, strict=True))
            | {
                "best_setting": shown_setting(
                    list(by_seed.index.names), by_seed.mean(axis=1).idxmin()
                )
            }
            | counts(design)
            | {"seeds": int(gaps.notna().sum())}
        )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the gaps in the metric's unit."""
    return draw_intervals(table, "gap", "default minus tuned (0 needs no tuning)")
