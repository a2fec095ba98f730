"""Promises of every task in the folder, and of the one training loop."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from robustlr.errors import UserError
from robustlr.registry import load_task, tasks
from robustlr.scale import Scale
from robustlr.task import Batch, Config, FunctionTask, Outcome, Seeds, SupervisedTask
from robustlr.tasks._adversarial import networks
from robustlr.tasks.digits import digits_cnn, digits_mlp
from robustlr.tasks.reinforcement import PPOTask
from robustlr.training import batches, train
from tests.runs import AnyTask, run_to_end, same, with_little_data


def _short(task: AnyTask, steps: int = 5, **changes: object) -> AnyTask:
    scale = replace(task.scales["small"], steps=steps)
    return replace(task, scales={"small": scale}, **changes)  # type: ignore[arg-type]


def _config(task: str = "digits-mlp", optimizer: str = "adamw", **changes: object) -> Config:
    values: dict[str, object] = {"hyperparameters": {"lr": 1e-3}, "seed": 0, **changes}
    return Config(task=task, optimizer=optimizer, **values)  # type: ignore[arg-type]


def _note(curve: list[float], step: int, value: float) -> None:
    curve.append(value)


def _ignore(step: int, value: float) -> None:
    pass


@pytest.mark.parametrize("name", tasks())
def test_every_task_runs_three_steps_and_reports_its_metric(name: str) -> None:
    task = with_little_data(_short(load_task(name), steps=3))
    assert task.summary
    reports: list[tuple[int, float]] = []
    outcome = task.run(_config(name), lambda step, value: reports.append((step, value)))
    assert reports[-1] == (outcome.steps, outcome.value)
    assert not outcome.diverged
    assert outcome.test_value is not None
    if isinstance(task, PPOTask):
        assert outcome.steps == 256, "the least it takes is a rollout"
    else:
        assert outcome.steps == 3
        assert outcome.initial is not None
    assert math.isfinite(task.at("small").worst)
    assert task.at("small").capped(outcome.value) == outcome.value


def test_listing_tasks_does_not_import_torch() -> None:
    code = (
        "import sys; from robustlr.registry import tasks; tasks(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", tasks())
@pytest.mark.parametrize("optimizer", ["nero", "rv-adamw", "sgdm"])
def test_the_same_seed_gives_the_same_trial_bit_for_bit(name: str, optimizer: str) -> None:
    task = with_little_data(_short(load_task(name), steps=10))
    ended = []
    for before, seed in enumerate((1, 1, 2)):
        torch.manual_seed(before)  # what happened before must not matter
        config = _config(name, optimizer, seed=seed, hyperparameters={"lr": 0.01})
        ended.append(run_to_end(task, config))
    assert ended[0].outcome == ended[1].outcome
    assert same(ended[0].states, ended[1].states)
    assert not same(ended[0].states, ended[2].states)


@pytest.mark.parametrize("name", [n for n, t in tasks().items() if isinstance(t, SupervisedTask)])
def test_every_supervised_task_compiles_as_one_graph(name: str) -> None:
    """On a GPU long runs are compiled; a break in the graph would cost what that gains."""
    task = load_task(name)
    assert isinstance(task, SupervisedTask)
    scale = task.scales["small"]
    model = task.model(scale)
    batch = task.data(scale, "cpu").train.take(torch.arange(8))
    torch.compiler.reset()
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    state = torch.get_rng_state()  # for dropout
    compiled = task.loss(forward, batch, scale)  # type: ignore[arg-type]
    torch.set_rng_state(state)
    assert compiled.item() == pytest.approx(task.loss(model, batch, scale).item(), rel=1e-3)
    compiled.backward()  # type: ignore[no-untyped-call]
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at computed weights
def test_both_players_of_a_gan_compile() -> None:
    scale = load_task("digits-cgan").scales["small"]
    labels = torch.arange(8)
    scores = []
    for compiled in (False, True):
        torch.manual_seed(0)
        torch.compiler.reset()
        players = networks(scale)
        noise = torch.randn(8, players.generator.noise_size)
        generate, score = (
            torch.compile(player, backend="aot_eager") if compiled else player for player in players
        )
        images = generate(noise, labels)
        both = score(torch.cat([images, images.detach()]), labels.repeat(2))
        both.mean().backward()
        scores.append(both.detach())
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-4)
    torch.compiler.reset()


def test_digits_tasks_learn() -> None:
    for task, optimizer in ((digits_mlp, "nero"), (digits_cnn, "rv-adamw")):
        hyperparameters = (
            {"lr": 0.1, "weight_decay": 0.1} if optimizer == "rv-adamw" else {"lr": 0.01}
        )
        outcome = task.run(_config(task.name, optimizer, hyperparameters=hyperparameters), _ignore)
        assert outcome.value < 0.05
        assert outcome.test_value is not None
        assert outcome.test_value < 0.06


def test_seeds_for_weights_order_and_noise_are_apart() -> None:
    seeds = [Seeds.of(seed) for seed in range(3)]
    assert len({number for each in seeds for number in each}) == 9


def test_each_example_is_seen_once_an_epoch_in_an_order_that_the_seed_decides() -> None:
    examples = Batch(torch.arange(1078), torch.arange(1078))
    two_epochs = Scale(steps=28, batch_size=77)
    order = torch.cat([batch.targets for batch in batches(examples, two_epochs, 7)])
    for epoch in order.chunk(2):
        assert torch.equal(epoch.sort().values, torch.arange(1078))
    assert not torch.equal(*order.chunk(2))
    other = torch.cat([batch.targets for batch in batches(examples, two_epochs, 8)])
    assert not torch.equal(order, other)


@pytest.mark.parametrize("batch_size", [77, 100, 1078, 2000])
def test_batches_go_on_from_any_step(batch_size: int) -> None:
    examples = Batch(torch.arange(1078), torch.arange(1078))
    scale = Scale(steps=20, batch_size=batch_size)
    whole = [batch.targets for batch in batches(examples, scale, 7)]
    assert {len(batch) for batch in whole} == {batch_size}
    for first in (1, 13, 19):
        rest = [batch.targets for batch in batches(examples, scale, 7, first)]
        assert all(map(torch.equal, rest, whole[first:]))
        assert len(rest) == 20 - first


class _Read:
    """A part whose examples are read when they are taken; it notes the seeds."""

    def __init__(self) -> None:
        self.targets = torch.arange(50)
        self.seeds: list[int | None] = []

    def __len__(self) -> int:
        return 50

    def take(self, index: torch.Tensor, seed: int | None = None) -> Batch:
        self.seeds.append(seed)
        return Batch(index, index)


@pytest.mark.parametrize("first", [0, 7, 8, 9])
def test_parts_that_are_read_give_the_same_batches_and_a_seed_for_each(first: int) -> None:
    part, scale = _Read(), Scale(steps=9, batch_size=20)
    resident = Batch(torch.arange(50), torch.arange(50))
    read = [batch.targets for batch in batches(part, scale, 3, first)]
    kept = [batch.targets for batch in batches(resident, scale, 3, first)]
    assert len(read) == 9 - first
    assert all(map(torch.equal, read, kept))
    whole = _Read()
    list(batches(whole, scale, 3))
    assert part.seeds == whole.seeds[first:]
    assert len(set(whole.seeds)) == 9


def test_epochs_decide_the_number_of_steps() -> None:
    assert Scale(epochs=3, batch_size=100).sized(2.5).steps == 8
    assert Scale(steps=5, batch_size=100).sized(2.5).steps == 5


def test_equal_seeds_give_every_optimizer_the_same_start_and_batches() -> None:
    seen: dict[str, list[torch.Tensor]] = {}

    def loss(model: nn.Module, batch: Batch, scale: Scale) -> torch.Tensor:
        seen[current].append(batch.targets)
        return digits_mlp.loss(model, batch, scale)

    starts = []
    for current in ("adamw", "sgd", "nero"):
        seen[current] = []
        outcome = _short(digits_mlp, loss=loss).run(_config(optimizer=current, seed=4), _ignore)
        starts.append(outcome.initial)
    assert len(set(starts)) == 1
    for other in ("sgd", "nero"):
        assert all(torch.equal(a, b) for a, b in zip(seen["adamw"], seen[other], strict=True))


def test_a_diverged_run_is_a_result_worth_the_worst_value() -> None:
    reports: list[float] = []
    config = _config(optimizer="sgd", hyperparameters={"lr": 1e20})
    outcome = _short(digits_mlp, 50).run(config, lambda step, value: reports.append(value))
    assert outcome.diverged
    assert outcome.value == outcome.test_value == 0.9
    assert outcome.steps == 5  # seen at the first look
    assert reports == [0.9]


def test_a_loss_beyond_the_bound_at_the_end_is_divergence() -> None:
    outcome = _short(digits_mlp, 10, loss_bound=lambda scale: 1e-9).run(_config(), _ignore)
    assert outcome.diverged
    assert outcome.steps == 10


def test_warmup_and_schedule_conditions_change_the_run() -> None:
    task = _short(digits_mlp, 30)
    conditions: list[dict[str, object]] = [
        {},
        {"warmup": False},
        {"schedule": "step"},
        {"batch_size": 16},
    ]
    curves: list[list[float]] = []
    for each in conditions:
        curves.append([])
        task.run(_config(conditions=each), partial(_note, curves[-1]))
    assert len({tuple(curve) for curve in curves}) == 4


def test_conditions_override_the_scale() -> None:
    scale = digits_mlp.scale_of(_config(conditions={"warmup": False, "batch_size": 16}))
    assert (scale.warmup, scale.batch_size) == (0, 16)
    assert digits_mlp.scale_of(_config(conditions={"warmup": 0.5})).warmup == 0.5
    assert digits_mlp.scale_of(_config(conditions={"depth": 9})).options["depth"] == 9
    assert digits_mlp.scales["small"].options["depth"] == 3
    no_warmup = replace(digits_mlp, scales={"small": Scale(steps=9, batch_size=1)})
    with pytest.raises(UserError, match="no warmup; give a share"):
        no_warmup.scale_of(_config(conditions={"warmup": True}))


def test_a_function_is_a_task() -> None:
    task = FunctionTask(
        name="mine",
        summary="",
        metric="loss",
        worst=1.0,
        function=lambda config, report: float(config.hyperparameters["lr"]),
    )
    assert task.run(_config(), _ignore) == Outcome(value=1e-3)
    assert task.run(_config(hyperparameters={"lr": 7.0}), _ignore).value == 1.0
    assert task.run(_config(hyperparameters={"lr": math.nan}), _ignore).diverged
    reward = replace(task, direction="maximize", worst=-21.0)
    assert reward.run(_config(hyperparameters={"lr": -50.0}), _ignore).value == -21.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_digits_train_on_a_gpu() -> None:
    for task in (digits_mlp, digits_cnn):
        outcome = train(
            task, _config(task.name, "nero", hyperparameters={"lr": 0.1}), _ignore, "cuda"
        )
        assert outcome.value < 0.05
