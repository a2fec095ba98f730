"""Adam with L2 regularisation, searched over its weight decay."""

from torch.optim import Adam

from robustlr.optim.entry import LR_GRID, Entry
from robustlr.space import Choices

ENTRY = Entry(
    optimizer=Adam,
    summary="Adaptive moments with L2 regularisation, whose decay is searched too.",
    paper="Kingma and Ba: Adam (ICLR 2015), as compared in Rotational Equilibrium (ICML 2024)",
    default={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 1.25e-4},
    default_source="torch.optim, with the best decay of Rotational Equilibrium, Figure 6",
    space={"lr": LR_GRID, "weight_decay": Choices(values=(1e-5, 1e-4, 1e-3))},
    options={"fused": True},
)
