"""How much of a training step of the image tasks goes to data, and how long an epoch takes.

    python benchmarks/vision_step.py [--device cuda] [--tasks cifar10-resnet18 …] [--epoch]

Each task at paper scale, Nero, made-up images of the true number, shape and type. A round times, in
random order, the data's part of a step (picking the batch, augmenting it), a training step on a
batch that is ready, and both; figures are medians over the rounds. ``data_share`` is the first over
the sum of the first two. ``epoch_seconds`` is a whole epoch if ``--epoch`` is given, else the time of
both times the steps of one. On a CPU the batch is smaller than the published one (``batch_size``
says), which makes data's share look no smaller. Prints a table and writes it to
``benchmarks/results/``.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timing import seconds, show, time_rounds, write

from robustlr.registry import load_task
from robustlr.scale import Scale
from robustlr.task import Batch, Config, SupervisedTask
from robustlr.tasks.data.images import DATA_SETS
from robustlr.training import batches, compiled, place, steps_an_epoch, take_step

TASKS = ("cifar10-resnet18", "cifar10-vgg11", "cifar10-resnet20", "fashion-cnn", "mnist-mlp100")


def made_up(name: str, device: str) -> Batch:
    """Return as many random images as the data set trains on, uint8, on the device."""
    facts = DATA_SETS[name]
    shape = (facts.train, facts.channels, facts.size, facts.size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    return Batch(images, torch.randint(facts.classes, (facts.train,), device=device))


def measure(name: str, device: str, rounds: int, batch_size: int, epoch: bool) -> dict[str, Any]:
    """Return one task's figures."""
    task = load_task(name)
    assert isinstance(task, SupervisedTask)
    scale = task.scales["paper"]
    scale = replace(scale, batch_size=min(batch_size, scale.batch_size))
    data = made_up(scale.data, device)
    scale = scale.sized(steps_an_epoch(data, scale))
    model = place(task.model(scale), device)
    config = Config(task=name, optimizer="nero", hyperparameters={"lr": 0.01}, seed=0)
    optimizer = config.build_optimizer(model)
    forward = compiled(model, device, scale.steps)
    noise = torch.Generator(device).manual_seed(0)
    stream = batches(data, scale, 0)
    ready = augmented(task, scale, stream, noise)
    step = partial(take_step, task, forward, optimizer)
    parts: dict[str, Callable[[], object]] = {
        "data": lambda: augmented(task, scale, stream, noise),
        "train": lambda: step(ready, scale),
        "both": lambda: step(augmented(task, scale, stream, noise), scale),
    }
    for part in parts.values():  # compile, and fill caches
        part()
        part()
    times = time_rounds(parts, device, rounds)
    median = {part: statistics.median(values) for part, values in times.items()}
    steps = round(len(data) / scale.batch_size)
    whole = median["both"] * steps
    if epoch:
        whole = seconds(lambda: [parts["both"]() for _ in range(steps)], device)
    return {
        "task": name,
        "batch_size": scale.batch_size,
        "data_ms": 1e3 * median["data"],
        "train_ms": 1e3 * median["train"],
        "both_ms": 1e3 * median["both"],
        "data_share": median["data"] / (median["data"] + median["train"]),
        "epoch_seconds": whole,
    }


def augmented(
    task: SupervisedTask, scale: Scale, stream: Iterator[Batch], noise: torch.Generator
) -> Batch:
    """Return the next training batch."""
    batch = next(stream)
    return batch if task.augment is None else task.augment(batch, scale, noise)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=10**6, help="at most this many examples")
    parser.add_argument("--epoch", action="store_true", help="time a whole epoch")
    arguments = parser.parse_args()
    device = arguments.device
    rows = []
    for name in arguments.tasks:
        row = measure(name, device, arguments.rounds, arguments.batch_size, arguments.epoch)
        rows.append(row)
        show(row)
    write("vision_step", device, rows)


if __name__ == "__main__":
    main()
