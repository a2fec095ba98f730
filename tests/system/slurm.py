"""A real Slurm of one node on this machine's loopback address, from Debian's slurm-wlm and munge."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "setpriv")
"""What a Slurm needs; of Debian's packages munge, slurm-wlm and util-linux."""

CONFIGURATION = """
ClusterName=robustlr
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired: for 120 seconds by default.
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
# The node has four CPUs whatever the machine has, so that jobs of an array run side by side.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=main Nodes=ALL Default=YES
"""


def why_not() -> str | None:
    """Return why no Slurm can be started here, if none can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge"
    return "Slurm's daemons are started as root" if os.getuid() else None


@contextmanager
def one_node_slurm() -> Iterator[Path]:
    """Start a Slurm with ports, key and files of its own; yield its file for ``SLURM_CONF``.

    It gets in no other Slurm's way, and its daemons end with this process, however that ends.
    """
    folder = Path(tempfile.mkdtemp(prefix="robustlr-slurm-"))
    configuration = _configure(folder)
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def start(*command: str) -> None:
            log = stack.enter_context(Path(folder, "daemons.log").open("ab"))
            daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig=TERM", *command], env=environment, stdout=log, stderr=log
            )
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)

        def answers(*command: str) -> str:
            return subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            ).stdout

        start(*_munged(folder / "munge"))
        _wait_for((folder / "munge/socket").exists, folder)
        start("slurmctld", "-D")
        start("slurmd", "-D")
        _wait_for(lambda: "idle" in answers("sinfo", "--noheader", "--format=%T"), folder)
        stack.callback(_wait_for, lambda: not answers("squeue", "--noheader"), folder)
        stack.callback(answers, "scancel", "--user=root")
        yield configuration


def _configure(folder: Path) -> Path:
    folder.chmod(0o755)  # munged is another user
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    values = {"host": socket.gethostname().partition(".")[0], "folder": folder}
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    configuration.write_text(CONFIGURATION.format(**values, **ports), encoding="utf-8")
    return configuration


def _munged(folder: Path) -> list[str]:
    """Make a folder with a key; return the command of a munged that keeps all its files there."""
    folder.mkdir()
    key = folder / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    for path in (folder, key):
        shutil.chown(path, "munge", "munge")
    files = [f"--{name}-file={folder / name}" for name in ("key", "log", "pid", "seed")]
    as_munge = ["--reuid=munge", "--regid=munge", "--clear-groups"]
    return [*as_munge, "munged", "--foreground", f"--socket={folder / 'socket'}", *files]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for(condition: Callable[[], object], folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError((folder / "daemons.log").read_text(errors="replace")[-4000:])
        time.sleep(0.2)
