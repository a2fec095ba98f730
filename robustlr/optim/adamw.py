"""Adam with decoupled weight decay."""

from torch.optim import AdamW

from robustlr.optim.entry import LR_GRID, Entry
from robustlr.space import Choices

ENTRY = Entry(
    optimizer=AdamW,
    summary="Adam with decoupled weight decay.",
    paper="Loshchilov and Hutter: Decoupled Weight Decay Regularization (ICLR 2019)",
    default={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01},
    default_source="torch.optim",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(0.0, 0.01, 0.1))},
    options={"fused": True},
)
