"""Two hosts, each with a network and a name of its own, and one PostgreSQL; one of them dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from robustlr.status import Progress
from robustlr.storage import Storage
from tests.chaos.faults import Server, network_to
from tests.helpers import ROOT, study_from, wait_for

HOSTS = {"robustlr-a": "10.231.1", "robustlr-b": "10.231.2"}
LEASE_SECONDS = 4


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def _host(name: str, subnet: str) -> Iterator[None]:
    """A network namespace that reaches this one by a cable of its own, and nothing else."""
    cable = f"v-{name}"
    with ExitStack() as stack:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "delete", name)  # and with it the cable
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("address", "add", f"{subnet}.1/24", "dev", cable)
        _ip("link", "set", cable, "up")
        _ip("-n", name, "address", "add", f"{subnet}.2/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        yield


def _why_not() -> str:
    if shutil.which("ip") is None:
        return "ip is missing: apt-get install iproute2"
    try:
        with _host("robustlr-try", "10.231.3"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made here: {error.stderr.decode().strip()}"


def _start(host: str, url: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a launcher of two workers on the host; they share the folder of trials."""
    code = (
        f"import os, socket, sys; socket.sethostname({host!r}); "
        "os.execv(sys.executable, [sys.executable, "
        "'-m', 'robustlr', 'worker', 'test', '--devices', 'cpu', '--per-device', '2'])"
    )
    environment = {"ROBUSTLR_STORAGE": url, "ROBUSTLR_LEASE_SECONDS": str(LEASE_SECONDS)}
    with (folder / f"{host}.log").open("ab") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, "unshare", "--uts", sys.executable, "-c", code],
            env={**os.environ, **environment, "ROBUSTLR_FOLDER": str(folder / "trials")},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )


@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(_why_not()), reason=_why_not())
def test_a_host_takes_over_what_another_ran(tmp_path: Path, own_postgresql: Server) -> None:
    text = 'tasks = ["tests.helpers:slow"]\nseeds = 3\n[optimizers.nero]\nlr = [0.1, 0.2]\n'
    with ExitStack() as stack:
        for name, subnet in HOSTS.items():
            stack.enter_context(_host(name, subnet))
        addresses = [f"{subnet}.1" for subnet in HOSTS.values()]
        network = stack.enter_context(network_to(own_postgresql.socket, addresses))
        storage = stack.enter_context(Storage(own_postgresql.url, create=True))
        storage.create_study(study_from(tmp_path, text))
        user, database = own_postgresql.user, own_postgresql.database
        launchers = {
            host: _start(
                host, f"postgresql://{user}@{subnet}.1:{network.port}/{database}", tmp_path
            )
            for host, subnet in HOSTS.items()
        }
        wait_for(lambda: {each.host for each in storage.status("test").running} == set(HOSTS))
        wait_for(lambda: storage.progress("test").running == 4)
        _ip("link", "set", "v-robustlr-b", "down")  # its workers cannot even give back
        dead = [each for each in storage.status("test").running if each.host == "robustlr-b"]
        for process in (launchers["robustlr-b"].pid, *(each.process for each in dead)):
            os.kill(process, signal.SIGKILL)
        launchers["robustlr-b"].wait()
        assert launchers["robustlr-a"].wait(200) == 0, (tmp_path / "robustlr-a.log").read_text()
        assert storage.progress("test") == Progress(0, 0, 9, 0, 0)
        with storage.transaction() as connection:
            lost = sa.text("SELECT value_json FROM trial_user_attributes WHERE key = 'lost'")
            stories = [json.loads(text) for text in connection.scalars(lost)]
        assert len(stories) == 2
        for (story,) in stories:
            assert story.startswith("robustlr-b:")
            assert story.endswith("nothing was heard of it until its lease expired")
