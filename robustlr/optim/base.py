"""What the optimizer classes share: the step over all parameters."""

from typing import Any, overload

import torch
from torch.optim.optimizer import Optimizer


class ParameterwiseOptimizer(Optimizer):
    """An optimizer that updates each parameter by itself, in ``_update``."""

    def _update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
    ) -> None:
        """Change ``parameter`` and its state in place."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Any) -> float: ...
    @torch.no_grad()
    def step(self, closure: Any = None) -> float | None:
        """Take one step; ``closure`` recomputes the loss and its gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss
