"""Whether a study's trials show what a paper found."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from robustlr.analysis._cells import in_unit, of_role, point_by_seed, tuned_by_seed, with_losses
from robustlr.analysis._intervals import mean_interval
from robustlr.findings import Arm, Finding


def judge(findings: Sequence[Finding], trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each finding, task and pair of optimizers.

    ``difference`` is how much better, in the metric's unit, averaged over seeds with Student's
    interval. Perplexities are compared by their logarithm, in nats, and shown by their geometric
    mean. A tuned setting is chosen for each seed on the other seeds. The verdict is "yes" if the
    whole interval lies above -``margin``, "no" if none of it does, "undecided" if part of it does,
    as with a single seed, and "no trials" where an arm has none.
    """
    if trials.empty:
        return pd.DataFrame()
    trials = with_losses(trials)
    rows = []
    for finding in findings:
        for task in finding.tasks or trials["task"].unique():
            ours = trials[trials["task"] == task]
            rows += [
                {"finding": finding.text, "source": finding.source, "task": task}
                | _compare(finding, ours, better, than)
                for better in finding.better.optimizer
                for than in finding.than.optimizer
            ]
    return pd.DataFrame(rows)


def _compare(finding: Finding, trials: pd.DataFrame, better: str, than: str) -> dict[str, Any]:
    """Return the comparison of two optimizers' arms on one task."""
    sides = [_by_seed(trials, finding.better, better), _by_seed(trials, finding.than, than)]
    labels = {"better": _label(finding.better, better), "than": _label(finding.than, than)}
    if any(side.empty for side in sides):
        return labels | {"seeds": 0, "verdict": "no trials"}
    available = trials["worst_loss"].iloc[0] - min(side.mean() for side in sides)
    margin = finding.margin * available
    differences = (sides[1] - sides[0]).dropna()
    difference, low, high = mean_interval(differences)
    values = [in_unit(trials, side.mean()) for side in sides]
    return {
        "metric": trials["metric"].iloc[0] if "metric" in trials else "",
        "better": labels["better"],
        "better_value": values[0],
        "than": labels["than"],
        "than_value": values[1],
        "difference": difference,
        "low": low,
        "high": high,
        "margin": margin,
        "seeds": len(differences),
        "verdict": "yes" if low > -margin else "no" if high <= -margin else "undecided",
    }


def _by_seed(trials: pd.DataFrame, arm: Arm, optimizer: str) -> pd.Series:
    """Return an arm's loss for each seed."""
    ours = trials[trials["optimizer"] == optimizer]
    for name, value in arm.conditions.items():
        ours = ours[ours[name] == value]
    if arm.setting == "default":
        return of_role(ours, "default").groupby("seed")["loss"].mean()
    design = of_role(ours, "design")
    if design.empty:
        return design["loss"]
    by_seed = point_by_seed(design)
    return by_seed.median() if arm.setting == "median" else tuned_by_seed(by_seed)


def _label(arm: Arm, optimizer: str) -> str:
    conditions = [f"{name}={value}" for name, value in arm.conditions.items()]
    return ", ".join([optimizer, *conditions, *([arm.setting] if arm.setting != "tuned" else [])])
