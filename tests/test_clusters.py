"""Workers on clusters: the recipes of docs/clusters.md, and what is refused before there is a Slurm."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from robustlr.cli import app
from tests.helpers import ROOT

BLOCKS = re.findall(
    r"```(\w+)\n(.*?)```", (ROOT / "docs/clusters.md").read_text("utf-8"), re.DOTALL
)
SHELL = [text for kind, text in BLOCKS if kind == "sh"]


@pytest.mark.parametrize("text", SHELL)
def test_shell_recipes_are_shell(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_recipes_use_options_that_exist() -> None:
    commands: Any = typer.main.get_command(app)
    found = 0
    for text in SHELL:
        for line in re.findall(r"(?:\brobustlr )([a-z][^'\">|&\n]*)", text.replace("\\\n", "")):
            command, words = commands, shlex.split(line)
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            command.make_context(command.name, words)  # refuses what it does not know
            found += 1
    assert found >= 6


def test_the_kubernetes_job_is_a_job_of_workers() -> None:
    yaml = pytest.importorskip("yaml")
    (text,) = (text for kind, text in BLOCKS if kind == "yaml")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    program, *words = container["command"]
    assert program == "robustlr"
    commands: Any = typer.main.get_command(app)
    commands.commands[words[0]].make_context(words[0], words[1:])
    storage = next(entry for entry in container["env"] if entry["name"] == "ROBUSTLR_STORAGE")
    (_, secret) = storage["valueFrom"].popitem()
    assert "generic robustlr --from-file=storage=" in "".join(SHELL)
    assert secret == {"name": "robustlr", "key": "storage"}
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def _worker(*options: str, path: Path, modules: Path) -> str:
    """Run a worker command that is to be refused, on a machine with these programs and modules."""
    environment = {**os.environ, "PATH": str(path), "PYTHONPATH": str(modules)}
    command = [sys.executable, "-m", "robustlr", "worker", "smoke", *options]
    done = subprocess.run(
        command, cwd=modules, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "option", ["workers=2", "time=60", "partition=p", "account=a", "gpus=1", "cpus=2", "slurm=a=b"]
)
def test_options_of_jobs_need_the_engine(option: str, tmp_path: Path) -> None:
    line = _worker(f"--{option}", path=tmp_path, modules=tmp_path)
    name = option.partition("=")[0]
    assert line == f"robustlr: --{name} is for jobs on a cluster: add --engine slurm"


def test_the_engine_needs_slurm_and_submitit(tmp_path: Path) -> None:
    line = _worker("--engine", "slurm", path=tmp_path, modules=tmp_path)
    assert "there is no sbatch here" in line
    sbatch = tmp_path / "sbatch"
    sbatch.touch(mode=0o755)
    (tmp_path / "submitit.py").write_text("raise ImportError")  # as if it were not installed
    line = _worker("--engine", "slurm", path=tmp_path, modules=tmp_path)
    assert "pip install 'robustlr[slurm]'" in line
