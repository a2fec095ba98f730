"""What a paper found, as data in a study file; ``analysis/_verdicts.py`` judges it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from robustlr.errors import UserError, unknown
from robustlr.space import Frozen, Value

OneOrMore = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda names: (names,) if isinstance(names, str) else names),
    Field(strict=False, min_length=1),
]


class Arm(Frozen):
    """One side of a finding: optimizers of the study, under the given conditions.

    ``setting`` is the best of the design's settings, the median over them, or the one out of the box.
    """

    optimizer: OneOrMore
    conditions: dict[str, Value] = Field(default_factory=dict)
    setting: Literal["tuned", "median", "default"] = "tuned"


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
    tasks: OneOrMore | None = None

    def check(
        self,
        tasks: Sequence[str],
        optimizers: Sequence[str],
        conditions: Mapping[str, Sequence[Value]],
    ) -> None:
        """Check that the study has everything that the finding names.

        Raises:
            UserError: it lacks a task, an optimizer, a condition or its value, or varies one that an
                arm leaves open.
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
        if self.better == self.than:
            raise UserError("better and than are the same arm")
        for arm in arms:
            open_ = [n for n in conditions if len(conditions[n]) > 1 and n not in arm.conditions]
            if open_:
                raise UserError(f"the study varies {open_[0]}, so each arm must say which it is")
