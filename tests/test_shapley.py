"""What tuning each knob is worth, on grids whose answer is known."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import shapley
from robustlr.analysis._cells import chosen_on_others
from tests.coverage import Interval, coverage

LEVELS = {"lr": (0.01, 0.1), "weight_decay": (0.0, 0.1)}
BY_HAND = {(0.01, 0.0): 0.8, (0.1, 0.0): 0.5, (0.01, 0.1): 0.7, (0.1, 0.1): 0.1}


def _trials(losses: Mapping[Any, Any], default: tuple[float, ...], seeds: int = 3) -> pd.DataFrame:
    """The losses by lr and weight decay (a number, or one for each seed) and the default trial."""
    rows: list[dict[str, Any]] = []
    points = [("design", point, loss) for point, loss in losses.items()]
    for role, point, loss in [("default", default, 0.5), *points]:
        for seed in range(seeds):
            value = float(np.broadcast_to(loss, (seeds,))[seed])
            rows.append({"task": "t", "optimizer": "a", "role": role, "seed": seed})
            rows[-1] |= dict(zip(LEVELS, point, strict=True))
            rows[-1] |= {"value": value, "worst": 1.0, "diverged": False, "direction": "minimize"}
    return pd.DataFrame(rows)


def _by_knobs(table: pd.DataFrame, column: str) -> dict[str, float]:
    return dict(table.set_index("knobs")[column].dropna())


def test_shapley_values_by_hand() -> None:
    """v(lr) = 0.3, v(wd) = 0.1, v(both) = 0.7: (0.3 + 0.6) / 2 and (0.1 + 0.4) / 2."""
    table = shapley.compute(_trials(BY_HAND, (0.01, 0.0)))
    assert _by_knobs(table, "gain") == pytest.approx(
        {"lr": 0.3, "weight_decay": 0.1, "lr + weight_decay": 0.7}
    )
    assert _by_knobs(table, "shapley") == pytest.approx({"lr": 0.45, "weight_decay": 0.25})
    assert _by_knobs(table, "joint") == pytest.approx({"lr + weight_decay": 0.7 - 0.3})
    assert _by_knobs(table, "shapley_share") == pytest.approx(
        {"lr": 0.45 / 0.9, "weight_decay": 0.25 / 0.9}
    )
    assert set(table["default"]) == {"lr=0.01, weight_decay=0"}
    assert table["default_on_grid"].all()
    assert "Tuning weight_decay surely pays for a on 1 of 1 cells" in shapley.verdict(table)


def test_three_knobs_share_the_gain_of_all() -> None:
    generator = np.random.default_rng(0)
    knobs = ("lr", "momentum", "weight_decay")
    index = pd.MultiIndex.from_product([(1.0, 2.0, 3.0)] * 3, names=knobs)
    grid = pd.DataFrame(generator.uniform(size=(27, 4)), index=index)
    gain = shapley.gains(grid, dict.fromkeys(knobs, 2.0), knobs)
    values = {knob: shapley.shapley_value(gain, knob, knobs) for knob in knobs}
    np.testing.assert_allclose(sum(values.values()), gain[knobs])
    orders = [_added(gain, "lr", order, knobs) for order in itertools.permutations(knobs)]
    np.testing.assert_allclose(values["lr"], np.mean(orders, axis=0))


def _added(gain: Any, knob: str, order: tuple[str, ...], knobs: tuple[str, ...]) -> np.ndarray:
    before = order[: order.index(knob)]
    sets = [tuple(n for n in knobs if n in chosen) for chosen in ((*before, knob), before)]
    return np.asarray(gain[sets[0]] - gain[sets[1]])


def test_the_nearest_design_value_stands_in_for_the_default() -> None:
    """0.02 is nearer to 0.01 than to 0.1 by ratio, and 1e-3 to 0.1 than to no decay."""
    table = shapley.compute(_trials(BY_HAND, (0.02, 1e-3)))
    assert set(table["default"]) == {"lr=0.01, weight_decay=0.1"}
    assert not table["default_on_grid"].any()
    assert _by_knobs(table, "gain")["lr"] == pytest.approx(0.6)


def test_nobody_is_paid_for_luck() -> None:
    """With pure noise tuning gains nothing on seeds that took no part in the choice."""
    generator = np.random.default_rng(0)
    found = [
        shapley.gains(
            pd.DataFrame(
                generator.normal(size=(9, 4)),
                index=pd.MultiIndex.from_product([range(3)] * 2, names=["lr", "weight_decay"]),
            ),
            {"lr": 0, "weight_decay": 0},
            ("lr", "weight_decay"),
        )["lr", "weight_decay"].mean()
        for _ in range(500)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_missing_runs_are_not_chosen_by() -> None:
    losses = np.array([[0.1, np.nan, 0.1], [0.5, 0.5, 0.5], [np.nan] * 3])
    np.testing.assert_array_equal(chosen_on_others(losses), [0.1, np.nan, 0.1])
    np.testing.assert_array_equal(chosen_on_others(np.array([[0.2], [0.1]])), [0.1])


def test_what_is_no_grid_or_has_no_default_is_left_out() -> None:
    trials = _trials(BY_HAND, (0.01, 0.0))
    assert shapley.compute(trials[trials["role"] == "design"]).empty
    assert "default setting, and a grid" in shapley.verdict(pd.DataFrame())
    scattered = {(lr, lr / 3): 0.5 for lr in np.linspace(0.1, 1, 10)}
    assert shapley.compute(_trials(scattered, (0.1, 0.1 / 3))).empty
    one_seed = shapley.compute(_trials(BY_HAND, (0.01, 0.0), seeds=1))
    assert "single seed" in shapley.verdict(one_seed)


def _interval(generator: np.random.Generator, noise: float, seeds: int) -> Interval:
    own = noise * generator.normal(size=(4, seeds))
    values = np.array(list(BY_HAND.values()))[:, None] + own + 0.05 * generator.normal(size=seeds)
    index = pd.MultiIndex.from_tuples(BY_HAND, names=list(LEVELS))
    knobs = tuple(LEVELS)
    gain = shapley.gains(pd.DataFrame(values, index=index), {"lr": 0.01, "weight_decay": 0}, knobs)
    row = shapley._rows(gain, knobs, 0.9)[0]
    return row["shapley"], row["low"], row["high"]


@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_where_the_choice_is_clear(seeds: int) -> None:
    held = coverage(lambda generator: _interval(generator, 0.03, seeds), 0.45, repeats=600)
    assert 0.93 < held < 0.97


def test_coverage_where_noise_hides_the_best_setting() -> None:
    """The choice falls short of the true best: too few of the intervals hold what that would gain."""
    held = coverage(lambda generator: _interval(generator, 0.4, 5), 0.45, repeats=600)
    assert 0.85 < held < 0.93
