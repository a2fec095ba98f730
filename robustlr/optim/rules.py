"""Update rules as pure functions: the one place that defines the maths of the optimizers.

Weights, gradients and directions have the shape ``[trials, rows, row length]``; a row is a neuron,
or a single element where a parameter has no fan-in. A statistic of a row has the shape
``[trials, rows, 1]``, one of a whole parameter ``[trials, 1, 1]``. A hyperparameter is a number or
a tensor that broadcasts, ``[trials, 1, 1]``; ``step`` counts from 1. The optimizer classes call the
rules with one trial; ``kernels.c`` follows them for speed, for one trial or for many at once.

A gradient is *usable* where its square is finite. One that is not moves nothing and enters no
state, be it NaN, infinite or too large; each rule says whether that holds for an element, a row or
the whole parameter. Such a step is counted all the same, and bias corrections go by the count.
"""

import math
from typing import Any

import torch
from torch import Tensor

Hyperparameter = Any
"""``float | Tensor``; torch's stubs know no powers of that union."""

MADAM_BETA = 0.999
"""Madam's running average, which its code fixes."""


def row_norm(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of every row, ``[trials, rows, 1]``."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norm


def whole_norm(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of every whole parameter, ``[trials, 1, 1]``."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=(-2, -1), keepdim=True)
    return norm


def _divided(rows: Tensor, divisor: Tensor) -> Tensor:
    """Return ``rows / divisor``, and 0 where the divisor is 0; NaN stays NaN."""
    return torch.where(divisor == 0, 0, rows / divisor)


def _average(average: Tensor, new: Tensor, beta: Hyperparameter, usable: Tensor) -> Tensor:
    """Return the running average after ``new``; unchanged where ``new`` is not usable."""
    return torch.where(usable, beta * average + (1 - beta) * new, average)


def _corrected(average: Tensor, beta: Hyperparameter, step: Hyperparameter) -> Tensor:
    """Return a running average without its bias toward the zero that it started from."""
    corrected: Tensor = average / (1 - beta**step)
    return corrected


def _is_rounding(part: Tensor, of: Tensor) -> Tensor:
    """Return which rows of ``part``, taken out of those of ``of``, are nothing but rounding."""
    return row_norm(part) <= 16 * torch.finfo(of.dtype).eps * row_norm(of)


# Constraints


def project(weight: Tensor, *, center: bool, normalize: bool) -> Tensor:
    """Return ``weight`` with zero-mean and unit-norm rows (Learning by Turning, Algorithm 1).

    A row of zeros stays so, and a constant row keeps its mean: centred, it would fall silent.
    """
    if center:
        direction = weight - weight.mean(-1, keepdim=True)
        weight = torch.where(_is_rounding(direction, of=weight), weight, direction)
    if normalize:
        weight = _divided(weight, row_norm(weight))
    return weight


def centred(weight: Tensor) -> Tensor:
    """Return ``weight`` with zero-mean rows of unchanged norm; a constant row stays as it is."""
    direction = weight - weight.mean(-1, keepdim=True)
    resized = direction * _divided(row_norm(weight), row_norm(direction))
    return torch.where(_is_rounding(direction, of=weight), weight, resized)


def settled(projected: Tensor, weight: Tensor, *, precision: torch.dtype) -> Tensor:
    """Return ``projected``, but ``weight`` for rows that differ by no more than rounding.

    So weights that were projected, saved in ``precision`` and loaded stay bit for bit the same.
    """
    same = row_norm(projected - weight) <= 16 * torch.finfo(precision).eps * row_norm(weight)
    return torch.where(same, weight, projected)


# Nero and Madam


def nero(
    weight: Tensor,
    gradient: Tensor,
    square_norm: Tensor,
    *,
    scale: Tensor,
    step: Hyperparameter,
    lr: Hyperparameter,
    beta: Hyperparameter,
    center: bool,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Return the weight and running squared gradient norm after a Nero step.

    Source: Learning by Turning, Algorithm 1. The running norm carries Adam's bias correction, and
    ``scale`` is the parameter's initial mean row norm, both as in the authors' code. A row whose
    gradient is zero or not usable stays exactly as it is.
    """
    observed = gradient.square().sum(-1, keepdim=True)
    usable = observed.isfinite()
    square_norm = _average(square_norm, observed, beta, usable)
    direction = _divided(gradient, _corrected(square_norm, beta, step).sqrt())
    moved = project(weight - lr * scale * direction, center=center, normalize=normalize)
    return torch.where(usable & (observed > 0), moved, weight), square_norm


def madam(
    weight: Tensor,
    gradient: Tensor,
    second: Tensor,
    *,
    cap: Tensor,
    step: Hyperparameter,
    lr: Hyperparameter,
    g_bound: Hyperparameter,
    center: bool,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Return the weight and second moment after a Madam step: each element is scaled by a factor.

    Source: Bernstein et al., Learning compositional functions via multiplicative weight updates
    (2020), and the code of Learning by Turning. An element of size 0 never moves; one whose
    gradient is not usable keeps its size and its moment.
    """
    observed = gradient.square()
    usable = observed.isfinite()
    second = _average(second, observed, MADAM_BETA, usable)
    direction = _divided(gradient, _corrected(second, MADAM_BETA, step).sqrt())
    direction = torch.where(usable, direction.clamp(-g_bound, g_bound), 0)
    weight = (weight * torch.exp(-lr * direction * weight.sign())).clamp(-cap, cap)
    return project(weight, center=center, normalize=normalize), second


# Steps relative to the size of the whole parameter


def fromage(weight: Tensor, gradient: Tensor, *, lr: Hyperparameter, cap: Tensor | None) -> Tensor:
    """Return the weight after a Fromage step (On the distance between two neural networks).

    The relative step is ``lr``, and the prefactor 1/sqrt(1 + lr²) keeps the norm from growing. If
    either norm is 0 the step is that of gradient descent. ``cap`` bounds the parameter's norm. A
    gradient of which one element is not usable moves nothing.
    """
    norm, gradient_norm = whole_norm(weight), whole_norm(gradient)
    ratio = torch.where((norm > 0) & (gradient_norm > 0), norm / gradient_norm, 1)
    moved = (weight - lr * ratio * gradient) / (1 + lr**2) ** 0.5
    if cap is not None:
        moved_norm = whole_norm(moved)
        moved = torch.where(moved_norm > cap, moved * (cap / moved_norm), moved)
    return torch.where(gradient_norm.isfinite(), moved, weight)


def lars(
    weight: Tensor,
    gradient: Tensor,
    buffer: Tensor,
    *,
    lr: Hyperparameter,
    momentum: Hyperparameter,
    weight_decay: Hyperparameter,
    trust_coefficient: Hyperparameter,
    eps: Hyperparameter,
    adapt: bool,
) -> tuple[Tensor, Tensor]:
    """Return the weight and momentum buffer after a LARS step (You, Gitman, Ginsburg, 2017).

    With ``adapt`` the step is scaled by ``trust_coefficient`` times the ratio of the weight's norm
    to the gradient's, or by 1 if either is 0. A gradient of which one element is not usable moves
    nothing.
    """
    norm, gradient_norm = whole_norm(weight), whole_norm(gradient)
    ratio: Hyperparameter = 1.0
    if adapt:
        ratio = trust_coefficient * norm / (gradient_norm + weight_decay * norm + eps)
        ratio = torch.where((norm > 0) & (gradient_norm > 0), ratio, 1)
    moved_buffer = momentum * buffer + ratio * (gradient + weight_decay * weight)
    usable = gradient_norm.isfinite()
    return (
        torch.where(usable, weight - lr * moved_buffer, weight),
        torch.where(usable, moved_buffer, buffer),
    )


def lamb(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    step: Hyperparameter,
    lr: Hyperparameter,
    beta1: Hyperparameter,
    beta2: Hyperparameter,
    eps: Hyperparameter,
    weight_decay: Hyperparameter,
    bias_correction: bool,
    clamp: float,
    center: bool,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weight and both moments after a LAMB step (You et al., 2020).

    The variant is that of the code of Learning by Turning: no bias correction, and the weight's
    norm is clamped, unless the options say otherwise. An element whose gradient is not usable
    stays and keeps its moments.
    """
    usable = gradient.square().isfinite()
    update, first, second = adam_direction(
        gradient,
        first,
        second,
        usable,
        step=step if bias_correction else math.inf,  # beta ** inf is 0: nothing to correct
        beta1=beta1,
        beta2=beta2,
        eps=eps,
    )
    update = update + torch.where(usable, weight_decay * weight, 0)
    norm, update_norm = whole_norm(weight).clamp(max=clamp), whole_norm(update)
    ratio = torch.where((norm > 0) & (update_norm > 0), norm / update_norm, 1)
    weight = project(weight - lr * ratio * update, center=center, normalize=normalize)
    return weight, first, second


# Directions of the optimizers that have a rotational variant


def sgd_direction(
    gradient: Tensor,
    buffer: Tensor,
    usable: Tensor,
    *,
    step: Hyperparameter,
    momentum: Hyperparameter,
    dampening: Hyperparameter,
    nesterov: bool,
) -> tuple[Tensor, Tensor]:
    """Return the direction of gradient descent with momentum, and its new buffer (torch's form)."""
    first = step == 1  # the first gradient enters undamped
    damped = (1 - dampening * (1 - 1.0 * first)) * gradient
    buffer = torch.where(usable, momentum * buffer + damped, buffer)
    direction = gradient + momentum * buffer if nesterov else buffer
    return torch.where(usable, direction, 0), buffer


def adam_direction(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    usable: Tensor,
    *,
    step: Hyperparameter,
    beta1: Hyperparameter,
    beta2: Hyperparameter,
    eps: Hyperparameter,
    squared: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Adam's direction, corrected for bias, and its new moments (Kingma and Ba, 2015).

    ``squared`` is what the second moment averages the square of, if not the gradient.
    """
    first = _average(first, gradient, beta1, usable)
    second = _average(second, (gradient if squared is None else squared).square(), beta2, usable)
    root = _corrected(second, beta2, step).sqrt()
    direction = _divided(_corrected(first, beta1, step), root + eps)
    return torch.where(usable, direction, 0), first, second


def lion_direction(
    gradient: Tensor,
    first: Tensor,
    usable: Tensor,
    *,
    beta1: Hyperparameter,
    beta2: Hyperparameter,
) -> tuple[Tensor, Tensor]:
    """Return Lion's direction, a vector of signs, and its new moment (Chen et al., 2023)."""
    direction = (beta1 * first + (1 - beta1) * gradient).sign()
    return torch.where(usable, direction, 0), _average(first, gradient, beta2, usable)


def descend(
    weight: Tensor,
    direction: Tensor,
    usable: Tensor,
    *,
    lr: Hyperparameter,
    weight_decay: Hyperparameter = 0.0,
) -> Tensor:
    """Return the weight after a step against ``direction``, with decoupled weight decay."""
    return torch.where(usable, (1 - lr * weight_decay) * weight - lr * direction, weight)


# Rotational variants


def sgd_rotation(
    lr: Hyperparameter, weight_decay: Hyperparameter, momentum: Hyperparameter
) -> Hyperparameter:
    """Return SGDM's expected rotation per step in radians (Rotational Equilibrium, Table 1)."""
    return (2 * lr * weight_decay / (1 + momentum)) ** 0.5


def adamw_rotation(
    lr: Hyperparameter, weight_decay: Hyperparameter, beta1: Hyperparameter
) -> Hyperparameter:
    """Return AdamW's expected rotation per step in radians (Rotational Equilibrium, Table 1)."""
    return (2 * lr * weight_decay * (1 - beta1) / (1 + beta1)) ** 0.5


def lion_rotation(
    lr: Hyperparameter,
    weight_decay: Hyperparameter,
    beta1: Hyperparameter,
    beta2: Hyperparameter,
) -> Hyperparameter:
    """Return Lion's expected rotation per step in radians (Rotational Equilibrium, Table 1)."""
    memory = (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)
    return (math.pi * lr * weight_decay * memory) ** 0.5


def speeds(
    rows: int, *, slow_portion: float, fast_portion: float, speed_factor: float, like: Tensor
) -> Tensor:
    """Return how much faster than the rest each row turns, ``[1, rows, 1]``.

    The first ``slow_portion`` of the rows turns ``speed_factor`` times slower and the next
    ``fast_portion`` as much faster, numbers of rows rounded down (Rotational Equilibrium, the
    imbalanced variant of Figure 16).
    """
    slow, fast = int(slow_portion * rows), int(fast_portion * rows)
    speed = torch.ones(1, rows, 1, dtype=like.dtype, device=like.device)
    speed[:, :slow] = 1 / speed_factor
    speed[:, slow : slow + fast] = speed_factor
    return speed


def rotate(
    weight: Tensor,
    direction: Tensor,
    square_norm: Tensor,
    usable: Tensor,
    *,
    norm: Tensor,
    step: Hyperparameter,
    rotation: Hyperparameter,
    rotation_beta: Hyperparameter,
    rotation_eps: Hyperparameter,
    center: bool,
) -> tuple[Tensor, Tensor]:
    """Return the weight turned against ``direction``, and the direction's running squared norm.

    Each row turns by ``rotation`` radians on average and keeps its ``norm`` (Rotational
    Equilibrium, Algorithm 1). A row of norm 0, or whose gradient is not ``usable``, stays; so does
    one whose direction leaves it nowhere to turn, as every centred row of length 2.
    """
    given = direction
    if center:
        direction = direction - direction.mean(-1, keepdim=True)
    radial = (direction * weight).sum(-1, keepdim=True)
    direction = direction - weight * _divided(radial, norm.square())
    direction = torch.where(_is_rounding(direction, of=given), 0, direction)
    observed = direction.square().sum(-1, keepdim=True)
    square_norm = _average(square_norm, observed, rotation_beta, usable)
    root = _corrected(square_norm, rotation_beta, step).sqrt()
    turned = weight - rotation * norm * _divided(direction, root + rotation_eps)
    turned = turned * _divided(norm, row_norm(turned))
    return torch.where(usable & (norm > 0) & (observed > 0), turned, weight), square_norm
