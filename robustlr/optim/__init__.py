"""Optimizers: drop-in ``torch.optim.Optimizer`` classes, one file each.

The folder is the list: ``from robustlr.optim import RVAdamW`` reads ``rv_adamw.py``. Each file holds
the class and its ``ENTRY`` (paper, out-of-the-box setting and its source, search space).
"""

import importlib
import pkgutil
from typing import Any


def _modules() -> dict[str, str]:
    return {name.replace("_", ""): name for _, name, _ in pkgutil.iter_modules(__path__)}


def __getattr__(name: str) -> Any:
    module = _modules().get(name.lower())
    if module is not None:
        found = getattr(importlib.import_module(f"{__name__}.{module}"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the classes, for completion; imports them all."""
    found = (importlib.import_module(f"{__name__}.{module}") for module in _modules().values())
    classes = (module.ENTRY.optimizer for module in found if hasattr(module, "ENTRY"))
    return sorted({c.__name__ for c in classes if c.__module__.startswith(__name__)})
