"""What a neuron is: the only place that knows how a parameter splits into rows.

A parameter with a fan-in of at least 2 is a matrix ``[neurons, fan_in]`` whose rows lie along
dimension 0 (linear, convolution and embedding weights). Everything else (gains, biases, fan-in 1)
has no fan-in and takes element-wise rules: each element is a row of length 1.
"""

from typing import Any

from torch import Tensor, nn


def has_fan_in(parameter: Tensor) -> bool:
    """Return whether ``parameter`` is made of neurons with at least two inputs each."""
    return parameter.dim() > 1 and parameter.numel() >= 2 * parameter.shape[0]


def as_rows(tensor: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Return ``tensor`` as ``[1, neurons, fan_in]``: one trial, as the rules in ``rules.py`` take it.

    The split is that of ``like`` (a gradient's parameter); contiguous tensors give a view.
    """
    parameter = tensor if like is None else like
    rows = parameter.shape[0] if has_fan_in(parameter) else parameter.numel()
    return tensor.reshape(1, rows, -1)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return two groups, weights with a fan-in and the rest, the rest with ``weight_decay`` 0.

    Gains and biases are not decayed in any of the papers' runs (Rotational Equilibrium, App. K).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if has_fan_in(p)]},
        {"params": [p for p in parameters if not has_fan_in(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
