"""What the optimizer classes share: groups, state, and the step over all parameters."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from robustlr.optim import kernels, neurons, rules
from robustlr.optim.neurons import Split

Group = dict[str, Any]
State = dict[str, Tensor]


class RuleOptimizer(Optimizer):
    """An optimizer whose step is a rule of ``rules.py`` applied to each parameter.

    A subclass says how a parameter splits into rows, which state it starts with and which rule
    takes the step. Where ``kernels.c`` has a kernel for the rule and the parameter is one that it
    can take, the kernel does the same for all such parameters at once.

    Every group has, beside the class's own options, ``maximize``, ``neuron_axis`` and
    ``conv_groups`` (see ``neurons.parameter_groups``). State is kept in float32 for half-precision
    parameters, else in the parameter's type. It is made at a parameter's first step.
    """

    kernel: ClassVar[str]
    """The function of ``kernels.c`` that takes the same step."""
    kept: ClassVar[tuple[str, ...]]
    """The names of the state, in the order in which the kernel takes those that there are."""

    def __init__(self, params: Any, defaults: Group) -> None:
        _check_switches(type(self), defaults)
        self._check(defaults)
        super().__init__(params, {**defaults, "neuron_axis": 0, "conv_groups": 1})

    # What a subclass defines

    def _check(self, group: Group) -> None:
        """Raise a ValueError if an option of ``group`` is out of bounds."""
        raise NotImplementedError

    def _split(self, parameter: Tensor, group: Group) -> Split:
        """Return how the rule sees ``parameter``."""
        return neurons.neurons(
            parameter, axis=group["neuron_axis"], conv_groups=group["conv_groups"]
        )

    def _start(self, parameter: Tensor, group: Group) -> State:
        """Return the state before the first step."""
        raise NotImplementedError

    def _rule(
        self, weight: Tensor, gradient: Tensor, state: State, step: Any, group: Group
    ) -> tuple[Tensor, State]:
        """Return the weight after the step, and what changed of the state; all of them rows."""
        raise NotImplementedError

    def _numbers(self, group: Group) -> Sequence[Any]:
        """Return the hyperparameters in the order in which the kernel takes them."""
        raise NotImplementedError

    def _wanted(self, group: Group) -> set[str]:
        """Return the state that a step cannot do without."""
        return {"step"}

    def _moves(self, parameter: Tensor, group: Group) -> bool:
        """Return whether ``parameter`` is trained at all."""
        return True

    # What they share

    @torch.no_grad()
    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters; raises ValueError for options out of bounds."""
        if not isinstance(param_group["params"], Tensor):
            param_group["params"] = list(param_group["params"])
        merged = {**self.defaults, **param_group}
        _check_switches(type(self), merged)
        self._check(merged)
        _check_layout(merged)
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.is_complex() or not parameter.is_floating_point():
                shape = tuple(parameter.shape)
                self.param_groups.pop()
                raise ValueError(
                    f"{type(self).__name__} trains real floating-point parameters, and one of "
                    f"shape {shape} is {parameter.dtype}; split it into real parts"
                )
        kernels.forget(self)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state, in the precision in which it was saved.

        Raises:
            ValueError: it is that of other parameters, or of another optimizer.
        """
        before = self.state, self.param_groups
        super().load_state_dict(state_dict)
        kernels.forget(self)
        try:
            for old, group in zip(before[1], self.param_groups, strict=True):
                for name in sorted((self.defaults.keys() & old.keys()) - group.keys()):
                    raise ValueError(f"the state to load is not {type(self).__name__}'s: no {name}")
            for saved, (parameter, group) in zip(_ids(state_dict), _members(self), strict=True):
                self._load(parameter, group, state_dict["state"].get(saved, {}))
        except ValueError:
            self.state, self.param_groups = before
            raise

    def _load(self, parameter: Tensor, group: Group, saved: State) -> None:
        expected = self._start(parameter, group) if saved else {}
        for name in expected.keys() - saved.keys() - self._wanted(group):
            raise ValueError(
                f"the state to load lacks {name} for a parameter of shape {tuple(parameter.shape)}"
            )
        for name in expected.keys() & saved.keys():
            needed, given = (tuple(state[name].shape) for state in (expected, saved))
            if needed != given:
                raise ValueError(
                    f"the state to load does not fit a parameter of shape "
                    f"{tuple(parameter.shape)}: its {name} has shape {given} and not {needed}"
                )
        # torch casts to the parameter's type, which would lose bits of half-precision ones
        for name in ("step", *self.kept):
            if name in saved:
                self.state[parameter][name] = _own(saved[name], parameter, name)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Any) -> float: ...
    @torch.no_grad()
    def step(self, closure: Any = None) -> float | None:
        """Take one step; ``closure`` recomputes the loss and its gradients.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = [
            [p for p in group["params"] if p.grad is not None and p.numel()]
            for group in self.param_groups
        ]
        for parameter in (p for parameters in ready for p in parameters):
            if parameter.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} takes dense gradients; the parameter of shape "
                    f"{tuple(parameter.shape)} has a sparse one (an embedding with sparse=True?)"
                )
        for group, parameters in zip(self.param_groups, ready, strict=True):
            parameters = [p for p in parameters if self._moves(p, group)]
            wanted = self._wanted(group)
            for parameter in parameters:
                if not wanted <= self.state[parameter].keys():
                    self._begin(parameter, group)
            if parameters:
                torch._foreach_add_([self.state[p]["step"] for p in parameters], 1.0)
            for parameter in kernels.step(self, group, parameters):
                self._plain_step(parameter, group)
        return loss

    def _begin(self, parameter: Tensor, group: Group) -> None:
        """Make the state that ``parameter`` lacks, and a step counter as torch's optimizers have."""
        # On the GPU, so that a captured graph of steps counts them too
        device = parameter.device if parameter.is_cuda else "cpu"
        step = torch.zeros((), dtype=torch.float32, device=device)
        made = {"step": step, **self._start(parameter, group)}
        self.state[parameter] = made | self.state[parameter]
        kernels.forget(self)

    def _constrain(
        self, parameter: Tensor, group: Group, project: Callable[[Tensor], Tensor]
    ) -> None:
        """Project the rows of ``parameter``, but for those that are as they should be."""
        split = self._split(parameter, group)
        rows = split.to_rows(parameter).to(compute_dtype(parameter))
        rows = rules.settled(project(rows), rows, precision=parameter.dtype)
        parameter.copy_(split.from_rows(rows, like=parameter))

    def _plain_step(self, parameter: Tensor, group: Group) -> None:
        assert parameter.grad is not None
        split, state = self._split(parameter, group), self.state[parameter]
        precision = compute_dtype(parameter)
        gradient = split.to_rows(parameter.grad).to(precision)
        counted = state["step"]
        compiling = torch.compiler.is_compiling()
        weight, changed = self._rule(
            split.to_rows(parameter).to(precision),
            -gradient if group["maximize"] else gradient,
            {name: split.to_rows(state[name]) for name in self.kept if name in state},
            counted.item() if counted.is_cpu and not compiling else counted.double(),
            group,
        )
        parameter.copy_(split.from_rows(weight, like=parameter))
        for name, value in changed.items():
            state[name].copy_(split.from_rows(value, like=state[name]))


def _check_switches(optimizer: type, group: Group) -> None:
    for name, argument in inspect.signature(optimizer).parameters.items():
        if isinstance(argument.default, bool) and not isinstance(group[name], bool):
            raise ValueError(f"{name} must be True or False, not {group[name]!r}")


def _check_layout(group: Group) -> None:
    axis, conv_groups = group["neuron_axis"], group["conv_groups"]
    if axis not in (0, 1):
        raise ValueError(f"neuron_axis must be 0 or 1, not {axis!r}")
    if not isinstance(conv_groups, int) or conv_groups < 1:
        raise ValueError(f"conv_groups must be a whole number above 0, not {conv_groups!r}")
    members = group["params"] if isinstance(group["params"], list) else [group["params"]]
    for member in members if axis else []:
        parameter = member[1] if isinstance(member, tuple) else member  # named, as torch allows
        if parameter.dim() > 1 and parameter.shape[0] % conv_groups:
            raise ValueError(
                f"conv_groups must divide the first dimension of {tuple(parameter.shape)}, "
                f"not {conv_groups!r}"
            )


def _ids(state_dict: dict[str, Any]) -> list[int]:
    return [member for group in state_dict["param_groups"] for member in group["params"]]


def _members(optimizer: Optimizer) -> list[tuple[Tensor, Group]]:
    return [(p, group) for group in optimizer.param_groups for p in group["params"]]


def _own(value: Tensor, parameter: Tensor, name: str) -> Tensor:
    """Return a copy of a loaded state tensor, where and as ``parameter`` keeps its own."""
    if name == "step":
        return value.to(parameter.device if parameter.is_cuda else "cpu", copy=True)
    if value.shape == parameter.shape:
        own = torch.empty_like(parameter, dtype=value.dtype)
        return own.copy_(value)
    return value.to(parameter.device, copy=True)


def options(arguments: dict[str, Any]) -> Group:
    """Return a constructor's arguments, its ``locals()``, as the defaults of a group."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in ("self", "params") and not name.startswith("__")
    }


def compute_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type in which a parameter's state is kept and its steps are computed."""
    half = parameter.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half else parameter.dtype


def zeros(parameter: Tensor) -> Tensor:
    """Return state of the parameter's shape and memory format, filled with zeros."""
    return torch.zeros_like(parameter, dtype=compute_dtype(parameter))


def row_zeros(parameter: Tensor, split: Split) -> Tensor:
    """Return state with one number a row, filled with zeros."""
    return torch.zeros(split.rows, dtype=compute_dtype(parameter), device=parameter.device)
