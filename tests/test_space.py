import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from robustlr.space import Choices, Span, points


def test_log_grid_has_exact_decades() -> None:
    assert Span(log=(1e-4, 1.0), points=5).grid() == (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def test_linear_grid_has_its_ends() -> None:
    assert Span(linear=(0.0, 1.0), points=3).grid() == (0.0, 0.5, 1.0)


def test_grid_is_the_product_in_order() -> None:
    space = {"lr": Choices(values=(0.1, 0.2)), "momentum": Choices(values=(0.0, 0.9))}
    assert [tuple(point.values()) for point in points(space, "grid", 0)] == [
        (0.1, 0.0),
        (0.1, 0.9),
        (0.2, 0.0),
        (0.2, 0.9),
    ]


@given(
    low=st.floats(1e-8, 1.0),
    ratio=st.floats(1.5, 1e6),
    count=st.integers(1, 40),
    design=st.sampled_from(["random", "sobol"]),
)
def test_sampled_points_lie_in_the_space_and_are_distinct(
    low: float, ratio: float, count: int, design: str
) -> None:
    space = {"lr": Span(log=(low, low * ratio)), "kind": Choices(values=("a", "b", "c"))}
    made = points(space, design, count)  # type: ignore[arg-type]
    assert len(made) == count
    assert all(low * (1 - 1e-9) <= p["lr"] <= low * ratio * (1 + 1e-9) for p in made)  # type: ignore[operator]
    assert len({p["lr"] for p in made}) == count
    assert made == points(space, design, count)  # type: ignore[arg-type]


def test_sobol_fills_the_decades_evenly() -> None:
    made = points({"lr": Span(log=(1e-4, 1.0))}, "sobol", 64)
    for exponent in range(-4, 0):
        inside = [p for p in made if 10.0**exponent <= float(p["lr"]) < 10.0 ** (exponent + 1)]
        assert len(inside) == 16


def test_a_list_gives_each_value_an_equal_share() -> None:
    made = points({"lr": Choices(values=(0.1, 0.2, 0.3, 0.4))}, "sobol", 64)
    assert all(sum(p["lr"] == value for p in made) == 16 for value in (0.1, 0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    "raw",
    [
        {"log": (1.0, 0.1)},
        {"log": (0.0, 1.0)},
        {"log": (1.0, float("nan"))},
        {"log": (0.1, 1.0), "linear": (0.1, 1.0)},
        {"points": 3},
        {"linear": (0.0, 1.0), "points": 1},
    ],
)
def test_impossible_intervals_are_refused(raw: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Span.model_validate(raw)
