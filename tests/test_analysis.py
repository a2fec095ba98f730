"""Promises of every analysis in the folder, and the numbers of each."""

import inspect
import itertools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import (
    divergence,
    gap,
    heatmap,
    lr_curves,
    near_optimal,
    sensitivity,
    stability,
    warmup,
    width,
)
from robustlr.analysis._intervals import jackknife, mean_interval, share_interval
from robustlr.registry import analyses
from robustlr.report import pictures

LRS = (1e-3, 1e-2, 1e-1, 1.0)


def _trials(
    losses: Mapping[str, tuple[float, ...]] | None = None,
    seeds: int = 3,
    warmups: tuple[bool, ...] = (True, False),
    decays: tuple[float, ...] = (0.0, 0.1),
    noise: float = 0.01,
) -> pd.DataFrame:
    """A made-up study whose truth is known: loss by optimizer and lr, less decay is better."""
    losses = losses or {"flat": (0.2, 0.1, 0.1, 0.2), "steep": (0.9, 0.1, 0.9, 0.9)}
    rows: list[dict[str, Any]] = []
    generator = np.random.default_rng(0)
    for (optimizer, curve), on, seed in itertools.product(losses.items(), warmups, range(seeds)):
        points = [
            ("design", lr, decay, loss)
            for lr, loss in zip(LRS, curve, strict=True)
            for decay in decays
        ]
        for role, lr, decay, loss in [("default", LRS[0], 0.0, curve[0]), *points]:
            penalty = 0.0 if on else 0.05 * (lr == 1.0)
            value = loss + decay / 10 + penalty + noise * float(generator.uniform())
            rows.append({"study": "s", "task": "t", "optimizer": optimizer, "trial": len(rows)})
            rows[-1] |= {"role": role, "seed": seed, "value": value, "direction": "minimize"}
            rows[-1] |= {"worst": 0.9, "initial": 0.9, "diverged": loss >= 0.9, "test_value": value}
            rows[-1] |= {"steps": 10, "seconds": 1.0, "lr": lr, "weight_decay": decay, "warmup": on}
            rows[-1] |= {"curve": f"5=0.9 10={value}"}
    return pd.DataFrame(rows)


def _two_tasks() -> pd.DataFrame:
    """What analyses that compare tasks need."""
    return pd.concat([_trials(), _trials(noise=0.02).assign(task="u")], ignore_index=True)


def _empty_hyperparameters() -> pd.DataFrame:
    """One optimizer without any hyperparameter, and one that was also run without its momentum."""
    trials = _two_tasks().assign(kind="a")
    free = trials[(trials["optimizer"] == "flat") & (trials["lr"] == LRS[1])]
    free = free[free["weight_decay"] == 0].assign(optimizer="free", lr=np.nan, kind=None)
    momentum = trials["weight_decay"].map({0.0: np.nan, 0.1: 0.9})
    return pd.concat(
        [trials.assign(momentum=momentum, weight_decay=np.nan), free.drop(columns="weight_decay")],
        ignore_index=True,
    )


def _random_design(count: int) -> pd.DataFrame:
    """Every point has a learning rate and a weight decay of its own."""
    generator = np.random.default_rng(0)
    trials = _trials().query("role == 'design'").sample(count, random_state=0)
    lrs, decays = 10.0 ** generator.uniform(-4, 0, count), generator.uniform(0, 0.1, count)
    return trials.assign(lr=lrs, weight_decay=decays, seed=0)


HARD = {
    "random design": _random_design(80),
    "disjoint ranges": _trials().assign(
        lr=lambda t: t["lr"].where(t["optimizer"] == "flat", t["lr"] * 1e6)
    ),
    "one trial": _trials().iloc[[1]],
    "one default trial": _trials().iloc[[0]],
    "one seed": _trials(seeds=1),
    "all diverged": _trials().assign(diverged=True, value=0.9),
    "all constant": _trials().assign(value=0.5, diverged=False),
    "no default": _trials().query("role == 'design'"),
    "only adaptive": _trials().query("role == 'design'").assign(role="adaptive"),
    "unequal seeds": _trials().query("not (optimizer == 'flat' and seed == 2)"),
    "missing points": _trials().sample(frac=0.5, random_state=0),
    "maximized": _trials().assign(direction="maximize", worst=-1.0),
    "not numbers": _trials().assign(value=lambda t: t["value"].where(t["lr"] < 1)),
    "no conditions": _trials(warmups=(True,)).drop(columns="warmup"),
    "no decay": _trials(decays=(0.0,)).drop(columns="weight_decay"),
    "text hyperparameter": _trials().assign(kind="a"),
    "negative values": _trials().assign(value=lambda t: t["value"] - 5, worst=-4.0),
    "no trials": _trials().iloc[:0],
    "two tasks": _two_tasks(),
    "two tasks, all diverged": _two_tasks().assign(diverged=True, value=0.9),
    "two tasks, one seed": _two_tasks().query("seed == 0"),
    "two tasks, unequal seeds": _two_tasks().query("not (task == 'u' and seed == 2)"),
    "two tasks, missing points": _two_tasks().sample(frac=0.5, random_state=0),
    "two tasks, a cell missing": _two_tasks().query("task == 't' or optimizer == 'flat'"),
    "empty hyperparameters": _empty_hyperparameters(),
    "no curves": _trials().assign(curve=None),
}


DRAWN = ("one trial", "all diverged", "maximized", "random design", "two tasks, missing points")
"""Those that are drawn too, which takes most of the time."""


@pytest.mark.parametrize("name", analyses())
@pytest.mark.parametrize("case", HARD)
def test_every_analysis_survives(name: str, case: str) -> None:
    module = analyses()[name]
    before = HARD[case].copy()
    table = module.compute(HARD[case])
    pd.testing.assert_frame_equal(HARD[case], before)  # pure: the input is as it was
    if case in DRAWN and not table.empty:
        assert all(picture.png.startswith(b"\x89PNG") for picture in pictures(name, module, table))
    assert module.verdict(table).endswith(".")


@pytest.mark.parametrize("name", analyses())
def test_every_analysis_states_its_question_and_counts(name: str) -> None:
    module = analyses()[name]
    assert (inspect.getdoc(module) or "").splitlines()[0].endswith("?")
    assert module.TITLE
    table = module.compute(_two_tasks())
    assert {"task", "optimizer", "warmup", "points", "seeds", "diverged"} <= {*table}
    assert len(table)


def _cell(module: ModuleType, trials: pd.DataFrame, **which: Any) -> pd.Series:
    table = module.compute(trials)
    if module is sensitivity:
        which = {"hyperparameter": "lr", **which}
    for column, value in which.items():
        table = table[table[column] == value]
    (row,) = table.to_dict("records")
    return pd.Series(row)


def test_sensitivity_is_the_mean_excess_over_the_range() -> None:
    trials = _trials(noise=0.0)
    flat = _cell(sensitivity, trials, optimizer="flat", warmup=True, range="common")
    assert flat["sensitivity"] == pytest.approx(np.mean([0.1, 0, 0, 0.1]) / 0.8)
    assert (flat["range_low"], flat["range_high"], flat["points"], flat["seeds"]) == (
        1e-3,
        1.0,
        8,
        3,
    )
    assert flat["low"] == flat["high"] == flat["sensitivity"]  # no noise, no width
    assert not flat["edge"]
    steep = _cell(sensitivity, trials, optimizer="steep", warmup=True, range="common")
    assert steep["sensitivity"] == pytest.approx(3 / 4)
    assert steep["diverged"] == pytest.approx(3 / 4)
    decade = _cell(sensitivity, trials, optimizer="steep", warmup=True, range="decade")
    assert (decade["range_low"], decade["range_high"]) == (1e-3, 1e-1)
    assert decade["sensitivity"] == pytest.approx(2 / 3)


def test_sensitivity_caps_what_is_worse_than_the_worst_and_marks_edges() -> None:
    trials = _trials({"rising": (0.1, 0.5, 1e14, float("inf"))}, noise=0.0, warmups=(True,))
    row = _cell(sensitivity, trials, range="common")
    assert row["sensitivity"] == pytest.approx(np.mean([0, 0.5, 1, 1]))
    assert row["edge"]
    assert row["best"] == 1e-3


def test_the_common_range_is_what_all_optimizers_searched() -> None:
    trials = _trials(noise=0.0)
    trials = trials[~((trials["optimizer"] == "steep") & (trials["lr"] == 1.0))]
    for optimizer in ("flat", "steep"):
        row = _cell(sensitivity, trials, optimizer=optimizer, warmup=True, range="common")
        assert (row["range_low"], row["range_high"]) == (1e-3, 1e-1)


def test_one_shared_learning_rate_is_no_common_range() -> None:
    trials = _trials(noise=0.0)
    trials.loc[trials["optimizer"] == "steep", "lr"] *= 1e3
    table = sensitivity.compute(trials).query("hyperparameter == 'lr'")
    assert set(table["range"]) == {"decade"}
    assert set(table["optimizer"]) == {"flat", "steep"}
    (axes,) = sensitivity.draw(table).axes
    assert "around the best" in axes.get_xlabel()


def test_one_learning_rate_written_in_two_ways_is_one() -> None:
    trials = _trials(noise=0.0, warmups=(True,), decays=(0.0,))
    trials.loc[trials["seed"] == 1, "lr"] *= 1 + 1e-12
    assert _cell(sensitivity, trials, optimizer="flat", range="common")["points"] == 4


def test_near_optimal_counts_points_within_the_tolerance() -> None:
    row = _cell(near_optimal, _trials(noise=0.0), optimizer="flat", warmup=True)
    assert row["near_optimal"] == pytest.approx(4 / 8)  # 0.10 and 0.11 at two learning rates
    assert 0 < row["low"] < row["near_optimal"] < row["high"] < 1
    assert (
        _cell(near_optimal, HARD["all diverged"], optimizer="flat", warmup=True)["near_optimal"]
        == 0
    )


def test_a_run_without_a_hyperparameter_is_a_point_too() -> None:
    trials = HARD["empty hyperparameters"]
    free = _cell(near_optimal, trials, task="t", optimizer="free", warmup=True)
    assert (free["points"], free["near_optimal"]) == (1, 1.0)
    flat = _cell(near_optimal, trials, task="t", optimizer="flat", warmup=True)
    assert (flat["points"], flat["near_optimal"]) == (8, 4 / 8)  # 0.10 and 0.11 at two rates
    assert _cell(gap, trials, task="t", optimizer="flat", warmup=True)["best_setting"] == (
        "lr=0.01, kind=a"  # without momentum
    )


def test_gap_is_default_minus_tuned() -> None:
    row = _cell(gap, _trials(noise=0.0), optimizer="steep", warmup=True)
    assert row["gap"] == pytest.approx(0.8)
    assert row["gap_share"] == pytest.approx(1.0)
    assert row["best_setting"] == "lr=0.01, weight_decay=0"


def test_gap_does_not_reward_a_seed_for_its_own_luck() -> None:
    """With pure noise the tuned setting is no better than the default on other seeds."""
    gaps = []
    for study in range(200):
        generator = np.random.default_rng(study)
        trials = _trials({"noise": (0.5,) * 4}, warmups=(True,), decays=(0.0,), seeds=5, noise=0.0)
        gaps.append(
            gap.compute(trials.assign(value=generator.uniform(0.4, 0.6, len(trials))))["gap"][0]
        )
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / np.sqrt(len(gaps))


def test_maximizing_gives_the_same_numbers_as_minimizing_the_negative() -> None:
    trials = _trials()
    mirrored = trials.assign(value=-trials["value"], worst=-trials["worst"], direction="maximize")
    for module in (sensitivity, near_optimal, width, stability, gap, warmup, divergence):
        one, other = module.compute(trials), module.compute(mirrored)
        in_unit = one.columns.intersection(["default_value", "tuned_value"])
        np.testing.assert_allclose(one[in_unit], -other[in_unit])
        other = other.assign(direction="minimize", **one[in_unit])
        pd.testing.assert_frame_equal(one, other)
    for module in (lr_curves, heatmap):
        one, other = module.compute(trials), module.compute(mirrored)
        np.testing.assert_allclose(one["value"], -other["value"])


def test_warmup_gains_at_equal_settings_and_between_tuned_ones() -> None:
    trials = _trials(noise=0.0)
    assert _cell(warmup, trials, optimizer="flat", kind="matched")["gain"] == pytest.approx(
        0.05 / 4
    )
    assert _cell(warmup, trials, optimizer="flat", kind="retuned")["gain"] == pytest.approx(0.0)
    only_high = _trials({"high": (0.9, 0.9, 0.9, 0.1)}, noise=0.0)
    row = _cell(warmup, only_high, kind="retuned")
    assert row["gain"] == pytest.approx(0.05)


def test_divergence_counts_runs_that_learnt_nothing() -> None:
    row = _cell(divergence, _trials(noise=0.0), optimizer="steep", warmup=True)
    assert row["useless"] == row["diverged"] == pytest.approx(3 / 4)
    assert row["runs"] == 24


def test_curves_take_the_best_of_the_other_hyperparameters() -> None:
    table = lr_curves.compute(_trials(noise=0.0))
    flat = table[(table["optimizer"] == "flat") & table["warmup"]].sort_values("lr")
    assert flat["value"].tolist() == pytest.approx([0.2, 0.1, 0.1, 0.2])


def test_a_curve_without_a_condition_counts_in_the_verdict() -> None:
    without = _trials({"bare": (0.1, 0.2, 0.3, 0.4)}, warmups=(True,)).assign(warmup=None, task="u")
    said = lr_curves.verdict(lr_curves.compute(pd.concat([_trials(), without])))
    assert "over 3 tasks and conditions: flat 0.01; steep 0.01; bare 0.001." in said


def test_heatmap_marks_the_best_the_edge_and_the_diverged() -> None:
    table = heatmap.compute(_trials({"rising": (0.1, 0.2, 0.3, 0.9)}, noise=0.0, warmups=(True,)))
    best = table[table["best"]].iloc[0]
    assert (best["x"], best["y"], best["hyperparameter"]) == (1e-3, 0.0, "weight_decay")
    assert best["edge"] == "lr"  # a weight decay of 0 is no edge
    inner = heatmap.compute(_trials({"valley": (0.2, 0.1, 0.2, 0.3)}, noise=0.0, warmups=(True,)))
    assert inner[inner["best"]]["edge"].tolist() == [""]
    decays = _trials(
        {"valley": (0.2, 0.1, 0.2, 0.3)}, noise=0.0, warmups=(True,), decays=(0.01, 0.1)
    )
    between = heatmap.compute(decays)  # of two values both are edges, which says nothing
    assert between[between["best"]]["edge"].tolist() == [""]
    assert table[table["diverged"] > 0]["x"].unique().tolist() == [1.0]


def test_heatmap_bins_what_has_too_many_values_to_draw() -> None:
    trials = _random_design(80)
    table = heatmap.compute(trials)
    assert table.groupby("optimizer")[["x", "y"]].nunique().max().max() <= 8
    cells = trials.groupby(["optimizer", "warmup"])
    assert len(table) > 8 * len(cells)
    assert table["x"].between(trials["lr"].min(), trials["lr"].max()).all()


def test_heatmap_prefers_weight_decay() -> None:
    trials = _trials(warmups=(True,))
    trials.insert(0, "beta1", np.where(trials["lr"] > 0.01, 0.9, 0.0))
    assert heatmap.compute(trials)["hyperparameter"].unique().tolist() == ["weight_decay"]


def test_the_common_range_survives_rounding() -> None:
    trials = _trials(noise=0.0, warmups=(True,))
    trials["lr"] = trials["lr"].replace(1e-3, 1.15478198e-3)
    row = _cell(sensitivity, trials, optimizer="flat", range="common")
    assert row["range_low"] == pytest.approx(1.15478e-3)


def test_gap_says_nothing_about_adaptive_designs() -> None:
    assert gap.compute(HARD["only adaptive"]).empty


def test_mean_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        _, low, high = mean_interval(pd.Series(generator.normal(size=4)))
        hits += low <= 0 <= high
    assert 0.93 < hits / 2000 < 0.97


def test_jackknife_of_a_mean_is_students_interval() -> None:
    values = pd.DataFrame([[1.0, 2.0, 4.0]])
    expected = mean_interval(values.loc[0])
    assert jackknife(lambda table: float(table.mean(axis=1).iloc[0]), values) == pytest.approx(
        expected
    )


def test_one_seed_has_no_interval() -> None:
    assert np.isnan(mean_interval(pd.Series([1.0]))[1])
    assert np.isnan(jackknife(lambda table: 0.0, pd.DataFrame([[1.0]]))[1])


def test_wilsons_interval_is_inside_the_unit_interval() -> None:
    assert share_interval(0, 10)[1] == 0
    share, low, high = share_interval(5, 10)
    assert share == 0.5
    assert low + high == pytest.approx(1.0)


def test_a_heatmap_of_a_reward_has_the_colours_of_its_range() -> None:
    trials = _trials({"valley": (0.2, 0.1, 0.2, 0.3)}, noise=0.0, warmups=(True,))
    rewards = trials.assign(value=30 * (0.9 - trials["value"]), direction="maximize", worst=0.0)
    [drawn, *_] = heatmap.draw(heatmap.compute(rewards)).axes
    assert drawn.collections[0].get_clim() == pytest.approx((0, 24))
    [drawn, *_] = heatmap.draw(heatmap.compute(trials)).axes
    assert drawn.collections[0].get_clim() == pytest.approx((0.1, 0.9))


def test_perplexities_are_told_in_nats_and_shown_as_they_are() -> None:
    """A share of a vocabulary of 50,000 is more than there is to tell apart."""
    trials = _trials(noise=0.0)
    perplexity = np.exp(10 * trials["value"])
    as_perplexity = trials.assign(
        value=perplexity, worst=np.exp(9), metric="validation perplexity", diverged=False
    )
    ours = sensitivity.compute(as_perplexity)["sensitivity"]
    np.testing.assert_allclose(ours, sensitivity.compute(trials)["sensitivity"], atol=1e-9)
    curve = lr_curves.compute(as_perplexity)
    assert curve["value"].min() == pytest.approx(np.exp(1))
    assert (curve["low"] <= curve["value"] + 1e-9).all()
