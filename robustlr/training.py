"""The one training loop of supervised tasks."""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.random import SeedSequence
from torch import Tensor

from robustlr.checkpoint import Run
from robustlr.optim.layers import gain_penalty
from robustlr.scale import Scale
from robustlr.task import (
    Batch,
    Config,
    GroupedPart,
    Outcome,
    Part,
    Report,
    Seeds,
    SupervisedTask,
)

COMPILE_STEPS = 2000
"""From this many steps on a GPU the time that compiling takes is won back."""


def train(
    task: SupervisedTask,
    config: Config,
    report: Report,
    device: str,
    folder: Path | None = None,
) -> Outcome:
    """Train ``config`` once and return its final validation and test metric.

    The same config gives the same outcome, bit for bit, on one CPU thread, also when it was killed
    and goes on from the checkpoint in ``folder``. On a GPU the forward pass runs in bfloat16, and
    nothing is read back from the device between evaluations.
    """
    seeds = Seeds.of(config.seed)
    task, scale = task.at(config.scale), task.scale_of(config)
    data = task.data(scale, device)
    scale = scale.sized(steps_an_epoch(data.train, scale))
    tuned_on = getattr(data, scale.part)
    torch.manual_seed(seeds.initialisation)
    model = place(task.model(scale), device)
    # Before the optimizer is made: Nero and the rotational variants change weights at construction.
    initial = _evaluate(task, model, tuned_on, scale)
    optimizer = config.build_optimizer(model, scale.gradient_clip)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale.lr_factor)
    losses = Losses(device)
    torch.manual_seed(seeds.noise)
    noise = torch.Generator(device).manual_seed(seeds.noise)
    run = Run(config, scale, report, folder, (model, optimizer, schedule, losses), noise)
    first = run.resume()
    forward = compiled(model, device, scale.steps)
    interval = math.ceil(scale.steps / scale.evaluations)
    model.train()
    for step, batch in enumerate(batches(data.train, scale, seeds.order, first), start=first + 1):
        if task.augment is not None:
            batch = task.augment(batch, scale, noise)
        losses.add(take_step(task, forward, optimizer, batch, scale))
        schedule.step()
        if step % interval == 0 or step == scale.steps:
            if losses.diverged(task.loss_bound(scale) if step == scale.steps else None):
                run.report(step, task.worst)
                return task.diverged(initial=initial, steps=step)
            run.report(step, task.capped(_evaluate(task, model, tuned_on, scale)))
        run.save_if_due(step)
    test_value = task.capped(_evaluate(task, model, data.test, scale))
    if task.samples is not None:
        run.write("samples.txt", partial(_write_samples, task, model, data.test))
    return Outcome(value=run.last, initial=initial, test_value=test_value, steps=scale.steps)


def take_step(
    task: SupervisedTask,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    scale: Scale,
) -> Tensor:
    """Take one optimizer step on a batch; return its loss."""
    return descend(optimizer, _losses(task, model, batch, scale))


def descend(optimizer: torch.optim.Optimizer, losses: Iterable[Tensor]) -> Tensor:
    """Take an optimizer step down the gradient of a sum of losses, made one by one; return it."""
    optimizer.zero_grad(set_to_none=True)
    values = []
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
        values.append(loss.detach())
    optimizer.step()
    return torch.stack(values).sum()


def _losses(
    task: SupervisedTask, model: torch.nn.Module, batch: Batch, scale: Scale
) -> Iterator[Tensor]:
    """Yield what each of the pieces in which a batch is computed adds to its loss."""
    inputs, targets = (tensor.chunk(scale.accumulated) for tensor in batch)
    for piece in map(Batch, inputs, targets):
        with autocast(batch.targets.device.type):
            loss = task.loss(model, piece, scale)
            if scale.gain_penalty:
                loss = loss + scale.gain_penalty * gain_penalty(model).to(loss.device)
        yield loss * (len(piece) / len(batch))


class Losses:
    """Whether the losses so far were finite, and their mean since the last look, on the device."""

    def __init__(self, device: str) -> None:
        self._finite = torch.tensor(True, device=device)
        self._sum = torch.zeros((), device=device)
        self._count = 0

    def add(self, loss: Tensor) -> None:
        """Take one step's loss."""
        self._sum += loss
        self._finite &= loss.isfinite()
        self._count += 1

    def diverged(self, bound: float | None) -> bool:
        """Return whether a loss was not finite, or their mean is above ``bound``; start a new mean."""
        too_high = bound is not None and self._sum.item() / max(1, self._count) > bound
        self._sum.zero_()
        self._count = 0
        return too_high or not self._finite.item()

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"finite": self._finite, "sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._finite.copy_(state["finite"])
        self._sum.copy_(state["sum"])
        self._count = state["count"]


def place(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """Return the model on the device, on a GPU in the memory layout that its convolutions want."""
    if device == "cpu":
        return model
    torch.set_float32_matmul_precision("high")
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def compiled(model: torch.nn.Module, device: str, steps: int) -> torch.nn.Module:
    """Return the model for training steps, compiled where that pays."""
    if device == "cpu" or steps < COMPILE_STEPS:
        return model
    # Trials before this one have used up the number of graphs that torch compiles for one function.
    torch.compiler.reset()
    return torch.compile(model)  # type: ignore[return-value]


def autocast(device: str) -> torch.autocast:
    """Return the context of a forward pass: bfloat16 on a GPU."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu")


def batches(data: Part, scale: Scale, seed: int, first: int = 0) -> Iterator[Batch]:
    """Yield the training batches after ``first`` steps, each of them decided by ``seed`` alone.

    What must be read from files is read while the step before trains.
    """
    order = _order(data, scale, seed, first)
    if isinstance(data, Batch):
        yield from (data.take(index) for index in order)
        return
    with ThreadPoolExecutor(1) as reader:
        numbered = enumerate(order, start=first)
        waiting = [
            reader.submit(data.take, index, _mixed(seed, step))
            for step, index in (next(numbered) for _ in range(min(2, scale.steps - first)))
        ]
        while waiting:
            batch = waiting.pop(0).result()
            for step, index in numbered:
                waiting.append(reader.submit(data.take, index, _mixed(seed, step)))
                break
            yield batch


def steps_an_epoch(data: Part, scale: Scale) -> float:
    """Return the number of training steps in which each example is seen once."""
    if isinstance(data, GroupedPart):
        return len(data.groups(scale.batch_size, seed=0))
    return len(data) / scale.batch_size


def _order(data: Part, scale: Scale, seed: int, first: int) -> Iterator[Tensor]:
    """Yield the examples of every step after ``first``, ``[batch_size]``, on the data's device.

    The examples are shuffled anew for every epoch; a batch can span two, so that each has its full
    size, unless the data says what makes a batch.
    """
    if isinstance(data, GroupedPart):
        yield from _grouped_order(data, scale, seed, first)
        return
    epoch, skipped = divmod(first * scale.batch_size, len(data))
    waiting = _shuffled(data, seed, epoch)[skipped:]
    for _ in range(first, scale.steps):
        while len(waiting) < scale.batch_size:
            epoch += 1
            waiting = torch.cat([waiting, _shuffled(data, seed, epoch)])
        yield waiting[: scale.batch_size]
        waiting = waiting[scale.batch_size :]


def _grouped_order(data: GroupedPart, scale: Scale, seed: int, first: int) -> Iterator[Tensor]:
    """Yield the examples of every step after ``first``, ``[n]``, in the data's own batches."""
    length = int(steps_an_epoch(data, scale))
    for epoch in range(first // length, math.ceil(scale.steps / length)):
        groups = data.groups(scale.batch_size, _mixed(seed, epoch))
        start = epoch * length
        yield from groups[max(0, first - start) : scale.steps - start]


def _shuffled(data: Part, seed: int, epoch: int) -> Tensor:
    """Return an epoch's order; drawn on the CPU, so that every device sees the same batches.

    It stays there for parts that are read: reading must not wait for the device.
    """
    generator = torch.Generator().manual_seed(_mixed(seed, epoch))
    order = torch.randperm(len(data), generator=generator)
    return order.to(data.targets.device) if isinstance(data, Batch) else order


def _mixed(seed: int, number: int) -> int:
    """Return a seed of its own for each number."""
    return int(SeedSequence((seed, number)).generate_state(1)[0])


def _evaluate(task: SupervisedTask, model: torch.nn.Module, part: Part, scale: Scale) -> float:
    with _evaluating(model):
        return task.evaluate(model, part, scale)


def _write_samples(task: SupervisedTask, model: torch.nn.Module, part: Part, file: Path) -> None:
    assert task.samples is not None
    with _evaluating(model):
        file.write_text(task.samples(model, part), encoding="utf-8")


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Have the model in evaluation mode, without gradients."""
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)
