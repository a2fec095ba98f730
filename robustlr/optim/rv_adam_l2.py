"""RV-Adam+L2, from "Rotational Equilibrium: How Weight Decay Balances Learning" (ICML 2024)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from robustlr.optim.base import Group, options
from robustlr.optim.entry import LR_GRID, Entry
from robustlr.optim.rotational import RotationalAdam
from robustlr.space import Choices


class RVAdamL2(RotationalAdam):
    """Adam's directions under L2 regularisation, with a balanced rotation.

    Adam with L2 regularisation turns different neurons at different rates; here each turns by
    ``rotation(group)`` radians a step on average and keeps its norm. ``rotation``, one for all
    groups, is given the parameter group; the default is AdamW's, as in the paper's Appendix J:
    sqrt(2 lr weight_decay (1-beta1)/(1+beta1)). The direction is the gradient's first moment over
    the root of the second moment of gradient and decay together. What is not rotational takes a
    plain step of Adam with L2: that is every parameter unless ``weight_decay`` is set. Which
    parameters rotate, the options from ``rotation_beta`` on, and what is done of gradients that are
    not finite: see ``RotationalOptimizer``.

    State: two numbers a weight, and two a neuron.

    Raises:
        ValueError: an argument is out of bounds, or a group is ``rotational`` without decay.
    """

    kernel = "adam_l2"
    coupled = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rotation_beta: float = 0.9,
        center: bool = True,
        per_neuron: bool = True,
        rotation_eps: float = 1e-8,
        *,
        rotation: Callable[[Group], float] | None = None,
        rotational: bool | None = None,
        slow_portion: float = 0.0,
        fast_portion: float = 0.0,
        speed_factor: float = 1.0,
        frozen_vectors: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, options(locals()))

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; ``rotation`` is one for all, and no part of the state that is saved."""
        super().add_param_group(param_group)
        self.param_groups[-1].pop("rotation", None)

    def _check(self, group: Group) -> None:
        rotation = group["rotation"]
        if rotation is not None and not callable(rotation):
            raise ValueError(f"rotation must be a function of the group, not {rotation!r}")
        super()._check(group)

    def _rotation(self, group: Group) -> Any:
        rotation = self.defaults["rotation"]
        return super()._rotation(group) if rotation is None else rotation(group)


ENTRY = Entry(
    optimizer=RVAdamL2,
    summary="Adam with L2 regularisation whose neurons turn at AdamW's equilibrium rate.",
    paper="Kosson, Messmer, Jaggi: Rotational Equilibrium (ICML 2024)",
    default={"lr": 0.0125, "weight_decay": 0.08, "beta1": 0.9, "beta2": 0.999},
    default_source="the paper's setting for ResNet-18 on CIFAR-10 (Appendix J)",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(0.01, 0.1, 1.0))},
)
