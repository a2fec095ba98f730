"""Real workers in real processes: exact budgets, signals, and what a dying process leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from PIL import Image

from robustlr import training
from robustlr.claims import worker_name
from robustlr.devices import slots
from robustlr.errors import UserError
from robustlr.launch import launch
from robustlr.registry import load_task
from robustlr.signals import Signals
from robustlr.status import Progress
from robustlr.storage import Storage
from robustlr.study import Study
from robustlr.task import CHECKPOINT
from robustlr.worker import trial_folder, work
from tests.helpers import ROOT, study_from, wait_for
from tests.runs import run_to_end


class Silent:
    seconds = 0.2

    def update(self, progress: Progress) -> None:
        pass


@pytest.fixture
def run_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which tasks in worker processes say that they ran; workers import from ROOT."""
    log = tmp_path / "runs.log"
    monkeypatch.setenv("RUN_LOG", str(log))
    monkeypatch.chdir(ROOT)
    return log


def _study(folder: Path, task: str, seeds: int, lrs: int, name: str = "test") -> Study:
    text = f'name = "{name}"\ntasks = ["tests.helpers:{task}"]\nseeds = {seeds}\n'
    return study_from(
        folder, text + f"[optimizers.nero]\nlr = {[i / 100 for i in range(1, lrs + 1)]}\n"
    )


def _start(url: str, name: str = "test") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "robustlr.worker", name, "cpu"],
        env={**os.environ, "ROBUSTLR_STORAGE": url},
    )


@pytest.mark.parametrize("_repeat", range(3))
def test_eight_workers_run_two_hundred_trials_exactly_once(
    _repeat: int, url: str, storage: Storage, tmp_path: Path, run_log: Path
) -> None:
    study = _study(tmp_path, "counted", seeds=8, lrs=24)
    storage.create_study(study)
    assert storage.progress("test").total == 200
    workers = [_start(url) for _ in range(8)]
    assert [worker.wait() for worker in workers] == [0] * 8
    assert storage.progress("test") == Progress(0, 0, 200, 0, 0)
    runs = Counter(run_log.read_text().splitlines())
    planned = Counter(
        f"{trial.seed} {(trial.point or {})['lr']!r}"
        for cell in study.cells()
        for trial in cell.trials()
    )
    assert runs == planned
    assert len(storage.trials("test")) == 200
    with storage.engine.connect() as connection:
        results = sa.text("SELECT value_json FROM trial_user_attributes WHERE key = 'result'")
        owners = {json.loads(text)["worker"] for text in connection.scalars(results)}
        assert len(owners) > 1


def test_a_real_training_step_in_every_trial(url: str, storage: Storage, tmp_path: Path) -> None:
    text = "seeds = 5\n[optimizers.nero]\nlr = { log = [0.01, 1.0], points = 3 }\n"
    storage.create_study(
        study_from(tmp_path, text.replace("seeds", 'tasks=["tests.real:one_step"]\nseeds'))
    )
    os.chdir(ROOT)
    launch(storage, url, "test", slots("cpu", 2), Silent())
    table = storage.trials("test")
    assert len(table) == 20
    assert (table["steps"] == 1).all()
    assert table["test_value"].notna().all()


def test_a_trial_keeps_its_pictures_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "trials"))
    monkeypatch.chdir(ROOT)
    url = f"sqlite:///{tmp_path}/study.db"
    with Storage(url, create=True) as storage:
        text = 'tasks = ["tests.real:few_steps_gan"]\nseeds = 1\n[optimizers.nero]\nlr = [0.01]\n'
        storage.create_study(study_from(tmp_path, text))
        launch(storage, url, "test", slots("cpu", 1), Silent())
        assert storage.progress("test").complete == 2
    files = [path for path in (tmp_path / "trials").rglob("*") if path.is_file()]
    cell = tmp_path / "trials" / "test" / "tests.real:few_steps_gan" / "nero"
    assert sorted(files) == [cell / "0" / "samples.png", cell / "1" / "samples.png"]
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.width > 200


def test_a_worker_that_lacks_data_stops_and_costs_no_trial(tmp_path: Path) -> None:
    os.chdir(ROOT)
    url = f"sqlite:///{tmp_path}/study.db"
    with Storage(url, create=True) as storage:
        storage.create_study(_study(tmp_path, "lacking", seeds=1, lrs=3))
        with pytest.raises(UserError, match="the data are missing: put them there"):
            launch(storage, url, "test", slots("cpu", 2), Silent())
        assert storage.progress("test") == Progress(4, 0, 0, 0, 0)


class _Cut(Exception):  # noqa: N818 — it is no error
    """Ends a run in the middle, as a dying process does."""


def test_a_worker_goes_on_from_the_checkpoint_in_the_trials_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "trials"))
    monkeypatch.chdir(ROOT)
    url = f"sqlite:///{tmp_path}/study.db"
    text = 'tasks = ["digits-cnn"]\nseeds = 1\n[optimizers.nero]\nlr = [0.1]\n'
    with Storage(url, create=True) as storage:
        storage.create_study(study_from(tmp_path, text))
        claim = storage.claim("test", worker_name("cpu"))
        assert claim is not None
        task, curve = load_task("digits-cnn"), list[float]()

        def cut(step: int, value: float) -> None:
            curve.append(value)
            if step == 100:
                raise _Cut

        with pytest.raises(_Cut):
            run_to_end(task, claim.config, trial_folder(claim), cut)
        checkpoint = trial_folder(claim) / CHECKPOINT
        assert checkpoint.exists()
        storage.give_back(claim)
        calls: list[int] = []
        counted = _counting(calls, training.Training._evaluate)
        monkeypatch.setattr(training.Training, "_evaluate", counted)
        work(storage, "test", "cpu", Signals())
        whole = run_to_end(task, claim.config)
        assert not checkpoint.exists()
        table = storage.trials("test")
        assert table.loc[table["trial"] == claim.number, "value"].item() == whole.outcome.value
        stored = optuna.load_study(study_name=claim.cell, storage=storage.as_optuna())
        first = stored.trials[claim.number]
        assert list(first.intermediate_values.items()) == whole.curve
        # Saved after 99 of 200 steps: six of ten evaluations follow, and those before and of the test.
        assert len(calls) == 8 + 12 + 12


def _counting(calls: list[int], function: Callable[..., float]) -> Callable[..., float]:
    def counted(*arguments: object) -> float:
        calls.append(1)
        return function(*arguments)

    return counted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_running_trial_back(
    number: signal.Signals, url: str, storage: Storage, tmp_path: Path, run_log: Path
) -> None:
    storage.create_study(_study(tmp_path, "slow", seeds=1, lrs=2))
    worker = _start(url)
    wait_for(lambda: storage.progress("test").running == 1)
    time.sleep(0.5)  # in the middle of training
    worker.send_signal(number)
    assert worker.wait(10) == 0
    assert storage.progress("test") == Progress(3, 0, 0, 0, 0)


def test_a_killed_worker_is_replaced_and_its_trial_run_again(
    url: str, storage: Storage, tmp_path: Path, run_log: Path
) -> None:
    storage.create_study(_study(tmp_path, "deadly", seeds=2, lrs=3))
    launch(storage, url, "test", slots("cpu", 1), Silent())
    assert run_log.exists()  # it died once
    assert storage.progress("test") == Progress(0, 0, 8, 0, 0)


def test_a_failing_trial_costs_no_other_and_is_tried_again_on_the_next_launch(
    url: str, storage: Storage, tmp_path: Path, run_log: Path
) -> None:
    storage.create_study(_study(tmp_path, "broken", seeds=2, lrs=2))
    for _ in range(2):
        launch(storage, url, "test", slots("cpu", 1), Silent())
        assert storage.progress("test") == Progress(0, 0, 3, 3, 0)
        (reason,) = storage.failures("test")
        assert reason.startswith("RuntimeError: the machine is on fire (at helpers.py:")


def test_a_result_that_is_not_a_number_is_a_diverged_trial(
    url: str, storage: Storage, tmp_path: Path, run_log: Path
) -> None:
    storage.create_study(_study(tmp_path, "nan", seeds=1, lrs=1))
    launch(storage, url, "test", slots("cpu", 1), Silent())
    assert storage.progress("test") == Progress(0, 0, 2, 0, 2)
    assert storage.trials("test")["value"].tolist() == [1.0, 1.0]


def test_what_a_task_returns_cannot_kill_the_worker(
    url: str, storage: Storage, tmp_path: Path, run_log: Path
) -> None:
    storage.create_study(_study(tmp_path, "odd", seeds=4, lrs=1))
    launch(storage, url, "test", slots("cpu", 1), Silent())
    assert storage.progress("test") == Progress(0, 0, 2, 6, 2)
    reasons = " ".join(storage.failures("test"))
    assert "returns a number or an Outcome, not NoneType" in reasons
    assert "not str" in reasons
    assert "SystemExit: done" in reasons


def test_a_machine_without_the_task_takes_no_trial(
    url: str, storage: Storage, tmp_path: Path, run_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.create_study(_study(tmp_path, "counted", seeds=1, lrs=1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r'"tests.helpers:counted" cannot be imported'):
        launch(storage, url, "test", slots("cpu", 2), Silent())
    assert storage.progress("test") == Progress(2, 0, 0, 0, 0)


def test_workers_that_cannot_start_end_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    with Storage(url, create=True) as storage:
        storage.create_study(_study(tmp_path, "counted", seeds=1, lrs=1))
        with pytest.raises(UserError, match="holds no studies"):
            launch(storage, f"sqlite:///{tmp_path}/other.db", "test", slots("cpu", 1), Silent())


def test_every_trial_records_how_to_run_it_again(
    url: str, storage: Storage, tmp_path: Path, run_log: Path
) -> None:
    storage.create_study(_study(tmp_path, "counted", seeds=1, lrs=1))
    launch(storage, url, "test", slots("cpu", 1), Silent())
    import optuna

    found = optuna.load_study(
        study_name="test/tests.helpers:counted/nero", storage=storage.as_optuna()
    )
    result = found.trials[0].user_attrs["result"]
    assert result["device"] == "cpu"
    assert result["seconds"] >= 0
    versions = result["versions"]
    assert {"robustlr", "optuna", "numpy", "tokenizers", "ale-py"} <= set(versions)
    assert versions["torch"] == version("torch")
    assert result["commit"] is None or len(result["commit"].rstrip("+")) == 40
    assert ":cpu:" in result["worker"]


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [slot.device for slot in slots("cpu", 3)] == ["cpu"] * 3
    cores = len(os.sched_getaffinity(0))
    assert len(slots("cpu")) == cores
    assert {slots("cpu", n)[0].environment["OMP_NUM_THREADS"] for n in (1, 2, 4)} == {"1"}
    with pytest.raises(UserError, match=r"--devices 99: (torch sees no GPU|there is no GPU)"):
        slots("99")
    for wrong in ("", "gpu", "0,"):
        with pytest.raises(UserError, match="or GPU numbers as in"):
            slots(wrong)
    with pytest.raises(UserError, match="--memory-fraction is for GPUs"):
        slots("cpu", 2, 0.5)


def test_gpu_slots_are_counted_among_the_gpus_that_this_process_may_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in slots("all")] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in slots("all")] == ["2", "5"]
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in slots("1")] == ["5"]
    assert [s.device for s in slots()] == ["cuda", "cuda"]
    with pytest.raises(UserError, match='there is no GPU "2"; there are: 0, 1'):
        slots("0,2")


def test_workers_that_share_a_gpu_share_its_memory_and_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shared = slots("all", 2, 0.45)
    assert [slot.name for slot in shared] == ["gpu0", "gpu1", "gpu0", "gpu1"]
    assert {slot.environment["ROBUSTLR_MEMORY_FRACTION"] for slot in shared} == {"0.45"}
    assert {slot.environment["OMP_NUM_THREADS"] for slot in shared} == {"4"}
    with pytest.raises(UserError, match="at most 1"):
        slots("all", 2, 1.5)
