"""Confirming a study: the chosen and the out-of-the-box settings, run again on fresh seeds.

The best of many settings is good by luck too, on the seeds that chose it. So each cell's best setting
by validation and its out-of-the-box setting are run on seeds that chose nothing, the next ones after
the study's own; both share each seed, and with it the initial weights and batches.
"""

from typing import TYPE_CHECKING

import pandas as pd

from robustlr.analysis._cells import of_role, point_names, with_losses
from robustlr.errors import UserError
from robustlr.study import Cell

if TYPE_CHECKING:
    from robustlr.storage import Storage


def queue_confirmation(database: "Storage", name: str, seeds: int) -> int:
    """Queue what confirms a finished study on ``seeds`` fresh seeds and is not there yet; count it.

    Raises:
        UserError: there is no study of that name, it is not finished, or a task has changed since.
    """
    study = database.load_study(name)
    database.check_unchanged(study)
    trials = of_role(database.trials(name), "design", "adaptive", "default")
    left = sum(len(cell.trials()) for cell in study.cells()) - len(trials)
    if left:
        raise UserError(
            f'study "{name}" is not finished, so nothing can be chosen: {left} of its trials have no '
            f"result; run them: robustlr worker {name}"
        )
    chosen = {cell.name: choose(_trials_of(trials, cell)) for cell in study.cells()}
    return database.repeat(name, chosen, list(range(study.seeds, study.seeds + seeds)))


def choose(cell: pd.DataFrame) -> dict[str, int]:
    """Return, for each role of a confirming trial, the number of the trial whose setting it has.

    ``cell`` is one cell's part of the tidy table, without confirming trials. Best is the lowest mean
    loss over seeds, as in every analysis; of equally good settings it is the first by value.
    """
    losses = with_losses(cell)
    design = of_role(losses, "design", "adaptive")
    points = design.groupby(point_names(design), dropna=False).agg({"loss": "mean", "trial": "min"})
    chosen = points["trial"].iloc[points["loss"].argmin()]
    return {
        "confirm": int(chosen),
        "confirm-default": int(of_role(losses, "default")["trial"].min()),
    }


def _trials_of(trials: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    ours = (trials["task"] == cell.task) & (trials["optimizer"] == cell.optimizer.name)
    for name, value in cell.conditions.items():
        ours &= trials[name] == value
    return trials[ours]
