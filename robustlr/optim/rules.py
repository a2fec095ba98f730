"""Update rules as pure functions.

Weights, gradients and directions have the shape ``[trials, neurons, fan_in]``. A statistic of a
neuron has the shape ``[trials, neurons, 1]``, and a hyperparameter is a number or a tensor
``[trials, 1, 1]``. The optimizer classes call the rules with one trial.
"""

import math

import torch
from torch import Tensor

Hyperparameter = float | Tensor


def row_norm(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of every neuron, ``[trials, neurons, 1]``."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norm


def _divided(rows: Tensor, divisor: Tensor) -> Tensor:
    """Return ``rows / divisor``, and 0 where the divisor is 0; NaN stays NaN."""
    return torch.where(divisor == 0, 0, rows / divisor)


def project(weight: Tensor, *, center: bool, normalize: bool) -> Tensor:
    """Return ``weight`` with zero-mean and unit-norm rows (Nero, Algorithm 1); a zero row stays."""
    if center:
        weight = weight - weight.mean(-1, keepdim=True)
    if normalize:
        weight = _divided(weight, row_norm(weight))
    return weight


def centred(weight: Tensor) -> Tensor:
    """Return ``weight`` with zero-mean rows of unchanged norm; a constant row stays as it is."""
    norm, direction = row_norm(weight), weight - weight.mean(-1, keepdim=True)
    remaining = row_norm(direction)
    constant = remaining <= 16 * torch.finfo(weight.dtype).eps * norm  # nothing but rounding
    return torch.where(constant, weight, direction * _divided(norm, remaining))


def nero(
    weight: Tensor,
    gradient: Tensor,
    square_norm: Tensor,
    *,
    scale: Tensor,
    step: int,
    lr: Hyperparameter,
    beta: Hyperparameter,
    center: bool,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Return the weight and running squared gradient norm after a Nero step (Nero, Algorithm 1).

    The norm carries Adam's bias correction, and ``scale`` is the parameter's initial mean row norm,
    both as in the authors' code. A row whose gradient is zero or not finite does not move, and a
    gradient that is not finite leaves the running norm as it was.
    """
    observed = gradient.square().sum(-1, keepdim=True)
    usable = observed.isfinite()
    square_norm = torch.where(usable, beta * square_norm + (1 - beta) * observed, square_norm)
    root = (square_norm / (1 - beta**step)).sqrt()
    direction = torch.where(usable, _divided(gradient, root), 0)
    weight = weight - lr * scale * direction
    return project(weight, center=center, normalize=normalize), square_norm


def adam_direction(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    step: int,
    beta1: Hyperparameter,
    beta2: Hyperparameter,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Adam's direction (bias-corrected) and its new first and second moments.

    A row whose gradient is not finite keeps its moments and has direction 0.
    """
    usable = gradient.isfinite().all(-1, keepdim=True)
    first = torch.where(usable, beta1 * first + (1 - beta1) * gradient, first)
    second = torch.where(usable, beta2 * second + (1 - beta2) * gradient.square(), second)
    root = (second / (1 - beta2**step)).sqrt()
    return torch.where(usable, first / (1 - beta1**step) / (root + eps), 0), first, second


def adamw_rotation(lr: float, weight_decay: float, beta1: float) -> float:
    """Return AdamW's expected rotation per step in radians (Rotational Equilibrium, Table 1)."""
    return math.sqrt(2 * lr * weight_decay * (1 - beta1) / (1 + beta1))


def rotate(
    weight: Tensor,
    direction: Tensor,
    square_norm: Tensor,
    *,
    norm: Tensor,
    step: int,
    rotation: Hyperparameter,
    rotation_beta: float,
    rotation_eps: float,
    center: bool,
) -> tuple[Tensor, Tensor]:
    """Return the weight turned against ``direction``, and the direction's running squared norm.

    Each row turns by ``rotation`` radians on average and keeps its ``norm`` (Rotational
    Equilibrium, Algorithm 1). A row of norm 0 stays where it is.
    """
    if center:
        direction = direction - direction.mean(-1, keepdim=True)
    radial = (direction * weight).sum(-1, keepdim=True)
    direction = direction - weight * _divided(radial, norm.square())
    observed = direction.square().sum(-1, keepdim=True)
    square_norm = rotation_beta * square_norm + (1 - rotation_beta) * observed
    root = (square_norm / (1 - rotation_beta**step)).sqrt()
    weight = weight - rotation * norm * direction / (root + rotation_eps)
    return _divided(weight * norm, row_norm(weight)), square_norm
