"""The out-of-the-box gap: on fresh seeds and without, in numbers worked out by hand; how it covers."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import gap
from robustlr.analysis._intervals import mean_interval


def runs(role: str, lr: float, values: Any, first_seed: int = 0, **more: Any) -> pd.DataFrame:
    """Trials of one setting, a seed each."""
    fixed = {"study": "s", "task": "t", "optimizer": "o", "role": role, "lr": lr, "metric": "loss"}
    fixed |= {"direction": "minimize", "worst": 1.0, "diverged": False, "test_value": np.nan}
    seeds = range(first_seed, first_seed + len(values))
    return pd.DataFrame({"seed": seeds, "value": values}).assign(**{**fixed, **more})


DESIGN = [
    runs("design", 0.1, [0.2, 0.2]),
    runs("design", 0.2, [0.3, 0.5]),
    runs("default", 0.3, [0.9, 0.8]),
]
CONFIRMED = pd.concat(
    [
        *DESIGN,
        runs("confirm", 0.1, [0.2, 0.4, 0.3], 2, test_value=[0.3, 0.4, 0.5]),
        runs("confirm-default", 0.3, [0.6, 0.6, 0.6], 2, test_value=[0.6, 0.9, 0.9]),
    ]
)


def _row(trials: pd.DataFrame) -> dict[str, Any]:
    (row,) = gap.compute(trials).to_dict("records")
    return dict(row)


def test_a_confirmed_gap_is_that_of_the_test_values_on_fresh_seeds() -> None:
    row = _row(CONFIRMED)
    assert row["judged_on"] == "test, fresh seeds"
    mean, low, high = mean_interval(pd.Series([0.3, 0.5, 0.4]))
    assert row["gap"] == pytest.approx(mean)
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["gap_share"] == pytest.approx(0.4 / (1 - 0.4))
    assert (row["default_value"], row["tuned_value"]) == pytest.approx((0.8, 0.4))
    assert (row["best_setting"], row["points"], row["seeds"]) == ("lr=0.1", 2, 3)


def test_validation_values_judge_where_a_run_has_no_test_value() -> None:
    lacking = CONFIRMED.reset_index(drop=True)
    lacking.loc[len(lacking) - 1, "test_value"] = np.nan
    row = _row(lacking)
    assert row["judged_on"] == "validation, fresh seeds"
    assert row["gap"] == pytest.approx(0.3)


def test_a_diverged_run_needs_no_test_value() -> None:
    diverged = CONFIRMED.reset_index(drop=True)
    diverged.loc[len(diverged) - 1, ["test_value", "diverged"]] = [np.nan, True]
    row = _row(diverged)
    assert row["judged_on"] == "test, fresh seeds"
    assert row["gap"] == pytest.approx(np.mean([0.3, 0.5, 1.0 - 0.5]))


def test_seeds_that_only_one_arm_has_do_not_count() -> None:
    row = _row(CONFIRMED[(CONFIRMED["role"] != "confirm-default") | (CONFIRMED["seed"] > 2)])
    assert row["seeds"] == 2
    assert row["gap"] == pytest.approx(np.mean([0.5, 0.4]))


def test_without_confirmation_each_seed_is_tuned_on_the_others() -> None:
    trials = [runs("design", 0.1, [0.2, 0.4]), runs("design", 0.2, [0.3, 0.1]), DESIGN[2]]
    row = _row(pd.concat(trials))
    assert row["judged_on"] == "validation, the other seeds chose"
    assert row["gap"] == pytest.approx(
        np.mean([0.9 - 0.3, 0.8 - 0.4])
    )  # 0.2 on seed 1 is best, ...
    assert row["low"] < 0.5 < row["high"]


def test_an_adaptive_study_has_a_gap_once_it_is_confirmed() -> None:
    adaptive = CONFIRMED.assign(role=CONFIRMED["role"].replace("design", "adaptive"))
    assert _row(adaptive)["gap"] == pytest.approx(0.4)
    assert gap.compute(adaptive[~adaptive["role"].str.startswith("confirm")]).empty


def test_perplexities_are_compared_in_nats_and_shown_as_they_are() -> None:
    """A default twice as perplexed is log 2 away, on test values too."""
    more = {"metric": "test perplexity", "worst": 1000.0, "value": 5.0}
    arms = [("confirm", [10.0, 40.0]), ("confirm-default", [20.0, 80.0])]
    trials = [runs(r, 0.1, v, test_value=v).assign(**{**more, "value": 5.0}) for r, v in arms]
    row = _row(pd.concat(trials))
    assert row["gap"] == pytest.approx(np.log(2))
    assert row["tuned_value"] == pytest.approx(20.0)


def test_a_gap_is_no_larger_than_there_is_room_for() -> None:
    """Two seeds make intervals wider than what any run could reach."""
    arms = [runs("confirm", 0.1, [0.1, 0.9]), runs("confirm-default", 0.2, [0.9, 0.2])]
    row = _row(pd.concat(arms))
    assert (row["low"], row["high"]) == pytest.approx((-0.9, 0.9))
    assert (row["share_low"], row["share_high"]) == (-1, 1)


def test_the_room_for_a_gap_on_test_data_is_that_of_test_data() -> None:
    arms = [
        runs("design", 0.1, [0.6, 0.6]),
        runs("confirm", 0.1, [0.6, 0.6], 2, test_value=[0.211, 0.211]),
        runs("confirm-default", 0.2, [0.95, 0.95], 2, test_value=[0.961, 0.961]),
    ]
    assert _row(pd.concat(arms))["gap"] == pytest.approx(0.75)


def test_seeds_that_the_search_had_are_not_fresh() -> None:
    stale = CONFIRMED.assign(seed=CONFIRMED["seed"].where(CONFIRMED["seed"] > 2, 0))
    assert _row(stale)["gap"] == pytest.approx(np.mean([0.5, 0.4]))
    none = CONFIRMED.assign(seed=CONFIRMED["seed"] % 2).drop_duplicates(["role", "lr", "seed"])
    assert _row(none)["judged_on"] == "validation, the other seeds chose"


def _many(studies: int, generator: np.random.Generator, points: Any, seeds: int) -> pd.DataFrame:
    """Studies of one truth, a task each: a default of 0.5, and settings with losses ``points``."""
    tables = []
    for name, losses, first in (("design", points, 0), ("default", [0.5], 0)):
        shape = (studies, len(losses), seeds)
        noise = 0.02 * generator.normal(size=shape) + 0.02 * generator.normal(
            size=(studies, 1, seeds)
        )
        values = (np.array(losses)[:, None] + noise).ravel()
        at = np.array(list(np.ndindex(*shape)))
        tables.append(
            runs(name, 0.0, values, first).assign(
                task=at[:, 0], lr=(at[:, 1] + 1) / 10, seed=at[:, 2], metric="loss"
            )
        )
    return pd.concat(tables)


def _covered(table: pd.DataFrame, truth: float) -> float:
    return float(((table["low"] <= truth) & (truth <= table["high"])).mean())


@pytest.mark.parametrize(
    ("points", "seeds", "expected"),
    [
        ([0.3, 0.4, 0.5], 3, (0.93, 0.97)),  # the settings differ
        ([0.3] * 5, 3, (0.95, 0.99)),  # they are all equally good: the choice is noise
    ],
)
def test_the_interval_covers_the_best_settings_gap(
    points: list[float], seeds: int, expected: tuple[float, float]
) -> None:
    table = gap.compute(_many(250, np.random.default_rng(1), points, seeds))
    assert expected[0] <= _covered(table, 0.2) <= expected[1]


def test_the_confirmed_interval_covers_the_chosen_settings_gap() -> None:
    trials = _many(250, np.random.default_rng(2), [0.3], 5)
    roles = {"design": "confirm", "default": "confirm-default"}
    table = gap.compute(trials.assign(role=trials["role"].map(roles)))
    assert 0.93 <= _covered(table, 0.2) <= 0.97


def test_the_verdict_claims_what_the_intervals_hold() -> None:
    said = gap.verdict(gap.compute(CONFIRMED))
    assert said == "Tuning helps: o on 1 of 1 tasks."
    arms = {"confirm": [0.5, 0.51, 0.5], "confirm-default": [0.5, 0.5, 0.52]}
    unclear = [runs(role, 0.1, values, 2, optimizer="p") for role, values in arms.items()]
    said = gap.verdict(gap.compute(pd.concat([CONFIRMED, *unclear])))
    assert "We cannot tell on 1 of 2 tasks; there tuning is worth at most 8%" in said
    assert "p has the best mean rank" in said
    assert "It is closer to its tuned setting than o on 1 of 1." in said
    alone = pd.concat([runs(role, 0.1, [0.5], 2, optimizer="q") for role in arms])
    said = gap.verdict(gap.compute(pd.concat([CONFIRMED, *unclear, alone])))
    assert "We cannot tell on 2 of 3 tasks." in said  # of a single seed no bound is known
    same = CONFIRMED.assign(value=0.5, test_value=0.5)
    assert "found the out-of-the-box setting" in gap.verdict(gap.compute(same))
    assert "robustlr confirm" in gap.verdict(gap.compute(DESIGN[0]))


def test_the_picture_says_which_squares_cannot_be_told() -> None:
    unclear = CONFIRMED.assign(optimizer="p", value=0.5, test_value=0.5)
    [panel, _] = gap.draw(gap.compute(pd.concat([CONFIRMED, unclear]))).axes
    texts = [text.get_text() for text in panel.texts]
    assert texts == ["67%\n0.4 (0.15 to 0.65)", "0% ?\n0 (0 to 0)"]
    assert panel.get_xticklabels()[0].get_text() == "t\n(loss)"
    assert not any(line.get_visible() for line in panel.get_xgridlines())


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((-1e-18, 1.2e-18, -0.025, 0.025), "0% ?\n0 (-0.025 to 0.025)"),
        ((-0.004, -0.003, -0.43, 0.42), "0% ?\n0 (-0.43 to 0.42)"),
        ((0.5, 253.4, 12.3, 494.5), "50%\n253 (12 to 494)"),
        ((0.1, 0.0123, float("nan"), float("nan")), "10% ?\n0.012"),
        ((0.0, 0.0, 0.0, 0.0), "0% ?\n0 (0 to 0)"),
    ],
)
def test_numbers_are_as_fine_as_their_interval(numbers: tuple[float, ...], text: str) -> None:
    row = pd.Series(numbers, index=["gap_share", "gap", "low", "high"])
    assert gap._text(row) == text
