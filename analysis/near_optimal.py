"""What share of the search space is good enough?

The share of the design's points whose loss, averaged over seeds, is within 5 % of what there is to
gain from the optimizer's best point: loss ≤ best + 0.05 (worst − best). Wilson's interval treats
the points as a sample of the space.

Limits: the share depends on the space; compare optimizers only over the same ranges. The best point
is the best of a finite sample, which flatters small samples. Adaptive designs (tpe) are left out.
"""

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
        losses = point_by_seed(cell).mean(axis=1)
        best, worst = losses.min(), float(cell["worst_loss"].iloc[0])
        good = int((losses <= best + TOLERANCE * (worst - best)).sum()) if best < worst else 0
        estimate = share_interval(good, len(losses))
        shares = dict(zip(("near_optimal", "low", "high"), estimate, strict=True))
        rows.append(key | shares | {"tolerance": TOLERANCE} | counts(cell))
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the shares."""
    return draw_intervals(table, "near_optimal", "share within 5 % of the best")
