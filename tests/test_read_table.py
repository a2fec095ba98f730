from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from robustlr.cli import app
from robustlr.errors import UserError
from robustlr.read_table import checked, doubts, read_table, taken
from robustlr.report import write_report
from robustlr.task import COLUMNS
from tests.test_analysis import _trials

PLAIN = """task,optimizer,lr,value
mnist,sgd,0.1,0.5
mnist,sgd,0.01,0.25
mnist,sgd,0.01,0.75
mnist,adam,0.1,nan
mnist,adam,0.01,0.2
"""


def _table(tmp_path: Path, text: str) -> pd.DataFrame:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return read_table(path)


def test_three_columns_and_a_hyperparameter_are_enough(tmp_path: Path) -> None:
    table = _table(tmp_path, PLAIN)
    assert list(table) == [*COLUMNS, "lr"]
    assert set(table["role"]) == {"design"}
    assert set(table["direction"]) == {"minimize"}
    assert table["seed"].tolist() == [0, 0, 1, 0, 0]  # repetitions of a setting
    assert table["diverged"].tolist() == [False, False, False, True, False]
    assert table["worst"].unique().tolist() == [0.75]  # the worst finite value seen
    assert table["value"].tolist() == [0.5, 0.25, 0.75, 0.75, 0.2]
    assert table["study"].unique().tolist() == ["table"]
    assert taken(table).startswith(
        "5 runs of 2 optimizers on 1 task, 1 diverged; hyperparameters: lr;"
    )


def test_a_comma_at_the_end_of_each_row_moves_no_column(tmp_path: Path) -> None:
    table = _table(tmp_path, "task,optimizer,value,lr\nt,a,0.5,2,\nt,a,0.25,3,\n")
    assert table[["task", "value", "lr"]].to_numpy().tolist() == [["t", 0.5, 2.0], ["t", 0.25, 3.0]]


def test_the_worst_value_is_given_or_the_median_initial_one(tmp_path: Path) -> None:
    initial = "task,optimizer,lr,value,initial\nt,a,1,0.5,2.0\nt,a,2,inf,3.0\nt,a,3,0.1,4.0\n"
    assert _table(tmp_path, initial)["worst"].unique().tolist() == [3.0]
    given = "task,optimizer,lr,value,initial,worst\nt,a,1,0.5,2.0,9\nt,a,2,inf,3.0,9\n"
    assert _table(tmp_path, given)["worst"].unique().tolist() == [9.0]
    reward = "task,optimizer,lr,value,direction\n"
    reward += "t,a,1,5,maximize\nt,a,2,nan,maximize\nt,a,3,1,maximize\n"
    assert _table(tmp_path, reward)["value"].tolist() == [5.0, 1.0, 1.0]


def test_our_own_table_is_what_it_was(tmp_path: Path) -> None:
    trials = _trials()
    trials.to_csv(tmp_path / "t.csv", index=False)
    table = read_table(tmp_path / "t.csv")
    trials["value"] = trials["value"].where(~trials["diverged"], trials["worst"])
    for name in ("task", "optimizer", "role", "seed", "value", "worst", "lr", "warmup"):
        np.testing.assert_array_equal(table[name], trials[name])
    assert set(table["conditions"]) == {"warmup"}


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    trials = _trials()
    trials.to_csv(tmp_path / "t.csv", index=False)
    trials.to_parquet(tmp_path / "t.parquet")
    one, other = read_table(tmp_path / "t.csv"), read_table(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(one, other)


def test_conditions_are_named_by_the_table_or_its_owner(tmp_path: Path) -> None:
    text = "task,optimizer,lr,depth,value\nt,a,1,2,0.5\nt,a,1,3,0.6\n"
    assert set(_table(tmp_path, text)["conditions"]) == {""}
    (tmp_path / "t.csv").write_text(text)
    assert set(read_table(tmp_path / "t.csv", ["depth"])["conditions"]) == {"depth"}
    named = "task,optimizer,lr,depth,value,conditions\nt,a,1,2,0.5,depth\nt,a,1,3,0.6,depth\n"
    assert set(_table(tmp_path, named)["conditions"]) == {"depth"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("task,optimizer,value\n", "has no rows"),
        ("task;optimizer;lr;value\nt;a;1;2\n", "not separated by commas"),
        ("task,optimiser,lr,value\nt,a,1,2\n", '"optimizer" is missing .did you mean "optimiser"'),
        ("tsk,optimizer,lr,loss\nt,a,1,2\n", '"task" is missing .did you mean "tsk"'),
        ("task,optimizer,lr,loss\nt,a,1,2\n", "there is: task, optimizer, lr, loss.; required are"),
        ("task,optimizer,value\nt,a,2\n", "no column is a hyperparameter: add lr"),
        ("task,optimizer,lr,value\nt,a,1,good\n", 'row 2: value = "good" is no number'),
        ("task,optimizer,lr,value\n,a,1,2\n", 'row 2: the column "task" is empty'),
        (
            "task,optimizer,lr,value,role\nt,a,1,2,design\nt,a,1,2,defalt\n",
            'row 3: role = "defalt"; did you mean "default"',
        ),
        (
            "task,optimizer,lr,value,direction\nt,a,1,2,min\n",
            'direction = "min"; did you mean "minimize"',
        ),
        (
            "task,optimizer,lr,value,direction\nt,a,1,2,minimize\nt,a,2,2,maximize\n",
            'task "t" has more than one direction',
        ),
        ("task,optimizer,lr,value,seed\nt,a,1,2,x\n", 'seed = "x" is no number'),
        ("task,optimizer,lr,value,seed\nt,a,1,2,1.5\n", "seed = 1.5 is no whole number"),
        ("task,optimizer,lr,value,seed\nt,a,1,2,1\nt,a,1,3,1\n", "row 3: an earlier row has"),
        ("task,optimizer,lr,value,diverged\nt,a,1,2,perhaps\n", "write true or false"),
        ("task,optimizer,lr,value\nt,a,1,nan\n", 'task "t" has no finite value'),
        ("task,optimizer,lr,value,worst\nt,a,1,2,1\n", "1, is better than all its values"),
        ("task,optimizer,lr,value,worst\nt,a,1,2,8\nt,a,2,2,9\n", "more than one worst"),
        ("task,optimizer,lr,value,conditions\nt,a,1,2,dept\n", 'is named "dept"'),
        ("task,optimizer,lr,value\nt,a,high,2\n", 'row 2: lr = "high" is no number'),
        ("task,optimizer,lr,value\nt,a,true,2\n", 'row 2: lr = "True" is no number'),
        ("task,optimizer,lr,value\nt,a,0.1,2\nt,a,0,2\n", "row 3: lr = 0 is not above 0"),
        ("task,optimizer,lr,lr,value\nt,a,1,2,3\n", 'two columns are named "lr"'),
        ("task|optimizer|lr|value\nt|a|1|2\n", "not separated by commas"),
        ("task,optimizer,value,lr\nt,a,1,2,,\nt,a,1,3,,\n", "more fields than its header"),
        ("task,optimizer,lr,value\nt,a,inf,2\n", "row 2: lr = inf is not finite"),
        ("task,optimizer,lr,wd,value\nt,a,1,1,2\nt,a,1,inf,2\n", "row 3: wd = inf is not"),
        ("task,optimizer,lr,value\nt,a,1,1e308\n", "row 2: value = 1e.308 is beyond"),
        ("task,optimizer,lr,loss,value\nt,a,1,2,3\n", '"loss" is computed here'),
        ("task,optimizer,lr,value,seed\nt,a,1,2,1e30\n", "is no whole number"),
        ("task,optimizer,lr,value,curve\nt,a,1,2,1=2=3\n", 'row 2: curve = "1=2=3"; write'),
        ('task,optimizer,lr,value\nt,a,1,"2\n', "no table of comma-separated values"),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as found:
        _table(tmp_path, text)
    assert "\n" not in str(found.value)
    assert str(found.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["no.csv", "folder.csv", "bytes.csv", "text.parquet", "no.parquet"]
)
def test_files_that_are_no_table_are_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "bytes.csv").write_bytes(bytes(range(256)))
    (tmp_path / "text.parquet").write_text("task,value\n")
    with pytest.raises(UserError) as found:
        read_table(tmp_path / name)
    assert "\n" not in str(found.value)


def test_columns_that_may_be_something_else_are_named() -> None:
    table = pd.DataFrame(
        {"task": "t", "optimizer": "a", "learning_rate": [1, 2], "value": 0.5, "dirction": "max"}
    )
    found = list(doubts(checked(table, "x")))
    assert found == [
        'the column "dirction" is taken for a hyperparameter; did you mean "direction"?',
        'the column "learning_rate" is no learning rate to robustlr unless it is named lr',
    ]
    assert not list(doubts(checked(_trials(), "x")))
    named = checked(_trials().assign(run=[f"run-{n}" for n in range(len(_trials()))]), "x")
    (doubt,) = doubts(named)
    assert 'the column "run" differs in every row' in doubt


def test_what_is_taken_for_granted_is_said() -> None:
    table = pd.DataFrame({"task": ["t", "u"], "optimizer": "a", "lr": 0.1, "value": [0.5, 0.2]})
    said = taken(checked(table, "x"))
    assert said == (
        "2 runs of 1 optimizer on 2 tasks, 0 diverged; hyperparameters: lr; conditions: none; lower "
        "values are better; having learnt nothing is worth 0.5 on t, 0.2 on u"
    )
    other = taken(checked(table.assign(direction=["minimize", "maximize"]), "x"))
    assert "better values are lower on t, higher on u" in other


def test_names_may_be_anything(tmp_path: Path) -> None:
    """Formulas, letters that no font has, paths, and names as long as a file's cannot be."""
    names = [r"$\frac$", "猫", "a/b", "a-b", "a:b", "<b>", "x" * 300]
    table = pd.concat([_trials().assign(task=name, metric="error") for name in names])
    write_report(checked(table, "x", ["warmup"]), tmp_path / "out", only=["lr-curves"])
    page = (tmp_path / "out" / "report-lr-curves.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(names) == len(list((tmp_path / "out").glob("*.png")))


def test_a_pair_of_betas_is_a_hyperparameter(tmp_path: Path) -> None:
    table = _trials()
    table["betas"] = [[0.9, 0.99]] * len(table)
    table.to_parquet(tmp_path / "t.parquet")
    assert set(read_table(tmp_path / "t.parquet")["betas"]) == {"[0.9, 0.99]"}


def test_an_optimizer_without_hyperparameters_has_a_report(tmp_path: Path) -> None:
    rows = [
        f"t,{name},{lr},{momentum},{seed},{value}"
        for name, lr, momentum, value in (
            ("sgd", 0.1, "", 0.2),
            ("sgd", 0.1, 0.9, 0.3),
            ("sgd", 1, "", 0.9),
            ("sgd", 1, 0.9, 0.8),
            ("dadapt", "", "", 0.25),
        )
        for seed in range(2)
    ]
    text = "\n".join(["task,optimizer,lr,momentum,seed,value", *rows])
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    table, out = str(tmp_path / "t.csv"), tmp_path / "r"
    done = CliRunner().invoke(app, ["analyze", table, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    points = pd.read_csv(out / "near_optimal.csv").set_index("optimizer")["points"]
    assert points.to_dict() == {"sgd": 4, "dadapt": 1}


def test_a_table_without_a_study_has_a_report(tmp_path: Path) -> None:
    table = _table(tmp_path, PLAIN)
    page = write_report(table, tmp_path / "r", title="mine")
    html = page.read_text(encoding="utf-8")
    assert "<h1>mine</h1>" in html
    assert "hours of training" not in html
