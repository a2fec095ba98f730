"""Nero, from "Learning by Turning: Neural Architecture Aware Optimisation" (ICML 2021)."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check
from robustlr.optim.base import ParameterwiseOptimizer
from robustlr.optim.entry import LR_GRID, Entry
from robustlr.optim.neurons import as_rows, has_fan_in


class Nero(ParameterwiseOptimizer):
    """Turns every neuron by about ``lr`` radians a step, on balanced weights.

    Rows of weights with a fan-in are kept at mean 0 and norm 1 (``center``, ``normalize``), already
    at construction, which changes the model's weights. Gains and biases move element-wise, by
    ``lr`` times their initial mean size; a parameter that starts at zero has size ``bias_scale``.
    Source: Learning by Turning, Algorithm 1, with the bias correction of its text.

    State: one number a neuron. A zero or non-finite gradient leaves its neuron unmoved. Loading a
    checkpoint into the model after construction keeps its weights as they are.

    Raises:
        ValueError: ``lr`` or ``bias_scale`` is negative, or ``beta`` is outside [0, 1).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        beta: float = 0.999,
        center: bool = True,
        normalize: bool = True,
        bias_scale: float = 0.01,
    ) -> None:
        check("lr", lr, low=0)
        check("beta", beta, low=0, below=1)
        check("bias_scale", bias_scale, low=0)
        defaults = {
            "lr": lr,
            "beta": beta,
            "center": center,
            "normalize": normalize,
            "bias_scale": bias_scale,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its weights are projected and its state is made at once."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            weight = as_rows(parameter)
            if has_fan_in(parameter):
                projected = rules.project(
                    weight, center=group["center"], normalize=group["normalize"]
                )
                parameter.copy_(projected.reshape(parameter.shape))
                weight = as_rows(parameter)
            norm = rules.row_norm(weight)
            scale = norm.mean()
            state = self.state[parameter]
            state["step"] = 0
            state["square_norm"] = torch.zeros_like(norm)
            state["scale"] = torch.where(scale > 0, scale, group["bias_scale"])

    def _update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        state["step"] += 1
        constrained = has_fan_in(parameter)
        weight, state["square_norm"] = rules.nero(
            as_rows(parameter),
            as_rows(gradient, like=parameter),
            state["square_norm"],
            scale=state["scale"],
            step=state["step"],
            lr=group["lr"],
            beta=group["beta"],
            center=group["center"] and constrained,
            normalize=group["normalize"] and constrained,
        )
        parameter.copy_(weight.reshape(parameter.shape))


ENTRY = Entry(
    optimizer=Nero,
    summary="Neuron-wise normalised steps on weights with zero-mean, unit-norm rows.",
    paper="Liu, Bernstein, Meister, Yue: Learning by Turning (ICML 2021)",
    default={"lr": 0.01, "beta": 0.999},
    default_source="the paper's recommendation for every task, and its released code",
    space={"lr": LR_GRID},
)
