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
from robustlr.errors import UserError, say
from robustlr.scale import Scale
from robustlr.task import Batch, GroupedPart, StackedPart, SupervisedTask
from robustlr.training import Training, autocast, batches, take_step, task_loss

COMPILE_STEPS = 2500
"""From this many steps, of trials that begin together, the time that compiling takes is won back."""

FULL_SHARE = 0.2
"""The share of a CPU's peak from which a model's own arithmetic takes the time, however it is run."""

PROMISING = 0.8
"""From this gain, uncompiled, compiling can make trials faster together than alone."""

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
        self._asked = 0  # steps, of all trials
        self._gains: dict[tuple[int, int], float] = {}
        self._may_compile = not isinstance(first.data.train, GroupedPart)  # shapes that stay
        self.width = 0
        self._batch = next(batches(first.data.train, first.scale, first.seeds.order))
        if first.task.augment is not None:  # with chance that is no trial's
            noise = torch.Generator(device)
            self._batch = first.task.augment(self._batch, first.scale, noise)
        self.bytes = 0
        named = {n: p for n, p in self._objective.named_parameters() if p.requires_grad}
        with autocast(device):
            loss = self._objective(*self._batch)
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        self.trained = [n for n, g in zip(named, gradients, strict=True) if g is not None]
        everything = dict(self._objective.named_parameters()) | dict(
            self._objective.named_buffers()
        )
        self.others = [name for name in everything if name not in self.trained]
        layers = [n for n, m in self._objective.named_modules() if isinstance(m, Dropout)]
        self.keys = [f"{name}.key" for name in layers]
        used = 0
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            used = torch.cuda.memory_allocated()
        try:
            self.gradients(*self._copies(2))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what torch.func says of an operation that it cannot map
            raise UnfusableError(f"its loss cannot be mapped over trials: {error}") from error
        if device == "cuda":  # with a model, an optimizer's state and a copy for checkpoints
            weights = sum(parameter.nbytes for parameter in named.values())
            self.bytes = (torch.cuda.max_memory_allocated() - used) // 2 + 4 * weights

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

    def fits(self, trials: int) -> int:
        """Return how many of so many trials fit into the memory that is free."""
        if not self.bytes:
            return trials
        free, total = torch.cuda.mem_get_info()
        ours = torch.cuda.get_per_process_memory_fraction() * total
        free = min(free, int(ours) - torch.cuda.memory_reserved())
        return max(1, min(trials, int(MEMORY_SHARE * free / self.bytes)))

    def prepare(self, trials: int, first: Training, if_faster: bool) -> None:
        """Make ready for so many trials like ``first``; compile for them where that pays.

        Raises:
            UnfusableError: with ``if_faster``, that they are as fast alone.
        """
        if if_faster and trials == 1:
            raise UnfusableError("no other waits, or fits")
        if if_faster and self._gain(trials, first) < PROMISING:
            raise UnfusableError("they are as fast so on this device")
        self._compile(trials, first)
        if if_faster and self._gain(trials, first) < 1:
            raise UnfusableError("they are as fast so on this device")

    def _compile(self, trials: int, first: Training) -> None:
        """Compile for so many trials, again if they are many more than those before."""
        self._asked += trials * first.scale.steps
        if not self._may_compile or self._asked < COMPILE_STEPS or trials < 2 * self.width:
            return
        is_cuda = self._device == "cuda"
        if not is_cuda and self._share_of_peak() >= FULL_SHARE:
            self._may_compile = False
            return
        torch.compiler.reset()
        # On a GPU small kernels wait for their launches: a captured graph has one for all. (Not with
        # batch normalisation: torch captures nothing that changes its inputs.)
        mode = "reduce-overhead" if is_cuda else "default"
        self._compiled, self.width = torch.compile(self._mapped, mode=mode), trials
        try:
            self.gradients(*self._copies(trials))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # such as a machine without a C++ compiler
            self._compiled, self.width, self._may_compile = self._mapped, 0, False
            say(f"trials are trained together uncompiled: {_first_line(error)}")

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

    def _gain(self, trials: int, first: Training) -> float:
        """Return how many times as fast so many trials step together; it is measured once."""
        key = trials, self.width
        if key not in self._gains:
            given = self._copies(trials)
            alone = deepcopy(self._model)
            optimizer = first.run.config.build_optimizer(alone)

            def one_by_one() -> None:
                for _ in range(trials):
                    take_step(first.task, alone, optimizer, self._batch, first.scale)

            together = _seconds(lambda: self.gradients(*given), self._device)
            self._gains[key] = _seconds(one_by_one, self._device) / together
        return self._gains[key]

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
    task = first.task
    key = (task.loss, task.model, task.data, task.augment, str(alike), device)
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


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


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
