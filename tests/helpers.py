"""Studies and tasks that tests share. Workers import this module to find the tasks."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseServer

from robustlr.errors import UnavailableError
from robustlr.study import Study, load_study
from robustlr.task import Config, FunctionTask, Report

ROOT = Path(__file__).parent.parent


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Have a server answer from a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield
    server.shutdown()
    thread.join()


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    """Wait until ``condition`` holds; fail if it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def study_from(folder: Path, text: str) -> Study:
    """Return the study of a TOML text; name and one cheap task are added if it has none."""
    if "tasks" not in text:
        text = 'tasks = ["digits-mlp"]\n' + text
    if "name" not in text:
        text = 'name = "test"\n' + text
    path = folder / "test.toml"
    path.write_text(text, encoding="utf-8")
    return load_study(path)


def _counted(config: Config, report: Report) -> float:
    """One step; its line in a log counts the run without the database's help."""
    with open(os.environ["RUN_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{config.seed} {config.hyperparameters['lr']!r}\n")
    report(1, 0.5)
    return 0.5


def _slow(config: Config, report: Report) -> float:
    """Report for ten seconds: long enough to be stopped in the middle."""
    for step in range(100):
        time.sleep(0.1)
        report(step, 0.5)
    return 0.5


def _silent(config: Config, report: Report) -> float:
    """Report nothing for a minute."""
    time.sleep(60)
    return 0.5


def _broken(config: Config, report: Report) -> float:
    if config.seed == 0:
        raise RuntimeError("the machine is on fire")
    return 0.25


def _deadly(config: Config, report: Report) -> float:
    """Kill the process on its first run of seed 0, as the kernel does when memory runs out."""
    marker = Path(os.environ["RUN_LOG"])
    if config.seed == 0 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
    return 0.25


def _odd(config: Config, report: Report) -> object:
    """Return and report what no task should, a different thing for each seed."""
    report(1, 0.5)
    report(1, 0.25)
    if config.seed == 3:
        sys.exit("done")
    results: list[object] = [None, "0.5x", float("inf")]
    return results[config.seed]


def _lacking(config: Config, report: Report) -> float:
    raise UnavailableError("the data are missing: put them there")


def _holding_the_interpreter(config: Config, report: Report) -> float:
    """Compute for four seconds without letting any other thread of the process run."""
    ctypes.PyDLL(None).sleep(4)
    return 0.5


def _crowded(config: Config, report: Report) -> float:
    """Need more memory than there is while another trial runs; seed 2 always does."""
    place = Path(os.environ["RUN_LOG"]).parent / "device"
    place.mkdir(exist_ok=True)
    mine = place / str(os.getpid())
    mine.touch()
    try:
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            if len(list(place.iterdir())) > 1 or config.seed == 2:
                raise torch_error()
            time.sleep(0.02)
    finally:
        mine.unlink()
    return 0.5


def torch_error() -> Exception:
    """Return what torch raises when a device is full."""
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def _murderous(config: Config, report: Report) -> float:
    """Kill the process whenever seed 0 runs, as a faulty driver does."""
    if config.seed == 0:
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    return 0.25


def _nan(config: Config, report: Report) -> float:
    return float("nan")


def _task(name: str, function: object, **more: object) -> FunctionTask:
    values = {"name": name, "summary": name, "metric": "loss", "worst": 1.0, **more}
    return FunctionTask(function=function, **values)  # type: ignore[arg-type]


counted = _task("counted", _counted)
slow = _task("slow", _slow)
silent = _task("silent", _silent)
broken = _task("broken", _broken)
deadly = _task("deadly", _deadly)
nan = _task("nan", _nan)
holding_the_interpreter = _task("holding_the_interpreter", _holding_the_interpreter)
crowded = _task("crowded", _crowded)
murderous = _task("murderous", _murderous)
lacking = _task("lacking", _lacking)
odd = _task("odd", _odd)
