"""Adaptive moments with L2 regularisation."""

from torch.optim import Adam

from robustlr.optim.entry import LR_GRID, Entry

ENTRY = Entry(
    optimizer=Adam,
    summary="Adaptive moments with L2 regularisation.",
    paper="Kingma and Ba: Adam (ICLR 2015)",
    default={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0},
    default_source="torch.optim, as in the paper",
    space={"lr": LR_GRID},
    options={"fused": True},
)
