"""How many empty trials a second workers get through the database, against bare Optuna.

Every trial has three hyperparameters and ten intermediate values. Ours are planned beforehand and
claimed exactly once; Optuna's are asked for and told, which on a queue runs some more than once and
which it therefore does from a random sampler here. Side by side: every round runs both, on the same
database, in the same number of processes; rounds are repeated and their median is taken. Statements
are counted as the database driver is given them.

    python benchmarks/workers.py --out benchmarks/results/workers.json
"""

import argparse
import json
import multiprocessing as mp
import platform
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import sqlalchemy as sa
from databases import databases

from robustlr.claims import worker_name
from robustlr.signals import Signals
from robustlr.storage import Storage, open_storage
from robustlr.study import load_study
from robustlr.task import Config, FunctionTask, Report
from robustlr.worker import work

REPORTS = 10


def _empty(config: Config, report: Report) -> float:
    for step in range(REPORTS):
        report(step, 0.5)
    return 0.5


empty = FunctionTask(name="empty", summary="Nothing.", metric="loss", worst=1.0, function=_empty)

STUDY = """
name = "{name}"
tasks = ["workers:empty"]
design = "random"
points = {points}
seeds = 1
[optimizers.adamw]
lr = {{ log = [0.0001, 1.0] }}
weight_decay = {{ log = [0.0001, 1.0] }}
beta1 = [0.8, 0.9]
"""


def _ours(url: str, name: str, ready: Any, go: Any) -> None:
    with open_storage(url) as storage:
        signals = Signals()
        storage.check_unchanged(storage.load_study(name))
        ready.release()
        go.wait()
        work(storage, name, "cpu", signals)


def _optunas(url: str, name: str, trials: int, ready: Any, go: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    study = optuna.load_study(study_name=name, storage=_optuna_storage(url))
    study.sampler = optuna.samplers.RandomSampler()
    ready.release()
    go.wait()
    for _ in range(trials):
        trial = study.ask()
        trial.suggest_float("lr", 1e-4, 1, log=True)
        trial.suggest_float("weight_decay", 1e-4, 1, log=True)
        trial.suggest_categorical("beta1", [0.8, 0.9])
        for step in range(REPORTS):
            trial.report(0.5, step)
        study.tell(trial, 0.5)


def _optuna_storage(url: str) -> optuna.storages.BaseStorage:
    if url.startswith("grpc"):
        host, port = url.removeprefix("grpc://").split(":")
        return optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    if url.startswith("sqlite"):  # with our time-out: its own of five seconds ends in errors
        return optuna.storages.RDBStorage(url, {"connect_args": {"timeout": 60}})
    return optuna.storages.get_storage(url)


def _seconds(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> float:
    """Return how long processes take from the moment at which all are ready."""
    context = mp.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    processes = [context.Process(target=target, args=(*each, ready, go)) for each in arguments]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    started = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return time.perf_counter() - started


def _round(url: str, direct: str, workers: int, trials: int, number: int) -> dict[str, float]:
    """Run both with as many trials; return trials a second."""
    name = f"round{number}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "study.toml")
        path.write_text(STUDY.format(name=name, points=trials - 1))  # and the default
        with Storage(direct) as storage:
            storage.create_study(load_study(path))
    seconds = {"robustlr": _seconds(_ours, [(url, name)] * workers)}
    with Storage(direct) as storage:
        done = storage.progress(name)
        assert done.complete == done.total == trials
        storage.delete_study(name)
    other = optuna.create_study(storage=direct, study_name=f"optuna{number}").study_name
    each = trials // workers
    seconds["optuna"] = _seconds(_optunas, [(url, other, each)] * workers)
    optuna.delete_study(study_name=other, storage=direct)
    return {"robustlr": trials / seconds["robustlr"], "optuna": each * workers / seconds["optuna"]}


def _statements(url: str) -> dict[str, float]:
    """Return how many statements one worker gives the driver for each trial, and bare Optuna does."""
    counts = {}
    seen: list[str] = []
    listen = lambda *arguments: seen.append(arguments[2])  # noqa: E731 — SQLAlchemy wants a name
    trials = 20
    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    with tempfile.TemporaryDirectory() as folder, Storage(url) as storage:
        path = Path(folder, "study.toml")
        path.write_text(STUDY.format(name="counted", points=trials - 1))
        storage.create_study(load_study(path))
        worker = worker_name("cpu")
        del seen[:]
        while claim := storage.claim("counted", worker):
            storage.report(claim, dict.fromkeys(range(REPORTS), 0.5))
            outcome = empty.run(claim.config, lambda step, value: None)
            storage.complete(claim, outcome, {"seconds": 0.0})
        counts["robustlr"] = len(seen) / trials
        storage.delete_study("counted")
        study = optuna.create_study(storage=url, study_name="counted")
        del seen[:]
        study.optimize(_objective, n_trials=trials)
        counts["optuna"] = len(seen) / trials
        optuna.delete_study(study_name="counted", storage=url)
    sa.event.remove(sa.Engine, "before_cursor_execute", listen)
    return counts


def _objective(trial: optuna.Trial) -> float:
    trial.suggest_float("lr", 1e-4, 1, log=True)
    trial.suggest_float("weight_decay", 1e-4, 1, log=True)
    trial.suggest_categorical("beta1", [0.8, 0.9])
    for step in range(REPORTS):
        trial.report(0.5, step)
    return 0.5


@contextmanager
def _proxies(url: str) -> Iterator[str]:
    """Serve a database by ``robustlr storage serve``, which answers Optuna's clients too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "robustlr", "storage", "serve", "--port", str(port)]
    server = subprocess.Popen([*command, "--storage", url], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def measure(urls: dict[str, str], given: argparse.Namespace) -> dict[str, Any]:
    """Return the figures taken on these databases, the second of them also through our server."""
    for url in urls.values():
        Storage(url, create=True)
    results: dict[str, Any] = {
        "machine": {"cores": mp.cpu_count(), "python": platform.python_version()},
        "trials": given.trials,
        "reports_per_trial": REPORTS,
        "statements_per_trial": {kind: _statements(url) for kind, url in urls.items()},
        "trials_per_second": {},
    }
    print(json.dumps(results["statements_per_trial"]), flush=True)
    with _proxies(urls["postgresql"]) as proxy:
        for kind, url in (*urls.items(), ("grpc", proxy)):
            direct = urls.get(kind, urls["postgresql"])
            rows = results["trials_per_second"].setdefault(kind, {})
            for workers in given.workers:
                found = [
                    _round(url, direct, workers, given.trials, number)
                    for number in range(given.rounds)
                ]
                rates = {who: median(each[who] for each in found) for who in found[0]}
                time_ratio = rates["optuna"] / rates["robustlr"]
                rows[workers] = {**rates, "our_time_over_optunas": time_ratio}
                print(kind, workers, {k: round(v, 2) for k, v in rows[workers].items()}, flush=True)
    return results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--trials", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with databases() as urls:
        results = measure(urls, given)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
