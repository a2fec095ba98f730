"""Chosen and out-of-the-box settings on fresh seeds: chosen right, queued once, run and told apart."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from robustlr.cli import app
from robustlr.confirm import choose, queue_confirmation
from robustlr.errors import UserError
from robustlr.signals import Signals
from robustlr.storage import Storage
from robustlr.study import Study
from robustlr.task import COLUMNS, Outcome
from robustlr.worker import work
from tests.helpers import study_from

STUDY = """
seeds = 2
[conditions]
warmup = [true, 0.5]
[optimizers.adamw]
lr = { log = [0.001, 0.1], points = 3 }
weight_decay = [0.0, 0.1]
amsgrad = [true, false]
"""


def _finish(storage: Storage, limit: int | None = None) -> None:
    """Give every waiting trial a result: with warmup the highest lr is best, else the lowest."""
    for number in itertools.count() if limit is None else range(limit):
        claim = storage.claim("test", f"me:{number}:cpu:0")
        if claim is None:
            return
        point, conditions = claim.config.hyperparameters, claim.config.conditions
        loss = 0.5 - float(point["lr"]) if conditions["warmup"] is True else float(point["lr"])
        storage.complete(claim, Outcome(value=loss, test_value=loss + 0.1), {"seconds": 1.0})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_from(tmp_path, STUDY)


def test_each_cells_best_and_default_settings_are_queued_on_the_next_seeds(
    storage: Storage, study: Study
) -> None:
    storage.create_study(study)
    _finish(storage)
    before = storage.progress("test").total
    assert queue_confirmation(storage, "test", 3) == 2 * 2 * 3
    assert storage.progress("test").waiting == 12
    _finish(storage)
    trials = storage.trials("test")
    assert len(trials) == before + 12
    new = trials.iloc[before:]
    counts = new.groupby(["warmup", "role"])["seed"].agg(list)
    assert [sorted(seeds) for seeds in counts] == [[2, 3, 4]] * 4
    chosen = new[new["role"] == "confirm"].set_index("warmup")["lr"]
    assert set(chosen[True]) == {0.1}
    assert set(chosen[0.5]) == {0.001}
    default = new[new["role"] == "confirm-default"]
    assert (default["amsgrad"].unique(), default["weight_decay"].unique()) == ([False], [0.01])
    assert not trials.duplicated(["warmup", "trial"]).any()  # numbers within a cell go on


def test_confirming_twice_queues_only_what_is_not_there(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    _finish(storage)
    assert queue_confirmation(storage, "test", 2) == 8
    assert queue_confirmation(storage, "test", 2) == 0  # while they wait
    _finish(storage)
    assert queue_confirmation(storage, "test", 2) == 0  # and when they are done
    assert queue_confirmation(storage, "test", 1) == 0
    assert queue_confirmation(storage, "test", 3) == 4
    _finish(storage)
    confirming = storage.trials("test").query("role == 'confirm'")
    assert confirming.groupby("warmup")["lr"].nunique().tolist() == [1, 1]


def test_of_several_that_confirm_at_once_one_queues(
    url: str, storage: Storage, study: Study
) -> None:
    storage.create_study(study)
    _finish(storage)

    def confirm(_: int) -> int:
        with Storage(url) as own:
            return queue_confirmation(own, "test", 5)

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(confirm, range(3))) == [0, 0, 20]
    assert storage.progress("test").waiting == 20


def test_an_unfinished_study_is_refused(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    total = storage.progress("test").total
    _finish(storage, limit=total - 3)
    with pytest.raises(UserError, match="3 of its trials have no result") as caught:
        queue_confirmation(storage, "test", 2)
    assert len(str(caught.value).splitlines()) == 1
    assert storage.progress("test").total == total


def test_a_study_that_does_not_exist_is_refused(storage: Storage, study: Study) -> None:
    storage.create_study(study)
    with pytest.raises(UserError, match='"tset"'):
        queue_confirmation(storage, "tset", 2)


def test_an_adaptive_study_is_confirmed_too(storage: Storage, tmp_path: Path) -> None:
    text = 'design = "tpe"\npoints = 3\nseeds = 2\n[conditions]\nwarmup = [true]\n'
    text += "[optimizers.adamw]\nlr = { log = [0.01, 0.1] }\n"
    storage.create_study(study_from(tmp_path, text))
    _finish(storage)
    best = storage.trials("test").query("role == 'adaptive'")["lr"].max()
    assert queue_confirmation(storage, "test", 2) == 4
    _finish(storage)
    confirming = storage.trials("test").query("role == 'confirm'")
    assert confirming["lr"].tolist() == [best] * 2
    assert confirming["seed"].tolist() == [2, 3]


def test_real_trials_run_on_fresh_seeds(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default's trial and the chosen one's start from the same weights, and have a test value."""
    text = 'tasks = ["tests.real:one_step"]\nseeds = 1\n[optimizers.nero]\nlr = [0.01, 0.1]\n'
    monkeypatch.setenv("ROBUSTLR_FOLDER", str(tmp_path / "trials"))
    storage.create_study(study_from(tmp_path, text))
    work(storage, "test", "cpu", Signals())
    assert queue_confirmation(storage, "test", 2) == 4
    work(storage, "test", "cpu", Signals())
    trials = storage.trials("test")
    assert storage.progress("test").waiting == storage.progress("test").failed == 0
    new = trials[trials["role"].str.startswith("confirm")]
    assert len(new) == 4
    assert new["test_value"].notna().all()
    assert new.groupby("seed")["initial"].nunique().tolist() == [1, 1]


def test_trials_can_be_left_to_workers(url: str, storage: Storage, study: Study) -> None:
    storage.create_study(study)
    _finish(storage)
    for said in ("test: 8 trials queued", "test: all trials are in the database already"):
        command = ["confirm", "test", "--seeds", "2", "--queue-only", "--storage", url]
        assert said in CliRunner().invoke(app, command).stdout
    assert storage.progress("test").waiting == 8


def _cell(values: dict[float, list[float]], direction: str = "minimize") -> pd.DataFrame:
    rows = [
        {"role": "design", "lr": lr, "seed": seed, "value": value, "diverged": value != value}
        for lr, of_lr in values.items()
        for seed, value in enumerate(of_lr)
    ]
    rows.append({"role": "default", "lr": 0.5, "seed": 0, "value": 0.0, "diverged": False})
    fixed: dict[str, Any] = {"task": "t", "optimizer": "o", "direction": direction}
    fixed |= {"worst": 1.0 if direction == "minimize" else -1.0, "trial": range(len(rows))}
    return pd.DataFrame(rows).reindex(columns=[*COLUMNS, "lr"]).assign(**fixed)


def test_the_best_setting_is_the_best_on_average() -> None:
    steady, lucky = [0.3, 0.3], [0.1, 0.9]
    assert choose(_cell({0.1: lucky, 0.2: steady})) == {"confirm": 2, "confirm-default": 4}
    mirrored = {0.1: [-0.1, -0.9], 0.2: [-0.3, -0.3]}
    assert choose(_cell(mirrored, "maximize"))["confirm"] == 2


def test_a_setting_that_diverges_is_not_chosen_for_its_other_seed() -> None:
    assert choose(_cell({0.1: [0.1, float("nan")], 0.2: [0.4, 0.4]}))["confirm"] == 2


def test_a_setting_without_a_hyperparameter_can_be_chosen() -> None:
    cell = _cell({0.1: [0.3, 0.3], 0.2: [0.2, 0.2]})
    plain = cell.assign(momentum=cell["lr"].map({0.1: 0.9}))
    assert choose(plain)["confirm"] == 2
    assert choose(cell.assign(lr=float("nan")))["confirm"] == 0


def test_something_is_chosen_where_everything_diverged() -> None:
    assert choose(_cell({0.1: [float("nan")] * 2, 0.2: [float("nan")] * 2}))["confirm"] == 0
