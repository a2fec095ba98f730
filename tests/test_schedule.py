import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustlr.schedule import ScheduleName, lr_factor


def _factors(schedule: ScheduleName, steps: int, warmup_steps: int = 0) -> list[float]:
    return [
        lr_factor(step, steps=steps, warmup_steps=warmup_steps, schedule=schedule)
        for step in range(steps)
    ]


def test_warmup_rises_linearly_to_one() -> None:
    assert _factors("constant", 6, 4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_one_after_the_warmup() -> None:
    factors = _factors("cosine", 12, 2)
    assert factors[2] == 1.0
    assert factors[7] == pytest.approx(0.5)
    assert factors[2:] == sorted(factors[2:], reverse=True)


def test_linear_is_a_line() -> None:
    assert _factors("linear", 4) == [1.0, 0.75, 0.5, 0.25]


def test_step_drops_tenfold_at_half_and_three_quarters() -> None:
    assert _factors("step", 8) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine", "step", "one-cycle"]),
    steps=st.integers(1, 200),
    share=st.floats(0, 1),
)
def test_factors_stay_in_the_unit_interval(
    schedule: ScheduleName, steps: int, share: float
) -> None:
    assert all(0 < f <= 1 for f in _factors(schedule, steps, round(share * steps)))


@pytest.mark.parametrize("warmup_steps", [5, 20])
def test_one_cycle_is_that_of_torch(warmup_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        1.0,
        total_steps=100,
        pct_start=warmup_steps / 100,
        cycle_momentum=False,
        div_factor=1e2,
        final_div_factor=1e4,
    )
    for ours in _factors("one-cycle", 100, warmup_steps)[:-1]:
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert _factors("one-cycle", 100, warmup_steps)[-1] == pytest.approx(1e-6)


def test_a_triangle_changes_from_epoch_to_epoch() -> None:
    """Learning by Turning's translation: 2 min(e/100, 1 - e/100) in epoch e = 1 … 100."""
    factors = [
        lr_factor(step, steps=700, warmup_steps=0, schedule="triangle", epochs=100)
        for step in range(700)
    ]
    assert factors[:8] == pytest.approx([0.02] * 7 + [0.04])
    assert max(factors) == 1.0
    assert factors.index(1.0) == 49 * 7
    assert factors[-7:] == [0.0] * 7
    assert _factors("triangle", 10)[4] == 1.0
