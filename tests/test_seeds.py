"""Noise between seeds, and the seeds that a claim needs."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustlr.analysis import noise, seeds
from tests.coverage import Interval, coverage


def _trials(losses: dict[tuple[str, float], list[float]], worst: float = 1.0) -> pd.DataFrame:
    """One run for each loss: by optimizer and learning rate, a seed each."""
    rows: list[dict[str, Any]] = []
    for (optimizer, lr), values in losses.items():
        for seed, value in enumerate(values):
            rows.append({"task": "t", "optimizer": optimizer, "lr": lr, "seed": seed})
            rows[-1] |= {"value": value, "worst": worst, "diverged": value >= worst}
            rows[-1] |= {"role": "design", "direction": "minimize"}
    return pd.DataFrame(rows)


def test_seeds_for_are_those_of_the_known_tables() -> None:
    """Cohen's tables have 34 pairs for half a standard deviation, 15 for 0.8 (two-sided, 80 %)."""
    assert [seeds.seeds_for(effect) for effect in (0.5, 0.8, 1.0)] == [34, 15, 10]
    assert seeds.seeds_for(1e9) == 2
    assert seeds.seeds_for(0.0) == float("inf")
    assert np.isnan(seeds.seeds_for(float("nan")))


def test_so_many_seeds_find_the_difference_four_times_in_five() -> None:
    generator = np.random.default_rng(0)
    for effect in (0.7, 1.5):
        count = int(seeds.seeds_for(effect))
        found = []
        for size in (count, count - 1):
            samples = generator.normal(effect, 1, (20_000, size))
            found.append(np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05))
        assert found[1] < 0.8 + 0.006
        assert found[0] > 0.8 - 0.006


def test_paired_noise_is_what_settings_and_seeds_leave() -> None:
    """What all settings of a seed share takes no part in a paired comparison."""
    by_seed = pd.DataFrame([[0.1, 0.3], [0.2, 0.4], [0.9, 0.9]])
    value, degrees = seeds.paired_noise(by_seed, 0.1 + 1e-9)
    assert (value, degrees) == pytest.approx((0, 1))
    by_seed = pd.DataFrame([[0.1, 0.2], [0.3, 0.2]])  # differences -0.2 and 0
    value, degrees = seeds.paired_noise(by_seed, 0.5)
    assert (value, degrees) == pytest.approx((np.std([-0.2, 0.0], ddof=1), 1))
    alone, degrees = seeds.paired_noise(by_seed, 0.0)
    assert (alone, degrees) == pytest.approx((np.sqrt(2) * np.std([0.1, 0.2], ddof=1), 1))


def test_claims_and_the_best_two() -> None:
    best = [0.20, 0.22, 0.24]
    table = seeds.compute(
        _trials(
            {
                ("a", 0.1): best,
                ("b", 0.1): [0.25, 0.27, 0.32],
                ("c", 0.1): [0.8, 0.8, 0.8],
            }
        )
    )
    row = table[(table["optimizer"] == "a") & (table["claim"] == "5 %")].iloc[0]
    gain = 1 - 0.22
    assert row["difference"] == pytest.approx(0.05 * gain)
    assert row["noise"] == pytest.approx(np.sqrt(2) * 0.02)
    assert row["seeds_needed"] == seeds.seeds_for(0.05 * gain / row["noise"])
    assert row["low"] < row["seeds_needed"] < row["high"]
    (pair,) = table[table["claim"] == seeds.AS_SEEN].to_dict("records")
    assert (pair["optimizer"], pair["rival"]) == ("a", "b")
    assert pair["difference"] == pytest.approx(0.06)  # of 0.05, 0.05 and 0.08
    assert pair["noise"] == pytest.approx(np.std([0.05, 0.05, 0.08], ddof=1))
    assert pair["difference_low"] > 0
    assert "told apart in 1 of 1" in seeds.verdict(table)


def test_without_seeds_nothing_is_claimed() -> None:
    trials = _trials({("a", 0.1): [0.2], ("a", 1.0): [0.3]})
    for module in (seeds, noise):
        table = module.compute(trials)
        assert table.empty
        assert "at least two seeds" in module.verdict(table)


def test_noise_leaves_out_what_never_learns() -> None:
    trials = _trials(
        {
            ("a", 0.1): [0.2, 0.4],
            ("a", 1.0): [0.2, 1.0],
            ("a", 10.0): [1.0, 1.0],
        }
    )
    table = noise.compute(trials).set_index("lr")
    assert table["noise"].to_dict() == pytest.approx({0.1: 0.2 / 2**0.5, 1.0: 0.8 / 2**0.5})
    assert table["noise_share"][0.1] == pytest.approx(table["noise"][0.1] / 0.7)
    assert set(table["hopeless"]) == {1}


def test_the_typical_noise_is_that_of_most_settings() -> None:
    """A setting at the edge of stability must not decide it; the truth is 0.01."""
    generator = np.random.default_rng(0)
    levels = {("a", 10.0 ** (-i / 10)): 0.1 + i / 100 for i in range(60)}
    runs = {k: list(m + 0.01 * generator.normal(size=5)) for k, m in levels.items()}
    runs["a", 2.0] = [0.3, 0.9, 0.1, 0.99, 0.5]
    row = noise.compute(_trials(runs)).iloc[0]
    assert row["within"] == pytest.approx(0.01, rel=0.25)
    assert row["between"] == pytest.approx(1.4826 * 0.15, rel=0.1)
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"]


def test_equal_numbers_have_no_noise_whatever_their_mean_is_rounded_to() -> None:
    settings = pd.DataFrame([[0.1] * 3, [0.7] * 3])
    assert noise.pooled_noise(settings)[0] == 0.0


def test_coverage_of_paired_noise() -> None:
    """Eight good settings whose seeds share half of their luck."""

    def draw(generator: np.random.Generator) -> Interval:
        values = 0.05 * generator.normal(size=(8, 4)) + 0.05 * generator.normal(size=4)
        noise_, degrees = seeds.paired_noise(pd.DataFrame(values), 10.0)
        needed = seeds._needed(0.1, noise_, degrees)
        return noise_, needed["noise_low"], needed["noise_high"]

    assert 0.93 < coverage(draw, 0.05 * 2**0.5, repeats=800) < 0.97


def test_coverage_of_pooled_noise() -> None:
    def draw(generator: np.random.Generator) -> Interval:
        means = generator.uniform(size=(5, 1))
        return noise.pooled_noise(pd.DataFrame(means + 0.1 * generator.normal(size=(5, 3))))

    assert 0.93 < coverage(draw, 0.1, repeats=1000) < 0.97


def test_coverage_of_the_ratio() -> None:
    def draw(generator: np.random.Generator) -> Interval:
        means = generator.normal(size=(40, 1))
        found = noise._ratio(pd.DataFrame(means + 0.2 * generator.normal(size=(40, 3))))
        return found["ratio"], found["ratio_low"], found["ratio_high"]

    assert 0.93 < coverage(draw, 5.0, repeats=150) <= 0.995
