"""Madam, from "Learning compositional functions via multiplicative weight updates" (2020)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check
from robustlr.optim.base import Group, RuleOptimizer, State, compute_dtype, options, zeros
from robustlr.optim.entry import LR_GRID, Entry


class Madam(RuleOptimizer):
    """Multiplies every weight by a factor near 1, so that none changes its sign.

    Normalised gradients are clamped to ``g_bound``, and weights to ``p_scale`` times the
    parameter's root mean square at its first step: what starts at zero stays there. ``center`` and
    ``normalize`` put Nero's balance constraints on weights with a fan-in after each step (not at
    construction), as in the ablation of Learning by Turning, whose code this follows.

    State: one number a weight, and one a parameter. An element whose gradient is not finite keeps
    its value and its state.

    Raises:
        ValueError: ``lr``, ``p_scale`` or ``g_bound`` is negative.
    """

    kernel = "madam"
    kept = ("second", "cap")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        p_scale: float = 3.0,
        g_bound: float = 10.0,
        center: bool = False,
        normalize: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options(locals()))

    def _check(self, group: Group) -> None:
        for name in ("lr", "p_scale", "g_bound"):
            check(name, group[name], low=0)

    def _start(self, parameter: Tensor, group: Group) -> State:
        mean_square = parameter.to(compute_dtype(parameter)).square().mean()
        return {"second": zeros(parameter), "cap": group["p_scale"] * mean_square.sqrt()}

    def _rule(
        self, weight: Tensor, gradient: Tensor, state: State, step: Any, group: Group
    ) -> tuple[Tensor, State]:
        neuronal = weight.shape[-1] > 1
        weight, second = rules.madam(
            weight,
            gradient,
            state["second"],
            cap=state["cap"],
            step=step,
            lr=group["lr"],
            g_bound=group["g_bound"],
            center=group["center"] and neuronal,
            normalize=group["normalize"] and neuronal,
        )
        return weight, {"second": second}

    def _numbers(self, group: Group) -> Sequence[Any]:
        return group["lr"], group["g_bound"], group["center"], group["normalize"]


ENTRY = Entry(
    optimizer=Madam,
    summary="Multiplicative steps: each weight is scaled by a factor and keeps its sign.",
    paper="Bernstein, Zhao, Meister, Liu, Anandkumar, Yue: Learning compositional functions via "
    "multiplicative weight updates (NeurIPS 2020)",
    default={"lr": 0.01},
    default_source="its released code",
    space={"lr": LR_GRID},
)
