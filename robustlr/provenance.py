"""What a trial records so that it can be run again: versions, device, commit."""

import os
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@cache
def provenance(device: str) -> dict[str, Any]:
    """Return what is needed to run a trial again, beyond its configuration."""
    packages = (
        "robustlr",
        "torch",
        "optuna",
        "numpy",
        "tokenizers",
        "sacrebleu",
        "stable-baselines3",
        "gymnasium",
        "ale-py",
    )
    return {
        "device": _device_name(device),
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "python": ".".join(map(str, sys.version_info[:3])),
        "commit": _commit(),
        "versions": {package: _version(package) for package in packages},
    }


def _device_name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the git commit of the working directory, ``+`` appended if files differ from it."""
    git = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
