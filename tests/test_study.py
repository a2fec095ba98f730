from pathlib import Path

import pytest

from robustlr.errors import UserError
from robustlr.registry import load_task, studies
from robustlr.study import Study, difference, load_study
from tests.helpers import study_from

HEAD = 'name = "test"\ntasks = ["digits-mlp"]\n'
NERO = "[optimizers.nero]\n"

ERRORS = {
    "unknown key": (HEAD + 'desing = "grid"\n' + NERO, ['"desing"', 'did you mean "design"?']),
    "unknown design": (HEAD + 'design = "gird"\n' + NERO, ['design = "gird"', '"grid"']),
    "unknown task": (
        'name="t"\ntasks=["digit-mlp"]\n' + NERO,
        ["tasks", '"digit-mlp"', '"digits-mlp"'],
    ),
    "unknown optimizer": (HEAD + "[optimizers.neor]\n", ["optimizers.neor", '"nero"']),
    "unknown optimizer with values": (
        HEAD + "[optimizers.neor]\nlr = [0.1]\n",
        ["optimizers.neor", '"nero"'],
    ),
    "unknown hyperparameter": (
        HEAD + "[optimizers.adamw]\nlr = [0.1]\nmomentum = [0.9]\n",
        ["optimizers.adamw", 'no hyperparameter "momentum"', "lr, beta1, beta2, eps, weight_decay"],
    ),
    "nearest hyperparameter": (
        HEAD + "[optimizers.adamw]\nlr = [0.1]\nweight_decy = [0.9]\n",
        ['"weight_decy"', 'did you mean "weight_decay"?'],
    ),
    "unknown default": (
        HEAD + "[optimizers.adamw]\nlr = [0.1]\n[optimizers.adamw.default]\nlrr = 0.1\n",
        ['no hyperparameter "lrr"', 'did you mean "lr"?'],
    ),
    "unknown key of an interval": (
        HEAD + "[optimizers.nero]\nlr = { log = [0.1, 1.0], pionts = 3 }\n",
        ["optimizers.nero.lr.pionts", 'did you mean "points"?'],
    ),
    "unknown condition": (
        HEAD + "[conditions]\nwarmpu = [true]\n" + NERO,
        ['"warmpu"', 'did you mean "warmup"?'],
    ),
    "label smoothing beyond a share": (
        HEAD + "[conditions]\nlabel_smoothing = [1.5]\n" + NERO,
        ["conditions.label_smoothing = 1.5", "a share below 1"],
    ),
    "a penalty on gains that are not there": (
        HEAD + "[conditions]\ngain_penalty = [0.0, 1.0]\n" + NERO,
        ["conditions.gain_penalty = 1", "no normalisation with gains"],
    ),
    "an option of the wrong type": (
        HEAD + "[conditions]\ndepth = [2.5]\n" + NERO,
        ["conditions.depth = 2.5", "a whole number"],
    ),
    "an option that no model can be built with": (
        HEAD + "[conditions]\nwidth = [-3]\n" + NERO,
        ["no model can be built with", "width = -3"],
    ),
    "an unknown value of an option": (
        'name="t"\ntasks=["digits-resnet"]\n[conditions]\nnorm=["bach"]\n' + NERO,
        ['"bach"', 'did you mean "batch"?'],
    ),
    "an option that is no single value": (
        'name="t"\ntasks=["digits-resnet"]\n[conditions]\nblocks=[2]\n' + NERO,
        ["conditions.blocks", "cannot be varied"],
    ),
    "another vocabulary, which would change what a perplexity means": (
        'name="t"\ntasks=["pydoc-lm"]\n[conditions]\nvocabulary=[2000]\n' + NERO,
        ['"vocabulary"', "condition of pydoc-lm"],
    ),
    "both weight decay and its product with the learning rate": (
        HEAD + "[optimizers.adamw]\nlr=[0.1]\nweight_decay=[0.1]\nlr_times_weight_decay=[0.1]\n",
        ["optimizers.adamw", "not both"],
    ),
    "a product with a weight decay that the optimizer does not have": (
        HEAD + "[optimizers.nero]\nlr=[0.1]\nlr_times_weight_decay=[0.1]\n",
        ['nero has no hyperparameter "lr_times_weight_decay"'],
    ),
    "fewer labels than classes": (
        'name="t"\ntasks=["digits-cgan"]\n[conditions]\nlabels=[5]\n' + NERO,
        ["labels = 5", "10 classes"],
    ),
    "a condition named as a hyperparameter": (
        'name="t"\ntasks=["digits-cgan"]\n[conditions]\nmomentum=[0.1]\n'
        "[optimizers.sgdm]\nlr=[0.1]\nmomentum=[0.9, 0.0]\n",
        ["conditions.momentum", "a column of that name already"],
    ),
    "unknown scale": (HEAD + 'scale = "papr"\n' + NERO, ['"papr"', "small"]),
    "unknown class": (
        HEAD + '[optimizers.m]\nclass = "torch.optim:Moun"\nlr = [0.1]\n',
        ["optimizers.m", '"Moun"', 'did you mean "Muon"?'],
    ),
    "unknown module": (
        HEAD + '[optimizers.m]\nclass = "torch.optm:Muon"\nlr = [0.1]\n',
        ['"torch.optm:Muon" cannot be imported'],
    ),
    "no optimizer class": (
        HEAD + '[optimizers.m]\nclass = "torch.nn:Linear"\nlr = [0.1]\n',
        ['"torch.nn:Linear" is no subclass of torch.optim.Optimizer'],
    ),
    "no task": (
        'name="t"\ntasks=["torch:nn"]\n' + NERO,
        ["tasks", '"torch:nn" is no robustlr.task.Task'],
    ),
    "wrong type": (HEAD + 'seeds = "three"\n' + NERO, ['seeds = "three"', "whole number"]),
    "wrong type of a list": (
        'name="t"\ntasks="digits-mlp"\n' + NERO,
        ['tasks = "digits-mlp"', "a list"],
    ),
    "wrong type of a table": (
        HEAD + "[optimizers]\nnero = 3\n",
        ["optimizers.nero = 3", "a table"],
    ),
    "wrong type of a value": (
        HEAD + "[optimizers.nero]\nlr = [[1]]\n",
        ["optimizers.nero.lr.0 = [1]"],
    ),
    "wrong name": ('name="a b"\ntasks=["digits-mlp"]\n' + NERO, ['name = "a b"']),
    "no seeds": (HEAD + "seeds = 0\n" + NERO, ["seeds = 0", "greater than or equal to 1"]),
    "empty grid": (HEAD + "[optimizers.nero]\nlr = []\n", ["optimizers.nero.lr is empty"]),
    "empty tasks": ('name="t"\ntasks=[]\n' + NERO, ["tasks is empty"]),
    "empty condition": (
        HEAD + "[conditions]\nwarmup = []\n" + NERO,
        ["conditions.warmup is empty"],
    ),
    "no optimizers": (HEAD, ["the key optimizers is missing"]),
    "empty optimizers": (HEAD + "[optimizers]\n", ["optimizers is empty"]),
    "zero lr": (
        HEAD + "[optimizers.nero]\nlr = [0.0]\n",
        ["optimizers.nero", "lr = 0.0", "above 0"],
    ),
    "negative lr": (HEAD + "[optimizers.nero]\nlr = -1\n", ["lr = -1", "above 0"]),
    "negative lr interval": (
        HEAD + "[optimizers.nero]\nlr = { linear = [-1.0, 1.0], points = 2 }\n",
        ["lr = -1.0", "above 0"],
    ),
    "zero lr in an interval": (
        HEAD + "[optimizers.nero]\nlr = { log = [0.0, 1.0], points = 2 }\n",
        ["optimizers.nero.lr", "above 0"],
    ),
    "lr is text": (
        HEAD + '[optimizers.nero]\nlr = "high"\n',
        ['lr = "high"', "a number above 0"],
    ),
    "decay is text": (
        HEAD + '[optimizers.adamw]\nlr = [0.1]\nweight_decay = ["high"]\n',
        ["optimizers.adamw", 'weight_decay = "high"', "a number"],
    ),
    "switch is text": (
        HEAD + '[optimizers.nero]\nlr = [0.1]\ncenter = ["no"]\n',
        ['center = "no"', "true or false"],
    ),
    "refused value": (
        HEAD + "[optimizers.adamw]\nlr = [0.1]\nweight_decay = [0.1, -0.1]\n",
        ["optimizers.adamw", "adamw refuses lr = 0.1, weight_decay = -0.1"],
    ),
    "refused interval": (
        HEAD + "[optimizers.adamw]\nlr = [0.1]\nbeta1 = { linear = [0.5, 1.5], points = 2 }\n",
        ["adamw refuses lr = 0.1, beta1 = 1.5"],
    ),
    "refused default": (
        HEAD + "[optimizers.nero]\nlr = [0.1]\n[optimizers.nero.default]\nlr = -1.0\n",
        ["lr = -1.0", "above 0"],
    ),
    "not finite": (HEAD + "[optimizers.nero]\nlr = [0.1, inf]\n", ["lr", "finite"]),
    "default not finite": (
        HEAD + "[optimizers.nero]\nlr = [0.1]\n[optimizers.nero.default]\nlr = nan\n",
        ["lr = nan", "finite"],
    ),
    "needs a closure": (
        HEAD + '[optimizers.l]\nclass = "torch.optim:LBFGS"\nlr = [0.1]\n',
        ["optimizers.l", "torch.optim:LBFGS refuses lr = 0.1", "closure"],
    ),
    "class is a number": (
        HEAD + "[optimizers.m]\nclass = 3\nlr = [0.1]\n",
        ["optimizers.m.class = 3"],
    ),
    "malformed name": (
        'name="t"\ntasks=[":x"]\n' + NERO,
        ["tasks", '":x"', "package.module:object"],
    ),
    "condition of a function": (
        'name="t"\ntasks=["tests.helpers:counted"]\n[conditions]\nwarmup=[true]\n' + NERO,
        ["no condition of counted", '"warmup"'],
    ),
    "long name": (f'name="{"a" * 101}"\ntasks=["digits-mlp"]\n' + NERO, ["name", "100"]),
    "lr missing": (HEAD + "[optimizers.nero]\nbeta = [0.9]\n", ["values for lr are missing"]),
    "interval without points": (
        HEAD + "[optimizers.nero]\nlr = { log = [0.1, 1.0] }\n",
        ["optimizers.nero", "points = 5"],
    ),
    "reversed interval": (
        HEAD + "[optimizers.nero]\nlr = { log = [1.0, 0.1], points = 2 }\n",
        ["low must be below high"],
    ),
    "no default": (
        HEAD + '[optimizers.a]\nclass = "adamw"\nlr = [0.1]\nbetas = [0.9]\n',
        ['no hyperparameter "betas"', '"beta'],
    ),
    "duplicate task": (
        'name="t"\ntasks=["digits-mlp", "digits-mlp"]\n' + NERO,
        ["tasks", "'digits-mlp' is listed twice"],
    ),
    "duplicate value": (HEAD + "[optimizers.nero]\nlr = [0.1, 0.1]\n", ["lr", "listed twice"]),
    "duplicate condition": (
        HEAD + "[conditions]\nwarmup = [true, true]\n" + NERO,
        ["listed twice"],
    ),
    "duplicate optimizer": (HEAD + NERO + NERO, ["not valid TOML", "'nero'", "twice", "line 4"]),
    "points of a grid": (HEAD + "points = 3\n" + NERO, ["points = 3"]),
    "no points": (HEAD + 'design = "sobol"\n' + NERO, ["points", "is missing"]),
    "wrong warmup": (HEAD + '[conditions]\nwarmup = ["x"]\n' + NERO, ['conditions.warmup = "x"']),
    "wrong schedule": (HEAD + '[conditions]\nschedule = ["cosin"]\n' + NERO, ['"cosin"', "cosine"]),
    "wrong batch size": (
        HEAD + "[conditions]\nbatch_size = [0]\n" + NERO,
        ["conditions.batch_size = 0"],
    ),
    "broken TOML": ("name = \n", ["not valid TOML", "line 1"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_file_the_key_the_value_and_the_nearest_name(
    case: str, tmp_path: Path
) -> None:
    text, expected = ERRORS[case]
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_study(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1, message
    for part in expected:
        assert part in message, message


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(UserError, match='did you mean "quickstart"'):
        load_study("quickstrat")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_study(path)


def test_all_errors_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        study_from(tmp_path, 'seeds = 0\ndesign = "gird"\n' + NERO)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("name", studies())
def test_every_study_that_ships_parses_and_expands_at_every_scale(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.question
    assert all(cell.trials() for cell in study.cells())
    common = set.intersection(*(set(load_task(task).scales) for task in study.tasks))
    assert study.scale in common
    for scale in common - {study.scale}:
        other = load_study(name, scale)
        assert (other.name, other.scale) == (f"{name}-{scale}", scale)
        assert all(cell.trials() for cell in other.cells())


def test_a_scale_can_change_what_its_table_says(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    text = 'name = "s"\nseeds = 1\ntasks = ["cifar10-resnet20"]\n[optimizers.nero]\n'
    path.write_text(text + "[scales.paper]\nseeds = 5\n")
    small, paper = load_study(path), load_study(path, "paper")
    assert (small.name, small.seeds, small.scale) == ("s", 1, "small")
    assert (paper.name, paper.seeds, paper.scale) == ("s-paper", 5, "paper")
    assert load_study(path, "small") == small
    path.write_text(text + "[scales.paper]\nsedes = 5\n")
    with pytest.raises(UserError, match='did you mean "seeds"'):
        load_study(path, "paper")
    with pytest.raises(UserError, match=r'scales.paper: .*did you mean "seeds"'):
        load_study(path)
    with pytest.raises(UserError, match='"papr"'):
        load_study(path, "papr")
    path.write_text(text + "[scales.small]\nseeds = 5\n")
    with pytest.raises(UserError, match="the file's own scale"):
        load_study(path)
    path.write_text(text + "[scales.paper.optimizers.adam]\nlr = [0.1]\n")
    assert list(load_study(path, "paper").optimizers) == ["nero", "adam"]
    path.write_text(text + "[scales.papr]\nseeds = 5\n")
    with pytest.raises(UserError, match='did you mean "paper"'):
        load_study(path)


def test_a_study_expands_to_every_point_and_seed(tmp_path: Path) -> None:
    study = study_from(
        tmp_path,
        "seeds = 2\n[conditions]\nwarmup = [true, false]\n"
        "[optimizers.adamw]\nlr = { log = [0.001, 0.1], points = 3 }\nweight_decay = [0.0, 0.1]\n",
    )
    cells = list(study.cells())
    assert [cell.name for cell in cells] == [
        "test/digits-mlp/adamw/warmup=true",
        "test/digits-mlp/adamw/warmup=false",
    ]
    trials = cells[0].trials()
    assert len(trials) == 2 * (1 + 3 * 2)
    assert [t.point for t in trials if t.role == "default"] == [
        {"lr": 1e-3, "weight_decay": 0.01}
    ] * 2
    design = [(t.seed, *(t.point or {}).values()) for t in trials if t.role == "design"]
    assert len(set(design)) == 12
    assert {seed for seed, *_ in design} == {0, 1}


def test_a_fixed_hyperparameter_is_fixed_for_the_default_too(tmp_path: Path) -> None:
    study = study_from(
        tmp_path,
        "[optimizers.sgd]\nlr = [0.1, 1.0]\nmomentum = 0.9\n[optimizers.sgd.default]\nlr = 0.5\n",
    )
    (cell,) = study.cells()
    assert cell.default_point() == {"lr": 0.5, "momentum": 0.9}


def test_an_optimizer_without_values_uses_its_own_space(tmp_path: Path) -> None:
    study = study_from(tmp_path, "[optimizers.adamw]\n[optimizers.plain]\nclass = 'sgd'\n")
    assert list(study.optimizers["adamw"].space) == ["lr", "weight_decay"]
    assert list(study.optimizers["plain"].space) == ["lr"]


@pytest.mark.parametrize("design", ["random", "sobol", "tpe"])
def test_other_designs_have_as_many_points_as_asked(design: str, tmp_path: Path) -> None:
    study = study_from(
        tmp_path,
        f'design = "{design}"\npoints = 7\nseeds = 2\n[optimizers.nero]\nlr = {{ log = [1e-4, 1.0] }}\n',
    )
    (cell,) = study.cells()
    role = "adaptive" if design == "tpe" else "design"
    assert sum(trial.role == role for trial in cell.trials()) == 14


def test_points_are_the_same_for_every_task_and_condition(tmp_path: Path) -> None:
    study = study_from(
        tmp_path,
        'tasks = ["digits-mlp", "digits-cnn"]\ndesign = "random"\npoints = 3\n'
        "[conditions]\nwarmup = [true, false]\n[optimizers.nero]\nlr = { log = [1e-4, 1.0] }\n",
    )
    assert len({str([t.point for t in cell.trials()]) for cell in study.cells()}) == 1


def test_equal_studies_have_equal_hashes_whatever_their_files_look_like(tmp_path: Path) -> None:
    one = study_from(tmp_path, "[optimizers.nero]\nlr=[0.1]\n[optimizers.sgd]\nlr=[1.0]\n")
    two = study_from(
        tmp_path, 'question = "?"\n[optimizers]\nsgd = { lr = 1.0 }\nnero = { lr = [0.1] }\n'
    )
    assert one.hash == two.hash
    assert one.hash != one.model_copy(update={"seeds": 4}).hash


def test_one_and_one_point_zero_are_one_study(tmp_path: Path) -> None:
    one = study_from(tmp_path, "[optimizers.nero]\nlr = [1]\n")
    two = study_from(tmp_path, "[optimizers.nero]\nlr = [1.0]\n")
    assert one.hash == two.hash
    assert difference(one, two) == []


def test_the_order_of_hyperparameters_decides_nothing(tmp_path: Path) -> None:
    head = 'design = "sobol"\npoints = 5\n[optimizers.adamw]\n'
    lines = ["lr = { log = [0.1, 1.0] }\n", "weight_decay = { linear = [0.0, 1.0] }\n"]
    one, two = (study_from(tmp_path, head + "".join(ls)) for ls in (lines, lines[::-1]))
    assert one.hash == two.hash
    for cells in zip(one.cells(), two.cells(), strict=True):
        assert cells[0].trials() == cells[1].trials()


def test_a_module_that_raises_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_module.py").write_text("this is no Python", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be imported: SyntaxError"):
        study_from(tmp_path, 'tasks = ["broken_module:task"]\n[optimizers.nero]\n')


def test_a_study_survives_json() -> None:
    study = load_study("quickstart")
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_the_difference_names_what_changed(tmp_path: Path) -> None:
    one = study_from(tmp_path, "[optimizers.nero]\nlr = [0.1]\n")
    two = study_from(
        tmp_path, "seeds = 5\n[optimizers.nero]\nlr = [0.1, 1.0]\n[optimizers.sgd]\nlr=1.0\n"
    )
    lines = difference(one, two)
    assert "seeds: 3 → 5" in lines
    assert "optimizers.nero.space.lr: [0.1] → [0.1, 1.0]" in lines
    assert any(line.startswith("optimizers.sgd.name: absent") for line in lines)
