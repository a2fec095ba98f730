"""Does the optimizer need warmup?

``matched`` is the mean gain from warmup at equal settings, over all points of the design: loss
without minus loss with warmup. ``retuned`` is the gain between the best setting without and the best
with warmup, each tuned for itself: what warmup buys to someone who tunes. Positive means that warmup
helps; intervals are over seeds, paired. A high matched gain with a retuned gain of zero says that
warmup widens the range of good settings and does no more.

Limits: both arms take the same number of steps. Matched gains depend on how much of the range lies
where only warmup survives.
"""

import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, conditions, counts, of_role, point_by_seed
from robustlr.analysis._intervals import jackknife
from robustlr.analysis._plots import draw_intervals

TITLE = "Warmup need"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return two rows (``matched``, ``retuned``) for each cell that ran with and without warmup."""
    if "warmup" not in trials:
        return pd.DataFrame()
    rows = []
    for key, cell in cells(of_role(trials, "design"), without=("warmup",)):
        off = cell["warmup"].map(lambda value: float(value) == 0)
        if off.all() or not off.any():
            continue
        without = point_by_seed(cell[off])
        for value, arm in cell[~off].groupby("warmup", sort=False):
            both = pd.concat({"off": without, "on": point_by_seed(arm)}).dropna(axis="columns")
            for kind, gain in (("matched", _matched), ("retuned", _retuned)):
                estimate = jackknife(gain, both)
                numbers = dict(zip(("gain", "low", "high"), estimate, strict=True))
                rows.append(key | {"warmup": value, "kind": kind} | numbers | counts(arm))
    return pd.DataFrame(rows)


def _matched(both: pd.DataFrame) -> float:
    losses = both.mean(axis=1)
    return float((losses.loc["off"] - losses.loc["on"]).mean())


def _retuned(both: pd.DataFrame) -> float:
    losses = both.mean(axis=1)
    return float(losses.loc["off"].min() - losses.loc["on"].min())


def draw(table: pd.DataFrame) -> Figure:
    """Draw both gains."""
    others = [name for name in conditions(table) if name != "warmup" or table[name].nunique() > 1]
    return draw_intervals(table, "gain", "gain from warmup (0 needs none)", hue=["kind", *others])
