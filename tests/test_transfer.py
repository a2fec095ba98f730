"""Transfer between tasks, and how many hyperparameters need tuning for each."""

import itertools

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import transfer, tuning_dimension
from robustlr.analysis._across import is_grid
from robustlr.analysis._cells import means_of_others
from tests.coverage import Interval, coverage

LRS = (0.001, 0.01, 0.1)


def _table(losses: dict[str, list[list[float]]], names: tuple[str, ...] = ("lr",)) -> pd.DataFrame:
    """Trials of one optimizer: for each task, points × seeds, the grid in lexical order."""
    points = list(itertools.product(LRS, repeat=len(names)))
    rows = [
        {"task": task, "optimizer": "a", "role": "design", "seed": seed, "value": loss}
        | {"direction": "minimize", "worst": 1.0, "diverged": loss >= 1}
        | dict(zip(names, point, strict=True))
        for task, by_point in losses.items()
        for point, by_seed in zip(points, by_point, strict=True)
        for seed, loss in enumerate(by_seed)
    ]
    return pd.DataFrame(rows)


def _regrets(table: pd.DataFrame, way: str) -> dict[str, float]:
    rows = table[table["chosen_for"] == way]
    return dict(zip(rows["task"], rows["regret"], strict=True))


def test_regret_by_hand() -> None:
    """Two seeds without noise; what there is to gain is 0.8 on each task."""
    losses = {"t": [0.2, 0.5, 1.0], "u": [0.4, 0.3, 0.2], "v": [0.6, 0.2, 0.6]}
    trials = _table({task: [[loss] * 2 for loss in points] for task, points in losses.items()})
    table = transfer.compute(trials)
    mean = _regrets(table, "mean")  # summed regrets: 0.6, 0.4, 1.2
    assert mean == pytest.approx({"t": 0.3 / 0.8, "u": 0.1 / 0.8, "v": 0.0, "all tasks": 0.4 / 2.4})
    worst = _regrets(table, "worst task")  # largest regrets: 0.4, 0.3, 0.8
    assert worst == pytest.approx(mean)
    left_out = _regrets(
        table, "other tasks"
    )  # without t 0.6, 0.1, 0.4; u 0.4, 0.3, 1.2; v 0.2, 0.4, 0.8
    assert left_out == pytest.approx(
        {"t": 0.3 / 0.8, "u": 0.1 / 0.8, "v": 0.4 / 0.8, "all tasks": 0.8 / 2.4}
    )
    assert (table["points"] == 3).all()
    assert (table["seeds"] == 2).all()


def test_a_setting_that_diverges_on_a_new_task_is_shown_as_such() -> None:
    losses = {"t": [0.5, 0.2, 1.0], "u": [0.5, 0.4, 0.2], "v": [0.5, 0.4, 0.2]}
    table = transfer.compute(_table({t: [[loss] * 2 for loss in ls] for t, ls in losses.items()}))
    row = table[(table["chosen_for"] == "other tasks") & (table["task"] == "t")].iloc[0]
    assert (row["setting"], row["setting_diverged"], row["regret"]) == ("lr=0.1", 1.0, 1.0)
    assert "a 50 % (diverges on t)" in transfer.verdict(table)  # 1, 0.2/0.8 and 0.2/0.8
    figure = transfer.draw(table)
    assert "100 ×" in [text.get_text() for text in figure.axes[0].texts]


def test_only_settings_that_all_tasks_have_count() -> None:
    losses = {"t": [[0.2], [0.5], [0.6]], "u": [[0.2], [0.3], [0.4]]}
    trials = _table(losses)
    trials = trials[~((trials["task"] == "u") & (trials["lr"] == LRS[0]))]
    table = transfer.compute(trials)
    assert (table["points"] == 2).all()
    assert table[table["task"] == "t"]["best_setting"].tolist() == ["lr=0.01"] * 3
    assert transfer.compute(trials[trials["task"] == "t"]).empty
    assert "two tasks" in transfer.verdict(pd.DataFrame())


def test_settings_without_a_hyperparameter_are_settings() -> None:
    losses = {"t": [[0.2], [0.5], [0.6]], "u": [[0.2], [0.3], [0.4]]}
    trials = _table(losses).assign(momentum=0.9)
    trials.loc[trials["lr"] == LRS[0], "momentum"] = np.nan
    table = transfer.compute(trials)
    assert (table["points"] == 3).all()
    assert set(table["setting"]) == {"lr=0.001"}


def test_tasks_with_seeds_of_their_own_are_averaged() -> None:
    losses = {"t": [0.2, 0.5, 0.9], "u": [0.4, 0.3, 0.2]}
    noise = (0.0, 0.02, 0.01)
    trials = _table({t: [[loss + n for n in noise] for loss in ls] for t, ls in losses.items()})
    apart = trials.assign(seed=trials["seed"] + 10 * (trials["task"] == "u"))
    same, found = transfer.compute(trials), transfer.compute(apart)
    pd.testing.assert_series_equal(same["regret"], found["regret"])
    assert found["low"].notna().all()
    assert "a nan" not in transfer.verdict(found)


def test_the_verdict_names_conditions_and_what_is_not_known() -> None:
    flat, crossed = (
        {"t": [0.2, 0.5, 0.9], "u": [0.2, 0.5, 0.9]},
        {
            "t": [0.2, 0.5, 0.9],
            "u": [0.9, 0.5, 0.2],
        },
    )
    arms = [
        _table({t: [[loss] * 3 for loss in ls] for t, ls in of.items()}).assign(warmup=warmup)
        for of, warmup in ((flat, True), (crossed, False))
    ]
    said = transfer.verdict(transfer.compute(pd.concat(arms)))
    assert "on average:\nwarmup=true: a 0 %. For none of them is it surely" in said
    assert "\nwarmup=false: a 88 %. It is surely more than nothing for a." in said
    one_each = _table({"t": [[0.2], [0.5], [0.9]], "u": [[0.9], [0.5], [0.2]]})
    one_each["seed"] += one_each["task"] == "u"
    said = transfer.verdict(transfer.compute(one_each))
    assert said.endswith("Not known for a: a task has no seed that judges what the others chose.")


def test_the_interval_over_tasks_with_seeds_of_their_own_covers() -> None:
    def interval(generator: np.random.Generator) -> Interval:
        regrets = np.full((8, 2), np.nan)
        regrets[:3, 0] = generator.normal(0.1, 0.02, 3)
        regrets[3:, 1] = generator.normal(0.3, 0.05, 5)
        row = transfer._estimate_over_tasks(regrets)
        return row["regret"], row["low"], row["high"]

    assert 0.93 < coverage(interval, 0.2, repeats=1500) < 0.97


def test_the_interval_of_the_regret_covers() -> None:
    """The truth: the regret of someone who chooses on all seeds but one, on a fresh seed.

    Here the settings are so far apart that every seed chooses the same.
    """
    curves = np.array([[0.0, 0.4], [0.1, 0.0], [0.9, 0.9]])
    settings = pd.DataFrame({"lr": LRS})

    def interval(generator: np.random.Generator) -> Interval:
        losses = curves[:, :, None] + generator.normal(0, 0.02, (3, 2, 5))
        ours = transfer.Shared(["t", "u"], settings, losses, np.zeros((3, 2)), {})
        row = transfer._of_way(ours, "mean")[-1]
        return row["regret"], row["low"], row["high"]

    assert 0.93 < coverage(interval, 0.1 / 2, repeats=1500) < 0.97


def test_the_interval_is_too_narrow_where_seeds_choose_differently() -> None:
    """Two settings that are equal in truth: the regret is 0, and what seeds choose hangs together."""
    settings = pd.DataFrame({"lr": LRS})

    def interval(generator: np.random.Generator) -> Interval:
        losses = generator.normal(0.1, 0.02, (3, 2, 5))
        ours = transfer.Shared(["t", "u"], settings, losses, np.zeros((3, 2)), {})
        row = transfer._of_way(ours, "mean")[-1]
        return row["regret"], row["low"], row["high"]

    assert 0.87 < coverage(interval, 0.0, repeats=1500) < 0.94


def test_means_of_others_leave_out_the_own_seed_and_what_is_missing() -> None:
    values = np.array([[1.0, 2.0, 6.0], [1.0, np.nan, np.nan]])
    expected = [[4.0, 3.5, 1.5], [np.inf, 1.0, 1.0]]
    np.testing.assert_allclose(means_of_others(values), expected)
    np.testing.assert_allclose(means_of_others(np.array([[3.0], [np.nan]])), [[3.0], [np.inf]])


def test_a_grid_is_told_from_a_sample() -> None:
    grid = pd.DataFrame(itertools.product(LRS, (0.0, 0.5)), columns=["lr", "decay"])
    assert is_grid(grid)
    assert not is_grid(grid.iloc[1:])
    assert is_grid(pd.DataFrame({"lr": [1.15478e-3, 1.15478e-2, 1.15478e-1]}))
    assert is_grid(pd.DataFrame({"lr": [0.0, 0.5, 1.0]}))
    assert not is_grid(pd.DataFrame({"lr": [0.00117, 0.00436, 0.108]}))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),
        ("lr", [0.01, 0.02, 0.04, 0.06, 0.08, 0.1]),
        ("momentum", [0.0, 0.9, 0.99, 0.999]),
        ("beta2", [0.9, 0.95, 0.999, 0.9995]),
    ],
)
def test_round_numbers_are_a_chosen_grid(name: str, values: list[float]) -> None:
    assert is_grid(pd.DataFrame({name: values}))


def test_random_numbers_are_no_grid() -> None:
    for draw in 10 ** np.random.default_rng(0).uniform(-4, 0, (1000, 4)):
        assert not is_grid(pd.DataFrame({"lr": [float(f"{value:.6g}") for value in draw]}))


def _two_knobs(lr_shift: float, decay_shift: float) -> pd.DataFrame:
    """Task u wants another lr and decay than t, by as many decades."""
    losses = {
        task: [
            [0.1 + 0.1 * (abs(lr - sign * lr_shift) + abs(decay - sign * decay_shift))] * 2
            for lr, decay in itertools.product((-1, 0, 1), repeat=2)
        ]
        for task, sign in (("t", -1), ("u", 1))
    }
    return _table(losses, ("lr", "decay"))


def test_the_number_of_hyperparameters_that_need_tuning() -> None:
    table = tuning_dimension.compute(_two_knobs(1, 0)).set_index("tuned")
    assert table["enough"].to_dict() == {
        "none": "no",
        "lr": "yes",
        "decay": "no",
        "lr and decay": "yes",
    }
    assert table.loc["lr", "gain"] == pytest.approx(0.1 / 0.9)  # on average one decade nearer
    assert table.loc["decay", "gain"] == pytest.approx(0.0)
    assert table.loc["decay", "missing"] == pytest.approx(0.1 / 0.9)
    assert "score: lr for a." in tuning_dimension.verdict(table.reset_index())
    both = tuning_dimension.compute(_two_knobs(1, 1))
    assert "score: lr and decay for a." in tuning_dimension.verdict(both)
    none = tuning_dimension.compute(_two_knobs(0, 0))
    assert "score: none for a." in tuning_dimension.verdict(none)


def test_no_dimension_without_a_grid() -> None:
    trials = _two_knobs(1, 0)
    assert tuning_dimension.compute(trials[trials["lr"] + trials["decay"] > 0.003]).empty
    assert "full grid" in tuning_dimension.verdict(pd.DataFrame())


def test_a_setting_without_a_hyperparameter_is_a_point_of_a_grid() -> None:
    grid = itertools.product(LRS, (np.nan, 0.9))
    points = pd.DataFrame(list(grid), columns=["lr", "momentum"])
    assert is_grid(points)
    assert is_grid(pd.DataFrame({"momentum": [np.nan, 0.9, 0.99]}))
    assert not is_grid(points.iloc[:5])
