from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import relative_performance, sensitivity
from robustlr.analysis._compare import _difference, _surely, against_leader, verdict_on_leader
from robustlr.analysis._sweeps import Estimate, Runs, cell_weights, estimate, position
from tests.coverage import Interval, coverage
from tests.test_analysis import _random_design, _trials

AT = np.linspace(-3, 1, 9)
VALLEY = np.minimum(0.1 + 0.25 * ((AT + 1.3) / 1.2) ** 2, 0.9)
WHOLE = (1e-3, 10.0)


def runs(losses: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> Runs:
    """Runs at ``AT``'s learning rates whose losses are ``[values, seeds]``; the worst is 0.9."""
    losses = np.minimum(losses, 0.9)
    return Runs(10.0**AT, losses, np.zeros_like(losses), 0.9, np.arange(losses.shape[1]))


def noisy(generator: np.random.Generator, seeds: int, noise: float = 0.02) -> Runs:
    """Runs around ``VALLEY``."""
    return runs(VALLEY[:, None] + noise * generator.normal(size=(len(AT), seeds)))


def _estimate(sample: Runs, bounds: tuple[float, float] | None) -> Estimate:
    return estimate(sample, partial(sensitivity.sensitivity, sample, "lr", bounds))


@pytest.mark.parametrize("bounds", [WHOLE, None], ids=["common", "decade"])
@pytest.mark.parametrize("seeds", [3, 10])
def test_its_interval_covers_the_truth(seeds: int, bounds: tuple[float, float] | None) -> None:
    truth = _estimate(runs(VALLEY[:, None]), bounds).value

    def interval(generator: np.random.Generator) -> Interval:
        value, low, high = _estimate(noisy(generator, seeds), bounds).interval(0, 1)
        return value, low, high

    assert 0.93 <= coverage(interval, truth, 800) <= 0.97


def test_of_a_flat_curve_it_is_too_high_as_its_limits_say() -> None:
    """The best of many equal noisy points is below what it stands for."""

    def interval(generator: np.random.Generator) -> Interval:
        flat = runs(0.1 + 0.02 * generator.normal(size=(len(AT), 10)))
        value, low, high = _estimate(flat, WHOLE).interval(0, 1)
        return value, low, high

    assert coverage(interval, 0.0, 200) < 0.93


@pytest.mark.parametrize("seeds", [3, 10])
def test_differences_cover_the_truth_where_seeds_are_shared(seeds: int) -> None:
    curves = VALLEY, VALLEY + 0.01
    values = [_estimate(runs(curve[:, None]), WHOLE).value for curve in curves]

    def interval(generator: np.random.Generator) -> Interval:
        of_seed = 0.05 * generator.normal(size=seeds)
        noise = 0.02 * generator.normal(size=(2, len(AT), seeds))
        samples = [runs(c[:, None] + of_seed + n) for c, n in zip(curves, noise, strict=True)]
        return _difference(*(_estimate(sample, WHOLE) for sample in samples))[:3]

    assert 0.93 <= coverage(interval, values[0] - values[1], 800) <= 0.97


def test_a_finer_grid_near_the_best_changes_little() -> None:
    """Each value counted once would take it from 0.3 to 0.17 (sensitivity)."""
    even = 10.0 ** np.arange(-4, 1)
    finer = np.array([1e-4, 1e-3, 4e-3, 6e-3, 8e-3, 1e-2, 1.3e-2, 1.6e-2, 2.5e-2, 0.1, 1.0])
    facts = {"task": "t", "optimizer": "a", "role": "design", "seed": 0, "worst": 0.9}
    facts |= {"direction": "minimize", "diverged": False}
    found = []
    for lrs in (even, finer):
        trials = pd.DataFrame({"lr": lrs, "value": 0.1 + 0.2 * abs(np.log10(lrs) + 2)} | facts)
        areas = relative_performance.compute(trials)["area"]
        found.append([sensitivity.compute(trials)["sensitivity"].iloc[0], areas.iloc[0]])
    assert found[0][0] == pytest.approx(0.24 / 0.8)
    assert found[1] == pytest.approx(found[0], rel=0.12)


def test_values_count_by_their_decades() -> None:
    assert cell_weights("lr", np.array([0.1, 1.0, 10.0])).tolist() == pytest.approx([1 / 3] * 3)
    one_too_many = cell_weights("lr", np.array([0.1, 1.0, 10**0.5, 10.0]))
    assert one_too_many.tolist() == pytest.approx(np.array([1, 0.75, 0.5, 0.5]) / 2.75)
    with_none = cell_weights("weight_decay", np.array([0.0, 1e-3, 1e-2, 1e-1]))
    assert with_none.tolist() == pytest.approx([0.25] * 4)
    assert cell_weights("lr", np.array([0.1])).tolist() == [1]


def test_a_decade_of_momentum_is_one_of_what_it_leaves() -> None:
    found = position("momentum", np.array([0.0, 0.9, 0.99]))
    assert found.tolist() == pytest.approx([0, 1, 2])
    assert position("beta2", np.array([0.999])).tolist() == pytest.approx([3])
    assert position("lr", np.array([0.0, 0.1])).tolist() == pytest.approx([-np.inf, -1])


def test_every_swept_hyperparameter_has_its_sensitivity() -> None:
    trials = _trials(noise=0.0, warmups=(True,), decays=(0.0, 0.01, 0.1))
    trials["momentum"] = np.where(
        trials["weight_decay"] == 0.1, 0.9, 0.0
    )  # at its worst decay only
    trials["kind"] = "a"
    table = sensitivity.compute(trials).query("optimizer == 'flat'")
    assert table["hyperparameter"].tolist() == ["lr"] * 2 + ["weight_decay"] + ["momentum"] * 2
    common = table[table["range"] == "common"].set_index("hyperparameter")
    assert common["sensitivity"]["weight_decay"] == pytest.approx((0.001 + 0.01) / 3 / 0.8)
    assert common["sensitivity"]["momentum"] == pytest.approx(0.01 / 2 / 0.8)
    assert common["values"]["weight_decay"] == 3
    assert not common["edge"]["weight_decay"]  # the best is 0, below which there is nothing


def test_the_leader_is_claimed_to_lead_only_where_the_interval_says_so() -> None:
    curves: dict[str, tuple[float, ...]] = {
        "flat": (0.2, 0.1, 0.1, 0.2),
        "alike": (0.2, 0.1, 0.1, 0.2),
        "steep": (0.8, 0.1, 0.8, 0.8),
    }
    table = sensitivity.compute(_trials(curves, warmups=(True,), seeds=4))
    said = sensitivity.verdict(table[table["range"] == "common"])
    leader = table["leader"].iloc[0]
    other = {"flat": "alike", "alike": "flat"}[leader]
    assert f"It is less sensitive than steep on 1 of 1. We cannot tell it from {other}" in said
    assert sensitivity.verdict(table[:0]).startswith("This needs")
    alone = table[table["optimizer"] == leader]
    assert "nothing to compare it with" in sensitivity.verdict(alone)


def _compared(values: dict[str, "np.ndarray[Any, np.dtype[np.float64]]"]) -> pd.DataFrame:
    """Optimizers' differences to the leader; ``values`` are ``[tasks, seeds]``."""
    keys = [(name, task) for name, tasks in values.items() for task in range(len(tasks))]
    table = pd.DataFrame(keys, columns=["optimizer", "task"])
    ours = [pd.Series(values[name][task]) for name, task in keys]
    return against_leader(table, [Estimate(float(each.mean()), each) for each in ours])


def test_optimizers_that_tie_share_the_lead() -> None:
    found = {
        "zeta": np.array([[1.0, 1.1], [2.001, 2.1]]),
        "alpha": np.array([[2.001, 2.1], [1.0, 1.1]]),
    }
    said = verdict_on_leader(_compared(found), "S", "less", "more")
    assert said.startswith("S: alpha and zeta share the best mean rank over 2 tasks. alpha is less")
    assert "It is" not in said


def test_where_nothing_was_learnt_nobody_leads() -> None:
    nothing = _compared({name: np.full((2, 2), np.nan) for name in "ab"})
    said = verdict_on_leader(nothing, "S", "less", "more")
    assert said == "S: nothing was learnt, so there is nothing to compare."
    table = sensitivity.compute(_trials().assign(diverged=True, value=0.9))
    assert not table["edge"].any()
    once = _compared({"a": np.array([[np.nan] * 2, [1.0, 1.0]]), "b": np.array([[9.0] * 2] * 2)})
    assert once["leader"].unique() == ["b"]  # a has learnt on one task alone


def test_of_many_comparisons_of_equals_few_are_claimed() -> None:
    generator = np.random.default_rng(0)
    alone = together = 0
    for _ in range(150):
        table = _compared({name: generator.normal(size=(1, 3)) for name in "abcdef"})
        others = table[table["optimizer"] != table["leader"]]
        alone += bool(((others["difference_low"] > 0) | (others["difference_high"] < 0)).any())
        together += bool(_surely(others).any())
    assert alone / 150 > 0.2
    assert together / 150 < 0.07


def test_three_seeds_that_differ_by_the_same_are_not_certain() -> None:
    """One image more in 360, on each seed: Student's test of no variance knows no doubt."""
    seeds = np.array([[0.10, 0.12, 0.11]])
    table = _compared({"a": seeds, "b": seeds + 1 / 360})
    assert table.set_index("optimizer")["difference_p"]["b"] == 0.25
    assert "We cannot tell it from b" in verdict_on_leader(table, "S", "less", "more")
    ten = np.arange(10.0)[None] / 100
    table = _compared({"a": ten, "b": ten + 1 / 360})
    assert "It is less than b" in verdict_on_leader(table, "S", "less", "more")


def test_claims_that_hold_alone_are_counted() -> None:
    generator = np.random.default_rng(0)
    noise = {name: generator.normal(size=(3, 3)) for name in "abcd"}
    table = _compared({name: own + 6 * (name != "a") for name, own in noise.items()})
    said = verdict_on_leader(table, "S", "less", "more")
    assert " of 9 comparisons would be clear, as by chance about 0.45 would be." in said


def test_points_of_a_random_design_are_taken_together_by_half_decades() -> None:
    table = sensitivity.compute(_random_design(80))
    ours = table[(table["hyperparameter"] == "lr") & (table["range"] == "common")]
    assert ours["values"].max() <= 9
    assert {f"{np.log10(value) % 0.5:.2f}" for value in ours["best"]} == {"0.25"}


def test_a_hundred_thousand_rows_take_seconds() -> None:
    one = _random_design(80)
    many = pd.concat([one.assign(task=f"t{task}", seed=s) for task in range(25) for s in range(50)])
    assert len(many) == 100_000
    assert len(sensitivity.compute(many)) > 100
