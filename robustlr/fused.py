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
from robustlr.errors import is_out_of_memory
from robustlr.fused_program import Program, program_of
from robustlr.optim.together import Together
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
        self._program: Program | None = None
        self._slots: list[_Slot] = []
        self._idle: list[_Slot] = []
        self._ended: list[Ended] = []
        self._asks = True
        self._clock = time.monotonic()

    def run(self, if_faster: bool) -> Iterator[Ended]:
        """Train until no trial is left."""
        is_prepared = False
        while True:
            self._fill(self._width if self._program else 1)
            if self._ended:  # what ended one so soon may end every other
                yield from self._collected()
                continue
            if not self._slots:
                return
            first = self._slots[0].training
            if self._program is None:
                self._program = program_of(first, self._device)
                self._width = self._program.fits(self._width)
                continue
            if not is_prepared:
                self._program.prepare(len(self._slots), first, if_faster)
                is_prepared = True
            if self._program.width <= self._width:  # what more would take is not known to fit
                self._pad(self._program.width)
            self._stack(self._program)
            while not self._has_room():
                yield from self._collected()
                self._take_step(self._program)
                self._settle()
            yield from self._collected()
            self._idle = [slot for slot in self._slots if slot.ended]
            self._slots = [slot for slot in self._slots if not slot.ended]

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
                _raise_of_all(error)
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
        stopped: StopRequested | None = None
        self._charge(running)
        for slot in running:
            training = slot.training
            try:
                diverged = training.settle()
                if diverged or training.step == training.scale.steps:
                    self._end(slot, diverged)
            except StopRequested as request:
                stopped = request
            except BaseException as error:  # this trial's own, such as the loss of its lease
                _raise_of_all(error)
                self._end(slot, error)
            self._charge([slot])
        if stopped is not None:
            raise stopped

    def _end(self, slot: _Slot, result: Outcome | BaseException | None = None) -> None:
        slot.ended = True
        try:
            if not isinstance(result, BaseException):
                result = self._task.outcome(result or slot.training.outcome())
        except Exception as error:  # of its test
            _raise_of_all(error)
            result = error
        self._charge([slot])
        self._ended.append(Ended(slot.request, result, slot.seconds))

    def _charge(self, slots: Sequence[_Slot]) -> None:
        """Share the time since the last call among the trials that it was spent on."""
        now = time.monotonic()
        for slot in slots:
            slot.seconds += (now - self._clock) / len(slots)
        self._clock = now

    # Steps

    def _pad(self, width: int) -> None:
        """Add trials that nobody asks for up to the number that the program is compiled for.

        Fewer than half of that are as fast uncompiled.
        """
        missing = width - len(self._slots) if 2 * len(self._slots) >= width else 0
        request = self._slots[0].request._replace(report=_ignore, folder=None)
        idle = self._idle[: max(0, missing)]
        for _ in range(missing - len(idle)):
            training = self._training(request)
            idle.append(_Slot(request, training, _batches(training), ended=True))
        self._slots += idle

    def _training(self, request: Request) -> Training:
        config, report, folder = request
        return Training(self._task, config, report, self._device, folder, self._data)

    def _stack(self, program: Program) -> None:
        """Put the trials' tensors side by side; each keeps its own as views."""
        trainings = [slot.training for slot in self._slots]

        def stacked(name: str) -> Tensor:
            return _side_by_side([program.tensor(training.model, name) for training in trainings])

        self._trained = {name: stacked(name) for name in program.trained}
        self._others = {name: stacked(name) for name in program.others}
        factors = {str(training.scale): training.scale.lr_factor for training in trainings}
        self._together = Together(
            [training.optimizer for training in trainings],
            [[program.tensor(t.model, name) for name in self._trained] for t in trainings],
            [factors[str(training.scale)] for training in trainings],
            trainings[0].scale.steps,
            [training.step for training in trainings],
        )
        self._losses = Losses.stacked([training.losses for training in trainings])
        clips = [training.gradient_clip for training in trainings]
        # With one launch for all, the optimizers' own hooks do not run.
        clips_here = self._together.is_one and any(clips)
        self._clips = torch.tensor(clips, device=self._device) if clips_here else None

    def _take_step(self, program: Program) -> None:
        """Take a step of every trial; those that have ended go on in vain."""
        batch = self._batch()
        self._others |= self._dropout_keys(program.keys)
        gradients, losses = program.gradients(self._trained, self._others, batch)
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

    def _dropout_keys(self, names: Sequence[str]) -> dict[str, Tensor]:
        if not names:
            return {}
        trials = [(slot.training.seeds.noise, slot.training.step) for slot in self._slots]
        # A layer's keys lie side by side: a compiled program knows its inputs by their strides.
        every = keys(trials, len(names)).transpose(0, 1).contiguous().to(self._device)
        return dict(zip(names, every, strict=True))

    def _clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        """Scale down each trial's gradients as ``torch.nn.utils.clip_grad_norm_`` does."""
        if self._clips is None:
            return gradients
        norms = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in gradients]).norm(dim=0)
        factor = torch.where(self._clips > 0, (self._clips / (norms + 1e-6)).clamp(max=1), 1)
        return [g * factor.view(-1, *[1] * (g.dim() - 1)) for g in gradients]


def _side_by_side(own: Sequence[Tensor]) -> Tensor:
    """Return the trials' tensors stacked, and make each a view of its slice."""
    stacked = torch.stack([tensor.detach() for tensor in own])
    for tensor, view in zip(own, stacked, strict=True):
        tensor.data = view
    return stacked


def _raise_of_all(error: BaseException) -> None:
    """Raise an error that is not of one trial but of so many together."""
    if is_out_of_memory(error):
        raise error


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
