"""Does the optimizer need warmup?

Each arm with warmup is compared ``against`` the one without, or the shortest if all have some (in steps
or as a share of the run), at the points and seeds of the ``design`` that both ran. ``matched`` is the
mean gain at equal settings, over all points: loss without minus loss with warmup. ``retuned`` is the
gain between the best setting without and the best with warmup: what warmup buys to someone who tunes;
the setting of each seed is chosen on the other seeds, so that none is rewarded for its luck. Both are in
the metric's unit (of perplexities in nats) and, as ``gain_share``, a share of what there is to gain from
the worst value to the better arm's best. ``stable lr`` is by how many decades warmup raises the largest
stable learning rate, log10 of the ratio. Positive means that warmup helps; a high matched gain with a
retuned gain of zero says that warmup widens the range of good settings and does no more. ``difference``
is a share minus that of the ``leader``, which gains least by mean rank, paired by seed. Source: the
comparisons of Kosson et al. (2024, Figure 5), at equal and at tuned learning rates.

Intervals are Student's over seeds; that of ``retuned`` spans two, as the setting is chosen on the other
seeds or on all. In simulation the first cover the truth in 95 % of studies, the second in 95 to 98 %, in
99 % where all settings are equally good in both arms, and in 92 to 95 % where 20 are in one and one is
best in the other. That of ``stable lr`` is made of the intervals of both arms, which ``stability`` has,
and covers in 97 to 100 %, as the true limits lie anywhere between two learning rates. ``bound`` says "at
least" where the design of the arm with warmup ends before training fails, "at most" where that of the
other does, "no end" where both do; there is no row where an arm has no stable learning rate. The
results of both arms at each learning rate are drawn by ``lr-curves``.

Limits: both arms take the same number of steps, so warmup eats some of them. Matched gains depend on
how much of the range lies where only warmup survives. With a single seed there is no interval, and the
choice and the judgement share the seed. Adaptive designs (tpe) are left out: no two arms ran the same
points. Of differences to the leader the verdict claims only those that hold together, by Holm's
procedure over all pairs of optimizers.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis import stability
from robustlr.analysis._cells import (
    cells,
    conditions,
    counts,
    of_role,
    point_names,
    tuned_by_seed,
)
from robustlr.analysis._compare import against_leader, verdict_on_leader
from robustlr.analysis._intervals import mean_interval, spanning_interval
from robustlr.analysis._plots import draw_intervals
from robustlr.analysis._sentences import of_cases, tally
from robustlr.analysis._sweeps import Estimate

TITLE = "Warmup need"
PICTURE_PER = "kind"
NEGLIGIBLE = 0.02
"""The share of what there is to gain below which a gain is none."""
LABELS = {
    "matched": "gain from warmup at equal settings,\nin the metric's unit (perplexity: nats)",
    "retuned": "gain from warmup, tuned with and without,\nin the metric's unit (perplexity: nats)",
    "stable lr": "decades that warmup raises\nthe largest stable learning rate by",
}


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return rows ``matched``, ``retuned`` and ``stable lr`` for each cell and arm with warmup."""
    if "warmup" not in trials:
        return pd.DataFrame()
    by = ["task", "optimizer", *(name for name in conditions(trials) if name != "warmup")]
    limits = {
        tuple(str(row[name]) for name in (*by, "warmup")): row  # as text NaN equals NaN
        for row in stability.compute(trials).to_dict("records")
    }
    rows: dict[str, list[tuple[dict[str, Any], Estimate]]] = {"matched": [], "retuned": []}
    stable = []
    for key, cell in cells(of_role(trials, "design"), without=("warmup",)):
        for shorter, longer in _pairs(cell):
            both = _common(cell, shorter, longer)
            if both.empty:
                continue
            arms = cell[cell["warmup"].isin([shorter, longer])]
            facts = key | {"warmup": longer, "against": shorter} | counts(arms)
            facts |= {"points": len(both.loc["off"]), "seeds": both.shape[1]}
            worst = float(cell["worst_loss"].iloc[0])
            for kind, found in rows.items():
                found.append(_gain(facts | {"kind": kind}, both, worst))
            cell_name = [str(key[name]) for name in by]
            places = [(*cell_name, str(arm)) for arm in (shorter, longer)]
            ends = [limits[place] for place in places if place in limits]
            if len(ends) == 2 and all(end["stable_lr"] > 0 for end in ends):
                stable.append(facts | {"kind": "stable lr"} | _raised(*ends))
    tables = [
        against_leader(pd.DataFrame([row for row, _ in found]), [each for _, each in found])
        for found in rows.values()
        if found
    ]
    return (
        pd.concat([*tables, pd.DataFrame(stable)], ignore_index=True) if tables else pd.DataFrame()
    )


def _pairs(cell: pd.DataFrame) -> list[tuple[Any, Any]]:
    """Return the cell's values of warmup in pairs: the least, and each greater one.

    "On" is more than none, but whether it is more than a given length only the task knows.
    """
    values = cell["warmup"].dropna().unique()
    if any(isinstance(value, str) for value in values):
        return []  # which word is the shorter warmup we cannot know
    values = sorted(values, key=float)
    if values and float(values[0]) != 0:
        values = [value for value in values if not isinstance(value, bool | np.bool_)]
    return [(values[0], value) for value in values[1:]]


def _common(cell: pd.DataFrame, shorter: Any, longer: Any) -> pd.DataFrame:
    """Return the losses of two arms, "off" and "on", at the points and seeds that both ran.

    It has a row an arm and point, and a column a seed.
    """
    names = [*point_names(cell), "seed"]
    arms = {
        arm: cell[cell["warmup"] == value].groupby(names, dropna=False)["loss"].mean().unstack()
        for arm, value in (("off", shorter), ("on", longer))
    }
    pairs = pd.concat(arms, axis="columns", join="inner")
    seeds = arms["off"].columns.intersection(arms["on"].columns)
    pairs = pairs.loc[:, pairs.columns.get_level_values(1).isin(seeds)]
    # Where runs are missing: the points that all seeds ran, or the seeds that ran all points.
    kept = pairs.dropna(axis="index")
    if kept.empty:
        lacking = pairs.isna().any().groupby(level=1).any()
        kept = pairs.loc[:, ~pairs.columns.get_level_values(1).map(lacking)]
    return pd.concat({arm: kept[arm] for arm in arms}) if kept.size else pd.DataFrame()


def _gain(
    facts: dict[str, Any], both: pd.DataFrame, worst: float
) -> tuple[dict[str, Any], Estimate]:
    """Return the row of one kind of gain, and its estimate as a share."""
    off, on = both.loc["off"], both.loc["on"]
    if facts["kind"] == "matched":
        gains = (off - on).mean()
        low, high = mean_interval(gains)[1:]
    else:
        gains = tuned_by_seed(off) - tuned_by_seed(on)
        chosen = off.iloc[off.mean(axis=1).argmin()] - on.iloc[on.mean(axis=1).argmin()]
        low, high = spanning_interval(gains, chosen)
    best = min(off.mean(axis=1).min(), on.mean(axis=1).min())
    available = worst - best if best < worst else float("nan")
    most = worst - float(both.min(axis=None))  # a gain in which no run would fit is none
    estimate = np.clip([gains.mean(), low, high], -most, most)
    numbers = dict(zip(("gain", "low", "high"), estimate, strict=True))
    share = np.clip(estimate / available, -1, 1)
    shares = dict(zip(("gain_share", "share_low", "share_high"), share, strict=True))
    pseudo = gains / available if len(gains) > 1 else gains.iloc[:0]
    return facts | numbers | shares, Estimate(float(share[0]), pseudo)


def _raised(shorter: dict[str, Any], longer: dict[str, Any]) -> dict[str, Any]:
    """Return by how many decades the largest stable learning rate is raised, from stability's rows.

    The interval is made of those of the two arms, taken as independent (Zou and Donner 2008).
    """
    (off, off_low, off_high), (on, on_low, on_high) = (
        np.log10(row["best_lr"]) + np.array([row["headroom"], row["low"], row["high"]])
        for row in (shorter, longer)
    )
    below = float(np.hypot(on - on_low, off_high - off))
    above = float(np.hypot(on_high - on, off - off_low))
    bounds = {(True, False): "at most", (False, True): "at least", (True, True): "no end"}
    return {
        "gain": float(on - off),
        "low": float(on - off) - below,
        "high": float(on - off) + above,
        "bound": bounds.get((bool(shorter["bound"]), bool(longer["bound"])), ""),
    }


def verdict(table: pd.DataFrame) -> str:
    """Return which optimizers need warmup, which do not, and how they compare."""
    if table.empty:
        return (
            "This needs trials of a design with the condition warmup, with and without it; its values "
            "must be true, false or lengths, not words."
        )
    retuned = table[table["kind"] == "retuned"]
    small = (retuned["share_high"] < NEGLIGIBLE) & (retuned["share_low"] > -NEGLIGIBLE)
    needs, hurts = (retuned["low"] > 0) & ~small, (retuned["high"] < 0) & ~small
    without = (retuned["share_high"] < NEGLIGIBLE) & ~hurts
    unclear = ~needs & ~hurts & ~without
    cases = of_cases(retuned)
    claims = (
        ("Even when tuned for it, training without warmup is worse", needs),
        ("It is better without warmup", hurts),
        (
            f"Warmup is not needed (worth less than {NEGLIGIBLE:.0%} of what there is to gain)",
            without,
        ),
        ("We cannot tell", unclear),
    )
    sentences = [
        f"{what}: {said} {cases}."
        for what, which in claims
        if (said := tally(which, retuned["optimizer"]))
    ]
    for kind, more, less in (
        ("matched", "At equal settings warmup helps", "At equal settings warmup hurts"),
        (
            "stable lr",
            "Warmup raises the largest stable learning rate",
            "Warmup lowers the largest stable learning rate",
        ),
    ):
        rows = table[table["kind"] == kind]
        for what, which in ((more, rows["low"] > 0), (less, rows["high"] < 0)):
            if said := tally(which, rows["optimizer"]):
                sentences.append(f"{what}: {said} {cases}.")
    if retuned["optimizer"].nunique() > 1:
        what = "Least gain from warmup when tuned, as a share of what there is to gain"
        words = ("less dependent on warmup", "more dependent on warmup")
        sentences.append(verdict_on_leader(retuned, what, *words))
    return " ".join(sentences)


def draw(table: pd.DataFrame) -> Figure:
    """Draw one kind of gain: a panel a task, a row an optimizer.

    An interval without an end goes to the end of the axis.
    """
    others = [name for name in conditions(table) if name != "warmup" or table[name].nunique() > 1]
    known = table[["gain", "low", "high"]].replace([-np.inf, np.inf], np.nan).stack()
    ends = known.min() - 0.1, known.max() + 0.1
    infinite = np.isinf(table[["low", "high"]])
    shown = table.assign(
        low=table["low"].mask(infinite["low"], ends[0]),
        high=table["high"].mask(infinite["high"], ends[1]),
    )
    figure = draw_intervals(shown, "gain", LABELS[table["kind"].iloc[0]], hue=others)
    for panel in figure.axes:
        panel.axvline(0, color="grey", ls=":", lw=1)
    return figure
