from functools import partial
from typing import Any

import numpy as np
import pytest

from robustlr.analysis import near_optimal, relative_performance, width
from robustlr.analysis._sweeps import Runs, estimate
from tests.coverage import Interval, coverage
from tests.test_analysis import _trials
from tests.test_sensitivity import AT, VALLEY, noisy, runs


def _row(curve: tuple[float, ...]) -> dict[Any, Any]:
    table = width.compute(_trials({"ours": curve}, noise=0.0, warmups=(True,), decays=(0.0,)))
    (row,) = table.to_dict("records")
    return dict(row)


def test_the_width_ends_where_straight_lines_cross_the_tolerance() -> None:
    row = _row((0.5, 0.1, 0.1, 0.9))  # tolerated: 0.1 + 0.05 * 0.8 = 0.14
    assert row["width"] == pytest.approx(1 + 0.04 / 0.4 + 0.04 / 0.8)
    assert row["low_end"] == pytest.approx(10 ** (-2 - 0.1))
    assert row["high_end"] == pytest.approx(10 ** (-1 + 0.05))
    assert (row["pieces"], row["at_least"], row["searched"]) == (1, False, pytest.approx(3))


def test_pieces_are_added_up_and_an_end_at_the_edge_is_said() -> None:
    row = _row((0.1, 0.9, 0.9, 0.12))
    assert row["width"] == pytest.approx(0.04 / 0.8 + 0.02 / 0.78)
    assert (row["pieces"], row["at_least"], row["low_end"]) == (2, True, pytest.approx(1e-3))
    table = width.compute(_trials({"ours": (0.1, 0.9, 0.9, 0.12)}, noise=0.0))
    said = width.verdict(table)
    assert "the good range has gaps" in said
    assert "it may be wider" in said


def test_nothing_learnt_has_no_width() -> None:
    row = _row((0.9, 0.9, 0.9, 0.9))
    assert np.isnan(row["width"])
    assert row["pieces"] == 0


def test_a_decay_of_zero_is_infinitely_far_and_left_out() -> None:
    trials = _trials({"ours": (0.9, 0.1, 0.9, 0.9)}, noise=0.0, decays=(0.0, 0.01, 0.1))
    row = width.compute(trials).query("hyperparameter == 'weight_decay'").iloc[0]
    assert (row["width"], row["searched"]) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("seeds", [3, 10])
def test_its_interval_covers_the_truth(seeds: int) -> None:
    def found(sample: Runs) -> Interval:
        value, low, high = estimate(sample, partial(width.width, sample, AT)).interval(0, 4)
        return value, low, high

    truth, *_ = found(runs(VALLEY[:, None]))
    assert 0.93 <= coverage(lambda generator: found(noisy(generator, seeds)), truth, 800) <= 0.97


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_area_under_relative_performance_covers_the_truth(seeds: int) -> None:
    everywhere = np.ones(len(AT), bool)

    def found(sample: Runs) -> Interval:
        area = partial(relative_performance._area, sample, "best ÷ validation error", everywhere)
        value, low, high = estimate(sample, area).interval(0, 1)
        return value, low, high

    truth, *_ = found(runs(VALLEY[:, None]))
    assert 0.93 <= coverage(lambda generator: found(noisy(generator, seeds)), truth, 800) <= 0.97


def test_relative_performance_is_the_best_divided_by_the_value() -> None:
    trials = _trials({"ours": (0.4, 0.1, 0.2, 0.9)}, noise=0.0, warmups=(True,), decays=(0.0,))
    table = relative_performance.compute(trials.assign(metric="validation error"))
    assert table["relative"].tolist() == pytest.approx([0.25, 1, 0.5, 0])  # the last diverged
    assert table["area"].unique().tolist() == pytest.approx([1.75 / 4])
    assert table["form"].unique().tolist() == ["best ÷ validation error"]


def test_relative_performance_of_perplexities_and_of_rewards() -> None:
    trials = _trials({"ours": (0.4, 0.1, 0.2, 0.9)}, noise=0.0, warmups=(True,), decays=(0.0,))
    perplexity = trials.assign(
        value=np.exp(10 * trials["value"]), worst=np.exp(9), metric="validation perplexity"
    )
    table = relative_performance.compute(perplexity)
    assert table["relative"].tolist() == pytest.approx([np.exp(-3), 1, np.exp(-1), 0])
    rewards = trials.assign(
        value=-trials["value"], worst=-0.9, direction="maximize", metric="reward"
    )
    table = relative_performance.compute(rewards)
    assert table["relative"].tolist() == pytest.approx([0.5 / 0.8, 1, 0.7 / 0.8, 0])
    assert table["form"].unique().tolist() == ["share of the gain in reward"]


def test_a_run_that_diverged_counts_as_none_of_the_best() -> None:
    trials = _trials(
        {"ours": (0.4, 0.1, 0.2, 0.9)}, noise=0.0, warmups=(True,), decays=(0.0,), seeds=4
    )
    one = (trials["lr"] == 0.1) & (trials["seed"] == 0)
    table = relative_performance.compute(trials.assign(diverged=trials["diverged"] | one))
    assert table["relative"].tolist() == pytest.approx([0.25, 1, 0.75 * 0.5, 0])


def test_a_tolerance_below_the_noise_of_seeds_is_said() -> None:
    quiet = near_optimal.compute(_trials(noise=0.01, seeds=5))
    assert quiet["resolved"].all()
    assert quiet["seed_sd"].between(0.002, 0.006).all()  # 0.01 / sqrt(12) of 0.8
    loud = near_optimal.compute(_trials(noise=0.4, seeds=5))
    assert not loud["resolved"].any()
    assert "seeds alone differ by more than the tolerance" in near_optimal.verdict(loud)
    unknown = near_optimal.compute(_trials(seeds=1))
    assert "the noise of seeds is not known" in near_optimal.verdict(unknown)
