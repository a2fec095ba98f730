"""LARS, in its standard form and in the plain form of the Fromage paper."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check
from robustlr.optim.base import Group, RuleOptimizer, State, options, zeros
from robustlr.optim.entry import LR_GRID, Entry
from robustlr.space import Choices


class LARS(RuleOptimizer):
    """Gradient descent with momentum, each parameter's step relative to its own norm.

    The step is scaled by ``trust_coefficient`` times the ratio of the norms of weight and gradient
    (with decay), where ``weight_decay`` is not 0 or with ``always_adapt``. Source: You, Gitman,
    Ginsburg, Large Batch Training of Convolutional Networks (2017).

    The plain form of Fromage's Figure 2, a step of ``lr`` times the parameter's norm, is
    ``LARS(params, lr, momentum=0, trust_coefficient=1, eps=0, always_adapt=True)``.

    State: one number a weight, none without momentum. A gradient that is not finite somewhere moves
    nothing of its parameter, nor its momentum.

    Raises:
        ValueError: ``lr``, ``weight_decay``, ``trust_coefficient`` or ``eps`` is negative, or
            ``momentum`` is outside [0, 1).
    """

    kernel = "lars"
    kept = ("buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        always_adapt: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options(locals()))

    def _check(self, group: Group) -> None:
        check("momentum", group["momentum"], low=0, below=1)
        for name in ("lr", "weight_decay", "trust_coefficient", "eps"):
            check(name, group[name], low=0)

    def _wanted(self, group: Group) -> set[str]:
        return {"step", "buffer"} if group["momentum"] else {"step"}

    def _start(self, parameter: Tensor, group: Group) -> State:
        return {"buffer": zeros(parameter)} if group["momentum"] else {}

    def _rule(
        self, weight: Tensor, gradient: Tensor, state: State, step: Any, group: Group
    ) -> tuple[Tensor, State]:
        weight, buffer = rules.lars(
            weight,
            gradient,
            state["buffer"] if "buffer" in state else weight.new_zeros(()),
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            trust_coefficient=group["trust_coefficient"],
            eps=group["eps"],
            adapt=self._adapts(group),
        )
        return weight, {"buffer": buffer} if "buffer" in state else {}

    def _adapts(self, group: Group) -> bool:
        return bool(group["always_adapt"] or group["weight_decay"] != 0)

    def _numbers(self, group: Group) -> Sequence[Any]:
        names = ("lr", "momentum", "weight_decay", "trust_coefficient", "eps")
        return *(group[name] for name in names), self._adapts(group)


ENTRY = Entry(
    optimizer=LARS,
    summary="Momentum with steps relative to each parameter's norm.",
    paper="You, Gitman, Ginsburg: Large Batch Training of Convolutional Networks (2017)",
    default={"lr": 1.0, "momentum": 0.9, "weight_decay": 5e-4},
    default_source="the paper's momentum, weight decay and trust coefficient, at the lr of 1 that "
    "they are relative to",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(1e-4, 5e-4, 5e-3))},
)
