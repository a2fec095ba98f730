"""Verdicts on findings, from tables whose truth is known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis._verdicts import judge
from robustlr.errors import UserError
from robustlr.findings import Finding
from robustlr.registry import studies
from robustlr.report import write_report
from robustlr.status import Progress
from robustlr.study import load_study
from tests.helpers import study_from
from tests.test_analysis import _trials


def _finding(**changes: Any) -> Finding:
    values: dict[str, object] = {
        "text": "t",
        "better": {"optimizer": "flat"},
        "than": {"optimizer": "steep"},
    }
    return Finding.model_validate({**values, **changes})


def _judged(trials: pd.DataFrame, **changes: Any) -> pd.Series:
    table = judge([_finding(**changes)], trials)
    assert len(table) == 1
    return table.iloc[0]


CLEAR: dict[str, tuple[float, ...]] = {"flat": (0.2, 0.1, 0.1, 0.2), "steep": (0.9, 0.3, 0.9, 0.9)}


def test_a_difference_beyond_the_seeds_is_a_verdict() -> None:
    row = _judged(_trials(CLEAR))
    assert row["verdict"] == "yes"
    assert row["difference"] == pytest.approx(0.2, abs=0.01)
    assert row["low"] < row["difference"] < row["high"]
    assert row["than_value"] - row["better_value"] == pytest.approx(row["difference"])
    assert row["seeds"] == 3
    opposite = _judged(_trials(CLEAR), better={"optimizer": "steep"}, than={"optimizer": "flat"})
    assert opposite["verdict"] == "no"
    assert opposite["difference"] == pytest.approx(-row["difference"])


def test_equal_arms_and_single_seeds_are_undecided() -> None:
    noisy = _trials({"flat": (0.2,) * 4, "steep": (0.2,) * 4}, noise=0.2, seeds=5)
    assert _judged(noisy)["verdict"] == "undecided"
    assert _judged(_trials(CLEAR, seeds=1))["verdict"] == "undecided"


def test_the_very_same_results_are_not_better() -> None:
    row = _judged(
        _trials({"flat": (0.2,) * 4, "steep": (0.2,) * 4}, noise=0.0, decays=(0.0,)),
        better={"optimizer": "flat"},
        than={"optimizer": "steep"},
    )
    assert (row["low"], row["high"], row["verdict"]) == (0, 0, "no")


def test_a_reward_is_better_when_it_is_higher() -> None:
    trials = _trials(CLEAR)
    rewards = trials.assign(direction="maximize", value=-trials["value"], worst=-0.9)
    row = _judged(rewards)
    assert row["verdict"] == "yes"
    assert row["better_value"] == pytest.approx(-0.1, abs=0.02)


def test_settings_and_conditions_select_the_trials() -> None:
    default = {"optimizer": "steep", "setting": "default"}
    row = _judged(_trials(CLEAR), better={"optimizer": "steep"}, than=default)
    assert row["than_value"] == pytest.approx(0.9, abs=0.01)
    assert row["than"] == "steep, default"
    on, off = ({"optimizer": "flat", "conditions": {"warmup": value}} for value in (True, False))
    row = _judged(_trials({"flat": (0.9, 0.9, 0.9, 0.1)}), better=on, than=off)
    assert row["difference"] == pytest.approx(0.05, abs=0.01)  # _trials' price of no warmup


def test_the_setting_in_the_middle_stands_for_the_range() -> None:
    row = _judged(
        _trials({"flat": (0.5, 0.2, 0.3, 0.3), "steep": (0.9, 0.1, 0.8, 0.8)}),
        better={"optimizer": "flat", "setting": "median"},
        than={"optimizer": "steep", "setting": "median"},
    )
    assert (row["better"], row["verdict"]) == ("flat, median", "yes")
    assert row["better_value"] == pytest.approx(0.3, abs=0.03)
    assert row["than_value"] == pytest.approx(0.8, abs=0.03)


def test_a_margin_is_a_share_of_what_there_is_to_gain() -> None:
    for margin, verdict in ((0.2, "no"), (0.3, "yes")):
        worse, better = {"optimizer": "steep"}, {"optimizer": "flat"}
        row = _judged(_trials(CLEAR), better=worse, than=better, margin=margin)
        assert row["verdict"] == verdict


def test_the_tuned_setting_of_a_seed_is_chosen_on_the_others() -> None:
    trials = _trials({"flat": (0.5,) * 4, "steep": (0.5,) * 4}, noise=0.0, decays=(0.0,))
    design = trials["role"] == "design"
    for seed in range(3):  # each seed is lucky at a setting of its own
        lr = sorted(trials["lr"].unique())[seed]
        lucky = design & (trials["seed"] == seed) & (trials["lr"] == lr)
        trials.loc[lucky & (trials["optimizer"] == "flat"), "value"] = 0.0
    assert _judged(trials)["better_value"] > 0.4


def test_a_margin_changes_the_verdict_and_not_the_difference() -> None:
    worse, better = {"optimizer": "steep"}, {"optimizer": "flat"}
    without = _judged(_trials(CLEAR), better=worse, than=better)
    with_margin = _judged(_trials(CLEAR), better=worse, than=better, margin=0.3)
    assert with_margin["difference"] == without["difference"]
    assert with_margin["margin"] == pytest.approx(0.3 * (0.9 - 0.1), abs=0.02)
    assert (without["verdict"], with_margin["verdict"]) == ("no", "yes")


def test_arms_without_trials_are_said() -> None:
    for trials in (_trials().query("optimizer == 'flat'"), _trials().query("role == 'default'")):
        row = _judged(trials)
        assert (row["verdict"], row["seeds"]) == ("no trials", 0)
    assert judge([_finding()], _trials().iloc[:0]).empty


def test_the_report_shows_the_verdicts(tmp_path: Path) -> None:
    study = study_from(
        tmp_path,
        "[optimizers.flat]\nclass = 'nero'\n[optimizers.steep]\nclass = 'nero'\n"
        "[[findings]]\ntext = 'Flat < steep'\nbetter = { optimizer = 'flat' }\n"
        "than = { optimizer = 'steep' }\n",
    )
    done = Progress(waiting=0, running=0, complete=9, failed=0, diverged=0)
    page = write_report(_trials(CLEAR), tmp_path / "r", study=study, progress=done)
    assert "Flat &lt; steep Of 1 comparison: yes 1." in page.read_text(encoding="utf-8")
    assert list(pd.read_csv(tmp_path / "r" / "findings.csv")["verdict"]) == ["yes"]


ERRORS = {
    "optimizer": ("better = { optimizer = 'neor' }\nthan = { optimizer = 'nero' }", '"neor"'),
    "condition": (
        "better = { optimizer = 'nero', conditions = { warmpu = true } }\n"
        "than = { optimizer = 'nero' }",
        'did you mean "warmup"',
    ),
    "value": (
        "better = { optimizer = 'nero', conditions = { warmup = 0.5 } }\n"
        "than = { optimizer = 'nero' }",
        "the study has warmup = True, False",
    ),
    "task": (
        "tasks = 'digits-cnn'\nbetter = { optimizer = 'nero' }\nthan = { optimizer = 'nero' }",
        '"digits-cnn"',
    ),
    "a condition left open": (
        "better = { optimizer = 'nero', conditions = { warmup = true } }\n"
        "than = { optimizer = 'nero' }",
        "the study varies warmup, so each arm must say which it is",
    ),
    "key": ("bettr = { optimizer = 'nero' }\nthan = { optimizer = 'nero' }", 'mean "better"'),
    "key of an arm": (
        "better = { optimiser = 'nero' }\nthan = { optimizer = 'nero' }",
        'did you mean "optimizer"',
    ),
    "twice the same arm": (
        "better = { optimizer = 'nero' }\nthan = { optimizer = 'nero' }",
        "findings.1: better and than are the same arm",
    ),
    "setting": (
        "better = { optimizer = 'nero', setting = 'best' }\nthan = { optimizer = 'nero' }",
        'setting = "best"',
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_finding_about_what_is_not_in_the_study_is_refused(case: str, tmp_path: Path) -> None:
    text, message = ERRORS[case]
    with pytest.raises(UserError, match="findings") as raised:
        study_from(
            tmp_path,
            f"tasks = ['digits-mlp']\n[conditions]\nwarmup = [true, false]\n[optimizers.nero]\n"
            f"[[findings]]\ntext = 't'\n{text}\n",
        )
    assert message in str(raised.value)


def test_every_finding_that_ships_has_trials_to_judge_it() -> None:
    generator = np.random.default_rng(0)
    for name in studies():
        study = load_study(name)
        rows = [
            {"task": cell.task, "optimizer": cell.optimizer.name, "role": trial.role}
            | {"seed": trial.seed, "value": generator.uniform(), "direction": "minimize"}
            | {"worst": 1.0, "diverged": False, "conditions": " ".join(cell.conditions)}
            | dict(trial.point or {})
            | dict(cell.conditions)
            for cell in study.cells()
            for trial in cell.trials()
        ]
        table = judge(study.findings, pd.DataFrame(rows))
        judged = set(table["finding"]) if len(table) else set()
        assert judged == {finding.text for finding in study.findings}
        assert "no trials" not in set(table["verdict"] if len(table) else ())


def test_perplexities_are_compared_in_nats() -> None:
    """A share of a vocabulary of 50,000 is more than there is to tell apart."""
    trials = _trials(CLEAR)
    perplexity = np.exp(10 * trials["value"])
    trials = trials.assign(value=perplexity, metric="validation perplexity", worst=50_000.0)
    row = _judged(trials, better={"optimizer": "steep"}, than={"optimizer": "flat"}, margin=0.01)
    assert row["difference"] == pytest.approx(-2, abs=0.1)
    assert row["margin"] == pytest.approx(0.01 * (math.log(50_000) - 1), abs=0.01)
    assert row["verdict"] == "no"
    assert row["better_value"] == pytest.approx(math.exp(3), rel=0.1)
    assert row["than_value"] == pytest.approx(math.exp(1), rel=0.1)
