"""Marin's one-at-a-time runs as a tidy table; the data is no part of the project.

Where the data is looked for: see ``public_runs.py``.
"""

import numpy as np
import pandas as pd
import pytest

from tests.public_runs import FOLDER

MARIN = FOLDER / "marin" / "one_at_a_time_losses.csv"
WORST = float(np.log(128_256))
"""The loss in nats of a model that learnt nothing: every token of Llama 3's vocabulary alike."""

needs_marin = pytest.mark.skipif(not MARIN.exists(), reason=f"Marin's runs are not at {MARIN}")


def marin() -> pd.DataFrame:
    """Return Marin's runs of ten optimizers, each a base setting with one hyperparameter changed.

    A task is a model and a multiple of Chinchilla's tokens. ``warmup``, in steps, is a condition. All
    have one seed. A run without a loss diverged.
    """
    runs = pd.read_csv(MARIN, dtype={"value": str})
    base = runs.filter(like="base_").rename(columns=lambda name: name.removeprefix("base_"))
    settings = base.astype(object)
    for name in base:
        changed = runs["hp"] == name
        settings.loc[changed, name] = runs.loc[changed, "value"]
    settings = settings.replace({"True": 1.0, "False": 0.0, True: 1.0, False: 0.0})
    numeric = settings.apply(pd.to_numeric, errors="coerce")
    settings = numeric.where(numeric.notna(), settings).infer_objects()
    facts = pd.DataFrame(
        {
            "study": "marin",
            "task": runs["model"] + "-" + runs["chinchilla"].astype(str) + "x",
            "optimizer": runs["optimizer"],
            "trial": runs.groupby(["model", "chinchilla", "optimizer"]).cumcount(),
            "role": "design",
            "seed": 0,
            "value": runs["loss"],
            "metric": "validation loss",
            "direction": "minimize",
            "worst": WORST,
            "diverged": runs["loss"].isna(),
            "conditions": "warmup",
        }
    )
    return pd.concat([facts, settings.rename(columns={"learning_rate": "lr"})], axis=1)
