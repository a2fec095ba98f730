"""The command line as a user meets it: in processes of its own."""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from robustlr.cli import app
from robustlr.registry import analyses
from robustlr.study import load_study
from tests.helpers import ROOT, study_from

TINY = """
name = "tiny"
seeds = 2
tasks = ["tests.real:one_step"]
[conditions]
warmup = [0.0, 0.5]
[optimizers.nero]
lr = { log = [0.01, 1.0], points = 3 }
[optimizers.adamw]
lr = { log = [0.001, 0.1], points = 3 }
weight_decay = [0.0, 0.1]
"""


def _robustlr(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the installed command; an exit status other than ``code`` or a traceback fails the test."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # workers import tests.real
    command = [str(Path(sys.executable).with_name("robustlr")), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_the_commands_are_those_of_the_design() -> None:
    names = {" ".join(path) for path in COMMANDS} - {""}
    assert names >= {
        "run",
        "worker",
        "status",
        "report",
        "heatmap",
        "dashboard",
        "tasks",
        "optimizers",
    }
    assert names >= {"study create", "study list", "study show", "study delete"}
    assert names >= {"analyze", "compare", "study export", "study import"}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_has_help(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    for parameter in command.params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), parameter.name


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom robustlr.cli import main\nsys.argv = ['robustlr', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'optuna', 'sqlalchemy', 'numpy', 'pandas', 'matplotlib', 'pydantic'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_run_takes_the_whole_way(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    done = _robustlr(
        *("run", "tiny.toml", "--storage", "sqlite:///x.db", "--out", "r", "--per-device", "2"),
        cwd=tmp_path,
    )
    assert "tiny: 44 trials queued" in done.stdout
    assert "report: r/report.html" in done.stdout
    assert "44/44 trials" in done.stderr
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names >= {"report.html", "trials.csv", "heatmap-tests.real-one_step.png"}
    assert names >= {f"{name.replace('-', '_')}.csv" for name in analyses()}
    again = _robustlr("study", "create", "tiny.toml", "--storage", "sqlite:///x.db", cwd=tmp_path)
    assert "44 trials are in the database already" in again.stdout
    listed = _robustlr("study", "list", "--json", "--storage", "sqlite:///x.db", cwd=tmp_path)
    (row,) = json.loads(listed.stdout)
    assert (row["name"], row["trials"], row["complete"], row["cells"]) == ("tiny", 44, 44, 4)
    status = _robustlr("status", "tiny", "--json", "--storage", "sqlite:///x.db", cwd=tmp_path)
    assert json.loads(status.stdout)["complete"] == 44
    shown = _robustlr(
        "study", "show", "tiny", "--json", "--storage", "sqlite:///x.db", cwd=tmp_path
    )
    assert json.loads(shown.stdout)["seeds"] == 2
    draw = ("heatmap", "tiny", "--storage", "sqlite:///x.db", "--out", "h")
    pictures = _robustlr(*draw, "--x", "weight_decay", "--y", "lr", cwd=tmp_path)
    assert pictures.stdout.split() == ["h/heatmap-tests.real-one_step.png"]
    for option, message in {
        ("--x", "lrr"): 'did you mean "lr"?',
        ("--optimizer", "nero"): "there is: adamw",  # nero has one hyperparameter
        ("--task", "x"): "one_step",
    }.items():
        assert message in _robustlr(*draw, *option, cwd=tmp_path, code=2).stderr
    (tmp_path / "tiny.toml").write_text(TINY.replace("seeds = 2", "seeds = 3"), encoding="utf-8")
    refused = _robustlr("run", "tiny.toml", "--storage", "sqlite:///x.db", cwd=tmp_path, code=2)
    assert "seeds: 2 → 3" in refused.stderr
    _robustlr("study", "delete", "tiny", "--yes", "--storage", "sqlite:///x.db", cwd=tmp_path)
    assert (
        json.loads(
            _robustlr("study", "list", "--json", "--storage", "sqlite:///x.db", cwd=tmp_path).stdout
        )
        == []
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing.toml"], 'there is no study file "nothing.toml"'),
        (["run", "quickstrat"], 'did you mean "quickstart"?'),
        (["study", "create", "wrong.toml"], 'wrong.toml: design = "gird": did you mean "grid"?'),
        (["status", "x"], "holds no studies; create one first: robustlr study create STUDY"),
        (["worker", "x", "--storage", "nonsense"], '"nonsense" is no database URL'),
        (["report", "x", "--storage", "sqlite:///no/folder/x.db"], "holds no studies"),
        (["study", "list", "--storage", "postgresql://u@127.0.0.1:1/x"], "does not work"),
        (["study", "list", "--storage", "sqlite:///wrong.toml"], "does not work"),
        (["analyze", "no.csv", "--out", "r"], "no.csv: there is no such file"),
        (["analyze", "wrong.toml", "--out", "r"], 'the column "task" is missing'),
        (["study", "import", "no.json"], "no.json cannot be read"),
        (["study", "export", "x", "x.json"], "holds no studies"),
        (["study", "export", "x", "x.json", "--storage", "grpc://h:1"], "is a proxy"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong.toml").write_text(
        'name="x"\ntasks=["digits-mlp"]\ndesign="gird"\n[optimizers.sgd]\n'
    )
    done = _robustlr(*arguments, cwd=tmp_path, code=2)
    assert done.stderr.startswith("robustlr: ")
    assert message in done.stderr


def test_names_in_a_database_are_checked(tmp_path: Path) -> None:
    _robustlr("study", "create", "smoke", cwd=tmp_path)
    for command in (["worker"], ["status"], ["report"], ["heatmap"], ["study", "show"]):
        done = _robustlr(*command, "smoek", cwd=tmp_path, code=2)
        assert 'is named "smoek"; did you mean "smoke"?' in done.stderr
    assert "no finished trial yet" in _robustlr("report", "smoke", cwd=tmp_path, code=2).stderr
    assert "has no heatmap" in _robustlr("heatmap", "smoke", cwd=tmp_path, code=2).stderr
    wrong = _robustlr("worker", "smoke", "--devices", "77", cwd=tmp_path, code=2)
    assert "--devices 77: " in wrong.stderr


@pytest.mark.parametrize("what", ["tasks", "optimizers"])
def test_listings(what: str, tmp_path: Path) -> None:
    rows = json.loads(_robustlr(what, "--json", cwd=tmp_path).stdout)
    plain = _robustlr(what, cwd=tmp_path).stdout
    assert len(plain.splitlines()) == len(rows) + 1
    for row in rows:
        assert row["name"] in plain
        assert all(value != "" for value in row.values())


def test_ctrl_c_gives_running_trials_back(tmp_path: Path) -> None:
    text = 'name="slow"\nseeds=1\ntasks=["tests.helpers:slow"]\n[optimizers.nero]\nlr=[0.1, 1.0]\n'
    (tmp_path / "slow.toml").write_text(text, encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("robustlr")),
        "run",
        "slow.toml",
        "--per-device",
        "2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def state() -> dict[str, int]:
        if not (tmp_path / "robustlr.db").exists():
            return {"running": 0}
        status = [command[0], "status", "slow", "--json"]
        done = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True, check=False)
        found: dict[str, int] = json.loads(done.stdout) if done.returncode == 0 else {"running": 0}
        return found

    deadline = time.monotonic() + 60
    while state()["running"] < 2:
        assert time.monotonic() < deadline
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "stopped; running trials are back in the queue" in errors
    assert "Traceback" not in errors
    assert (state()["waiting"], state()["running"]) == (3, 0)


def test_failed_trials_make_the_command_fail_after_its_report(tmp_path: Path) -> None:
    text = (
        'name="broken"\nseeds=2\ntasks=["tests.helpers:broken"]\n[optimizers.nero]\nlr=[0.1, 1.0]\n'
    )
    (tmp_path / "broken.toml").write_text(text, encoding="utf-8")
    done = _robustlr("run", "broken.toml", "--per-device", "1", cwd=tmp_path, code=2)
    assert "3 failed: RuntimeError: the machine is on fire" in done.stderr
    assert 'study "broken" is not finished: 3 trials failed and 0 wait' in done.stderr
    assert "3 of 6" in (tmp_path / "report/broken/report.html").read_text(encoding="utf-8")


def test_the_dashboard_serves_the_studies_on_loopback(tmp_path: Path) -> None:
    _robustlr("study", "create", "smoke", cwd=tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("robustlr")), "dashboard", "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
                    studies = json.load(answer)["study_summaries"]
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert len(studies) == 4
        assert "smoke/digits-mlp/nero/warmup=true" in {study["study_name"] for study in studies}
        taken = _robustlr("dashboard", "--port", str(port), cwd=tmp_path, code=2)
        assert f"port {port} cannot be used" in taken.stderr
    finally:
        server.terminate()
        server.wait(20)
        assert server.stdout is not None
        server.stdout.close()


def test_the_readme_is_true(tmp_path: Path) -> None:
    """Run the README's commands in its order, with the files that it shows."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind, name in (("python", "mine.py"), ("toml", "mine.toml"), ("python", "policies.py")):
        (shown,) = (
            b for b in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) if f"# {name}" in b
        )
        (tmp_path / name).write_text(shown, encoding="utf-8")
    (table,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    (tmp_path / "runs.csv").write_text(table, encoding="utf-8")
    commands = re.findall(r"^\$ robustlr (.*)\n((?:[^$`].*\n)*)", text, re.MULTILINE)
    assert len(commands) >= 10
    for command, shown in commands:
        done = _robustlr(*command.split(), cwd=tmp_path)
        assert not shown or done.stdout == shown
    assert (tmp_path / "report/mine/report.html").exists()
    policies = runpy.run_path(str(tmp_path / "policies.py"))
    for name, scale in (("acrobot", "small"), ("breakout", "paper")):
        policies[name].check(policies[name].scales[scale])
    (smoke,) = re.findall(r'```toml\n(name = "smoke".*?)```', text, re.DOTALL)
    assert study_from(tmp_path, smoke).hash == load_study("smoke").hash
