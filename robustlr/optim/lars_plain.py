"""LARS without momentum, decay and trust coefficient, as in Figure 2 of the Fromage paper."""

from robustlr.optim.entry import LR_GRID, Entry
from robustlr.optim.lars import LARS

ENTRY = Entry(
    optimizer=LARS,
    summary="Steps of lr times each parameter's norm, and nothing else.",
    paper="You, Gitman, Ginsburg: Large Batch Training of Convolutional Networks (2017), in the "
    "form of On the distance between two neural networks (NeurIPS 2020), Figure 2",
    default={"lr": 0.01},
    default_source="the run of Figure 2 of On the distance between two neural networks",
    space={"lr": LR_GRID},
    options={"momentum": 0.0, "trust_coefficient": 1.0, "eps": 0.0, "always_adapt": True},
)
