"""``robustlr doctor``: what works on this machine, what does not, and what to do about it.

A look is a function that yields ``Check`` values. What it cannot foresee is caught in
``checks``, so that one broken thing hides no other. All is left as it was, but that the kernels are
compiled if they are not yet, as the first step of an optimizer would.
"""

import ctypes
import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MEGABYTE = 10**6
SCARCE = 1000 * MEGABYTE
"""Free disk under this is worth a note: the checkpoints of a few large models fill it."""
FULL = 100 * MEGABYTE
"""Free disk under this is a problem."""


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, what was found, and what to do, which is empty where it is ok.

    A problem keeps robustlr from working here; what is missing but not needed is a note.
    """

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


Look = Callable[[], Iterator[Check]]


def checks(url: str) -> Iterator[Check]:
    """Yield every check of this machine and of the database at ``url``, the slow ones last."""
    looks: dict[str, Look] = {
        "python": _python,
        "packages": _packages,
        "extras": _extras,
        "processors": _processors,
        "folders": _folders,
        "torch": partial(_imported, "torch"),
        "gpus": _gpus,
        "kernels": _kernels,
        "database": partial(_database, url),
        "roms": _roms,
        "torchvision": partial(_imported, "torchvision"),
        "data": _data,
    }
    for name, look in looks.items():
        try:
            for check in look():
                yield _without_passwords(check)
        except Exception as error:  # a broken package can raise anything
            found = f"could not be looked at: {_described(error)}"
            advice = "mend what is named here or above"
            yield _without_passwords(Check(name, "problem", found, advice))


def _without_passwords(check: Check) -> Check:
    """Return the check with three stars for passwords in URLs, also in those with mistakes."""

    def hidden(text: str) -> str:
        return re.sub(r"(?<=password=)[^&\s]*", "***", re.sub(r":(?!//)\S*@", ":***@", text))

    return replace(check, found=hidden(check.found), advice=hidden(check.advice))


def _described(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# Python and its packages


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} in {sys.prefix} on {platform.platform()}"
    yield Check("python", "ok", found)


def _packages() -> Iterator[Check]:
    required = _required("")
    wrong = [lack for each in required if (lack := _lack(each))]
    if wrong:
        advice = "pip install --upgrade robustlr, best in an environment of its own"
        yield Check("packages", "problem", ", ".join(wrong), advice)
    else:
        versions = f"robustlr {version('robustlr')}, optuna {version('optuna')}"
        yield Check("packages", "ok", f"{versions}, and the {len(required) - 1} others it needs")


def _extras() -> Iterator[Check]:
    for extra in metadata("robustlr").get_all("Provides-Extra", []):
        if extra == "dev":
            continue
        required = _required(extra)
        missing = [lack for each in required if (lack := _lack(each))]
        if missing:
            advice = f"pip install 'robustlr[{extra}]'"
            yield Check(f"extra {extra}", "note", ", ".join(missing), advice)
        else:
            found = ", ".join(f"{each.name} {_version(each.name)}" for each in required)
            yield Check(f"extra {extra}", "ok", found)


def _required(extra: str) -> list["Requirement"]:
    """Return the packages that one of robustlr's extras requires; "" is robustlr itself."""
    from packaging.requirements import Requirement

    every = [Requirement(line) for line in requires("robustlr") or []]
    return [
        each
        for each in every
        if (each.marker.evaluate({"extra": extra}) if each.marker else not extra)
    ]


def _lack(required: "Requirement") -> str:
    """Return what is wrong with a required package; nothing if it is there in a right version."""
    found = _version(required.name)
    if found is None:
        return f"{required.name} is not installed"
    if not required.specifier.contains(found, prereleases=True):
        return f"{required.name} is {found}, not {required.specifier}"
    return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _imported(name: str) -> Iterator[Check]:
    """Check that a package is not only installed: builds that do not fit fail at their import."""
    try:
        module = import_module(name)
    except Exception as error:  # a torch and a torchvision that do not fit raise RuntimeError
        advice = "install both anew: pip install --force-reinstall torch torchvision"
        yield Check(name, "problem", f"cannot be imported: {_described(error)}", advice)
    else:
        yield Check(name, "ok", module.__version__)


# Processors and kernels


def _processors() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found, threads = f"{cores} cores", os.environ.get("OMP_NUM_THREADS")
    if threads is None:
        yield Check("processors", "ok", f"{found}, and a thread a worker")
    elif not threads.isdecimal() or threads == "0":
        found = f'{found}, but OMP_NUM_THREADS is "{threads}", which is no number'
        yield Check("processors", "problem", found, "unset OMP_NUM_THREADS")
    elif int(threads) > 1:
        processes = max(1, (cores or 1) // int(threads))
        advice = f"start workers with --per-device {processes}, or unset OMP_NUM_THREADS"
        yield Check("processors", "note", f"{found}, and {threads} threads a worker", advice)
    else:
        yield Check("processors", "ok", f"{found}, and a thread a worker (OMP_NUM_THREADS)")


def _kernels() -> Iterator[Check]:
    from robustlr.optim import kernels

    def slow(found: str, advice: str) -> Check:
        return Check("kernels", "note", f"{found}; steps of optimizers are slower", advice)

    if os.environ.get("ROBUSTLR_KERNELS") == "0":
        yield slow("switched off by ROBUSTLR_KERNELS=0", "unset ROBUSTLR_KERNELS")
        return
    path = kernels.compiled()
    if path is None:
        compiler = os.environ.get("CC", "cc")
        if shutil.which(compiler) or shutil.which("gcc"):
            advice = "install the compiler's headers: apt-get install build-essential"
            yield slow("the C compiler cannot compile them", advice)
        else:
            yield slow(f'there is no C compiler "{compiler}"', "install gcc, or set CC")
        return
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        advice = "set XDG_CACHE_HOME to a folder from which programs may run"
        yield slow(f"{path} cannot be loaded ({error})", advice)
    else:
        yield Check("kernels", "ok", f"compiled: {path}")


# GPUs


def _gpus() -> Iterator[Check]:
    import torch

    build = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch without CUDA"
    if torch.version.hip:
        build = f"torch for ROCm {torch.version.hip}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            complaint = " ".join(str(caught[0].message).split()) if caught else ""
            yield _no_gpu(build, has_cuda=torch.version.cuda is not None, complaint=complaint)
            return
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    limits = "" if shown is None else f", of which CUDA_VISIBLE_DEVICES={shown} shows these"
    yield Check("gpus", "ok", f"{torch.cuda.device_count()} for {build}{limits}")
    for index in range(torch.cuda.device_count()):
        yield _gpu(index)


def _no_gpu(build: str, *, has_cuda: bool, complaint: str) -> Check:
    """Return why torch sees no GPU; a driver says that there should be one."""
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        advice = "install its driver if there is one; without, trials run on the cores"
        return Check("gpus", "note", f"none, and no NVIDIA driver; {build}", advice)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = f"an NVIDIA driver, but {build} sees no GPU"
    if not has_cuda:
        advice = "install a torch and a torchvision for CUDA: pytorch.org/get-started/locally"
    elif shown is not None:
        found += f" (CUDA_VISIBLE_DEVICES={shown})"
        advice = "unset CUDA_VISIBLE_DEVICES, or name GPUs in it that nvidia-smi lists"
    else:
        found += f" ({complaint})" if complaint else ""
        advice = (
            "see whether nvidia-smi lists one; if so, update the driver to the CUDA of this torch, "
            "and give a container its GPUs (docker run --gpus all)"
        )
    return Check("gpus", "note", found, advice)


def _gpu(index: int) -> Check:
    import torch

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            facts = torch.cuda.get_device_properties(index)
    except RuntimeError as error:
        return Check(f"gpu {index}", "note", _described(error), "see what nvidia-smi says of it")
    found = f"{facts.name}, {facts.total_memory / 1e9:.0f} GB"
    if caught:  # such as one too old for this torch
        reason = " ".join(str(caught[0].message).split())
        return Check(f"gpu {index}", "note", f"{found}: {reason}", "leave it out: --devices")
    return Check(f"gpu {index}", "ok", found)


# Folders


def _folders() -> Iterator[Check]:
    from robustlr.worker import DEFAULT_FOLDER

    trials = Path(os.environ.get("ROBUSTLR_FOLDER", DEFAULT_FOLDER))
    yield folder("trials folder", trials, "set ROBUSTLR_FOLDER to another folder")
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError as error:  # no folder can be written at all
        yield Check("temp folder", "problem", str(error), "set TMPDIR to a folder that can")
    else:
        yield folder("temp folder", temporary, "set TMPDIR to another folder")
    from robustlr.tasks.data.published import data_folder  # which imports torch

    otherwise = "set ROBUSTLR_DATA to another folder"
    yield folder("data folder", data_folder(), otherwise, needed=False)


def folder(name: str, path: Path, otherwise: str, *, needed: bool = True) -> Check:
    """Check that files can be written into a folder and that its disk is not full.

    Args:
        name: Of the check.
        path: The folder. If it is not there, the one that it would be made in is looked at.
        otherwise: What to do, if it cannot be mended.
        needed: Whether nothing works if it cannot be written.
    """
    path = path.absolute()
    nearest = next(each for each in (path, *path.parents) if os.path.exists(each))
    found = str(path) if nearest == path else f"{path} (not made yet)"
    try:
        free = shutil.disk_usage(nearest).free
        found = f"{found}: {free / 1e9:.1f} GB free"
        if free < FULL:
            return Check(name, "problem", found, f"free some disk, or {otherwise}")
        with tempfile.TemporaryFile(dir=nearest) as file:  # which never has a name
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        found = f"{path} cannot be written: {error.strerror}"
        return Check(name, "problem" if needed else "note", found, f"mend that, or {otherwise}")
    if free < SCARCE:
        return Check(name, "note", found, f"free some disk, or {otherwise}")
    return Check(name, "ok", found)


# The database, games and data, whose modules need packages that may be broken


def _database(url: str) -> Iterator[Check]:
    from robustlr.doctor_database import database_checks

    yield from database_checks(url)


def _data() -> Iterator[Check]:
    from robustlr.doctor_data import data_checks

    yield from data_checks()


def _roms() -> Iterator[Check]:
    try:
        from ale_py import roms

        yield Check("roms", "ok", f"Pong's: {roms.get_rom_path('pong')}")
    except ImportError as error:
        advice = "pip install 'robustlr[rl]'"
        yield Check("roms", "note", f"ale-py cannot be imported: {error}", advice)
    except OSError as error:
        advice = "pip install --force-reinstall ale-py, and leave ALE_ROMS_DIR unset"
        yield Check("roms", "note", f"Pong's is not usable: {_described(error)}", advice)
