"""Whatever dies, no trial is lost, none completes twice, and no bit of a result changes."""

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import Server, disk, network_to
from tests.chaos.storm import (
    Fault,
    Launcher,
    Result,
    Storm,
    chaos_study,
    comparable,
    prepare,
    undisturbed,
)

TRIALS = 150


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return comparable(undisturbed(folder, chaos_study(folder, TRIALS)))


def _check(result: Result, expected: list[dict[str, Any]]) -> None:
    assert len(result.completions) == len(set(result.completions)) == TRIALS
    assert comparable(result.table) == expected
    assert result.kills >= 5
    assert result.taken_over >= 1
    assert "Traceback" not in result.logs


@pytest.mark.timeout(1200)
def test_eight_workers_on_postgresql(
    tmp_path: Path, expected: list[dict[str, Any]], own_postgresql: Server
) -> None:
    """Under two launchers; the one behind a network that is cut trains four trials together."""
    server = own_postgresql
    with disk(tmp_path / "disk", "16m") as small, network_to(server.socket) as network:
        faults = [
            Fault("full disk", 0.15, 6, small.fill, small.free),
            Fault("network cut", 0.35, 12, network.cut, network.mend),
            Fault("server restarted", 0.65, 3, server.crash, server.start),
        ]
        prepare(server.url, chaos_study(tmp_path, TRIALS))
        far = f"postgresql://{server.user}@127.0.0.1:{network.port}/{server.database}"
        result = Storm(
            server.url, [Launcher(server.url), Launcher(far, ("--fuse", "4"))], tmp_path, seed=7
        ).run(faults, 1000)
        assert result.faults == [fault.name for fault in faults]
        _check(result, expected)
        assert "does not work" in result.logs
        assert small.was_full == small.can_fill


@pytest.mark.timeout(1200)
def test_four_workers_on_sqlite(tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    """The database lies on the disk that fills."""
    with disk(tmp_path / "disk", "16m") as small:
        url = f"sqlite:///{small.folder}/study.db"
        prepare(url, chaos_study(tmp_path, TRIALS))
        faults = [Fault("full disk", 0.3, 6, small.fill, small.free)]
        result = Storm(url, [Launcher(url)], tmp_path, seed=8).run(faults, 1000)
        assert result.faults == ["full disk"]
        _check(result, expected)
        assert small.was_full == small.can_fill
