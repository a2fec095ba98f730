"""Warmup's gains: by hand, between two lengths, in stable learning rates; how their intervals cover."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import warmup
from robustlr.analysis._intervals import mean_interval

Arms = dict[Any, dict[float, list[float]]]
"""Losses by warmup, lr and seed."""

OFF_AND_ON: Arms = {
    False: {0.1: [0.5, 0.6, 0.7], 0.2: [0.4, 0.4, 0.4], 0.3: [1.0, 1.0, 1.0]},
    True: {0.1: [0.4, 0.4, 0.4], 0.2: [0.4, 0.3, 0.2], 0.3: [0.7, 0.7, 0.7]},
}


def _trials(arms: Arms, **more: Any) -> pd.DataFrame:
    rows = [
        {"warmup": arm, "lr": lr, "seed": seed, "value": value, "diverged": value >= 1.0}
        for arm, losses in arms.items()
        for lr, values in losses.items()
        for seed, value in enumerate(values)
        if value == value
    ]
    fixed = {"study": "s", "task": "t", "optimizer": "o", "role": "design", "metric": "loss"}
    fixed |= {"direction": "minimize", "conditions": "warmup"}
    return pd.DataFrame(rows).assign(**{"worst": 1.0, **fixed, **more})


def _row(trials: pd.DataFrame, kind: str) -> dict[str, Any]:
    (row,) = warmup.compute(trials).query("kind == @kind").to_dict("records")
    return dict(row)


def test_the_matched_gain_is_the_mean_over_points() -> None:
    row = _row(_trials(OFF_AND_ON), "matched")
    by_seed = pd.Series([0.1 + 0.0 + 0.3, 0.2 + 0.1 + 0.3, 0.3 + 0.2 + 0.3]) / 3
    assert (row["gain"], row["low"], row["high"]) == pytest.approx(mean_interval(by_seed))
    assert row["gain_share"] == pytest.approx(0.2 / (1 - 0.3))
    assert (row["points"], row["seeds"], row["against"]) == (3, 3, False)


def test_the_retuned_gain_is_that_between_settings_chosen_on_other_seeds() -> None:
    row = _row(_trials(OFF_AND_ON), "retuned")
    by_seed = pd.Series([0.4 - 0.4, 0.4 - 0.3, 0.4 - 0.2])
    assert row["gain"] == pytest.approx(0.1)
    assert (row["low"], row["high"]) == pytest.approx(mean_interval(by_seed)[1:])


def test_the_shortest_warmup_is_the_reference_where_none_is_off() -> None:
    arms: Arms = {2000: {0.1: [0.4]}, 500: {0.1: [0.7]}, 4000: {0.1: [0.5]}}
    table = warmup.compute(_trials(arms)).query("kind == 'matched'")
    assert table["against"].tolist() == [500, 500]
    assert table["warmup"].tolist() == [2000, 4000]
    assert table["gain"].tolist() == pytest.approx([0.3, 0.2])


def test_on_is_more_than_off_but_not_than_a_given_length() -> None:
    lengths: Arms = {True: {0.1: [0.4]}, 0.5: {0.1: [0.6]}, 0.05: {0.1: [0.7]}}
    table = warmup.compute(_trials(lengths)).query("kind == 'matched'")
    assert table[["against", "warmup"]].to_numpy().tolist() == [[0.05, 0.5]]
    with_off = warmup.compute(_trials({**lengths, False: {0.1: [0.8]}})).query("kind == 'matched'")
    assert with_off["gain"].tolist() == pytest.approx([0.1, 0.2, 0.4])


def test_words_for_warmup_cannot_be_compared() -> None:
    table = warmup.compute(_trials({"none": {0.1: [0.4]}, "linear": {0.1: [0.6]}}))
    assert table.empty
    assert "not words" in warmup.verdict(table)


def test_points_and_seeds_that_one_arm_lacks_do_not_count() -> None:
    nan = float("nan")
    arms: Arms = {
        False: {0.1: [0.5, 0.6, 0.7], 0.2: [0.4, 0.4, 0.9]},
        True: {0.2: [0.3, 0.3], 0.1: [0.4, nan], 0.3: [0.1, 0.1]},
    }
    row = _row(_trials(arms), "matched")
    assert (row["points"], row["seeds"]) == (1, 2)  # 0.2 is the one that both ran on all seeds
    assert row["gain"] == pytest.approx(0.1)


def test_points_without_a_hyperparameter_are_compared() -> None:
    trials = _trials(OFF_AND_ON)
    momentum = trials["lr"].map({0.1: 0.9})
    assert _row(trials.assign(momentum=momentum), "matched")["points"] == 3
    assert _row(trials.assign(momentum=momentum), "retuned")["gain"] == pytest.approx(0.1)


def test_perplexities_gain_in_nats() -> None:
    arms: Arms = {0: {0.1: [20.0, 40.0]}, 1: {0.1: [10.0, 20.0]}}
    trials = _trials(arms, metric="validation perplexity", worst=1000.0, diverged=False)
    assert _row(trials, "matched")["gain"] == pytest.approx(np.log(2))


def test_warmup_raises_the_largest_stable_learning_rate_by_decades() -> None:
    fails = [1.0] * 3
    arms: Arms = {
        False: {0.01: [0.3] * 3, 0.1: [0.4] * 3, 1.0: fails, 10.0: fails},
        True: {0.01: [0.3] * 3, 0.1: [0.2] * 3, 1.0: [0.4] * 3, 10.0: fails},
    }
    row = _row(_trials(arms), "stable lr")
    assert (row["gain"], row["bound"]) == (pytest.approx(1.0), "")
    assert -1 < row["low"] < 1 < row["high"] < 3
    arms[True][10.0] = [0.5] * 3
    row = _row(_trials(arms), "stable lr")
    assert (row["gain"], row["bound"], row["high"]) == (pytest.approx(2.0), "at least", np.inf)
    arms[False] = dict.fromkeys(arms[False], fails)
    assert "stable lr" not in set(warmup.compute(_trials(arms))["kind"])


def _many(studies: int, off: list[float], on: list[float], seeds: int) -> pd.DataFrame:
    """Studies of one truth, a task each; half of the noise is the seed's and shared by both arms."""
    generator = np.random.default_rng(0)
    arms = np.array([off, on])
    noise = generator.normal(size=(studies, *arms.shape, seeds))
    noise += generator.normal(size=(studies, 1, 1, seeds))
    values = arms[:, :, None] + 0.02 * noise / np.sqrt(2)
    at = np.array(list(itertools.product(*map(range, values.shape))))
    columns = {"task": at[:, 0], "warmup": at[:, 1], "lr": 10.0 ** -at[:, 2], "seed": at[:, 3]}
    trials = pd.DataFrame({"value": values.ravel(), **columns})
    fixed = {"optimizer": "o", "role": "design", "direction": "minimize"}
    return trials.assign(**fixed, worst=1.0, diverged=False)


@pytest.mark.parametrize(
    ("off", "on", "seeds", "expected"),
    [
        ([0.5, 0.3, 0.5], [0.5, 0.2, 0.3], 3, (0.93, 0.97)),  # settings differ
        ([0.5, 0.3, 0.31], [0.3, 0.29, 0.5], 5, (0.94, 0.99)),  # some nearly tie
        ([0.5, 0.3, 0.5, 0.5, 0.5], [0.3] * 5, 5, (0.93, 0.98)),  # all tie in one arm
    ],
)
def test_the_retuned_interval_covers_the_gain_between_the_best_settings(
    off: list[float], on: list[float], seeds: int, expected: tuple[float, float]
) -> None:
    trials = _many(200, off, on, seeds)
    rows = [
        warmup._gain(
            {"kind": "retuned"}, warmup._common(cell.assign(loss=cell["value"]), 0, 1), 1.0
        )[0]
        for _, cell in trials.groupby("task")
    ]
    truth = min(off) - min(on)
    covered = np.mean([row["low"] <= truth <= row["high"] for row in rows])
    assert expected[0] <= covered <= expected[1]


def test_the_verdict_tells_need_from_none_and_from_not_knowing() -> None:
    nothing: Arms = {arm: {0.1: [0.4, 0.4001, 0.4], 0.2: [0.5] * 3} for arm in (False, True)}
    unclear: Arms = {False: {0.1: [0.4, 0.5, 0.3]}, True: {0.1: [0.3, 0.6, 0.2]}}
    much: Arms = {False: {0.1: [0.8, 0.81, 0.82]}, True: {0.1: [0.4, 0.4, 0.41]}}
    each = {"o": nothing, "p": unclear, "q": much}
    said = warmup.verdict(
        warmup.compute(pd.concat([_trials(arms, optimizer=name) for name, arms in each.items()]))
    )
    assert "Even when tuned for it, training without warmup is worse: q on 1 of 1 tasks." in said
    assert "not needed (worth less than 2% of what there is to gain): o on 1 of 1 tasks." in said
    assert "We cannot tell: p on 1 of 1 tasks." in said
    assert "It is less dependent on warmup than q on 1 of 1." in said
    sure: Arms = {False: {0.1: [0.401, 0.4021, 0.4009]}, True: {0.1: [0.4, 0.401, 0.4]}}
    said = warmup.verdict(warmup.compute(_trials(sure, optimizer="s")))
    assert "not needed (worth less than 2% of what there is to gain): s on 1 of 1 tasks." in said
    assert "Even when tuned" not in said
    turned: Arms = {arm: much[not arm] for arm in much}
    said = warmup.verdict(warmup.compute(_trials(turned, optimizer="r")))
    assert "At equal settings warmup hurts: r on 1 of 1 tasks." in said
    assert "helps" not in said
    assert "with and without it" in warmup.verdict(pd.DataFrame())
