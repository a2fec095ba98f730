"""The training loop of class-conditional generative adversarial networks."""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.utils import make_grid, save_image

from robustlr.checkpoint import Run, Stateful
from robustlr.errors import UserError
from robustlr.scale import Scale
from robustlr.task import Batch, Config, LabelledPart, Outcome, Part, Report, Seeds
from robustlr.tasks._classification import load
from robustlr.tasks.data import images
from robustlr.tasks.data.augment import augment
from robustlr.tasks.models.frechet import FrechetDistance, extractor
from robustlr.tasks.models.gan import Discriminator, Generator
from robustlr.training import (
    Losses,
    autocast,
    batches,
    compiled,
    descend,
    place,
    steps_an_epoch,
)

if TYPE_CHECKING:
    from robustlr.tasks.cgan import GanTask

GENERATED_BATCH = 250
JUDGED_IMAGES = 10_000
"""How many images of a part at most are compared with generated ones, as in the papers."""

GRID_ROWS = 8
GRID_PIXELS = 320
"""How wide a picture of samples should be, in pixels."""


class Networks(NamedTuple):
    """The two players."""

    generator: Generator
    discriminator: Discriminator


def networks(scale: Scale) -> Networks:
    """Return the scale's networks with fresh weights drawn from torch's global generator."""
    facts = images.DATA_SETS[scale.data]
    options = {"size": facts.size, **scale.options}
    labels = options.pop("labels")
    if labels < facts.classes:
        raise UserError(f"labels = {labels}: {scale.data} has {facts.classes} classes")
    shared = {name: options.pop(name) for name in ("size", "width", "learned_attention_weight")}
    return Networks(
        Generator(facts.channels, labels, **shared, **options),
        Discriminator(facts.channels, labels, **shared),
    )


def train(
    task: "GanTask", config: Config, report: Report, device: str, folder: Path | None
) -> Outcome:
    """Train both networks once and return the generator's distances from the real images.

    Both have the trial's optimizer and schedule. A step shows the discriminator a batch of real
    images and as many generated ones of the same classes, and then asks the changed discriminator
    what the generator should change. Generated images are kept as ``samples.png`` in ``folder``.
    """
    seeds = Seeds.of(config.seed)
    task, scale = task.at(config.scale), task.scale_of(config)
    data = load(scale, device)
    scale = scale.sized(steps_an_epoch(data.train, scale))
    torch.manual_seed(seeds.initialisation)
    players = networks(scale)
    for player in players:
        place(player, device)
    generate = partial(_images, players.generator, seed=seeds.noise)
    measure = {part: _distance(scale, device, part) for part in {scale.part, "test"}}
    labels = {part: _labels(getattr(data, part)) for part in measure}
    # Before the optimizers are made: Nero and the rotational variants change weights then.
    initial = measure[scale.part](generate(labels[scale.part]))
    optimizers = [config.build_optimizer(player, scale.gradient_clip) for player in players]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, scale.lr_factor) for o in optimizers]
    losses = Losses(device)
    torch.manual_seed(seeds.noise)
    noise = torch.Generator(device).manual_seed(seeds.noise)
    parts: tuple[Stateful, ...] = (*players, *optimizers, *schedules, losses)
    run = Run(config, scale, report, folder, parts, noise)
    first = run.resume()
    forward = [compiled(player, device, scale.steps) for player in players]
    classes = torch.arange(images.DATA_SETS[scale.data].classes, device=device)
    interval = math.ceil(scale.steps / scale.evaluations)
    for step, batch in enumerate(batches(data.train, scale, seeds.order, first), start=first + 1):
        losses.add(_step(forward, players, optimizers, batch, scale, noise))
        for schedule in schedules:
            schedule.step()
        if step % interval == 0 or step == scale.steps:
            if losses.diverged(None):
                run.report(step, task.worst)
                return task.diverged(initial=initial, steps=step)
            run.write("samples.png", partial(_save_samples, generate, classes))
            distance = measure[scale.part](generate(labels[scale.part]))
            run.report(step, task.capped(distance))
        run.save_if_due(step)
    test_value = task.capped(measure["test"](generate(labels["test"])))
    return Outcome(value=run.last, initial=initial, test_value=test_value, steps=scale.steps)


def _step(
    forward: Sequence[nn.Module],
    players: Networks,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    scale: Scale,
    noise: torch.Generator,
) -> Tensor:
    """Take one step of each player with the hinge loss; return the sum of their losses."""
    device, labels = batch.targets.device.type, batch.targets
    generate, score = forward
    real = augment(batch.inputs, scale.augmentation, noise).float() / 127.5 - 1
    latent = torch.randn(
        len(batch), players.generator.noise_size, generator=noise, device=noise.device
    )
    with autocast(device):
        fake = generate(latent, labels).float()
        both = score(torch.cat([real, fake.detach()]), labels.repeat(2)).float()
    real_score, fake_score = both.chunk(2)
    loss = relu(1 - real_score).mean() + relu(1 + fake_score).mean()
    discriminator_loss = descend(optimizers[1], [loss])
    players.discriminator.requires_grad_(False)  # the generator's step needs none of its gradients
    with autocast(device):
        loss = -score(fake, labels).float().mean()
    generator_loss = descend(optimizers[0], [loss])
    players.discriminator.requires_grad_(True)
    return discriminator_loss + generator_loss


def _distance(scale: Scale, device: str, part: str) -> FrechetDistance:
    """Return the scale's distance from one part of its data."""
    size = int(scale.options.get("size", 0))
    return _distance_from(scale.metric, scale.data, size, device, part)


@cache
def _distance_from(metric: str, name: str, size: int, device: str, part: str) -> FrechetDistance:
    """Look at the real images once per process."""
    data = images.load(name, size=size or None, device=device)
    real: Part = getattr(data, part)
    network = extractor(metric, data, images.DATA_SETS[name].classes)
    return FrechetDistance(real.take(torch.arange(min(len(real), JUDGED_IMAGES))).inputs, network)


def _labels(part: LabelledPart) -> Tensor:
    """Return the labels that images are generated for: those of the images they are judged by."""
    return part.targets[:JUDGED_IMAGES]


@torch.no_grad()
def _images(generator: Generator, labels: Tensor, *, seed: int) -> Tensor:
    """Return images of the labels, uint8, from noise that the seed decides."""
    noise = torch.Generator(labels.device).manual_seed(seed)
    training = generator.training
    generator.eval()
    made = []
    for some in torch.split(labels, GENERATED_BATCH):
        latent = torch.randn(len(some), generator.noise_size, generator=noise, device=labels.device)
        made.append(((generator(latent, some) + 1) * 127.5).round().clamp(0, 255).byte())
    generator.train(training)
    return torch.cat(made)


def _save_samples(generate: Callable[[Tensor], Tensor], classes: Tensor, file: Path) -> None:
    """Draw generated images as a PNG: a column a class."""
    generated = generate(classes.repeat(GRID_ROWS)).cpu()
    grid = make_grid(generated, nrow=len(classes), padding=1)
    save_image(_enlarged(grid) / 255, file, format="png")


def _enlarged(grid: Tensor) -> Tensor:
    """Return a picture of small images large enough to look at."""
    factor = max(1, GRID_PIXELS // grid.shape[-1])
    return grid.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
