"""Pictures are legible: no two texts of one lie on each other."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from robustlr.registry import analyses

OPTIMIZERS = [f"{name}-of-a-colleague" for name in "abcdefghijk"]
METRICS = {
    "digits-mlp": ("validation error", "minimize", 0.9, 0.02),
    "wikitext2-transformer": ("validation perplexity", "minimize", 33278.0, 40.0),
    "cartpole-ppo": ("mean episode reward", "maximize", 9.0, 500.0),
}
"""Task to metric, direction, worst and best value."""


def _trials() -> pd.DataFrame:
    """A study of eleven optimizers on three tasks, with two hyperparameters, with warmup and without."""
    generator = np.random.default_rng(0)
    points = list(itertools.product((1e-4, 1e-3, 1e-2, 1e-1, 1.0), (0.01, 0.1)))
    rows: list[dict[str, object]] = []
    for task, (metric, direction, worst, best) in METRICS.items():
        for place, name in enumerate(OPTIMIZERS):
            for warmup, seed in itertools.product((0.0, 0.1), range(3)):
                for role, (lr, decay) in [*(("design", p) for p in points), ("default", points[2])]:
                    far = abs(np.log10(lr) + 1 + place % 3) + 0.3 * generator.exponential()
                    share = min(1.0, 0.3 * far * (1 + decay))
                    value = best + share * (worst - best)
                    rows.append(
                        {"study": "s", "task": task, "optimizer": name, "trial": len(rows)}
                        | {"role": role, "seed": seed, "value": value, "direction": direction}
                        | {"metric": metric, "worst": worst, "diverged": share >= 1, "steps": 10}
                        | {"seconds": generator.exponential(), "lr": lr, "weight_decay": decay}
                        | {"warmup": warmup, "curve": f"5={worst} 10={value}"}
                    )
    return pd.DataFrame(rows)


TRIALS = _trials()


def _ticks_outside(figure: Figure) -> set[int]:
    """Return the labels that matplotlib keeps and does not draw."""
    outside = set()
    for axis in (axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)):
        low, high = sorted(axis.get_view_interval())
        room = 1e-9 * (high - low)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low - room <= tick.get_loc() <= high + room:
                outside.add(id(tick.label1))
    return outside


def _overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of texts, level or upright, that share more than a pixel each way."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    outside = _ticks_outside(figure)
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip()
        if id(text) not in outside and text.get_rotation() % 90 == 0
    ]
    return [
        (first, second)
        for (first, a), (second, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


@pytest.mark.parametrize("name", sorted(analyses()))
def test_no_texts_of_a_picture_overlap(name: str) -> None:
    module = analyses()[name]
    table = module.compute(TRIALS)
    assert not table.empty
    per = getattr(module, "PICTURE_PER", None)
    for value, group in table.groupby(per, sort=False) if per else [("", table)]:
        assert not _overlapping(module.draw(group)), value


def test_overlapping_texts_are_found() -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "one")
    assert not _overlapping(figure)
    figure.text(0.51, 0.5, "two")
    assert _overlapping(figure) == [("one", "two")]
