"""The one training loop's steps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustlr.errors import UserError
from robustlr.registry import load_task
from robustlr.storage import Storage
from robustlr.study import load_study
from robustlr.task import SupervisedTask
from robustlr.tasks.data import corpora
from robustlr.training import take_step


def _step(pieces: int, count: int) -> tuple[float, torch.Tensor]:
    """Return the loss of a step in so many pieces, and the weights after it."""
    task = load_task("digits-mlp")
    assert isinstance(task, SupervisedTask)
    scale = replace(task.scales["small"], accumulated=pieces)
    torch.manual_seed(0)
    model = task.model(scale)
    batch = task.data(scale, "cpu").train.take(torch.arange(count))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss = take_step(task, model, optimizer, batch, scale)
    return loss.item(), torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(("pieces", "count"), [(4, 32), (5, 32), (40, 3)])
def test_a_step_in_pieces_is_the_step_of_the_whole_batch(pieces: int, count: int) -> None:
    """Also where the pieces are not equal, and where there are more of them than examples."""
    whole, weights = _step(1, count)
    loss, accumulated = _step(pieces, count)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert torch.allclose(accumulated, weights, atol=1e-6)
    assert not torch.equal(weights, _step(1, count + 1)[1])


def test_a_study_is_not_continued_with_another_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's documentation and CLDR differ from machine to machine; results must not be mixed."""
    file = tmp_path / "s.toml"
    file.write_text('name = "s"\ntasks = ["pydoc-lm"]\n[optimizers.nero]\nlr = [0.1, 0.01]\n')
    study = load_study(file)
    with Storage(f"sqlite:///{tmp_path}/study.db", create=True) as storage:
        storage.create_study(study)
        storage.check_unchanged(study)
        monkeypatch.setattr(corpora, "versioned", lambda name: f"{name}-of-another-python")
        with pytest.raises(UserError, match=r"data: pydoc-.* → pydoc-of-another-python"):
            storage.check_unchanged(study)
