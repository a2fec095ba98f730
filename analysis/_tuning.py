"""What the best of some settings tried is worth: draws with replacement from a design's points."""

import numpy as np
import pandas as pd

from robustlr.analysis._cells import Floats, means_of_others


def chances(count: int, tries: Floats) -> Floats:
    """Return the chance that the i-th best of ``count`` points is the best of some tries.

    Args:
        count: points.
        tries: how many settings are drawn, with replacement.

    Returns:
        tries × points: ((count - i)/count)^k - ((count - i - 1)/count)^k.
    """
    left = np.arange(count, -1, -1) / count
    above = left[None] ** np.asarray(tries, float)[:, None]
    found: Floats = above[:, :-1] - above[:, 1:]
    return found


def median_draw(count: int, tries: Floats) -> Floats:
    """Return 1 for the median rank (0 is best) of the best of some tries, else 0; as ``chances``."""
    reached = chances(count, tries).cumsum(axis=1) >= 0.5 - 1e-12
    shares: Floats = np.eye(count)[reached.argmax(axis=1)]
    return shares


def ordered_by_others(chosen_by: pd.DataFrame, judged_by: pd.DataFrame) -> list[Floats]:
    """Return, for each seed, the values of its points, those first that are best on other seeds.

    Both tables are points × seeds; points that a seed or its others lack are left out.
    """
    others = means_of_others(chosen_by.to_numpy())
    values = judged_by.reindex(index=chosen_by.index, columns=chosen_by.columns).to_numpy()
    ordered = []
    for seed in range(values.shape[1]):
        known = np.isfinite(others[:, seed]) & ~np.isnan(values[:, seed])
        order = np.argsort(others[known, seed], kind="stable")
        ordered.append(values[known, seed][order])
    return [points for points in ordered if len(points)]
