"""A study as a value: tasks × optimizers × conditions, a design over their settings, and seeds."""

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import Field, ValidationError, model_validator

from robustlr.errors import UserError, did_you_mean, unknown
from robustlr.findings import Finding
from robustlr.registry import load_optimizer, load_task, studies
from robustlr.scale import Scale
from robustlr.sentences import as_toml, sentence
from robustlr.space import Choices, Design, Frozen, Point, Space, Span, Value, points
from robustlr.task import COLUMNS, CURVE, Config

if TYPE_CHECKING:
    from robustlr.optim.entry import Entry

Role = Literal["design", "adaptive", "default", "confirm", "confirm-default"]
"""Why a trial is run: at a point decided in advance, at one that ``tpe`` chooses, out of the box; or, on
fresh seeds, at the setting that these trials chose, and out of the box beside it."""
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Values = Annotated[tuple[Value, ...], Field(strict=False, min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


class StudyOptimizer(Frozen):
    """One optimizer of a study: a registered name or ``package.module:Class``, and its values.

    ``default`` holds what differs from the entry's out-of-the-box setting.
    """

    name: Name
    target: str
    space: dict[str, Space]
    default: dict[str, Value] = Field(default_factory=dict)


class Study(Frozen):
    """A study. Two equal studies have the same hash, whatever their files look like.

    ``points`` is the number of points a cell has under ``random`` and ``sobol``; a grid has its own.
    ``seeds`` trials are run at each point and, with role ``default``, out of the box. Under ``tpe``
    each of ``points`` × ``seeds`` trials has a point of its own.
    """

    name: Name
    question: str = ""
    design: Design = "grid"
    points: int | None = Field(default=None, ge=1)
    seeds: int = Field(default=3, ge=1)
    scale: str = "small"
    tasks: Names
    conditions: dict[str, Values] = Field(default_factory=dict)
    optimizers: dict[str, StudyOptimizer] = Field(min_length=1)
    findings: Annotated[tuple[Finding, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind, names in (
            ("tasks", self.tasks),
            *((f"conditions.{name}", values) for name, values in self.conditions.items()),
        ):
            twice = [n for i, n in enumerate(names) if n in names[:i]]
            if twice:
                raise ValueError(f"{kind}: {twice[0]!r} is listed twice")
        if self.design == "grid" and self.points is not None:
            raise ValueError(f"points = {self.points}: a grid takes its points from its values")
        if self.design != "grid" and self.points is None:
            raise ValueError(
                f'design = "{self.design}": points, the number of points a cell, is missing'
            )
        return self

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits over everything but question and findings."""
        decisive = self.model_dump(exclude={"question", "findings"})
        document = json.dumps(_canonical(decisive), sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:16]

    def cells(self) -> Iterator["Cell"]:
        """Yield the cells, tasks varying slowest and conditions fastest."""
        settings = [
            dict(zip(self.conditions, values, strict=True))
            for values in itertools.product(*self.conditions.values())
        ]
        optimizers = self.optimizers.values()
        for task, optimizer, conditions in itertools.product(self.tasks, optimizers, settings):
            yield Cell(self, task, optimizer, conditions)

    def check(self) -> None:
        """Check every name and value against the registry.

        Raises:
            UserError: a task, optimizer, hyperparameter or condition is unknown or has a wrong value.
        """
        for name, optimizer in self.optimizers.items():
            with _at(f"optimizers.{name}"):
                _check_optimizer(optimizer, self.design)
        for name in self.tasks:
            with _at("tasks"):
                load_task(name)
        for name, optimizer in itertools.product(self.conditions, self.optimizers.values()):
            if name in (*optimizer.space, *COLUMNS, CURVE):
                raise UserError(
                    f"conditions.{name}: the tables of results have a column of that name already"
                )
        protocols = {(cell.task, str(cell.conditions)): cell for cell in self.cells()}
        for cell in protocols.values():
            load_task(cell.task).check(cell.scale())
        for number, finding in enumerate(self.findings, start=1):
            with _at(f"findings.{number}"):
                finding.check(self.tasks, tuple(self.optimizers), self.conditions)


USUAL_PROTOCOL: dict[str, Any] = json.loads(json.dumps(asdict(Scale(batch_size=1))))
"""What each field of a protocol is unless a task's scale says otherwise."""


@dataclass(frozen=True)
class Cell:
    """One (task, optimizer, condition) of a study: one Optuna study."""

    study: Study
    task: str
    optimizer: StudyOptimizer
    conditions: Mapping[str, Value] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the Optuna study, ``study/task/optimizer[/condition]``."""
        parts = [self.study.name, self.task, self.optimizer.name]
        if self.conditions:
            parts.append(
                ",".join(
                    f"{k}={v if isinstance(v, str) else as_toml(v)}"
                    for k, v in self.conditions.items()
                )
            )
        return "/".join(parts)

    def config(self, point: Point, seed: int) -> Config:
        """Return the trial's configuration at ``point``."""
        return Config(
            task=self.task,
            optimizer=self.optimizer.target,
            hyperparameters=point,
            seed=seed,
            scale=self.study.scale,
            conditions=self.conditions,
        )

    def scale(self) -> Scale:
        """Return the task's scale under the cell's conditions."""
        return load_task(self.task).scale_of(self.config({}, seed=0))

    def protocol(self) -> dict[str, Any]:
        """Return the task's scale under the cell's conditions, by field, as JSON would hold it."""
        scale = self.scale()
        protocol = asdict(replace(scale, data=load_task(self.task).data_name(scale)))
        return cast(dict[str, Any], json.loads(json.dumps(protocol)))

    def default_point(self) -> Point:
        """Return the out-of-the-box setting of the searched hyperparameters.

        A hyperparameter that the study holds fixed keeps the study's value.
        """
        entry = load_optimizer(self.optimizer.target)
        known = {**entry.arguments, **entry.default, **self.optimizer.default}
        return {
            name: space.at(0) if _is_fixed(space) else known[name]
            for name, space in self.optimizer.space.items()
        }

    def trials(self) -> list["Planned"]:
        """Return every trial of the cell, the default ones first, seed after seed."""
        study = self.study
        seeds = range(study.seeds)
        default = self.default_point()
        role: Role = "adaptive" if study.design == "tpe" else "design"
        design: list[Point | None] = [None] * (study.points or 0)
        if role == "design":
            design = [*points(self.optimizer.space, study.design, study.points or 0)]
        return [
            trial
            for seed in seeds
            for trial in (
                Planned("default", seed, default),
                *(Planned(role, seed, point) for point in design),
            )
        ]


@dataclass(frozen=True)
class Planned:
    """A trial that waits to be run; ``point`` is None where the sampler chooses it on the claim."""

    role: Role
    seed: int
    point: Point | None


def load_study(source: str | Path, scale: str | None = None) -> Study:
    """Return the checked study of a TOML file, or of one that ships with robustlr, by name.

    With a ``scale`` other than the file's own, the study is that of the file with what its table
    ``[scales.SCALE]`` says instead, and its name ends in the scale's.

    Raises:
        UserError: one sentence for each thing wrong, with the file, the key and the nearest name.
    """
    path = studies().get(str(source), Path(source))
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        tables = raw.pop("scales", {})
        study = Study.model_validate(_from_file(_at_scale(raw, tables, scale)))
        study.check()
        _check_scales(raw, tables, study)
    except FileNotFoundError as error:
        raise UserError(
            f'there is no study file "{source}"; of the studies that ship with robustlr, '
            f"{did_you_mean(str(source), studies())}"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the file is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        # An element that failed makes pydantic also count its list as too short.
        real = [e for e in error.errors() if e["type"] != "too_short" or not e["input"]]
        sentences = dict.fromkeys(sentence(e, Study) for e in real)
        raise UserError("\n".join(f"{path}: {sentence}" for sentence in sentences)) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return study


def difference(old: Study, new: Study) -> list[str]:
    """Return a line for every value that differs, ``key: old → new``."""
    before, after = (_flat(_canonical(study.model_dump())) for study in (old, new))
    return [
        f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key) and key not in ("question", "findings")
    ]


def _canonical(value: Any) -> Any:
    """Return the value with every number a float and every sequence a list: 1 and 1.0 are one."""
    if isinstance(value, dict):
        return {key: _canonical(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: f"{value:g}" if isinstance(value, float) else value}
    return {
        key: leaf
        for name, part in value.items()
        for key, leaf in _flat(part, f"{prefix}.{name}".lstrip(".")).items()
    }


@contextmanager
def _at(key: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _at_scale(raw: dict[str, Any], tables: Any, scale: str | None) -> dict[str, Any]:
    """Return the file's values at a scale, its own by default."""
    if scale is None or scale == raw.get("scale", Study.model_fields["scale"].default):
        return raw
    changes = dict(tables.get(scale, {})) if isinstance(tables, dict) else {}
    for key in ("optimizers", "conditions"):  # a table adds to what the file has
        if isinstance(changes.get(key), dict) and isinstance(raw.get(key), dict):
            changes[key] = {**raw[key], **changes[key]}
    return {**raw, "name": f"{raw.get('name', '')}-{scale}", **changes, "scale": scale}


def _check_scales(raw: dict[str, Any], tables: Any, study: Study) -> None:
    """Check every ``[scales.SCALE]``, also those that are not asked for now."""
    known = dict.fromkeys(scale for task in study.tasks for scale in load_task(task).scales)
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise UserError("scales: this must be tables, as in [scales.paper]")
    own = raw.get("scale", Study.model_fields["scale"].default)
    for name in tables:
        if name not in known:
            raise unknown("scale of the study's tasks", name, known)
        if name == own:
            raise UserError(f"scales.{name}: that is the file's own scale; say it at the top")
        try:
            Study.model_validate(_from_file(_at_scale(raw, tables, name)))
        except ValidationError as error:
            sentences = (f"scales.{name}: {sentence(e, Study)}" for e in error.errors())
            raise UserError("\n".join(dict.fromkeys(sentences))) from error


def _from_file(raw: dict[str, Any]) -> dict[str, Any]:
    """Turn the file's optimizer tables into values; an entry's own space fills a missing one."""
    tables = raw.get("optimizers")
    if not isinstance(tables, dict):
        return raw
    return {**raw, "optimizers": {name: _optimizer(name, table) for name, table in tables.items()}}


def _optimizer(name: str, table: Any) -> Any:
    if not isinstance(table, dict):
        return table
    values = {key: value for key, value in table.items() if key not in ("class", "default")}
    target = table.get("class", name)
    if not values and isinstance(target, str):
        with _at(f"optimizers.{name}"):
            values = dict(load_optimizer(target).space)
    return {"name": name, "target": target, "space": values, "default": table.get("default", {})}


def _check_optimizer(optimizer: StudyOptimizer, design: Design) -> None:
    entry = load_optimizer(optimizer.target)
    known = entry.arguments
    for name in (*optimizer.space, *optimizer.default):
        if name not in known:
            raise UserError(
                f'{optimizer.target} has no hyperparameter "{name}"; {did_you_mean(name, known)}'
            )
    if "lr" not in optimizer.space:
        raise UserError("values for lr are missing, as in lr = { log = [1e-4, 1.0], points = 5 }")
    for name, space in optimizer.space.items():
        if design == "grid" and isinstance(space, Span) and space.points is None:
            raise UserError(f"{name}: a grid needs the number of points, as in {{ …, points = 5 }}")
        has_default = name in entry.default or name in optimizer.default or known[name] is not None
        if not has_default and not _is_fixed(space):
            raise UserError(
                f"{name}: {optimizer.target} has no default for it; give one in "
                f"[optimizers.{optimizer.name}.default]"
            )
    _check_values(optimizer, entry)


def _check_values(optimizer: StudyOptimizer, entry: "Entry") -> None:
    """Check every listed value, every end of an interval and the default by trying them out."""
    tried: list[tuple[str, Value]] = list(optimizer.default.items())
    for name, space in optimizer.space.items():
        ends = (space.low, space.high) if isinstance(space, Span) else space.values
        tried += [(name, value) for value in ends]
    for name, value in tried:
        usual = entry.default.get(name, entry.arguments[name])
        if _kind(value) == "a number" and not math.isfinite(float(value)):
            raise UserError(f"{name} = {value}: every number must be finite")
        if name == "lr" and not (_kind(value) == "a number" and float(value) > 0):
            raise UserError(f"lr = {as_toml(value)}: a learning rate must be a number above 0")
        if usual is not None and _kind(value) != _kind(usual):
            raise UserError(f"{name} = {as_toml(value)}: this must be {_kind(usual)}")
    start: dict[str, Value] = {name: space.at(0) for name, space in optimizer.space.items()}
    for point in (start, *({**start, name: value} for name, value in tried)):
        if reason := entry.refuses(point):
            shown = ", ".join(f"{name} = {as_toml(value)}" for name, value in point.items())
            raise UserError(f"{optimizer.target} refuses {shown}: {reason}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else "text"


def _is_fixed(space: Span | Choices) -> bool:
    return isinstance(space, Choices) and len(space.values) == 1
