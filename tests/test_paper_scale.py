"""Every task at paper scale: the published model takes steps on data in the true format."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustlr.registry import load_task, tasks
from robustlr.task import Batch, Config, LabelledPart, Splits, SupervisedTask
from robustlr.tasks import _adversarial
from robustlr.tasks.cgan import GanTask
from robustlr.tasks.data import images
from robustlr.tasks.data.images import DATA_SETS
from tests.runs import run_to_end

BATCH = {
    "imagenet-resnet50": 8,
    "imagenet-deit-tiny": 16,
    "cifar10-cgan": 16,
    "cifar100-resnet18-ln": 64,
    "cifar10-resnet18": 64,
}
"""As many examples as two steps in seconds allow, where it is not the published number."""

PUBLISHED = {
    "cifar10-vgg11": (14, 28_141_258),
    "cifar10-resnet18": (62, 11_173_962),
    "cifar10-resnet20": (65, 272_474),
    "imagenet-resnet50": (161, 25_557_032),
    "imagenet-deit-tiny": (152, 5_717_416),
    "mnist-mlp100": (200, 99 * 784 * 785 + 7_850),
    "mnist-mlp5": (5, 4 * 784**2 + 7_840),
}


def _paper_tasks() -> list[str]:
    return [name for name, task in tasks().items() if "paper" in task.scales]


def _made_up(name: str) -> Splits[LabelledPart]:
    """Return a few images of the data set's shape; the loaders of real files have their own tests."""
    facts = DATA_SETS[name]
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Batch:
        shape = (count, facts.channels, facts.size, facts.size)
        targets = torch.randint(facts.classes, (count,), generator=generator)
        return Batch(torch.randint(256, shape, dtype=torch.uint8, generator=generator), targets)

    return Splits(part(256 if facts.size < 100 else 32), part(8), part(8))


@pytest.fixture
def made_up_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def load(name: str, *, size: int | None = None, device: str = "cpu") -> Splits[LabelledPart]:
        return _made_up(name)

    monkeypatch.setattr(images, "load", load)
    _adversarial._distance_from.cache_clear()
    yield
    _adversarial._distance_from.cache_clear()


@pytest.mark.usefixtures("made_up_data")
@pytest.mark.parametrize("name", _paper_tasks())
def test_two_steps_at_paper_scale(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path))
    task = load_task(name)
    scale = task.scales["paper"]
    if isinstance(task, GanTask):
        scale = task.scales["paper-frechet"]  # the weights of Inception are not at hand
    scale = replace(scale, epochs=0, steps=2, evaluations=1, worst=1e9)
    scale = replace(scale, batch_size=BATCH.get(name, scale.batch_size))
    task = replace(task, scales={"paper": scale})
    config = Config(
        task=name, optimizer="nero", hyperparameters={"lr": 0.01}, seed=0, scale="paper"
    )
    ended = run_to_end(task, config)
    assert ended.outcome.steps == 2
    assert not ended.outcome.diverged
    for state in ended.states:
        assert all(
            value.isfinite().all() for value in state.values() if isinstance(value, torch.Tensor)
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_models_at_paper_scale_are_the_published_ones(name: str) -> None:
    task = load_task(name)
    assert isinstance(task, SupervisedTask)
    parameters = list(task.model(task.scales["paper"]).parameters())
    assert (len(parameters), sum(p.numel() for p in parameters)) == PUBLISHED[name]


def test_the_gan_at_paper_scale_is_the_published_one() -> None:
    sizes = [
        (len(parameters), sum(p.numel() for p in parameters))
        for player in _adversarial.networks(load_task("cifar10-cgan").scales["paper"])
        for parameters in [list(player.parameters())]
    ]
    assert sizes == [(56, 2_183_091), (33, 2_644_129)]


@pytest.mark.parametrize(
    ("name", "epoch", "factor"),
    [
        # Learning by Turning: warmup over 5 epochs, then a fifth at epochs 100, 150, 180 of 199
        ("cifar10-vgg11", 2.5, 0.5),
        ("cifar10-vgg11", 98.99, 1.0),
        ("cifar10-vgg11", 99.01, 0.2),
        ("cifar10-vgg11", 149.01, 0.04),
        ("cifar10-vgg11", 179.01, 0.008),
        # Learning by Turning: 0.9 an epoch; Fromage: 0.95 an epoch
        ("mnist-mlp100", 0.99, 1.0),
        ("mnist-mlp100", 10.01, 0.9**10),
        ("mnist-mlp", 99.5, 0.95**99),
        # Learning by Turning: a tenth at epoch 100 of 120; a warmup epoch and 89 of cosine
        ("cifar10-cgan", 99.99, 1.0),
        ("cifar10-cgan", 100.01, 0.1),
        ("imagenet-resnet50", 0.5, 0.5),
        ("imagenet-resnet50", 45.5, 0.5),
        # Rotational Equilibrium: five epochs of warmup, then cosine to the end
        ("cifar10-resnet20", 102.5, 0.5),
    ],
)
def test_the_learning_rate_follows_the_published_schedule(
    name: str, epoch: float, factor: float
) -> None:
    scale = load_task(name).scales["paper"]
    examples = DATA_SETS[scale.data].train
    sized = scale.sized(examples / scale.batch_size)
    step = round(epoch / scale.epochs * sized.steps)
    assert sized.lr_factor(step) == pytest.approx(factor, rel=0.01)


def test_the_hundred_layer_perceptron_learns_with_nero_and_not_with_sgd_or_adam() -> None:
    """On real digits, at small scale; Learning by Turning, Figure 3 right."""
    task = load_task("mnist-mlp100")
    errors: dict[str, float] = {}
    for optimizer, lr in (("nero", 0.001), ("sgd", 0.1), ("adam", 0.001)):
        config = Config(task=task.name, optimizer=optimizer, hyperparameters={"lr": lr}, seed=0)
        errors[optimizer] = run_to_end(task, config).outcome.value
    chance = 0.9
    assert errors["nero"] < chance - 0.05
    assert errors["sgd"] > chance - 0.02
    assert errors["adam"] > chance - 0.02


def test_every_scale_gives_either_steps_or_epochs() -> None:
    for task in tasks().values():
        for name, scale in task.scales.items():
            assert bool(scale.steps) != bool(scale.epochs), (task.name, name)
