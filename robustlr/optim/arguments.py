"""Argument checks shared by the optimizer classes."""

import math
from numbers import Real
from typing import Any

from torch import Tensor


def check(
    name: str, value: Any, *, low: float, below: float = math.inf, high: float = math.inf
) -> None:
    """Raise a ValueError that names the argument, its value and the bound it breaks.

    A number must lie in [``low``, ``below``) and be at most ``high``; NaN never does.
    """
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ValueError(f"{name} must be a number, not {value!r}")
    if not (low <= float(number) <= high and float(number) < below):
        bound = f"at least {low:g}"
        bound += f" and below {below:g}" if math.isfinite(below) else ""
        bound += " and finite" if number == math.inf else ""
        bound += f" and at most {high:g}" if math.isfinite(high) else ""
        raise ValueError(f"{name} must be {bound}, not {value!r}")


def check_betas(betas: Any) -> None:
    """Raise a ValueError unless ``betas`` is two numbers in [0, 1)."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers, not {betas!r}")
    for index, beta in enumerate(betas):
        check(f"betas[{index}]", beta, low=0, below=1)
