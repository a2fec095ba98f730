"""The published numbers of runs that others made come out of our analyses."""

import pandas as pd
import pytest

from robustlr.analysis import heatmap, relative_performance, sensitivity, stability, width
from robustlr.analysis._cells import of_role
from tests.public_runs import deepobs, needs_deepobs

pytestmark = [needs_deepobs]

TEN_SEED_MEANS = {  # of SGD, Momentum and Adam: shared/metrics.md, "Real runs to check against"
    "quadratic_deep": (87.40, 87.05, 87.11),
    "mnist_vae": (38.46, 52.93, 27.83),
    "fmnist_2c2d": (92.27, 92.14, 92.34),
    "cifar10_3c3d": (83.71, 84.41, 84.75),
    "fmnist_vae": (23.80, 59.23, 23.07),
    "cifar100_allcnnc": (57.06, 60.33, 56.15),
    "svhn_wrn164": (95.37, 95.53, 95.25),
    "tolstoi_char_rnn": (62.07, 61.30, 61.23),
}
OPTIMIZERS = ("GradientDescent", "Momentum", "Adam")


@pytest.fixture(scope="module")
def sensitivities() -> pd.DataFrame:
    return sensitivity.compute(deepobs())


@pytest.mark.parametrize(
    ("kind", "ranks"), [("common", (1.88, 2.00, 2.12)), ("decade", (2.62, 1.88, 1.50))]
)
def test_the_range_decides_which_optimizer_is_least_sensitive(
    kind: str, ranks: tuple[float, ...], sensitivities: pd.DataFrame
) -> None:
    ours = sensitivities[sensitivities["range"] == kind]
    ranked = ours["sensitivity"].groupby(ours["task"]).rank()
    means = ranked.groupby(ours["optimizer"]).mean()
    assert [means[name] for name in OPTIMIZERS] == pytest.approx(ranks, abs=0.0051)
    assert ours["leader"].unique().tolist() == [means.idxmin()]


def test_with_one_seed_nothing_is_claimed(sensitivities: pd.DataFrame) -> None:
    assert sensitivities[["low", "high", "difference_low"]].isna().all(axis=None)
    said = sensitivity.verdict(sensitivities)
    assert "It is less" not in said
    assert "We cannot tell it from Adam on any and Momentum on any." in said


def test_ten_seed_means_are_those_of_the_chosen_learning_rate() -> None:
    trials = deepobs("test")
    chosen = (
        of_role(trials, "confirm").groupby(["task", "optimizer"])["lr"].first().rename("chosen")
    )
    ours = trials.join(chosen, on=["task", "optimizer"])
    ours = ours[(ours["lr"] / ours["chosen"] - 1).abs() < 1e-6]
    found = ours.groupby(["task", "optimizer"])["value"].agg(["mean", "size"])
    assert (found["size"] == 10).all()
    for task, means in TEN_SEED_MEANS.items():
        for optimizer, mean in zip(OPTIMIZERS, means, strict=True):
            assert found["mean"][task, optimizer] == pytest.approx(mean, abs=0.0051)


def test_a_best_at_the_edge_of_the_grid_is_flagged(sensitivities: pd.DataFrame) -> None:
    flagged = sensitivities[sensitivities["edge"]]
    ours = flagged[(flagged["task"] == "fmnist_vae") & (flagged["range"] == "common")]
    assert ours[["optimizer", "best"]].to_numpy().tolist() == [["Momentum", 1e-5]]
    assert "at the edge of the range" in sensitivity.verdict(sensitivities)


def test_a_grid_over_one_hyperparameter_has_curves_and_no_heatmap() -> None:
    trials = deepobs()
    assert heatmap.compute(trials).empty
    curves = relative_performance.compute(trials)
    assert len(curves) == 8 * 3 * 36
    assert curves.groupby(["task", "optimizer"])["relative"].max().eq(1).all()
    momentum = width.compute(trials).query("task == 'fmnist_vae' and optimizer == 'Momentum'")
    assert momentum["at_least"].all()


def test_a_stable_learning_rate_is_the_last_before_a_run_fails() -> None:
    trials = deepobs()
    table = stability.compute(trials)
    failed = ~(trials["value"] < trials["worst"])
    for _, row in table.iterrows():
        ours = (trials["task"] == row["task"]) & (trials["optimizer"] == row["optimizer"])
        between = trials["lr"].between(row["best_lr"] * 0.99, row["stable_lr"] * 1.01)
        assert not failed[ours & between].any()
        next_one = (trials["lr"] / row["unstable_lr"]).between(0.99, 1.01)
        assert failed[ours & next_one].all()
        if row["bound"] == "":
            assert row["boundary_low"] < row["boundary"] < row["boundary_high"]
    at_least = table[table["bound"] == "at least"]
    assert at_least[["task", "optimizer"]].to_numpy().tolist() == [["quadratic_deep", "Adam"]]
    assert at_least["boundary_high"].tolist() == [float("inf")]
