"""Trials that are trained as one program: each is what it would be alone."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustlr import fused, fused_program, training
from robustlr.claims import worker_name
from robustlr.devices import slots
from robustlr.dropout import Dropout, Keys, chances, keys
from robustlr.errors import UserError
from robustlr.fused import Request, train_together
from robustlr.fused_program import UnfusableError
from robustlr.launch import launch
from robustlr.optim.together import Together
from robustlr.registry import load_task, optimizers, tasks
from robustlr.scale import Scale
from robustlr.signals import Lost, Signals, StopRequested
from robustlr.storage import Storage
from robustlr.task import CHECKPOINT, Config, Outcome, SupervisedTask
from robustlr.worker import work
from tests.helpers import ROOT, study_from
from tests.test_worker import Silent

Curve = list[tuple[int, float]]
FUSED = [name for name, task in tasks().items() if task.fuses and "small" in task.scales]


def _brief(name: str, steps: int, **more: Any) -> SupervisedTask:
    """Return a task of a few steps."""
    task = load_task(name)
    assert isinstance(task, SupervisedTask)
    scale = replace(task.scales["small"], steps=steps, epochs=0, evaluations=2)
    return replace(task, scales={"small": scale}, **more)


def _cheap(task: SupervisedTask) -> SupervisedTask:
    """Return the task with a cheap and exact metric that all weights enter, of any value."""

    def loss(model: nn.Module, part: Any, scale: Scale) -> float:
        return float(task.loss(model, part.take(torch.arange(8)), scale))

    scales = {name: replace(scale, worst=None) for name, scale in task.scales.items()}
    more: dict[str, Any] = {"worst": 1e9, "loss_bound": lambda scale: 1e9}
    return replace(task, evaluate=loss, samples=None, direction="minimize", scales=scales, **more)


def _together(
    task: SupervisedTask, configs: list[Config], width: int, folders: list[Path] | None = None
) -> list[tuple[Outcome | BaseException, Curve]]:
    curves: list[Curve] = [[] for _ in configs]

    def reporting(curve: Curve) -> Callable[[int, float], None]:
        return lambda step, value: curve.append((step, value))

    requests = [
        Request(config, reporting(curve), folders[i] if folders else None)
        for i, (config, curve) in enumerate(zip(configs, curves, strict=True))
    ]
    ended = {
        id(e.request.report): e.result for e in train_together(task, iter(requests), width, "cpu")
    }
    return [(ended[id(r.report)], curve) for r, curve in zip(requests, curves, strict=True)]


def _alone(
    task: SupervisedTask, config: Config, folder: Path | None = None
) -> tuple[Outcome, Curve]:
    curve: Curve = []
    outcome = task.run(config, lambda step, value: curve.append((step, value)), "cpu", folder)
    return outcome, curve


def _same(ours: tuple[Any, Curve], theirs: tuple[Any, Curve], rel: float) -> None:
    (outcome, curve), (expected, other) = ours, theirs
    assert isinstance(outcome, Outcome), outcome
    assert (outcome.diverged, outcome.steps) == (expected.diverged, expected.steps)
    assert outcome.initial == expected.initial  # before any arithmetic that differs
    assert outcome.value == pytest.approx(expected.value, rel=rel)
    assert outcome.test_value == pytest.approx(expected.test_value, rel=rel)
    assert [step for step, _ in curve] == [step for step, _ in other]
    assert [v for _, v in curve] == pytest.approx([v for _, v in other], rel=rel)


def _config(task: SupervisedTask, optimizer: str, seed: int, **hyperparameters: float) -> Config:
    return Config(task=task.name, optimizer=optimizer, hyperparameters=hyperparameters, seed=seed)


@pytest.mark.parametrize("optimizer", [*optimizers(), "torch.optim:RMSprop"])
def test_trials_together_are_those_alone(optimizer: str) -> None:
    """Of every optimizer; one diverges, two are taken up as others end, gradients are clipped in one."""
    task = _cheap(_brief("digits-mlp", 12))
    settings = [
        {"lr": 0.003},
        {"lr": 1e30},
        {"lr": 0.001},
        {"lr": 0.003, "gradient_clip": 0.1},
        {"lr": 0.005},
    ]
    configs = [_config(task, optimizer, seed, **s) for seed, s in enumerate(settings)]
    together = _together(task, configs, 3)
    for config, ours in zip(configs, together, strict=True):
        _same(ours, _alone(task, config), rel=5e-3)
    assert all(isinstance(result, Outcome) for result, _ in together)


@pytest.mark.parametrize("name", FUSED)
def test_every_small_task_fuses(name: str) -> None:
    task = _cheap(_brief(name, 3))
    # Seeds differ, and so do lengths of sentences; dropout and augmentation are each trial's own.
    configs = [_config(task, "nero", seed, lr=0.001) for seed in (0, 1, 1)]
    for config, ours in zip(configs, _together(task, configs, 2), strict=True):
        _same(ours, _alone(task, config), rel=1e-3)


@pytest.mark.parametrize("first", ["together", "alone"])
def test_a_run_goes_on_from_the_other_ways_checkpoint(first: str, tmp_path: Path) -> None:
    task = _brief("digits-mlp", 20)
    configs = [_config(task, "adamw", seed, lr=0.01) for seed in range(3)]
    folders = [tmp_path / str(config.seed) for config in configs]
    whole = [_alone(task, config) for config in configs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustlr.checkpoint.stopping", lambda: True)  # at the first step
        for config, folder in zip(configs, folders, strict=True):
            with pytest.raises(StopRequested):
                _alone(task, config, folder) if first == "alone" else _together(
                    task, configs, 3, folders
                )
            assert torch.load(folder / CHECKPOINT, weights_only=True)["step"] >= 1
    sizes = {(folder / CHECKPOINT).stat().st_size for folder in folders}
    assert max(sizes) < 4 * 10**5  # of one trial and not of all
    if first == "alone":
        again = _together(task, configs, 2, folders)
    else:
        again = [_alone(task, c, f) for c, f in zip(configs, folders, strict=True)]
    for ours, theirs in zip(again, whole, strict=True):
        _same(ours, theirs, rel=2e-3)


def test_a_trial_that_is_anothers_by_now_leaves_the_others() -> None:
    task = _brief("digits-mlp", 10)

    def refuse(step: int, value: float) -> None:
        raise Lost

    good = Request(_config(task, "nero", 0, lr=0.01), lambda step, value: None, None)
    lost = Request(_config(task, "nero", 1, lr=0.01), refuse, None)
    ended = list(train_together(task, iter([lost, good]), 2, "cpu"))
    results = {e.request.config.seed: e.result for e in ended}
    assert isinstance(results[1], Lost)
    assert results[0] == _alone(task, good.config)[0]


def test_a_trial_that_cannot_begin_leaves_the_others() -> None:
    task = _brief("digits-mlp", 4)
    configs = [_config(task, "adamw", 0, lr=lr) for lr in (-1.0, 0.01, 0.02)]
    for width in (1, 2):
        for order in ((0, 1, 2), (1, 0, 2), (1, 2, 0)):
            results = [result for result, _ in _together(task, [configs[i] for i in order], width)]
            refused = results.pop(order.index(0))
            assert isinstance(refused, ValueError)
            assert all(isinstance(result, Outcome) for result in results)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_layouts_of_weights_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU convolutions have their weights' channels last."""
    monkeypatch.setattr(
        training, "place", lambda model, device: model.to(memory_format=torch.channels_last)
    )
    for name, optimizer in (("digits-cnn", "adamw"), ("digits-resnet", "nero")):
        task = _cheap(_brief(name, 6))
        configs = [_config(task, optimizer, seed, lr=0.01) for seed in range(3)]
        for config, ours in zip(configs, _together(task, configs, 3), strict=True):
            _same(ours, _alone(task, config), rel=1e-3)


def test_a_parameter_without_a_part_in_the_loss_stays() -> None:
    def model(scale: Scale) -> nn.Module:
        built = _brief("digits-mlp", 1).model(scale)
        built.unused = nn.Parameter(torch.ones(3))
        return built

    task = _cheap(_brief("digits-mlp", 4, model=model))
    configs = [_config(task, "adamw", seed, lr=0.01, gradient_clip=0.1) for seed in range(2)]
    for config, ours in zip(configs, _together(task, configs, 2), strict=True):
        _same(ours, _alone(task, config), rel=1e-3)


def test_a_metric_may_be_numpys_or_torchs() -> None:
    own = _brief("digits-mlp", 2)

    def evaluate(model: nn.Module, part: Any, scale: Scale) -> Any:
        value = own.evaluate(model, part, scale)
        return torch.tensor(value) if len(part) > 359 else np.float32(value)

    task = replace(own, evaluate=evaluate)
    for result, _ in _together(task, [_config(task, "nero", 0, lr=0.01)], 2):
        assert isinstance(result, Outcome)
        assert type(result.value) is type(result.test_value) is float


def test_trials_are_charged_for_all_their_time() -> None:
    def slowly(*_: Any) -> float:
        time.sleep(0.05)
        return 0.5

    task = _brief("digits-mlp", 4, evaluate=slowly)
    requests = [
        Request(_config(task, "nero", seed, lr=0.01), lambda step, value: None, None)
        for seed in range(3)
    ]
    began = time.monotonic()
    ended = list(train_together(task, iter(requests), 3, "cpu"))
    assert (
        0.3 < sum(e.seconds for e in ended) <= time.monotonic() - began
    )  # but for the first looks


def _dropping(scale: Scale) -> nn.Module:
    return nn.Sequential(_brief("digits-mlp", 1).model(scale), nn.Dropout(0.1))


def _branching(scale: Scale) -> nn.Module:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(64, 10)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.map(inputs.flatten(1).float())
            return outputs if outputs.sum() > 0 else -outputs

    return Branching()


@pytest.mark.parametrize(
    ("model", "reason"), [(_dropping, "robustlr.dropout"), (_branching, "cannot be mapped")]
)
def test_what_cannot_be_fused_says_why(model: Any, reason: str) -> None:
    task = _brief("digits-mlp", 4, model=model)
    with pytest.raises(UnfusableError, match=reason):
        _together(task, [_config(task, "nero", 0, lr=0.01)] * 2, 2)


def test_accumulated_gradients_are_not_fused() -> None:
    task = _brief("digits-mlp", 4)
    scale = replace(task.scales["small"], accumulated=2)
    with pytest.raises(UnfusableError, match="accumulated"):
        _together(replace(task, scales={"small": scale}), [_config(task, "nero", 0, lr=0.01)], 2)


def _width_compiled(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """Train three trials whose program is to be compiled whatever that costs; return its width."""
    task = _cheap(_brief("digits-mlp", 4))
    monkeypatch.setattr(fused_program, "COMPILE_STEPS", 0)
    monkeypatch.setattr(fused_program, "FULL_SHARE", float("inf"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    fused_program._kept.clear()
    configs = [_config(task, "adamw", seed, lr=0.003) for seed in range(3)]
    together = _together(task, configs, 3)
    for config, ours in zip(configs, together, strict=True):
        _same(ours, _alone(task, config), rel=1e-3)
    (program,) = fused_program._kept.values()
    fused_program._kept.clear()
    return program.width


def test_compiled_trials_are_those_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _width_compiled(monkeypatch, tmp_path) == 3


def test_without_a_compiler_trials_train_together_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from torch._inductor import config

    compiler = config.cpp.cxx
    with config.patch({"cpp.cxx": (None, str(tmp_path / "none"))}):
        assert _width_compiled(monkeypatch, tmp_path) == 0
    assert config.cpp.cxx == compiler
    assert "trained together uncompiled" in capsys.readouterr().err


TORCH = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.5, 0.9)}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "eps": 1e-3}),
    (torch.optim.AdamW, {"amsgrad": True}),  # which no kernel knows
    (torch.optim.RMSprop, {}),
]


@pytest.mark.parametrize("kernels", ["1", "0"])
@pytest.mark.parametrize(("make", "options"), TORCH)
def test_torchs_optimizers_together_take_their_own_steps(
    make: Any, options: dict[str, Any], kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other rates and schedules, and one of them taken up after two steps."""
    monkeypatch.setenv("ROBUSTLR_KERNELS", kernels)
    torch.manual_seed(0)
    rates, shapes = (0.01, 0.3, 0.1), ((5, 4), (7,), ())
    gradients = [[torch.randn(3, *shape) for shape in shapes] for _ in range(8)]
    stacked = [torch.randn(3, *shape) for shape in shapes]
    alone = [[nn.Parameter(tensor[k].clone()) for tensor in stacked] for k in range(3)]
    together = [[nn.Parameter(tensor[k]) for tensor in stacked] for k in range(3)]
    made = [
        [make(own, lr=lr, **options) for own, lr in zip(parameters, rates, strict=True)]
        for parameters in (alone, together)
    ]

    def factor(step: int) -> float:
        return 1 / (1 + step)

    def step_alone(optimizer: Any, own: list[nn.Parameter], k: int, step: int) -> None:
        for parameter, gradient in zip(own, gradients[step], strict=True):
            parameter.grad = gradient[k].clone()
        optimizer.param_groups[0]["lr"] = rates[k] * factor(step)
        optimizer.step()
        optimizer.zero_grad()

    for k in range(3):
        for step in range(8):
            step_alone(made[0][k], alone[k], k, step)
        made[1][k].param_groups[0]["initial_lr"] = rates[k]
    for step in range(2):
        step_alone(made[1][2], together[2], 2, step)
    first = Together(made[1], together, [factor] * 3, 8, [0, 0, 2])
    for step in range(6):
        first.step([torch.stack([g[0], g[1], later[2]]) for g, later in zip(
            gradients[step], gradients[step + 2], strict=True
        )])  # fmt: skip
    last = Together(made[1][:2], together[:2], [factor] * 2, 8, [6, 6])
    for step in (6, 7):
        last.step([gradient[:2] for gradient in gradients[step]])
    for ours, theirs in zip(together, alone, strict=True):
        for own, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=2e-5)


# Dropout


def test_dropout_leaves_out_its_share_independently() -> None:
    layer, inputs = Dropout(0.3), torch.ones(200, 1000)
    model = nn.Sequential(layer)
    made, masks = Keys(model, "cpu"), []
    for step in range(3):
        made.set(7, step)
        outputs = model(inputs)
        assert outputs.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
        assert torch.equal(outputs, model(inputs))
        masks.append((outputs > 0).double())
    for mask in masks:
        assert mask.mean().item() == pytest.approx(0.7, abs=0.005)
        for dimension in (0, 1):  # neighbours
            near = mask * mask.roll(1, dimension)
            assert near.mean().item() == pytest.approx(0.49, abs=0.006)
    assert (masks[0] * masks[1]).mean().item() == pytest.approx(0.49, abs=0.006)
    layer.eval()
    assert layer(inputs) is inputs


def test_keys_tell_trials_steps_and_layers_apart() -> None:
    found = [keys([(s, t)], 3)[0].tolist() for s in range(4) for t in range(4)]
    assert len({tuple(key) for one in found for key in one}) == 48
    assert torch.equal(keys([(1, 2), (3, 4)], 3)[1], keys([(3, 4)], 3)[0])


def test_chances_are_uniform() -> None:
    words = chances(torch.tensor([5, -6], dtype=torch.int32), (4, 2**14)).flatten().double()
    counts = torch.histc(words, bins=64, min=-(2**31), max=2**31)
    chi_squared = ((counts - 1024) ** 2 / 1024).sum().item()
    assert 30 < chi_squared < 110  # 63 ± 11 degrees of freedom
    bits = [((words.long() >> bit) & 1).double().mean().item() for bit in range(32)]
    assert all(abs(share - 0.5) < 0.01 for share in bits)


def test_a_place_has_the_same_chance_in_a_larger_tensor() -> None:
    key = torch.tensor([5, -6], dtype=torch.int32)
    assert torch.equal(chances(key, (3, 4, 5)), chances(key, (6, 8, 9))[:3, :4, :5])


def test_dropout_without_a_key_is_torchs() -> None:
    layer, inputs = Dropout(0.5), torch.ones(100)
    torch.manual_seed(0)
    ours = layer(inputs)
    torch.manual_seed(0)
    assert torch.equal(ours, nn.functional.dropout(inputs, 0.5))
    with pytest.raises(ValueError, match="below 1"):
        Dropout(1.0)


# Workers

STUDY = """
tasks = ["tests.chaos.tasks:brief"]
seeds = 2
[optimizers.nero]
lr = { log = [0.001, 1.0], points = 4 }
[optimizers.adamw]
lr = { log = [0.001, 1000.0], points = 4 }
"""


def _comparable(storage: Storage) -> list[dict[str, Any]]:
    table = storage.trials("test").drop(columns="seconds")
    rows: list[dict[str, Any]] = table.sort_values(["optimizer", "trial"]).to_dict("records")
    return rows


def test_a_fused_study_has_the_same_table(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "trials"))
    tables = []
    for fuse, at in ((None, f"sqlite:///{tmp_path}/alone.db"), ("4", url)):
        with Storage(at, create=True) as storage:
            storage.create_study(study_from(tmp_path, STUDY))
            work(storage, "test", "cpu", Signals(), fuse)
            tables.append(_comparable(storage))
            assert storage.trials("test")["seconds"].gt(0).all()
    assert len(tables[0]) == 20
    for alone, together in zip(*tables, strict=True):
        for name, value in alone.items():
            if isinstance(value, float):  # AdamW's last bits differ, and some rates are chaotic
                expected = pytest.approx(value, abs=0.1, nan_ok=True)
                close = value if alone["optimizer"] == "nero" else expected
                assert together[name] == close or (value != value), name
            else:
                assert together[name] == value, name
    assert not list((tmp_path / "trials").rglob(CHECKPOINT))


def test_a_worker_claims_trials_of_one_cell_and_first_of_one_seed(
    storage: Storage, tmp_path: Path
) -> None:
    storage.create_study(study_from(tmp_path, STUDY))
    me, other = worker_name("cpu"), worker_name("cpu", 1)
    first = storage.claim("test", me)
    assert first is not None
    beside = []
    while claim := storage.claim("test", me, first.trial_id):
        beside.append(claim)
    assert {claim.cell for claim in beside} == {first.cell}
    assert len(beside) == 9
    seeds = [first.config.seed, *(claim.config.seed for claim in beside)]
    assert seeds == sorted(seeds, key=lambda seed: seed != first.config.seed)
    theirs = storage.claim("test", other)
    assert theirs is not None
    assert theirs.cell != first.cell


def test_a_trial_that_lost_a_worker_is_not_trained_beside_others(
    storage: Storage, tmp_path: Path
) -> None:
    """It may have been its doing, and cost its neighbours a try each time."""
    storage.create_study(study_from(tmp_path, STUDY))
    me = worker_name("cpu")
    killer = storage.claim("test", me)
    assert killer is not None
    storage.release(me, "it was killed")
    again = storage.claim("test", me)
    assert again is not None
    assert again.trial_id == killer.trial_id
    assert storage.claim("test", me, again.trial_id) is None
    other = worker_name("cpu", 1)
    first = storage.claim("test", other)
    assert first is not None
    storage.release(me)
    beside = []
    while claim := storage.claim("test", other, first.trial_id):
        beside.append(claim.trial_id)
    assert killer.trial_id not in beside
    assert len(beside) == 8


def test_a_killed_worker_gives_back_all_that_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "trials"))
    monkeypatch.setenv("ROBUSTLR_SAVE_SECONDS", "0.05")
    url = f"sqlite:///{tmp_path}/study.db"
    with Storage(url, create=True) as storage:
        storage.create_study(study_from(tmp_path, STUDY))

        class Killing(Silent):
            killed: int = 0

            def update(self, progress: Any) -> None:
                if self.killed or not list((tmp_path / "trials").rglob(CHECKPOINT)):
                    return
                running = storage.status("test").running
                if len(running) == 5:
                    os.kill(running[0].process, signal.SIGKILL)
                    self.killed = len(running)

        display = Killing()
        launch(storage, url, "test", slots("cpu", 1, fuse="5"), display)
        assert display.killed == 5
        table = storage.trials("test")
        assert len(table) == 20
        assert storage.progress("test").complete == 20


@pytest.mark.parametrize("place", ["_stack", "_settle"])
def test_running_out_of_memory_halves_the_number_together(
    place: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """In a step, and in an evaluation, where other errors are the trial's own.

    The program stays the one that is compiled for eight, to which four are not filled up.
    """
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "trials"))
    monkeypatch.setattr(fused_program, "COMPILE_STEPS", 0)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    fused_program._kept.clear()
    widths: list[int] = []
    original = getattr(fused._Fused, place)

    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def limited(self: Any, *given: Any) -> None:
        number = len(self._slots)
        widths.extend([] if widths and widths[-1] == number else [number])
        if number <= 2:
            original(self, *given)
        elif place == "_settle":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training.Training, "settle", exhausted)
                original(self, *given)
        else:
            exhausted()

    monkeypatch.setattr(fused._Fused, place, limited)
    storage.create_study(study_from(tmp_path, STUDY))
    work(storage, "test", "cpu", Signals(), "8")
    assert widths[:3] == [8, 4, 2]
    assert storage.progress("test").complete == 20
    assert "half now" in capsys.readouterr().err


def test_a_task_that_cannot_fuse_runs_alone_and_says_so_once(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "trials"))
    monkeypatch.setattr(fused_program, "RANDOM", (nn.Linear,))
    fused_program._kept.clear()
    storage.create_study(study_from(tmp_path, STUDY))
    work(storage, "test", "cpu", Signals(), "8")
    assert storage.progress("test").complete == 20
    assert capsys.readouterr().err.count("trained alone") == 2  # of two cells


def test_fuse_takes_a_number_or_auto() -> None:
    assert slots("cpu", 1, fuse="auto")[0].environment["ROBUSTLR_FUSE"] == "auto"
    assert "ROBUSTLR_FUSE" not in slots("cpu", 1)[0].environment
    for wrong in ("0", "1", "many", "2.5"):
        with pytest.raises(UserError, match="--fuse"):
            slots("cpu", 1, fuse=wrong)
