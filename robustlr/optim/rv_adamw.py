"""RV-AdamW, from "Rotational Equilibrium: How Weight Decay Balances Learning" (ICML 2024)."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check
from robustlr.optim.base import ParameterwiseOptimizer
from robustlr.optim.entry import LR_GRID, Entry
from robustlr.optim.neurons import as_rows, has_fan_in
from robustlr.space import Choices


class RVAdamW(ParameterwiseOptimizer):
    """AdamW's directions with the rotation of its equilibrium from the first step on.

    Each neuron of a rotational parameter turns by sqrt(2 lr weight_decay (1-beta1)/(1+beta1))
    radians a step on average and keeps its norm; other parameters take a plain AdamW step. A
    parameter is rotational if its group sets ``rotational``, else if its ``weight_decay`` is not 0
    and its fan-in is at least 2. ``center`` removes the mean of each row at construction, keeping
    the row's norm. ``per_neuron=False`` treats the whole tensor as one neuron. Source: Rotational
    Equilibrium, Algorithm 1 and Table 1.

    State: AdamW's two moments, and two numbers a neuron. A neuron whose gradient is not finite does
    not move and keeps its moments; a row of norm 0 never moves, for a rotation keeps it 0.

    Raises:
        ValueError: ``lr``, ``eps``, ``weight_decay`` or ``rotation_eps`` is negative, one of
            ``betas`` or ``rotation_beta`` is outside [0, 1), or a group is ``rotational`` without
            weight decay.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        rotation_beta: float = 0.9,
        center: bool = True,
        per_neuron: bool = True,
        rotation_eps: float = 1e-8,
    ) -> None:
        check("lr", lr, low=0)
        check("betas[0]", betas[0], low=0, below=1)
        check("betas[1]", betas[1], low=0, below=1)
        check("eps", eps, low=0)
        check("weight_decay", weight_decay, low=0)
        check("rotation_beta", rotation_beta, low=0, below=1)
        check("rotation_eps", rotation_eps, low=0)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rotation_beta": rotation_beta,
            "center": center,
            "per_neuron": per_neuron,
            "rotation_eps": rotation_eps,
            "rotational": None,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the rows of its rotational weights are centred at once."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["rotational"] and group["weight_decay"] == 0:
            raise ValueError("rotational=True needs weight_decay above 0, which sets the rotation")
        for parameter in group["params"]:
            if group["center"] and _is_rotational(parameter, group):
                weight = rules.centred(_as_rotated_rows(parameter, parameter, group))
                parameter.copy_(weight.reshape(parameter.shape))

    def _update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["first"] = torch.zeros_like(as_rows(parameter))
            state["second"] = torch.zeros_like(as_rows(parameter))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        direction, state["first"], state["second"] = rules.adam_direction(
            as_rows(gradient, like=parameter),
            state["first"],
            state["second"],
            step=state["step"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
        )
        if _is_rotational(parameter, group):
            weight = self._rotated(parameter, direction, group, state)
        else:
            kept = 1 - group["lr"] * group["weight_decay"]
            weight = kept * as_rows(parameter) - group["lr"] * direction
        parameter.copy_(weight.reshape(parameter.shape))

    def _rotated(
        self,
        parameter: torch.Tensor,
        direction: torch.Tensor,
        group: dict[str, Any],
        state: dict[str, Any],
    ) -> torch.Tensor:
        weight = _as_rotated_rows(parameter, parameter, group)
        if "norm" not in state:
            state["norm"] = rules.row_norm(weight)
            state["square_norm"] = torch.zeros_like(state["norm"])
        weight, state["square_norm"] = rules.rotate(
            weight,
            _as_rotated_rows(direction, parameter, group),
            state["square_norm"],
            norm=state["norm"],
            step=state["step"],
            rotation=rules.adamw_rotation(group["lr"], group["weight_decay"], group["betas"][0]),
            rotation_beta=group["rotation_beta"],
            rotation_eps=group["rotation_eps"],
            center=group["center"],
        )
        return weight


def _is_rotational(parameter: torch.Tensor, group: dict[str, Any]) -> bool:
    if group["rotational"] is not None:
        return bool(group["rotational"]) and has_fan_in(parameter)
    return group["weight_decay"] != 0 and has_fan_in(parameter)


def _as_rotated_rows(
    tensor: torch.Tensor, parameter: torch.Tensor, group: dict[str, Any]
) -> torch.Tensor:
    return as_rows(tensor, like=parameter) if group["per_neuron"] else tensor.reshape(1, 1, -1)


ENTRY = Entry(
    optimizer=RVAdamW,
    summary="AdamW that turns each neuron at its equilibrium rate and keeps its norm.",
    paper="Kosson, Messmer, Jaggi: Rotational Equilibrium (ICML 2024)",
    default={"lr": 1e-3, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999},
    default_source="AdamW's defaults in torch.optim, which the variant is meant to take over",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(0.01, 0.1, 1.0))},
)
