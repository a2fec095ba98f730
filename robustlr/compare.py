"""A study's numbers beside those that papers have published, with what differs named.

``published.json`` holds the papers' numbers, a row each: the paper and its table, the data, model and
optimizer, the value with its spread, the hyperparameters, and, where robustlr has one, the
``counterpart``: the tasks that are its own (the first) or of its kind (the others), the name that the
optimizer has in the studies that ship, the conditions, and the value in the task's own metric.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from robustlr.analysis._cells import (
    cells,
    conditions,
    in_unit,
    of_role,
    point_by_seed,
    shown_setting,
    tuned_by_seed,
    within_range,
)
from robustlr.analysis._intervals import mean_interval
from robustlr.analysis._sentences import many, shown_condition
from robustlr.registry import tasks
from robustlr.scale import Scale
from robustlr.tabular import as_lines, number, shown

NONE = (
    "None of this study's tasks and optimizers has a published counterpart: two optimizers of one "
    "table are needed, under the names that they have in the studies that ship."
)
LOOKS = ("accumulated", "evaluations", "worst")
"""What a scale says of how runs are looked at, not of what they do."""

SAME, REVERSE = "the paper's", "the reverse"
GROUP = ("paper", "where", "model", "dataset", "task", "under")


@dataclass(frozen=True)
class Comparison:
    """What stands beside the papers' numbers: a row a value, a row a pair, and what differs."""

    table: pd.DataFrame
    pairs: pd.DataFrame
    differences: Sequence[str]

    @property
    def verdict(self) -> str:
        """How many pairs of optimizers have the papers' order: a line for each table of a paper."""
        if self.table.empty:
            return NONE
        return "\n".join(verdict for _, verdict, _ in self.groups())

    def groups(self) -> Iterator[tuple[str, str, pd.DataFrame]]:
        """Yield each table of a paper: its name, the verdict on it, and its rows."""
        for key, rows in self.table.groupby(list(GROUP), sort=False):
            paper, where, model, _, task, under = key
            title = f"{paper}, {where} ({model}), beside {task}" + (f", {under}" if under else "")
            pairs = self.pairs
            for name, value in zip(GROUP, key, strict=True):
                pairs = pairs[pairs[name] == value] if len(pairs) else pairs
            if pairs.empty:
                yield title, f"{title}: the paper tells none of them apart.", rows
                continue
            same, other = (sum(pairs["order"] == order) for order in (SAME, REVERSE))
            yield (
                title,
                f"{title}: of {many(len(pairs), 'pair')} of optimizers {same} surely in the paper's "
                f"order, {other} surely in the reverse, {len(pairs) - same - other} undecided.",
                rows,
            )

    def for_people(self) -> pd.DataFrame:
        """Return the columns that tell what stands beside what, the paper's values to four digits."""
        published = self.table["published"].map(lambda value: f"{value:.4g}")
        table = self.table.assign(
            published=published, where=self.table["paper"] + ", " + self.table["where"]
        )
        columns = {
            name: name for name in ("where", "model", "task", "under", "optimizer", "published")
        }
        columns |= {"published_rank": "rank", "metric": "metric", "direction": "direction"}
        columns |= {"value": "ours", "low": "low", "high": "high", "rank": "our_rank"}
        columns |= {"seeds": "seeds", "best_setting": "best_setting"}
        return table[list(columns)].rename(columns=columns)

    def lines(self) -> Iterator[str]:
        """Yield everything as a terminal has room for it."""
        if self.table.empty:
            yield NONE
            return
        texts = shown(self.for_people()).drop(columns=["where", "model", "task", "under", "metric"])
        for title, verdict, rows in self.groups():
            yield title
            yield from as_lines(texts.loc[rows.index])
            yield verdict.removeprefix(f"{title}: ").capitalize()
            yield ""
        yield from self.differences


@cache
def published() -> list[dict[str, Any]]:
    """Return the papers' numbers."""
    text = files("robustlr").joinpath("published.json").read_text(encoding="utf-8")
    return list(json.loads(text))


def compare(trials: pd.DataFrame, scale: str) -> Comparison:
    """Lay the tuned results of a study's trials at ``scale`` beside the published ones.

    A value is the mean over seeds, each at the setting that is best on the other seeds, with Student's
    interval; the order of two optimizers is that of the mean difference, paired by seed, and sure where
    its interval does not hold zero. Ranks count within one table of a paper and one of our tasks;
    tables of which the study has a single optimizer are left out.
    """
    found = list(_found(of_role(trials, "design"), scale)) if len(trials) else []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault(tuple(str(row[name]) for name in GROUP), []).append(row)
    groups = {key: rows for key, rows in groups.items() if len(rows) > 1}
    pairs = [pair for rows in groups.values() for pair in _pairs(rows)]
    rows = [row for group in groups.values() for row in _ranked(group)]
    named = [(row["task"], row["is_kindred"]) for row in rows]
    table = pd.DataFrame(rows).drop(columns=["losses", "is_kindred"], errors="ignore")
    differences = [line for each in dict.fromkeys(named) for line in _differences(*each, scale)]
    notes = [f"{row['paper']}, {row['where']}: {row['note']}" for row in rows if row["note"]]
    table = table.drop(columns="note", errors="ignore")
    return Comparison(table, pd.DataFrame(pairs), [*differences, *dict.fromkeys(notes)])


def _found(design: pd.DataFrame, scale: str) -> Iterator[dict[str, Any]]:
    """Yield a row for every published number that a cell of the design has the counterpart of."""
    names = conditions(design)
    for key, cell in cells(design):
        by_seed = point_by_seed(cell)
        losses = tuned_by_seed(by_seed)
        value, *bounds = (in_unit(cell, loss) for loss in mean_interval(losses))
        low, high = within_range(cell, tuple(bounds))
        best = by_seed.mean(axis=1).idxmin()
        for row in published():
            here = row["counterpart"]
            if here is None or not _matches(here, key, names):
                continue
            apart = [name for name in names if name not in here["conditions"]]
            yield {
                "paper": row["paper"],
                "where": row["where"],
                "dataset": row["dataset"],
                "model": row["model"],
                "published_optimizer": row["optimizer"],
                "published": here["value"],
                "published_spread": here["spread"],
                "published_metric": here["metric"],
                "published_setting": ", ".join(_settings(row["hyperparameters"])),
                "task": key["task"],
                "scale": scale,
                "optimizer": key["optimizer"],
                "under": shown_condition(key, apart),
                "metric": key.get("metric", ""),
                "direction": cell["direction"].iloc[0],
                "value": value,
                "low": low,
                "high": high,
                "seeds": len(losses),
                "best_setting": shown_setting(list(by_seed.index.names), best),
                "note": row["note"],
                "losses": losses,
                "is_kindred": key["task"] != here["tasks"][0],
            }


def _settings(hyperparameters: Mapping[str, Any]) -> Iterator[str]:
    for name, value in hyperparameters.items():
        if "grid" not in name and isinstance(value, int | float | str):
            yield f"{name}={value}"


def _matches(here: Mapping[str, Any], key: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Return whether a cell is a published number's counterpart.

    A condition that the study does not vary has the value of the task's scale ``paper``.
    """
    if key["task"] not in here["tasks"] or key["optimizer"] != here["optimizer"]:
        return False
    usual = _scale(here["tasks"][0], "paper")
    for name, wanted in here["conditions"].items():
        value = key[name] if name in names else getattr(usual, name, None)
        if (bool(value) if isinstance(wanted, bool) else value) != wanted:
            return False
    return True


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a group's rows with their ranks, 1 the best, equal values sharing one."""
    sign = -1 if rows[0]["direction"] == "maximize" else 1
    theirs = pd.Series([sign * row["published"] for row in rows]).rank(method="min")
    ours = pd.Series([row["losses"].mean() for row in rows]).rank(method="min")
    return [
        row | {"published_rank": int(their), "rank": int(our)}
        for row, their, our in zip(rows, theirs, ours, strict=True)
    ]


def _pairs(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the pairs of a group that the paper tells apart, the paper's better one first."""
    sign = -1 if rows[0]["direction"] == "maximize" else 1
    for pair in itertools.combinations(rows, 2):
        better, than = sorted(pair, key=lambda row: sign * row["published"])
        if better["published"] == than["published"]:
            continue
        difference, low, high = mean_interval((than["losses"] - better["losses"]).dropna())
        order = SAME if low > 0 else REVERSE if high < 0 else "undecided"
        yield {name: better[name] for name in GROUP} | {
            "better": better["optimizer"],
            "than": than["optimizer"],
            "difference": difference,
            "low": low,
            "high": high,
            "order": order,
        }


def _differences(task: str, is_kindred: bool, scale: str) -> Iterator[str]:
    """Yield what the task's scale has otherwise than the papers' protocol."""
    if is_kindred:
        yield f"{task} is another task than the paper's, of the same kind: only the order compares."
        return
    paper, ours = _scale(task, "paper"), _scale(task, scale)
    if paper is None or ours is None or paper == ours:
        return
    before, here = (_flat(asdict(each)) for each in (paper, ours))
    lengths = [
        " and ".join(
            f"{number(each[name])} {name}" for name in ("steps", "epochs") if each.get(name)
        )
        for each in (here, before)
    ]
    changed = [f"{lengths[0]} (paper: {lengths[1]})"] if lengths[0] != lengths[1] else []
    changed += [
        f"{name} {_short(here.get(name))} (paper: {_short(before.get(name))})"
        for name in before | here
        if before.get(name) != here.get(name) and name not in (*LOOKS, "steps", "epochs")
    ]
    yield f"{task} at scale {scale}, so only the order compares: {', '.join(changed)}."


def _short(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(number, value)) or "none"
    return "none" if value is None else number(value)


def _flat(scale: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in scale.items() if k != "options"} | dict(scale["options"])


def _scale(task: str, name: str) -> Scale | None:
    return tasks()[task].scales.get(name) if task in tasks() else None
