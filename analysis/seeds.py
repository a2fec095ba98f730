"""How many seeds does a claim of a given size need?

A claim is that one setting is better than another by some share (1, 2 or 5 %) of what there is to
gain, worst minus best. The answer is the smallest number of common seeds with which a paired t test
(two-sided, 5 %) finds such a difference four times out of five (power 80 %, by Student's
non-central distribution). The noise is that of good settings, whose mean loss is within 5 % of what
there is to gain from the best: ``noise`` is the standard deviation of the difference of two of them
with a common seed, from the residuals that are left when the mean of each setting and of each seed
is taken out. Its interval, and so that of ``seeds_needed``, is the χ² interval. Where one setting
alone is good its standard deviation over seeds stands in, times √2: nothing pairs it.

A further row for each task and condition (``rival``) asks the same of the two best optimizers, tuned:
``difference`` is the rival's loss minus the better's, paired by seed, each setting chosen on the other
seeds, with Student's interval. ``seeds_needed`` is for a true difference as large as the one seen.

Limits: the noise is taken as normal and equal among good settings; where it is not, the interval is
too narrow. Two optimizers share less of a seed's luck than two settings of one, so a claim between
optimizers can need more seeds than the rows of either. The best two are the best two of the same
seeds, which flatters their difference, and a difference that was seen is not the true one. Reads
``design`` trials; adaptive designs (tpe) run each point once, so they say nothing here.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from robustlr.analysis._cells import (
    cells,
    counts,
    of_role,
    point_by_seed,
    tuned_by_seed,
)
from robustlr.analysis._intervals import LEVEL, mean_interval
from robustlr.analysis._plots import draw_intervals, with_full_titles

TITLE = "Seeds that a claim needs"
CLAIMS = {"1 %": 0.01, "2 %": 0.02, "5 %": 0.05}
AS_SEEN = "as seen between the best two"
GOOD = 0.05
POWER = 0.8
MOST_DRAWN = 1000


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each cell and claim, and one for the best two optimizers of each task."""
    rows: list[dict[str, Any]] = []
    rivals: dict[tuple[Any, ...], list[tuple[dict[str, Any], pd.Series, dict[str, Any]]]] = {}
    for key, cell in cells(of_role(trials, "design")):
        by_seed = point_by_seed(cell)
        gain = float(cell["worst_loss"].iloc[0]) - by_seed.mean(axis=1).min()
        noise, degrees = paired_noise(by_seed, GOOD * gain)
        if not degrees or not gain > 0:
            continue
        numbers = {"rival": None, "noise": noise} | counts(cell)
        for claim, share in CLAIMS.items():
            sizes = {"claim": claim, "difference": share * gain, "share": share}
            rows.append(key | numbers | sizes | _needed(share * gain, noise, degrees))
        where = tuple(v for n, v in key.items() if n != "optimizer")
        arm = (key, tuned_by_seed(by_seed), counts(cell) | {"gain": gain})
        rivals.setdefault(where, []).append(arm)
    rows += [_best_two(arms) for arms in rivals.values() if len(arms) > 1]
    return pd.DataFrame([row for row in rows if row])


def paired_noise(by_seed: pd.DataFrame, tolerance: float) -> tuple[float, int]:
    """Return the noise of a paired difference of two good settings, and its degrees of freedom.

    ``by_seed`` is ``point_by_seed``'s table; good is a mean loss within ``tolerance`` of the best. The
    degrees are 0 where there are not two seeds that all good settings ran on.
    """
    means = by_seed.mean(axis=1)
    good = by_seed[means <= means.min() + tolerance].dropna(axis="columns").to_numpy()
    points, seeds = good.shape
    if points == 0 or seeds < 2:
        return float("nan"), 0
    residuals = good - good.mean(axis=1, keepdims=True)
    if points > 1:
        residuals = residuals - residuals.mean(axis=0)
    degrees = max(1, points - 1) * (seeds - 1)
    return math.sqrt(2 * float(np.square(residuals).sum()) / degrees), degrees


def seeds_for(effect: float) -> float:
    """Return the seeds with which a paired t test finds ``effect``, difference over its noise.

    Source: the power of Student's test, by the non-central t distribution. Infinite for no effect.

    >>> seeds_for(1.0), seeds_for(0.5)
    (10.0, 34.0)
    """
    if math.isnan(effect):
        return effect
    if effect <= 0:
        return math.inf
    normal = stats.norm.ppf((1 + LEVEL) / 2), stats.norm.ppf(POWER)
    count = max(2, math.ceil((sum(normal) / effect) ** 2 + normal[0] ** 2 / 2))
    if count > 10 * MOST_DRAWN:  # where the normal approximation is exact to a seed in thousands
        return float(count)
    while _power(count, effect) < POWER:
        count += 1
    while count > 2 and _power(count - 1, effect) >= POWER:
        count -= 1
    return float(count)


def _power(count: int, effect: float) -> float:
    bound = stats.t.ppf((1 + LEVEL) / 2, count - 1)
    shift = min(effect, 100.0) * math.sqrt(count)  # of certain effects scipy's answer is no number
    above = 1 - stats.nct.cdf(bound, count - 1, shift)
    return float(above + stats.nct.cdf(-bound, count - 1, shift))


def _needed(difference: float, noise: float, degrees: int) -> dict[str, float]:
    """Return the seeds needed and their interval, from the χ² interval of the noise."""
    tails = stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], degrees)
    low, high = noise * np.sqrt(degrees / tails)
    names = ("seeds_needed", "low", "high")
    effects = [difference / n if n > 0 else math.inf for n in (noise, low, high)]
    needed = [2.0 if math.isinf(effect) else seeds_for(effect) for effect in effects]
    return {"noise_low": low, "noise_high": high} | dict(zip(names, needed, strict=True))


def _best_two(arms: list[tuple[dict[str, Any], pd.Series, dict[str, Any]]]) -> dict[str, Any]:
    """Return the row of the two optimizers with the lowest tuned loss, paired by seed."""
    arms = sorted(arms, key=lambda arm: float(arm[1].mean()))[:2]
    (key, ours, facts), (other, theirs, _) = arms
    differences = (theirs - ours).dropna()
    if len(differences) < 2:
        return {}
    size, low, high = mean_interval(differences)
    noise = float(differences.std(ddof=1))
    gain = facts.pop("gain")
    seen = {"difference": size, "difference_low": low, "difference_high": high}
    needed = _needed(size, noise, len(differences) - 1)
    numbers = {"rival": other["optimizer"], "noise": noise, "claim": AS_SEEN, "share": size / gain}
    return key | facts | numbers | seen | needed | {"seeds": len(differences)}


def verdict(table: pd.DataFrame) -> str:
    """Return what the study's seeds can tell, in a few sentences."""
    if table.empty:
        return (
            "This needs at least two seeds of the same settings, in a design that is not adaptive."
        )
    sentences = []
    for claim in CLAIMS:
        rows = table[table["claim"] == claim]
        if len(rows):
            enough = int((rows["high"] <= rows["seeds"]).sum())
            median = _count(rows["seeds_needed"].median())
            sentences.append(
                f"To show a difference of {claim} of what there is to gain takes {median} seeds "
                f"in the median case; {enough} of {len(rows)} cells surely have enough."
            )
    return " ".join([*sentences, *_verdict_on_pairs(table[table["claim"] == AS_SEEN])])


def _verdict_on_pairs(pairs: pd.DataFrame) -> list[str]:
    if pairs.empty:
        return []
    told = pairs["difference_low"] > 0
    sentences = [
        f"The two best optimizers are told apart in {int(told.sum())} of {len(pairs)} comparisons."
    ]
    rest = pairs[~told]
    if len(rest):
        median = _count(rest["seeds_needed"].median())
        sentences.append(
            "Where they are not, a true difference as large as the one seen would take "
            f"{median} seeds in the median case."
        )
    return sentences


def _count(seeds: float) -> str:
    return f"more than {MOST_DRAWN:,}" if seeds > MOST_DRAWN else f"{math.ceil(seeds)}"


def draw(table: pd.DataFrame) -> Figure:
    """Draw the seeds that claims need: a panel for each task and condition."""
    shown = with_full_titles(table).assign(
        optimizer=table["optimizer"].where(table["rival"].isna(), "the best two"),
        low=table["low"].clip(upper=10 * MOST_DRAWN),
        high=table["high"].clip(upper=10 * MOST_DRAWN),
        seeds_needed=table["seeds_needed"].clip(upper=2 * MOST_DRAWN),
    )
    figure = draw_intervals(shown, "seeds_needed", "seeds needed", hue=["claim"])
    for panel in figure.axes:
        panel.set_xscale("log")
        panel.set_xlim(1.7, 2.2 * MOST_DRAWN)
        panel.set_xticks([2, 5, 10, 30, 100, 300, MOST_DRAWN], minor=False)
        panel.set_xticklabels(["2", "5", "10", "30", "100", "300", "1000"])
        panel.minorticks_off()
    return figure
