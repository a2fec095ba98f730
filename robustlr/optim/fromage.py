"""Fromage, from "On the distance between two neural networks" (NeurIPS 2020)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check
from robustlr.optim.base import Group, RuleOptimizer, State, compute_dtype, options
from robustlr.optim.entry import LR_GRID, Entry


class Fromage(RuleOptimizer):
    """Moves every parameter by ``lr`` times its own norm, without letting the norm grow.

    ``p_bound`` holds each parameter's norm to that many times its norm at the first step; a
    parameter that starts at zero then stays there. Source: On the distance between two neural
    networks and the stability of learning, Algorithm 1, and its code for ``p_bound``.

    State: none, or one number a parameter with ``p_bound``. A zero gradient shrinks the parameter
    by 1/sqrt(1 + lr²), as in the authors' code; a gradient that is not finite somewhere moves
    nothing of its parameter.

    Raises:
        ValueError: ``lr`` or ``p_bound`` is negative.
    """

    kernel = "fromage"
    kept = ("cap",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        p_bound: float | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options(locals()))

    def _check(self, group: Group) -> None:
        check("lr", group["lr"], low=0)
        if group["p_bound"] is not None:
            check("p_bound", group["p_bound"], low=0)

    def _wanted(self, group: Group) -> set[str]:
        return {"step"} if group["p_bound"] is None else {"step", "cap"}

    def _start(self, parameter: Tensor, group: Group) -> State:
        if group["p_bound"] is None:
            return {}
        return {"cap": group["p_bound"] * parameter.to(compute_dtype(parameter)).norm()}

    def _rule(
        self, weight: Tensor, gradient: Tensor, state: State, step: Any, group: Group
    ) -> tuple[Tensor, State]:
        return rules.fromage(weight, gradient, lr=group["lr"], cap=state.get("cap")), {}

    def _numbers(self, group: Group) -> Sequence[Any]:
        return (group["lr"],)


ENTRY = Entry(
    optimizer=Fromage,
    summary="Steps relative to each parameter's norm, with a prefactor against its growth.",
    paper="Bernstein, Vahdat, Yue, Liu: On the distance between two neural networks (NeurIPS 2020)",
    default={"lr": 0.01},
    default_source="the paper, which uses it for every task but the transformer",
    space={"lr": LR_GRID},
)
