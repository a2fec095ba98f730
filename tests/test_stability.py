import itertools

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import stability
from robustlr.analysis._stability import boundary, largest_stable
from robustlr.analysis._sweeps import Runs, leave_one_out
from tests.coverage import Interval, coverage

LRS = 10.0 ** np.arange(-4, 0.01, 0.5)


def _runs(failed: list[list[int]], at: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)) -> Runs:
    """Runs ``[lrs, seeds]`` of which some failed; the best learning rate is 0.01."""
    diverged = np.array(failed, float)
    losses = np.where(diverged > 0, 0.9, np.array([0.5, 0.1, 0.2, 0.3])[:, None])
    return Runs(np.array(at), losses, diverged, 0.9, np.arange(diverged.shape[1]))


def _table(failed: list[list[int]], **more: object) -> pd.DataFrame:
    sample = _runs(failed)
    rows = [
        {
            "lr": lr,
            "seed": seed,
            "value": sample.losses[index, seed],
            "diverged": bool(failed[index][seed]),
        }
        for (index, lr), seed in itertools.product(enumerate(sample.at), sample.seeds)
    ]
    fixed = {"task": "t", "optimizer": "o", "role": "design", "direction": "minimize", "worst": 0.9}
    return pd.DataFrame(rows).assign(**{**fixed, **more})


def test_the_largest_stable_is_below_the_first_that_fails() -> None:
    found = largest_stable(_runs([[0, 0], [0, 0], [0, 1], [0, 0]]))
    assert (found.largest[0], found.unstable[0], found.best[0]) == (1e-2, 1e-1, 1e-2)
    found = largest_stable(_runs([[0], [0], [0], [0]]))
    assert (found.largest[0], found.unstable[0]) == (1.0, np.inf)
    found = largest_stable(_runs([[1], [1], [1], [1]]))
    assert np.isnan(found.largest[0])


def test_one_in_ten_may_fail() -> None:
    nine = [[0] * 10, [0] * 10, [1] + [0] * 9, [1, 1] + [0] * 8]
    assert largest_stable(_runs(nine)).largest[0] == 1e-1


def test_learning_nothing_below_the_best_is_no_failure() -> None:
    slow = _runs([[0], [0], [0], [1]])
    slow.losses[0] = 0.9
    assert largest_stable(slow).largest[0] == 1e-1
    stuck = _runs([[0], [0], [0], [0]])
    stuck.losses[2] = 0.9
    assert largest_stable(stuck).largest[0] == 1e-2


def test_seeds_can_be_left_out() -> None:
    failed = _runs([[0, 0], [0, 0], [0, 1], [1, 1]])
    assert largest_stable(failed, leave_one_out(2)).largest.tolist() == [1e-2, 1e-2, 1e-1]


def test_at_one_learning_rate_some_setting_of_the_others_must_be_stable() -> None:
    two_each = _runs([[0], [0], [1], [0]], at=(1e-2, 1e-2, 1e-1, 1e-1))
    assert largest_stable(two_each).largest[0] == 1e-1


def test_headroom_is_counted_in_decades_and_bounded_by_the_design() -> None:
    (row,) = stability.compute(_table([[0] * 3, [0] * 3, [0] * 3, [1] * 3])).to_dict("records")
    assert (row["stable_lr"], row["unstable_lr"], row["bound"]) == (0.1, 1.0, "")
    assert row["headroom"] == pytest.approx(1)
    assert 0 < row["low"] <= 1 <= row["high"] < 2
    assert 0.1 < row["boundary"] < 1
    (row,) = stability.compute(_table([[0] * 3] * 4)).to_dict("records")
    assert (row["bound"], row["high"], row["headroom"]) == ("at least", np.inf, pytest.approx(2))
    assert "2 or more" in stability.verdict(stability.compute(_table([[0] * 3] * 4)))
    (row,) = stability.compute(_table([[1] * 3] * 4)).to_dict("records")
    assert row["bound"] == "at most"
    assert stability.verdict(pd.DataFrame()).startswith("This needs")


def test_the_verdict_counts_where_no_learning_rate_is_stable() -> None:
    good, none = [[0] * 3, [0] * 3, [0] * 3, [1] * 3], [[1] * 3] * 4
    tables = [_table(failed, task=task) for task, failed in (("t", good), ("u", none), ("v", none))]
    said = stability.verdict(stability.compute(pd.concat(tables)))
    assert "o 1, no stable learning rate on 2 of 3." in said
    alone = stability.verdict(stability.compute(tables[1]))
    assert "o no stable learning rate on 1 of 1." in alone


def test_other_hyperparameters_are_held_where_they_are_best() -> None:
    good = _table([[0] * 3, [0] * 3, [0] * 3, [1] * 3], weight_decay=0.0)
    bad = _table([[1] * 3] * 4, weight_decay=1.0)
    (row,) = stability.compute(pd.concat([good, bad])).to_dict("records")
    (alone,) = stability.compute(good).to_dict("records")
    assert [row[name] for name in ("stable_lr", "low", "high", "boundary")] == [
        alone[name] for name in ("stable_lr", "low", "high", "boundary")
    ]


def test_a_boundary_is_found_where_half_of_the_runs_fail() -> None:
    failed = np.array([0, 0, 0, 1, 5, 9, 10, 10, 10.0])
    found, low, high = boundary(LRS, failed, np.full(9, 10.0), 0.5)
    assert np.log10(found) == pytest.approx(-2, abs=0.03)  # symmetric around 0.01
    assert low < found < high < 3 * low
    assert boundary(LRS, failed, np.full(9, 10.0), 0.1)[0] < found


def test_a_boundary_outside_the_design_has_one_bound() -> None:
    none, all_of_them = np.zeros(9), np.full(9, 3.0)
    found, low, high = boundary(LRS, none, all_of_them, 0.5)
    assert np.isnan(found)
    assert 0.3 < low < 1.1  # that 3 of 3 succeed at the boundary has a chance of 1 in 8
    assert high == np.inf
    assert boundary(LRS, all_of_them, all_of_them, 0.5)[1] == 0


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize(("seeds", "slope"), [(3, 3), (10, 3), (10, 10)])
def test_its_interval_covers_the_truth(seeds: int, slope: int, share: float) -> None:
    def interval(generator: np.random.Generator) -> Interval:
        truth = generator.uniform(-2.5, -1.5)  # where half of the runs fail
        rates = 1 / (1 + np.exp(-slope * (np.log10(LRS) - truth)))
        failed = generator.binomial(seeds, rates).astype(float)
        found, low, high = boundary(LRS, failed, np.full(len(LRS), float(seeds)), share)
        at_share = 10 ** (truth + np.log(share / (1 - share)) / slope)
        return found / at_share, low / at_share, high / at_share

    assert 0.90 <= coverage(interval, 1.0, 150) <= 0.99
