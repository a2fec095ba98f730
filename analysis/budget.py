"""What does a tuning budget buy?

The metric of the best of ``tries`` settings drawn from the design's points. Settings are chosen on
validation data; ``value`` is the validation metric, ``test_value`` the test metric of the same settings,
over the seeds of which all runs but diverged ones have one, and ``tries_seconds`` what so many runs cost
on average, diverged ones and all. Source: Dodge et al. (2019); the median curve, and its bands, are
those of Lourie et al. (2023).

Of a grid (``band`` "seeds") the points are the space: settings are drawn from it with replacement, and
``value`` is the mean over draws. Each seed is judged at the settings that are chosen on the other
seeds, and the interval is Student's over seeds. A random design (``band`` "points") is a sample of the
space: ``value`` is the median over draws, and the interval is part of a band, from the package opda,
that holds the whole curve of seed-averaged values with 95 % certainty, whatever the distribution
(Learned-Miller and DeStefano's up to 40 points, Kolmogorov and Smirnov's beyond); as it holds all
quantiles' curves too, it holds the median's in 99 % of simulations. It reads the role ``design``.

Limits: from a random design only budgets far below the number of points are identified: beyond a sixth
of it the band's good end is the best value there can be, if that is known. Ties, as of diverged runs,
make the band wider than need be, and so do Sobol points, which are spread more evenly than chance
would; but then it is no longer exact. A design whose points are all combinations of their values is
taken for a grid. The test metric's interval is over seeds alone. A band holds for one optimizer's
curve, not for the difference of two. Adaptive designs (tpe) are left out.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from robustlr.analysis._across import is_grid, mean_intervals
from robustlr.analysis._cells import (
    Floats,
    cells,
    conditions,
    counts,
    in_units,
    of_role,
    point_by_seed,
    within_range,
)
from robustlr.analysis._intervals import LEVEL
from robustlr.analysis._plots import MARKERS, add_legend, panels
from robustlr.analysis._sentences import shown_condition
from robustlr.analysis._tuning import chances, median_draw, ordered_by_others

TITLE = "Tuning curves"
PICTURE_PER = "task"
BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
TIGHT = 40
"""Up to so many points the tighter of the exact bands takes under half a second."""


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each cell and number of tries, with ``value``, ``low`` and ``high``."""
    design = of_role(trials, "design")
    with_tests = _tested(design)
    tests = iter(cells(with_tests)) if with_tests is not None else None
    rows = []
    for key, cell in cells(design):
        by_seed = point_by_seed(cell)
        test = _known(next(tests)[1]) if tests is not None else None
        tries = np.array([k for k in BUDGETS if k <= len(by_seed)])
        grid = is_grid(by_seed.index.to_frame(index=False))
        shares = chances if grid else median_draw
        losses = _over_seeds(by_seed, by_seed, tries, shares)
        curve = in_units(cell, losses if grid else _over_points(by_seed, cell, tries)).tolist()
        tested = None if test is None else _over_seeds(by_seed, test, tries, shares)
        test_curve = None if tested is None else in_units(cell, tested).tolist()
        shared = {"band": "seeds" if grid else "points", "worst": cell["worst"].iloc[0]}
        shared |= counts(cell)
        for place, number in enumerate(tries):
            row = {"tries": int(number), "tries_seconds": float(number * cell["seconds"].mean())}
            row |= _shown(cell, "", curve[place])
            if test_curve is not None:
                row |= _shown(cell, "test_", test_curve[place])
            rows.append(key | row | shared)
    return pd.DataFrame(rows)


def _tested(design: pd.DataFrame) -> pd.DataFrame | None:
    """Return the design with the test metric in place of the validation metric, if it is known."""
    if "test_value" not in design or design["test_value"].isna().all():
        return None
    return design.assign(value=design["test_value"])


def _known(tested: pd.DataFrame) -> pd.DataFrame | None:
    """Return a cell's test losses, points × seeds, of the seeds that have them; None if none has.

    A run that diverged needs no test value to be the worst. A seed of which another run lacks it is
    left out: the settings drawn would be others than those of its validation metric.
    """
    known = tested["test_value"].notna() | tested["diverged"].astype(bool)
    whole = tested[known.groupby(tested["seed"]).transform("all")]
    return point_by_seed(whole) if whole["test_value"].notna().any() else None


def _shown(cell: pd.DataFrame, prefix: str, estimate: list[float]) -> dict[str, float]:
    """Return an estimate and its bounds by name; Student's interval knows no range."""
    value, *bounds = estimate
    low, high = within_range(cell, tuple(bounds))
    return {f"{prefix}value": value, f"{prefix}low": low, f"{prefix}high": high}


def _over_seeds(
    chosen_by: pd.DataFrame,
    judged_by: pd.DataFrame,
    tries: Floats,
    shares: Callable[[int, Floats], Floats],
) -> Floats:
    """Return the curve and its interval over seeds, tries × 3.

    ``shares`` returns how much each rank of the points counts, tries × points.
    """
    ordered = ordered_by_others(chosen_by, judged_by)
    if not ordered:  # no seed has a point that another seed has
        return np.full((len(tries), 3), np.nan)
    return mean_intervals(np.array([shares(len(points), tries) @ points for points in ordered]))


def _over_points(by_seed: pd.DataFrame, cell: pd.DataFrame, tries: Floats) -> Floats:
    """Return the median curve of seed-averaged losses and its exact band, tries × 3."""
    losses = np.sort(by_seed.mean(axis=1).to_numpy())
    worst = float(cell["worst_loss"].iloc[0])
    known_best = 0.0 if cell["direction"].iloc[0] == "minimize" and losses[0] >= 0 else -np.inf
    low, high = band_places(len(losses), tuple(tries.tolist()))
    ends = np.concatenate([[known_best], losses, [worst]])
    return np.column_stack([median_draw(len(losses), tries) @ losses, ends[low], ends[high]])


@cache
def band_places(count: int, tries: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Return the places of the band's ends among the sorted losses, for each number of tries.

    Place 0 is the best value there can be, place ``count`` + 1 the worst. The places depend on the
    number of points alone.
    """
    from opda.nonparametric import EmpiricalDistribution

    ranks = np.arange(1, count + 1)
    lower, _, upper = EmpiricalDistribution.confidence_bands(
        ranks,
        LEVEL,
        a=0,
        b=count + 1,
        generator=np.random.default_rng(0),
        method="ld_equal_tailed" if 1 < count <= TIGHT else "ks",
        n_jobs=1,
    )
    low, high = (
        np.asarray(distribution.quantile_tuning_curve(tries, minimize=True)).round().astype(int)
        for distribution in (upper, lower)  # where much is good, the curve is low
    )
    return low, high


def verdict(table: pd.DataFrame) -> str:
    """Say how many tries each optimizer needs to be as good as any at the smallest budget shared."""
    if table.empty:
        return "This needs trials of a grid, random or sobol design."
    sentences = []
    groups = table.groupby(["task", *conditions(table)], sort=False, dropna=False)
    told: dict[str, int] = {}
    for _, rows in groups:
        single = rows[rows["tries"] == 1]
        sign = -1 if single["direction"].iloc[0] == "maximize" else 1
        best = single.loc[(sign * single["value"]).idxmin()]
        others = single.drop(index=best.name)
        ends = ("high", "low") if sign == 1 else ("low", "high")
        clear = sign * others[ends[1]] > sign * best[ends[0]]
        if len(others) and clear.all():
            told[best["optimizer"]] = told.get(best["optimizer"], 0) + 1
    of = f"of {len(groups)} tasks and conditions"
    for name, number in told.items():
        sentences.append(f"With one try, {name} does best on {number} {of}.")
    if (untold := len(groups) - sum(told.values())) > 0:
        sentences.append(f"Which optimizer does best with one try cannot be told on {untold} {of}.")
    return " ".join(sentences)


def draw(table: pd.DataFrame) -> Figure:
    """Draw one task's curves over tries (left) and seconds (right), a row of panels a condition."""
    by = conditions(table)
    groups = list(table.groupby(by or ["task"], sort=False, dropna=False))
    figure, axes = panels(2 * len(groups), height=3.6)
    optimizers = list(table["optimizer"].unique())
    for place, (_, group) in enumerate(groups):
        for panel, name, label in (
            (axes[2 * place], "tries", "settings tried"),
            (axes[2 * place + 1], "tries_seconds", "seconds of training"),
        ):
            _draw_panel(panel, group, name, optimizers)
            panel.set_xlabel(label)
            title = filter(None, [group["task"].iloc[0], shown_condition(group.iloc[0], by)])
            panel.set_title(" · ".join(title))
    metric = table["metric"].iloc[0] if "metric" in table else "value"
    figure.supylabel(f"{metric}, best of the tries", fontsize=11)
    add_legend(figure, axes[0])
    return figure


def _draw_panel(panel: Axes, group: pd.DataFrame, name: str, optimizers: list[str]) -> None:
    colors = sns.color_palette("colorblind", len(optimizers))
    for optimizer, line in group.groupby("optimizer", sort=False):
        index = optimizers.index(optimizer)
        marker = MARKERS[index % len(MARKERS)]
        style: dict[str, Any] = {"color": colors[index], "marker": marker}
        panel.plot(line[name], line["value"], label=optimizer, ms=4, **style)
        if len(optimizers) <= 4:  # more shades hide each other
            panel.fill_between(
                line[name], line["low"], line["high"], color=colors[index], alpha=0.12
            )
    values = [*group["value"], group["worst"].iloc[0]]
    margin = 0.05 * (max(values) - min(values)) or 0.5
    panel.set_ylim(min(values) - margin, max(values) + margin)  # wide bands must not flatten it
    panel.axhline(group["worst"].iloc[0], color="grey", ls=":", lw=1)
    if (group[name] > 0).all():
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
