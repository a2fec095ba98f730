"""Optimizers of many trials, of one class, that step as one: each with its own hyperparameters.

One launch of a kernel takes the step of every parameter of every trial. The optimizers keep their
own state and groups, so that each can be saved, and go on alone. Where no kernel knows their class,
or there is none for the device, they step one after another.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from robustlr.optim import kernels
from robustlr.optim.base import Group, RuleOptimizer, zeros
from robustlr.optim.kernels import Member
from robustlr.optim.neurons import elements

Factor = Callable[[int], float]
"""The factor on the learning rate at a step, counted from 0."""


@dataclass(frozen=True)
class _Torch:
    """How a kernel takes the step of a class of torch's, which takes any gradient."""

    kernel: str
    kept: tuple[str, ...]
    numbers: Callable[[Group], tuple[Any, ...]]
    lacks: tuple[str, ...] = ()
    """The switches of the class that the kernel does not know."""


def _adam(group: Group) -> tuple[Any, ...]:
    return group["lr"], group["weight_decay"], *group["betas"], group["eps"]


def _sgd(group: Group) -> tuple[Any, ...]:
    dampening = group["dampening"] if group["momentum"] else 0.0
    return group["lr"], group["weight_decay"], group["momentum"], dampening, group["nesterov"]


_MOMENTS = ("exp_avg", "exp_avg_sq")
_TORCH = {
    SGD: _Torch("sgd", ("momentum_buffer",), _sgd),
    Adam: _Torch("adam_l2", _MOMENTS, _adam, ("amsgrad", "decoupled_weight_decay")),
    AdamW: _Torch("adamw", _MOMENTS, _adam, ("amsgrad",)),
}
_ANY_GRADIENT = (0.0,) * 7 + (1.0,)  # no turning


BLOCK = 256
"""For so many steps hyperparameters are computed at once: a long run's take too much memory."""


class Together:
    """The optimizers of some trials, ``[trials]``, that step as one.

    Args:
        optimizers: of one class, with the same groups, whose ``initial_lr`` the schedule multiplies.
        parameters: each trial's, ``[trials][parameters]``, in one order: slices of stacked tensors.
        factors: the schedule of each trial's learning rate, over ``steps`` steps.
        done: how many steps each trial has taken.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        parameters: Sequence[Sequence[Tensor]],
        factors: Sequence[Factor],
        steps: int,
        done: Sequence[int],
    ) -> None:
        self._optimizers, self._parameters = optimizers, parameters
        self._factors, self._last = factors, steps - 1
        device = parameters[0][0].device
        self._done = list(done)
        self._taken = 0
        self._launch = self._launcher(device.type)
        if self._launch is None:
            return
        where = {id(p): (k, i) for k, own in enumerate(parameters) for i, p in enumerate(own)}
        members = [member for member in self._members() if id(member.parameter) in where]
        self._counts = torch.stack([member.step for member in members])
        for member, count in zip(members, self._counts, strict=True):
            member.step.set_(count)  # a view: one addition counts all
        self._plan = kernels.plan(_kernel(optimizers[0]), members)
        if self._plan.rest:
            self._launch = None
            return
        places = [where[id(member.parameter)] for member in members]
        self._of = torch.tensor([index for _, index in places])
        self._offsets = torch.tensor([k * parameters[k][i].nbytes for k, i in places])

    @property
    def is_one(self) -> bool:
        """Whether one launch takes all steps: the optimizers' own hooks then do not run."""
        return self._launch is not None

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take a step of each trial with its slice of ``gradients``, ``[trials, *shape]`` each."""
        if self._launch is None:
            self._step_each(gradients)
        else:
            self._gradients = list(map(_laid_out, gradients, self._parameters[0]))
            addresses = torch.tensor([gradient.data_ptr() for gradient in self._gradients])
            kernels.aim(self._plan, (addresses[self._of] + self._offsets).tolist())
            self._counts += 1
            if self._taken % BLOCK == 0:
                self._table = self._hyperparameters().to(self._counts.device)
            numbers = self._table[self._taken % BLOCK]
            first = self._optimizers[0]
            direction = -1.0 if first.param_groups[0]["maximize"] else 1.0
            self._launch(_kernel(first), self._plan, numbers, direction)
        self._taken += 1
        self._done = [done + 1 for done in self._done]

    def _step_each(self, gradients: Sequence[Tensor]) -> None:
        each = zip(self._optimizers, self._parameters, self._factors, self._done, strict=True)
        for k, (optimizer, parameters, factor, done) in enumerate(each):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient[k]
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor(min(done, self._last))
            optimizer.step()
            optimizer.zero_grad()

    def _launcher(self, device: str) -> kernels.Launch | None:
        """Return what launches a kernel that knows these optimizers; None if there is none."""
        for optimizer in self._optimizers:
            known = _TORCH.get(type(optimizer))
            if not isinstance(optimizer, RuleOptimizer) and (
                known is None
                or any(g.get(name) for g in optimizer.param_groups for name in known.lacks)
            ):
                return None
        return kernels.launcher(device)

    def _members(self) -> Iterator[Member]:
        """Yield every parameter of every trial that moves, with the state that it has or begins with."""
        place = 0
        for optimizer, done in zip(self._optimizers, self._done, strict=True):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if isinstance(optimizer, RuleOptimizer):
                        yield from _ours(optimizer, parameter, group, place)
                    else:
                        yield _torchs(optimizer, parameter, group, place, done)
                place += len(_numbers(optimizer, group))

    def _hyperparameters(self) -> Tensor:
        """Return what the kernel is told at the next ``BLOCK`` steps, ``[BLOCK, trials, numbers]``."""
        return torch.stack(
            [
                torch.cat(
                    [_table(optimizer, group, lrs) for group in optimizer.param_groups], dim=1
                )
                for optimizer, lrs in zip(self._optimizers, self._lrs(), strict=True)
            ],
            dim=1,
        )

    def _lrs(self) -> list[Tensor]:
        """Return the schedules of the next steps as factors, ``[BLOCK]`` each."""
        known: dict[tuple[Factor, int], Tensor] = {}
        trials = list(zip(self._factors, self._done, strict=True))
        for factor, done in dict.fromkeys(trials):
            values = [factor(min(step, self._last)) for step in range(done, done + BLOCK)]
            known[factor, done] = torch.tensor(values, dtype=torch.float64)
        return [known[trial] for trial in trials]


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return the gradient, ``[trials, *shape]``, its elements where the parameter's are."""
    strides = (parameter.numel(), *parameter.stride())
    if gradient.stride() == strides:
        return gradient
    return torch.empty_strided(gradient.shape, strides, device=gradient.device).copy_(gradient)


def _kernel(optimizer: Optimizer) -> str:
    if isinstance(optimizer, RuleOptimizer):
        return optimizer.kernel
    return _TORCH[type(optimizer)].kernel


def _numbers(optimizer: Optimizer, group: Group) -> Sequence[Any]:
    if isinstance(optimizer, RuleOptimizer):
        return optimizer._numbers(group)
    return *_TORCH[type(optimizer)].numbers(group), *_ANY_GRADIENT


def _table(optimizer: Optimizer, group: Group, factors: Tensor) -> Tensor:
    """Return a group's hyperparameters at each step, ``[steps, numbers]``."""
    scheduled = {**group, "lr": group["initial_lr"] * factors}
    numbers = (
        number if isinstance(number, Tensor) else factors.new_full(factors.shape, float(number))
        for number in _numbers(optimizer, scheduled)
    )
    return torch.stack(list(numbers), dim=1)


def _ours(
    optimizer: RuleOptimizer, parameter: Tensor, group: Group, place: int
) -> Iterator[Member]:
    if not optimizer._moves(parameter, group):
        return
    if not optimizer._wanted(group) <= optimizer.state[parameter].keys():
        optimizer._begin(parameter, group)
    state = optimizer.state[parameter]
    kept = [state[name] for name in optimizer.kept if name in state]
    split = optimizer._split(parameter, group)
    yield Member(parameter, parameter, split, kept, state["step"], place)


def _torchs(optimizer: Optimizer, parameter: Tensor, group: Group, place: int, done: int) -> Member:
    """Return the parameter with the state that torch's own step begins with."""
    state, known = optimizer.state[parameter], _TORCH[type(optimizer)]
    began = state.get(known.kept[0]) is not None
    if not began and type(optimizer) is not SGD:
        state["step"] = zeros(parameter.new_zeros(()))
    if not began and (type(optimizer) is not SGD or group["momentum"]):
        state |= {name: zeros(parameter) for name in known.kept}
    if "step" in state:  # which a checkpoint leaves on the CPU
        state["step"] = state["step"].to(parameter.device)
    # SGD counts no steps, only that its first gradient enters undamped; and needs room for the kernel
    step = state["step"] if "step" in state else parameter.new_full((), float(done))
    kept = [state[name] if name in state else zeros(parameter) for name in known.kept]
    return Member(parameter, parameter, elements(parameter), kept, step, place)
