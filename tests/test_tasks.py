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
from robustlr.task import Batch, Config, FunctionTask, Outcome, Scale, Seeds, SupervisedTask
from robustlr.tasks.digits import digits_cnn, digits_mlp
from robustlr.training import _batches, train


def _short(task: SupervisedTask, steps: int = 5, **changes: object) -> SupervisedTask:
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
    task = load_task(name)
    assert task.summary
    assert math.isfinite(task.worst)
    if isinstance(task, SupervisedTask):
        task = _short(task, steps=3)
    reports: list[tuple[int, float]] = []
    outcome = task.run(_config(name), lambda step, value: reports.append((step, value)))
    assert reports[-1] == (3, outcome.value)
    assert not outcome.diverged
    assert outcome.test_value is not None
    assert outcome.initial is not None
    assert outcome.value <= task.worst


def test_listing_tasks_does_not_import_torch() -> None:
    code = (
        "import sys; from robustlr.registry import tasks; tasks(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", tasks())
@pytest.mark.parametrize("optimizer", ["nero", "rv-adamw", "sgdm"])
def test_the_same_seed_gives_the_same_trial_bit_for_bit(name: str, optimizer: str) -> None:
    task = load_task(name)
    if isinstance(task, SupervisedTask):
        task = _short(task, steps=20)
    curves: list[list[float]] = [[], [], []]
    for curve, seed in zip(curves, (1, 1, 2), strict=True):
        torch.manual_seed(len(curve) + seed)  # what happened before must not matter
        config = _config(name, optimizer, seed=seed, hyperparameters={"lr": 0.01})
        curve.append(task.run(config, partial(_note, curve)).value)
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_digits_are_split_into_three_disjoint_parts() -> None:
    data = digits_mlp.data("cpu")
    assert [len(part) for part in data] == [1078, 359, 360]
    assert sum(map(len, data)) == 1797
    for part in data:
        assert part.inputs.shape[1:] == (1, 8, 8)
        assert torch.bincount(part.targets).min() > 0.09 * len(part)
    rows = {tuple(image.flatten().tolist()) for part in data for image in part.inputs}
    assert len(rows) == 1797
    assert abs(float(data.train.inputs.mean())) < 1e-5


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
    data, scale = digits_cnn.data("cpu").train, Scale(steps=30, batch_size=64)
    plain = replace(digits_cnn, augment=None)
    one = [b.targets for b in _batches(plain, data, scale, Seeds(0, 7, 1))]
    other = [b.targets for b in _batches(plain, data, scale, Seeds(5, 7, 2))]
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    epoch = torch.cat(
        [b.targets for b in _batches(plain, data, Scale(steps=14, batch_size=77), seeds[0])]
    )
    assert torch.equal(epoch.bincount(), data.targets.bincount())  # each example once


def test_augmentation_shifts_by_one_pixel() -> None:
    data = digits_cnn.data("cpu").train
    assert digits_cnn.augment is not None
    image = torch.zeros(200, 1, 8, 8)
    image[:, 0, 4, 4] = 1
    moved = digits_cnn.augment(
        Batch(image, data.targets[:200]), torch.Generator().manual_seed(0)
    ).inputs
    places = {tuple(place[2:].tolist()) for place in moved.nonzero()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    assert moved.sum() == 200


def test_equal_seeds_give_every_optimizer_the_same_start_and_batches() -> None:
    seen: dict[str, list[torch.Tensor]] = {}

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        seen[current].append(batch.targets)
        return digits_mlp.loss(model, batch)

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
    outcome = _short(digits_mlp, 10, loss_bound=1e-9).run(_config(), _ignore)
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
    assert (scale.warmup_steps, scale.batch_size) == (0, 16)
    assert digits_mlp.scale_of(_config(conditions={"warmup": 0.5})).warmup_steps == scale.steps // 2
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
