"""Stochastic gradient descent with momentum 0.9."""

from torch.optim import SGD

from robustlr.optim.entry import LR_GRID, Entry
from robustlr.space import Choices

ENTRY = Entry(
    optimizer=SGD,
    summary="Stochastic gradient descent with momentum 0.9.",
    paper="Polyak: Some methods of speeding up the convergence of iteration methods (1964)",
    default={"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0},
    default_source="torch.optim, which has no momentum; 0.9 is the usual choice",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(0.0, 1e-4, 1e-3))},
    options={"fused": True},
)
