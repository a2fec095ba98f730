"""Public runs of others as tidy tables; the data is no part of the project.

``ROBUSTLR_PUBLIC_RUNS`` names its folder; by default it is ``shared/data`` beside the checkout.
"""

import os
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest

FOLDER = Path(
    os.environ.get("ROBUSTLR_PUBLIC_RUNS") or Path(__file__).parents[2] / "shared" / "data"
)
DEEPOBS = FOLDER / "deepobs" / "final_metrics.csv"

needs_deepobs = pytest.mark.skipif(
    not DEEPOBS.exists(), reason=f"the DeepOBS baselines are not at {DEEPOBS}"
)


def deepobs(score: Literal["training loss", "test"] = "training loss") -> pd.DataFrame:
    """Return the runs of the DeepOBS baselines as a tidy table.

    A grid of 36 learning rates on seed 42 is the design; nine more seeds at the chosen learning rate
    are ``confirm`` trials. ``score`` is the final training loss, whose worst value is the problem's
    median initial training loss; or the final test accuracy in percent, on the problems without one
    the test loss. The worst accuracy is the median of the runs' lowest: that of an untrained model.
    """
    runs = pd.read_csv(DEEPOBS)
    losses = "train_losses" if score == "training loss" else "test_losses"
    tidy = pd.DataFrame(
        {
            "study": "deepobs",
            "task": runs["problem"],
            "optimizer": runs["optimizer"].str.removesuffix("Optimizer"),
            "trial": runs.groupby(["problem", "optimizer"]).cumcount(),
            "role": runs["seed"].map(lambda seed: "design" if seed == 42 else "confirm"),
            "seed": runs["seed"],
            "value": runs[f"final_{losses}"],
            "metric": losses.replace("_", "ing ", 1).replace("testing", "test")[:-2],
            "direction": "minimize",
            "initial": runs[f"initial_{losses}"],
            "diverged": ~runs[f"final_{losses}"].abs().lt(float("inf")),
            "lr": runs["lr"],
        }
    )
    if score == "test":
        has = runs["final_test_accuracies"].notna()
        tidy.loc[has, "value"] = 100 * runs["final_test_accuracies"]
        tidy.loc[has, "initial"] = 100 * runs["min_test_accuracies"]
        tidy.loc[has, ["metric", "direction"]] = ["test accuracy (%)", "maximize"]
    tidy["worst"] = tidy.groupby("task")["initial"].transform("median")
    return tidy
