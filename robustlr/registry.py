"""Names and what they load: the plug-in folders, other packages' entry points, ``module:object``.

A file's name with hyphens is the plug-in's name on the command line (``rv_adamw.py`` is
``rv-adamw``); a task's name stands in the task. Other packages add optimizer entries and tasks
under the entry-point groups ``robustlr.optimizers`` and ``robustlr.tasks``.
"""

import importlib
import os
import pkgutil
import sys
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from robustlr.errors import UserError, unknown
from robustlr.task import Task

if TYPE_CHECKING:
    from robustlr.optim.entry import Entry


def _modules(package: str) -> dict[str, ModuleType]:
    """Import every module of a plug-in folder, by its command-line name."""
    path = importlib.import_module(package).__path__
    return {
        name.replace("_", "-"): importlib.import_module(f"{package}.{name}")
        for _, name, is_package in pkgutil.iter_modules(path)
        if not is_package and not name.startswith("_")
    }


@cache
def optimizers() -> dict[str, "Entry"]:
    """Return every registered optimizer's entry by name; imports torch."""
    found = {
        name: module.ENTRY
        for name, module in _modules("robustlr.optim").items()
        if hasattr(module, "ENTRY")
    }
    return found | {e.name: e.load() for e in entry_points(group="robustlr.optimizers")}


@cache
def tasks() -> dict[str, Task]:
    """Return every registered task by name."""
    found = {
        value.name: value
        for module in _modules("robustlr.tasks").values()
        for value in vars(module).values()
        if isinstance(value, Task)
    }
    return found | {e.name: e.load() for e in entry_points(group="robustlr.tasks")}


def analyses() -> dict[str, ModuleType]:
    """Return every analysis module by name."""
    return _modules("robustlr.analysis")


def studies() -> dict[str, Path]:
    """Return the study files that ship with robustlr, by name."""
    folder = Path(str(files("robustlr.studies")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_optimizer(name: str) -> "Entry":
    """Return the entry of a registered name or of any class named ``package.module:Class``.

    Raises:
        UserError: nothing has that name, or it is no optimizer class.
    """
    if ":" not in name:
        if name not in optimizers():
            raise unknown("optimizer", name, optimizers())
        return optimizers()[name]
    from torch.optim import Optimizer

    from robustlr.optim.entry import entry_of_class

    loaded = _load_object(name)
    if not (isinstance(loaded, type) and issubclass(loaded, Optimizer)):
        raise UserError(f'"{name}" is no subclass of torch.optim.Optimizer')
    return entry_of_class(loaded, name)


def load_task(name: str) -> Task:
    """Return the task of a registered name or of any task named ``package.module:object``.

    Raises:
        UserError: nothing has that name, or it is no task.
    """
    if ":" not in name:
        if name not in tasks():
            raise unknown("task", name, tasks())
        return tasks()[name]
    loaded = _load_object(name)
    if not isinstance(loaded, Task):
        raise UserError(f'"{name}" is no robustlr.task.Task, such as a FunctionTask')
    return loaded


def _load_object(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UserError(f'"{name}" is not of the form package.module:object')
    if os.getcwd() not in sys.path:  # a console script does not see the working directory's modules
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module can raise anything
        raise UserError(f'"{name}" cannot be imported: {type(error).__name__}: {error}') from error
    if not hasattr(module, attribute):
        public = [n for n in dir(module) if not n.startswith("_")]
        raise unknown(f"object in {module_name}", attribute, public)
    return getattr(module, attribute)
