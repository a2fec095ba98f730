"""Does only the product of learning rate and weight decay matter?

On the grid of learning rates × weight decays (further hyperparameters averaged out), the loss is
split by two-way analysis of variance: ``lr``, ``weight_decay`` and ``interaction`` are their shares
of the variance, V_{lr,wd}/V for the last; they sum to 1. Every grid point counts alike. What chance
adds is taken out: each sum of squares of mean effects is replaced by the mean product of the same
effect on two different seeds, which noise leaves unchanged on average.

``product_fit`` is the share of the variance that a cubic in log(lr·wd) explains, ``surface_fit`` the
share of a cubic in log lr and log wd, which holds the former; both on the points with wd > 0. A
``product_fit`` near the ``surface_fit`` says that only the product matters; ``slope`` says it too: of
the best weight decay against the learning rate, both in logs, on the quadratic surface fitted to the
points that reach half of what there is to gain. −1 means that only the product matters, 0 that the
best weight decay is the same for every learning rate. AdamW decays by lr·wd a step and so turns its
weights at a rate of about √(2·lr·wd) (Kosson et al. 2024); L2 inside Adam does not, and rotational
variants remove it.

Intervals of the shares are from the jackknife over seeds (with two seeds the whole range from 0 to 1),
that of the slope is Fieller's over seeds; it is missing where the curvature in wd cannot be told from
none, and then there is no slope to speak of. In simulation both hold the truth in 93 to 97 of 100
cases with three or five seeds; in 98 or more where a share is nearly 0 or 1, and the slope's in some 85
where noise leaves its curvature in doubt in most samples. Limits: diverged runs count as the worst
value, so a cliff where training diverges is an interaction too: read ``diverged`` beside it; and a
cliff is no cubic. A cell whose grid has holes, and any design but a grid, is left out. Reads
``design`` trials.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from robustlr.analysis._cells import cells, conditions, counts, of_role
from robustlr.analysis._intervals import LEVEL, jackknife
from robustlr.analysis._plots import draw_intervals, with_full_titles

TITLE = "Interaction of learning rate and weight decay"
PICTURE_PER = "kind"
KNOBS = ["lr", "weight_decay"]
SHARES = "shares of variance"
FITS = "explained by a cubic"
SLOPE = "slope of the best weight decay"


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell and ``measure``, with ``value``, ``low`` and ``high``."""
    design = of_role(trials, "design")
    if not {*KNOBS} <= {*design}:
        return pd.DataFrame()
    rows: list[dict[str, Any]] = []
    for key, cell in cells(design):
        by_seed = full_grid(cell)
        if by_seed is None:
            continue
        numbers = counts(cell) | {"seeds": by_seed.shape[1]}
        gain = float(cell["worst_loss"].iloc[0]) - by_seed.mean(axis=1).min()
        estimates = {(SHARES, name): e for name, e in variance_shares(by_seed).items()}
        positive = by_seed[by_seed.index.get_level_values("weight_decay") > 0]
        if positive.index.get_level_values("weight_decay").nunique() > 1:
            estimates |= {(FITS, name): e for name, e in cubic_fits(positive).items()}
            estimates[SLOPE, "slope"] = slope(positive, gain / 2)
        for (kind, measure), estimate in estimates.items():
            named = {"kind": kind, "measure": measure}
            value = dict(zip(("value", "low", "high"), estimate, strict=True))
            rows.append(key | named | value | numbers)
    table = pd.DataFrame(rows)
    return table.dropna(subset=["value"]) if len(table) else table


def full_grid(cell: pd.DataFrame) -> pd.DataFrame | None:
    """Return the losses by (lr, weight decay) and seed; none unless the cell is a grid.

    Further hyperparameters are averaged out. Seeds that did not run on the whole grid are left out.
    """
    if any(cell[name].nunique() < 2 for name in KNOBS):
        return None
    sums = cell.groupby([*KNOBS, "seed"])["loss"].agg(["mean", "size"]).unstack("seed")
    whole = (sums["size"] == sums["size"].max().max()).all()
    by_seed = sums["mean"].loc[:, whole]
    points = cell["lr"].nunique() * cell["weight_decay"].nunique()
    return by_seed if len(by_seed) == points and by_seed.shape[1] else None


def variance_shares(by_seed: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Return the shares of lr, weight decay and their interaction, each with its interval."""
    constant = np.ones((len(by_seed), 1))
    mains = [
        _basis(pd.get_dummies(by_seed.index.get_level_values(name)).to_numpy(float), constant)
        for name in KNOBS
    ]
    effects = dict(zip(KNOBS, mains, strict=True))
    effects["interaction"] = _basis(np.eye(len(by_seed)), np.hstack([constant, *mains]))
    return {name: _share(by_seed, effect) for name, effect in effects.items()}


def cubic_fits(by_seed: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Return the shares that a cubic in the product, and one in both, explain; all wd positive."""
    lr, decay = _logs(by_seed)
    surface = [lr**i * decay**j for i in range(4) for j in range(4 - i) if i + j]
    product = [(lr + decay) ** i for i in (1, 2, 3)]
    constant = np.ones((len(by_seed), 1))
    fits = {"product_fit": product, "surface_fit": surface}
    return {
        name: _share(by_seed, _basis(np.column_stack(columns), constant))
        for name, columns in fits.items()
    }


def _logs(by_seed: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return log lr and log wd of the points, both less their means."""
    logs = [np.log10(by_seed.index.get_level_values(name).to_numpy(float)) for name in KNOBS]
    return logs[0] - logs[0].mean(), logs[1] - logs[1].mean()


def _basis(columns: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis [points, rank] of what ``columns`` add to ``without``."""
    known = np.linalg.qr(without)[0]
    rest = columns - known @ (known.T @ columns)
    left, sizes, _ = np.linalg.svd(rest, full_matrices=False)
    return np.asarray(left[:, sizes > 1e-9 * max(1.0, sizes.max(initial=0.0))])


def _share(by_seed: pd.DataFrame, effect: np.ndarray) -> tuple[float, float, float]:
    """Return the share of the variance that lies in the span of ``effect``, and its interval."""

    def share(table: pd.DataFrame) -> float:
        losses = table.to_numpy() - table.to_numpy().mean(axis=0)
        whole, spread = _size(losses), float(np.square(losses).sum())
        return _size(effect.T @ losses) / whole if whole > 1e-9 * spread else math.nan

    value, low, high = jackknife(share, by_seed)
    if by_seed.shape[1] > 1 and (by_seed.shape[1] == 2 or np.isnan(low)):
        low, high = 0.0, 1.0  # one seed left out leaves too little to estimate noise from
    return (float(np.clip(value, 0, 1)), float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))


def _size(effects: np.ndarray) -> float:
    """Return the squared length of the mean effect [dimensions, seeds], free of noise's share.

    The mean product of two different seeds' effects: unbiased, whatever the noise at each point.
    """
    seeds = effects.shape[1]
    own = float(np.square(effects).sum())
    if seeds == 1:
        return own
    together = float(np.square(effects.sum(axis=1)).sum())
    return float((together - own) / (seeds * (seeds - 1)))


def slope(by_seed: pd.DataFrame, tolerance: float) -> tuple[float, float, float]:
    """Return d log wd / d log lr of the best weight decay, with Fieller's interval over seeds.

    From the quadratic surface fitted, for each seed, to the points whose mean loss is within
    ``tolerance`` of the best. NaN where these points do not determine it.
    """
    nothing = (float("nan"),) * 3
    means = by_seed.mean(axis=1)
    good = by_seed[means <= means.min() + tolerance]
    lr, decay = _logs(good)
    surface = np.column_stack([np.ones_like(lr), lr, decay, lr**2, lr * decay, decay**2])
    if np.linalg.matrix_rank(surface) < 6:
        return nothing
    fitted = np.linalg.lstsq(surface, good.to_numpy(), rcond=None)[0]
    return fieller(-fitted[4], 2 * fitted[5]) if fitted[5].mean() > 0 else nothing


def fieller(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """Return the ratio of two means over seeds and Fieller's interval; NaN where it has no end."""
    ratio, seeds = float(above.mean() / below.mean()), len(above)
    if seeds == 1:
        return ratio, float("nan"), float("nan")
    (v_above, both), (_, v_below) = np.cov(above, below) * (
        stats.t.ppf((1 + LEVEL) / 2, seeds - 1) ** 2 / seeds
    )
    square = below.mean() ** 2 - v_below
    if square <= 0:
        return (float("nan"),) * 3
    middle = (above.mean() * below.mean() - both) / square
    root = np.sqrt(max(0.0, middle**2 - (above.mean() ** 2 - v_above) / square))
    return ratio, float(middle - root), float(middle + root)


def verdict(table: pd.DataFrame) -> str:
    """Return, for each optimizer, on how many grids only the product matters, where that is clear."""
    if table.empty:
        return (
            "This needs a full grid of at least two learning rates and two weight decays "
            "with a loss that varies."
        )
    slopes = table[(table["kind"] == SLOPE) & table["low"].notna()]
    cells_ = len(table.drop_duplicates(["task", "optimizer", *conditions(table)]))
    if slopes.empty:
        return (
            f"On none of {cells_} grids can the slope of the best weight decay be told, "
            "which needs two seeds and three positive weight decays around the best."
        )
    low, high = slopes["low"], slopes["high"]
    product, apart = (low <= -1) & (high >= -1), (low <= 0) & (high >= 0)
    narrow = high - low < 1  # so that it cannot hold both
    told = (
        ("agrees with −1 and not with 0 (only the product matters)", product & narrow),
        (
            "agrees with 0 and not with −1 (the best weight decay is one for every lr)",
            apart & narrow,
        ),
    )
    vague = (
        ("can be −1 and cannot be 0, but much else,", product & ~apart & ~narrow),
        ("can be 0 and cannot be −1, but much else,", apart & ~product & ~narrow),
        ("can be both −1 and 0", product & apart),
        ("can be neither −1 nor 0", ~product & ~apart),
    )
    sentences = [
        f"The slope {what} for {_shares(slopes, found)}."
        for what, found in (*told, *(claim for claim in vague if claim[1].any()))
    ]
    if len(slopes) < cells_:
        sentences.append(f"On {cells_ - len(slopes)} further grids we cannot tell the slope.")
    return " ".join(sentences)


def _shares(slopes: pd.DataFrame, found: pd.Series) -> str:
    """Return on how many of its grids each optimizer was found, the best first."""
    groups = found.groupby(slopes["optimizer"], sort=False)
    numbers = groups.agg(["sum", "size"]).query("sum > 0").sort_values("sum", ascending=False)
    shares = [f"{name} on {n['sum']} of {n['size']} grids" for name, n in numbers.iterrows()]
    return ", ".join(shares) or "no optimizer on any grid"


def draw(table: pd.DataFrame) -> Figure:
    """Draw one kind of measure: a panel for each task and condition."""
    kind = table["kind"].iloc[0]
    label = "slope (−1: product only)" if kind == SLOPE else "share of the variance"
    shown = with_full_titles(table)
    if kind != SLOPE:
        return draw_intervals(shown, "value", label, hue=["measure"])
    figure = draw_intervals(shown, "value", label, hue=[])
    for panel in figure.axes:
        panel.set_xlim(-3, 2)  # wide intervals must not flatten it
        panel.axvline(-1, color="black", ls="--", lw=1)
        panel.axvline(0, color="grey", ls=":", lw=1)
    return figure
