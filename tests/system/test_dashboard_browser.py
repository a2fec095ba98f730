"""``robustlr dashboard`` as its user meets it: real trials, a real server, a real browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"
)

STUDY = """
name = "pictures"
question = "Do pictures show?"
seeds = 1
tasks = ["tests.real:few_steps_gan"]
[optimizers.adam]
lr = [0.001, 0.01]
beta1 = [0.0, 0.5]
[optimizers.nero]
lr = [0.01, 0.1]
"""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a study of real trials, serve its dashboard, and give the server's address."""
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "pictures.toml").write_text(STUDY, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    robustlr = str(Path(sys.executable).with_name("robustlr"))
    subprocess.run(
        [robustlr, "run", "pictures.toml", "--per-device", "1"],
        cwd=folder,
        env=environment,
        check=True,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [robustlr, "dashboard", "--port", str(port)], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    with server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            assert said.startswith("http://127.0.0.1:")
            yield said.split("/ ")[0]
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def page(address: str) -> dict[str, Any]:
    """The page of the cell that has a heatmap, as the server's interface gives it, once drawn."""
    deadline = time.monotonic() + 120
    while True:
        rows = _json(f"{address}/api/studies")["study_summaries"]
        (number,) = (row["study_id"] for row in rows if row["study_name"].endswith("/adam"))
        found = _json(f"{address}/api/studies/{number}")
        if any(trial["artifacts"] for trial in found["trials"]):
            return {**found, "address": f"{address}/dashboard/studies/{number}"}
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _json(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def _document(url: str, folder: Path) -> str:
    """Return the page's elements after its scripts have run, as text."""
    assert CHROMIUM is not None
    budget = "--virtual-time-budget=20000"  # milliseconds of the page's own clock
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", budget, "--dump-dom", url],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout


def _plots(document: str) -> dict[str, str]:
    """Return the drawn plots by the ids of their elements."""
    parts = re.split(r'id="user-defined-plot:([^"]+)"', document)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_study_page_draws_our_plots(page: dict[str, Any], tmp_path: Path) -> None:
    plots = _plots(_document(page["address"], tmp_path))
    assert set(plots) == {"lr-curves", "heatmap"}
    curves, squares = plots["lr-curves"], plots["heatmap"]
    assert 'class="main-svg"' in curves
    names = re.findall(r'class="legendtext"[^>]*>([^<]+)<', curves)
    assert names[:2] == ["adam", "nero"]
    titles = re.findall(r'class="[xy]title"[^>]*>([^<]+)<', curves)
    assert titles[:2] == ["lr", "frechet_small (lower is better)"]
    assert len(re.findall(r'class="trace scatter', curves)) >= 2
    assert re.findall(r'class="[xy]title"[^>]*>([^<]+)<', squares)[:2] == ["lr", "beta1"]
    assert 'class="hm"' in squares


def test_the_note_is_shown(page: dict[str, Any], tmp_path: Path) -> None:
    document = _document(f"{page['address']}/note", tmp_path)
    assert re.search(r"<h2[^>]*>Do pictures show\?</h2>", document)
    assert "robustlr report pictures" in document


def test_a_trials_picture_is_shown(address: str, page: dict[str, Any], tmp_path: Path) -> None:
    document = _document(f"{page['address']}/trials?numbers=0", tmp_path)
    (source,) = set(re.findall(r'<img[^>]* src="(/artifacts/[^"]+)"', document))
    with urllib.request.urlopen(address + source) as answer:
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.read(8) == b"\x89PNG\r\n\x1a\n"
