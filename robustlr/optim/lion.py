"""Lion, from "Symbolic Discovery of Optimization Algorithms" (2023)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check, check_betas
from robustlr.optim.base import Group, RuleOptimizer, State, options, zeros
from robustlr.optim.entry import LR_GRID, Entry
from robustlr.optim.neurons import Split, elements
from robustlr.space import Choices


class Lion(RuleOptimizer):
    """Moves every weight by ``lr`` in the sign of an interpolated momentum.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, Algorithm 2; the default
    second beta is 0.99, as there.

    State: one number a weight. An element whose gradient is not finite keeps its value and state.

    Raises:
        ValueError: ``lr`` or ``weight_decay`` is negative, or one of ``betas`` outside [0, 1).
    """

    kernel = "lion"
    kept = ("first",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options(locals()))

    def _check(self, group: Group) -> None:
        check_betas(group["betas"])
        check("lr", group["lr"], low=0)
        check("weight_decay", group["weight_decay"], low=0)

    def _split(self, parameter: Tensor, group: Group) -> Split:
        return elements(parameter)

    def _start(self, parameter: Tensor, group: Group) -> State:
        return {"first": zeros(parameter)}

    def _rule(
        self, weight: Tensor, gradient: Tensor, state: State, step: Any, group: Group
    ) -> tuple[Tensor, State]:
        usable = gradient.square().isfinite()
        beta1, beta2 = group["betas"]
        direction, first = rules.lion_direction(
            gradient, state["first"], usable, beta1=beta1, beta2=beta2
        )
        weight = rules.descend(
            weight, direction, usable, lr=group["lr"], weight_decay=group["weight_decay"]
        )
        return weight, {"first": first}

    def _numbers(self, group: Group) -> Sequence[Any]:
        unused = (0.0,) * 9  # what only its rotational variant has, or torch's optimizers
        return group["lr"], group["weight_decay"], *group["betas"], *unused


ENTRY = Entry(
    optimizer=Lion,
    summary="Steps of lr in the sign of an interpolated momentum.",
    paper="Chen et al.: Symbolic Discovery of Optimization Algorithms (NeurIPS 2023)",
    default={"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
    default_source="the paper's Algorithm 2, whose lr and decay are to be tuned",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(0.0, 0.1, 1.0))},
)
