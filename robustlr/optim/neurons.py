"""What a neuron is: the only place that knows how a parameter splits into rows.

A parameter with a fan-in of at least 2 is a matrix ``[neurons, fan_in]``. Its neurons lie along
dimension 0 (linear, convolution and embedding weights), or along dimension 1 (transposed
convolutions). Everything else (gains, biases, fan-in 1) has no fan-in and takes element-wise
rules: each element is a row of length 1.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, optim
from torch.nn.modules.conv import _ConvTransposeNd


@dataclass(frozen=True)
class Split:
    """How a parameter splits into rows; the rules take ``[trials, rows, row length]``."""

    rows: int
    axis: int = 0
    conv_groups: int = 1

    def to_rows(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` as ``[1, rows, row length]``; a view where the memory allows one.

        A tensor with one number a row, or a single number, gets the row length 1.
        """
        if self.axis and tensor.dim() > 1:
            inputs, outputs = tensor.shape[0] // self.conv_groups, tensor.shape[1]
            tensor = tensor.reshape(self.conv_groups, inputs, outputs, -1).transpose(1, 2)
        rows = 1 if tensor.numel() == 1 else self.rows
        return tensor.reshape(1, rows, tensor.numel() // rows if rows else 0)

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return ``rows`` in the shape of ``like``; undoes ``to_rows``."""
        if self.axis and like.dim() > 1:
            inputs, outputs = like.shape[0] // self.conv_groups, like.shape[1]
            rows = rows.reshape(self.conv_groups, outputs, inputs, -1).transpose(1, 2)
        return rows.reshape(like.shape)


def neuron_count(parameter: Tensor, *, axis: int = 0, conv_groups: int = 1) -> int:
    """Return how many neurons ``parameter`` has; one without dimensions counts as one."""
    return parameter.shape[axis] * (conv_groups if axis else 1) if parameter.dim() > axis else 1


def has_fan_in(parameter: Tensor, *, axis: int = 0, conv_groups: int = 1) -> bool:
    """Return whether ``parameter`` is made of neurons with at least two inputs each."""
    neurons = neuron_count(parameter, axis=axis, conv_groups=conv_groups)
    return parameter.dim() > 1 and parameter.numel() >= 2 * neurons


def neurons(parameter: Tensor, *, axis: int = 0, conv_groups: int = 1) -> Split:
    """Return the split into neurons, or into elements where there is no fan-in."""
    if not has_fan_in(parameter, axis=axis, conv_groups=conv_groups):
        return elements(parameter)
    rows = neuron_count(parameter, axis=axis, conv_groups=conv_groups)
    return Split(rows, axis=axis, conv_groups=conv_groups)


def elements(parameter: Tensor) -> Split:
    """Return the split in which each element is a row."""
    return Split(parameter.numel())


def whole(parameter: Tensor) -> Split:
    """Return the split in which the whole parameter is one row."""
    return Split(1)


def _layouts(model: nn.Module) -> dict[int, tuple[int, int]]:
    """Return axis and groups of the weights of transposed convolutions, by id."""
    return {
        id(parameter): (1, module.groups)
        for module in model.modules()
        if isinstance(module, _ConvTransposeNd)
        for parameter in module.parameters()
        if parameter.dim() > 1
    }


def parameter_groups(model: nn.Module, *, decay: bool = True) -> list[dict[str, Any]]:
    """Return parameter groups of ``model`` for any optimizer here.

    Gains and biases get a group with ``weight_decay`` 0, as in all of the papers' runs (Rotational
    Equilibrium, App. K), unless the optimizer knows no decay. So do the parameters that a module's
    method ``undecayed`` returns. Weights of transposed convolutions get groups with ``neuron_axis``
    1 and their ``conv_groups``.
    """
    layouts = _layouts(model)
    undecayed = {id(p) for m in model.modules() for p in getattr(m, "undecayed", list)()}
    groups: dict[tuple[tuple[str, Any], ...], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        axis, conv_groups = layouts.get(id(parameter), (0, 1))
        options: dict[str, Any] = {}
        if axis:
            options |= {"neuron_axis": axis, "conv_groups": conv_groups}
        matrix = has_fan_in(parameter, axis=axis, conv_groups=conv_groups)
        if decay and (not matrix or id(parameter) in undecayed):
            options["weight_decay"] = 0.0
        groups.setdefault(tuple(options.items()), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: "weight_decay" in dict(group[0]))
    return [{"params": members, **dict(options)} for options, members in ordered]


@dataclass(frozen=True)
class ParameterFacts:
    """What the optimizers make of one parameter, and the state that one of them keeps for it."""

    name: str
    shape: tuple[int, ...]
    neurons: int
    fan_in: int
    state_floats: int | None

    @property
    def neuronal(self) -> bool:
        """Whether it is made of neurons with at least two inputs each."""
        return self.fan_in > 1

    @property
    def state_per_parameter(self) -> float | None:
        """Floats of optimizer state for each of its numbers: AdamW 2, Nero 1 / fan-in."""
        if self.state_floats is None:
            return None
        return self.state_floats / max(1, self.neurons * self.fan_in)


def describe(model: nn.Module, optimizer: optim.Optimizer | None = None) -> list[ParameterFacts]:
    """Return, for every parameter of ``model``, whether it is neuronal and its optimizer state.

    Step counters, one a parameter, are not counted. Most optimizers make their state at the first
    step: until then it is 0.

    >>> from robustlr.optim import Nero
    >>> model = nn.Sequential(nn.Linear(10, 5), nn.LayerNorm(5))
    >>> for facts in describe(model, Nero(model.parameters())):
    ...     print(facts.name, facts.neuronal, facts.state_floats)
    0.weight True 6
    0.bias False 6
    1.weight False 6
    1.bias False 6
    """
    layouts = _layouts(model)
    found = []
    for name, parameter in model.named_parameters():
        axis, conv_groups = layouts.get(id(parameter), (0, 1))
        rows = neurons(parameter, axis=axis, conv_groups=conv_groups).rows
        kept = None
        if optimizer is not None:
            state = optimizer.state.get(parameter, {})
            kept = sum(
                value.numel()
                for key, value in state.items()
                if isinstance(value, Tensor) and key != "step"
            )
        fan_in = parameter.numel() // max(1, rows)
        found.append(ParameterFacts(name, tuple(parameter.shape), rows, fan_in, kept))
    return found
