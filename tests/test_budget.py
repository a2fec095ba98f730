"""Tuning curves, tunability and rank stability."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import budget, rank_stability, tunability
from robustlr.analysis._cells import Floats
from robustlr.analysis._tuning import chances, median_draw, ordered_by_others
from tests.coverage import Interval, coverage


def _trials(curves: dict[str, list[float]], seeds: int = 2, grid: bool = True) -> pd.DataFrame:
    """A learning rate a point; the test metric is 0.01 above the validation metric."""
    rows = []
    for (optimizer, curve), seed in product(curves.items(), range(seeds)):
        for place, loss in enumerate(curve):
            lr = 10.0**-place if grid else 0.5 ** (place**1.1)
            row = {"task": "t", "optimizer": optimizer, "role": "design", "seed": seed, "lr": lr}
            row |= {"value": loss, "test_value": loss + 0.01, "worst": 1.0, "seconds": 2.0}
            rows.append(row | {"direction": "minimize", "diverged": loss >= 1.0})
    return pd.DataFrame(rows)


def test_the_chances_of_each_rank() -> None:
    """Of two points the better one is found in 1 - 1/2^k."""
    np.testing.assert_allclose(
        chances(2, np.array([1, 2, 3])), [[1 / 2, 1 / 2], [3 / 4, 1 / 4], [7 / 8, 1 / 8]]
    )
    np.testing.assert_allclose(chances(7, np.arange(1, 9)).sum(axis=1), 1)
    places = median_draw(5, np.array([1, 2, 3])).argmax(axis=1)
    assert places.tolist() == [2, 1, 1]  # of five, three are at least so bad, and 9/25, 27/125


def test_settings_are_chosen_on_other_seeds_and_judged_on_their_own() -> None:
    values = pd.DataFrame([[1.0, 5.0], [2.0, 4.0], [3.0, np.nan]])
    first, second = ordered_by_others(values, values)
    assert first.tolist() == [2.0, 1.0]  # by the second seed, which lacks the last point
    assert second.tolist() == [5.0, 4.0]


def test_the_curve_of_a_grid_by_hand() -> None:
    table = budget.compute(_trials({"a": [0.1, 0.3, 0.2, 1.0, 0.5]}))
    assert table["tries"].tolist() == [1, 2, 3, 4]
    assert table["value"].tolist() == pytest.approx([0.42, 0.252, 0.1896, 0.15984])
    assert table["test_value"].tolist() == pytest.approx(
        [0.428, 0.2616, 0.19952, 0.169824]  # a diverged run is worth 1 there too
    )
    assert table["tries_seconds"].tolist() == [2, 4, 6, 8]
    assert table["low"].tolist() == table["high"].tolist() == table["value"].tolist()
    assert set(table["band"]) == {"seeds"}


def test_the_test_metric_is_left_out_where_it_is_unknown() -> None:
    trials = _trials({"a": [0.1, 0.3, 0.2]})
    assert "test_value" not in budget.compute(trials.assign(test_value=None))
    other = pd.concat([trials, trials.assign(task="u", test_value=np.nan)])
    table = budget.compute(other).set_index("task")
    assert table.loc["t", "test_value"].notna().all()
    assert table.loc["u", "test_value"].isna().all()


def test_a_run_without_a_test_value_is_no_failure_unless_it_diverged() -> None:
    trials = _trials({"a": [0.1, 0.3, 1.0]}, seeds=3)
    trials.loc[(trials["seed"] > 0) | trials["diverged"], "test_value"] = np.nan
    first = budget.compute(trials).iloc[0]
    assert first["test_value"] == pytest.approx((0.11 + 0.31 + 1.0) / 3)  # of the first seed
    trials.loc[trials["lr"] == 0.1, "test_value"] = np.nan
    assert "test_value" not in budget.compute(trials)


def test_settings_that_share_no_seed_cannot_be_chosen() -> None:
    trials = _trials({"a": [0.1, 0.3, 0.2]}, seeds=3)
    apart = trials[trials["seed"] == trials["lr"].rank(method="dense") - 1]
    assert budget.compute(apart)["value"].isna().all()


def test_intervals_of_a_grid_are_within_what_the_metric_can_be() -> None:
    trials = _trials({"a": [0.1, 0.1, 0.1]})
    trials["value"] = trials["seed"].map({0: 0.02, 1: 0.9})
    table = budget.compute(trials.assign(test_value=trials["value"]))
    for prefix in ("", "test_"):
        assert set(table[f"{prefix}low"]) == {0.0}
        assert set(table[f"{prefix}high"]) == {1.0}


def test_a_sample_of_the_space_has_a_band_within_the_metrics_range() -> None:
    losses = np.linspace(0.1, 1.0, 30).tolist()
    table = budget.compute(_trials({"a": losses}, grid=False))
    assert set(table["band"]) == {"points"}
    assert (table["low"] >= 0).all()
    assert (table["high"] <= 1).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert table["low"].iloc[-1] == 0  # as many tries as points: nothing is known of the best
    assert (table["high"].diff().iloc[1:] <= 0).all()


@pytest.mark.parametrize("count", [20, 60])
def test_the_band_holds_the_whole_curve(count: int) -> None:
    """Of a uniform distribution the median of the best of k is 1 - 0.5^(1/k)."""
    tries = (1, 2, 4, 8, 16)
    truth = 1 - 0.5 ** (1 / np.array(tries))
    low, high = budget.band_places(count, tries)
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        ends = np.concatenate([[0.0], np.sort(generator.uniform(size=count)), [1.0]])
        held += bool(((ends[low] <= truth) & (truth <= ends[high])).all())
    # The band holds the curve at every number of tries with 95 %, so at these five a little more.
    assert 0.95 <= held / 2000 < 0.995


@pytest.mark.parametrize("noise", [0.03, 0.3])
def test_the_interval_of_a_grids_curve_covers(noise: float) -> None:
    """The truth is what one gets on average who tunes on all seeds but one."""
    means, tries = np.array([0.1, 0.3, 0.5, 0.7, 0.9]), np.array([2])

    def interval(generator: np.random.Generator) -> Interval:
        by_seed = pd.DataFrame(means[:, None] + generator.normal(0, noise, (5, 4)))
        ((estimate, low, high),) = budget._over_seeds(by_seed, by_seed, tries, chances)
        return float(estimate), float(low), float(high)

    generator = np.random.default_rng(1)
    truth = float(np.mean([interval(generator)[0] for _ in range(1500)]))
    assert 0.92 < coverage(interval, truth, repeats=1000) < 0.97


def test_tunability_by_hand() -> None:
    table = tunability.compute(_trials({"a": [0.2, 0.6], "b": [0.2, 0.2]}))
    a, b = (table[table["optimizer"] == name].iloc[0] for name in "ab")
    # Scores 1 and 0.5: f(1) = 3/4, f(2) = 7/8; the weights are 2/3 and 1/3.
    assert a["tunability"] == pytest.approx(2 / 3 * 0.75 + 1 / 3 * 0.875)
    assert (a["first_try"], a["in_the_end"], a["tries"]) == pytest.approx((0.75, 0.875, 2))
    assert (a["budget_90"], a["last_5"]) == (1.0, 0.0)  # 0.75 is 86 % of 0.875
    assert b["tunability"] == 1
    assert b["budget_90"] == 0.5
    assert "b pays soonest on 1 of 1" in tunability.verdict(table)


def test_all_optimizers_get_the_same_number_of_tries() -> None:
    grid = _trials({"a": [0.2, 0.6, 0.7], "b": [0.2, 0.3, 0.4]})
    fewer = grid[(grid["optimizer"] == "a") | (grid["lr"] > 0.05)]
    assert set(tunability.compute(fewer)["tries"]) == {2}
    sample = _trials({"a": np.linspace(0.1, 1, 30).tolist()}, grid=False)
    assert set(tunability.compute(sample)["tries"]) == {5}


def _over_all_points(points: Floats) -> Interval:
    budgets = np.arange(1, 6)
    return tunability._over_points([points], budgets, budgets[::-1] / budgets.sum())


def test_the_jackknife_over_points_leaves_out_each() -> None:
    points = np.sort(np.random.default_rng(0).uniform(size=8))[::-1]
    estimate, low, high = _over_all_points(points)
    without = [_over_all_points(np.delete(points, place))[0] for place in range(8)]
    pseudo = 8 * estimate - 7 * np.array(without)
    assert high - estimate == pytest.approx(2.3646 * pseudo.std(ddof=1) / math.sqrt(8), rel=1e-3)
    assert estimate - low == pytest.approx(high - estimate)


def test_the_jackknife_over_points_covers_the_tunability() -> None:
    """Of uniform scores the expected best of k is k/(k + 1); 30 points, five tries."""
    budgets = np.arange(1, 6)
    truth = float((budgets[::-1] / budgets.sum()) @ (budgets / (budgets + 1)))

    def interval(generator: np.random.Generator) -> Interval:
        return _over_all_points(np.sort(generator.uniform(size=30))[::-1])

    assert 0.93 < coverage(interval, truth) < 0.97


def test_the_interval_of_a_grids_tunability_covers() -> None:
    means = np.array([0.9, 0.7, 0.5, 0.3])
    budgets = np.arange(1, 5)
    weights = budgets[::-1] / budgets.sum()
    truth = float(weights @ chances(4, budgets) @ means)

    def interval(generator: np.random.Generator) -> Interval:
        scores = pd.DataFrame(means[:, None] + generator.normal(0, 0.03, (4, 5)))
        row = tunability._summaries(ordered_by_others(-scores, scores), 4, grid=True)
        return row["tunability"], row["low"], row["high"]

    assert 0.93 < coverage(interval, truth, repeats=1500) < 0.97


def test_the_probability_to_be_best_at_each_budget() -> None:
    """a has one good point of two, b two fair ones: a wins if its good one is found."""
    table = rank_stability.compute(_trials({"a": [0.1, 0.9], "b": [0.5, 0.5]}))
    best = table[table["optimizer"] == "a"].set_index("tries")["best"]
    assert best[1] == pytest.approx(0.5, abs=0.07)
    assert best[2] == pytest.approx(0.75, abs=0.06)
    sums = table.groupby("tries")["best"].sum()
    assert sums.tolist() == pytest.approx([1, 1])
    tau = table.drop_duplicates("tries").set_index("tries")["tau"]
    assert tau[1] == pytest.approx(2 * best[1] - 1)


def test_where_seeds_disagree_no_budget_settles_the_ranking() -> None:
    """a wins on two seeds and b on the two others, each surely: no seed knows the others."""
    trials = _trials({"a": [0.1, 0.11], "b": [0.2, 0.21]}, seeds=4)
    swapped = trials["seed"] >= 2
    names = trials["optimizer"].map({"a": "b", "b": "a"})
    trials["optimizer"] = trials["optimizer"].mask(swapped, names)
    trials["value"] += 0.02 * (trials["optimizer"] == "b")  # on the means a wins
    table = rank_stability.compute(trials)
    assert set(table["tau"]) == {0.0}
    assert rank_stability.verdict(table).endswith(": never surely on t.")


def test_equal_optimizers_share_the_first_place() -> None:
    table = rank_stability.compute(_trials({name: [1.0, 1.0] for name in "abcd"}))
    assert set(table["best"]) == {0.25}
    assert set(table["tau"]) == {0.0}
    assert "never surely" in rank_stability.verdict(table)
    assert rank_stability.compute(_trials({"a": [0.1, 0.2]})).empty


def test_the_interval_of_the_probability_to_be_best_covers() -> None:
    """Each seed has a chance of its own, of which only some seeds are seen; they are Student's mean."""

    def interval(generator: np.random.Generator) -> Interval:
        ((estimate, low, high),) = rank_stability._estimates(generator.beta(4, 4, (5, 1)), 0)
        return estimate, low, high

    assert 0.93 < coverage(interval, 0.5) < 0.97


def test_verdicts_of_empty_tables_say_what_is_missing() -> None:
    for module in (budget, tunability, rank_stability):
        assert module.verdict(pd.DataFrame()).startswith("This needs")
