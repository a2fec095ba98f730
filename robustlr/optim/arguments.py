"""Argument checks shared by the optimizer classes."""

import math


def check(name: str, value: float, *, low: float, below: float = math.inf) -> None:
    """Raise a ValueError that names the argument, its value and the bound it breaks."""
    if not low <= value < below:
        bound = f"at least {low:g}" + (f" and below {below:g}" if math.isfinite(below) else "")
        raise ValueError(f"{name} must be {bound}, not {value!r}")
