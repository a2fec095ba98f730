"""The interaction of learning rate and weight decay, on surfaces whose truth is known."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import interaction
from tests.coverage import Interval, coverage

LRS = np.logspace(-4, 0, 5)
DECAYS = np.logspace(-3, 0, 4)
GRID = pd.MultiIndex.from_product([LRS, DECAYS], names=["lr", "weight_decay"])
LR, DECAY = (np.log10(GRID.get_level_values(i).to_numpy()) for i in (0, 1))
PRODUCT = 0.05 * (LR + DECAY + 3) ** 2 + 0.02 * (LR + 2) ** 2
APART = 0.05 * (LR + 2) ** 2 + 0.05 * (DECAY + 1.5) ** 2


def _runs(losses: np.ndarray, worst: float = 1.0) -> pd.DataFrame:
    """One run for each point and seed; ``losses`` is [points, seeds]."""
    rows: list[dict[str, Any]] = []
    for (point, (lr, decay)), seed in itertools.product(enumerate(GRID), range(losses.shape[1])):
        value = float(losses[point, seed])
        rows.append({"task": "t", "optimizer": "a", "lr": lr, "weight_decay": decay, "seed": seed})
        rows[-1] |= {"value": value, "worst": worst, "diverged": value >= worst}
        rows[-1] |= {"role": "design", "direction": "minimize"}
    return pd.DataFrame(rows)


def _measures(table: pd.DataFrame) -> dict[str, float]:
    return dict(zip(table["measure"], table["value"], strict=True))


def test_shares_of_a_two_by_two_by_hand() -> None:
    """Effects of lr ±2, weight decay ±1 and interaction ±1: shares 4/6, 1/6, 1/6."""
    index = pd.MultiIndex.from_product([(0.1, 1.0), (0.0, 0.1)], names=["lr", "weight_decay"])
    by_seed = pd.DataFrame([[4.0], [0.0], [-2.0], [-2.0]], index=index)
    shares = {name: e[0] for name, e in interaction.variance_shares(by_seed).items()}
    assert shares == pytest.approx({"lr": 4 / 6, "weight_decay": 1 / 6, "interaction": 1 / 6})


def test_noise_takes_no_part_in_the_shares() -> None:
    """Without an interaction, noise alone must not make one; what it makes is 0 on average."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        interactions = 0.2 * generator.normal(size=(12, 3))
        found.append(interaction._size(interactions))
    assert abs(np.mean(found)) < 3 * np.std(found) / 20
    alone = interaction._size(interactions[:, :1])  # of one seed noise cannot be taken out
    assert alone == pytest.approx(np.square(interactions[:, 0]).sum())


def test_a_valley_along_the_product_and_one_across_it() -> None:
    product = _measures(interaction.compute(_runs(np.stack([PRODUCT] * 3, axis=1))))
    assert product["slope"] == pytest.approx(-1.0)
    assert product["surface_fit"] == pytest.approx(1.0)
    assert product["product_fit"] > 0.95
    assert product["interaction"] > 0.4
    apart = _measures(interaction.compute(_runs(np.stack([APART] * 3, axis=1))))
    assert apart["slope"] == pytest.approx(0.0, abs=1e-9)
    assert apart["product_fit"] < 0.3
    assert apart["interaction"] == pytest.approx(0.0, abs=1e-9)


def test_a_cliff_does_not_turn_the_slope() -> None:
    """Points that reach less than half of the gain take no part in it."""
    cliff = np.where(PRODUCT > 0.3, 1.0, PRODUCT)
    measures = _measures(interaction.compute(_runs(np.stack([cliff] * 2, axis=1))))
    assert measures["slope"] == pytest.approx(-1.0)
    assert measures["product_fit"] <= measures["surface_fit"] < 1


def test_other_designs_and_grids_with_holes_are_left_out() -> None:
    runs = _runs(np.stack([PRODUCT] * 3, axis=1))
    assert interaction.compute(runs.iloc[:-3]).empty
    assert interaction.compute(runs.drop(columns="weight_decay")).empty
    assert "full grid" in interaction.verdict(interaction.compute(runs.iloc[:-3]))
    scattered = runs.assign(lr=np.random.default_rng(0).uniform(size=len(runs)))
    assert interaction.compute(scattered).empty
    one_short = interaction.compute(runs.iloc[:-1])  # one seed did not finish one point
    assert set(one_short["seeds"]) == {2}


def test_two_seeds_say_little_and_one_nothing() -> None:
    table = interaction.compute(_runs(np.stack([PRODUCT] * 2, axis=1)))
    shares = table[table["kind"] == interaction.SHARES]
    assert shares[["low", "high"]].drop_duplicates().to_numpy().tolist() == [[0, 1]]
    alone = interaction.compute(_runs(PRODUCT[:, None]))
    assert alone[["low", "high"]].isna().all(axis=None)
    assert "can the slope" in interaction.verdict(alone)


def test_the_verdict_tells_the_product_from_the_parts() -> None:
    noise = 0.01 * np.random.default_rng(0).normal(size=(20, 4))
    product = interaction.verdict(interaction.compute(_runs(PRODUCT[:, None] + noise)))
    assert "matters) for a on 1 of 1 grids" in product
    apart = interaction.verdict(interaction.compute(_runs(APART[:, None] + noise)))
    assert "for every lr) for a on 1 of 1 grids" in apart


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-30.0, -0.1, "can be −1 and cannot be 0, but much else, for a on 1 of 1 grids"),
        (-0.9, 30.0, "can be 0 and cannot be −1, but much else, for a on 1 of 1 grids"),
        (-5.0, 5.0, "can be both −1 and 0 for a on 1 of 1 grids"),
        (-0.9, -0.1, "can be neither −1 nor 0 for a on 1 of 1 grids"),
    ],
)
def test_the_verdict_claims_nothing_of_a_wide_interval(low: float, high: float, said: str) -> None:
    row = {"task": "t", "optimizer": "a", "kind": interaction.SLOPE, "measure": "slope"}
    table = pd.DataFrame([row | {"value": -0.5, "low": low, "high": high}])
    text = interaction.verdict(table)
    assert f"The slope {said}." in text
    assert text.count("no optimizer on any grid") == 2
    narrow = interaction.verdict(table.assign(low=-1.2, high=-0.5))
    assert "matters) for a on 1 of 1 grids" in narrow
    assert "can be" not in narrow


def _noisy(generator: np.random.Generator, surface: np.ndarray) -> pd.DataFrame:
    """Three seeds that share luck, with noise that differs between points."""
    level = 0.03 * (1 + (np.arange(20) % 3)[:, None]) / 2
    own, common = generator.normal(size=(20, 3)), 0.05 * generator.normal(size=3)
    return pd.DataFrame(surface[:, None] + level * own + common, index=GRID)


@pytest.mark.parametrize("measure", ["lr", "interaction"])
def test_coverage_of_shares(measure: str) -> None:
    """95.8 and 95.5 % of 1,500 samples; 300 have a standard error of 1.2 %, hence the bounds."""
    truth = interaction.variance_shares(pd.DataFrame(PRODUCT[:, None], index=GRID))[measure][0]

    def draw(generator: np.random.Generator) -> Interval:
        return interaction.variance_shares(_noisy(generator, PRODUCT))[measure]

    assert 0.93 < coverage(draw, truth, repeats=300) < 0.99


def test_coverage_of_the_product_fit() -> None:
    """97.0 % of 1,500 samples: near 1 the intervals are a little wide."""
    truth = interaction.cubic_fits(pd.DataFrame(PRODUCT[:, None], index=GRID))["product_fit"][0]

    def draw(generator: np.random.Generator) -> Interval:
        return interaction.cubic_fits(_noisy(generator, PRODUCT))["product_fit"]

    assert 0.93 < coverage(draw, truth, repeats=300) < 0.99


@pytest.mark.parametrize(("surface", "truth"), [(PRODUCT, -1.0), (APART, 0.0)])
def test_coverage_of_the_slope(surface: np.ndarray, truth: float) -> None:
    def draw(generator: np.random.Generator) -> Interval:
        return interaction.slope(_noisy(generator, surface), 0.5)

    assert 0.93 < coverage(draw, truth, repeats=600) < 0.97
