import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from robustlr.errors import UserError
from robustlr.registry import analyses
from robustlr.report import write_report
from robustlr.status import Progress
from robustlr.study import Study
from tests.helpers import study_from
from tests.test_analysis import HARD, _trials

DONE = Progress(waiting=0, running=0, complete=len(_trials()), failed=0, diverged=0)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_from(tmp_path, 'question = "Is 1 < 2 & 3?"\n[optimizers.adamw]\n')


def test_the_report_holds_every_table_picture_and_number(tmp_path: Path, study: Study) -> None:
    page = write_report(_trials(), tmp_path / "r", study=study, progress=DONE)
    html = page.read_text(encoding="utf-8")
    for name, module in analyses().items():
        stem = name.replace("-", "_")
        table = pd.read_csv(tmp_path / "r" / f"{stem}.csv")
        assert len(table) == len(module.compute(_trials()))
        assert list((tmp_path / "r").glob(f"{stem}*.png"))
        assert module.TITLE in html
    assert {path.name for path in (tmp_path / "r").glob("heatmap-*.png")} == {
        "heatmap-flat.png",
        "heatmap-steep.png",
    }
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "r" / "trials.csv"), _trials())
    assert "Is 1 &lt; 2 &amp; 3?" in html


def test_names_in_the_method_are_marked_as_code(tmp_path: Path, study: Study) -> None:
    html = write_report(_trials(), tmp_path, study=study, progress=DONE).read_text(encoding="utf-8")
    assert "<code>gap</code>" in html
    assert "&lt;code&gt;" not in html


def test_the_report_is_one_self_contained_file(tmp_path: Path, study: Study) -> None:
    html = write_report(_trials(), tmp_path, study=study, progress=DONE).read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert re.findall(r"<img [^>]*alt=\"[^\"]{20,}\"", html)
    assert "http" not in html
    assert len(re.findall(r"<img ", html)) == len(re.findall(r"<img [^>]*alt=", html))


@pytest.mark.parametrize("case", [case for case in HARD if case != "no trials"])
def test_any_trials_give_a_report(case: str, tmp_path: Path, study: Study) -> None:
    html = write_report(HARD[case], tmp_path, study=study, progress=DONE).read_text(
        encoding="utf-8"
    )
    if case == "no conditions":
        assert "These trials cannot answer it" in html


def test_a_report_can_be_on_some_analyses_only(tmp_path: Path, study: Study) -> None:
    write_report(_trials(), tmp_path / "r", study=study, progress=DONE, only=["gap"])
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "gap.csv",
        "gap.png",
        "report.html",
        "trials.csv",
    }
    with pytest.raises(UserError, match='did you mean "gap"'):
        write_report(_trials(), tmp_path, study=study, progress=DONE, only=["gaps"])


def test_no_trials_and_no_folder_are_one_sentence(tmp_path: Path, study: Study) -> None:
    with pytest.raises(UserError, match="no finished trial yet: robustlr worker test"):
        write_report(HARD["no trials"], tmp_path, study=study, progress=DONE)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(_trials(), tmp_path / "file", study=study, progress=DONE)


def test_the_report_says_what_is_missing(tmp_path: Path, study: Study) -> None:
    page = write_report(_trials(), tmp_path, study=study, progress=DONE)
    assert "trials are finished" not in page.read_text(encoding="utf-8")
    partial = replace(DONE, failed=2, waiting=3)
    page = write_report(_trials(), tmp_path, study=study, progress=partial)
    html = " ".join(page.read_text(encoding="utf-8").split())
    assert f"{DONE.complete} of {DONE.complete + 5} trials are finished, and 2 failed" in html


def test_a_table_that_says_nothing_is_still_a_table(tmp_path: Path, study: Study) -> None:
    write_report(HARD["no conditions"], tmp_path, study=study, progress=DONE)
    assert pd.read_csv(tmp_path / "warmup.csv").empty
