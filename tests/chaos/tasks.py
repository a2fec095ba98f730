"""A real task of a fraction of a second, saved many times; workers import this module to find it.

What its data needs is imported here, before the first claim: faults shall meet trials that train.
"""

from dataclasses import replace

import sklearn.datasets
import sklearn.model_selection  # noqa: F401

from robustlr.tasks.digits import digits_mlp

brief = replace(
    digits_mlp,
    name="brief",
    scales={"small": replace(digits_mlp.scales["small"], steps=60, batch_size=32, evaluations=6)},
)
