"""The one training loop of supervised tasks."""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.random import SeedSequence
from torch import Tensor

from robustlr.checkpoint import Run
from robustlr.dropout import Keys
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
    Splits,
    SupervisedTask,
)

COMPILE_STEPS = 2000
"""From this many steps on a GPU the time that compiling takes is won back."""


class Training:
    """One run of a supervised task: its parts, and what is done around its steps.

    A loop takes each of ``batches``, steps, adds its loss to ``losses`` and calls ``settle``; then
    ``outcome`` is what the run gives back. ``data`` is the task's, where it is loaded already.
    """

    def __init__(
        self,
        task: SupervisedTask,
        config: Config,
        report: Report,
        device: str,
        folder: Path | None,
        data: Splits[Any] | None = None,
    ) -> None:
        self.seeds = Seeds.of(config.seed)
        self.task, scale = task.at(config.scale), task.scale_of(config)
        self.data = data or task.data(scale, device)
        self.scale = scale.sized(steps_an_epoch(self.data.train, scale))
        self._tuned_on = getattr(self.data, scale.part)
        self._interval = math.ceil(self.scale.steps / scale.evaluations)
        torch.manual_seed(self.seeds.initialisation)
        self.model = place(self.task.model(self.scale), device)
        # Before the optimizer is made: Nero and the rotational variants change weights at construction.
        self._initial = self._evaluate(self._tuned_on)
        self.gradient_clip = config.hyperparameters.get("gradient_clip", scale.gradient_clip)
        self.optimizer = config.build_optimizer(self.model, scale.gradient_clip)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.losses = Losses(device)
        self.keys = Keys(self.model, device)
        torch.manual_seed(self.seeds.noise)
        self.noise = torch.Generator(device).manual_seed(self.seeds.noise)
        parts = (self.model, self.optimizer, self.losses)
        self.run = Run(config, self.scale, report, folder, parts, self.noise)
        self.step = self.run.resume()
        self.model.train()

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the steps that are left, augmented."""
        for batch in batches(self.data.train, self.scale, self.seeds.order, self.step):
            yield self.augmented(batch)

    def augmented(self, batch: Batch) -> Batch:
        """Return a training batch as the task changes it."""
        if self.task.augment is None:
            return batch
        return self.task.augment(batch, self.scale, self.noise)

    def begin_step(self) -> None:
        """Set what changes from step to step: learning rates and the keys of dropout."""
        factor = self.scale.lr_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.keys.set(self.seeds.noise, self.step)

    def settle(self) -> Outcome | None:
        """Count a step; evaluate, report and save where that is due; return the outcome if it diverged.

        Raises:
            StopRequested: the process shall stop.
        """
        self.step += 1
        step, scale = self.step, self.scale
        if step % self._interval == 0 or step == scale.steps:
            bound = self.task.loss_bound(scale) if step == scale.steps else None
            if self.losses.diverged(bound):
                self.run.report(step, self.task.worst)
                return self.task.diverged(initial=self._initial, steps=step)
            self.run.report(step, self.task.capped(self._evaluate(self._tuned_on)))
        self.run.save_if_due(step)
        return None

    def outcome(self) -> Outcome:
        """Return the outcome of a run whose steps are done."""
        test_value = self.task.capped(self._evaluate(self.data.test))
        if self.task.samples is not None:
            self.run.write("samples.txt", self._write_samples)
        return Outcome(
            value=self.run.last,
            initial=self._initial,
            test_value=test_value,
            steps=self.scale.steps,
        )

    def _evaluate(self, part: Part) -> float:
        with _evaluating(self.model):
            return self.task.evaluate(self.model, part, self.scale)

    def _write_samples(self, file: Path) -> None:
        assert self.task.samples is not None
        with _evaluating(self.model):
            file.write_text(self.task.samples(self.model, self.data.test), encoding="utf-8")


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
    training = Training(task, config, report, device, folder)
    forward = compiled(training.model, device, training.scale.steps)
    for batch in training.batches():
        training.begin_step()
        loss = take_step(training.task, forward, training.optimizer, batch, training.scale)
        training.losses.add(loss)
        if diverged := training.settle():
            return diverged
    return training.outcome()


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
            loss = task_loss(task, model, piece, scale)
        yield loss * (len(piece) / len(batch))


def task_loss(task: SupervisedTask, model: torch.nn.Module, batch: Batch, scale: Scale) -> Tensor:
    """Return what a step goes down on: the task's loss, and the pull of gains toward one."""
    loss = task.loss(model, batch, scale)
    if scale.gain_penalty:
        loss = loss + scale.gain_penalty * gain_penalty(model).to(loss.device)
    return loss


class Losses:
    """Whether the losses so far were finite, and their mean since the last look, on the device.

    Those of trials that train together are views of tensors ``[trials]``: see ``stacked``.
    """

    def __init__(self, device: str) -> None:
        self._finite = torch.tensor(True, device=device)
        self._sum = torch.zeros((), device=device)
        self._count = 0
        self._each: Sequence[Losses] = [self]

    def add(self, loss: Tensor) -> None:
        """Take one step's loss."""
        self._sum += loss
        self._finite &= loss.isfinite()
        for own in self._each:
            own._count += 1

    @classmethod
    def stacked(cls, each: "Sequence[Losses]") -> "Losses":
        """Return the losses of several trials as one, to which theirs are added together."""
        stacked = cls(str(each[0]._sum.device))
        stacked._finite = torch.stack([own._finite for own in each])
        stacked._sum = torch.stack([own._sum for own in each])
        stacked._each = each
        for own, finite, total in zip(each, stacked._finite, stacked._sum, strict=True):
            own._finite, own._sum = finite, total
        return stacked

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
    indices = order(data, scale, seed, first)
    if isinstance(data, Batch):
        yield from (data.take(index) for index in indices)
        return
    with ThreadPoolExecutor(1) as reader:
        numbered = enumerate(indices, start=first)
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


def order(data: Part, scale: Scale, seed: int, first: int) -> Iterator[Tensor]:
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


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Have the model in evaluation mode, without gradients."""
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)
