"""What the benchmarks of training steps share: clocks, and the file of figures."""

import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Parts = Mapping[str, Callable[[], object]]
"""What is timed, by name."""


def seconds(run: Callable[[], object], device: str) -> float:
    """Return how long a call takes, the device's work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def time_rounds(parts: Parts, device: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each part takes in each round, in which they run in random order."""
    times: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(rounds):
        for part in random.sample(list(parts), len(parts)):
            times[part].append(seconds(parts[part], device))
    return times


def show(row: Mapping[str, Any]) -> None:
    """Print a row of figures."""
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()))


def machine(device: str) -> str:
    """Return the name of what the figures are taken on."""
    return torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "cpu"


def write(name: str, device: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Write rows to ``results/NAME-DEVICE.json``, with the machine, versions and further facts."""
    label = device if device != "cpu" else f"cpu-{os.cpu_count()}"
    file = Path(__file__).parent / "results" / f"{name}-{label}.json"
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    figures = {"machine": machine(device), **versions, **facts, "rows": rows}
    file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"written: {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")
