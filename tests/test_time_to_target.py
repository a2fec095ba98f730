"""Time to target."""

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import time_to_target
from robustlr.analysis._cells import with_losses
from robustlr.analysis.time_to_target import median_interval
from tests.coverage import Interval, coverage


def _run(optimizer: str, seed: int, curve: str, **other: object) -> dict[str, object]:
    value = float(curve.split("=")[-1])
    row = {"task": "t", "optimizer": optimizer, "role": "design", "seed": seed, "value": value}
    row |= {"worst": 1.0, "direction": "minimize", "diverged": False, "lr": 0.1, "curve": curve}
    return row | other


FAST, SLOW = "10=0.5 20=0.1 30=0.3 40=0.0", "10=0.9 20=0.4 30=0.2 40=0.1"
"""The best is 0.0, so the target is 0.1: 90 % of the way from 1.0."""


def _row(table: pd.DataFrame, optimizer: str, setting: str = "tuned") -> pd.Series:
    found = table[(table["optimizer"] == optimizer) & (table["setting"] == setting)]
    assert len(found) == 1
    return found.iloc[0]


def test_the_first_step_at_which_the_target_is_reached() -> None:
    runs = [
        _run(name, seed, curve) for name, curve in (("a", FAST), ("b", SLOW)) for seed in range(6)
    ]
    table = time_to_target.compute(pd.DataFrame(runs))
    assert _row(table, "a")[["target", "steps_to_target", "low", "high"]].tolist() == pytest.approx(
        [0.1, 20, 20, 20]
    )
    assert _row(table, "b")["steps_to_target"] == 40
    assert _row(table, "b")["reached"] == 1
    assert "Tuned, a reaches the target first on 1 of 1" in time_to_target.verdict(table)


def test_three_seeds_cannot_tell_and_the_verdict_says_what_could() -> None:
    runs = [_run(name, s, curve) for name, curve in (("a", FAST), ("b", SLOW)) for s in range(3)]
    said = time_to_target.verdict(time_to_target.compute(pd.DataFrame(runs)))
    assert "first cannot be told (the interval of a median needs six seeds)." in said


def test_runs_that_miss_or_diverge_never_reach_the_target() -> None:
    runs = [_run("a", seed, FAST) for seed in range(3)]
    runs += [_run("b", 0, FAST, diverged=True), _run("b", 1, "10=0.9 20=nan 30=inf 40=0.5")]
    runs += [_run("b", 2, FAST)]
    table = time_to_target.compute(pd.DataFrame(runs))
    assert _row(table, "b")["steps_to_target"] == np.inf
    assert _row(table, "b")["reached"] == pytest.approx(1 / 3)
    assert "miss the target for b (1 times)" in time_to_target.verdict(table)
    (panel,) = time_to_target.draw(table).axes
    assert "missed" in [text.get_text() for text in panel.texts]


def test_a_run_that_died_before_its_first_evaluation_missed_the_target() -> None:
    runs = [_run("a", seed, FAST) for seed in range(4)]
    runs += [_run("b", seed, SLOW, diverged=seed > 0) for seed in range(5)]
    table = pd.DataFrame(runs)
    table.loc[table["diverged"], "curve"] = None
    table.loc[len(table) - 1, "diverged"] = False  # without a curve, and alive: it says nothing
    row = _row(time_to_target.compute(table), "b")
    assert (row["seeds"], row["reached"], row["steps_to_target"]) == (4, 1 / 4, np.inf)
    unwatched = table.assign(task="u", curve=None)
    assert set(time_to_target.compute(pd.concat([table, unwatched]))["task"]) == {"t"}


def test_a_metric_that_is_maximized_and_one_in_nats() -> None:
    rising = [
        _run("a", seed, "10=2 20=9 30=10", worst=0.0, direction="maximize") for seed in range(2)
    ]
    row = _row(time_to_target.compute(pd.DataFrame(rising)), "a")
    assert (row["target"], row["steps_to_target"]) == (9.0, 20.0)
    falling = [
        _run("a", seed, "10=10 20=1.3 30=1", worst=100.0, metric="perplexity") for seed in range(2)
    ]
    row = _row(time_to_target.compute(pd.DataFrame(falling)), "a")
    assert row["target"] == pytest.approx(100**0.1)
    assert row["steps_to_target"] == 20


def test_each_seed_is_judged_at_the_setting_chosen_on_the_others() -> None:
    runs = [_run("a", seed, FAST, lr=0.1, value=float(seed)) for seed in range(2)]
    runs += [_run("a", seed, SLOW, lr=1.0, value=0.5) for seed in range(2)]
    frame = pd.DataFrame(runs)
    chosen = time_to_target._arms(with_losses(frame))[0][1]
    assert dict(zip(chosen["seed"], chosen["lr"], strict=True)) == {0: 1.0, 1: 0.1}


def test_the_default_setting_is_timed_too() -> None:
    runs = [_run("a", seed, FAST) for seed in range(2)]
    runs += [_run("a", seed, SLOW, role="default", lr=0.001) for seed in range(2)]
    table = time_to_target.compute(pd.DataFrame(runs))
    assert _row(table, "a", "default")["steps_to_target"] == 40


def test_without_curves_there_is_nothing_to_say() -> None:
    frame = pd.DataFrame([_run("a", 0, FAST)])
    assert time_to_target.compute(frame.drop(columns="curve")).empty
    assert time_to_target.compute(frame.assign(curve=None)).empty
    assert "learning curve" in time_to_target.verdict(pd.DataFrame())


def test_below_six_values_no_interval_of_the_median_is_bounded() -> None:
    assert median_interval(pd.Series([1.0, 2, 3, 4, 9])) == (3, 0, np.inf)
    assert median_interval(pd.Series([1.0, 2, 3, 4, 9, np.inf])) == (3.5, 1, np.inf)
    assert median_interval(pd.Series(range(1, 21))) == (10.5, 6, 15)


@pytest.mark.parametrize(("count", "exact"), [(6, 0.96875), (12, 0.96143), (20, 0.95861)])
def test_the_interval_of_a_median_covers_as_often_as_the_binomial_says(
    count: int, exact: float
) -> None:
    def interval(generator: np.random.Generator) -> Interval:
        return median_interval(pd.Series(generator.exponential(size=count)))

    assert coverage(interval, float(np.log(2))) == pytest.approx(exact, abs=0.015)
