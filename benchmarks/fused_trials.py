"""How many trials an hour are trained, together as one program and in the usual ways.

    python benchmarks/fused_trials.py [--device cuda] [--tasks digits-mlp …] [--widths 8 32 128]

Every task at small scale with AdamW. In one run, one after another:

- ``alone``: robustlr's trials one at a time, in a process for each core (or in one on a GPU);
- ``shared``: on a GPU, the same in four processes at a time;
- ``optuna``: a plain Optuna loop around torch's own optimizer and schedule, with all cores;
- ``fused K``: K trials as one program, in a process for each core (or in one on a GPU).

Each process makes itself ready (imports, data, a compiled program) and waits for the others; then all
train, and the time of the slowest counts. Trials are cut to ``STEPS`` steps and figures scaled to whole
ones; evaluations, the same work everywhere, are left out, and the seconds in which a program was made
ready are given beside (``ready_s``). ``share_of_peak`` is the arithmetic of the training steps over
what matrix products of 1,024 × 1,024 reach in the same number of processes.
Prints a table and writes it to ``benchmarks/results/``.
"""

import argparse
import multiprocessing as mp
import os
import time
from dataclasses import replace
from typing import Any

import optuna
import torch
from timing import show, write
from torch.utils.flop_counter import FlopCounterMode

from robustlr import fused_program
from robustlr.fused import Request, train_together
from robustlr.registry import load_task
from robustlr.task import Config, Outcome, Seeds, SupervisedTask
from robustlr.training import batches, compiled, steps_an_epoch, take_step

STEPS = {
    "digits-mlp": 400,
    "digits-cnn": 80,
    "digits-resnet": 80,
    "pydoc-lm": 4,
    "cldr-translation": 6,
}
ALONE = 4  # trials of each process


def _brief(name: str) -> tuple[SupervisedTask, int]:
    """Return a task of few steps without evaluations, and how many steps it has in full."""
    task = load_task(name)
    assert isinstance(task, SupervisedTask)
    whole = task.scales["small"].steps
    return _of_steps(replace(task, evaluate=lambda *_: 0.5, samples=None), STEPS[name]), whole


def _of_steps(task: SupervisedTask, steps: int) -> SupervisedTask:
    scale = replace(task.scales["small"], steps=steps, evaluations=1)
    return replace(task, scales={"small": scale})


def _config(name: str, seed: int) -> Config:
    lr = 10 ** (-4 + seed % 8 / 4)
    return Config(task=name, optimizer="adamw", hyperparameters={"lr": lr}, seed=0)


def _report(step: int, value: float) -> None:
    pass


def _alone(task: SupervisedTask, device: str, trials: int) -> None:
    for seed in range(trials):
        task.run(_config(task.name, seed), _report, device)


def _fused(task: SupervisedTask, device: str, trials: int) -> None:
    requests = [Request(_config(task.name, seed), _report, None) for seed in range(trials)]
    for ended in train_together(task, iter(requests), trials, device):
        assert isinstance(ended.result, Outcome), ended.result


def _optuna(task: SupervisedTask, device: str, trials: int) -> None:
    scale, seeds = task.scales["small"], Seeds.of(0)
    data = task.data(scale, device)
    scale = scale.sized(steps_an_epoch(data.train, scale))

    def objective(trial: optuna.Trial) -> float:
        torch.manual_seed(seeds.initialisation)
        model = task.model(scale).to(device)
        forward = compiled(model, device, scale.steps)
        lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale.lr_factor)
        noise = torch.Generator(device).manual_seed(seeds.noise)
        model.train()
        for batch in batches(data.train, scale, seeds.order):
            if task.augment is not None:
                batch = task.augment(batch, scale, noise)
            loss = take_step(task, forward, optimizer, batch, scale)
            schedule.step()
        return float(loss)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study().optimize(objective, n_trials=trials)


def _products(task: SupervisedTask, device: str, trials: int) -> None:
    """Multiply matrices: 2³¹ operations a trial."""
    matrix = torch.ones(1024, 1024, device=device)
    for _ in range(trials):
        matrix @ matrix


WAYS = {"alone": _alone, "fused": _fused, "optuna": _optuna, "products": _products}


def _process(
    way: str, name: str, device: str, trials: int, threads: int, line: Any, go: Any
) -> None:
    torch.set_num_threads(threads)
    fused_program.COMPILE_STEPS = 0  # as in a worker that has trained some such trials
    task, _ = _brief(name)
    started = time.perf_counter()
    WAYS[way](_of_steps(task, 2), device, trials if way == "fused" else 1)
    line.put(time.perf_counter() - started)
    go.wait()
    started = time.perf_counter()
    WAYS[way](task, device, trials)
    if device != "cpu":
        torch.cuda.synchronize()
    line.put(time.perf_counter() - started)


def _measure(
    way: str, name: str, device: str, trials: int, processes: int, threads: int = 1
) -> tuple[float, float]:
    """Return trials of ``STEPS`` steps a second, and the seconds until the slowest was ready."""
    context = mp.get_context("spawn")
    line, go = context.Queue(), context.Event()
    given = (way, name, device, trials, threads, line, go)
    running = [context.Process(target=_process, args=given) for _ in range(processes)]
    for process in running:
        process.start()
    ready = max(line.get() for _ in running)
    go.set()
    seconds = max(line.get() for _ in running)
    for process in running:
        process.join()
    return processes * trials / seconds, ready


def _flops(name: str) -> int:
    """Return the arithmetic of one training step: matrix products, convolutions, attention."""
    task, _ = _brief(name)
    scale = task.scales["small"]
    data = task.data(scale, "cpu")
    model = task.model(scale)
    batch = next(batches(data.train, scale.sized(steps_an_epoch(data.train, scale)), 0))
    with FlopCounterMode(display=False) as counter:
        task.loss(model, batch, scale).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def _rows(name: str, device: str, widths: list[int], peak: float) -> list[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0))
    processes = cores if device == "cpu" else 1
    _, whole = _brief(name)
    ways = [("alone", ALONE, processes, 1), ("optuna", ALONE, 1, cores)]
    if device != "cpu":
        ways.append(("alone", ALONE, 4, 1))
    ways += [("fused", width, processes, 1) for width in widths]
    rows: list[dict[str, Any]] = []
    flops = _flops(name)
    for way, trials, number, threads in ways:
        rate, ready = _measure(way, name, device, trials, number, threads)
        label = f"fused {trials}" if way == "fused" else "shared" if number > processes else way
        row = {
            "task": name,
            "way": label,
            "trials_per_hour": 3600 * rate * STEPS[name] / whole,
            "times_alone": 1.0,
            "share_of_peak": rate * STEPS[name] * flops / peak,
            "ready_s": ready,
        }
        row["times_alone"] = row["trials_per_hour"] / (rows or [row])[0]["trials_per_hour"]
        rows.append(row)
        show(row)
    return rows


def main() -> None:
    """Measure every task in every way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--widths", nargs="+", type=int, default=[8, 32, 128])
    given = parser.parse_args()
    processes = len(os.sched_getaffinity(0)) if given.device == "cpu" else 1
    products, _ = _measure("products", "digits-mlp", given.device, 100, processes)
    rows = []
    for name in given.tasks:
        rows += _rows(name, given.device, given.widths, products * 2**31)
    write("fused_trials", given.device, rows, peak_flops_per_second=products * 2**31)


if __name__ == "__main__":
    main()
