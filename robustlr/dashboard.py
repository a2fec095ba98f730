"""Optuna's dashboard on our database, with each cell's plots, note and pictures in its page.

A cell is one Optuna study, so it has a page. What we add is kept where the dashboard looks for it, in
the attributes of Optuna studies, which every request reads for all of them: hence few small plots,
written when they change. The dashboard takes plots in plotly's format; ``figures.py`` makes them.
"""

import itertools
import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import optuna
import optuna_dashboard
import pandas as pd
from optuna.artifacts import FileSystemArtifactStore

from robustlr import figures
from robustlr.analysis import heatmap, lr_curves
from robustlr.errors import UserError
from robustlr.storage import Storage
from robustlr.study import Study
from robustlr.worker import trials_folder

if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy

REFRESH_SECONDS = 30.0
KEPT = {"samples.png": "image/png", "game.png": "image/png", "samples.txt": "text/plain"}
"""The files of a trial's folder that its page shows, with their types."""

NOTE_WRITTEN = "dashboard:note_ver"
PLOT = "dashboard:plot_data:{name}:"
ARTIFACT = "dashboard:artifacts:"
OBJECTIVES = "dashboard:objective_names"
"""Where optuna-dashboard keeps notes, plots, finished trials' artifacts and the names of objectives in
a study's attributes; Optuna's own place for such names would rename columns of its data frames."""


class Pages:
    """What we add to the pages of a database's cells.

    Args:
        storage: the database.
        folder: where trials keep their files; copies of those that pages show go into its
            sub-folder ``artifacts``.
    """

    def __init__(self, storage: Storage, folder: Path) -> None:
        self._storage, self._folder = storage, folder
        self._optuna = storage.as_optuna()  # one for pages and requests: it remembers trials
        self._copies = folder / "artifacts"
        self._store = FileSystemArtifactStore(self._copies)
        self._complete: dict[str, int] = {}
        try:
            self._copies.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"pictures cannot be kept in {self._copies}: {error.strerror}; name another folder "
                "with the variable ROBUSTLR_FOLDER"
            ) from error

    def app(self) -> Any:
        """Return the dashboard as a WSGI application."""
        return optuna_dashboard.wsgi(self._optuna, artifact_store=self._store)

    def refresh(self) -> None:
        """Write what is missing or has changed; studies without new results cost a few queries."""
        cells: dict[str, list[FrozenStudy]] = {}
        for cell in self._optuna.get_all_studies():
            if "robustlr" in cell.user_attrs:
                cells.setdefault(cell.user_attrs["robustlr"]["study"], []).append(cell)
        for name in self._storage.study_names():
            study = self._storage.load_study(name)
            for cell in cells.get(name, []):
                if NOTE_WRITTEN not in cell.system_attrs:  # somebody may have edited the note
                    self._show_facts(study, cell)
            complete = self._storage.progress(name).complete
            if complete != self._complete.get(name, 0):
                self._show_results(study, cells.get(name, []))
                self._complete[name] = complete

    def _show_facts(self, study: Study, cell: "FrozenStudy") -> None:
        facts = cell.user_attrs["robustlr"]
        self._optuna.set_study_system_attr(cell._study_id, OBJECTIVES, [facts["metric"]])
        optuna_dashboard.save_note(self._optuna_study(cell), note(study, facts))

    def _show_results(self, study: Study, cells: Iterable["FrozenStudy"]) -> None:
        """Draw what has trials that its saved plot lacks: computing costs more than all the rest."""
        trials = self._storage.trials(study.name)
        curves: dict[str, pd.DataFrame] = {}  # of a task and condition, for all optimizers' cells
        for cell in cells:
            facts = cell.user_attrs["robustlr"]
            rivals = figures.rows_of(trials, facts)
            own = rivals[rivals["optimizer"] == facts["optimizer"]]
            group = f"{facts['task']} {facts['conditions']}"
            if _lacks(cell, "lr-curves", rivals):
                if group not in curves:
                    curves[group] = lr_curves.compute(rivals)
                drawn = figures.curves(facts, curves[group], list(study.optimizers))
                self._save(cell, "lr-curves", drawn, rivals)
            if _lacks(cell, "heatmap", own):
                self._save(cell, "heatmap", figures.heatmap(facts, heatmap.compute(own)), own)
            self._show_files(cell, own["trial"])

    def _save(
        self, cell: "FrozenStudy", name: str, figure: figures.Figure | None, trials: pd.DataFrame
    ) -> None:
        if figure is not None:
            figure = figure.with_meta(_drawn_from(trials))
            study = self._optuna_study(cell)
            optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=name)

    def _show_files(self, cell: "FrozenStudy", numbers: Iterable[int]) -> None:
        """Copy what the cell's completed trials have kept, each file once, and name it on the page.

        Optuna lets nobody add artifacts to trials that have ended; the dashboard also looks for them
        among their study's attributes. A file that somebody has deleted on the page is null there.
        """
        folder = self._folder / cell.study_name
        kept = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        numbers = [number for number in numbers if str(number) in kept]
        attributes = cell.system_attrs.items()
        shown = {key.rpartition(":")[2]: at for key, at in attributes if key.startswith(ARTIFACT)}
        for number, (name, mimetype) in itertools.product(numbers, KEPT.items()):
            path = folder / str(number) / name
            artifact = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{cell.study_name}/{number}/{name}"))
            is_there = artifact in shown and (self._copies / artifact).exists()
            if is_there or shown.get(artifact) == "null" or not path.is_file():
                continue
            with path.open("rb") as file:
                self._store.write(artifact, file)
            if artifact not in shown:
                of_trial = self._optuna.get_trial_id_from_study_id_trial_number
                key = f"{ARTIFACT}{of_trial(cell._study_id, int(number))}:{artifact}"
                file_facts = {"filename": name, "mimetype": mimetype, "encoding": None}
                described = json.dumps({"artifact_id": artifact, **file_facts})
                self._optuna.set_study_system_attr(cell._study_id, key, described)

    def _optuna_study(self, cell: "FrozenStudy") -> optuna.Study:
        return optuna.load_study(study_name=cell.study_name, storage=self._optuna)


def note(study: Study, facts: figures.Facts) -> str:
    """Return the note on a cell's page, in Markdown."""
    better = "lower" if facts["direction"] == "minimize" else "higher"
    rows = {
        "study": f"`{study.name}`",
        "task": f"`{facts['task']}`, scale `{facts['scale']}`",
        "optimizer": f"`{facts['optimizer']}`",
        "condition": figures.shown_conditions(facts) or "none",
        "objective": f"{facts['metric']}, {better} is better",
    }
    return "\n".join(
        [
            f"## {study.question or study.name}",
            "",
            *(f"- **{name}**: {value}" for name, value in rows.items()),
            "",
            f"A run that diverged is a completed trial: its value is the task's worst, "
            f"{facts['worst']:g}, and it has the user attribute `diverged`.",
            "",
            f"All optimizers of the study, with intervals: `robustlr report {study.name}`",
        ]
    )


def _drawn_from(trials: pd.DataFrame) -> str:
    """Return what decides a plot: completed trials do not change, so their number will do."""
    return f"{len(trials)} trials, robustlr {version('robustlr')}"


def _lacks(cell: "FrozenStudy", name: str, trials: pd.DataFrame) -> bool:
    """Return whether the cell's saved plot, if any, was drawn from other trials than these.

    The dashboard cuts a plot's JSON into numbered pieces.
    """
    keys = (f"{PLOT.format(name=name)}{number}" for number in itertools.count())
    pieces = itertools.takewhile(cell.system_attrs.__contains__, keys)
    text = "".join(cell.system_attrs[key] for key in pieces)
    try:
        saved = json.loads(text)["layout"]["meta"]
    except (ValueError, KeyError):  # nothing is saved, or only in part
        saved = None
    return not trials.empty and saved != _drawn_from(trials)


class Server(ThreadingMixIn, WSGIServer):
    """A server with a thread for each request: browsers hold connections open that ask nothing."""

    daemon_threads = True

    def __init__(self, host: str, port: int, app: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Quiet)
        self.set_app(app)


class _Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing about requests that were answered."""


def serve(storage: Storage, host: str, port: int) -> None:
    """Serve the dashboard until Ctrl-C, and keep its pages up to date.

    Raises:
        UserError: the address cannot be used.
    """
    pages = Pages(storage, trials_folder())
    try:
        server = Server(host, port, pages.app())
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used on {host}: {error.strerror}; try --port"
        ) from error
    with server:
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)
        threading.Thread(target=_refresh_for_ever, args=(pages,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _refresh_for_ever(pages: Pages) -> None:
    while True:
        started = time.monotonic()
        refresh_or_say(pages)
        time.sleep(max(REFRESH_SECONDS, 10 * (time.monotonic() - started)))  # requests come first


def refresh_or_say(pages: Pages) -> None:
    """Refresh the pages; what fails is said, and the pages stay as they are until the next time."""
    try:
        pages.refresh()
    except Exception as error:  # a database that is away for a while, a study deleted meanwhile
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"robustlr: the pages are not up to date: {reason}", file=sys.stderr)
