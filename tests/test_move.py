import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustlr.errors import UserError
from robustlr.move import VERSION, export_study, import_study, read_export
from robustlr.storage import Storage
from robustlr.study import Study
from robustlr.task import Outcome
from tests.helpers import study_from

TEXT = """
seeds = 2
[conditions]
warmup = [true, false]
[optimizers.nero]
lr = [0.01, 0.1]
[optimizers.adamw]
lr = [0.001, 0.1]
weight_decay = [0.0, 0.1]
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_from(tmp_path, TEXT)


def _run_some(storage: Storage, study: Study) -> None:
    """Complete trials, one of them diverged, fail one, and leave one running."""
    storage.create_study(study)
    for index in range(6):
        claim = storage.claim(study.name, "me:1:cpu:0")
        assert claim is not None
        storage.report(claim, {1: 0.5, 2: float("inf"), 3: float("nan")})
        if index < 4:
            outcome = Outcome(value=0.1 * index, diverged=index == 3, initial=2.0, steps=3)
            storage.complete(claim, outcome, {"seconds": 1.5, "device": "cpu"})
        elif index == 4:
            storage.fail(claim, "out of luck")


@pytest.fixture
def exported(tmp_path: Path, study: Study) -> Path:
    """A study's file, from a database in SQLite."""
    with Storage(f"sqlite:///{tmp_path}/first.db", create=True) as first:
        _run_some(first, study)
        export_study(first, study.name, tmp_path / "study.json.gz")
    return tmp_path / "study.json.gz"


def test_a_study_moves_with_everything_that_it_has(
    storage: Storage, study: Study, exported: Path, tmp_path: Path
) -> None:
    storage.create_study(study_from(tmp_path, 'name = "other"\n' + TEXT))  # so that ids differ
    assert import_study(storage, read_export(exported)) == ("test", 32)
    first = Storage(f"sqlite:///{tmp_path}/first.db")
    assert storage.load_study(study.name) == first.load_study(study.name)
    ours, theirs = (each.trials(study.name, curves=True) for each in (storage, first))
    pd.testing.assert_frame_equal(ours, theirs)
    assert ours["curve"].tolist() == ["1=0.5 2=inf 3=nan"] * 4
    assert ours["diverged"].tolist() == [False, False, False, True]
    assert storage.descriptions(study.name) == first.descriptions(study.name)
    assert storage.failures(study.name) == {"out of luck": 1}
    counts = vars(storage.progress(study.name))
    assert (counts["running"], counts["waiting"], counts["complete"]) == (0, 27, 4)
    again = tmp_path / "again.json"
    export_study(storage, study.name, again)
    assert _without_ids(json.loads(again.read_text())) == _without_ids(
        json.loads(gzip.decompress(exported.read_bytes()))
    )
    first.engine.dispose()


def _without_ids(document: dict[str, Any]) -> dict[str, Any]:
    """Number a document's cells and trials from 0, as databases give them other numbers."""
    tables = document["tables"]
    del document["sha256"]
    for name, of in (("study_id", "studies"), ("trial_id", "trials")):
        columns, rows = tables[of]["columns"], tables[of]["rows"]
        numbers = {row[columns.index(name)]: index for index, row in enumerate(rows)}
        for table in tables.values():
            if name in table["columns"]:
                at = table["columns"].index(name)
                for row in table["rows"]:
                    row[at] = numbers[row[at]]
    return document


def test_an_imported_study_goes_on(storage: Storage, study: Study, exported: Path) -> None:
    import_study(storage, read_export(exported))
    storage.requeue_failed(study.name)
    done = 0
    while claim := storage.claim(study.name, "you:1:cpu:0"):
        done += storage.complete(claim, Outcome(value=0.5), {"seconds": 1.0})
    assert done == 28
    assert len(storage.trials(study.name)) == 32


def test_a_study_leaves_any_database(storage: Storage, study: Study, tmp_path: Path) -> None:
    _run_some(storage, study)
    assert export_study(storage, study.name, tmp_path / "s.json") == 32
    with Storage(f"sqlite:///{tmp_path}/second.db", create=True) as second:
        import_study(second, read_export(tmp_path / "s.json"))
        pd.testing.assert_frame_equal(second.trials("test"), storage.trials("test"))


def test_all_of_it_is_imported_or_nothing(
    storage: Storage, study: Study, exported: Path, tmp_path: Path
) -> None:
    document = read_export(exported)
    document["tables"]["trial_values"]["rows"][-1][0] = 10**6  # a trial that is not there
    with pytest.raises(UserError, match="nothing was imported"):
        import_study(storage, document)
    assert storage.study_names() == []
    assert storage.cells(study.name) == []


@pytest.mark.parametrize("table", ["trial_params", "study_user_attributes"])
def test_a_file_that_lost_a_row_is_refused(table: str, exported: Path, tmp_path: Path) -> None:
    document = json.loads(gzip.decompress(exported.read_bytes()))
    document["tables"][table]["rows"].pop()
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"damaged\.json is damaged"):
        read_export(damaged)


def test_a_name_that_exists_is_refused(storage: Storage, study: Study, exported: Path) -> None:
    import_study(storage, read_export(exported))
    with pytest.raises(UserError, match=r'"test" is in .* already'):
        import_study(storage, read_export(exported))
    assert len(storage.trials(study.name)) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no study"),
        (b"\x1f\x8bnonsense", "cannot be read|is no study"),
        (b"[1]", "is no study"),
        (b'{"format": "robustlr study", "version": 99}', "another version"),
        (f'{{"format": "robustlr study", "version": {VERSION}}}'.encode(), "is damaged"),
    ],
)
def test_files_that_are_no_study_are_one_sentence(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_export(path)


def test_a_file_is_not_overwritten_and_must_be_there(
    study: Study, exported: Path, tmp_path: Path
) -> None:
    with Storage(f"sqlite:///{tmp_path}/first.db") as storage:
        with pytest.raises(UserError, match="exists; name another file"):
            export_study(storage, study.name, exported)
        with pytest.raises(UserError, match="cannot be written"):
            export_study(storage, study.name, tmp_path / "no" / "folder.json")
        with pytest.raises(UserError, match="cannot be read: No such file"):
            read_export(tmp_path / "nothing")
    assert not list(tmp_path.glob(".*"))
