"""The largest stable learning rate of a cell, for any resampling of its seeds."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from robustlr.analysis._intervals import LEVEL
from robustlr.analysis._sweeps import Numbers, Runs, curve, means

TOLERATED = 0.1
"""The share of failed runs up to which a learning rate is called stable."""
SLOPES = (2.2, 220.0)
"""The least and the greatest slope of a fitted boundary, in logits a decade."""
REACH = 3.0
"""How many decades beyond the design a boundary is looked for."""
STEP = 0.04
"""How finely, in decades."""


class Stable(NamedTuple):
    """Learning rates, one for each resampling of the seeds, ``[resamplings]``.

    Attributes:
        largest: the largest stable one; NaN if none is.
        unstable: the next above it in the design, which is not stable; infinite if the design ends
            before, so that the largest is *at least* this large.
        best: the one with the lowest mean loss.
    """

    largest: Numbers
    unstable: Numbers
    best: Numbers


def largest_stable(runs: Runs, times: Numbers | None = None) -> Stable:
    """Return the largest stable learning rate for each resampling of the seeds.

    A run failed if it diverged, or if it ended at the worst loss although its learning rate is not
    below the best one: below, learning nothing is slowness. A learning rate is stable if at some
    setting of the other hyperparameters at most one run in ten failed; with fewer than ten seeds:
    none. The largest stable one is the one just below the first that is not stable, going up from
    the best: a survivor beyond that is luck.

    Args:
        runs: at least one point and one seed.
        times: how often each seed counts, ``[resamplings, seeds]``: all ones but a zero for a
            jackknife, multinomial counts for a bootstrap; every seed once by default.
    """
    times = np.ones((1, len(runs.seeds))) if times is None else times
    lrs, starts = runs.values, runs.starts
    best = lrs[np.argmin(curve(runs, times), axis=0)]
    stuck = np.where(np.isnan(runs.losses), np.nan, runs.losses >= runs.worst)
    above = np.fmax(runs.diverged, stuck)  # fmax: a point without the seed stays without
    shares = np.where(
        lrs[:, None] >= best,
        np.minimum.reduceat(means(above, times, 1.0), starts),
        np.minimum.reduceat(means(runs.diverged, times, 1.0), starts),
    )
    is_stable = shares <= TOLERATED + 1e-9
    beyond = (lrs[:, None] >= best) & ~is_stable
    unstable = np.where(beyond, lrs[:, None], np.inf).min(axis=0)
    usable = is_stable & (lrs[:, None] < unstable)
    largest = np.where(usable, lrs[:, None], -np.inf).max(axis=0)
    return Stable(np.where(np.isfinite(largest), largest, np.nan), unstable, best)


def failures(runs: Runs, best: float) -> tuple[Numbers, Numbers]:
    """Return how many runs failed at each learning rate, and how many there were, ``[values]``.

    ``best`` is the best learning rate; see ``largest_stable`` for what failing is.
    """
    ran = ~np.isnan(runs.losses)
    stuck = (runs.losses >= runs.worst) & (runs.at >= best)[:, None]
    failed = np.where(ran, np.maximum(np.nan_to_num(runs.diverged), stuck), 0)
    sums = [np.add.reduceat(table.sum(axis=1), runs.starts) for table in (failed, ran)]
    return sums[0], sums[1].astype(float)


def boundary(
    lrs: Numbers, failed: Numbers, total: Numbers, share: float
) -> tuple[float, float, float]:
    """Return the learning rate at which a ``share`` of runs fails, and its 95 % interval.

    Logistic regression of failure on the logarithm of the learning rate, with a slope within
    ``SLOPES``, so that it is finite also where one learning rate divides failures from successes. The
    interval is the profile of the likelihood, cut by Student's quantile. Bounds of 0 and infinity, and
    an estimate of NaN, mean that the runs do not tell: none failed, or all.

    Args:
        lrs: ``[values]``, positive.
        failed: how many runs failed at each.
        total: how many there were.
        share: between 0 and 1.
    """
    at = np.log10(lrs)
    where = np.arange(at.min() - REACH, at.max() + REACH, STEP)  # of the boundary
    slopes = np.geomspace(*SLOPES, 25)
    profile = np.max([_likelihood(at, failed, total, share, where, s) for s in slopes], axis=0)
    cut = stats.t.ppf((1 + LEVEL) / 2, max(1, total.sum() - 2)) ** 2 / 2
    (inside,) = np.nonzero(profile >= profile.max() - cut)
    first, last = int(inside[0]), int(inside[-1])
    tells = 0 < failed.sum() < total.sum()
    best = where[profile >= profile.max() - 1e-3].mean()  # the middle, where all are as likely
    return (
        float(10**best) if tells else np.nan,
        float(10 ** where[first]) if first > 0 else 0.0,
        float(10 ** where[last]) if last < len(where) - 1 else np.inf,
    )


def _likelihood(
    at: Numbers, failed: Numbers, total: Numbers, share: float, where: Numbers, slope: float
) -> Numbers:
    """Return the logarithmic likelihood at each place of the boundary, ``[where]``."""
    logits = slope * (at - where[:, None]) + np.log(share / (1 - share))
    likelihood = failed * np.logaddexp(0, -logits) + (total - failed) * np.logaddexp(0, logits)
    return np.asarray(-likelihood.sum(axis=1))
