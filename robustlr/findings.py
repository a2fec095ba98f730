"""What a paper found, as data in a study file, and whether a study's trials show it too."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from robustlr.errors import UserError, unknown
from robustlr.space import Frozen, Value

if TYPE_CHECKING:
    import pandas as pd

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda names: (names,) if isinstance(names, str) else names),
    Field(strict=False, min_length=1),
]


class Arm(Frozen):
    """One side of a finding: optimizers of the study, under the given conditions.

    ``setting`` is the best of the design's settings, or the one out of the box.
    """

    optimizer: Names
    conditions: dict[str, Value] = Field(default_factory=dict)
    setting: Literal["tuned", "default"] = "tuned"


class Finding(Frozen):
    """What a paper found: each optimizer of one arm does better than each of the other.

    With ``margin`` it may do worse by up to that share of what there is to gain, as in "needs no
    tuning". ``tasks`` are those that the finding is about; all of the study's by default.
    """

    text: str
    source: str = ""
    better: Arm
    than: Arm
    margin: float = Field(default=0.0, ge=0)
    tasks: Names | None = None

    def check(
        self,
        tasks: Sequence[str],
        optimizers: Sequence[str],
        conditions: Mapping[str, Sequence[Value]],
    ) -> None:
        """Check that the study has everything that the finding names.

        Raises:
            UserError: it lacks a task, an optimizer, a condition or its value.
        """
        arms = (self.better, self.than)
        named = [("task of the study", name, tasks) for name in self.tasks or ()]
        for arm in arms:
            named += [("optimizer of the study", name, optimizers) for name in arm.optimizer]
            named += [("condition of the study", n, tuple(conditions)) for n in arm.conditions]
        for kind, name, known in named:
            if name not in known:
                raise unknown(kind, name, known)
        for name, value in (pair for arm in arms for pair in arm.conditions.items()):
            if value not in conditions[name]:
                values = ", ".join(map(str, conditions[name]))
                raise UserError(f"{name} = {value}: the study has {name} = {values}")


def judge(findings: Sequence[Finding], trials: "pd.DataFrame") -> "pd.DataFrame":
    """Return one row for each finding, task and pair of optimizers that the trials can judge.

    ``difference`` is how much better, in the metric's unit (plus the margin), averaged over seeds
    with Student's interval. A tuned setting is chosen for each seed on the other seeds. The verdict
    is "yes" or "no" if the interval excludes 0, else "undecided".
    """
    import pandas as pd

    from robustlr.analysis._cells import with_losses

    if trials.empty:
        return pd.DataFrame()
    trials = with_losses(trials)
    rows = []
    for finding in findings:
        for task in finding.tasks or trials["task"].unique():
            ours = trials[trials["task"] == task]
            rows += [
                {"finding": finding.text, "source": finding.source, "task": task} | row
                for better in finding.better.optimizer
                for than in finding.than.optimizer
                if (row := _compare(finding, ours, better, than)) is not None
            ]
    return pd.DataFrame(rows)


def _compare(
    finding: Finding, trials: "pd.DataFrame", better: str, than: str
) -> dict[str, Any] | None:
    """Return the comparison of two optimizers' arms on one task; None where one has no trial."""
    from robustlr.analysis._intervals import mean_interval

    sides = [_by_seed(trials, finding.better, better), _by_seed(trials, finding.than, than)]
    if any(side.empty for side in sides):
        return None
    available = trials["worst_loss"].iloc[0] - min(side.mean() for side in sides)
    differences = (sides[1] - sides[0]).dropna() + finding.margin * available
    difference, low, high = mean_interval(differences)
    sign = -1 if trials["direction"].iloc[0] == "maximize" else 1
    return {
        "better": _label(finding.better, better),
        "better_value": sign * sides[0].mean(),
        "than": _label(finding.than, than),
        "than_value": sign * sides[1].mean(),
        "difference": difference,
        "low": low,
        "high": high,
        "seeds": len(differences),
        "verdict": "yes" if low > 0 else "no" if high < 0 else "undecided",
    }


def _by_seed(trials: "pd.DataFrame", arm: Arm, optimizer: str) -> "pd.Series":
    """Return an arm's loss for each seed."""
    from robustlr.analysis._cells import of_role, point_by_seed, tuned_by_seed

    ours = trials[trials["optimizer"] == optimizer]
    for name, value in arm.conditions.items():
        ours = ours[ours[name] == value]
    if arm.setting == "default":
        return of_role(ours, "default").groupby("seed")["loss"].mean()
    design = of_role(ours, "design")
    return design["loss"] if design.empty else tuned_by_seed(point_by_seed(design))


def _label(arm: Arm, optimizer: str) -> str:
    conditions = [f"{name}={value}" for name, value in arm.conditions.items()]
    return ", ".join([optimizer, *conditions, *([arm.setting] if arm.setting == "default" else [])])
