"""The losses and gradients of many trials as one program, mapped over their stacked tensors."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustlr.dropout import Dropout
from robustlr.errors import UserError
from robustlr.scale import Scale
from robustlr.task import Batch, GroupedPart, StackedPart, SupervisedTask
from robustlr.training import Training, autocast, batches, take_step, task_loss

COMPILE_STEPS = 2500
"""From this many steps, of all trials together, the time that compiling takes is won back."""

FULL_SHARE = 0.2
"""The share of a CPU's peak from which a model's own arithmetic takes the time, however it is run."""

MEASURED_CALLS = 3
"""How often steps together and alone are timed."""

MEMORY_SHARE = 0.7
"""How much of a GPU's free memory trials are planned to fill."""

RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.RReLU)
"""Layers that draw from torch's one generator, and so would draw otherwise beside other trials."""

Named = dict[str, Tensor]


class UnfusableError(UserError):
    """Trials are not trained as one program; the text says why."""


class _Objective(nn.Module):
    """A training loss as a module, so that its parameters can be given."""

    def __init__(self, task: SupervisedTask, model: nn.Module, scale: Scale) -> None:
        super().__init__()
        self.model = model
        self._task, self._scale = task, scale

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return task_loss(self._task, self.model, Batch(inputs, targets), self._scale)


class Program:
    """What trials like ``first`` have in common.

    Attributes:
        trained: the names of the parameters that have gradients.
        others: those of the other parameters and of the buffers.
        keys: those of the buffers that are keys of dropout layers, in the order of the layers.
        bytes: what a step of one trial takes of a GPU's memory; 0 on the CPU.
        width: how many trials it is compiled for; 0 if it is not.

    Raises:
        UnfusableError: such trials must be trained alone.
    """

    def __init__(self, first: Training, device: str) -> None:
        self._device = device
        self._model = deepcopy(first.model)
        _check(first, self._model)
        self._objective = _Objective(first.task, self._model, first.scale)
        self._mapped: Callable[..., Any] = vmap(grad_and_value(self._loss))
        self._compiled = self._mapped
        self.width = 0
        self._batch = next(batches(first.data.train, first.scale, first.seeds.order))
        if first.task.augment is not None:  # with chance that is no trial's
            noise = torch.Generator(device)
            self._batch = first.task.augment(self._batch, first.scale, noise)
        self.bytes = 0
        named = {n: p for n, p in self._objective.named_parameters() if p.requires_grad}
        used = torch.cuda.memory_allocated() if device == "cuda" else 0
        with autocast(device):
            loss = self._objective(*self._batch)
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        if device == "cuda":
            weights = sum(parameter.nbytes for parameter in named.values())
            self.bytes = torch.cuda.max_memory_allocated() - used + 4 * weights
        self.trained = [n for n, g in zip(named, gradients, strict=True) if g is not None]
        everything = dict(self._objective.named_parameters()) | dict(
            self._objective.named_buffers()
        )
        self.others = [name for name in everything if name not in self.trained]
        layers = [n for n, m in self._objective.named_modules() if isinstance(m, Dropout)]
        self.keys = [f"{name}.key" for name in layers]
        try:
            self.gradients(*self._copies(2))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what torch.func says of an operation that it cannot map
            raise UnfusableError(f"its loss cannot be mapped over trials: {error}") from error

    def tensor(self, model: nn.Module, name: str) -> Tensor:
        """Return a trial's own tensor of that name."""
        path, _, leaf = name.removeprefix("model.").rpartition(".")
        found: Tensor = getattr(model.get_submodule(path), leaf)
        return found

    def gradients(self, trained: Named, others: Named, batch: Batch) -> tuple[Named, Tensor]:
        """Return the gradients and losses of trials whose tensors are stacked, ``[trials, …]``."""
        # Scaled-dot-product attention by plain products: its faster forms cannot be mapped.
        with sdpa_kernel(SDPBackend.MATH), autocast(self._device):
            mapped = self._compiled if len(batch.targets) == self.width else self._mapped
            gradients, losses = mapped(trained, others, *batch)
        return gradients, losses

    def _loss(self, trained: Named, others: Named, inputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = functional_call(self._objective, (trained, others), (inputs, targets))
        return loss

    def fits(self, width: int) -> int:
        """Return how many of ``width`` trials fit into the memory that is free."""
        if not self.bytes:
            return width
        free, _ = torch.cuda.mem_get_info()
        return max(1, min(width, int(MEMORY_SHARE * free / self.bytes)))

    def compile(self, width: int, first: Training) -> None:
        """Compile the program for ``width`` trials, where that pays and was not done before."""
        varies = isinstance(first.data.train, GroupedPart)
        if self.width or width * first.scale.steps < COMPILE_STEPS or varies:
            return
        if self._device == "cuda" or self._share_of_peak() < FULL_SHARE:
            torch.compiler.reset()
            self._compiled, self.width = torch.compile(self._mapped), width

    def _share_of_peak(self) -> float:
        """Return the arithmetic of a trial's step alone, by the second, over that of a large product."""
        from torch.utils.flop_counter import FlopCounterMode

        def step() -> None:
            self._objective(*self._batch).backward()

        with FlopCounterMode(display=False) as counter:
            step()
        matrix = torch.ones(1024, 1024, device=self._device)
        peak = 2 * 1024**3 / _seconds(lambda: matrix @ matrix, self._device)
        return float(counter.get_total_flops()) / _seconds(step, self._device) / peak

    def is_faster(self, width: int, first: Training) -> bool:
        """Return whether a step of ``width`` trials takes less time together than alone."""
        given = self._copies(width)
        alone = deepcopy(self._model)
        optimizer = first.run.config.build_optimizer(alone)

        def one_by_one() -> None:
            for _ in range(width):
                take_step(first.task, alone, optimizer, self._batch, first.scale)

        together = _seconds(lambda: self.gradients(*given), self._device)
        return together < _seconds(one_by_one, self._device)

    def _copies(self, trials: int) -> tuple[Named, Named, Batch]:
        """Return what so many equal trials give ``gradients``."""

        def stacked(tensor: Tensor) -> Tensor:
            return torch.stack([tensor.detach()] * trials)

        trained, others = (
            {name: stacked(self.tensor(self._model, name)) for name in names}
            for names in (self.trained, self.others)
        )
        return trained, others, Batch(*map(stacked, self._batch))


_kept: dict[Any, Program] = {}


def program_of(first: Training, device: str) -> Program:
    """Return the program of trials like ``first``; the last one is kept, as compiling takes long.

    Raises:
        UnfusableError: such trials must be trained alone.
    """
    alike = replace(first.scale, steps=0, epochs=0, schedule="constant", warmup=0.0)
    key = (first.task.loss, first.task.model, first.task.augment, str(alike), device)
    if key not in _kept:
        _kept.clear()
        _kept[key] = Program(first, device)
    return _kept[key]


def _check(training: Training, model: nn.Module) -> None:
    """Refuse what cannot be trained together whatever the device."""
    part = training.data.train
    if training.scale.accumulated > 1:
        raise UnfusableError("its gradients are accumulated over pieces of a batch")
    if isinstance(part, GroupedPart) and not isinstance(part, StackedPart):
        raise UnfusableError("its batches differ in size, and its data cannot stack them")
    for module in model.modules():
        if isinstance(module, RANDOM) and getattr(module, "p", True):
            name = type(module).__name__
            raise UnfusableError(
                f"its {name} draws from torch's one generator: see robustlr.dropout"
            )


def _seconds(function: Callable[[], object], device: str) -> float:
    """Return the shortest time of some calls."""
    times = []
    for _ in range(MEASURED_CALLS):
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
