"""How much does a wrong learning rate cost?

Sensitivity is the mean, over learning rates spaced evenly on a log scale, of the loss above the
optimizer's best, as a share of what there is to gain: 0 if every learning rate is as good as the
best, 1 if every one is as bad as learning nothing. Every learning rate of the design counts once; at
each, the other hyperparameters are at their best of the points that have it. A point's loss is the
mean over seeds. It is given on the range that all optimizers of the task share, if that is more than
one learning rate, and within one decade of each optimizer's own best: the two can disagree. Source:
learning-rate sensitivity of Wortsman et al. (2023), divided by worst minus best.

Limits: the best is the best of a noisy sample, so small differences mean little; a best at the edge
of the range (``edge``) says that the range was too narrow; adaptive designs (tpe) are left out,
because they crowd the optimum. In a random or Sobol design every point has a learning rate of its own,
so the cost of the other hyperparameters is mixed in.
"""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, counts, of_role, point_by_seed, with_losses
from robustlr.analysis._intervals import jackknife
from robustlr.analysis._plots import draw_intervals

TITLE = "Learning-rate sensitivity"
DECADE = 10 * (1 + 1e-6)


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell and range, with ``sensitivity``, ``low`` and ``high``."""
    design = of_role(trials, "design")
    if "lr" not in design or design["lr"].isna().all():
        return pd.DataFrame()
    shared = _shared_ranges(with_losses(design))
    rows = []
    for key, cell in cells(design):
        by_seed = point_by_seed(cell)
        worst = float(cell["worst_loss"].iloc[0])
        best_lr = _losses(by_seed).idxmin()
        lrs = by_seed.index.get_level_values("lr")
        for kind, bounds in (("common", shared[key["task"]]), ("decade", None)):
            low, high = bounds or (best_lr / DECADE, best_lr * DECADE)
            inside = lrs[(lrs >= low) & (lrs <= high)]
            if kind == "common" and inside.nunique() < 2:  # the optimizers' ranges hardly meet
                continue
            estimate = jackknife(partial(_sensitivity, worst=worst, bounds=bounds), by_seed)
            estimate = tuple(np.clip(estimate, 0, 1))  # Student's interval knows no bounds
            rows.append(
                key
                | {"range": kind, "lr_low": inside.min(), "lr_high": inside.max()}
                | dict(zip(("sensitivity", "low", "high"), estimate, strict=True))
                | {"best_lr": best_lr, "edge": best_lr in (lrs.min(), lrs.max())}
                | counts(cell)
            )
    return pd.DataFrame(rows)


def _shared_ranges(design: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return, for each task, the learning rates that all its optimizers' ranges contain."""
    ranges = design.groupby(["task", "optimizer"])["lr"].agg(["min", "max"]).groupby("task")
    return {
        task: (low, high)
        for task, low, high in zip(
            ranges["min"].max().index, ranges["min"].max(), ranges["max"].min(), strict=True
        )
    }


def _losses(by_seed: pd.DataFrame) -> pd.Series:
    """Return the mean loss over seeds at each learning rate, the other hyperparameters tuned."""
    return by_seed.mean(axis=1).groupby(level="lr").min()


def _sensitivity(by_seed: pd.DataFrame, worst: float, bounds: tuple[float, float] | None) -> float:
    losses = _losses(by_seed)
    best = losses.min()
    if not best < worst:
        return float("nan")
    low, high = bounds or (losses.idxmin() / DECADE, losses.idxmin() * DECADE)
    inside = losses[(losses.index >= low) & (losses.index <= high)]
    return float(np.mean(inside - best) / (worst - best)) if len(inside) else float("nan")


def draw(table: pd.DataFrame) -> Figure:
    """Draw the sensitivity on the common range, or around the best where there is none."""
    ranges = {"common": "on the common range", "decade": "around the best"}
    kind = "common" if "common" in set(table["range"]) else "decade"
    shown = table[table["range"] == kind]
    return draw_intervals(shown, "sensitivity", f"sensitivity {ranges[kind]} (0 is best)")
