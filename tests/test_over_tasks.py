"""Ranking, probability of improvement and profiles over tasks."""

import itertools

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import improvement, profiles, ranking
from robustlr.analysis._bootstrap import interval
from robustlr.analysis._cells import Floats
from robustlr.analysis._intervals import share_interval
from tests.coverage import Interval, coverage

SCORES = {
    "t": {"a": [1.0, 0.8], "b": [0.5, 0.9]},
    "u": {"a": [0.6, 0.4], "b": [0.4, 0.2]},
}


def _trials() -> pd.DataFrame:
    """One point an optimizer, so that tuned scores are those of ``SCORES``; the best of t is 0.1."""
    rows = [
        {"task": task, "optimizer": optimizer, "role": "design", "seed": seed, "lr": 0.1}
        | {
            "value": 0.9 * (1 - score) + 0.1,
            "worst": 1.0,
            "direction": "minimize",
            "diverged": False,
        }
        for task, optimizers in SCORES.items()
        for optimizer, scores in optimizers.items()
        for seed, score in enumerate(scores)
    ]
    best = [  # a third optimizer, tuned elsewhere, whose mean is the best: 0.1
        {**row, "optimizer": "c", "value": 0.1} for row in rows if row["optimizer"] == "a"
    ]
    return pd.DataFrame(rows + best)


def _of(table: pd.DataFrame, **which: object) -> pd.Series:
    for name, value in which.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_ranking_by_hand() -> None:
    table = ranking.compute(_trials())
    a, b = _of(table, optimizer="a"), _of(table, optimizer="b")
    assert a["score"] == pytest.approx((0.6 + 0.8) / 2)  # of 0.4, 0.6, 0.8, 1.0
    assert b["score"] == pytest.approx((0.4 + 0.5) / 2)
    assert a["short_of_best"] == pytest.approx(0.3)
    assert [a["mean_rank"], b["mean_rank"]] == [2.0, 3.0]
    assert _of(table, optimizer="c")["first"] == 1.0
    assert table["optimizer"].tolist() == ["c", "a", "b"]
    assert (table["tasks"] == 2).all()
    said = ranking.verdict(table)
    assert "tuned: c has the highest interquartile mean, ahead of all (2 tasks)." in said
    assert 0 < a["ahead_low"] < b["ahead_low"]
    assert _of(table, optimizer="c")["ahead_low"] == 0


def _one_point(losses: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """Runs of one learning rate by task and optimizer, a seed each."""
    facts = {"role": "design", "lr": 0.1, "worst": 1.0, "direction": "minimize", "diverged": False}
    return pd.DataFrame(
        [
            {"task": task, "optimizer": optimizer, "seed": seed, "value": loss} | facts
            for (task, optimizer), values in losses.items()
            for seed, loss in enumerate(values)
        ]
    )


def test_nobody_is_ahead_by_the_luck_of_two_seeds() -> None:
    """The resamples of one task's two seeds are these two alone."""
    ranked = ranking.compute(_one_point({("t", "a"): [0.1, 0.2], ("t", "b"): [0.15, 0.22]}))
    assert ranked["first"].tolist() == [1, 0]
    said = ranking.verdict(ranked)
    assert "a has the highest interquartile mean, not surely ahead of b (1 task)." in said
    clear = ranking.compute(_one_point({("t", "a"): [0.1, 0.2], ("t", "b"): [0.5, 0.6]}))
    assert "a has the highest interquartile mean, ahead of all (1 task)." in ranking.verdict(clear)


def test_nobody_is_said_to_be_ahead_of_its_equals() -> None:
    generator = np.random.default_rng(0)
    said = 0
    for _ in range(200):
        ranked = ranking._ranked([pd.DataFrame(generator.normal(size=(2, 2)), columns=["a", "b"])])
        said += bool(ranked.sort_values("score")["ahead_low"].iloc[0] > 0)
    assert said / 200 < 0.15  # 10 % with two seeds, half of resamples' firsts


def test_a_task_with_more_seeds_decides_no_more_than_another() -> None:
    """a wins on the one task with many seeds, b on the two with few."""
    trials = _one_point(
        {
            (task, optimizer): [0.0 if optimizer == winner else 0.5] * seeds
            for task, winner, seeds in (("t", "a", 12), ("u", "b", 3), ("v", "b", 3))
            for optimizer in "ab"
        }
    )
    table = ranking.compute(trials)
    assert table["optimizer"].tolist() == ["b", "a"]
    b = _of(table, optimizer="b")
    # of three tasks' weights 4 of 12 are bad; a quarter is cut on each side
    assert b["score"] == pytest.approx((1 / 12 * 0.5 + 5 / 12) / 0.5)
    assert b["short_of_best"] == pytest.approx(0.5 / 3)
    assert _of(profiles.compute(trials), optimizer="b", tau=0.9)["share"] == pytest.approx(2 / 3)


def test_tasks_and_seeds_that_an_optimizer_lacks_are_left_out() -> None:
    trials = _trials()
    lacking = trials[~((trials["optimizer"] == "b") & (trials["task"] == "u"))]
    assert set(ranking.compute(lacking)["tasks"]) == {1}
    one_seed = trials[~((trials["optimizer"] == "b") & (trials["seed"] == 1))]
    table = ranking.compute(one_seed)
    assert set(table["seeds"]) == {1}
    assert table["low"].isna().all()
    assert table["first"].isna().all()
    assert "one seed ranks nobody" in ranking.verdict(table)
    nobody = trials[(trials["optimizer"] == "a") == (trials["task"] == "t")]
    assert ranking.compute(nobody).empty


def test_the_interquartile_mean_cuts_a_quarter_on_each_side() -> None:
    runs = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 100.0])[None, :, None]
    # of six runs one and a half are cut on each side
    assert ranking.iqm([runs])[0, 0] == pytest.approx((0.5 * 0.1 + 0.2 + 0.3 + 0.5 * 0.4) / 3)


def test_the_verdict_names_who_leads_by_rank_where_a_lost_task_was_cut() -> None:
    losses = {"a": (0.0, 0.0, 0.02, 0.02, 1.0), "b": (0.1, 0.1, 0.0, 0.0, 0.0)}
    runs = {
        (task, name): [loss, loss + 0.001 * (loss < 1)]
        for name, of_tasks in losses.items()
        for task, loss in zip("tuvwx", of_tasks, strict=True)
    }
    said = ranking.verdict(ranking.compute(_one_point(runs)))
    assert "a has the highest interquartile mean" in said
    assert "; by mean rank over tasks b leads (1.4 against 1.6)." in said


def test_improvement_names_the_beaten_while_they_are_few() -> None:
    pairs = [("a", other, 0.6) for other in "bcde"] + [("a", "f", 0.4), ("b", "f", 0.6)]
    table = pd.DataFrame(pairs, columns=["optimizer", "other", "low"]).assign(setting="tuned")
    assert improvement.verdict(table).endswith("tuned: a beats all others; b beats f.")
    more = pd.concat([table, table.assign(optimizer="g", other="h", low=0.1)])
    assert "a beats 4 of 5 others; b beats f." in improvement.verdict(more)


def test_improvement_by_hand() -> None:
    table = improvement.compute(_trials())
    row = _of(table, optimizer="a", other="b")  # t: 3 of 4 pairs; u: 3 and a tie of 4
    assert row["probability"] == pytest.approx((0.75 + 3.5 / 4) / 2)
    back = _of(table, optimizer="b", other="a")
    assert back["probability"] == pytest.approx(1 - row["probability"])
    assert [back["low"], back["high"]] == pytest.approx([1 - row["high"], 1 - row["low"]])
    always = _of(table, optimizer="c", other="b")
    assert always["probability"] == 1
    assert 0 < always["low"] < 1


def test_profiles_by_hand() -> None:
    table = profiles.compute(_trials())
    shares = {
        tau: _of(table, optimizer="a", tau=tau)["share"] for tau in (0.0, 0.4, 0.45, 0.8, 0.85, 1.0)
    }
    assert shares == {0.0: 1, 0.4: 1, 0.45: 0.75, 0.8: 0.5, 0.85: 0.25, 1.0: 0.25}
    row = _of(table, optimizer="b", tau=0.9)
    assert (row["low"], row["high"]) == pytest.approx(share_interval(1, 4)[1:])
    assert "100 % of c's runs reach 90 % of what there is to gain" in profiles.verdict(table)


def _runs(generator: np.random.Generator, seeds: int, tasks: int = 5) -> list[pd.DataFrame]:
    """Scores of two optimizers that share part of each seed's luck; the tasks differ."""
    tables = []
    for task in range(tasks):
        luck = generator.normal(0, 0.05, (seeds, 1))
        own = generator.normal(0, 0.05, (seeds, 2))
        tables.append(pd.DataFrame(0.5 + 0.05 * task + luck + own + np.array([0.03, 0.0])))
    return tables


@pytest.mark.parametrize(
    ("seeds", "least", "most"), [(2, 0.84, 0.91), (3, 0.92, 0.97), (5, 0.92, 0.97)]
)
def test_the_bootstrap_covers_the_interquartile_mean(seeds: int, least: float, most: float) -> None:
    def sampled(generator: np.random.Generator) -> Interval:
        estimate, low, high = interval(_runs(generator, seeds), ranking.iqm)
        return float(estimate[0]), float(low[0]), float(high[0])

    truth = float(
        ranking.iqm([t.to_numpy()[None] for t in _runs(np.random.default_rng(1), 40_000)])[0, 0]
    )
    assert least < coverage(sampled, truth, repeats=600) < most


def test_the_bootstrap_covers_the_optimality_gap() -> None:
    def sampled(generator: np.random.Generator) -> Interval:
        estimate, low, high = interval(_runs(generator, 5), ranking._short_of_best)
        return float(estimate[0]), float(low[0]), float(high[0])

    means = [table.to_numpy()[None] for table in _runs(np.random.default_rng(1), 40_000)]
    truth = float(ranking._short_of_best(means)[0, 0])
    assert 0.93 < coverage(sampled, truth, repeats=600) < 0.97


def test_the_bootstrap_of_the_mean_rank_covers_less() -> None:
    """A rank moves in steps, and it is biased where two optimizers are close."""

    def sampled(generator: np.random.Generator) -> Interval:
        estimate, low, high = interval(_runs(generator, 5), ranking._mean_rank)
        return float(estimate[0]), float(low[0]), float(high[0])

    generator = np.random.default_rng(1)
    studies = ([table.to_numpy()[None] for table in _runs(generator, 5)] for _ in range(2000))
    truth = float(np.mean([ranking._mean_rank(study)[0, 0] for study in studies]))
    assert 0.82 < coverage(sampled, truth, repeats=250) < 0.92


def test_the_bootstrap_of_a_mean_of_two_seeds_has_students_width() -> None:
    """One of two seeds is drawn: the percentiles are the two values, however many tasks."""

    def mean(drawn: list[Floats]) -> Floats:
        result: Floats = np.mean([task.mean(axis=1) for task in drawn], axis=0)
        return result

    tables = [pd.DataFrame([[0.0], [1.0]])]
    estimate, low, high = interval(tables, mean)
    assert estimate[0] == 0.5
    stretch = 12.7062 / 1.95996
    assert [low[0], high[0]] == pytest.approx([0.5 - 0.5 * stretch, 0.5 + 0.5 * stretch], rel=1e-4)


@pytest.mark.parametrize(
    ("shift", "seeds", "least", "most"),
    [(0.0, 3, 0.93, 0.98), (1.0, 5, 0.93, 0.97), (2.0, 5, 0.93, 1)],
)
def test_the_interval_of_an_improvement_covers(
    shift: float, seeds: int, least: float, most: float
) -> None:
    def sampled(generator: np.random.Generator) -> Interval:
        drawn = generator.normal(size=(4, 2, seeds))
        return improvement.probability_interval(
            [(pd.Series(one + shift), pd.Series(other)) for one, other in drawn]
        )

    from scipy.stats import norm

    assert least < coverage(sampled, float(norm.cdf(shift / np.sqrt(2))), repeats=800) < most


def test_wilsons_interval_of_a_profile_is_wide_where_tasks_differ() -> None:
    """Equal tasks: as it says. Tasks that are all won or all lost: wider than need be."""

    def sampled(chances: tuple[float, ...]) -> float:
        def draw(generator: np.random.Generator) -> Interval:
            hits = sum(generator.binomial(6, chance) for chance in chances)
            return share_interval(int(hits), 6 * len(chances))

        return coverage(draw, float(np.mean(chances)))

    assert 0.93 < sampled((0.6,) * 5) < 0.97
    assert sampled((0.95, 0.95, 0.1, 0.1, 0.5)) > 0.97


def test_verdicts_name_the_condition() -> None:
    trials = pd.concat([_trials().assign(warmup=on) for on in (True, False)])
    for module, on in itertools.product((ranking, improvement, profiles), ("true", "false")):
        assert f"tuned, warmup={on}: " in module.verdict(module.compute(trials))
