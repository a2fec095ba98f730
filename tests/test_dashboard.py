"""The dashboard's pages as its own application gives them; a browser looks at them in tests/system."""

import io
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pandas as pd
import pytest
import sqlalchemy as sa

from robustlr import figures
from robustlr.analysis import heatmap, lr_curves
from robustlr.dashboard import Pages, Server, refresh_or_say
from robustlr.errors import UserError
from robustlr.storage import Claim, Storage
from robustlr.study import Study
from robustlr.task import Outcome
from tests.helpers import serving, study_from
from tests.test_analysis import HARD, _random_design, _trials

STUDY = """
question = "Which of the two?"
seeds = 2
[conditions]
warmup = [true, false]
[optimizers.adamw]
lr = { log = [0.001, 0.1], points = 3 }
weight_decay = [0.0, 0.1]
[optimizers.nero]
lr = [0.01, 0.1, 1.0]
"""
TRIALS = 2 * (2 * (3 * 2 + 1) + 2 * (3 + 1))
ADAMW, NERO = "test/digits-mlp/adamw/warmup=true", "test/digits-mlp/nero/warmup=true"


@pytest.fixture
def study(tmp_path: Path, storage: Storage) -> Study:
    """A study in the database whose trials all wait."""
    study = study_from(tmp_path, STUDY)
    storage.create_study(study)
    return study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the trials keep their files."""
    return tmp_path / "trials"


def _finish(
    storage: Storage, count: int, folder: Path | None = None, *, diverged: bool = False
) -> list[Claim]:
    """Complete waiting trials with a value that says which they are; each leaves a picture."""
    claims = []
    for _ in range(count):
        claim = storage.claim("test", "nobody:1:cpu")
        assert claim is not None
        lr = float(claim.config.hyperparameters["lr"])
        value = 0.9 if diverged else 0.1 + 0.01 * claim.config.seed + lr / 10
        storage.complete(claim, Outcome(value=value, diverged=diverged), {})
        if folder is not None:
            place = folder / claim.cell / str(claim.number)
            place.mkdir(parents=True)
            (place / "samples.png").write_bytes(f"{claim.cell} {claim.number}".encode())
        claims.append(claim)
    return claims


def _ask(pages: Pages, path: str, method: str = "GET") -> tuple[str, bytes]:
    environment: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method}
    environment["wsgi.errors"] = io.StringIO()
    setup_testing_defaults(environment)
    status: list[str] = []
    answer = pages.app()(environment, lambda line, headers, *more: status.append(line))
    body = b"".join(answer)
    getattr(answer, "close", lambda: None)()
    return status[0], body


def _page(pages: Pages, cell: str) -> dict[str, Any]:
    """Return what the cell's page shows; plots by their ids."""
    summaries = json.loads(_ask(pages, "/api/studies")[1])["study_summaries"]
    (number,) = (row["study_id"] for row in summaries if row["study_name"] == cell)
    page: dict[str, Any] = json.loads(_ask(pages, f"/api/studies/{number}")[1])
    plots = {plot["id"]: json.loads(plot["graph_object"]) for plot in page["plotly_graph_objects"]}
    return {**page, "id": number, "plots": plots}


def _kept(storage: Storage) -> dict[str, dict[str, Any]]:
    """Return all that is kept in the attributes of Optuna's studies."""
    return {cell.study_name: cell.system_attrs for cell in storage.as_optuna().get_all_studies()}


@contextmanager
def _statements() -> Iterator[list[str]]:
    """Collect the statements that databases are sent."""
    statements: list[str] = []

    def listen(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        statements.append(statement.split(maxsplit=1)[0])

    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    yield statements
    sa.event.remove(sa.Engine, "before_cursor_execute", listen)


def test_a_cells_page_compares_the_optimizers(storage: Storage, study: Study, folder: Path) -> None:
    _finish(storage, TRIALS)
    pages = Pages(storage, folder)
    pages.refresh()
    page = _page(pages, ADAMW)
    curves = page["plots"]["lr-curves"]
    nero, own = curves["data"]  # its own is drawn last, on top
    assert (nero["name"], own["name"]) == ("nero", "adamw")
    assert own["x"] == [0.001, 0.01, 0.1]
    assert own["y"] == [0.1051, 0.106, 0.115]  # over two seeds, at the better weight decay
    assert len(own["error_y"]["array"]) == 3
    assert "error_y" not in nero
    assert nero["opacity"] < own["opacity"]
    assert (curves["layout"]["xaxis"]["type"], curves["layout"]["xaxis"]["title"]["text"]) == (
        "log",
        "lr",
    )
    assert "validation error" in curves["layout"]["yaxis"]["title"]["text"]
    assert page["objective_names"] == ["validation error"]
    squares = page["plots"]["heatmap"]
    assert squares["layout"]["xaxis"]["type"] == "log"
    assert squares["layout"]["yaxis"]["title"]["text"] == "weight_decay"
    assert squares["data"][0]["y"] == ["0", "0.1"]  # 0 is on no logarithmic axis
    assert [len(row) for row in squares["data"][0]["z"]] == [3, 3]
    other = _page(pages, NERO)["plots"]
    assert set(other) == {"lr-curves"}  # one hyperparameter makes no heatmap
    colors = {trace["name"]: trace["line"]["color"] for trace in curves["data"]}
    assert colors == {t["name"]: t["line"]["color"] for t in other["lr-curves"]["data"]}


def test_the_note_says_what_the_study_asks(storage: Storage, study: Study, folder: Path) -> None:
    pages = Pages(storage, folder)
    pages.refresh()
    page = _page(pages, ADAMW)
    for part in (
        "## Which of the two?",
        "`digits-mlp`",
        "`adamw`",
        "warmup=true",
        "validation error, lower is better",
        "worst, 0.9,",
        "`diverged`",
        "`robustlr report test`",
    ):
        assert part in page["note"]["body"]
    assert page["plots"] == {}


def test_pictures_are_artifacts_of_completed_trials(
    storage: Storage, study: Study, folder: Path
) -> None:
    finished = {(claim.cell, claim.number) for claim in _finish(storage, 19, folder)}
    running = storage.claim("test", "nobody:1:cpu")
    assert running is not None
    assert ("test/digits-mlp/adamw/warmup=false", running.number) in finished  # not its own
    (folder / running.cell / str(running.number)).mkdir(parents=True)
    (folder / running.cell / str(running.number) / "samples.png").touch()
    pages = Pages(storage, folder)
    pages.refresh()
    found = set()
    for cell in storage.cells("test"):
        page = _page(pages, cell)
        for trial in page["trials"]:
            for artifact in trial["artifacts"]:
                assert artifact["filename"] == "samples.png"
                assert artifact["mimetype"] == "image/png"
                address = f"/artifacts/{page['id']}/{trial['trial_id']}/{artifact['artifact_id']}"
                assert _ask(pages, address)[1] == f"{cell} {trial['number']}".encode()
                found.add((cell, trial["number"]))
    assert found == finished


def test_nothing_is_written_twice_and_new_trials_change_the_plots(
    storage: Storage, study: Study, folder: Path
) -> None:
    _finish(storage, TRIALS // 2, folder)
    pages = Pages(storage, folder)
    pages.refresh()
    before, plots = _kept(storage), _page(pages, ADAMW)["plots"]
    again = Pages(storage, folder)  # as after a restart
    with _statements() as statements:
        pages.refresh()
        again.refresh()
    assert set(statements) == {"SELECT"}
    assert len(statements) < 25  # however many cells there are
    assert _kept(storage) == before
    pictures = sorted(path.name for path in (folder / "artifacts").iterdir())
    assert len(pictures) == TRIALS // 2
    _finish(storage, TRIALS - TRIALS // 2, folder)
    pages.refresh()
    assert _page(pages, ADAMW)["plots"] != plots
    assert len(list((folder / "artifacts").iterdir())) == TRIALS
    notes = {name: attributes["dashboard:note_ver"] for name, attributes in before.items()}
    assert notes == {name: kept["dashboard:note_ver"] for name, kept in _kept(storage).items()}


def test_what_somebody_wrote_or_deleted_on_a_page_stays(
    storage: Storage, study: Study, folder: Path
) -> None:
    (claim, *_) = _finish(storage, 4, folder)
    pages = Pages(storage, folder)
    pages.refresh()
    page = _page(pages, claim.cell)
    trial = page["trials"][claim.number]
    (artifact,) = trial["artifacts"]
    address = f"/artifacts/{page['id']}/{trial['trial_id']}/{artifact['artifact_id']}"
    _ask(pages, f"/api{address}", "DELETE")
    optuna_storage = storage.as_optuna()
    optuna_storage.set_study_system_attr(page["id"], "dashboard:note_str:0", "mine")
    _finish(storage, 1)
    pages.refresh()
    after = _page(pages, claim.cell)
    assert after["note"]["body"].startswith("mine")
    assert after["trials"][claim.number]["artifacts"] == []
    assert _ask(pages, address)[0].startswith("404")
    assert not (folder / "artifacts" / artifact["artifact_id"]).exists()


def test_a_study_made_anew_shows_its_own_pictures(
    storage: Storage, study: Study, folder: Path
) -> None:
    pages = Pages(storage, folder)
    (first,) = _finish(storage, 1, folder)
    pages.refresh()
    storage.delete_study("test")
    storage.create_study(study)
    (again,) = _finish(storage, 1)
    assert (again.cell, again.number) == (first.cell, first.number)
    (folder / again.cell / str(again.number) / "samples.png").write_bytes(b"new")
    pages = Pages(storage, folder)
    pages.refresh()
    page = _page(pages, again.cell)
    trial = page["trials"][again.number]
    (artifact,) = trial["artifacts"]
    address = f"/artifacts/{page['id']}/{trial['trial_id']}/{artifact['artifact_id']}"
    assert _ask(pages, address)[1] == b"new"
    assert page["note"]["version"] == 1


def test_trials_that_all_diverged_have_plots(storage: Storage, study: Study, folder: Path) -> None:
    _finish(storage, TRIALS, diverged=True)
    pages = Pages(storage, folder)
    pages.refresh()
    plots = _page(pages, ADAMW)["plots"]
    assert set(plots["lr-curves"]["data"][1]["y"]) == {0.9}
    (squares,) = plots["heatmap"]["data"]
    assert squares["zmin"] < squares["z"][0][0] < squares["zmax"]


def test_a_plot_saved_in_part_is_drawn_again(storage: Storage, study: Study, folder: Path) -> None:
    _finish(storage, TRIALS)
    pages = Pages(storage, folder)
    pages.refresh()
    page = _page(pages, ADAMW)
    storage.as_optuna().set_study_system_attr(page["id"], "dashboard:plot_data:heatmap:0", "{")
    Pages(storage, folder).refresh()
    assert _page(pages, ADAMW)["plots"] == page["plots"]


FACTS = {
    "task": "t",
    "optimizer": "flat",
    "conditions": {"warmup": True},
    "metric": "error",
    "direction": "minimize",
    "worst": 0.9,
}


def _facts(trials: pd.DataFrame, optimizer: str) -> dict[str, Any]:
    facts = FACTS | {"optimizer": optimizer}
    if "warmup" not in trials:
        facts |= {"conditions": {}}
    if len(trials):
        facts |= trials.iloc[0][["direction", "worst"]].to_dict()
    return facts


@pytest.mark.parametrize("optimizer", ["flat", "steep"])
@pytest.mark.parametrize("case", HARD)
def test_any_trials_give_small_plots_or_none(case: str, optimizer: str) -> None:
    trials = HARD[case]
    facts = _facts(trials, optimizer)
    tables = lr_curves.compute(trials), heatmap.compute(trials)
    curves = figures.curves(facts, tables[0], ["flat", "steep"])
    squares = figures.heatmap(facts, tables[1])
    for figure, table in ((curves, tables[0]), (squares, tables[1])):
        rows = table if table.empty else figures.rows_of(table, facts, optimizer=optimizer)
        assert (figure is None) == rows.empty
        if figure is not None:
            assert len(figure.to_json()) < 8000
            layout = figure.layout
            assert layout["xaxis"]["title"]["text"] == "lr"
            assert "error" in figure.to_json()
    if curves is not None:
        low, high = curves.layout["yaxis"]["range"]
        assert low < high
        names = figures.rows_of(tables[0], facts)["optimizer"].unique()
        assert {str(trace["name"]).split()[0] for trace in curves.data} == set(names)
    if squares is not None:
        (trace,) = squares.data
        assert trace["zmin"] < trace["zmax"]
        assert {len(row) for row in (*trace["z"], *trace["text"])} == {len(trace["x"])}


def test_diverged_squares_do_not_stretch_the_colours() -> None:
    trials = _trials({"flat": (0.1, 0.12, 0.2, 100.0)}, noise=0.0)
    trials["worst"] = 100.0
    figure = figures.heatmap(FACTS | {"worst": 100.0}, heatmap.compute(trials))
    assert figure is not None
    (trace,) = figure.data
    assert (trace["zmin"], trace["zmax"]) == pytest.approx((0.1, 0.21), abs=1e-4)
    assert trace["z"][0][3] == 100
    assert trace["colorbar"]["ticktext"] == ["0.1", "0.14", "0.17", "≥ 0.21"]
    assert trace["text"][0] == ["<b>0.1</b>", "0.12", "0.2", "100 ×"]
    assert trace["reversescale"]


def test_a_scale_over_decades_is_logarithmic() -> None:
    trials = _trials({"flat": (0.001, 0.01, 0.1, 0.8)}, noise=0.0, decays=(0.001, 0.1))
    figure = figures.heatmap(FACTS, heatmap.compute(trials))
    assert figure is not None
    (trace,) = figure.data
    assert (trace["zmin"], trace["zmax"]) == pytest.approx((-2.959, -0.0915), abs=1e-3)
    assert figure.layout["yaxis"]["type"] == "log"
    assert trace["y"] == [0.001, 0.1]
    curves = figures.curves(FACTS, lr_curves.compute(trials), ["flat"])
    assert curves is not None
    assert curves.layout["yaxis"]["type"] == "log"


def test_a_curve_of_too_many_learning_rates_says_which_it_shows() -> None:
    trials = _random_design(80).query("warmup").assign(optimizer="flat")
    trials = pd.concat([trials, trials.assign(lr=trials["lr"] * 0.999)])
    figure = figures.curves(FACTS, lr_curves.compute(trials), ["flat"])
    assert figure is not None
    (trace,) = figure.data
    assert len(trace["x"]) <= figures.MOST_RATES < len(trials)
    assert trace["name"] == "flat (1 lr in 2)"


def test_a_database_that_is_away_for_a_while_ends_nothing(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "away.db"
    with Storage(f"sqlite:///{path}", create=True) as storage:
        storage.create_study(study_from(tmp_path, STUDY))
        pages = Pages(storage, folder)
        storage.engine.dispose()
        path.rename(tmp_path / "there.db")
        path.write_text("no database")
        refresh_or_say(pages)
        said = capsys.readouterr().err
        assert said.startswith("robustlr: the pages are not up to date: ")
        assert said.count("\n") == 1
        (tmp_path / "there.db").replace(path)
        refresh_or_say(pages)
        assert capsys.readouterr().err == ""
        assert _page(pages, ADAMW)["note"]["body"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        Storage(f"sqlite:///{tmp_path}/x.db", create=True) as storage,
        pytest.raises(UserError, match=r"pictures cannot be kept in .*ROBUSTLR_FOLDER"),
    ):
        Pages(storage, tmp_path / "file")


def test_a_connection_that_asks_nothing_holds_nobody_up(
    storage: Storage, study: Study, folder: Path
) -> None:
    pages = Pages(storage, folder)
    studies = []
    with Server("127.0.0.1", 0, pages.app()) as server, serving(server):
        url = f"http://127.0.0.1:{server.server_port}/api/studies"
        with (
            socket.create_connection(("127.0.0.1", server.server_port)),
            suppress(TimeoutError),
            urllib.request.urlopen(url, timeout=60) as answer,
        ):
            studies = json.load(answer)["study_summaries"]
    assert len(studies) == 4


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """A function that starts ``robustlr dashboard`` and returns its output until it serves."""
    Storage(f"sqlite:///{tmp_path}/robustlr.db", create=True).engine.dispose()

    def start(*arguments: str) -> tuple[str, str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [str(Path(sys.executable).with_name("robustlr")), "dashboard", "--port", port]
        with subprocess.Popen(
            [*command, *arguments],
            cwd=tmp_path,
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            process.terminate()
            return said.replace(port, "PORT"), process.communicate()[1]

    return start


def test_loopback_needs_no_warning(started: Callable[..., tuple[str, str]]) -> None:
    said, warned = started("--host", "localhost")
    assert said == "http://localhost:PORT/ (Ctrl-C ends it)\n"
    assert warned == ""


def test_another_host_is_warned_of(started: Callable[..., tuple[str, str]]) -> None:
    said, warned = started("--host", "0.0.0.0")
    assert said == "http://0.0.0.0:PORT/ (Ctrl-C ends it)\n"
    assert warned.startswith("robustlr: whoever reaches 0.0.0.0 can read and delete these studies")
    assert warned.count("\n") == 1


def test_a_host_that_is_not_this_machine_is_one_sentence(
    started: Callable[..., tuple[str, str]],
) -> None:
    said, error = started("--host", "192.0.2.1")
    assert said == ""
    warned, failed = error.splitlines()
    assert warned.startswith("robustlr: whoever reaches 192.0.2.1 can read")
    assert "cannot be used on 192.0.2.1: " in failed
