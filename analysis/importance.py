"""Which hyperparameters decide the result?

fANOVA (Hutter et al. 2014): the share V_j/V of the variance of the loss over the space that the main
effect of one hyperparameter explains, on a random forest fitted to the design; the row ``(rest)`` has
what no main effect explains, the interactions, and noise that too few seeds leave. PED-ANOVA (Watanabe
2023): how far the settings among the best tenth (at least five) differ, in this hyperparameter, from
all settings; its importances sum to 1. The two answer different questions and can disagree: fANOVA is
dominated by where training fails, PED-ANOVA says what makes a good setting the best. Both are
Optuna's evaluators, on the mean loss over seeds.

A diverged run counts as the worst value. Optuna by itself drops what is not finite, which can turn the
answer round: the learning rate looks unimportant because the runs that it killed are gone.
``without_diverged`` is what one would then be told.

Each value of the design weighs the same: a hyperparameter is given by the rank of its values, so
that a decay of 0 has its place and the scale (log or not) does not matter; a value that a run does not
have is one of its own, before the least. To bound the cost, a
design of more than 64 settings is cut into bins of equal counts, 64 in all at most, and the runs of
a bin are averaged; the forest has 6 trees of depth 6.

Intervals are from the jackknife over seeds (over four groups of them, where there are more), or over
four random parts of the runs where there is one seed and bins hold several runs. They hold what noise
does to the answer, not the forest's own error: those of fANOVA held in 92 to 98 of 100 simulated cases
what the forest says without noise. Those of PED-ANOVA held it in 46 to 90 where settings tie for a
place among the best, since which of them are counted jumps with the noise (in 95 to all where none do);
the verdict does not lean on them. Limits: adaptive designs (tpe) crowd the optimum and are left out; a
single hyperparameter explains everything, so a cell needs two that vary. Reads ``design`` trials.
"""

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlr.analysis._cells import cells, conditions, counts, hyperparameters, of_role
from robustlr.analysis._intervals import jackknife
from robustlr.analysis._plots import draw_intervals, with_full_titles

if TYPE_CHECKING:
    import optuna

TITLE = "Importance of hyperparameters"
PICTURE_PER = "method"
FANOVA, PED_ANOVA = "fANOVA", "PED-ANOVA"
REST = "(rest)"
MOST_POINTS = 64
TREES = 6
DEPTH = 6
PARTS = 4
TOP = 5
NOTHING = 1e-12


def compute(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each cell, ``method`` and ``hyperparameter``."""
    rows: list[dict[str, Any]] = []
    for key, cell in cells(of_role(trials, "design")):
        names = [n for n in hyperparameters(cell) if cell[n].nunique(dropna=False) > 1]
        if len(names) < 2 or np.ptp(cell["loss"]) <= NOTHING:
            continue
        ranks, places = bins(cell[names])
        died = int(cell["diverged"].astype(bool).sum())
        facts = counts(cell) | {"bins": len(ranks), "runs": len(cell), "runs_diverged": died}
        study = _study(ranks, names)
        for method, evaluate in METHODS.items():
            estimates = _estimates(partial(evaluate, study, names), names, cell, places)
            rows += [key | {"method": method} | row | facts for row in estimates]
    return pd.DataFrame(rows)


def bins(settings: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks [bins, hyperparameters] of the distinct settings, and each run's bin.

    Where there are more than ``MOST_POINTS`` settings, each hyperparameter is cut at its quantiles.
    """
    most = len(settings)
    if len(settings.drop_duplicates()) > MOST_POINTS:
        most = max(2, int(MOST_POINTS ** (1 / settings.shape[1])))
    ranks = []
    for name in settings:
        values = settings[name]
        if not pd.api.types.is_numeric_dtype(values):
            values = values.astype(str).where(values.notna())
        codes = pd.Series(pd.factorize(values, sort=True)[0])  # -1 is what a run does not have
        codes -= codes.min()
        if codes.nunique() > most:
            codes = pd.qcut(codes, most, labels=False, duplicates="drop")
        ranks.append(codes.to_numpy())
    found, places = np.unique(np.stack(ranks, axis=1), axis=0, return_inverse=True)
    return found, places.reshape(-1)


def _study(ranks: np.ndarray, names: list[str]) -> "optuna.Study":
    """Return a study with a trial for each bin: the losses are given to the evaluators apart."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    spaces: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(-0.5, float(most) + 0.5)
        for name, most in zip(names, ranks.max(axis=0), strict=True)
    }
    points = (dict(zip(names, map(float, point), strict=True)) for point in ranks)
    study.add_trials(
        [optuna.create_trial(params=p, distributions=spaces, value=0.0) for p in points]
    )
    return study


def fanova(study: "optuna.Study", names: list[str], losses: np.ndarray) -> np.ndarray:
    """Return the share of the variance of each main effect, and of the rest; NaN if there is none.

    ``losses`` has one for each trial of the study, infinite where there is none: Optuna drops it.
    """
    from optuna.importance import FanovaImportanceEvaluator

    finite = losses[np.isfinite(losses)]
    if len(finite) < 2 or np.ptp(finite) <= NOTHING:
        return np.full(len(names) + 1, np.nan)
    forest = FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=0)
    try:
        shares = forest.evaluate(study, names, target=lambda trial: float(losses[trial.number]))
    except RuntimeError:  # no tree's sample of the points varies
        return np.full(len(names) + 1, np.nan)
    mains = np.array([shares[name] for name in names])
    return np.append(mains, max(0.0, 1 - mains.sum()))


def ped_anova(study: "optuna.Study", names: list[str], losses: np.ndarray) -> np.ndarray:
    """Return each hyperparameter's importance for being among the best; the rest is NaN.

    Reads ``losses`` as ``fanova`` does. All NaN where the best ``TOP`` are more than half of the points.
    """
    from optuna.importance import PedAnovaImportanceEvaluator

    count = int(np.isfinite(losses).sum())
    if count < 2 * TOP or np.ptp(losses[np.isfinite(losses)]) <= NOTHING:
        return np.full(len(names) + 1, np.nan)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, TOP / count))
    with warnings.catch_warnings():  # that low values are taken for good ones: losses are
        warnings.simplefilter("ignore", UserWarning)
        found = evaluator.evaluate(study, names, target=lambda trial: float(losses[trial.number]))
    sizes = np.array([found[name] for name in names])
    return np.append(sizes / sizes.sum() if sizes.sum() > 0 else np.nan * sizes, np.nan)


METHODS = {FANOVA: fanova, PED_ANOVA: ped_anova}


def _estimates(
    evaluate: Callable[[np.ndarray], np.ndarray],
    names: list[str],
    cell: pd.DataFrame,
    places: np.ndarray,
) -> list[dict[str, Any]]:
    """Return a row for each hyperparameter: its importance, interval, and that without diverged."""
    losses, parts = cell["loss"].to_numpy(), _parts(cell, places)
    count = int(places.max()) + 1

    @cache
    def on(kept: tuple[int, ...]) -> np.ndarray:
        return evaluate(mean_losses(losses, places, np.isin(parts, kept), count))

    def at(index: int, table: pd.DataFrame) -> float:
        return float(on(tuple(table))[index])

    died = cell["diverged"].to_numpy(bool)
    alive = evaluate(mean_losses(losses, places, ~died, count)) if died.any() else None
    whole = pd.DataFrame([[0.0] * (parts.max() + 1)])
    rows = []
    for index, name in enumerate([*names, REST]):
        value, low, high = jackknife(partial(at, index), whole)
        if np.isnan(value):
            continue
        low, high = np.clip([low, high], 0, 1)
        row = {"hyperparameter": name, "importance": value, "low": float(low), "high": float(high)}
        rows.append(row | {"without_diverged": value if alive is None else float(alive[index])})
    return rows


def mean_losses(losses: np.ndarray, places: np.ndarray, kept: np.ndarray, count: int) -> np.ndarray:
    """Return the mean loss of each bin's kept runs, infinite where there are none."""
    runs = np.bincount(places[kept], minlength=count)
    sums = np.bincount(places[kept], weights=losses[kept], minlength=count)
    return np.where(runs > 0, sums / np.maximum(runs, 1), np.inf)


def _parts(cell: pd.DataFrame, places: np.ndarray) -> np.ndarray:
    """Return the part of each run that the jackknife leaves out together; one part is no interval."""
    seeds = pd.factorize(cell["seed"], sort=True)[0]
    if seeds.max() > 0:
        return np.asarray(seeds % PARTS)
    if len(cell) < PARTS * (places.max() + 1):
        return np.zeros(len(cell), dtype=int)
    return np.random.default_rng(0).permutation(len(cell)) % PARTS


def verdict(table: pd.DataFrame) -> str:
    """Return which hyperparameter matters most, where that is sure, and what dropping runs does."""
    if table.empty:
        return (
            "This needs a design that is not adaptive, over at least two hyperparameters, with losses "
            "that vary."
        )
    by = ["task", "optimizer", *conditions(table)]
    mains = table[table["hyperparameter"] != REST]
    sentences = []
    whole, best = (mains[mains["method"] == method] for method in METHODS)
    firsts = pd.Series(
        [_first(c) for _, c in whole.groupby(by, sort=False, dropna=False)], dtype=object
    )
    if len(firsts) and firsts.isna().all():
        sentences.append(
            "Over the whole space (fANOVA) we cannot tell the most important hyperparameter in any of "
            f"{len(firsts)} cells."
        )
    elif len(firsts):
        rest = int(firsts.isna().sum())
        sentences.append(
            f"Over the whole space (fANOVA) the most important is surely {_told(firsts)}"
            + (f"; in {rest} we cannot tell." if rest else ".")
        )
    tops = best.loc[best.groupby(by, sort=False, dropna=False)["importance"].idxmax()]
    if len(tops):
        sentences.append(
            "For being among the best settings (PED-ANOVA) the most important is, by an estimate "
            f"whose intervals are too narrow to lean on, {_told(tops['hyperparameter'])}."
        )
    return " ".join([*sentences, *_warning(mains, by)])


def _told(firsts: pd.Series) -> str:
    """Return in how many of the cells each hyperparameter comes first."""
    found = firsts.value_counts()
    told = ", ".join(f"{name} in {count}" for name, count in found.items())
    return f"{told} of {len(firsts)} cells"


def _first(cell: pd.DataFrame) -> Any:
    """Return the hyperparameter whose interval lies above all others', if there is one."""
    first = cell.loc[cell["importance"].idxmax()]
    others = cell[cell["hyperparameter"] != first["hyperparameter"]]
    return first["hyperparameter"] if first["low"] > others["high"].max() else None


def _warning(mains: pd.DataFrame, by: list[str]) -> list[str]:
    """Return how many runs diverged and where dropping them would turn the answer round."""
    hit = mains[mains["runs_diverged"] > 0]
    if hit.empty:
        return ["No run diverged."]
    runs = mains.drop_duplicates(by)
    sentences = [
        f"{int(runs['runs_diverged'].sum())} of {int(runs['runs'].sum())} runs diverged and count as "
        "the worst value."
    ]
    for method, rows in hit.groupby("method", sort=False):
        groups = [g for _, g in rows.groupby(by, sort=False, dropna=False)]
        told = [g for g in groups if g["without_diverged"].notna().all()]
        turned = [g for g in told if g["importance"].idxmax() != g["without_diverged"].idxmax()]
        sentences.append(
            f"Dropping them, as Optuna does, would name another most important hyperparameter in "
            f"{len(turned)} of {len(told)} cells ({method})."
        )
    return sentences


def draw(table: pd.DataFrame) -> Figure:
    """Draw one method's importances: a panel for each task and condition."""
    method = table["method"].iloc[0]
    label = f"importance ({method})"
    shown = table[table["hyperparameter"] != REST]
    figure = draw_intervals(with_full_titles(shown), "importance", label, hue=["hyperparameter"])
    for panel in figure.axes:
        panel.set_xlim(-0.03, 1.03)
    return figure
