"""How long a step of each optimizer takes, side by side with torch's AdamW and SGD.

    python benchmarks/optimizer_step.py [--device cuda] [--threads N] [--models resnet18 …]

Every contender takes steps on the same weights and gradients in one process, one step of each in
turn and in random order, so that machine and caches disturb all alike; figures are medians over the
rounds. ``passes`` is how often a step must read or write an array of the model's size; with it,
``share_of_copy`` is the step's bandwidth relative to that of a plain copy measured in the same
rounds (above 1 where reading is faster than writing). Prints a table and writes it to
``benchmarks/results/`` with the machine and versions.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from robustlr.optim import (
    LAMB,
    LARS,
    RVSGD,
    Fromage,
    Lion,
    Madam,
    Nero,
    RVAdamL2,
    RVAdamW,
    RVLion,
)

Shape = tuple[int, ...]

# How often each step must pass over memory: weights and gradients read, weights written, and state
CONTENDERS: dict[str, tuple[int, Callable[..., optim.Optimizer]]] = {
    "AdamW fused": (7, partial(optim.AdamW, fused=True)),
    "AdamW foreach": (7, partial(optim.AdamW, foreach=True)),
    "AdamW for-loop": (7, partial(optim.AdamW, foreach=False)),
    "SGD fused": (5, partial(optim.SGD, momentum=0.9, fused=True)),
    "SGD foreach": (5, partial(optim.SGD, momentum=0.9, foreach=True)),
    "SGD for-loop": (5, partial(optim.SGD, momentum=0.9, foreach=False)),
    "Nero": (3, Nero),
    "Fromage": (3, Fromage),
    "Fromage p_bound": (3, partial(Fromage, p_bound=1.0)),
    "Madam": (5, Madam),
    "Madam constrained": (5, partial(Madam, center=True, normalize=True)),
    "LAMB": (7, LAMB),
    "LAMB constrained": (7, partial(LAMB, center=True, normalize=True)),
    "LARS": (5, partial(LARS, weight_decay=5e-4)),
    "LARS plain": (
        3,
        partial(LARS, momentum=0.0, trust_coefficient=1.0, eps=0.0, always_adapt=True),
    ),
    "Lion": (5, Lion),
    "RVSGD": (5, partial(RVSGD, momentum=0.9, weight_decay=5e-4)),
    "RVAdamW": (7, RVAdamW),
    "RVLion": (5, partial(RVLion, weight_decay=0.1)),
    "RVAdamL2": (7, partial(RVAdamL2, weight_decay=1e-2)),
}


def resnet18() -> list[Shape]:
    """Return the 62 shapes of the CIFAR ResNet-18 (11,173,962 parameters)."""
    shapes: list[Shape] = [(64, 3, 3, 3), (64,), (64,)]
    inputs = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(width, inputs, 3, 3), (width,), (width,)]
            shapes += [(width, width, 3, 3), (width,), (width,)]
            if block == 0 and inputs != width:
                shapes += [(width, inputs, 1, 1), (width,), (width,)]
            inputs = width
    return [*shapes, (10, 512), (10,)]


def gpt2() -> list[Shape]:
    """Return the 148 shapes of GPT2-124M, embedding and output shared."""
    layer: list[Shape] = [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)]
    layer += [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
    return [(50257, 768), (1024, 768), *layer * 12, (768,), (768,)]


def mlp100() -> list[Shape]:
    """Return the 200 shapes of the Nero paper's 100-layer MLP."""
    return [*[(784, 784), (784,)] * 99, (10, 784), (10,)]


MODELS = {"resnet18": resnet18, "gpt2": gpt2, "mlp100": mlp100}


def measure(shapes: list[Shape], device: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each contender, and one for a copy of the model's weights."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 0.01
    numbers = sum(parameter.numel() for parameter in parameters)
    optimizers = {name: make(parameters, lr=1e-5) for name, (_, make) in CONTENDERS.items()}
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    steps: dict[str, Callable[[], Any]] = {
        "copy": lambda: torch.mul(source, 1.0, out=target)
    }  # copy_ takes one thread
    steps |= {name: optimizer.step for name, optimizer in optimizers.items()}
    order = random.Random(0)  # what runs before leaves the caches as it likes: each has its turn
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 3):
        for name, step in order.sample(list(steps.items()), len(steps)):
            taken = _timed(step, device)
            if round_ >= 3:  # the first rounds make state and compile
                seconds[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    copy_bandwidth = 8 * numbers / medians["copy"]
    rows = []
    for name, median in medians.items():
        passes = CONTENDERS[name][0] if name in CONTENDERS else 2
        moved = 4 * passes * numbers
        rows.append(
            {
                "optimizer": name,
                "milliseconds": 1e3 * median,
                "of_adamw_fused": median / medians["AdamW fused"],
                "passes": passes,
                "megabytes": moved / 1e6,
                "share_of_copy": moved / median / copy_bandwidth,
            }
        )
    return rows


def _timed(step: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def machine(device: str) -> dict[str, Any]:
    """Return what the figures were taken on."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"machine": machine(options.device), "models": {}}
    for model in options.models:
        rows = measure(MODELS[model](), options.device, options.rounds)
        results["models"][model] = rows
        print(f"\n{model}")
        for row in rows:
            print(
                f"{row['optimizer']:18} {row['milliseconds']:9.3f} ms "
                f"{row['of_adamw_fused']:6.2f} of fused AdamW {row['passes']:3} passes "
                f"{row['share_of_copy']:6.2f} of copy bandwidth"
            )
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"optimizer_step-{options.device}-{options.threads}.json"
    (options.out / name).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
