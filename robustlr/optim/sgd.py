"""Stochastic gradient descent without momentum."""

from torch.optim import SGD

from robustlr.optim.entry import LR_GRID, Entry

ENTRY = Entry(
    optimizer=SGD,
    summary="Stochastic gradient descent without momentum.",
    paper="Robbins and Monro: A Stochastic Approximation Method (1951)",
    default={"lr": 1e-3},
    default_source="torch.optim",
    space={"lr": LR_GRID},
    options={"fused": True},
)
