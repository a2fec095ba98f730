"""RV-AdamW, from "Rotational Equilibrium: How Weight Decay Balances Learning" (ICML 2024)."""

from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim.base import options
from robustlr.optim.entry import LR_GRID, Entry
from robustlr.optim.rotational import RotationalAdam
from robustlr.space import Choices


class RVAdamW(RotationalAdam):
    """AdamW's directions with the rotation of its equilibrium from the first step on.

    Each neuron turns by sqrt(2 lr weight_decay (1-beta1)/(1+beta1)) radians a step on average
    (Table 1) and keeps its norm; what is not rotational takes a plain AdamW step. Which parameters
    rotate, the options from ``rotation_beta`` on, and what is done of gradients that are not
    finite: see ``RotationalOptimizer``.

    State: AdamW's two numbers a weight, and two a neuron.

    Raises:
        ValueError: an argument is out of bounds, or a group is ``rotational`` without decay.
    """

    kernel = "adamw"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
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


ENTRY = Entry(
    optimizer=RVAdamW,
    summary="AdamW that turns each neuron at its equilibrium rate and keeps its norm.",
    paper="Kosson, Messmer, Jaggi: Rotational Equilibrium (ICML 2024)",
    default={"lr": 1e-3, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999},
    default_source="AdamW's defaults in torch.optim, which the variant is meant to take over",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(0.01, 0.1, 1.0))},
)
