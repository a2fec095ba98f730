import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

from robustlr.analysis import conditions
from robustlr.errors import UserError
from robustlr.registry import analyses
from robustlr.report import write_report
from robustlr.status import Progress
from robustlr.study import Study
from tests.helpers import study_from
from tests.test_analysis import HARD, _trials, _two_tasks

DONE = Progress(waiting=0, running=0, complete=len(_trials()), failed=0, diverged=0)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_from(tmp_path, 'question = "Is 1 < 2 & 3?"\n[optimizers.adamw]\n')


def test_the_report_holds_every_table_picture_and_number(tmp_path: Path, study: Study) -> None:
    page = write_report(_two_tasks(), tmp_path / "r", study=study, progress=DONE)
    html = page.read_text(encoding="utf-8")
    for name, module in analyses().items():
        stem = name.replace("-", "_")
        table = pd.read_csv(tmp_path / "r" / f"{stem}.csv")
        assert len(table) == len(module.compute(_two_tasks()))
        assert list((tmp_path / "r").glob(f"{stem}*.png"))
        assert str(escape(module.TITLE)) in html
    drawn = {path.name for path in (tmp_path / "r").glob("heatmap-*.png")}
    assert drawn == {"heatmap-t.png", "heatmap-u.png", "heatmap-worst-task.png"}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "r" / "trials.csv"), _two_tasks())
    assert "Is 1 &lt; 2 &amp; 3?" in html
    assert "fresh one" not in html


def test_seeds_that_confirm_are_counted_apart(tmp_path: Path, study: Study) -> None:
    trials = _trials(seeds=3)
    fresh = trials[trials["role"] == "default"].assign(role="confirm-default", seed=7)
    page = write_report(
        pd.concat([trials, fresh]), tmp_path, study=study, progress=DONE, only=["gap"]
    )
    assert "3 seeds and 1 fresh one to confirm, " in page.read_text(encoding="utf-8")


def test_the_report_is_one_self_contained_file(tmp_path: Path, study: Study) -> None:
    html = write_report(_trials(), tmp_path, study=study, progress=DONE).read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert re.findall(r"<img [^>]*alt=\"[^\"]{20,}\"", html)
    assert "http" not in html
    assert "<code>gap</code>" in html
    assert "&lt;code&gt;" not in html
    assert len(re.findall(r"<img ", html)) == len(re.findall(r"<img [^>]*alt=", html))


@pytest.mark.parametrize("case", ["one trial", "not numbers", "no conditions", "only adaptive"])
def test_any_trials_give_a_report(case: str, tmp_path: Path, study: Study) -> None:
    html = write_report(HARD[case], tmp_path, study=study, progress=DONE).read_text(
        encoding="utf-8"
    )
    for module in analyses().values():
        table = module.compute(HARD[case])
        if table.empty:
            assert str(escape(module.verdict(table))) in html


def test_a_report_can_be_on_some_analyses_only(tmp_path: Path, study: Study) -> None:
    write_report(_trials(), tmp_path / "r", study=study, progress=DONE, only=["gap"])
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "gap.csv",
        "gap.png",
        "gap.tex",
        "report-gap.html",
        "trials.csv",
        "trials.parquet",
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
    page = write_report(_trials(), tmp_path, study=study, progress=DONE, only=["gap"])
    assert "trials are finished" not in page.read_text(encoding="utf-8")
    partial = replace(DONE, failed=2, waiting=3)
    page = write_report(_trials(), tmp_path, study=study, progress=partial, only=["gap"])
    html = " ".join(page.read_text(encoding="utf-8").split())
    assert f"{DONE.complete} of {DONE.complete + 5} trials are finished, and 2 failed" in html


def test_a_table_that_says_nothing_is_still_a_table(tmp_path: Path, study: Study) -> None:
    write_report(HARD["no conditions"], tmp_path, study=study, progress=DONE, only=["warmup"])
    assert pd.read_csv(tmp_path / "warmup.csv").empty


def test_the_summary_has_every_verdict_and_pictures_say_theirs(
    tmp_path: Path, study: Study
) -> None:
    html = write_report(_trials(), tmp_path, study=study, progress=DONE).read_text(encoding="utf-8")
    for name, module in analyses().items():
        assert f'<a href="#{name}">{escape(module.TITLE)}</a>' in html
    verdict = conditions.verdict(conditions.compute(_trials()))
    assert html.count(verdict) == 3  # on top, in its section, and in its picture's alternative
    assert f"{verdict} The numbers are in conditions.csv." in html


def test_long_tables_are_cut_on_the_page_and_whole_in_their_file(
    tmp_path: Path, study: Study
) -> None:
    names = [f"optimizer{index}" for index in range(30)]
    curves: dict[str, tuple[float, ...]] = dict.fromkeys(names, (0.2, 0.1, 0.1, 0.2))
    page = write_report(_trials(curves), tmp_path, study=study, progress=DONE, only=["lr-curves"])
    html = page.read_text(encoding="utf-8")
    assert "The first 200 of 240 rows" in " ".join(html.split())
    assert html.count("<td>optimizer") == 200
    assert len(pd.read_csv(tmp_path / "lr_curves.csv")) == 240


def test_trials_are_kept_as_parquet_whatever_their_settings_are(
    tmp_path: Path, study: Study
) -> None:
    mixed = _trials().assign(norm=lambda t: ["rms" if i % 2 else 1.5 for i in range(len(t))])
    write_report(mixed, tmp_path, study=study, progress=DONE, only=["gap"])
    back = pd.read_parquet(tmp_path / "trials.parquet")
    assert back["norm"].tolist()[:2] == ["1.5", "rms"]
    np.testing.assert_array_equal(back["value"], mixed["value"])


def test_the_verdict_on_conditions_claims_what_intervals_hold() -> None:
    trials = _trials({"flat": (0.2, 0.1, 0.1, 0.2)})
    said = conditions.verdict(conditions.compute(trials))
    assert "warmup surely changes the tuned result in 0 of 1 case" in said
    apart = trials.assign(value=trials["value"] + 0.3 * trials["warmup"])
    assert "in 1 of 1 case" in conditions.verdict(conditions.compute(apart))
    depth = pd.concat(
        [apart.assign(task=task, depth=of) for task, of in (("t", 2), ("t", 3), ("u", 2))]
    ).assign(conditions="depth warmup")
    said = conditions.verdict(conditions.compute(depth))
    assert "depth surely changes the tuned result in 0 of 2 cases" in said  # on t, not on u
    other = depth[(depth["task"] == "u") | (depth["depth"] == 3)]
    said = conditions.verdict(conditions.compute(other))
    assert "depth has a single value wherever all else is equal." in said
    assert "depth surely" not in said
    assert "at least two" in conditions.verdict(conditions.compute(_trials(seeds=1)))
    assert "No condition varies" in conditions.verdict(conditions.compute(HARD["no conditions"]))
