"""What the registry knows of an optimizer: its class, where it comes from, how it is searched."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn, optim

from robustlr.optim.neurons import parameter_groups
from robustlr.space import Choices, Span, Value

_SWITCHES = {"maximize", "foreach", "capturable", "differentiable", "fused"}

LR_GRID = Span(log=(1e-4, 1.0), points=5)
"""The learning rates of the Nero paper's searches, 1e-4 to 1 in decades; shared by all entries."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An optimizer as studies know it.

    ``default`` is the out-of-the-box setting, ``default_source`` says who chose it, ``space`` is
    searched when a study names no values, and ``options`` are constructor arguments that never
    vary. ``beta1`` and ``beta2`` stand for the two numbers of a ``betas`` argument. Every optimizer
    has the hyperparameter ``gradient_clip`` too: gradients are scaled down together before a step
    if their norm over all parameters is above it (0: never). One with weight decay can be given
    ``lr_times_weight_decay`` instead, what sets the rotation of weights in equilibrium (Rotational
    Equilibrium, Table 1).
    """

    optimizer: Callable[..., optim.Optimizer]
    summary: str
    paper: str
    default: Mapping[str, Value]
    default_source: str
    space: Mapping[str, Span | Choices]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """All hyperparameters with the constructor's defaults (None where it has no default)."""
        found: dict[str, Any] = {}
        for name, parameter in list(inspect.signature(self.optimizer).parameters.items())[1:]:
            if name in _SWITCHES or parameter.kind is parameter.VAR_KEYWORD:
                continue
            default = None if parameter.default is parameter.empty else parameter.default
            if name == "betas":
                found |= dict(zip(("beta1", "beta2"), default or (None, None), strict=True))
            else:
                found[name] = default
        if "weight_decay" in found:
            found["lr_times_weight_decay"] = None
        return found | {"gradient_clip": 0.0}

    def build(self, model: nn.Module, hyperparameters: Mapping[str, Value]) -> optim.Optimizer:
        """Return the optimizer of ``model``; weight decay acts on weights with a fan-in only.

        Raises:
            ValueError: both the weight decay and its product with the learning rate are given, or
                gradients are to be clipped to a negative norm.
        """
        arguments: dict[str, Any] = {**self.default, **hyperparameters}
        gradient_clip = float(arguments.pop("gradient_clip", 0.0))
        if not gradient_clip >= 0:
            raise ValueError(f"gradient_clip must be at least 0, not {gradient_clip:g}")
        if "lr_times_weight_decay" in arguments:
            if "weight_decay" in hyperparameters:
                raise ValueError("give weight_decay or lr_times_weight_decay, not both")
            lr = arguments.get("lr", self.arguments["lr"])
            arguments["weight_decay"] = arguments.pop("lr_times_weight_decay") / lr
        if "beta1" in arguments or "beta2" in arguments:
            known = self.arguments
            betas = [arguments.pop(name, known[name]) for name in ("beta1", "beta2")]
            arguments["betas"] = (float(betas[0]), float(betas[1]))
        groups = parameter_groups(model, decay="weight_decay" in self.arguments)
        optimizer = self.optimizer(groups, **arguments, **self.options)
        if gradient_clip:
            optimizer.register_step_pre_hook(partial(_clip, gradient_clip))
        return optimizer

    def refuses(self, hyperparameters: Mapping[str, Value]) -> str | None:
        """Return why a setting cannot be used, from one step on a small matrix, or None."""
        model = nn.Linear(3, 2, bias=False)
        try:
            optimizer = self.build(model, hyperparameters)
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
        except Exception as error:  # whatever a class raises, its user can mend it
            return " ".join(f"{type(error).__name__}: {error}".split())
        return None


def _clip(norm: float, optimizer: optim.Optimizer, *_: Any) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, norm)


def entry_of_class(optimizer: Callable[..., optim.Optimizer], name: str) -> Entry:
    """Return an entry for any optimizer class, with its constructor's defaults.

    Such an entry has no search space of its own: the study gives one.
    """
    return Entry(
        optimizer=optimizer,
        summary=(inspect.getdoc(optimizer) or name).splitlines()[0],
        paper="",
        default={},
        default_source=f"the defaults of {name}",
        space={},
    )
