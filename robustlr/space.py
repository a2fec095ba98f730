"""Search spaces: the values that one hyperparameter may take, and the points of a design over them."""

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_serializer,
    model_validator,
)

Value = bool | int | float | str
Point = dict[str, Value]
Design = Literal["grid", "random", "sobol", "tpe"]


class Frozen(BaseModel):
    """An immutable value that knows all its keys and converts no types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Pair = Annotated[tuple[float, float], Field(strict=False)]


class Span(Frozen):
    """An interval, ``{ log = [low, high], points = n }`` or ``{ linear = [low, high] }``.

    ``points`` is the number of grid values, ends included; the other designs sample the interval.
    """

    log: Pair | None = None
    linear: Pair | None = None
    points: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _check(self) -> "Span":
        if (self.log is None) == (self.linear is None):
            raise ValueError("give exactly one of log = [low, high] and linear = [low, high]")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"[{self.low:g}, {self.high:g}] is no interval: low must be below high"
            )
        if self.is_log and self.low <= 0:
            raise ValueError(f"a log interval must start above 0, not at {self.low:g}")
        return self

    @property
    def is_log(self) -> bool:
        """Whether equal ratios, not equal differences, are equally far apart."""
        return self.log is not None

    @property
    def low(self) -> float:
        """The lower end."""
        return (self.log or self.linear or (0.0, 0.0))[0]

    @property
    def high(self) -> float:
        """The upper end."""
        return (self.log or self.linear or (0.0, 0.0))[1]

    def grid(self) -> tuple[Value, ...]:
        """Return the grid values from low to high."""
        if self.points is None:
            raise ValueError(
                "a grid needs the number of points, as in { log = [1e-4, 1], points = 5 }"
            )
        return tuple(self.at(position) for position in np.linspace(0, 1, self.points))

    def at(self, position: float) -> float:
        """Return the value at ``position`` in [0, 1] along the interval, on its own scale."""
        if self.is_log:
            value = self.low * (self.high / self.low) ** position
        else:
            value = self.low + (self.high - self.low) * position
        # Twelve digits, so that equal settings computed in two ways are one setting in every table.
        return float(f"{value:.12g}")


class Choices(Frozen):
    """A list of values, ``[0.0, 0.01, 0.1]``; a single value holds the hyperparameter fixed."""

    values: Annotated[tuple[Value, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> "Choices":
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.values):
            raise ValueError("every number must be finite")
        if len(set(self.values)) < len(self.values):
            raise ValueError("the same value is listed twice")
        return self

    @model_serializer
    def _as_list(self) -> list[Value]:
        return list(self.values)

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    def grid(self) -> tuple[Value, ...]:
        """Return the values as listed."""
        return self.values

    def at(self, position: float) -> Value:
        """Return the value at ``position`` in [0, 1), each value having an equal share."""
        return self.values[min(int(position * len(self.values)), len(self.values) - 1)]


def _parse(raw: Any) -> Any:
    if isinstance(raw, list | tuple):
        return Choices(values=tuple(raw))
    if isinstance(raw, bool | int | float | str):
        return Choices(values=(raw,))
    return raw if isinstance(raw, Span | Choices) else Span.model_validate(raw)


Space = Annotated[Span | Choices, BeforeValidator(_parse)]


def points(space: Mapping[str, Span | Choices], design: Design, count: int) -> list[Point]:
    """Return the points of a non-adaptive design over ``space``.

    A grid is the product of the dimensions' values, the last varying fastest. ``random`` draws
    ``count`` independent points and ``sobol`` takes the first ``count`` of a scrambled Sobol
    sequence; both depend on the space alone, so every task and condition gets the same points.
    """
    if design == "grid":
        axes = [dimension.grid() for dimension in space.values()]
        return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]
    names = sorted(space)  # the order in a file must not decide the points
    return [
        {name: space[name].at(p) for name, p in zip(names, row, strict=True)}
        for row in _positions(design, count, len(space))
    ]


def _positions(design: Design, count: int, dimensions: int) -> np.ndarray:
    if design == "random":
        return np.random.default_rng(0).random((count, dimensions))
    from scipy.stats import qmc

    # A Sobol sequence is balanced in powers of two only: make one, use its beginning.
    exponent = math.ceil(math.log2(count)) if count > 1 else 0
    positions: np.ndarray = qmc.Sobol(dimensions, rng=np.random.default_rng(0)).random_base2(
        exponent
    )
    return positions[:count]
