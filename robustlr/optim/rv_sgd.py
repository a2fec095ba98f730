"""RV-SGDM, from "Rotational Equilibrium: How Weight Decay Balances Learning" (ICML 2024)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check
from robustlr.optim.base import Group, State, options
from robustlr.optim.entry import LR_GRID, Entry
from robustlr.optim.rotational import RotationalOptimizer
from robustlr.space import Choices


class RVSGD(RotationalOptimizer):
    """SGD's directions, with momentum, and the rotation of its equilibrium from the first step on.

    Each neuron turns by sqrt(2 lr weight_decay / (1 + momentum)) radians a step on average (Table
    1) and keeps its norm; what is not rotational takes a plain step of SGD with L2 regularisation,
    as ``torch.optim.SGD`` does: that is every parameter unless ``weight_decay`` is set. Which
    parameters rotate, the options from ``rotation_beta`` on, and what is done of gradients that are
    not finite: see ``RotationalOptimizer``.

    State: one number a weight, and two a neuron.

    Raises:
        ValueError: an argument is out of bounds, ``nesterov`` is asked for without momentum or
            with dampening, or a group is ``rotational`` without decay.
    """

    kernel = "sgd"
    kept = ("norm", "square_norm", "buffer")
    coupled = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
        check("momentum", group["momentum"], low=0, below=1)
        check("dampening", group["dampening"], low=0, high=1)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "nesterov=True needs momentum above 0 and dampening 0, not "
                f"{group['momentum']!r} and {group['dampening']!r}"
            )
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
        direction, buffer = rules.sgd_direction(
            gradient,
            state["buffer"],
            usable,
            step=step,
            momentum=group["momentum"],
            dampening=_dampening(group),
            nesterov=group["nesterov"],
        )
        return direction, {"buffer": buffer}

    def _rotation(self, group: Group) -> Any:
        return rules.sgd_rotation(group["lr"], group["weight_decay"], group["momentum"])

    def _inner_numbers(self, group: Group) -> Sequence[Any]:
        return group["momentum"], _dampening(group), group["nesterov"]


def _dampening(group: Group) -> float:
    """Return what a gradient loses on its way into the momentum; nothing without one, as torch."""
    return float(group["dampening"]) if group["momentum"] else 0.0


ENTRY = Entry(
    optimizer=RVSGD,
    summary="SGD with momentum that turns each neuron at its equilibrium rate and keeps its norm.",
    paper="Kosson, Messmer, Jaggi: Rotational Equilibrium (ICML 2024)",
    default={"lr": 0.5, "momentum": 0.9, "weight_decay": 1e-4},
    default_source="the paper's setting for ResNet-20 on CIFAR-10, batch 128 (Table 4)",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(1e-4, 5e-4, 5e-3))},
)
