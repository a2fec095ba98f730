"""What the rotational variants share; Rotational Equilibrium (ICML 2024), Algorithm 1."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustlr.optim import rules
from robustlr.optim.arguments import check, check_betas
from robustlr.optim.base import Group, RuleOptimizer, State, row_zeros, zeros
from robustlr.optim.neurons import Split, elements, has_fan_in, whole


class RotationalOptimizer(RuleOptimizer):
    """Turns each neuron at the rate that weight decay would bring about, and keeps its norm.

    A parameter is *rotational* if its group sets ``rotational``, else if its ``weight_decay`` is
    not 0, and in any case only if its fan-in is at least 2. Others take a plain step of the inner
    optimizer, or none with ``frozen_vectors``. The options of every variant are:

    - ``rotation_beta``: running average of the squared size of the updates;
    - ``center``: rows have mean 0, from construction on, at unchanged norm;
    - ``per_neuron``: False treats the whole parameter as one neuron;
    - ``rotation_eps``: added to the root mean square of the updates;
    - ``rotational``: None (see above), True or False;
    - ``slow_portion``, ``fast_portion``, ``speed_factor``: the first ``slow_portion`` of each
      parameter's neurons turns ``speed_factor`` times slower, the next ``fast_portion`` as much
      faster (the imbalanced variant of Figure 16);
    - ``frozen_vectors``: what is not rotational never moves (Figure 4's "gains and biases frozen").

    State: that of the inner optimizer, and two numbers a neuron. A neuron whose gradient is not
    finite does not move and keeps its state (an element, where nothing rotates); a row of norm 0
    never moves, for a rotation keeps it 0, and a constant row is not centred.
    """

    coupled: ClassVar[bool] = False
    """Whether weight decay enters the gradient of what is not rotational (L2 regularisation)."""

    def _direction(
        self,
        weight: Tensor,
        gradient: Tensor,
        state: State,
        usable: Tensor,
        step: Any,
        group: Group,
    ) -> tuple[Tensor, State]:
        """Return the inner optimizer's direction, without decay, and its new state."""
        raise NotImplementedError

    def _rotation(self, group: Group) -> Any:
        """Return the expected rotation per step in radians."""
        raise NotImplementedError

    def _check(self, group: Group) -> None:
        for name in ("lr", "weight_decay", "rotation_eps"):
            check(name, group[name], low=0)
        check("rotation_beta", group["rotation_beta"], low=0, below=1)
        check("slow_portion", group["slow_portion"], low=0, high=1)
        check("fast_portion", group["fast_portion"], low=0, high=1)
        if group["slow_portion"] + group["fast_portion"] > 1:
            raise ValueError(
                "slow_portion and fast_portion must be at most 1 together, not "
                f"{group['slow_portion'] + group['fast_portion']!r}"
            )
        check("speed_factor", group["speed_factor"], low=1)
        if group["rotational"] and group["weight_decay"] == 0:
            raise ValueError(
                "rotational=True needs weight_decay above 0, which sets the rotation, not 0"
            )

    def is_rotational(self, parameter: Tensor, group: Group) -> bool:
        """Return whether ``parameter``, of ``group``, is turned."""
        chosen = group["rotational"]
        rotates = group["weight_decay"] != 0 if chosen is None else bool(chosen)
        axis, conv_groups = group["neuron_axis"], group["conv_groups"]
        return rotates and has_fan_in(parameter, axis=axis, conv_groups=conv_groups)

    def _split(self, parameter: Tensor, group: Group) -> Split:
        state = self.state.get(parameter, {})
        began = "step" in state  # and what it began as, it stays
        if not ("norm" in state if began else self.is_rotational(parameter, group)):
            return elements(parameter)
        if state["norm"].numel() == 1 if began else not group["per_neuron"]:
            return whole(parameter)
        return super()._split(parameter, group)

    def _moves(self, parameter: Tensor, group: Group) -> bool:
        return not group["frozen_vectors"] or self.is_rotational(parameter, group)

    @torch.no_grad()
    def add_param_group(self, param_group: Group) -> None:
        """Add a group; the rows of its rotational weights are centred at once."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            turns = parameter.requires_grad and self.is_rotational(parameter, group)
            if group["center"] and turns:
                self._constrain(parameter, group, rules.centred)

    def _start(self, parameter: Tensor, group: Group) -> State:
        inner = {name: zeros(parameter) for name in self.kept[2:]}
        split = self._split(parameter, group)
        if split.rows == parameter.numel():
            return inner
        square_norm = row_zeros(parameter, split)
        norm = rules.row_norm(split.to_rows(parameter).to(square_norm.dtype))
        return {"norm": norm.reshape(square_norm.shape), "square_norm": square_norm, **inner}

    def _rule(
        self, weight: Tensor, gradient: Tensor, state: State, step: Any, group: Group
    ) -> tuple[Tensor, State]:
        if "norm" not in state:
            return self._plain(weight, gradient, state, step, group)
        usable = gradient.square().isfinite().all(-1, keepdim=True)
        direction, changed = self._direction(weight, gradient, state, usable, step, group)
        speed = rules.speeds(
            weight.shape[1],
            slow_portion=group["slow_portion"],
            fast_portion=group["fast_portion"],
            speed_factor=group["speed_factor"],
            like=weight,
        )
        weight, square_norm = rules.rotate(
            weight,
            direction,
            state["square_norm"],
            usable,
            norm=state["norm"],
            step=step,
            rotation=self._rotation(group) * speed,
            rotation_beta=group["rotation_beta"],
            rotation_eps=group["rotation_eps"],
            center=group["center"],
        )
        return weight, {**changed, "square_norm": square_norm}

    def _plain(
        self, weight: Tensor, gradient: Tensor, state: State, step: Any, group: Group
    ) -> tuple[Tensor, State]:
        """Take a step of the inner optimizer."""
        usable = gradient.square().isfinite()
        lr, weight_decay = group["lr"], group["weight_decay"]
        if self.coupled:
            gradient, weight_decay = gradient + weight_decay * weight, 0.0
        direction, changed = self._direction(weight, gradient, state, usable, step, group)
        weight = rules.descend(weight, direction, usable, lr=lr, weight_decay=weight_decay)
        return weight, changed

    def _inner_numbers(self, group: Group) -> Sequence[Any]:
        """Return the inner optimizer's three numbers for the kernel, after lr and decay."""
        raise NotImplementedError

    def _numbers(self, group: Group) -> Sequence[Any]:
        turning = ("rotation_beta", "rotation_eps", "center")
        portions = ("slow_portion", "fast_portion", "speed_factor")
        return (
            group["lr"],
            group["weight_decay"],
            *self._inner_numbers(group),
            self._rotation(group),
            *(group[name] for name in turning + portions),
            False,  # whether elements take gradients that are not finite
        )


class RotationalAdam(RotationalOptimizer):
    """What the variants of Adam share: its moments, and AdamW's rotation."""

    kept = ("norm", "square_norm", "first", "second")

    def _check(self, group: Group) -> None:
        check_betas(group["betas"])
        check("eps", group["eps"], low=0)
        super()._check(group)

    def _direction(
        self,
        weight: Tensor,
        gradient: Tensor,
        state: State,
        usable: Tensor,
        step: Any,
        group: Group,
    ) -> tuple[Tensor, State]:
        decays = self.coupled and "norm" in state  # else it is in the gradient, or decoupled
        direction, first, second = rules.adam_direction(
            gradient,
            state["first"],
            state["second"],
            usable,
            step=step,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            squared=gradient + group["weight_decay"] * weight if decays else gradient,
        )
        return direction, {"first": first, "second": second}

    def _rotation(self, group: Group) -> Any:
        return rules.adamw_rotation(group["lr"], group["weight_decay"], group["betas"][0])

    def _inner_numbers(self, group: Group) -> Sequence[Any]:
        return *group["betas"], group["eps"]
