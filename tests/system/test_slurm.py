"""Workers as jobs of a real Slurm, started as a user starts them, with a real PostgreSQL."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.system.slurm import one_node_slurm, why_not
from tests.system.tasks import lines

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
    pytest.mark.parametrize("url", ["postgresql"], indirect=True),
    pytest.mark.timeout(300),
]

ROBUSTLR = str(Path(sys.executable).with_name("robustlr"))


@pytest.fixture(scope="module")
def slurm() -> Iterator[str]:
    with one_node_slurm() as configuration:
        yield str(configuration)


@pytest.fixture(autouse=True)
def folder(slurm: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory from which commands find the cluster and the database."""
    monkeypatch.setenv("SLURM_CONF", slurm)
    monkeypatch.setenv("ROBUSTLR_STORAGE", url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # workers import tests.system.tasks
    monkeypatch.setenv("RUN_LOG", str(tmp_path / "log"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    _run("scancel", "--user=root")  # what a failed test has left


def _run(*command: str, code: int = 0) -> str:
    """Run a command; return what it prints, on standard error if it is meant to fail."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def _create(task: str, seeds: int) -> None:
    """Create the study "s", of ``seeds`` trials of each of two points."""
    text = f'name = "s"\nseeds = {seeds}\ntasks = ["tests.system.tasks:{task}"]\n'
    Path("s.toml").write_text(f"{text}[optimizers.sgd]\nlr = [0.1, 1.0]\n", encoding="utf-8")
    _run(ROBUSTLR, "study", "create", "s.toml")


def _submit(*options: str) -> str:
    """Submit workers for the study; return the job's id."""
    told = _run(ROBUSTLR, "worker", "s", "--engine", "slurm", *options)
    job = re.search(r"Slurm's job (\d+)", told)
    assert job is not None, told
    return job[1]


def _state() -> dict[str, int]:
    state: dict[str, int] = json.loads(_run(ROBUSTLR, "status", "s", "--json"))
    return state


def _wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        logs = "\n".join(
            path.read_text() for path in Path().glob("robustlr-trials/s/slurm/*_log.*")
        )
        assert time.monotonic() < deadline, f"{_state()}\n{logs}"
        time.sleep(0.5)


def _check_finished() -> None:
    """Wait until no job is left; check that every trial was run to its end once, and is complete."""
    _wait_for(lambda: not _run("squeue", "--noheader"), 200)
    state = _state()
    assert state["complete"] == state["trials"]
    ended = [(seed, lr) for word, _, _, seed, lr in lines() if word == "ended"]
    assert len(ended) == len(set(ended)) == state["trials"]


def test_an_array_of_workers_finishes_a_study(url: str) -> None:
    _create("together", seeds=4)
    job = _submit("--workers", "2", "--partition", "main", "--slurm", "comment=ours")
    (described,) = re.findall(r"Comment=(\S+)", _run("scontrol", "show", "job", f"{job}_0"))
    assert described == "ours"
    _check_finished()
    assert {job for _, job, *_ in lines()} == {"0", "1"}
    # The URL may hold a password: the jobs have it from their environment alone.
    files = [path for path in Path("robustlr-trials/s/slurm").iterdir() if path.is_file()]
    assert len(files) >= 9
    assert not [path for path in files if url.encode() in path.read_bytes()]
    told = _run(ROBUSTLR, "worker", "s", "--engine", "slurm")
    assert told == "s: no trial waits, so nothing was submitted\n"


def test_cancelled_jobs_give_their_trials_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = folder / "hold"
    hold.touch()
    monkeypatch.setenv("HOLD", str(hold))
    _create("held", seeds=2)
    job = _submit("--workers", "2", "--cpus", "2")
    _wait_for(lambda: _state()["running"] == 4, 120)  # two jobs of two cores
    _run("scancel", f"{job}_1")
    _wait_for(lambda: _state()["running"] == 2, 25)  # Slurm kills what runs 30 seconds later
    _run("scancel", job)
    _wait_for(lambda: _state()["running"] == 0, 25)
    state = _state()
    assert state["waiting"] == state["trials"]
    for log in folder.glob("robustlr-trials/s/slurm/*_log.err"):
        assert "robustlr: stopped; running trials are back in the queue" in log.read_text()
        assert "Traceback" not in log.read_text()
    hold.unlink()
    _submit("--workers", "2")
    _check_finished()


def test_a_job_near_its_limit_is_queued_again() -> None:
    _create("long", seeds=2)
    job = _submit("--time", "2")
    _check_finished()
    assert re.findall(r"Restarts=(\d+)", _run("scontrol", "show", "job", job)) == ["1"]
    restarts = {seed: {line[2] for line in lines() if line[3] == seed} for seed in ("0", "1")}
    assert restarts == {"0": {"0"}, "1": {"1"}}


def test_slurms_refusals_are_one_sentence() -> None:
    _create("held", seeds=1)
    submit = (ROBUSTLR, "worker", "s", "--engine", "slurm")
    for option, value, reason in (
        ("--partition", "nowhere", "Invalid partition name specified"),
        ("--gpus", "1", "Invalid generic resource (gres) specification"),
        ("--slurm", "nonsense=1", "unrecognized option '--nonsense=1'"),
    ):
        (line,) = _run(*submit, option, value, code=2).splitlines()
        assert line.startswith("robustlr: Slurm refuses the job: ")
        assert reason in line
