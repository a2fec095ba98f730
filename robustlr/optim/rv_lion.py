"""RV-Lion, from "Rotational Equilibrium: How Weight Decay Balances Learning" (ICML 2024)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check_betas
from robustlr.optim.base import Group, State, options
from robustlr.optim.entry import LR_GRID, Entry
from robustlr.optim.rotational import RotationalOptimizer
from robustlr.space import Choices


class RVLion(RotationalOptimizer):
    """Lion's directions with the rotation of its equilibrium from the first step on.

    Each neuron turns by sqrt(pi lr weight_decay ((1-beta1)² + beta1² (1-beta2)/(1+beta2))) radians
    a step on average (Table 1) and keeps its norm; what is not rotational takes a plain Lion step:
    that is every parameter unless ``weight_decay`` is set. Which parameters rotate, the options
    from ``rotation_beta`` on, and what is done of gradients that are not finite: see
    ``RotationalOptimizer``.

    State: one number a weight, and two a neuron.

    Raises:
        ValueError: an argument is out of bounds, or a group is ``rotational`` without decay.
    """

    kernel = "lion"
    kept = ("norm", "square_norm", "first")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        rotation_beta: float = 0.9,
        center: bool = True,
        per_neuron: bool = True,
        rotation_eps: float = 1e-8,
        *,
        rotational: bool | None = None,
        slow_portion: float = 0.0,
        fast_portion: float = 0.0,
        speed_factor: float = 1.0,
        frozen_vectors: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options(locals()))

    def _check(self, group: Group) -> None:
        check_betas(group["betas"])
        super()._check(group)

    def _direction(
        self,
        weight: Tensor,
        gradient: Tensor,
        state: State,
        usable: Tensor,
        step: Any,
        group: Group,
    ) -> tuple[Tensor, State]:
        beta1, beta2 = group["betas"]
        direction, first = rules.lion_direction(
            gradient, state["first"], usable, beta1=beta1, beta2=beta2
        )
        return direction, {"first": first}

    def _rotation(self, group: Group) -> Any:
        return rules.lion_rotation(group["lr"], group["weight_decay"], *group["betas"])

    def _inner_numbers(self, group: Group) -> Sequence[Any]:
        return *group["betas"], 0.0


ENTRY = Entry(
    optimizer=RVLion,
    summary="Lion that turns each neuron at its equilibrium rate and keeps its norm.",
    paper="Kosson, Messmer, Jaggi: Rotational Equilibrium (ICML 2024)",
    default={"lr": 5e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 1.0},
    default_source="the paper's setting for ResNet-20 on CIFAR-10, batch 128 (Table 4)",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(0.01, 0.1, 1.0))},
)
