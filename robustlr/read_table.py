"""Anyone's table of training runs as the tidy table: read, checked, and its gaps filled.

What each column means, and what is taken where it is missing, is in ``docs/table.md``.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype, is_numeric_dtype

from robustlr.analysis._sentences import many
from robustlr.errors import UserError, did_you_mean, extra, unknown
from robustlr.scale import CONDITIONS
from robustlr.task import COLUMNS, CURVE

RESERVED = ("loss", "worst_loss")
MOST = 1e150
"""Squares of larger numbers are not finite."""
REQUIRED = ("task", "optimizer", "value")
ROLES = ("design", "adaptive", "default", "confirm", "confirm-default")
DIRECTIONS = ("minimize", "maximize")
NUMBERS = ("value", "worst", "initial", "test_value", "steps", "seconds")
TRUTHS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
LEARNING_RATES = ("learning_rate", "learningrate", "learning rate", "eta", "alpha", "step_size")
OTHERS = {"minimum": "minimize", "min": "minimize", "maximum": "maximize", "max": "maximize"}
PARQUET = (".parquet", ".pq")


def read_table(path: Path, conditions: Sequence[str] = ()) -> pd.DataFrame:
    """Return the tidy table that a CSV or Parquet file holds.

    ``conditions`` are the columns that are not tuned; without them those that the column
    ``conditions`` names, or the usual ones.

    Raises:
        UserError: the file cannot be read, or a column is missing or wrong; one sentence.
    """
    try:
        return checked(_read(path), path.stem, conditions)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read(path: Path) -> pd.DataFrame:
    try:
        return _read_parquet(path) if path.suffix.lower() in PARQUET else _read_csv(path)
    except FileNotFoundError as error:
        raise UserError("there is no such file") from error
    except OSError as error:
        raise UserError(error.strerror or f"this is no Parquet file: {error}") from error


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        with extra("parquet"):
            return pd.read_parquet(path)
    except (OSError, UserError):
        raise
    except Exception as error:  # pyarrow has errors of its own
        raise UserError(f"this is no Parquet file: {' '.join(str(error).split())}") from error


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, skipinitialspace=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, skipinitialspace=True, index_col=False)
    except UnicodeDecodeError as error:
        raise UserError(
            "the file is not UTF-8 text; save it as UTF-8, or name it .parquet if it is Parquet"
        ) from error
    except pd.errors.EmptyDataError as error:
        raise UserError("the file is empty") from error
    except pd.errors.ParserWarning as error:
        raise UserError(
            "its rows have more fields than its header; is there a comma at their end?"
        ) from error
    except (pd.errors.ParserError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"this is no table of comma-separated values: {reason}") from error
    if table.shape[1] == 1 and any(mark in str(table.columns[0]) for mark in ";|\t "):
        raise UserError("the columns are not separated by commas")
    names = header.iloc[0].dropna().str.strip()
    if names.duplicated().any():  # which pandas gives other names
        raise UserError(f'two columns are named "{names[names.duplicated()].iloc[0]}"')
    return table


def checked(table: pd.DataFrame, study: str, conditions: Sequence[str] = ()) -> pd.DataFrame:
    """Return a table with every column of the tidy table, each checked.

    Raises:
        UserError: a column is missing or wrong.
    """
    table = table.rename(columns=str).rename(columns=str.strip)
    table = table.loc[:, ~table.columns.str.startswith("Unnamed:")].reset_index(drop=True)
    if not table.columns.is_unique:
        raise UserError(f'two columns are named "{table.columns[table.columns.duplicated()][0]}"')
    for name in REQUIRED:
        if name not in table:
            raise UserError(
                f'the column "{name}" is missing ({did_you_mean(name, table.columns)[:-1]}); required '
                f"are {', '.join(REQUIRED)}"
            )
    if table.empty:
        raise UserError("the table has no rows")
    for name in RESERVED:
        if name in table:
            raise UserError(f'the column "{name}" is computed here; give it another name')
    names = _conditions(table, conditions)
    table = table.assign(conditions=" ".join(names), study=study, trial=range(len(table)))
    table = _with_texts(table)
    table = _with_numbers(table)
    settings = [name for name in table if name not in (*COLUMNS, CURVE, *names)]
    for name in settings:
        if name == "lr":
            table[name] = _numbers(table[name], name)
            continue
        nested = table[name].map(lambda value: isinstance(value, list | dict | np.ndarray))
        if nested.any():  # such as a pair of betas, as Parquet can
            shown = table[name].map(lambda v: v.tolist() if isinstance(v, np.ndarray) else v)
            table[name] = shown.map(str, na_action=None)
        elif table[name].dropna().map(type).nunique() > 1:  # such as 1 and "one", as Parquet can
            table[name] = table[name].map(str, na_action="ignore")
        if is_float_dtype(table[name]):
            _refuse(table[name], np.isinf(table[name]), "is not finite")
    if "lr" in settings:
        _refuse(table["lr"], np.isinf(table["lr"]), "is not finite")
        _refuse(table["lr"], table["lr"] <= 0, "is not above 0")
    if not any(table[name].notna().any() for name in settings):
        raise UserError("no column is a hyperparameter: add lr, and what else was varied")
    table = _with_worst(_with_seeds(table, [*settings, *names]))
    if CURVE in table:
        _check_curves(table[CURVE])
    empty = {name: math.nan for name in COLUMNS if name not in table}
    curve = [CURVE] if CURVE in table else []
    return table.assign(**empty)[[*COLUMNS, *curve, *settings, *names]]


def _refuse(values: pd.Series, wrong: pd.Series, why: str) -> None:
    if wrong.any():
        raise UserError(f"row {_row(wrong)}: {values.name} = {values[wrong].iloc[0]:g} {why}")


def _check_curves(curves: pd.Series) -> None:
    number = r"[-+]?(?:[\d.]+(?:[eE][-+]?\d+)?|inf|nan)"
    texts = curves.fillna("").astype(str)
    wrong = ~texts.str.fullmatch(rf"\s*(?:{number}={number}(?:\s+|$))*")
    if wrong.any():
        text = texts[wrong].iloc[0]
        raise UserError(
            f'row {_row(wrong)}: curve = "{text[:40]}"; write steps and values as 10=0.9 20=0.5'
        )


def doubts(table: pd.DataFrame) -> Iterator[str]:
    """Yield sentences on columns of a tidy table that may be something else than they are taken for."""
    names = str(table["conditions"].iloc[0]).split()
    taken = [name for name in table if name not in (*COLUMNS, CURVE, *names)]
    for name in taken:
        near = did_you_mean(name.lower(), COLUMNS)
        if near.startswith("did") and len(name) > 3:
            yield f'the column "{name}" is taken for a hyperparameter; {near}'
        texts = table[name].dropna()
        if len(texts) > 1 and texts.nunique() == len(table) and not is_numeric_dtype(texts):
            yield (
                f'the column "{name}" differs in every row, so that each run counts as a setting of '
                "its own; leave it out if it names runs"
            )
    rates = [name for name in taken if name.lower() in (*LEARNING_RATES, "lr") and name != "lr"]
    if rates and "lr" not in table:
        yield f'the column "{rates[0]}" is no learning rate to robustlr unless it is named lr'


def taken(table: pd.DataFrame) -> str:
    """Return one sentence that says what a tidy table is taken for."""
    names = str(table["conditions"].iloc[0]).split()
    settings = [name for name in table if name not in (*COLUMNS, CURVE, *names)]
    counts = [many(len(table), "run"), many(table["optimizer"].nunique(), "optimizer")]
    tasks = table.drop_duplicates("task").set_index("task")
    better = tasks["direction"].map({"minimize": "lower", "maximize": "higher"})
    if better.nunique() == 1:
        shown = f"{better.iloc[0]} values are better"
    else:
        shown = ", ".join(
            f"{way} on {', '.join(tasks[better == way].index)}" for way in better.unique()
        )
        shown = f"better values are {shown}"
    worst = ", ".join(f"{value:g} on {task}" for task, value in tasks["worst"].items())
    return (
        f"{' of '.join(counts)} on {many(len(tasks), 'task')}, {table['diverged'].sum()} diverged; "
        f"hyperparameters: {', '.join(settings)}; conditions: {', '.join(names) or 'none'}; {shown}; "
        f"having learnt nothing is worth {worst}"
    )


def _conditions(table: pd.DataFrame, given: Sequence[str]) -> list[str]:
    named = list(given)
    if not named and "conditions" in table:
        named = [n for text in table["conditions"].dropna().unique() for n in str(text).split()]
    for name in named:
        if name not in table:
            raise unknown("condition, a column,", name, table.columns)
        if name in COLUMNS:
            raise UserError(f'the column "{name}" cannot be a condition')
    return list(dict.fromkeys(named)) or [name for name in CONDITIONS if name in table]


def _with_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with what is a word: task, optimizer, metric, role, direction."""
    usual = {"metric": "value", "role": "design", "direction": "minimize"}
    for name in ("task", "optimizer", *usual):
        if name not in table:
            table[name] = usual[name]
        elif name in usual:
            table[name] = table[name].fillna(usual[name])
        missing = table[name].isna()
        if missing.any():
            raise UserError(f'row {_row(missing)}: the column "{name}" is empty')
        table[name] = table[name].astype(str).str.strip()
    for name, valid in (("role", ROLES), ("direction", DIRECTIONS)):
        wrong = ~table[name].isin(valid)
        if wrong.any():
            value = table.loc[wrong, name].iloc[0]
            near = OTHERS.get(value.lower())
            advice = f'did you mean "{near}"?' if near else did_you_mean(value, valid)
            raise UserError(f'row {_row(wrong)}: {name} = "{value}"; {advice}')
    for name in ("metric", "direction"):
        _one_a_task(table, name)
    return table


def _with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with what is a number, and with ``diverged``."""
    for name in NUMBERS:
        if name in table:
            table[name] = _numbers(table[name], name)
            beyond = np.isfinite(table[name]) & (table[name].abs() > MOST)
            _refuse(table[name], beyond, f"is beyond {MOST:g}; write nan for a diverged run")
    finite = np.isfinite(table["value"])
    given = pd.Series(False, index=table.index)
    if "diverged" in table:
        texts = table["diverged"].map(lambda v: "0" if pd.isna(v) else str(v).strip().lower())
        texts = texts.str.removesuffix(".0")
        wrong = ~texts.isin(list(TRUTHS))
        if wrong.any():
            value = table.loc[wrong, "diverged"].iloc[0]
            raise UserError(f'row {_row(wrong)}: diverged = "{value}"; write true or false')
        given = texts.map(TRUTHS).astype(bool)
    return table.assign(diverged=given | ~finite)


def _numbers(values: pd.Series, name: str) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce")
    numbers = numbers.mask(values.map(lambda value: isinstance(value, bool)))
    wrong = numbers.isna() & values.notna()
    wrong &= ~values.astype(str).str.strip().str.lower().isin(["nan", "", "none", "null", "-"])
    if wrong.any():
        raise UserError(f'row {_row(wrong)}: {name} = "{values[wrong].iloc[0]}" is no number')
    return numbers.astype(float)


def _with_seeds(table: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """Return the table with whole seeds: where there are none, the repetitions of a setting count."""
    same = ["task", "optimizer", "role", *settings]
    if "seed" not in table:
        return table.assign(seed=table.groupby(same, dropna=False).cumcount())
    seeds = _numbers(table["seed"], "seed")
    wrong = seeds.isna() | (seeds % 1 != 0) | (seeds.abs() > 2**53)
    if wrong.any():
        raise UserError(
            f"row {_row(wrong)}: seed = {table['seed'][wrong].iloc[0]} is no whole number"
        )
    table = table.assign(seed=seeds.astype(int))
    twice = table.duplicated([*same, "seed"])
    if twice.any():
        raise UserError(
            f"row {_row(twice)}: an earlier row has the same task, optimizer, setting and seed; give "
            "each run a seed of its own, or leave the column out"
        )
    return table


def _with_worst(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the value that a diverged run is worth, one a task."""
    usable = table["value"].where(~table["diverged"])
    for task, rows in table.groupby("task", sort=False):
        sign = 1 if rows["direction"].iloc[0] == "minimize" else -1
        values = usable[rows.index].dropna()
        worst = _worst(rows, values, sign)
        if worst is None:
            raise UserError(
                f'task "{task}" has no finite value: give the column worst (what a diverged run is '
                "worth) or initial (the value before training)"
            )
        if len(values) and sign * worst < (sign * values).min():
            raise UserError(
                f'task "{task}": its worst value, {worst:g}, is better than all its values; check the '
                "columns direction, worst and initial"
            )
        table.loc[rows.index, "worst"] = worst
    return table.assign(value=usable.fillna(table["worst"]))


def _worst(rows: pd.DataFrame, values: pd.Series, sign: int) -> float | None:
    if "worst" in rows and np.isfinite(rows["worst"]).any():
        _one_a_task(rows.dropna(subset="worst"), "worst")
        return float(rows["worst"].dropna().iloc[0])
    if "initial" in rows and np.isfinite(rows["initial"]).any():
        return float(rows["initial"][np.isfinite(rows["initial"])].median())
    return float(sign * (sign * values).max()) if len(values) else None


def _one_a_task(table: pd.DataFrame, name: str) -> None:
    counts = table.groupby("task")[name].nunique()
    if (counts > 1).any():
        raise UserError(
            f'task "{counts.idxmax()}" has more than one {name}; give each its own task'
        )


def _row(wrong: Any) -> int:
    """Return the first wrong row as a file counts them, its header being the first."""
    return int(wrong.to_numpy().argmax()) + 2
