import time

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from robustlr.analysis import heatmap, lr_curves
from robustlr.analysis._cells import cells, in_unit, point_by_seed
from robustlr.analysis._intervals import mean_interval
from tests.test_analysis import _random_design, _trials


def test_any_two_hyperparameters_make_a_plane() -> None:
    trials = _trials(noise=0.0, warmups=(True,))
    trials["momentum"] = np.where(trials["seed"] == 0, 0.9, 0.0)
    table = heatmap.compute(trials, "momentum", "lr")
    assert table[["x_hyperparameter", "hyperparameter"]].drop_duplicates().to_numpy().tolist() == [
        ["momentum", "lr"]
    ]
    assert sorted(table["x"].unique()) == [0.0, 0.9]
    flat = table[table["optimizer"] == "flat"]
    assert len(flat) == 2 * 4
    assert flat[flat["y"] == 0.01]["value"].tolist() == pytest.approx(
        [0.1, 0.1]
    )  # no decay is best
    assert heatmap.compute(trials, "lr", "nothing").empty


def test_a_square_is_the_mean_over_seeds_of_its_best_point() -> None:
    trials = _trials(warmups=(True,), decays=(0.0, 0.01, 0.1)).query("role == 'design'")
    trials["momentum"] = trials["weight_decay"].map({0.0: 0.0, 0.01: 0.0, 0.1: 0.9})
    table = heatmap.compute(trials, "lr", "momentum")
    for key, cell in cells(trials):
        ours = table[table["optimizer"] == key["optimizer"]].set_index(["x", "y"])
        for (lr, momentum), here in cell.groupby(["lr", "momentum"]):
            by_seed = point_by_seed(here)
            expected = mean_interval(by_seed.loc[by_seed.mean(axis=1).idxmin()])
            found = ours.loc[(lr, momentum), ["value", "low", "high"]]
            assert found.tolist() == pytest.approx([in_unit(cell, number) for number in expected])
            assert ours.loc[(lr, momentum), "points"] == len(by_seed)


def test_the_worst_task_is_each_squares_own() -> None:
    easy = _trials({"ours": (0.1, 0.2, 0.3, 0.9)}, noise=0.0, warmups=(True,))
    hard = _trials({"ours": (0.5, 0.1, 0.1, 0.1)}, noise=0.0, warmups=(True,)).assign(task="u")
    table = heatmap.compute(pd.concat([easy, hard]))
    worst = (
        table[(table["task"] == heatmap.WORST_TASK) & (table["y"] == 0)].set_index("x").sort_index()
    )
    assert worst["value"].tolist() == pytest.approx([0.5, 0.125, 0.25, 1])
    assert worst.index[worst["best"]].tolist() == [1e-2]
    assert heatmap.WORST_TASK not in set(heatmap.compute(easy)["task"])
    assert heatmap.draw(table[table["task"] == heatmap.WORST_TASK]).axes


def test_all_optimizers_and_conditions_share_a_picture_and_a_scale() -> None:
    table = heatmap.compute(_trials(noise=0.0))
    *drawn, _ = heatmap.draw(table).axes
    titles = [panel.get_title().splitlines()[0] for panel in drawn]
    assert titles == [
        f"{name} · warmup={on}" for name in ("flat", "steep") for on in ("true", "false")
    ]
    assert len({panel.collections[0].get_clim() for panel in drawn}) == 1
    frames = [patch for panel in drawn for patch in panel.patches if isinstance(patch, Rectangle)]
    assert len(frames) == 4
    crosses = [len(panel.lines) for panel in drawn]
    assert crosses == [0, 0, 6, 6]  # three learning rates at two decays diverged


def test_a_hundred_thousand_runs_take_seconds() -> None:
    generator, count = np.random.default_rng(0), 100_000
    many = _random_design(80).sample(count, replace=True, random_state=0)
    many = many.assign(
        task=[f"t{i % 25}" for i in range(count)],
        lr=10 ** generator.uniform(-4, 0, count),
        weight_decay=generator.uniform(0, 0.1, count),
    )
    started = time.process_time()
    squares, curves = heatmap.compute(many), lr_curves.compute(many)
    assert (
        time.process_time() - started < 20
    )  # 8 on two busy cores; square by square it took minutes
    assert squares.groupby("task").size().min() > 60
    assert len(curves) > 90_000  # a learning rate of its own for nearly every run
