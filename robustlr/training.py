"""The one training loop of supervised tasks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from robustlr.schedule import lr_factor
from robustlr.task import Batch, Config, Outcome, Report, Scale, Seeds, SupervisedTask


def train(task: SupervisedTask, config: Config, report: Report, device: str) -> Outcome:
    """Train ``config`` once and return its final validation and test metric.

    The same config gives the same outcome, bit for bit, on one CPU thread. On a GPU the forward
    pass runs in bfloat16. Nothing is read back from the device between evaluations.
    """
    scale = task.scale_of(config)
    seeds = Seeds.of(config.seed)
    data = task.data(device)
    torch.manual_seed(seeds.initialisation)
    model = task.model().to(device)
    # Before the optimizer is made: Nero and the rotational variants change weights at construction.
    initial = _evaluate(task, model, data.validation)
    optimizer = config.build_optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: lr_factor(
            step, steps=scale.steps, warmup_steps=scale.warmup_steps, schedule=scale.schedule
        ),
    )
    torch.manual_seed(seeds.noise)
    finite = torch.tensor(True, device=device)
    recent = torch.zeros((), device=device)
    interval = max(1, scale.steps // scale.evaluations)
    model.train()
    for step, batch in enumerate(_batches(task, data.train, scale, seeds), start=1):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            loss = task.loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        recent += loss.detach()
        finite &= loss.detach().isfinite()
        if step % interval == 0 or step == scale.steps:
            steps_since = interval if step % interval == 0 else step % interval
            diverged = not finite.item() or (
                step == scale.steps and recent.item() / steps_since > task.loss_bound
            )
            if diverged:
                report(step, task.worst)
                return task.diverged(initial=initial, steps=step)
            recent.zero_()
            value = task.capped(_evaluate(task, model, data.validation))
            report(step, value)
    test_value = task.capped(_evaluate(task, model, data.test))
    return Outcome(value=value, initial=initial, test_value=test_value, steps=scale.steps)


@torch.no_grad()
def _evaluate(task: SupervisedTask, model: torch.nn.Module, split: Batch) -> float:
    training = model.training
    model.eval()
    value = task.evaluate(model, split)
    model.train(training)
    return value


def _batches(task: SupervisedTask, data: Batch, scale: Scale, seeds: Seeds) -> Iterator[Batch]:
    device = data.targets.device
    noise = torch.Generator(device=device).manual_seed(seeds.noise)
    for index in _order(len(data), scale, seeds.order).to(device):
        batch = data.take(index)
        yield batch if task.augment is None else task.augment(batch, noise)


def _order(examples: int, scale: Scale, seed: int) -> Tensor:
    """Return the examples of every step, ``[steps, batch_size]``: reshuffled epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    needed = scale.steps * scale.batch_size
    epochs = -(-needed // examples)
    order = torch.cat([torch.randperm(examples, generator=generator) for _ in range(epochs)])
    return order[:needed].reshape(scale.steps, scale.batch_size)
