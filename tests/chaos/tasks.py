"""A real task of a fraction of a second, saved many times; workers import this module to find it.

What its data needs is imported here, before the first claim: faults shall meet trials that train.
"""

import time
from dataclasses import replace

import sklearn.datasets
import sklearn.model_selection  # noqa: F401
import torch

from robustlr.scale import Scale
from robustlr.task import Batch
from robustlr.tasks.digits import digits_mlp

STEPS, STEP_SECONDS = 60, 0.004


def _slowly(batch: Batch, scale: Scale, generator: torch.Generator) -> Batch:
    """Take as long on a fast machine, where trials would end before a fault could meet them."""
    time.sleep(STEP_SECONDS)
    return batch


brief = replace(
    digits_mlp,
    name="brief",
    scales={
        "small": replace(digits_mlp.scales["small"], steps=STEPS, batch_size=32, evaluations=6)
    },
    augment=_slowly,
)
