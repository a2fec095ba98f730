"""Every task at paper scale: the published model takes steps on data in the true format."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch

from robustlr.registry import load_task, tasks
from robustlr.scale import Scale
from robustlr.task import Batch, Config, LabelledPart, Splits, SupervisedTask, Task
from robustlr.tasks import _adversarial
from robustlr.tasks.cgan import GanTask
from robustlr.tasks.data import images, text
from robustlr.tasks.data.corpora import PARTS, corpus
from robustlr.tasks.data.hub import SOURCES
from robustlr.tasks.data.images import DATA_SETS
from robustlr.tasks.data.tokens import GPT2_PIECES
from robustlr.tasks.reinforcement import PPOTask
from tests.runs import run_to_end
from tests.test_corpora import gpt2_file

BATCH = {
    "imagenet-resnet50": 8,
    "imagenet-deit-tiny": 16,
    "cifar10-cgan": 16,
    "cifar100-resnet18-ln": 64,
    "cifar10-resnet18": 64,
    "fromage-cifar10": 64,
    "fromage-imagenet": 8,
    "fromage-cgan": 16,
    "wikitext103-gpt2": 1,
    "openwebtext-gpt2": 1,
    "multi30k-transformer": 8,
    "iwslt14-transformer": 256,
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
    "wikitext2-transformer": (19, 13_826_878),
    "wikitext103-gpt2": (75, 124_373_760 - 512 * 768),  # half as many positions
    "openwebtext-gpt2": (75, 124_373_760),
    # 12 attentions and 6 of the memory, 12 perceptrons with biases, one matrix for all tokens
    "multi30k-transformer": (
        121,
        18 * 4 * 512**2 + 12 * (2 * 512 * 2048 + 2048 + 512) + 9_521 * 512,
    ),
    # fairseq's 39,469,056 with another vocabulary: 8,848 German and 6,632 English tokens there
    "iwslt14-transformer": (254, 39_469_056 + (2 * 10_000 - 8_848 - 6_632) * 512),
}

TRAINING_TOKENS = {"wikitext-2": 2_088_628}


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

    return Splits(part(64 if facts.size < 100 else 16), part(8), part(8))


def _put_text(folder: Path, name: str) -> None:
    """Write a little text of the true kind into files like those of a published corpus."""
    if name.startswith("wikitext"):
        paragraphs = corpus("pydoc")["train"]["en"]
        lengths = list(accumulate(map(len, paragraphs)))
        (count,) = np.searchsorted(lengths, [4_000]).tolist()
        for part in PARTS:
            _put(folder / name / f"{part}.en", [f" {line} " for line in paragraphs[: count + 1]])
        (folder / "gpt2").mkdir()
        (folder / "gpt2" / "tokenizer.json").write_bytes(gpt2_file())
    if name == "openwebtext":
        drawn = np.random.default_rng(0)
        for part, windows in zip(PARTS, (3, 1, 1), strict=True):
            file = folder / "openwebtext-gpt2" / part
            file.parent.mkdir(exist_ok=True)
            ids = drawn.integers(GPT2_PIECES, size=windows * 1024 + 1, dtype=np.uint16)
            file.write_bytes(ids.tobytes())
    if name in JOINED:
        for language, lines in corpus("cldr")["train"].items():
            _put(folder / name / f"train.{language}", _joined(lines[:5_000], JOINED[name]))
            for part in PARTS[1:]:
                _put(folder / name / f"{part}.{language}", lines[:4])


JOINED = {"multi30k": 18, "iwslt14": 36}
"""So many of CLDR's phrases make a line almost as long as the longest that is not left out."""


def _joined(lines: Sequence[str], count: int) -> list[str]:
    return [", ".join(lines[start : start + count]) for start in range(0, len(lines), count)]


def _put(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines), encoding="utf-8")


def _longest_side(task: Task, scale: Scale) -> int:
    """Return the most tokens of a training example."""
    assert isinstance(task, SupervisedTask)
    part = task.data(scale, "cpu").train
    batch: Batch = part.take(torch.arange(len(part)))
    return max(side.shape[1] for side in batch)


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
    task = load_task(name)
    scale = task.scales["paper"]
    _put_text(tmp_path, scale.data)
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path))
    text._load.cache_clear()
    if isinstance(task, GanTask):
        scale = task.scales["paper-frechet"]  # the weights of Inception are not at hand
    steps = 8 * 128 if isinstance(task, PPOTask) else 2  # of the environment: a rollout
    worst = 1e9 if task.direction == "minimize" else -1e9
    scale = replace(scale, epochs=0, steps=steps, evaluations=1, worst=worst)
    scale = replace(scale, batch_size=BATCH.get(name, scale.batch_size))
    task = replace(task, scales={"paper": scale})
    config = Config(
        task=name, optimizer="nero", hyperparameters={"lr": 0.01}, seed=0, scale="paper"
    )
    length = scale.options.get("context") or scale.options.get("longest")
    if length:
        assert 0.8 * length < _longest_side(task, scale) <= length + 1
    ended = run_to_end(task, config)
    assert ended.outcome.steps == steps
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
    ("name", "at", "factor"),
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
        # Learning by Turning: a tenth at epoch 10 of 20; up for 50 epochs and down for 50
        ("wikitext2-transformer", 9.99, 1.0),
        ("wikitext2-transformer", 10.01, 0.1),
        ("multi30k-transformer", 0.5, 0.02),
        ("multi30k-transformer", 24.5, 0.5),
        ("multi30k-transformer", 49.5, 1.0),
        ("multi30k-transformer", 74.5, 0.5),
        # Rotational Equilibrium: a cycle with 2 % warmup; 5 % and 4,000 updates of it, then cosine
        ("wikitext103-gpt2", 0, 0.01),
        ("wikitext103-gpt2", 299, 1.0),
        ("wikitext103-gpt2", 7_650, 0.5),
        ("openwebtext-gpt2", 124, 0.5),
        ("openwebtext-gpt2", 249, 1.0),
        ("openwebtext-gpt2", 2_625, 0.5),
        ("iwslt14-transformer", 1_999, 0.5),
        ("iwslt14-transformer", 3_999, 1.0),
        ("iwslt14-transformer", 13_010, 0.5),
    ],
)
def test_the_learning_rate_follows_the_published_schedule(
    name: str, at: float, factor: float
) -> None:
    """``at`` is in epochs, or in steps if the scale has steps."""
    scale = load_task(name).scales["paper"]
    step = round(at)
    if scale.epochs:
        scale = scale.sized(_examples(scale) / scale.batch_size)
        step = round(at / scale.epochs * scale.steps)
    assert scale.lr_factor(step) == pytest.approx(factor, rel=0.01)


def _examples(scale: Scale) -> int:
    """Return the number of training examples of a published data set."""
    if scale.data in TRAINING_TOKENS:
        return TRAINING_TOKENS[scale.data] // int(scale.options["context"])
    if scale.data in SOURCES:
        return SOURCES[scale.data].rows["train"]
    return DATA_SETS[scale.data].train


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
