"""LAMB, as the baseline of "Learning by Turning" and, by options, in its usual form."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check, check_betas
from robustlr.optim.base import Group, RuleOptimizer, State, options, zeros
from robustlr.optim.entry import LR_GRID, Entry


class LAMB(RuleOptimizer):
    """Adam's direction, rescaled so that each parameter moves by ``lr`` times its own norm.

    Follows the variant that the Nero paper compared with: no bias correction, the parameter's norm
    clamped at ``clamp`` (infinity: not at all), every parameter alike. ``center`` and ``normalize``
    put Nero's balance constraints on weights with a fan-in after each step (not at construction).
    Source: You et al., Large batch optimization for deep learning (ICLR 2020), Algorithm 2.

    State: two numbers a weight. An element whose gradient is not finite keeps its value and its
    moments.

    Raises:
        ValueError: ``lr``, ``eps``, ``weight_decay`` or ``clamp`` is negative, or one of ``betas``
            is outside [0, 1).
    """

    kernel = "lamb"
    kept = ("first", "second")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = False,
        clamp: float = 10.0,
        center: bool = False,
        normalize: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options(locals()))

    def _check(self, group: Group) -> None:
        check_betas(group["betas"])
        for name in ("lr", "eps", "weight_decay"):
            check(name, group[name], low=0)
        if group["clamp"] != float("inf"):
            check("clamp", group["clamp"], low=0)

    def _start(self, parameter: Tensor, group: Group) -> State:
        return {"first": zeros(parameter), "second": zeros(parameter)}

    def _rule(
        self, weight: Tensor, gradient: Tensor, state: State, step: Any, group: Group
    ) -> tuple[Tensor, State]:
        neuronal = weight.shape[-1] > 1
        weight, first, second = rules.lamb(
            weight,
            gradient,
            state["first"],
            state["second"],
            step=step,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            bias_correction=group["bias_correction"],
            clamp=group["clamp"],
            center=group["center"] and neuronal,
            normalize=group["normalize"] and neuronal,
        )
        return weight, {"first": first, "second": second}

    def _numbers(self, group: Group) -> Sequence[Any]:
        names = ("eps", "weight_decay", "bias_correction", "clamp", "center", "normalize")
        return group["lr"], *group["betas"], *(group[name] for name in names)


ENTRY = Entry(
    optimizer=LAMB,
    summary="Adam's direction with steps relative to each parameter's norm.",
    paper="You et al.: Large Batch Optimization for Deep Learning (ICLR 2020), in the variant of "
    "Learning by Turning (ICML 2021)",
    default={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0},
    default_source="the released code of Learning by Turning",
    space={"lr": LR_GRID},
)
