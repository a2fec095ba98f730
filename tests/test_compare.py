import itertools
import tomllib

import numpy as np
import pandas as pd
import pytest

from robustlr.compare import NONE, compare, published
from robustlr.registry import load_task, optimizers, studies, tasks

FACTS = {"paper", "where", "task", "dataset", "model", "optimizer", "metric", "direction", "value"}


def test_published_numbers_have_their_source_and_no_place_of_ours() -> None:
    rows = published()
    assert len(rows) > 80
    for row in rows:
        assert row.keys() >= FACTS
        assert all(row[name] is not None for name in FACTS)
        assert (row["spread"] is None) == (row["spread_kind"] is None)
        assert "/tmp" not in str(row)


@pytest.mark.parametrize(
    "row", [r for r in published() if r["counterpart"]], ids=lambda r: r["where"]
)
def test_counterparts_exist(row: dict[str, object]) -> None:
    here = row["counterpart"]
    assert isinstance(here, dict)
    files = [tomllib.loads(path.read_text(encoding="utf-8")) for path in studies().values()]
    names = {name for file in files for name in file["optimizers"]} | {*optimizers()}
    suffixes = ("-zero-shot", "-few-shot")
    name = here["optimizer"]
    for suffix in suffixes:
        name = name.removesuffix(suffix)
    assert name in names
    assert here["tasks"][0] in tasks()
    paper = load_task(here["tasks"][0]).at("paper")
    assert here["metric"] == paper.metric
    assert (here["value"] <= paper.worst) == (paper.direction == "minimize")


def test_units_are_those_of_our_tasks() -> None:
    (nero,) = (
        r
        for r in published()
        if (r["where"], r["model"], r["optimizer"]) == ("Table 1", "VGG11", "Nero")
    )
    assert (nero["value"], nero["counterpart"]["value"]) == (11.16, 0.1116)
    (rotational,) = (
        r for r in published() if r["optimizer"] == "SGDM" and r["model"] == "ResNet-50"
    )
    assert rotational["value"] == 77.4
    assert rotational["counterpart"]["value"] == pytest.approx(0.226)


def _trials(errors: dict[str, float], seeds: int = 3, noise: float = 0.001) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        {"task": "cifar10-vgg11", "optimizer": name, "role": "design", "seed": seed, "lr": lr}
        | {"value": error * (1 if lr == 0.1 else 2) + noise * generator.normal()}
        for (name, error), seed, lr in itertools.product(errors.items(), range(seeds), (0.1, 1.0))
    ]
    more = {"metric": "validation error", "direction": "minimize", "worst": 0.9, "diverged": False}
    return pd.DataFrame(rows).assign(**more)


def test_ranks_and_pairs_stand_beside_the_papers() -> None:
    found = compare(_trials({"nero": 0.1, "sgd": 0.3, "adam": 0.2, "mine": 0.05}), "small")
    assert found.table["optimizer"].tolist() == ["nero", "sgd", "adam"]
    assert found.table["published_rank"].tolist() == [1, 2, 3]
    assert found.table["rank"].tolist() == [1, 3, 2]
    assert found.table["published"].tolist() == [0.1116, 0.1261, 0.1286]
    assert found.table["best_setting"].unique().tolist() == ["lr=0.1"]
    orders = found.pairs.set_index(["better", "than"])["order"].to_dict()
    assert orders == {
        ("nero", "sgd"): "the paper's",
        ("nero", "adam"): "the paper's",
        ("sgd", "adam"): "the reverse",
    }
    assert (
        "of 3 pairs of optimizers 2 surely in the paper's order, 1 surely in the reverse, 0 undecided"
        in found.verdict
    )
    (line,) = found.differences
    assert line.startswith("cifar10-vgg11 at scale small, so only the order compares: ")
    assert "data digits (paper: cifar10)" in line
    assert ": 250 steps (paper: 199 epochs), " in line


def test_no_order_is_claimed_that_seeds_do_not_show() -> None:
    one_seed = compare(_trials({"nero": 0.1, "sgd": 0.3}, seeds=1), "small")
    assert set(one_seed.pairs["order"]) == {"undecided"}
    noisy = compare(_trials({"nero": 0.3, "sgd": 0.3}, noise=0.1), "small")
    assert set(noisy.pairs["order"]) == {"undecided"}


def test_a_single_optimizer_or_another_task_has_no_counterpart() -> None:
    assert compare(_trials({"nero": 0.1, "mine": 0.2}), "small").verdict == NONE
    assert compare(_trials({"nero": 0.1, "sgd": 0.2}).assign(task="mine"), "small").table.empty
    assert compare(_trials({"nero": 0.1}).iloc[:0], "small").verdict == NONE


def test_at_the_papers_scale_nothing_differs() -> None:
    found = compare(_trials({"nero": 0.1, "sgd": 0.2}), "paper")
    assert not found.differences


def test_a_task_of_the_same_kind_says_that_it_is_another() -> None:
    found = compare(_trials({"nero": 0.1, "sgd": 0.2}).assign(task="digits-cnn"), "small")
    assert "another task than the paper's" in found.differences[0]
