"""Many trials of a supervised task trained as one program.

Parameters, buffers and batches of K trials are stacked along a leading trial axis, ``[K, …]``; the loss
and its gradients are mapped over it (``torch.func``), and one launch of a kernel takes all their steps
(``optim/together.py``). What is done around the steps is each trial's own ``Training``, as alone:
its seeds, batches, schedule, evaluations and checkpoints. A trial that ends makes room for another;
one that diverged touches none.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustlr.dropout import keys
from robustlr.optim.together import Together
from robustlr.program import UnfusableError, program_of
from robustlr.signals import StopRequested
from robustlr.task import Batch, Config, Outcome, Part, Report, Splits, StackedPart, SupervisedTask
from robustlr.training import Losses, Training, order


class Request(NamedTuple):
    """A trial to train: its configuration, where it reports, and its folder."""

    config: Config
    report: Report
    folder: Path | None


class Ended(NamedTuple):
    """A trial that has ended, or was ended by an error, and its share of the time."""

    request: Request
    result: Outcome | BaseException
    seconds: float


@dataclass
class _Slot:
    """A trial that trains; ``batches`` yields what its steps take, and ``last`` is what it gave last."""

    request: Request
    training: Training
    batches: Iterator[Any]
    last: Any = None
    seconds: float = 0.0
    ended: bool = False


def train_together(
    task: SupervisedTask,
    requests: Iterator[Request],
    width: int,
    device: str,
    *,
    if_faster: bool = False,
) -> Generator[Ended]:
    """Train trials of one cell, up to ``width`` at a time; yield each as it ends.

    A trial's own errors, such as a report that is refused, are its result. ``requests`` is asked for
    another trial whenever one has ended.

    Raises:
        UnfusableError: this task's trials must be trained alone, or are as fast so and
            ``if_faster``; none has taken a step.
        StopRequested: the process shall stop; every trial is saved.
    """
    yield from _Fused(task, requests, width, device).run(if_faster)


class _Fused:
    """The trials that train together, and the program that steps them."""

    def __init__(
        self, task: SupervisedTask, requests: Iterator[Request], width: int, device: str
    ) -> None:
        self._task, self._requests, self._width, self._device = task, requests, width, device
        self._data: Splits[Any] | None = None
        self._slots: list[_Slot] = []
        self._ended: list[Ended] = []
        self._asks = True
        self._clock = time.monotonic()

    def run(self, if_faster: bool) -> Iterator[Ended]:
        """Train until no trial is left."""
        self._fill(1)
        while self._ended and not self._slots:
            yield from self._collected()
            self._fill(1)
        if self._slots:
            self._prepare(self._slots[0].training, if_faster)
        while self._slots:
            self._pad()
            self._stack()
            while not self._has_room():
                yield from self._collected()
                self._take_step()
                self._settle()
            yield from self._collected()
            self._slots = [slot for slot in self._slots if not slot.ended]
            self._fill(self._width)
        yield from self._collected()

    def _has_room(self) -> bool:
        """Return whether trials are to begin, or so few are left that the ended ones cost too much."""
        ended = sum(slot.ended for slot in self._slots)
        return bool(self._ended) and (self._asks or 2 * ended >= len(self._slots))

    def _collected(self) -> Iterator[Ended]:
        ended, self._ended = self._ended, []
        yield from ended

    # Trials

    def _fill(self, width: int) -> None:
        """Begin trials, as many as have room, up to one that cannot begin."""
        while self._asks and len(self._slots) < width:
            request = next(self._requests, None)
            if request is None:
                self._asks = False
                return
            try:
                training = self._training(request)
            except StopRequested:
                raise
            except BaseException as error:
                self._ended.append(Ended(request, error, 0.0))
                return  # what fails here may fail for every trial: its error is handed on first
            self._data = training.data
            slot = _Slot(request, training, _batches(training))
            if training.step == training.scale.steps:  # all that was left was the test
                self._end(slot)
            else:
                self._slots.append(slot)

    def _settle(self) -> None:
        """Do what is due after a step, of each trial.

        Raises:
            StopRequested: the process shall stop; each has been saved.
        """
        running = [slot for slot in self._slots if not slot.ended]
        now = time.monotonic()
        stopped: StopRequested | None = None
        for slot in running:
            slot.seconds += (now - self._clock) / len(running)
            training = slot.training
            try:
                diverged = training.settle()
                if diverged or training.step == training.scale.steps:
                    self._end(slot, diverged)
            except StopRequested as request:
                stopped = request
            except BaseException as error:  # this trial's own, such as the loss of its lease
                self._end(slot, error)
        self._clock = now
        if stopped is not None:
            raise stopped

    def _end(self, slot: _Slot, result: Outcome | BaseException | None = None) -> None:
        slot.ended = True
        try:
            result = result or slot.training.outcome()
        except Exception as error:  # of its test
            result = error
        self._ended.append(Ended(slot.request, result, slot.seconds))

    # Steps

    def _prepare(self, first: Training, if_faster: bool) -> None:
        """Make the program, and see how many trials fit.

        Raises:
            UnfusableError: see ``train_together``.
        """
        self._program = program_of(first, self._device)
        self._width = self._program.fits(self._width)
        self._fill(self._width)
        number = len(self._slots)
        if if_faster and number == 1:
            raise UnfusableError("no other waits")
        self._program.compile(number, first)
        if if_faster and not self._program.is_faster(number, first):
            raise UnfusableError("they are as fast so on this device")

    def _pad(self) -> None:
        """Add trials that nobody asked for up to the number that the program is compiled for.

        Fewer than half of that are as fast uncompiled.
        """
        number, width = len(self._slots), self._program.width
        for _ in range(number, width if 2 * number >= width else 0):
            request = self._slots[0].request._replace(report=_ignore, folder=None)
            training = self._training(request)
            self._slots.append(_Slot(request, training, _batches(training), ended=True))

    def _training(self, request: Request) -> Training:
        config, report, folder = request
        return Training(self._task, config, report, self._device, folder, self._data)

    def _stack(self) -> None:
        """Put the trials' tensors side by side; each keeps its own as views."""
        trainings = [slot.training for slot in self._slots]
        self._trained = {name: self._stacked(name) for name in self._program.trained}
        self._others = {name: self._stacked(name) for name in self._program.others}
        self._together = Together(
            [training.optimizer for training in trainings],
            [[self._program.tensor(t.model, name) for name in self._trained] for t in trainings],
            [training.scale.lr_factor for training in trainings],
            trainings[0].scale.steps,
            [training.step for training in trainings],
        )
        self._losses = Losses.stacked([training.losses for training in trainings])
        clips = [training.gradient_clip for training in trainings]
        # With one launch for all, the optimizers' own hooks do not run.
        clips_here = self._together.is_one and any(clips)
        self._clips = torch.tensor(clips, device=self._device) if clips_here else None

    def _stacked(self, name: str) -> Tensor:
        own = [self._program.tensor(slot.training.model, name) for slot in self._slots]
        stacked = torch.stack([tensor.detach() for tensor in own])
        for tensor, view in zip(own, stacked, strict=True):
            tensor.data = view
        return stacked

    def _take_step(self) -> None:
        """Take a step of every trial; those that have ended go on in vain."""
        batch = self._batch()
        self._others |= self._dropout_keys()
        gradients, losses = self._program.gradients(self._trained, self._others, batch)
        self._together.step(self._clipped([gradients[name] for name in self._trained]))
        self._losses.add(losses)

    def _batch(self) -> Batch:
        """Return the trials' next batches, stacked."""
        for slot in self._slots:
            slot.last = next(slot.batches, slot.last)
        trainings, given = [s.training for s in self._slots], [slot.last for slot in self._slots]
        data = trainings[0].data.train
        if not isinstance(data, Batch):
            return _stacked(data, given)
        batch = data.take(torch.stack(given))
        if self._task.augment is None:
            return batch
        pairs = zip(trainings, batch.inputs, batch.targets, strict=True)
        return _stacked(data, [own.augmented(Batch(*pair)) for own, *pair in pairs])

    def _dropout_keys(self) -> dict[str, Tensor]:
        names = self._program.keys
        if not names:
            return {}
        trials = [(slot.training.seeds.noise, slot.training.step) for slot in self._slots]
        every = keys(trials, len(names)).to(self._device)
        return dict(zip(names, every.unbind(1), strict=True))

    def _clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        """Scale down each trial's gradients as ``torch.nn.utils.clip_grad_norm_`` does."""
        if self._clips is None:
            return gradients
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        factor = torch.where(self._clips > 0, (self._clips / (norms + 1e-6)).clamp(max=1), 1)
        return [g * factor.view(-1, *[1] * (g.dim() - 1)) for g in gradients]


def _ignore(step: int, value: float) -> None:
    """Take a report of a trial that nobody asked for."""


def _batches(training: Training) -> Iterator[Any]:
    """Yield what a trial's steps take: examples' places where the data is resident, else batches."""
    data = training.data.train
    if isinstance(data, Batch):
        return order(data, training.scale, training.seeds.order, training.step)
    return training.batches()


def _stacked(data: Part, given: Sequence[Batch]) -> Batch:
    if isinstance(data, StackedPart):
        return data.stacked(given)
    return Batch(*map(torch.stack, zip(*given, strict=True)))
