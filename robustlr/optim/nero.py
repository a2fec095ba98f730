"""Nero, from "Learning by Turning: Neural Architecture Aware Optimisation" (ICML 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim import rules
from robustlr.optim.arguments import check
from robustlr.optim.base import Group, RuleOptimizer, State, options, row_zeros
from robustlr.optim.entry import LR_GRID, Entry


class Nero(RuleOptimizer):
    """Turns every neuron by about ``lr`` radians a step, on balanced weights.

    Rows of weights with a fan-in are kept at mean 0 and norm 1 (``center``, ``normalize``), already
    at construction, which changes the model's weights. Gains and biases move element-wise, by
    ``lr`` times their initial mean size; a parameter that starts at zero has size ``bias_scale``.
    Source: Learning by Turning, Algorithm 1, with the bias correction of its text.

    State: one number a neuron (a gain, a bias), and one a parameter. A neuron whose gradient is
    zero or not finite stays exactly as it is. Frozen parameters stay as they are until their first
    gradient. Weights that are balanced already, or are loaded into the model after construction,
    are kept bit for bit. The gain of a two-dimensional LayerNorm is a matrix of neurons like any
    other: give it a group of its own with ``center`` and ``normalize`` False.

    Raises:
        ValueError: ``lr`` or ``bias_scale`` is negative, or ``beta`` is outside [0, 1).
    """

    kernel = "nero"
    kept = ("square_norm", "scale")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        beta: float = 0.999,
        center: bool = True,
        normalize: bool = True,
        bias_scale: float = 0.01,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options(locals()))

    def _check(self, group: Group) -> None:
        check("lr", group["lr"], low=0)
        check("beta", group["beta"], low=0, below=1)
        check("bias_scale", group["bias_scale"], low=0)

    @torch.no_grad()
    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its trainable weights are projected and their state is made at once."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if parameter.requires_grad:
                self._begin(parameter, group)

    def _begin(self, parameter: Tensor, group: Group) -> None:
        if self._split(parameter, group).rows < parameter.numel():
            center, normalize = group["center"], group["normalize"]
            self._constrain(
                parameter,
                group,
                lambda weight: rules.project(weight, center=center, normalize=normalize),
            )
        super()._begin(parameter, group)

    def _start(self, parameter: Tensor, group: Group) -> State:
        split = self._split(parameter, group)
        square_norm = row_zeros(parameter, split)
        scale = rules.row_norm(split.to_rows(parameter).to(square_norm.dtype)).mean()
        return {
            "square_norm": square_norm,
            "scale": torch.where(scale > 0, scale, group["bias_scale"]),
        }

    def _rule(
        self, weight: Tensor, gradient: Tensor, state: State, step: Any, group: Group
    ) -> tuple[Tensor, State]:
        neuronal = weight.shape[-1] > 1
        weight, square_norm = rules.nero(
            weight,
            gradient,
            state["square_norm"],
            scale=state["scale"],
            step=step,
            lr=group["lr"],
            beta=group["beta"],
            center=group["center"] and neuronal,
            normalize=group["normalize"] and neuronal,
        )
        return weight, {"square_norm": square_norm}

    def _numbers(self, group: Group) -> Sequence[Any]:
        return group["lr"], group["beta"], group["center"], group["normalize"]


ENTRY = Entry(
    optimizer=Nero,
    summary="Neuron-wise normalised steps on weights with zero-mean, unit-norm rows.",
    paper="Liu, Bernstein, Meister, Yue: Learning by Turning (ICML 2021)",
    default={"lr": 0.01, "beta": 0.999},
    default_source="the paper's out-of-the-box setting (Algorithm 1), and its released code",
    space={"lr": LR_GRID},
)
