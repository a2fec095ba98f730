"""Where in the space does the seed decide?

For each learning rate (or eighth of a random design's), ``noise`` is the standard deviation over seeds
of one setting's loss, pooled over the settings there (root mean square), with its χ² interval;
``noise_share`` is its share of what there is to gain, worst minus best. Beside it stand, for the whole
cell: ``within``, the noise of a typical setting (the median of the variances over seeds, over the
median of χ² per degree of freedom, so that a few settings at the edge of stability do not decide it),
``between``, the standard deviation between settings (1.4826 times the median absolute deviation of
their means, less what noise adds to it), and ``ratio``, between over within, with a percentile interval
from resampling the settings (it held the truth in 93 to 99 of 100 simulated cases; of fewer than eight
settings too many resamples are of one alone, and there is none). A ratio near 1 says that what the seed
changes is as large as what tuning changes.

Limits: a setting whose runs all count as the worst value has no noise to be seen and is left out
(``hopeless`` counts them). The χ² interval takes noise as normal and equal among the settings at one
learning rate; with settings that diverge on some seeds it is too narrow. Reads ``design`` trials;
adaptive designs (tpe) run each point once, so they say nothing here.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy import stats

from robustlr.analysis._cells import cells, conditions, counts, of_role, point_by_seed
from robustlr.analysis._intervals import LEVEL
from robustlr.analysis._plots import MARKERS, add_legend, fit_axis, panels
from robustlr.analysis._sentences import shown_condition

TITLE = "Noise between seeds"
PICTURE_PER = "task"
LEAST_SETTINGS = 8
MOST_VALUES = 12
BINS = 8
RESAMPLES = 1000


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell and learning rate, with ``noise``, ``low`` and ``high``."""
    rows: list[dict[str, Any]] = []
    for key, cell in cells(of_role(trials, "design")):
        by_seed = point_by_seed(cell)
        worst = float(cell["worst_loss"].iloc[0])
        hopeless = (by_seed >= worst) | by_seed.isna()
        settings = by_seed[(by_seed.notna().sum(axis=1) > 1) & ~hopeless.all(axis=1)]
        if settings.empty:
            continue
        gain = worst - by_seed.mean(axis=1).min()
        whole = _ratio(settings) | {"hopeless": int(hopeless.all(axis=1).sum())} | counts(cell)
        for lr, there in settings.groupby(_learning_rates(settings), dropna=False):
            noise, low, high = pooled_noise(there)
            numbers = {"lr": lr, "noise": noise, "low": low, "high": high}
            shares = {"noise_share": noise / gain, "share_low": low / gain}
            rows.append(key | numbers | shares | {"share_high": min(high / gain, 1)} | whole)
    return pd.DataFrame(rows)


def pooled_noise(settings: pd.DataFrame) -> tuple[float, float, float]:
    """Return the standard deviation over seeds, pooled over settings (rows), and its χ² interval."""
    degrees = int((settings.notna().sum(axis=1) - 1).sum())
    deviations = settings.sub(settings.mean(axis=1), axis=0)[_differ(settings)].to_numpy()
    noise = float(np.sqrt(np.nansum(np.square(deviations)) / degrees))
    tails = stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], degrees)
    low, high = noise * np.sqrt(degrees / tails)
    return noise, float(low), float(high)


def _differ(settings: pd.DataFrame) -> pd.Series:
    """Return which settings' seeds differ; the mean of equal numbers need not be that number."""
    return settings.max(axis=1) > settings.min(axis=1)


def _learning_rates(settings: pd.DataFrame) -> np.ndarray:
    """Return each setting's learning rate, or the middle of its bin where there are too many."""
    if "lr" not in settings.index.names:
        return np.full(len(settings), np.nan)
    lrs = settings.index.get_level_values("lr").to_series()
    if lrs.nunique() <= MOST_VALUES:
        return np.asarray(lrs)
    bins = pd.qcut(lrs, BINS, labels=False, duplicates="drop").to_numpy()
    middles = lrs.groupby(bins).median().map(lambda lr: float(f"{lr:.2g}"))
    return np.asarray(middles.loc[bins])


def _ratio(settings: pd.DataFrame) -> dict[str, float]:
    """Return ``within``, ``between`` and their ratio with its interval."""
    means = settings.mean(axis=1).to_numpy()
    variances = settings.var(axis=1).where(_differ(settings), 0.0).to_numpy()
    seeds = settings.notna().sum(axis=1).to_numpy()
    variances = variances / (stats.chi2.median(seeds - 1) / (seeds - 1))
    names = ("within", "between", "ratio")
    numbers = dict(zip(names, _spreads(means, variances, seeds), strict=True))
    bounds = np.full(2, np.nan)
    if len(means) >= LEAST_SETTINGS and numbers["within"] > 0:
        generator = np.random.default_rng(0)
        resamples = 40_000 // len(means) if len(means) > 40 else RESAMPLES
        index = generator.integers(len(means), size=(max(resamples, 200), len(means)))
        ratios = _spreads(means[index], variances[index], seeds[index])[2]
        bounds = np.nanquantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return numbers | {"ratio_low": bounds[0], "ratio_high": bounds[1]}


def _spreads(means: np.ndarray, variances: np.ndarray, seeds: np.ndarray) -> tuple[Any, Any, Any]:
    """Return within, between and ratio of settings along the last axis; NaN without any noise."""
    within = np.median(variances, axis=-1)
    deviations = np.abs(means - np.median(means, axis=-1, keepdims=True))
    spread = np.square(1.4826 * np.median(deviations, axis=-1))
    between = np.sqrt(np.maximum(0, spread - within / np.median(seeds, axis=-1)))
    within = np.sqrt(within)
    return within, between, between / np.where(within > 0, within, np.nan)


def verdict(table: pd.DataFrame) -> str:
    """Return how chance compares with tuning, and where it is largest."""
    if table.empty:
        return "This needs at least two seeds of settings that learn, in a design that is not adaptive."
    by = ["task", "optimizer", *conditions(table)]
    whole = table.drop_duplicates(by).dropna(subset=["ratio_low"])
    if whole.empty:
        return (
            f"Fewer than {LEAST_SETTINGS} settings of a cell learn, or the runs have no noise: chance "
            "cannot be compared with tuning."
        )
    above, below = int((whole["ratio_low"] > 1).sum()), int((whole["ratio_high"] < 1).sum())
    sentences = [
        f"Settings differ by more than seeds do in {above} of {len(whole)} cells, and by less in "
        f"{below}" + ("." if above + below == len(whole) else "; in the others we cannot tell.")
    ]
    noisiest = whole.loc[whole["ratio"].idxmin()]
    where = ", ".join(filter(None, [noisiest["task"], shown_condition(noisiest, by[2:])]))
    sentences.append(
        f"The seed matters most, against tuning, for {noisiest['optimizer']} on {where}: the settings "
        f"that learn differ by {noisiest['ratio']:.2g} times the noise "
        f"({noisiest['ratio_low']:.2g} to {noisiest['ratio_high']:.2g})."
    )
    return " ".join(sentences)


def draw(table: pd.DataFrame) -> Figure:
    """Draw one task's noise map: a panel for each optimizer, a line for each condition."""
    names = conditions(table)
    kinds = list(dict.fromkeys(shown_condition(row, names) for _, row in table.iterrows()))
    groups = list(table.groupby("optimizer", sort=False))
    figure, axes = panels(len(groups), width=3.6, height=2.8, columns=3)
    colors = sns.color_palette("colorblind", len(kinds))
    positive = table.loc[table["noise_share"] > 0, "noise_share"]
    for panel, (optimizer, group) in zip(axes, groups, strict=True):
        for _, curve in group.groupby(names, sort=False, dropna=False) if names else [("", group)]:
            kind = kinds.index(shown_condition(curve.iloc[0], names))
            curve = curve.fillna({"lr": 1.0}).sort_values("lr")
            lrs = curve["lr"] * 1.1 ** (kind - (len(kinds) - 1) / 2)  # intervals stand apart
            style = {"color": colors[kind], "marker": MARKERS[kind % len(MARKERS)]}
            seen = curve["noise_share"].where(curve["noise_share"] > 0)
            panel.plot(lrs, seen, label=kinds[kind], **style)
            panel.vlines(lrs, curve["share_low"], curve["share_high"], color=colors[kind])
        if len(positive):
            fit_axis(panel, [positive.min() / 4, positive.max() * 4])  # always logarithmic
        panel.set_xscale("log")
        panel.set_title(str(optimizer), fontsize=11)
        panel.set_xlabel("lr")
        panel.set_ylabel("noise / gain")
    figure.suptitle(str(table["task"].iloc[0]))
    if any(kinds):
        add_legend(figure, *axes)
    return figure
