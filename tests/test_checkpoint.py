"""A run that is killed and taken up again ends as it would have without the kill."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustlr.checkpoint import Run
from robustlr.registry import load_task
from robustlr.scale import Scale
from robustlr.task import Config, Task
from tests.chaos.faults import disk
from tests.helpers import ROOT
from tests.runs import Ended, ignore, run_to_end, same, with_little_data

SHORT: dict[str, dict[str, int]] = {
    "digits-cnn": {"steps": 24},  # batch norm and augmentation
    "cifar10-vgg11": {"steps": 24},  # dropout
    "imagenet-deit-tiny": {"steps": 12},  # layer norm and attention
    "digits-cgan": {"steps": 12, "batch_size": 16},  # spectral norm, two networks
    "pydoc-lm": {"steps": 12},  # windows of a text, and dropout
    "multi30k-transformer": {"steps": 12},  # batches that the data makes, for epochs; dropout
    "cartpole-ppo": {"steps": 1024},  # four rollouts
    "pong": {"steps": 1024},  # an engine whose state cannot be saved
}
EVALUATIONS = 4


class _StopError(Exception):
    pass


def _task(name: str) -> Task:
    task = with_little_data(load_task(name))
    worst = 1e6 if task.direction == "minimize" else -1e6
    scale = replace(task.scales["small"], evaluations=EVALUATIONS, worst=worst, **SHORT[name])  # type: ignore[arg-type]
    return replace(task, scales={"small": scale})


def _run(
    name: str, optimizer: str, folder: Path | None, each: Callable[[int, float], None] = ignore
) -> Ended:
    config = Config(task=name, optimizer=optimizer, hyperparameters={"lr": 0.01}, seed=3)
    return run_to_end(_task(name), config, folder, each)


@pytest.mark.parametrize("optimizer", ["nero", "rv-adamw", "lamb", "sgdm", "madam"])
@pytest.mark.parametrize("name", SHORT)
def test_a_run_taken_up_again_ends_the_same_to_the_bit(
    name: str, optimizer: str, tmp_path: Path
) -> None:
    half = SHORT[name]["steps"] // 2

    def stop(step: int, value: float) -> None:
        if step == half:
            raise _StopError

    whole = _run(name, optimizer, None)
    with pytest.raises(_StopError):
        _run(name, optimizer, tmp_path, stop)
    assert (tmp_path / "checkpoint.pt").exists()
    torch.manual_seed(123)  # what happens between must not matter
    resumed = _run(name, optimizer, tmp_path)
    assert resumed.outcome == whole.outcome
    assert resumed.curve == whole.curve
    assert len(whole.curve) == EVALUATIONS
    assert same(resumed.states, whole.states)
    again = _run(name, optimizer, tmp_path)  # as when storing the result failed
    assert (again.outcome, again.curve) == (whole.outcome, whole.curve)


def _print(step: int, value: float) -> None:
    print(step, flush=True)


def run_and_tell(name: str, folder: str) -> None:
    """Train in a process of its own, which prints every step that it reports."""
    torch.set_num_threads(1)
    _run(name, "nero", Path(folder), _print)


@pytest.mark.parametrize("name", ["digits-cnn", "digits-cgan", "pydoc-lm", "multi30k-transformer"])
def test_a_killed_process_is_taken_up_by_another(name: str, tmp_path: Path) -> None:
    code = (
        f"from tests.test_checkpoint import run_and_tell; run_and_tell({name!r}, {str(tmp_path)!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if int(line) >= SHORT[name]["steps"] // 2:
                process.kill()
                break
    assert process.returncode == -9
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 0 < state["step"] < SHORT[name]["steps"]
    resumed, whole = _run(name, "nero", tmp_path), _run(name, "nero", None)
    assert resumed.curve == whole.curve
    assert resumed.outcome == whole.outcome
    assert same(resumed.states, whole.states)


def test_a_checkpoint_of_another_configuration_or_a_damaged_one_is_not_taken_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stop(step: int, value: float) -> None:
        raise _StopError

    with pytest.raises(_StopError):
        _run("digits-cnn", "nero", tmp_path, stop)
    path = tmp_path / "checkpoint.pt"
    other = _run("digits-cnn", "sgdm", tmp_path)
    assert other.outcome == _run("digits-cnn", "sgdm", None).outcome
    path.write_bytes(b"not a checkpoint")
    (tmp_path / ".123.checkpoint.pt").touch()  # a process was killed as it wrote
    assert _run("digits-cnn", "sgdm", tmp_path).outcome == other.outcome
    assert "starts anew" in capfd.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_another_protocol_is_not_taken_up(tmp_path: Path) -> None:
    def stop(step: int, value: float) -> None:
        raise _StopError

    task, name = _task("digits-cnn"), "digits-cnn"
    config = Config(task=name, optimizer="nero", hyperparameters={"lr": 0.01}, seed=3)
    own = task.scales["small"]
    for changes in ({"steps": 6}, {"schedule": "linear"}, {"options": {"width": 8}}):
        with pytest.raises(_StopError):
            run_to_end(task, config, tmp_path, stop)
        other = replace(task, scales={"small": replace(own, **changes)})
        assert run_to_end(other, config, tmp_path).curve == run_to_end(other, config).curve


def test_reading_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Evil(), tmp_path / "checkpoint.pt")
    _run("digits-cnn", "sgdm", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = Config(task="digits-cnn", optimizer="sgd", hyperparameters={}, seed=0)
    scale = Scale(steps=1, batch_size=1)
    run = Run(config, scale, lambda step, value: None, tmp_path, (), torch.Generator())
    run.save(1)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def cut(path: Path) -> None:
        path.write_bytes(before[:10])
        raise OSError(28, "No space left on device")

    run.write("checkpoint.pt", cut)
    assert "No space left on device" in capfd.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_full_disk_costs_no_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with disk(tmp_path / "disk", "1m") as small:
        if not small.can_fill:
            pytest.skip("this process may not mount a small disk")
        folder = small.folder / "trial"

        def fill(step: int, value: float) -> None:
            (small.free if step == SHORT["digits-cnn"]["steps"] else small.fill)()

        disturbed = _run("digits-cnn", "nero", folder, fill)
        assert small.was_full
        assert "No space left on device" in capfd.readouterr().err
        assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 24  # again
    whole = _run("digits-cnn", "nero", None)
    assert disturbed.outcome == whole.outcome
    assert same(disturbed.states, whole.states)


def test_a_short_run_leaves_nothing(tmp_path: Path) -> None:
    task = load_task("digits-cnn")
    task = replace(task, scales={"small": Scale(**{**vars(task.scales["small"]), "steps": 5})})
    config = Config(task="digits-cnn", optimizer="sgd", hyperparameters={"lr": 0.1}, seed=0)
    task.run(config, lambda step, value: None, "cpu", tmp_path / "trial")
    assert not (tmp_path / "trial").exists()
