"""The winner's curse: by hand, in simulation, and in the DeepOBS baselines."""

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import winners_curse
from robustlr.analysis._intervals import mean_interval
from tests.public_runs import deepobs, needs_deepobs
from tests.test_gap import runs

DESIGN = [runs("design", 0.1, [0.1, 0.3]), runs("design", 0.2, [0.3, 0.2])]


def test_fresh_seeds_judge_the_score_by_which_a_setting_was_chosen() -> None:
    confirm = runs("confirm", 0.1, [0.4, 0.5, 0.6], 2)
    (row,) = winners_curse.compute(pd.concat([*DESIGN, confirm])).to_dict("records")
    assert (row["selected"], row["fresh"]) == pytest.approx((0.2, 0.5))
    assert (row["curse"], row["curse_share"]) == pytest.approx((0.3, 0.3 / 0.8))
    assert (row["low"], row["high"]) == pytest.approx(mean_interval(pd.Series([0.2, 0.3, 0.4]))[1:])
    assert (row["judged_on"], row["seeds"], row["points"]) == ("fresh seeds", 3, 2)


def test_without_fresh_seeds_each_seed_judges_what_the_others_chose() -> None:
    (row,) = winners_curse.compute(pd.concat(DESIGN)).to_dict("records")
    assert row["selected"] == pytest.approx(0.2)
    assert row["fresh"] == pytest.approx(np.mean([0.3, 0.3]))  # seed 1 chose 0.2, seed 0 chose 0.1
    assert row["curse"] == pytest.approx(0.1)


def test_a_reward_that_falls_is_a_curse_too() -> None:
    trials = pd.concat([*DESIGN, runs("confirm", 0.1, [0.4, 0.5, 0.6], 2)])
    rewards = trials.assign(value=-trials["value"], worst=-1.0, direction="maximize")
    (row,) = winners_curse.compute(rewards).to_dict("records")
    assert (row["selected"], row["fresh"]) == pytest.approx((-0.2, -0.5))
    assert row["curse"] == pytest.approx(0.3)


def test_one_seed_cannot_tell_its_own_luck() -> None:
    table = winners_curse.compute(runs("design", 0.1, [0.1]))
    assert table.empty
    assert "robustlr confirm NAME" in winners_curse.verdict(table)


def test_the_trial_of_an_adaptive_study_that_was_chosen_is_judged() -> None:
    adaptive = [runs("adaptive", 0.1, [0.1]), runs("adaptive", 0.2, [0.3], 1)]
    confirm = runs("confirm", 0.1, [0.4, 0.5], 2)
    (row,) = winners_curse.compute(pd.concat([*adaptive, confirm])).to_dict("records")
    assert (row["selected"], row["fresh"]) == pytest.approx((0.1, 0.45))


def test_rounding_is_no_curse() -> None:
    table = winners_curse.compute(runs("design", 0.1, [0.1] * 3))
    assert table[["curse", "low", "high"]].to_numpy().tolist() == [[0, 0, 0]]
    assert "cannot tell on 1 of 1" in winners_curse.verdict(table)
    sure = table.assign(low=0.1, high=0.2, selected=1.0, fresh=1.15)
    said = winners_curse.verdict(pd.concat([table, sure], ignore_index=True))
    assert "flatter it: " in said
    assert "By chance alone about 0.1 would show one or the other." in said


@pytest.mark.parametrize(("points", "seeds"), [(5, 3), (20, 5)])
def test_the_interval_without_fresh_seeds_covers_the_expected_curse(
    points: int, seeds: int
) -> None:
    """The settings are equally good, so the curse is how far the best mean lies below the truth."""
    losses = 0.3 + 0.02 * np.random.default_rng(0).normal(size=(250, points, seeds))
    truth = 0.3 - float(losses.mean(axis=2).min(axis=1).mean())
    at = np.array(list(np.ndindex(*losses.shape)))
    trials = runs("design", 0.0, losses.ravel()).assign(
        task=at[:, 0], lr=(at[:, 1] + 1) / 10, seed=at[:, 2]
    )
    table = winners_curse.compute(trials)
    assert table["curse"].mean() == pytest.approx(truth, rel=0.15)
    assert 0.93 <= ((table["low"] <= truth) & (truth <= table["high"])).mean() <= 0.995


@needs_deepobs
def test_deepobs_momentum_was_chosen_for_its_luck_on_f_mnist() -> None:
    table = winners_curse.compute(deepobs("test")).set_index(["task", "optimizer"])
    row = table.loc[("fmnist_vae", "Momentum")]
    assert row["selected"] == pytest.approx(24.5, abs=0.05)
    assert row["fresh"] == pytest.approx(63.1, abs=0.05)
    assert row["low"] > 27
    assert row["seeds"] == 9
    said = winners_curse.verdict(table.reset_index())
    assert "Momentum on fmnist_vae, which scored 24.5 when it was chosen and 63.1" in said
