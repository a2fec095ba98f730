"""The importance of hyperparameters, where it is known."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import importance
from tests.coverage import Interval, coverage

LRS, DECAYS = np.logspace(-4, 0, 6), (0.0, 1e-3, 1e-2, 0.1)
GRID = np.array(list(itertools.product(range(6), range(4))))
BY_LR = 0.1 * (GRID[:, 0] - 2.0) ** 2 / 9
BY_DECAY = 0.05 * GRID[:, 1] / 3


def _runs(losses: np.ndarray, worst: float = 1.0, values: np.ndarray = GRID) -> pd.DataFrame:
    """A run for each point and seed; ``losses`` is [points, seeds]."""
    points, seeds = losses.shape
    on_grid = values is GRID
    lr = LRS[values[:, 0]] if on_grid else values[:, 0]
    decay = np.array(DECAYS)[values[:, 1]] if on_grid else values[:, 1]
    runs: dict[str, Any] = {"task": "t", "optimizer": "a", "role": "design"}
    runs |= {"lr": np.repeat(lr, seeds), "weight_decay": np.repeat(decay, seeds)}
    runs |= {"seed": np.tile(np.arange(seeds), points), "direction": "minimize", "worst": worst}
    value = losses.reshape(-1)
    return pd.DataFrame(runs | {"value": value, "diverged": value >= worst})


def _found(table: pd.DataFrame, method: str, column: str = "importance") -> dict[str, float]:
    return dict(table[table["method"] == method].set_index("hyperparameter")[column])


def test_main_effects_of_a_sum_and_of_a_product() -> None:
    """Of a sum the shares are those of its variances; a sign's product has no main effect."""
    total = BY_LR + 3 * BY_DECAY
    found = _found(importance.compute(_runs(np.stack([total] * 2, axis=1))), importance.FANOVA)
    share = np.var(BY_LR) / np.var(total)
    assert found["lr"] == pytest.approx(share, abs=0.1)
    assert found["weight_decay"] == pytest.approx(1 - share, abs=0.15)
    assert sum(found.values()) == pytest.approx(1)
    crossed = 0.5 + 0.2 * np.sign(GRID[:, 0] - 2.5) * np.sign(GRID[:, 1] - 1.5)
    found = _found(importance.compute(_runs(np.stack([crossed] * 2, axis=1))), importance.FANOVA)
    assert found[importance.REST] > 0.6


def test_ped_anova_names_what_makes_a_setting_the_best() -> None:
    """The lr decides who trains at all; among those that do, only weight decay tells them apart."""
    losses = np.where(GRID[:, 0] >= 5, 1.0, 0.1 + 0.01 * GRID[:, 1])
    table = importance.compute(_runs(np.stack([losses] * 2, axis=1)))
    fanova, ped = (_found(table, method) for method in (importance.FANOVA, importance.PED_ANOVA))
    assert fanova["lr"] > 0.8 > fanova["weight_decay"]
    assert ped["weight_decay"] > ped["lr"]
    assert sum(ped.values()) == pytest.approx(1)


def test_dropping_the_diverged_turns_the_answer_round() -> None:
    losses = np.where(GRID[:, 0] >= 5, 1.0, 0.1 + 0.01 * GRID[:, 1])
    table = importance.compute(_runs(np.stack([losses] * 2, axis=1)))
    kept = _found(table, importance.FANOVA, "without_diverged")
    assert kept["weight_decay"] > 0.9 > 0.1 > kept["lr"]
    assert set(table["runs_diverged"]) == {8}
    text = importance.verdict(table)
    assert "8 of 48 runs diverged and count as the worst value" in text
    assert "another most important hyperparameter in 1 of 1 cells (fANOVA)" in text


def test_the_direction_makes_no_difference() -> None:
    """PED-ANOVA takes low values for good ones."""
    runs = _runs(np.stack([BY_LR + BY_DECAY] * 2, axis=1))
    mirrored = runs.assign(value=-runs["value"], worst=-1.0, direction="maximize")
    one, other = importance.compute(runs), importance.compute(mirrored)
    pd.testing.assert_frame_equal(one, other.assign(direction="minimize"))


def test_a_large_design_is_cut_into_bins_that_keep_every_run() -> None:
    generator = np.random.default_rng(0)
    values = np.stack([10 ** generator.uniform(-4, 0, 600), generator.uniform(0, 1, 600)], axis=1)
    losses = 0.1 * (np.log10(values[:, 0]) + 2) ** 2 + 0.1 * values[:, 1]
    losses = losses[:, None] + 0.02 * generator.normal(size=(600, 1))
    table = importance.compute(_runs(losses, values=values))
    assert set(table["bins"]) == {importance.MOST_POINTS}
    assert set(table["runs"]) == {600}
    found = _found(table, importance.FANOVA)
    assert found["lr"] > 0.8
    assert table["low"].notna().all()  # one seed, but many runs in each bin
    assert "surely lr in 1 of 1 cells." in importance.verdict(table)


def test_a_value_that_runs_do_not_have_is_a_level() -> None:
    """The best is without weight decay: fANOVA must see it."""
    losses = np.where(GRID[:, 1] == 0, 0.1, 0.5) + 0.01 * BY_LR
    runs = _runs(np.stack([losses] * 2, axis=1)).replace({"weight_decay": {0.0: np.nan}})
    found = importance.compute(runs)
    assert _found(found, importance.FANOVA)["weight_decay"] > 0.9
    assert set(found["runs"]) == {48}
    words = pd.DataFrame({"norm": ["b", None, "a"], "lr": [0.1, np.nan, 0.2]})
    assert importance.bins(words)[0].tolist() == [[0, 0], [1, 2], [2, 1]]


def test_few_points_have_no_best_tenth_and_one_hyperparameter_no_rival() -> None:
    few = _runs(np.stack([BY_LR + BY_DECAY] * 2, axis=1)).query("lr <= 1e-3")
    assert set(importance.compute(few)["method"]) == {importance.FANOVA}
    assert "PED-ANOVA" not in importance.verdict(importance.compute(few))
    alone = few.assign(weight_decay=0.0)
    assert importance.compute(alone).empty
    assert "two hyperparameters" in importance.verdict(importance.compute(alone))


def _interval(
    generator: np.random.Generator, method: str, index: int, noise: float, seeds: int = 3
) -> Interval:
    losses = (BY_LR + BY_DECAY)[:, None] + noise * generator.normal(size=(24, seeds))
    cell = _runs(losses).rename(columns={"value": "loss"})
    study = importance._study(GRID, ["lr", "weight_decay"])
    evaluate = partial(importance.METHODS[method], study, ["lr", "weight_decay"])
    places = np.repeat(np.arange(24), seeds)
    row = importance._estimates(evaluate, ["lr", "weight_decay"], cell, places)[index]
    return row["importance"], row["low"], row["high"]


def _truth(method: str, index: int) -> float:
    study = importance._study(GRID, ["lr", "weight_decay"])
    return float(importance.METHODS[method](study, ["lr", "weight_decay"], BY_LR + BY_DECAY)[index])


def test_coverage_of_fanova_where_noise_is_small() -> None:
    """The truth is the forest's answer without noise: its own error is not the seeds' to tell."""
    truth = _truth(importance.FANOVA, 0)
    held = coverage(
        lambda generator: _interval(generator, importance.FANOVA, 0, 0.003, seeds=4),
        truth,
        repeats=40,
    )
    assert held > 0.85  # 40 samples; with 120 at each of ten settings it is 92 to 98 %


def test_ped_anova_falls_short_where_settings_tie() -> None:
    """Two learning rates are equally good: which of them are among the best is chance."""
    truth = _truth(importance.PED_ANOVA, 0)
    held = coverage(
        lambda generator: _interval(generator, importance.PED_ANOVA, 0, 0.003, seeds=4),
        truth,
        repeats=30,
    )
    assert 0.2 < held < 0.85
