"""Reparameterised weights of the papers, for any model, and the pull of gains toward one.

Each is a ``torch.nn.utils.parametrize`` parametrization: the model computes with the transformed
weight, the optimizer trains the raw one, and ``bake`` leaves only the transformed one.

>>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
>>> [name for name, _ in standardize_weights(model, gain=True).named_parameters()][1:3]
['0.parametrizations.weight.original', '0.parametrizations.weight.0.gain']
>>> [name for name, _ in bake(model).named_parameters()]
['0.bias', '0.weight', '2.bias', '2.weight']
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from robustlr.optim.neurons import Split, neurons

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS = (nn.Linear, _ConvNd)
"""The layers whose weights are reparameterised, unless told otherwise."""


class Gain(nn.Module):
    """Multiplies each neuron's weights by a learnable gain that starts at 1.

    It lets a layer whose output scale matters change that scale although a rotational optimizer
    holds its norms (Rotational Equilibrium, which has them in DeiT, IWSLT's transformer and GPT2).
    """

    def __init__(self, weight: Tensor, split: Split) -> None:
        super().__init__()
        self.split = split
        self.gain = nn.Parameter(torch.ones(split.rows, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``weight`` with each row scaled."""
        rows = self.split.to_rows(weight) * self.gain[:, None]
        return self.split.from_rows(rows, like=weight)


class WeightStandardization(nn.Module):
    """Gives each neuron's weights mean 0 and a fixed standard deviation.

    Rows become (w - mean) / (std + 1e-5), with the unbiased standard deviation, times their
    standard deviation at construction (``keep_init``) or 1/sqrt(fan-in), and times a learnable
    gain if there is one. Source: Rotational Equilibrium and its code.

    Raises:
        ValueError: a row is constant, as of a layer that starts at zero, and has no direction.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, split: Split, *, gain: bool, keep_init: bool) -> None:
        super().__init__()
        _refuse_constant_rows(weight, split)
        self.split = split
        rows = split.to_rows(weight.detach())
        scale = rows.std(-1, keepdim=True)
        if not keep_init:
            scale = torch.full_like(scale, rows.shape[-1] ** -0.5)
        self.register_buffer("scale", scale)
        ones = torch.ones(split.rows, dtype=weight.dtype, device=weight.device)
        self.gain = nn.Parameter(ones) if gain else None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the standardised weight."""
        rows = self.split.to_rows(weight)
        rows = rows - rows.mean(-1, keepdim=True)
        rows = rows / (rows.std(-1, keepdim=True) + 1e-5) * self.scale
        if self.gain is not None:
            rows = rows * self.gain[:, None]
        return self.split.from_rows(rows, like=weight)


class CentredWeightNorm(nn.Module):
    """Gives each neuron's weights mean 0 and norm 1 (Learning by Turning, Equation 3).

    Raises:
        ValueError: a row is constant, as of a layer that starts at zero, and has no direction.
    """

    def __init__(self, weight: Tensor, split: Split) -> None:
        super().__init__()
        _refuse_constant_rows(weight, split)
        self.split = split

    def forward(self, weight: Tensor) -> Tensor:
        """Return the balanced weight."""
        rows = self.split.to_rows(weight)
        rows = nn.functional.normalize(rows - rows.mean(-1, keepdim=True), dim=-1)
        return self.split.from_rows(rows, like=weight)


def add_gains(model: Model, *, types: tuple[type, ...] = WEIGHTS) -> Model:
    """Give each neuron of the model's weights a learnable gain; changes the model and returns it.

    Only weights of ``types`` whose neurons have at least two inputs are changed, here and below.
    """
    return _parametrized(model, types, Gain)


def standardize_weights(
    model: Model,
    *,
    gain: bool = False,
    keep_init: bool = True,
    types: tuple[type, ...] = WEIGHTS,
) -> Model:
    """Standardise the model's weights; see ``WeightStandardization``."""
    return _parametrized(
        model,
        types,
        lambda weight, split: WeightStandardization(weight, split, gain=gain, keep_init=keep_init),
    )


def normalize_weights(model: Model, *, types: tuple[type, ...] = WEIGHTS) -> Model:
    """Centre and normalise the model's weights; see ``CentredWeightNorm``."""
    return _parametrized(model, types, CentredWeightNorm)


def bake(model: Model) -> Model:
    """Replace every parametrized tensor by its value, as for inference; returns the model."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model


def normalization_gains(model: nn.Module) -> list[Tensor]:
    """Return the gains of all normalisation layers."""
    norms = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return [m.weight for m in model.modules() if isinstance(m, norms) and m.weight is not None]


def gain_penalty(model: nn.Module) -> Tensor:
    """Return the sum of (gain - 1)² over the gains of all normalisation layers, 0 without any.

    Added to the loss with a coefficient, it pulls the gains toward one, as in tuned Nero on
    ImageNet (Learning by Turning, whose coefficient is not published).
    """
    gains = normalization_gains(model)
    return sum(((gain - 1).square().sum() for gain in gains), start=torch.zeros(()))


def _refuse_constant_rows(weight: Tensor, split: Split) -> None:
    constant = (split.to_rows(weight.detach()).std(-1) == 0).flatten().nonzero().flatten()
    if len(constant):
        raise ValueError(
            f"neuron {constant[0]} of a weight of shape {tuple(weight.shape)} has equal weights, "
            "so it cannot be standardised; initialise it otherwise, or leave its layer out with "
            "types"
        )


def _parametrized(
    model: Model, types: tuple[type, ...], make: Callable[[Tensor, Split], nn.Module]
) -> Model:
    for module in list(model.modules()):
        if not isinstance(module, types):
            continue
        weight = module.weight
        assert isinstance(weight, Tensor)
        if isinstance(module, _ConvTransposeNd):
            split = neurons(weight, axis=1, conv_groups=module.groups)
        else:
            split = neurons(weight)
        if split.rows < weight.numel():
            parametrize.register_parametrization(module, "weight", make(weight, split))
    return model
