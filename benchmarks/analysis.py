"""How long it takes to read a large study and to report on it, beside Optuna's own reader.

The study has 100 cells (5 tasks × 10 optimizers × warmup) of 1,000 trials: a grid of 11 learning
rates × 9 weight decays and the default, with 10 seeds. Nothing is trained: results are made up from
known curves, with noise, diverged runs and ten intermediate values where ``--curves`` asks for
them, and written to the tables in bulk. The tidy table is read as ``robustlr report`` reads it;
Optuna's is ``trials_dataframe`` of each cell's Optuna study, one after the other. Times are the
median of ``--rounds``, but for Optuna's, which takes minutes and is measured once.

    python benchmarks/analysis.py
"""

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa
from databases import databases
from optuna.trial import TrialState

from robustlr.provenance import provenance
from robustlr.report import write_report
from robustlr.storage import Storage
from robustlr.study import Study, load_study
from robustlr.tables import ATTRIBUTES, CELL_ATTRIBUTES, PARAMS, STEPS, TRIALS, VALUES

RESULTS = Path(__file__).parent / "results"
STUDY = """
name = "large"
question = "How long does a large study take to read?"
seeds = {seeds}
tasks = ["digits-mlp", "digits-cnn", "pydoc-lm", "cldr-translation", "cartpole-ppo"]
[conditions]
warmup = [0.1, 0.0]
"""
OPTIMIZER = """
[optimizers.{name}]
class = "adamw"
lr = {{ log = [1e-5, 1.0], points = 11 }}
weight_decay = {{ log = [1e-4, 1.0], points = 9 }}
beta1 = [0.9]
"""
REPORTS = 10


def made_up_study(folder: Path, optimizers: int = 10, seeds: int = 10) -> Study:
    """Return the study, written as a file first."""
    tables = [OPTIMIZER.format(name=f"optimizer-{index}") for index in range(optimizers)]
    path = folder / "large.toml"
    path.write_text(STUDY.format(seeds=seeds) + "".join(tables), encoding="utf-8")
    return load_study(path)


def fill(storage: Storage, study: Study, *, curves: bool = False) -> int:
    """Store the study and a made-up result of each of its trials; return how many those are."""
    storage.create_study(study)
    generator = np.random.default_rng(0)
    with storage.transaction() as connection:
        cells = {
            cell: json.loads(text)
            for cell, text in connection.execute(
                sa.select(CELL_ATTRIBUTES.c.study_id, CELL_ATTRIBUTES.c.value_json)
            )
        }
        lr = sa.select(TRIALS.c.trial_id, TRIALS.c.study_id, PARAMS.c.param_value).join(PARAMS)
        trials = connection.execute(lr.where(PARAMS.c.param_name == "lr")).all()
        noise = generator.normal(size=len(trials))
        rows: dict[sa.Table, list[dict[str, Any]]] = {VALUES: [], ATTRIBUTES: [], STEPS: []}
        for (trial, cell, rate), error in zip(trials, noise, strict=True):
            _add_result(rows, trial, cells[cell], float(rate), float(error), curves)
        for table, values in rows.items():
            for start in range(0, len(values), 50_000):
                connection.execute(sa.insert(table), values[start : start + 50_000])
        connection.execute(sa.update(TRIALS).values(state=TrialState.COMPLETE))
    return len(trials)


def _add_result(
    rows: dict[sa.Table, list[dict[str, Any]]],
    trial: int,
    cell: dict[str, Any],
    lr: float,
    noise: float,
    curves: bool,
) -> None:
    """Add what a trial leaves: its share of what there is to gain is a parabola in log lr."""
    which = int(cell["optimizer"].partition("-")[2])
    decades = np.log10(lr) + 2 + 0.1 * which + (0.3 if cell["conditions"]["warmup"] else 0.0)
    lost = 0.1 + 0.15 * decades**2 / (1 + 0.2 * which) + 0.02 * noise
    diverged = lost > 1
    best = 500.0 if cell["direction"] == "maximize" else cell["worst"] / 10
    value = cell["worst"] if diverged else best + min(lost, 1) * (cell["worst"] - best)
    rows[VALUES].append({"trial_id": trial, "objective": 0, "value": value, "value_type": "FINITE"})
    result = {"initial": cell["worst"], "test_value": value, "steps": 400, "worker": "here/1/0"}
    result |= {"seconds": 1.5, **provenance("cpu")}
    row = {"trial_id": trial, "key": "result", "value_json": json.dumps(result)}
    rows[ATTRIBUTES].append(row)
    if diverged:
        rows[ATTRIBUTES].append({"trial_id": trial, "key": "diverged", "value_json": "true"})
    for step in range(REPORTS if curves else 0):
        at = value + (cell["worst"] - value) * 0.5**step
        rows[STEPS].append(
            {
                "trial_id": trial,
                "step": 40 * step,
                "intermediate_value": at,
                "intermediate_value_type": "FINITE",
            }
        )


def optunas_tables(storage: Storage, name: str) -> int:
    """Read every cell by Optuna's own reader; return how many trials it has read."""
    url = storage.engine.url.render_as_string(hide_password=False)
    reader = optuna.storages.get_storage(url)
    return sum(
        len(optuna.load_study(study_name=cell, storage=reader).trials_dataframe())
        for cell in storage.cells(name)
    )


def seconds(run: Callable[[], object], rounds: int = 1) -> float:
    """Return how long a call takes: the median of so many."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


def measure(url: str, study: Study, given: argparse.Namespace) -> dict[str, Any]:
    """Fill a database and return the figures taken on it."""
    with Storage(url, create=True) as storage:
        trials = fill(storage, study, curves=given.curves)
        figures: dict[str, Any] = {"trials": trials}
        assert len(storage.trials(study.name)) == trials
        figures["table_seconds"] = seconds(lambda: storage.trials(study.name), given.rounds)
        if not given.without_optuna:
            figures["optuna_seconds"] = seconds(lambda: optunas_tables(storage, study.name))
            figures["times_faster"] = figures["optuna_seconds"] / figures["table_seconds"]
    print(json.dumps(figures), flush=True)
    return figures


def measure_report(url: str, study: Study, folder: Path) -> dict[str, float]:
    """Return the seconds of the whole report, from the database to the page."""
    with Storage(url) as storage:
        progress = storage.progress(study.name)
        report = seconds(
            lambda: write_report(
                storage.trials(study.name), folder / "report", study=study, progress=progress
            )
        )
    print(json.dumps({"report_seconds": report}), flush=True)
    return {"report_seconds": report}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--without-optuna", action="store_true")
    parser.add_argument("--without-report", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / f"analysis-cpu-{os.cpu_count()}.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with databases() as urls, tempfile.TemporaryDirectory() as folder:
        study = made_up_study(Path(folder), given.optimizers, given.seeds)
        results: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "cells": len(list(study.cells())),
            "databases": {kind: measure(url, study, given) for kind, url in urls.items()},
        }
        if not given.without_report:
            results |= measure_report(urls["sqlite"], study, Path(folder))
    given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
