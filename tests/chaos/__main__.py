"""The long form, ``make chaos``: prints what happened and what is left of 2,000 trials."""

import argparse
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pandas as pd

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


def on_postgresql(folder: Path, trials: int, seconds: float) -> Result:
    """Run two launchers; the one behind a network that is cut trains four trials together."""
    with ExitStack() as stack:
        server = Server(Path(tempfile.mkdtemp(prefix="robustlr-chaos-")))
        stack.callback(server.remove)
        small = stack.enter_context(disk(folder / "disk", "32m"))
        network = stack.enter_context(network_to(server.socket))
        faults = [
            *(Fault("full disk", share, 6, small.fill, small.free) for share in (0.1, 0.5)),
            *(Fault("network cut", share, 12, network.cut, network.mend) for share in (0.2, 0.6)),
            *(Fault("server restarted", share, 3, server.crash, server.start) for share in (0.3, 0.8)),
        ]  # fmt: skip
        prepare(server.url, chaos_study(folder, trials))
        far = f"postgresql://{server.user}@127.0.0.1:{network.port}/{server.database}"
        return Storm(
            server.url, [Launcher(server.url), Launcher(far, ("--fuse", "4"))], folder, seed=1
        ).run(faults, seconds)


def on_sqlite(folder: Path, trials: int, seconds: float) -> Result:
    """Run a launcher of four workers, with the database on the disk that fills."""
    with disk(folder / "disk", "32m") as small:
        url = f"sqlite:///{small.folder}/study.db"
        prepare(url, chaos_study(folder, trials))
        faults = [Fault("full disk", share, 6, small.fill, small.free) for share in (0.2, 0.6)]
        return Storm(url, [Launcher(url)], folder, seed=2).run(faults, seconds)


def tell(name: str, result: Result, expected: pd.DataFrame) -> bool:
    """Print what a storm left; return whether it is all and the same as without it."""
    total, done = len(expected), result.completions
    lost, twice = total - len(set(done)), len(done) - len(set(done))
    rows, ours = comparable(expected), comparable(result.table)
    differ = sum(row not in rows for row in ours)
    print(
        f"{name}: {total} trials in {result.seconds:.0f} s; {result.kills} workers killed, "
        f"{', '.join(result.faults)}; {result.launches} launches; {result.taken_over} trials lost "
        f"their worker; {lost} trials lost, {twice} completed twice, {differ} differ in a bit",
        flush=True,
    )
    return lost == twice == differ == 0


def main() -> None:
    """Run all storms; exit with 1 if anything was lost, completed twice or changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000, help="a multiple of five")
    parser.add_argument("--seconds", type=float, default=3600, help="limit of each storm")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="robustlr-chaos-"))
    expected = undisturbed(folder, chaos_study(folder, given.trials))
    good = True
    for storm in (on_postgresql, on_sqlite):
        own = folder / storm.__name__
        own.mkdir()
        good &= tell(storm.__name__, storm(own, given.trials, given.seconds), expected)
    shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
