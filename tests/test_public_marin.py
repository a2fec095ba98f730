"""Marin's runs: what they are known to show comes out."""

import numpy as np
import pandas as pd
import pytest

from robustlr.analysis import lr_curves, warmup
from robustlr.analysis._cells import cells
from tests.public_marin import WORST, marin, needs_marin

pytestmark = needs_marin


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    return marin()


def _value(trials: pd.DataFrame, task: str, optimizer: str, **setting: float) -> float:
    """The loss of the run that differs from the base setting in what is given."""
    ours = trials[(trials["task"] == task) & (trials["optimizer"] == optimizer)]
    base = ours.iloc[0]
    names = list(ours.columns[ours.columns.get_loc("lr") :])
    wanted = {name: setting.get(name, base[name]) for name in names}
    same = [ours[name].isna() if pd.isna(v) else ours[name] == v for name, v in wanted.items()]
    return float(ours[np.logical_and.reduce(same)]["value"].iloc[0])


def test_published_losses_come_out(trials: pd.DataFrame) -> None:
    assert len(trials) == 1636
    assert trials["optimizer"].nunique() == 10
    adamw, lion = ("130m-1x", "adamw"), ("130m-1x", "lion")
    assert _value(trials, *adamw) == pytest.approx(3.529, abs=5e-4)
    assert _value(trials, *adamw, warmup=500) == pytest.approx(7.452, abs=5e-4)
    assert _value(trials, *adamw, lr=0.032) == pytest.approx(7.781, abs=5e-4)
    assert _value(trials, *lion) == pytest.approx(3.552, abs=5e-4)
    assert _value(trials, *lion, lr=0.004) == pytest.approx(7.806, abs=5e-4)


def test_adamw_gains_from_2000_steps_of_warmup_over_500(trials: pd.DataFrame) -> None:
    table = warmup.compute(trials)
    ours = table.query("task == '130m-1x' and optimizer == 'adamw' and kind == 'matched'")
    assert ours["against"].tolist() == [500] * 3
    gains = dict(zip(ours["warmup"], ours["gain"], strict=True))
    assert gains[2000] == pytest.approx(3.923, abs=5e-4)
    assert gains[2000] - gains[4000] == pytest.approx(0.045, abs=5e-4)  # warmup eats steps
    assert table["low"].isna().all()  # of a single seed
    assert "We cannot tell" in warmup.verdict(table)


def test_a_run_that_exploded_moves_no_mean(trials: pd.DataFrame) -> None:
    """One ended at 1.4e14; it counts as a model that learnt nothing, as do those without a loss."""
    assert trials["value"].max() > 1e14
    losses = pd.concat([cell["loss"] for _, cell in cells(trials)])
    assert losses.max() == pytest.approx(WORST)
    mended = trials.assign(value=trials["value"].clip(upper=WORST).fillna(WORST))
    for module in (warmup, lr_curves):
        one, other = module.compute(trials), module.compute(mended)
        for name in one.columns.intersection(["gain", "value"]):
            np.testing.assert_allclose(one[name], other[name])
